//! Processes come and go: a child of a target is a target before its first instruction.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use pitviper_ebpf::abi::{Counter, EXEC_TARGET, Header, ProcessExecuted, ProcessExited, ProcessForked, RecordKind, Target};

use crate::maps::{forget_thread, global, insert_target, remove_target, send, target};
use crate::read;

#[inline(always)]
fn header(kind: RecordKind, flags: u16, pid: u32) -> Header {
    // SAFETY: the helper has no preconditions.
    Header { kind: kind as u16, flags, pid, ktime_ns: unsafe { bpf_ktime_get_ns() } }
}

/// The current thread made `child`, a thread or a process.
#[inline(always)]
pub(crate) fn forked(child: *const u8) {
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(found) = target(parent) else { return };
    let Some(child_pid) = read::kernel::<u32>(child as u64, global!(task_tgid)) else { return };
    if child_pid == parent {
        return;
    }
    insert_target(child_pid, &found);
    let record = ProcessForked { header: header(RecordKind::ProcessForked, 0, parent), child: child_pid, reserved: 0 };
    send(&record, Counter::RingFullLifecycle);
}

/// The current process runs a new program: what was known of its interpreter is void.
#[inline(always)]
pub(crate) fn executed() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let flags = match target(pid) {
        Some(_) => {
            insert_target(pid, &Target::FOLLOWED);
            EXEC_TARGET
        }
        None if global!(report_exec) != 0 => 0,
        None => return,
    };
    send(&ProcessExecuted { header: header(RecordKind::ProcessExecuted, flags, pid) }, Counter::RingFullLifecycle);
}

/// The current thread ends.
#[inline(always)]
pub(crate) fn exited() {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if target(pid).is_none() {
        return;
    }
    forget_thread(pid_tgid);
    if pid == pid_tgid as u32 {
        remove_target(pid);
        send(&ProcessExited { header: header(RecordKind::ProcessExited, 0, pid) }, Counter::RingFullLifecycle);
    }
}
