//! From the kernel's type information to the constants that the programs need.

use pitviper_ebpf::abi::Globals;

use super::btf::{Btf, BtfError};

/// All offsets in [`Globals`]; the other fields keep their defaults.
pub fn resolve(btf: &Btf) -> Result<Globals, BtfError> {
    let registers = registers(btf)?;
    Ok(Globals {
        task_thread_pointer: thread_pointer(btf)?,
        task_files: btf.offset("task_struct", "files")?,
        task_tgid: btf.offset("task_struct", "tgid")?,
        task_pid: btf.offset("task_struct", "pid")?,
        task_state: btf.offset("task_struct", "__state").or_else(|_| btf.offset("task_struct", "state"))?,
        task_signal: btf.offset("task_struct", "signal")?,
        signal_live: btf.offset("signal_struct", "live")?,
        files_fdt: btf.offset("files_struct", "fdt")?,
        fdt_fd: btf.offset("fdtable", "fd")?,
        fdt_max_fds: btf.offset("fdtable", "max_fds")?,
        file_inode: btf.offset("file", "f_inode")?,
        file_private_data: btf.offset("file", "private_data")?,
        inode_mode: btf.offset("inode", "i_mode")?,
        inode_ino: btf.offset("inode", "i_ino")?,
        socket_sk: btf.offset("socket", "sk")?,
        socket_type: btf.offset("socket", "type")?,
        sock_family: btf.offset("sock", "__sk_common.skc_family")?,
        sock_num: btf.offset("sock", "__sk_common.skc_num")?,
        sock_dport: btf.offset("sock", "__sk_common.skc_dport")?,
        sock_rcv_saddr: btf.offset("sock", "__sk_common.skc_rcv_saddr")?,
        sock_daddr: btf.offset("sock", "__sk_common.skc_daddr")?,
        // Absent from a kernel without IPv6, where no socket has that family.
        sock_v6_rcv_saddr: btf.offset("sock", "__sk_common.skc_v6_rcv_saddr").unwrap_or(0),
        sock_v6_daddr: btf.offset("sock", "__sk_common.skc_v6_daddr").unwrap_or(0),
        sock_protocol: btf.offset("sock", "sk_protocol")?,
        tcp_write_seq: btf.offset("tcp_sock", "write_seq")?,
        tcp_copied_seq: btf.offset("tcp_sock", "copied_seq")?,
        unix_peer: btf.offset("unix_sock", "peer")?,
        unix_addr: btf.offset("unix_sock", "addr")?,
        unix_address_len: btf.offset("unix_address", "len")?,
        unix_address_name: btf.offset("unix_address", "name")?,
        regs_syscall: registers.0,
        regs_args: registers.1,
        ..Globals::default()
    })
}

#[cfg(target_arch = "x86_64")]
fn thread_pointer(btf: &Btf) -> Result<u32, BtfError> {
    btf.offset("task_struct", "thread.fsbase")
}

#[cfg(target_arch = "aarch64")]
fn thread_pointer(btf: &Btf) -> Result<u32, BtfError> {
    btf.offset("task_struct", "thread.uw.tp_value")
}

/// The system call number and its first four arguments, as they still are on the way out: x86-64 keeps the arguments
/// (the kernel clobbers only rcx and r11), arm64 keeps the first one in `orig_x0`.
#[cfg(target_arch = "x86_64")]
fn registers(btf: &Btf) -> Result<(u32, [u32; 4]), BtfError> {
    let register = |name| btf.offset("pt_regs", name);
    Ok((register("orig_ax")?, [register("di")?, register("si")?, register("dx")?, register("r10")?]))
}

#[cfg(target_arch = "aarch64")]
fn registers(btf: &Btf) -> Result<(u32, [u32; 4]), BtfError> {
    let general = btf.offset("pt_regs", "regs")?;
    let first = btf.offset("pt_regs", "orig_x0")?;
    Ok((btf.offset("pt_regs", "syscallno")?, [first, general + 8, general + 16, general + 24]))
}

#[cfg(test)]
mod tests {
    #[test]
    fn resolves_on_the_running_kernel() {
        let btf = super::Btf::parse(std::fs::read(super::super::btf::VMLINUX).unwrap()).unwrap();
        let globals = super::resolve(&btf).unwrap();
        assert_ne!(globals.task_thread_pointer, 0);
        assert_ne!(globals.tcp_write_seq, globals.tcp_copied_seq);
    }
}
