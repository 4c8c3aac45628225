//! Processes come and go: a child of a target is a target before its first instruction.
//!
//! Nothing here waits for the daemon, and the daemon waits for nothing but these records: whatever calls for a look at a
//! process (a fork, an exec, code that it maps, an interpreter that starts) rings the doorbell.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use pitviper_ebpf::abi::{
    Counter, EXEC_TARGET, Header, ProcessExecuted, ProcessExited, ProcessForked, ProcessStirred, RecordKind,
    SyscallKind, Target, ThreadEnded,
};

use crate::capture::Registers;
use crate::maps::{forget_worker, global, insert_target, remove_target, ring_doorbell, send, target};
use crate::{profile, publish, read, thread, work};

#[inline(always)]
fn header(kind: RecordKind, flags: u16, pid: u32) -> Header {
    // SAFETY: the helper has no preconditions.
    Header { kind: kind as u16, flags, pid, ktime_ns: unsafe { bpf_ktime_get_ns() } }
}

/// The current thread made `child`, a thread or a process. Gives the child's pid if it has become a target.
#[inline(always)]
pub(crate) fn forked(child: *const u8) -> Option<u32> {
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    let found = target(parent)?;
    let child_pid = read::kernel::<u32>(child as u64, global!(task_tgid))?;
    if child_pid == parent {
        let tid = read::kernel::<u32>(child as u64, global!(task_pid))?;
        thread::born(u64::from(parent) << 32 | u64::from(tid));
        if found.capture != 0 {
            work::thread_started(&found, tid);
        }
        return None;
    }
    insert_target(child_pid, &found);
    profile::inherit(parent, child_pid);
    thread::inherit(parent, child_pid);
    let record =
        ProcessForked { header: header(RecordKind::ProcessForked, 0, parent), child: child_pid, reserved: 0 };
    send(&record, Counter::RingFullLifecycle);
    // The child may need a lineage probe of its own, and its interpreter's data may differ from the parent's.
    ring_doorbell();
    Some(child_pid)
}

/// The current process runs a new program: what was known of its interpreter is void. Tells whether it is a target.
#[inline(always)]
pub(crate) fn executed() -> bool {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let flags = match target(pid) {
        Some(_) => {
            insert_target(pid, &Target::FOLLOWED);
            profile::forget(pid);
            thread::forget_process(pid);
            EXEC_TARGET
        }
        None if global!(report_exec) != 0 => 0,
        None => return false,
    };
    send(
        &ProcessExecuted { header: header(RecordKind::ProcessExecuted, flags, pid) },
        Counter::RingFullLifecycle,
    );
    ring_doorbell();
    flags == EXEC_TARGET
}

/// A target of which nothing is captured made a system call, or any target called `mmap`: tells the daemon when that is worth
/// a look.
#[inline(never)]
pub(crate) fn stirred(pid: u32, target: &Target, kind: u8, regs: Registers, result: i64) {
    /// `PROT_EXEC` and `MAP_ANONYMOUS` in include/uapi/asm-generic/mman-common.h.
    const PROT_EXEC: u64 = 0x4;
    const MAP_ANONYMOUS: u64 = 0x20;
    let worth_a_look = if kind == SyscallKind::Map as u8 {
        let (protection, flags) =
            (regs.argument(global!(regs_args[2])), regs.argument(global!(regs_args[3])));
        // Addresses of user space are positive.
        result > 0 && protection & PROT_EXEC != 0 && flags & MAP_ANONYMOUS == 0
    } else {
        target.awaited != 0
            && read::user_if_there::<u32>(target.awaited).is_some_and(|word| word & target.awaited_bits != 0)
    };
    if worth_a_look {
        let header = header(RecordKind::ProcessStirred, 0, pid);
        send(&ProcessStirred { header }, Counter::RingFullLifecycle);
        // A module that a target has loaded can wait until the daemon looks at the records anyway.
        if target.capture == 0 {
            ring_doorbell();
        }
    }
}

/// The current thread, `task`, ends. Tells whether it was the last one of a target: not always the first thread, and when
/// another thread than that one calls `execve`, the first one ends and the process goes on.
#[inline(always)]
pub(crate) fn exited(task: *const u8) -> bool {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if target(pid).is_none() {
        return false;
    }
    thread::forget(pid_tgid);
    forget_worker(pid_tgid);
    publish::thread_ended(pid_tgid);
    // `do_exit` in kernel/exit.c has taken this thread off the count.
    let live = read::kernel::<u64>(task as u64, global!(task_signal))
        .and_then(|signal| read::kernel::<i32>(signal, global!(signal_live)));
    let last = live.is_none_or(|live| live <= 0);
    if last {
        remove_target(pid);
        profile::forget(pid);
        thread::forget_process(pid);
        send(
            &ProcessExited { header: header(RecordKind::ProcessExited, 0, pid) },
            Counter::RingFullLifecycle,
        );
    } else {
        let header = header(RecordKind::ThreadEnded, 0, pid);
        send(&ThreadEnded { header, tid: pid_tgid as u32, reserved: 0 }, Counter::RingFullLifecycle);
    }
    last
}
