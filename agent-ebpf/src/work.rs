//! Work that changes threads: items of thread pools, and new threads.
//!
//! `ThreadPoolExecutor.submit` puts a `_WorkItem` into a `_queue.SimpleQueue`, and a worker thread takes it out
//! (Lib/concurrent/futures/thread.py, 3.8 to 3.14). The item's address names it for as long as it is on its way.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use pitviper_ebpf::abi::{
    Counter, Header, OBJECT_TYPE, RecordKind, TYPE_NAME, Target, ThreadStarted, WORK_DONE, WORK_ITEM_NAME,
    WORK_SUBMITTED, WorkItem,
};

use crate::context::{current, current_task};
use crate::maps::{Worker, epoch, insert_worker, next_epoch, send, worker};
use crate::thread::clocks;
use crate::{probed, read};

#[inline(always)]
fn header(kind: RecordKind, flags: u16, pid_tgid: u64) -> Header {
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    Header { kind: kind as u16, flags: epoch() | flags, pid: (pid_tgid >> 32) as u32, ktime_ns }
}

/// `_queue_SimpleQueue_put(self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)`: before the object is in the
/// queue, so that the record comes before that of its taking.
#[uprobe]
fn py_queue_put(ctx: ProbeContext) -> u32 {
    if let (Some((pid_tgid, target)), Some(arguments), Some(count)) = (probed(&ctx), ctx.arg(1), ctx.arg(2)) {
        put(pid_tgid, &target, arguments, count);
    }
    0
}

/// `_queue_SimpleQueue_get(self, ...)` and `_queue_SimpleQueue_get_nowait(self, ...)`
#[uprobe]
fn py_queue_get(ctx: ProbeContext) -> u32 {
    if let (Some((pid_tgid, target)), Some(queue)) = (probed(&ctx), ctx.arg(0)) {
        asked(pid_tgid, &target, queue);
    }
    0
}

/// The same on return: an object out of the queue, or NULL. The functions may wait, for a lock of the thread, not of a
/// greenlet (gevent puts a queue of its own in their place), and never switch stacks.
#[uretprobe]
fn py_queue_got(ctx: RetProbeContext) -> u32 {
    if let Some((pid_tgid, target)) = probed(&ctx) {
        taken(pid_tgid, &target, ctx.ret());
    }
    0
}

/// `SimpleQueue.put` was called: with an item of a thread pool, or with anything else.
#[inline(always)]
fn put(pid_tgid: u64, target: &Target, arguments: u64, count: u64) {
    if count == 0 {
        return;
    }
    let Some(item) = read::user(arguments) else { return };
    if is_work_item(item) {
        report(pid_tgid, target, item, WORK_SUBMITTED);
    }
}

/// `SimpleQueue.get` or `get_nowait` was called on a queue. A worker that asks the queue that it has its item from is
/// through with that item.
#[inline(always)]
fn asked(pid_tgid: u64, target: &Target, queue: u64) {
    let Some(worker) = worker(pid_tgid) else {
        return insert_worker(pid_tgid, &Worker { asked: queue, serves: 0 });
    };
    // SAFETY: the pointer is to a map value, and only its own thread uses it.
    let was = unsafe {
        (*worker).asked = queue;
        (*worker).serves
    };
    if was == queue {
        // SAFETY: as above.
        unsafe { (*worker).serves = 0 };
        report(pid_tgid, target, 0, WORK_DONE);
    }
}

/// `SimpleQueue.get` or `get_nowait` returned this object, or 0 with an exception set. A thread that is at work on an item
/// is no worker of another pool: it cancels what is left in its queue (`ThreadPoolExecutor.shutdown`).
#[inline(always)]
fn taken(pid_tgid: u64, target: &Target, item: u64) {
    let Some(worker) = worker(pid_tgid) else { return };
    // SAFETY: the pointer is to a map value, and only its own thread uses it.
    if item == 0 || unsafe { (*worker).serves } != 0 || !is_work_item(item) {
        return;
    }
    // SAFETY: as above.
    unsafe { (*worker).serves = (*worker).asked };
    report(pid_tgid, target, item, 0);
}

/// Whether an object's type is called `_WorkItem`.
#[inline(always)]
fn is_work_item(object: u64) -> bool {
    let named = || {
        let kind: u64 = read::user(object + OBJECT_TYPE)?;
        let name: u64 = read::user(kind + TYPE_NAME)?;
        let head: [u8; 8] = read::user(name)?;
        if head != WORK_ITEM_NAME.0 {
            return None;
        }
        let tail: [u8; 2] = read::user(name + 8)?;
        Some(tail == WORK_ITEM_NAME.1)
    };
    named().unwrap_or(false)
}

#[inline(always)]
fn report(pid_tgid: u64, target: &Target, item: u64, flags: u16) {
    let header = header(RecordKind::WorkItem, flags, pid_tgid);
    let (task, version) = current(pid_tgid, target);
    let record = WorkItem { header, task, clocks: clocks(pid_tgid, header.ktime_ns, version), item };
    if !send(&record, Counter::RingFullContext) {
        next_epoch();
    }
}

/// The current thread has made another one, which does not run yet.
#[inline(always)]
pub(crate) fn thread_started(target: &Target, tid: u32) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let header = header(RecordKind::ThreadStarted, 0, pid_tgid);
    let record = ThreadStarted { header, task: current_task(pid_tgid, target), tid, reserved: 0 };
    if !send(&record, Counter::RingFullContext) {
        next_epoch();
    }
}
