//! The logical task: the current `contextvars.Context` of a thread, read from its `PyThreadState`.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use pitviper_ebpf::abi::{
    CONTEXT_ENTERED, CONTEXT_GONE, CONTEXT_IS_BASE, CONTEXT_UNRELATED, ContextMade, Counter, Header,
    RecordKind, Target, Task, TlsKind,
};

use crate::greenlet;
use crate::maps::{count, epoch, next_epoch, send, turn};
use crate::read;
use crate::task::thread_pointer;

/// musl: offset of `dtv`'s successor `tsd` in `struct pthread` from the thread pointer (src/internal/pthread_impl.h).
const MUSL_TSD: u64 = 128;

/// glibc: offset of `dtv` in `tcbhead_t` (sysdeps/x86_64/nptl/tls.h); musl: in `struct pthread`.
const DTV: u64 = 8;

/// Address of the current context, or 0: none yet, or not readable.
///
/// The gilstate pointer in thread-specific data is used, not the "current" thread state: a thread that has released
/// the GIL for a system call has no current one.
#[inline(always)]
fn current_context(target: &Target) -> u64 {
    if target.tls_kind == TlsKind::None as u32 {
        return 0;
    }
    let context = context_of(target).unwrap_or(0);
    if target.greenlet_type != 0 && (context == 0 || context & CONTEXT_IS_BASE != 0) {
        return greenlet::current_or(target, context);
    }
    context
}

#[inline(always)]
fn context_of(target: &Target) -> Option<u64> {
    context_in(thread_state_of(target)?, target)
}

/// Address of the `PyThreadState` of the current thread, if it has one.
#[inline(always)]
pub(crate) fn thread_state(target: &Target) -> Option<u64> {
    if target.tls_kind == TlsKind::None as u32 { None } else { thread_state_of(target) }
}

#[inline(always)]
fn thread_state_of(target: &Target) -> Option<u64> {
    let thread_pointer = thread_pointer()?;
    let block = if target.tls_kind == TlsKind::Musl as u32 {
        read::user(thread_pointer + MUSL_TSD)?
    } else if target.tls_kind == TlsKind::Dynamic as u32 {
        let table: u64 = read::user(thread_pointer + DTV)?;
        let block: u64 = read::user(table + u64::from(target.dtv_entry))?;
        // A thread that has used none of the module's variables has no block: NULL or `TLS_DTV_UNALLOCATED`, which is -1.
        if block == 0 || block == u64::MAX {
            return None;
        }
        block
    } else {
        thread_pointer
    };
    let slot_offset = i64::from(target.slot_offset as i32);
    let thread_state: u64 = read::user(block.wrapping_add_signed(slot_offset))?;
    if thread_state == 0 {
        return None;
    }
    Some(thread_state)
}

/// The current context of a thread state, marked if it is a base context.
#[inline(always)]
pub(crate) fn context_in(thread_state: u64, target: &Target) -> Option<u64> {
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
    let record = ContextMade {
        header: Header {
            kind: RecordKind::ContextMade as u16,
            flags: epoch() | if unrelated { CONTEXT_UNRELATED } else { 0 },
            pid: (pid_tgid >> 32) as u32,
            // SAFETY: the helper has no preconditions.
            ktime_ns: unsafe { bpf_ktime_get_ns() },
        },
        task: current_task(pid_tgid, &target),
        child,
    };
    if send(&record, Counter::RingFullContext) {
        count(Counter::ContextRecords);
    } else {
        next_epoch();
    }
}

/// A context is being deallocated. Where this is lost the context seems to live until its address is used again, which
/// may make orphans and no wrong parents: no new epoch.
#[inline(always)]
pub(crate) fn gone(pid_tgid: u64, context: u64) {
    let record = ContextMade {
        header: Header {
            kind: RecordKind::ContextMade as u16,
            flags: epoch() | CONTEXT_GONE,
            pid: (pid_tgid >> 32) as u32,
            // SAFETY: the helper has no preconditions.
            ktime_ns: unsafe { bpf_ktime_get_ns() },
        },
        task: Task { tid: pid_tgid as u32, turn: turn(pid_tgid), context: 0 },
        child: context,
    };
    if send(&record, Counter::RingFullContext) {
        count(Counter::ContextRecords);
    }
}
