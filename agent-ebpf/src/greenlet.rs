//! The current greenlet of a thread, read from greenlet's thread-local state: glibc's way of finding a module's storage.
//!
//! greenlet 2 and later: `static thread_local ThreadStateCreator<...> g_thread_state_global`, which holds a
//! `ThreadState *` that is 1 before its first use; a `ThreadState` begins with the main greenlet and the current one
//! (src/greenlet/TThreadStateCreator.hpp, TThreadState.hpp).

use aya_ebpf::helpers::bpf_ktime_get_ns;
use pitviper_ebpf::abi::{
    CONTEXT_IS_GREENLET, Counter, GreenletGone, Header, OBJECT_TYPE, RecordKind, TYPE_BASE, Target,
};

use crate::context::thread_pointer;
use crate::maps::send;
use crate::read;

/// `tcbhead_t.dtv`: sysdeps/x86_64/nptl/tls.h.
const VECTOR: u64 = 8;
/// `sizeof(dtv_t)`: `{void *val; void *to_free}`; sysdeps/generic/dl-dtv.h.
const VECTOR_ENTRY: u64 = 16;
/// `TLS_DTV_UNALLOCATED`: the thread has not used the module's storage.
const UNALLOCATED: u64 = u64::MAX;
/// `ThreadState.current_greenlet`
const CURRENT: u64 = 8;
/// Classes between a greenlet's own and `greenlet.greenlet`.
const MOST_BASES: u32 = 8;

/// Address of the current greenlet, with its mark.
#[inline(never)]
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
    let greenlet: u64 = read::user(state + CURRENT)?;
    is_greenlet(target, greenlet).then_some(greenlet | CONTEXT_IS_GREENLET)
}

/// A greenlet is being deallocated. One whose end is not reported has not ended, which costs it its parent, no more.
#[inline(always)]
pub(crate) fn gone(pid: u32, greenlet: u64) {
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let header = Header { kind: RecordKind::GreenletGone as u16, flags: 0, pid, ktime_ns };
    let record = GreenletGone { header, greenlet: greenlet | CONTEXT_IS_GREENLET };
    send(&record, Counter::RingFullLifecycle);
}

/// Whether that is what it is taken for: another version of greenlet may have other fields.
#[inline(always)]
fn is_greenlet(target: &Target, object: u64) -> bool {
    let Some(mut kind) = read::user::<u64>(object + OBJECT_TYPE) else { return false };
    let mut bases = 0;
    while bases < MOST_BASES {
        if kind == target.greenlet_type {
            return true;
        }
        if kind == 0 {
            return false;
        }
        let Some(base) = read::user(kind + TYPE_BASE) else { return false };
        kind = base;
        bases += 1;
    }
    false
}
