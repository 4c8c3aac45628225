//! Work that changes hands without a context: items of thread pools, new threads, new greenlets.
//!
//! An item is submitted in one logical task and taken by a worker thread; its address names it in between. What the worker
//! does from then on, until it is through with it, descends from that task at the time of submission, like a context that
//! was copied then. That is sure, however long the queue: the item itself is what was handed over.
//!
//! Work that does not end is another matter; see [`super::work`]. A thread, which is what endless loops usually run in, has less
//! time to end than an item. A greenlet has ended when it is gone: nothing tells before.

use std::rc::{Rc, Weak};

use pitviper_ebpf::abi::{CONTEXT_IS_BASE, CONTEXT_IS_GREENLET, Task};
use rustc_hash::FxHashMap;

use super::Moment;
use super::lineage::Node;
use super::process::Process;
use super::work::Work;

/// Items on their way that are remembered; beyond it all are forgotten.
const MOST_ITEMS: usize = 65_536;
/// An item, or a greenlet, may go on for so long after the request that it came from: fire and forget.
const ITEM_LINGERS_NS: u64 = 1_000_000_000;
/// A thread that was joined has ended as far as Python is concerned a little before the kernel sees its end: before 3.13
/// `join` waits for its interpreter state to be gone, not for the thread itself (Lib/threading.py, `_tstate_lock`).
const THREAD_LINGERS_NS: u64 = 200_000_000;

/// Items on their way, and the work that threads are at.
#[derive(Default)]
pub(super) struct Handovers {
    /// Who submitted an item, and when. An address is named anew by each item at it.
    submitted: FxHashMap<u64, Submitted>,
    /// The item that a thread has taken.
    held: FxHashMap<u32, Held>,
    /// Threads whose start was seen.
    started: FxHashMap<u32, Started>,
    /// The latest empty context that each thread has made.
    created: FxHashMap<u32, Empty>,
}

struct Started {
    node: Rc<Node>,
    /// What may turn out to be its own context.
    empty: Option<Empty>,
    /// Its own context.
    own: Option<u64>,
}

/// A context that is no copy.
struct Empty {
    context: u64,
    node: Weak<Node>,
    /// It was made by a thread that runs no event loop, and so not for a request that such a loop has read.
    alone: bool,
}

struct Submitted {
    node: Option<Rc<Node>>,
    time: u64,
    task: Task,
}

struct Held {
    item: u64,
    node: Rc<Node>,
    /// The thread's loop turns when it took the item: an item may run an event loop of its own.
    turn: u32,
}

impl Handovers {
    /// How many loop turns a thread has made in its present work.
    pub(super) fn turns_since(&self, tid: u32, turn: u32) -> u32 {
        self.held.get(&tid).map_or(turn, |held| turn.wrapping_sub(held.turn))
    }

