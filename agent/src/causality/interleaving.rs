//! Threads that do several things at once although no loop turn was seen: an event loop on `select` or `poll`, or on `epoll`
//! before its first turn.
//!
//! A thread that serves requests one after the other never reads a request while one of another connection, which it has
//! read, is open. One that does is taken for an event-loop thread: without contexts nothing that it does is known to be part of
//! anything. Threads that are given contexts need no such care, for those tell their tasks apart.

use std::rc::Rc;

use pitviper_ebpf::abi::{CONTEXT_IS_BASE, Task};
use rustc_hash::FxHashMap;

use super::Moment;
use super::exchange::Exchange;

/// How long a thread is distrusted after it was last seen to serve two requests at once. It may have been a loss of data that
/// hid the end of the first one.
const DISTRUST_NS: u64 = 60_000_000_000;
/// Threads that are remembered; beyond it the distrust that is over is forgotten.
const MANY: usize = 1024;

/// The threads of a process that run no epoll loop, with the requests that they have read outside any context.
#[derive(Default)]
pub(super) struct Interleaving {
    last_read: FxHashMap<u32, Rc<Exchange>>,
    /// Until when a thread is distrusted.
    distrusted: FxHashMap<u32, u64>,
}

impl Interleaving {
    /// A request was read.
    pub(super) fn request_read(&mut self, head: Moment, exchange: &Rc<Exchange>) {
        let Task { tid, turn, context } = head.task;
        if turn != 0 || (context != 0 && context & CONTEXT_IS_BASE == 0) {
            return;
        }
        if self.last_read.len() > MANY {
            self.last_read.retain(|_, exchange| exchange.over.get().is_none());
            self.distrusted.retain(|_, until| *until > head.ktime_ns);
        }
        let open = |earlier: &Rc<Exchange>| {
            earlier.over.get().is_none() && earlier.connection != exchange.connection
        };
        if self.last_read.insert(tid, Rc::clone(exchange)).is_some_and(|earlier| open(&earlier)) {
            self.distrusted.insert(tid, head.ktime_ns.saturating_add(DISTRUST_NS));
        }
    }

    /// The moment as the owner rule is to see it: in a loop turn of its own, if the thread is distrusted.
    pub(super) fn seen(&self, at: Moment) -> Moment {
        let is_distrusted = |until: &u64| at.ktime_ns < *until;
        if at.task.turn != 0 || !self.distrusted.get(&at.task.tid).is_some_and(is_distrusted) {
            return at;
        }
        Moment { task: Task { turn: at.ktime_ns as u32 | 1, ..at.task }, ..at }
    }
}
