//! Can this kernel, and this user, do what pitviper needs? Each "no" is one sentence that says what to do.

use std::fmt;
use std::fs;
use std::path::Path;

use super::btf;

/// Oldest kernel with everything the programs use: the ring buffer came with 5.8.
const OLDEST: (u32, u32) = (5, 8);

/// First kernel with the helper `bpf_task_pt_regs`.
const TASK_REGISTERS: (u32, u32) = (5, 15);

/// First kernel with the helper `bpf_get_current_task_btf`.
const TYPED_TASK: (u32, u32) = (5, 11);

/// First kernel whose BTF tracepoints leave preemption enabled.
const PREEMPTS_TRACEPOINTS: (u32, u32) = (7, 0);

/// Why the kernel side cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incapable {
    /// Not root, and without the capabilities.
    NotPrivileged,
    /// Older than 5.8.
    KernelTooOld(String),
    /// No `/sys/kernel/btf/vmlinux`.
    NoBtf,
    /// The kernel is locked down so that it hides its memory from everybody.
    LockedDown,
    /// `/proc` shows another pid namespace than the kernel's own.
    PidNamespace,
}

impl fmt::Display for Incapable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPrivileged => f.write_str(
                "pitviper needs root (or CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH): run it with sudo",
            ),
            Self::KernelTooOld(release) => {
                write!(f, "this kernel is {release}, pitviper needs Linux 5.8 or newer: upgrade the kernel")
            }
            Self::NoBtf => write!(
                f,
                "this kernel has no type information at {}: use a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's is)",
                btf::VMLINUX
            ),
            Self::LockedDown => f.write_str(
                "the kernel is in lockdown mode \"confidentiality\", which forbids reading process memory: boot with lockdown=integrity or without lockdown",
            ),
            Self::PidNamespace => f.write_str(
                "pitviper runs in its own pid namespace and cannot tell the kernel's pids: give its container the host's (hostPID: true, or docker run --pid=host)",
            ),
        }
    }
}

impl std::error::Error for Incapable {}

/// Checks everything that can be checked before loading.
pub fn check() -> Result<(), Incapable> {
    if !privileged(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Err(Incapable::NotPrivileged);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_some_and(|version| version < OLDEST) {
        return Err(Incapable::KernelTooOld(release.trim().to_owned()));
    }
    if locked_down(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()) {
        return Err(Incapable::LockedDown);
    }
    if !Path::new(btf::VMLINUX).exists() {
        return Err(Incapable::NoBtf);
    }
    if !initial_pid_namespace() {
        return Err(Incapable::PidNamespace);
    }
    Ok(())
}

/// Whether this kernel may preempt a program at a BTF tracepoint.
pub fn preempts_tracepoints() -> bool {
    is_at_least(PREEMPTS_TRACEPOINTS)
}

/// Whether programs can see the registers with which a task entered the kernel: what it sleeps in.
pub fn has_task_registers() -> bool {
    is_at_least(TASK_REGISTERS)
}

/// Whether programs get a typed pointer to the current task.
pub fn has_typed_task() -> bool {
    is_at_least(TYPED_TASK)
}

fn is_at_least(wanted: (u32, u32)) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version(&release).is_some_and(|version| version >= wanted)
}

/// Whether `/proc/self/status` shows the effective capabilities that are needed. CAP_BPF and CAP_PERFMON are enough
/// for the tracepoints, but not for uprobes: `perf_uprobe_event_init` in kernel/events/core.c asks for CAP_SYS_ADMIN,
/// which includes them.
fn privileged(status: &str) -> bool {
    // include/uapi/linux/capability.h
    const DAC_READ_SEARCH: u64 = 1 << 2;
    const SYS_PTRACE: u64 = 1 << 19;
    const SYS_ADMIN: u64 = 1 << 21;
    const NEEDED: u64 = SYS_ADMIN | SYS_PTRACE | DAC_READ_SEARCH;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    effective & NEEDED == NEEDED
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn locked_down(lockdown: &str) -> bool {
    lockdown.contains("[confidentiality]")
}

/// The initial pid namespace has a fixed inode number, `PROC_PID_INIT_INO` (include/linux/proc_ns.h).
fn initial_pid_namespace() -> bool {
    const INITIAL: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").map_or(true, |link| link.as_os_str() == INITIAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(version("5.4.0-generic"), Some((5, 4)));
        assert_eq!(version("weird"), None);
    }

    #[test]
    fn reads_capabilities() {
        assert!(privileged("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(privileged("CapEff:\t0000000000280004\n"));
        // CAP_BPF and CAP_PERFMON instead of CAP_SYS_ADMIN.
        assert!(!privileged("CapEff:\t000000c000080004\n"));
        assert!(!privileged("CapEff:\t0000000000000000\n"));
        assert!(!privileged("CapEff:\t000000c000000000\n"));
    }

    #[test]
    fn reads_lockdown() {
        assert!(locked_down("none integrity [confidentiality]"));
        assert!(!locked_down("none [integrity] confidentiality"));
        assert!(!locked_down(""));
    }
}
