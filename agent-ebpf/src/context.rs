//! The logical task: the current `contextvars.Context` of a thread, read from its `PyThreadState`.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use pitviper_ebpf::abi::{
    CONTEXT_ENTERED, CONTEXT_IS_BASE, CONTEXT_UNRELATED, ContextEntered, ContextGone, ContextMade, Counter,
    Header, RecordKind, Target, Task, TlsKind,
};

use crate::greenlet;
use crate::maps::{count, epoch, next_epoch, send};
use crate::read;
use crate::task::thread_pointer;
use crate::thread::{clocks, turn};

/// musl: offset of `dtv`'s successor `tsd` in `struct pthread` from the thread pointer (src/internal/pthread_impl.h).
const MUSL_TSD: u64 = 128;

/// glibc: offset of `dtv` in `tcbhead_t` (sysdeps/x86_64/nptl/tls.h); musl: in `struct pthread`.
const DTV: u64 = 8;

/// `PyThreadState.context_ver` (`uint64_t`) follows `context` (Include/cpython/pystate.h, 3.7 to 3.14).
const VERSION: u64 = 8;

/// Address of the current context, or 0: none yet, or not readable; and the version that [`Clocks`] speak of.
///
/// The gilstate pointer in thread-specific data is used, not the "current" thread state: a thread that has released
/// the GIL for a system call has no current one.
#[inline(always)]
fn current_context(target: &Target) -> (u64, u32) {
    if target.tls_kind == TlsKind::None as u32 {
        return (0, 0);
    }
    let state = thread_state_of::<false>(target).unwrap_or(0);
    let (mut context, version) = if state == 0 { (0, 0) } else { context_in::<false>(state, target) };
    if target.greenlet_type != 0 && (context == 0 || context & CONTEXT_IS_BASE != 0) {
        context = greenlet::current_or(target, context);
    }
    (context, version)
}

/// Address of the `PyThreadState` of the current thread, if it has one; `QUIET` is for [`word`].
#[inline(always)]
pub(crate) fn thread_state<const QUIET: bool>(target: &Target) -> Option<u64> {
    if target.tls_kind == TlsKind::None as u32 { None } else { thread_state_of::<QUIET>(target) }
}

/// Reads from the process's memory. Where that may not be there, in an interrupt or in the midst of the scheduler's work, its
/// lack is nothing to count (`QUIET`).
#[inline(always)]
fn word<const QUIET: bool, T>(address: u64) -> Option<T> {
    if QUIET { read::user_if_there(address) } else { read::user(address) }
}

#[inline(always)]
fn thread_state_of<const QUIET: bool>(target: &Target) -> Option<u64> {
    let thread_pointer = thread_pointer()?;
    let block = if target.tls_kind == TlsKind::Musl as u32 {
        word::<QUIET, u64>(thread_pointer + MUSL_TSD)?
    } else if target.tls_kind == TlsKind::Dynamic as u32 {
        let table = word::<QUIET, u64>(thread_pointer + DTV)?;
        let block = word::<QUIET, u64>(table + u64::from(target.dtv_entry))?;
        // A thread that has used none of the module's variables has no block: NULL or `TLS_DTV_UNALLOCATED`, which is -1.
        if block == 0 || block == u64::MAX {
            return None;
        }
        block
    } else {
        thread_pointer
    };
    let slot_offset = i64::from(target.slot_offset as i32);
    let thread_state = word::<QUIET, u64>(block.wrapping_add_signed(slot_offset))?;
    if thread_state == 0 {
        return None;
    }
    Some(thread_state)
}

/// The current context of a thread state, marked if it is a base context, and the version; 0: there is none, or it cannot
/// be read.
#[inline(always)]
pub(crate) fn context_in<const QUIET: bool>(thread_state: u64, target: &Target) -> (u64, u32) {
    let Some([context, version]) = word::<QUIET, [u64; 2]>(thread_state + u64::from(target.context_offset))
    else {
        return (0, 0);
    };
    if context == 0 {
        return (0, version as u32);
    }
    let context = match word::<QUIET, u32>(context + CONTEXT_ENTERED) {
        Some(0) => context | CONTEXT_IS_BASE,
        Some(_) => context,
        None => 0,
    };
    (context, version as u32)
}

/// How often contexts were entered and left on the current thread, as far as [`Clocks`] tell; 0: not known.
#[inline(always)]
pub(crate) fn version(target: &Target) -> u32 {
    thread_state::<true>(target)
        .and_then(|state| word::<true, u32>(state + u64::from(target.context_offset) + VERSION))
        .unwrap_or(0)
}

/// The current thread and its logical task.
#[inline(always)]
pub(crate) fn current_task(pid_tgid: u64, target: &Target) -> Task {
    current(pid_tgid, target).0
}

/// The same, and the version that its clocks are to tell.
#[inline(always)]
pub(crate) fn current(pid_tgid: u64, target: &Target) -> (Task, u32) {
    let (context, version) = current_context(target);
    (Task { tid: pid_tgid as u32, turn: turn(pid_tgid), context }, version)
}

/// The thread is about to enter a context.
#[inline(always)]
pub(crate) fn entered(pid_tgid: u64, target: &Target, context: u64) {
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let (task, version) = current(pid_tgid, target);
    let record = ContextEntered {
        header: Header {
            kind: RecordKind::ContextEntered as u16,
            flags: epoch(),
            pid: (pid_tgid >> 32) as u32,
            ktime_ns,
        },
        task,
        clocks: clocks(pid_tgid, ktime_ns, version),
        context,
    };
    send(&record, Counter::RingFullContext);
}

/// There is a new context, a copy of the current one, or an `unrelated` one.
#[inline(always)]
pub(crate) fn made(pid_tgid: u64, target: Target, child: u64, unrelated: bool) {
    if child == 0 {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let (task, version) = current(pid_tgid, &target);
    let record = ContextMade {
        header: Header {
            kind: RecordKind::ContextMade as u16,
            flags: epoch() | if unrelated { CONTEXT_UNRELATED } else { 0 },
            pid: (pid_tgid >> 32) as u32,
            ktime_ns,
        },
        task,
        clocks: clocks(pid_tgid, ktime_ns, version),
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
    let record = ContextGone {
        header: Header {
            kind: RecordKind::ContextGone as u16,
            flags: epoch(),
            pid: (pid_tgid >> 32) as u32,
            // SAFETY: the helper has no preconditions.
            ktime_ns: unsafe { bpf_ktime_get_ns() },
        },
        task: Task { tid: pid_tgid as u32, turn: turn(pid_tgid), context: 0 },
        context,
    };
    if send(&record, Counter::RingFullContext) {
        count(Counter::ContextRecords);
    }
}
