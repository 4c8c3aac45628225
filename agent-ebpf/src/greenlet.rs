//! The current greenlet of a thread, read from greenlet's thread-local state: glibc's way of finding a module's storage.
//!
//! greenlet 2 and later: `static thread_local ThreadStateCreator<...> g_thread_state_global`, which holds a
//! `ThreadState *` that is 1 before its first use; a `ThreadState` begins with the main greenlet and the current one
//! (src/greenlet/TThreadStateCreator.hpp, TThreadState.hpp).

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pitviper_ebpf::abi::{
    CONTEXT_IS_GREENLET, Counter, GreenletGone, Header, OBJECT_TYPE, RecordKind, Target,
};

use crate::maps::{opaque, scratch, send};
use crate::task::thread_pointer;
use crate::{context, probed, read};

/// `tcbhead_t.dtv`: sysdeps/x86_64/nptl/tls.h.
const VECTOR: u64 = 8;
/// `sizeof(dtv_t)`: `{void *val; void *to_free}`; sysdeps/generic/dl-dtv.h.
const VECTOR_ENTRY: u64 = 16;
/// `TLS_DTV_UNALLOCATED`: the thread has not used the module's storage.
const UNALLOCATED: u64 = u64::MAX;

/// Address of the current greenlet, with its mark, or else `context`. It goes through the scratch area, so that the verifier
/// follows one path from here on, not one for each way in which this can fail.
#[inline(never)]
pub(crate) fn current_or(target: &Target, context: u64) -> u64 {
    let found = current(target).unwrap_or(context);
    match scratch() {
        Some(scratch) => opaque(scratch, found),
        None => 0,
    }
}

/// Address of the current greenlet, with its mark.
#[inline(always)]
pub(crate) fn current(target: &Target) -> Option<u64> {
    let vector: u64 = read::user(thread_pointer()? + VECTOR)?;
    // The vector's entry -1 holds its length.
    let modules: u64 = read::user(vector - VECTOR_ENTRY)?;
    if u64::from(target.greenlet_module) > modules {
        return None;
    }
    let storage: u64 = read::user(vector + u64::from(target.greenlet_module) * VECTOR_ENTRY)?;
    if storage == 0 || storage == UNALLOCATED {
        return None;
    }
    let state: u64 = read::user(storage + u64::from(target.greenlet_offset))?;
    if state <= 1 {
        return None;
    }
    // The main greenlet is of greenlet's own type (`alloc_main`): what looks otherwise is no state that is known here.
    let [main, current] = read::user::<[u64; 2]>(state)?;
    if read::user::<u64>(main + OBJECT_TYPE)? != target.greenlet_type || current == 0 {
        return None;
    }
    Some(current | CONTEXT_IS_GREENLET)
}

/// `green_init(PyGreenlet *self, PyObject *args, PyObject *kwargs)`: a new greenlet. On the call only: what makes greenlets
/// may switch stacks.
#[uprobe]
fn py_greenlet_init(ctx: ProbeContext) -> u32 {
    if let (Some((pid_tgid, target)), Some(greenlet)) = (probed(&ctx), ctx.arg::<u64>(0)) {
        context::made(pid_tgid, target, greenlet | CONTEXT_IS_GREENLET, false);
    }
    0
}

/// `green_dealloc(PyGreenlet *self)`
#[uprobe]
fn py_greenlet_dealloc(ctx: ProbeContext) -> u32 {
    if let (Some((pid_tgid, _)), Some(greenlet)) = (probed(&ctx), ctx.arg::<u64>(0)) {
        gone((pid_tgid >> 32) as u32, greenlet);
    }
    0
}

/// A greenlet is being deallocated. One whose end is not reported has not ended, which costs it its parent, no more.
#[inline(always)]
fn gone(pid: u32, greenlet: u64) {
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let header = Header { kind: RecordKind::GreenletGone as u16, flags: 0, pid, ktime_ns };
    let record = GreenletGone { header, greenlet: greenlet | CONTEXT_IS_GREENLET };
    send(&record, Counter::RingFullLifecycle);
}
