//! Which system calls are of interest, by their numbers on this architecture.

use pitviper_ebpf::abi::SyscallKind;

/// Pairs of a system call number and what the call does.
pub fn table() -> Vec<(u32, SyscallKind)> {
    let mut table = vec![
        (libc::SYS_read, SyscallKind::Read),
        (libc::SYS_write, SyscallKind::Write),
        (libc::SYS_readv, SyscallKind::Readv),
        (libc::SYS_writev, SyscallKind::Writev),
        (libc::SYS_recvfrom, SyscallKind::Recvfrom),
        (libc::SYS_sendto, SyscallKind::Write),
        (libc::SYS_recvmsg, SyscallKind::Recvmsg),
        (libc::SYS_sendmsg, SyscallKind::Sendmsg),
        (libc::SYS_recvmmsg, SyscallKind::Recvmmsg),
        (libc::SYS_sendmmsg, SyscallKind::Sendmmsg),
        (libc::SYS_sendfile, SyscallKind::Sendfile),
        (libc::SYS_splice, SyscallKind::Splice),
        (libc::SYS_epoll_pwait, SyscallKind::EpollWait),
        (libc::SYS_epoll_pwait2, SyscallKind::EpollWait),
        (libc::SYS_mmap, SyscallKind::Mmap),
    ];
    #[cfg(target_arch = "x86_64")]
    table.push((libc::SYS_epoll_wait, SyscallKind::EpollWait));
    table.into_iter().filter_map(|(number, kind)| Some((u32::try_from(number).ok()?, kind))).collect()
}
