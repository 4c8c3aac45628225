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
//! - Else go to the parent, with `t` := the time at which the child was copied.
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
//! - *Bytes of the exchange were lost*: its answer may have gone by unseen.

mod exchange;
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
    /// Operations without an owner.
    pub orphans: u64,
    /// Priors that a response refuted.
    pub conflicts: u64,
    /// Times that context copies were lost, and all lineage with them.
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

    /// A context is deallocated, on the thread and in the turn of `task`.
    pub fn context_gone(&mut self, pid: u32, task: Task, context: u64) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.context_gone(task, context);
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

    /// A server exchange is over. `lost`: some of its bytes were not seen, and its end is a guess.
    pub fn request_over(&mut self, key: ExchangeKey, ktime_ns: u64, lost: bool) {
        if let Some(process) = self.owners.remove(&key).and_then(|pid| self.processes.get_mut(&pid)) {
            process.request_over(key, ktime_ns, lost);
        }
    }

    /// A client exchange began; it will be settled by a later [`Engine::settle`].
    pub fn operation(&mut self, key: ExchangeKey, at: Moment) {
        self.process(at.pid).operation(key, at.ktime_ns, at.task);
    }

    /// Context copies were lost: a recycled address could pass for the old context, so all lineage is forgotten.
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
