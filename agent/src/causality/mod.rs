//! Which request is an operation part of? The owner rule, over what the kernel saw.
//!
//! Takes context copies, and the opening, answering and closing of exchanges with the thread and the logical task
//! (`contextvars.Context`) that did it. Gives for every operation (a client exchange) the server exchange that it is
//! part of, with the evidence, or says that there is none: **the right parent or an honest orphan, never a wrong
//! one**. Knows no protocol, no span and no I/O; one [`Engine`] serves all processes.
//!
//! The rule, for an operation at time `t` in context `c`: walk `c`, its parent, and so on.
//! - *Proof*: that context wrote the response of an exchange that covers `t`: it is part of that exchange.
//! - *Prior*: that context was copied by the event loop between reading a request and its next turn: it handles that
//!   request. The prior is confirmed when the response is written in that context or below it, and refuted when the
//!   response is written elsewhere.
//! - Else go to the parent, with `t` := the time at which the child was copied. The parent of what a worker thread does is
//!   the context that submitted the work; see [`handover`].
//!
//! An operation waits while an exchange that was open at `t` has not been answered, because the answer may be proof.

mod exchange;
mod handover;
mod judge;
mod lineage;
mod process;

use pitviper_ebpf::abi::Task;
use rustc_hash::FxHashMap;

use process::Process;

/// Settle at least once in so many events: a context remembers only its latest responses.
pub const ROUND: usize = 256;

/// Number of an exchange, unique over the life of the daemon.
pub type ExchangeKey = u64;

/// Why an operation is taken for part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// Its context, or the one that it was branched from, wrote the response.
    Response,
    /// Its context was branched off when the request was read, and the response confirmed it or never came.
    Reading,
    /// Its thread, which runs no event loop, had read the request and not finished it.
    Thread,
    /// Its thread was handed the work, as an item of a thread pool, or it was started for it, as a thread or a greenlet.
    Handover,
}

/// The engine's word on an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The operation.
    pub operation: ExchangeKey,
    /// The server exchange that it is part of, and why; `None`: an orphan.
    pub owner: Option<(ExchangeKey, Evidence)>,
}

/// What the engine counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations settled by the response.
    pub by_response: u64,
    /// Operations settled by the reading window.
    pub by_reading: u64,
    /// Operations settled by the thread.
    pub by_thread: u64,
    /// Operations settled by a work item that was handed over, or a thread that was started.
    pub by_handover: u64,
    /// Operations without an owner.
    pub orphans: u64,
    /// Priors that a response refuted.
    pub conflicts: u64,
    /// Times that context copies or handovers were lost, and all lineage with them.
    pub amnesias: u64,
    /// Operations settled before all evidence was in, because too many were waiting or for too long.
    pub overdue: u64,
}

/// When and where something happened.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Process.
    pub pid: u32,
    /// CLOCK_MONOTONIC nanoseconds.
    pub ktime_ns: u64,
    /// Thread and context.
    pub task: Task,
}

/// The owner rule, for all processes.
#[derive(Default)]
pub struct Engine {
    processes: FxHashMap<u32, Process>,
    owners: FxHashMap<ExchangeKey, u32>,
    stats: Stats,
}

impl Engine {
    /// `PyContext_CopyCurrent` returned `child` on this thread; the task's context is the parent.
    pub fn context_copied(&mut self, at: Moment, child: u64) {
        self.process(at.pid).context_made(at, child, true);
    }

    /// A context was made on this thread that is not a copy of the current one, often at the address of one that is gone.
    pub fn context_created(&mut self, at: Moment, context: u64) {
        self.process(at.pid).context_made(at, context, false);
    }

    /// A work item is about to be put into the queue of a thread pool.
    pub fn work_submitted(&mut self, at: Moment, item: u64) {
        self.process(at.pid).work_submitted(at, item);
    }

    /// A worker thread has taken an item.
    pub fn work_taken(&mut self, at: Moment, item: u64) {
        self.process(at.pid).work_taken(at, item);
    }

    /// A worker thread is through with the item that it had.
    pub fn work_done(&mut self, at: Moment) {
        self.process(at.pid).work_done(at);
    }

    /// A thread was started.
    pub fn thread_started(&mut self, at: Moment, tid: u32) {
        self.process(at.pid).thread_started(at, tid);
    }

    /// A thread ended.
    pub fn thread_ended(&mut self, pid: u32, tid: u32, ktime_ns: u64) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.thread_ended(tid, ktime_ns);
        }
    }

    /// A greenlet was made, which stands for itself where it has no context of its own.
    pub fn greenlet_made(&mut self, at: Moment, greenlet: u64) {
        self.process(at.pid).greenlet_made(at, greenlet);
    }

    /// A greenlet is gone.
    pub fn greenlet_gone(&mut self, pid: u32, greenlet: u64, ktime_ns: u64) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.greenlet_gone(greenlet, ktime_ns);
        }
    }

    /// A request was read: a server exchange begins. `first` is its first byte, `head` the call that completed its head.
    pub fn request_read(&mut self, key: ExchangeKey, connection: u64, first: Moment, head: Moment) {
        self.owners.insert(key, head.pid);
        self.process(head.pid).request_read(key, connection, first, head);
    }

    /// The first byte of a server exchange's response was written.
    pub fn response_begun(&mut self, key: ExchangeKey, at: Moment) {
        if let Some(process) = self.owners.get(&key).and_then(|pid| self.processes.get_mut(pid)) {
            // Another process may answer what this one has read; then its context proves nothing here.
            let by = self.owners.get(&key).filter(|pid| **pid == at.pid).map(|_| at.task);
            process.response_begun(key, at.ktime_ns, by);
        }
    }

    /// A server exchange is over.
    pub fn request_over(&mut self, key: ExchangeKey, ktime_ns: u64) {
        if let Some(process) = self.owners.remove(&key).and_then(|pid| self.processes.get_mut(&pid)) {
            process.request_over(key, ktime_ns);
        }
    }

    /// A client exchange began; it will be settled by a later [`Engine::settle`].
    pub fn operation(&mut self, key: ExchangeKey, at: Moment) {
        self.process(at.pid).operation(key, at.ktime_ns, at.task);
    }

    /// Context copies, or other links of the lineage, were lost: a recycled address could pass for the old context, so all lineage is forgotten.
    pub fn lineage_lost(&mut self) {
        self.stats.amnesias += 1;
        for process in self.processes.values_mut() {
            process.forget_lineage();
        }
    }

    /// Settles all operations that can be settled at `now_ns` (CLOCK_MONOTONIC).
    pub fn settle(&mut self, now_ns: u64, out: &mut Vec<Settled>) {
        for process in self.processes.values_mut() {
            process.settle(now_ns, false, &mut self.stats, out);
        }
    }

    /// A process has ended: its operations are settled with what is known.
    pub fn process_ended(&mut self, pid: u32, out: &mut Vec<Settled>) {
        if let Some(mut process) = self.processes.remove(&pid) {
            process.settle(u64::MAX, true, &mut self.stats, out);
        }
    }

    /// A process runs a new program: its old contexts are gone.
    pub fn process_executed(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.forget_lineage();
        }
    }

    /// The daemon ends: everything is settled with what is known.
    pub fn settle_all(&mut self, out: &mut Vec<Settled>) {
        for process in self.processes.values_mut() {
            process.settle(u64::MAX, true, &mut self.stats, out);
        }
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn process(&mut self, pid: u32) -> &mut Process {
        self.processes.entry(pid).or_default()
    }
}

#[cfg(test)]
mod tests;
