//! Processes come and go: a child of a target is a target before its first instruction.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use pitviper_ebpf::abi::{
    Counter, EXEC_TARGET, Header, ProcessExecuted, ProcessExited, ProcessForked, RecordKind, Target,
};

use crate::maps::{global, insert_target, remove_target, ring_doorbell, send, target};
use crate::{read, thread};

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
        return None;
    }
    insert_target(child_pid, &found);
    let record =
        ProcessForked { header: header(RecordKind::ProcessForked, 0, parent), child: child_pid, reserved: 0 };
    send(&record, Counter::RingFullLifecycle);
    // The child needs its own lineage probe before it copies its first context.
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
            EXEC_TARGET
        }
        None if global!(report_exec) != 0 => 0,
        None => return false,
    };
    send(
        &ProcessExecuted { header: header(RecordKind::ProcessExecuted, flags, pid) },
        Counter::RingFullLifecycle,
    );
    flags == EXEC_TARGET
}

/// The current thread ends. Tells whether it was the main thread of a target.
#[inline(always)]
pub(crate) fn exited() -> bool {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if target(pid).is_none() {
        return false;
    }
    thread::forget(pid_tgid);
    let main = pid == pid_tgid as u32;
    if main {
        remove_target(pid);
        send(
            &ProcessExited { header: header(RecordKind::ProcessExited, 0, pid) },
            Counter::RingFullLifecycle,
        );
    }
    main
}