    /// A thread has made a context.
    pub(super) fn context_made(&mut self, by: Task, context: u64, copied: bool, node: &Rc<Node>) {
        if let Some(started) = self.started.get_mut(&by.tid).filter(|started| started.own == Some(context)) {
            // Not the thread's after all.
            started.own = None;
        }
        if copied {
            return;
        }

        self.created.insert(by.tid, Empty { context, node: Rc::downgrade(node), alone: by.turn == 0 });
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Process {
    /// The moment with the thread's own context marked as what it is: a base context, which stands for the thread. Since 3.14
    /// `Thread.start` makes an empty context and then the thread, which runs in it from beginning to end (Lib/threading.py).
    pub(super) fn at_home(&mut self, at: Moment) -> Moment {
        let context = at.task.context;
        if context == 0 || context & (CONTEXT_IS_BASE | CONTEXT_IS_GREENLET) != 0 {
            return at;
        }
        let Some(started) = self.handovers.started.get_mut(&at.task.tid) else { return at };
        if started.own != Some(context) {
            let is_it = |empty: &Empty| {
                empty.context == context
                    && self.contexts.get(&context).is_some_and(|known| {
                        std::ptr::eq(Rc::as_ptr(known), empty.node.as_ptr())
                            && (empty.alone || !known.has_evidence())
                    })
            };
            if !started.empty.as_ref().is_some_and(is_it) {
                return at;
            }
            started.own = Some(context);
        }
        Moment { task: Task { context: context | CONTEXT_IS_BASE, ..at.task }, ..at }
    }

    /// A worker thread that was there before pitviper: the context that it takes an item in, and that was not seen to be
    /// made, is its own.
    fn find_home(&mut self, Moment { pid, task: Task { tid, turn, context }, .. }: Moment) {
        let found = self.contexts.get(&context).is_none_or(|known| known.born() == 0);
        if tid == pid || turn != 0 || !found || context & (CONTEXT_IS_BASE | CONTEXT_IS_GREENLET) != 0 {
            return;
        }
        let unseen = || Started { node: Node::root(0), empty: None, own: None };
        self.handovers.started.entry(tid).or_insert_with(unseen).own = Some(context).filter(|own| *own != 0);
    }

    /// The task is about to put an item into the queue of a pool.
    pub(super) fn work_submitted(&mut self, at: Moment, item: u64) {
        let at = self.seen(at);
        let node = self.node(at.task);
        if self.handovers.submitted.len() >= MOST_ITEMS {
            self.handovers.submitted.clear();
        }
        self.handovers.submitted.insert(item, Submitted { node, time: at.ktime_ns, task: at.task });
    }

    /// The thread has taken an item, and does nothing else from now on.
    pub(super) fn work_taken(&mut self, at: Moment, item: u64) {
        self.find_home(at);
        let at = self.at_home(at);
        let Moment { ktime_ns, task, .. } = at;
        let submitted = self.handovers.submitted.remove(&item);
        // Several processes on one file, and a kernel that cannot tell their probes apart: it was taken only once.
        if submitted.is_none() && self.handovers.held.get(&task.tid).is_some_and(|held| held.item == item) {
            return;
        }
        self.end_item(task.tid, ktime_ns);
        // A task of an event loop is no worker, nor is a thread with a job: it cancels what is left in a queue.
        if (task.turn != 0 && !task.is_base()) || self.has_job(task) {
            return;
        }
        let node = match submitted {
            Some(Submitted { node: Some(submitter), time, task }) => {
                Node::handed(&submitter, time, task, Work::new(ktime_ns, ITEM_LINGERS_NS))
            }
            _ => Node::root(ktime_ns),
        };
        self.handovers.held.insert(task.tid, Held { item, node: Rc::clone(&node), turn: task.turn });
        self.begin_work(at, node);
    }

    /// The thread is through with its item.
    pub(super) fn work_done(&mut self, at: Moment) {
        if self.end_item(at.task.tid, at.ktime_ns) {
            let at = self.at_home(at);
            self.begin_work(at, Node::root(at.ktime_ns));
        }
    }

    /// The task started a thread.
    pub(super) fn thread_started(&mut self, at: Moment, tid: u32) {
        let at = self.seen(at);
        let node = self.handed(at, THREAD_LINGERS_NS);
        self.thread_ended(tid, at.ktime_ns);
        let empty = self.handovers.created.remove(&at.task.tid);
        self.handovers.started.insert(tid, Started { node: Rc::clone(&node), empty, own: None });
        self.threads.insert(tid, node);
    }

    /// A thread ended.
    pub(super) fn thread_ended(&mut self, tid: u32, ktime_ns: u64) {
        self.end_item(tid, ktime_ns);
        self.handovers.created.remove(&tid);
        if let Some(started) = self.handovers.started.remove(&tid) {
            self.end(&started.node, ktime_ns);
        }
        self.threads.remove(&tid);
        self.windows.remove(&tid);
    }

    /// The task made a greenlet. It reads its requests itself, so that what the thread has just read says nothing of it.
    pub(super) fn greenlet_made(&mut self, at: Moment, greenlet: u64) {
        let at = self.seen(at);
        let node = self.handed(at, ITEM_LINGERS_NS);
        self.remember(at, greenlet, node);
    }

    /// A greenlet is gone.
    pub(super) fn greenlet_gone(&mut self, greenlet: u64, ktime_ns: u64) {
        if let Some(node) = self.contexts.remove(&greenlet) {
            self.end(&node, ktime_ns);
        }
    }

    /// Work that the task hands over, and that begins at once.
    fn handed(&mut self, at: Moment, lingers: u64) -> Rc<Node> {
        match self.node(at.task) {
            Some(giver) => Node::handed(&giver, at.ktime_ns, at.task, Work::new(at.ktime_ns, lingers)),
            None => Node::root(at.ktime_ns),
        }
    }

    /// Tells whether there was an item.
    fn end_item(&mut self, tid: u32, ktime_ns: u64) -> bool {
        let held = self.handovers.held.remove(&tid);
        if let Some(held) = &held {
            self.end(&held.node, ktime_ns);
        }
        held.is_some()
    }

    fn end(&mut self, node: &Node, ktime_ns: u64) {
        if let Some(work) = node.work_handed() {
            work.end(ktime_ns);
            self.stirred = true;
        }
    }

    /// From now on the thread's work is that of `node`; what it had read before is not.
    fn begin_work(&mut self, Moment { task, .. }: Moment, node: Rc<Node>) {
        self.windows.remove(&task.tid);
        if task.is_base() {
            self.threads.insert(task.tid, node);
        } else {
            // Since 3.14 a thread begins in an entered context of its own, which lives as long as the thread does.
            self.contexts.insert(task.context, node);
        }
    }
}
