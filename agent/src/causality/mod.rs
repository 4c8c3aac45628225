//! Which request is an operation part of? The owner rule, over what the kernel saw.
//!
//! Takes context copies, and the opening, answering and closing of exchanges with the thread and the logical task
//! (`contextvars.Context`) that did it. Gives for every operation (a client exchange) the server exchange that it is
//! part of, with the evidence, or says that there is none: **the right parent or an honest orphan, never a wrong
//! one**. Knows no protocol, no span and no I/O; one [`Engine`] serves all processes.
//!
//! The rule, for an operation at time `t` in context `c`: walk `c`, its parent, and so on.
//! - *Proof*: that context wrote the response of an exchange that covers `t`, or was made after that exchange's request was
//!   read and has the context that wrote the response below it: the operation is part of that exchange. A context that was
//!   made for one exchange and has answered no other is at work on it after the response too.
//! - *Prior*: that context was copied by the event loop between reading a request and its next turn: it handles that
//!   request. The prior is confirmed when the response is written in that context or below it, and refuted when the
//!   response is written elsewhere. Without a response it counts if the callback that read the request made the copy, or if
//!   it was the first copy after the read and that has always been the handler in this process.
//! - Else go to the parent, with `t` := the time at which the child was copied. The parent of what a worker thread does is
//!   the context that submitted the work; see [`handover`].
//!
//! A thread that takes jobs, one at a time (a process of a Celery pool), needs no evidence but the order of things: what
//! happens on it between a job and its result, in no context of another origin, is part of that job.
//!
//! An operation waits while an exchange that was open at `t` has not been answered, because the answer may be proof.
//!
//! What lineage says is doubted where other requests were served meanwhile, so that the work may have been theirs:
//! - *A context that lives on* after the response of the exchange in which it was made: a task of that request, or a sender
//!   that it happened to make and that works for everybody. A task ends. So its operations wait for its end; one that has
//!   worked after the response and lives for `exchange::LONG_NS` longer is a sender, and all its work is nobody's.
//! - *A context that was made by another at its end*, when that had done work of its own: tornado's client starts the next
//!   call of its queue so, whoever's it is.
//! - *A context that serves one request after the other* and has been seen to work after a response, when the next request
//!   was read by somebody else: the work may be the rest of the request before. Nothing tells as long as no context of the
//!   process has been seen to do so.
//! - *The next request of the connection* was given up: work after the response may have been for that one.
//! - *Work that was handed over* and did not end with the exchange: it may be everybody's, whoever started it.
//! - *Bytes of the exchange were lost*: its answer may have gone by unseen.

mod evidence;
mod exchange;
mod handover;
mod history;
mod interleaving;
mod judge;
mod lineage;
mod process;
mod work;

use pitviper_ebpf::abi::Task;
use rustc_hash::FxHashMap;

pub use evidence::{Evidence, Kind, Orphan, Tally};
use process::Process;

/// Settle at least once in so many events: a context remembers only its latest responses.
pub const ROUND: usize = 256;

/// Number of an exchange, unique over the life of the daemon.
pub type ExchangeKey = u64;

/// The engine's word on an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The operation.
    pub operation: ExchangeKey,
    /// The server exchange that it is part of.
    pub owner: Owner,
}

/// The server exchange that an operation is part of, and why; or why there is none.
pub type Owner = Result<(ExchangeKey, Evidence), Orphan>;

/// What the engine counted, of one process or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations with an owner, by evidence.
    pub owned: Tally<Evidence>,
    /// Operations without one, by reason.
    pub orphans: Tally<Orphan>,
    /// Priors that a response refuted.
    pub conflicts: u64,
    /// Times that context copies or handovers were lost, and all lineage with them.
    pub amnesias: u64,
    /// Operations settled before all evidence was in, because too many were waiting or for too long.
    pub overdue: u64,
}

