//! perf_event_open(2), as far as probes need it: events that count nothing and only say where a probe is wanted.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `struct perf_event_attr` in include/uapi/linux/perf_event.h, as long as in its first version.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config_1: u64,
}

/// `PERF_TYPE_TRACEPOINT`
const TRACEPOINT: u32 = 2;
/// Bits of `flags`: `disabled`, `inherit`.
const DISABLED: u64 = 1;
const INHERIT: u64 = 1 << 1;
/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: u64 = 1 << 3;
/// `PERF_EVENT_IOC_SET_BPF`: `_IOW('$', 8, __u32)`
const SET_PROGRAM: libc::Ioctl = 0x4004_2408;

/// Opens the tracepoint with this number on one thread; 0 is the calling one. With `inherit`, what the thread creates from
/// now on, threads and processes, has it from its first moment.
pub(super) fn open_tracepoint(id: u64, tid: u32, inherit: bool) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: id,
        flags: DISABLED | if inherit { INHERIT } else { 0 },
        ..Attributes::default()
    };
    let tid = libc::pid_t::try_from(tid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    let (any_cpu, no_group): (libc::c_int, libc::c_int) = (-1, -1);
    // SAFETY: the kernel reads as many bytes of the attributes as they say they have.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, tid, any_cpu, no_group, CLOSE_ON_EXEC)
    };
    match i32::try_from(fd) {
        // SAFETY: the descriptor is new and nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a program at every hit of the tracepoint that `event` is open on, whoever hits it, until `event` is closed.
pub(super) fn set_program(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes a descriptor by value and touches no memory of this process.
    let done = unsafe { libc::ioctl(event.as_raw_fd(), SET_PROGRAM, program.as_raw_fd()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
