//! The logical task: the current `contextvars.Context` of a thread, read from its `PyThreadState`.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use pitviper_ebpf::abi::{
    CONTEXT_ENTERED, CONTEXT_IS_BASE, CONTEXT_UNRELATED, ContextMade, Counter, Header, RecordKind, Target,
    Task, TlsKind,
};

use crate::maps::{count, epoch, global, next_epoch, send};
use crate::read;
use crate::thread::{clocks, turn};

/// musl: offset of `dtv`'s successor `tsd` in `struct pthread` from the thread pointer (src/internal/pthread_impl.h).
const MUSL_TSD: u64 = 128;

/// Address of the current context, or 0: none yet, or not readable.
///
/// The gilstate pointer in thread-specific data is used, not the "current" thread state: a thread that has released
/// the GIL for a system call has no current one.
#[inline(always)]
fn current_context(target: &Target) -> u64 {
    if target.tls_kind == TlsKind::None as u32 {
        return 0;
    }
    context_of(target).unwrap_or(0)
}

#[inline(always)]
fn context_of(target: &Target) -> Option<u64> {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let thread_pointer: u64 = read::kernel(task, global!(task_thread_pointer))?;
    let block = if target.tls_kind == TlsKind::Musl as u32 {
        read::user(thread_pointer + MUSL_TSD)?
    } else {
        thread_pointer
    };
    let thread_state: u64 = read::user(block + u64::from(target.slot_offset))?;
    if thread_state == 0 {
        return None;
    }
    let context: u64 = read::user(thread_state + u64::from(target.context_offset))?;
    if context == 0 {
        return None;
    }
    let entered: u32 = read::user(context + CONTEXT_ENTERED)?;
    Some(if entered == 0 { context | CONTEXT_IS_BASE } else { context })
}

/// The current thread and its logical task.
#[inline(always)]
pub(crate) fn current_task(pid_tgid: u64, target: &Target) -> Task {
    Task { tid: pid_tgid as u32, turn: turn(pid_tgid), context: current_context(target) }
}

/// There is a new context, a copy of the current one, or an `unrelated` one.
#[inline(always)]
pub(crate) fn made(pid_tgid: u64, target: Target, child: u64, unrelated: bool) {
    if child == 0 {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let record = ContextMade {
        header: Header {
            kind: RecordKind::ContextMade as u16,
            flags: epoch() | if unrelated { CONTEXT_UNRELATED } else { 0 },
            pid: (pid_tgid >> 32) as u32,
            ktime_ns,
        },
        task: current_task(pid_tgid, &target),
        clocks: clocks(pid_tgid, ktime_ns),
        child,
    };
    if send(&record, Counter::RingFullContext) {
        count(Counter::ContextRecords);
    } else {
        next_epoch();
    }
}