impl Stats {
    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        let Self { owned, orphans, conflicts, amnesias, overdue } = self;
        owned.add(&other.owned);
        orphans.add(&other.orphans);
        *conflicts += other.conflicts;
        *amnesias += other.amnesias;
        *overdue += other.overdue;
    }

    fn count(&mut self, owner: Owner) {
        match owner {
            Ok((_, evidence)) => self.owned.count(evidence),
            Err(reason) => self.orphans.count(reason),
        }
    }
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
    /// Of the processes that have ended.
    ended: Stats,
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

    /// A context is deallocated, on the thread and in the turn of `task`.
    pub fn context_gone(&mut self, pid: u32, task: Task, context: u64) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.context_gone(task, context);
        }
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
        self.process(head.pid).request_read(key, connection, false, first, head);
    }

    /// A thread has read a job, and does nothing else until it has written the job's result: a server exchange begins.
    pub fn job_read(&mut self, key: ExchangeKey, connection: u64, first: Moment, head: Moment) {
        self.owners.insert(key, head.pid);
        self.process(head.pid).request_read(key, connection, true, first, head);
    }

    /// The first byte of a server exchange's response was written.
    pub fn response_begun(&mut self, key: ExchangeKey, at: Moment) {
        if let Some(process) = self.owners.get(&key).and_then(|pid| self.processes.get_mut(pid)) {
            // Another process may answer what this one has read; then its context proves nothing here.
            let own = self.owners.get(&key) == Some(&at.pid);
            process.response_begun(key, at, own);
        }
    }

    /// A server exchange is over. `lost`: some of its bytes were not seen, and its end is a guess.
    pub fn request_over(&mut self, key: ExchangeKey, ktime_ns: u64, lost: bool) {
        if let Some(process) = self.owners.remove(&key).and_then(|pid| self.processes.get_mut(&pid)) {
            process.request_over(key, ktime_ns, lost);
        }
    }

    /// A client exchange began; it will be settled by a later [`Engine::settle`].
    pub fn operation(&mut self, key: ExchangeKey, at: Moment) {
        self.process(at.pid).operation(key, at, true);
    }

    /// Whose work is done at this moment? Settled like an operation, but not counted as one.
    pub fn question(&mut self, key: ExchangeKey, at: Moment) {
        self.process(at.pid).operation(key, at, false);
    }

    /// Context copies or handovers were lost: a recycled address could pass for the old context, so all lineage is forgotten.
    pub fn lineage_lost(&mut self) {
        for process in self.processes.values_mut() {
            process.lose_lineage();
        }
    }

    /// Settles all operations that can be settled at `now_ns` (CLOCK_MONOTONIC).
    pub fn settle(&mut self, now_ns: u64, out: &mut Vec<Settled>) {
        for process in self.processes.values_mut() {
            process.settle(now_ns, false, out);
        }
    }

    /// A process has ended: its operations are settled with what is known. Gives what was counted of it.
    pub fn process_ended(&mut self, pid: u32, out: &mut Vec<Settled>) -> Option<Stats> {
        let mut process = self.processes.remove(&pid)?;
        process.settle(u64::MAX, true, out);
        self.ended.add(&process.stats());
        Some(process.stats())
    }

    /// Forgets processes that are no longer known and have nothing open: what was reported of them after their end.
    pub fn retain(&mut self, mut known: impl FnMut(u32) -> bool) {
        let Self { processes, ended, .. } = self;
        processes.retain(|pid, process| {
            let kept = process.is_busy() || known(*pid);
            if !kept {
                ended.add(&process.stats());
            }
            kept
        });
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
            process.settle(u64::MAX, true, out);
        }
    }

    /// How many processes something is known of.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// What was counted so far, of all processes.
    pub fn stats(&self) -> Stats {
        let mut sum = self.ended;
        for process in self.processes.values() {
            sum.add(&process.stats());
        }
        sum
    }

    /// What was counted of one process, while it runs.
    pub fn process_stats(&self, pid: u32) -> Option<Stats> {
        self.processes.get(&pid).map(Process::stats)
    }

    /// Operations of a process that wait for their evidence.
    pub fn waiting(&self, pid: u32) -> usize {
        self.processes.get(&pid).map_or(0, Process::waiting)
    }

    fn process(&mut self, pid: u32) -> &mut Process {
        self.processes.entry(pid).or_default()
    }
}

#[cfg(test)]
mod tests;
