//! Records of work that changes hands without a context: items of thread pools, threads, greenlets; and what the kernel side reads
//! of Python objects to know them.

use core::mem::size_of;

use super::{Clocks, Header, Task};

/// Flag of [`WorkItem`]: it is put into a queue; else a thread has taken it out of one.
pub const WORK_SUBMITTED: u16 = 1;
/// Flag of [`WorkItem`]: the thread is through with the one that it had taken. There is no `item`.
pub const WORK_DONE: u16 = 2;

/// A `concurrent.futures` work item went into the queue of a thread pool, or out of it, or is done.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct WorkItem {
    /// `flags`: [`WORK_SUBMITTED`], [`WORK_DONE`], and the epoch.
    pub header: Header,
    /// Who did it.
    pub task: Task,
    /// The thread's clocks.
    pub clocks: Clocks,
    /// Address of the `concurrent.futures.thread._WorkItem`, which lives at least from the one to the other.
    pub item: u64,
}

/// A thread of a target was started; sent before it runs.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ThreadStarted {
    /// `flags`: the epoch.
    pub header: Header,
    /// Who started it.
    pub task: Task,
    /// The new thread's id.
    pub tid: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
}

/// A thread of a target that is not its main thread ended.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ThreadEnded {
    /// `flags` is 0.
    pub header: Header,
    /// Which.
    pub tid: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
}

/// A greenlet is being deallocated: it has ended, at the latest now.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GreenletGone {
    /// `flags` is 0.
    pub header: Header,
    /// Its address, with [`super::CONTEXT_IS_GREENLET`], as it was reported when it was made.
    pub greenlet: u64,
}

/// `offsetof(PyObject, ob_type)` in GIL builds: Include/object.h.
pub const OBJECT_TYPE: u64 = 8;
/// `offsetof(PyTypeObject, tp_name)`, behind a `PyVarObject`: Include/cpython/object.h.
pub const TYPE_NAME: u64 = 24;
/// `tp_name` of what `ThreadPoolExecutor.submit` puts into its queue, as read in two pieces. A class made by a `class`
/// statement has its bare name there (Objects/typeobject.c, `type_new`).
pub const WORK_ITEM_NAME: ([u8; 8], [u8; 2]) = (*b"_WorkIte", *b"m\0");

const _: () = {
    assert!(size_of::<WorkItem>() == 40 + 56);
    assert!(size_of::<ThreadStarted>() == 40);
    assert!(size_of::<ThreadEnded>() == 24);
    assert!(size_of::<GreenletGone>() == 24);
};
