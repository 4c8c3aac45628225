//! The span that a thread is at work on, for others to read: the map `traces_ctx_v1`.
//!
//! The daemon enters a thread when it knows its span; here the entry is taken away, at the very call that ends its
//! truth, so that nobody reads it while the daemon has not heard of that yet.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use pitviper_ebpf::abi::{PUBLISHED_THREADS, SpanIds};

use crate::maps::global;

/// The map's name and shape are a contract with OpenTelemetry's profiler and eBPF instrumentation.
#[map(name = "traces_ctx_v1")]
static TRACES: LruHashMap<u64, SpanIds> = LruHashMap::with_max_entries(PUBLISHED_THREADS, 0);
/// By the address of the `struct sock` that a thread has a request of: the thread.
#[map]
static SERVING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(PUBLISHED_THREADS, 0);

/// A socket was written to or is gone: whoever served its request has answered it.
#[inline(always)]
pub(crate) fn answered(sock: u64) {
    if global!(publish) != 0 {
        withdraw(sock);
    }
}

#[inline(never)]
fn withdraw(sock: u64) {
    // SAFETY: the value is copied at once.
    if let Some(thread) = unsafe { SERVING.get(sock) }.copied() {
        let _ = TRACES.remove(thread);
        let _ = SERVING.remove(sock);
    }
}

/// The current thread ends.
#[inline(always)]
pub(crate) fn thread_ended(pid_tgid: u64) {
    if global!(publish) != 0 {
        let _ = TRACES.remove(pid_tgid);
    }
}
