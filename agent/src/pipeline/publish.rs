//! Which thread is at work on which span, where that is certain: for [`crate::kernel::publish`].
//!
//! Certain is: a thread without an event loop has read a request, has not answered it and has read no other; and this
//! process has answered such requests by the threads that had read them, and by no other thread, so far. A process that
//! hands its requests from thread to thread, or has several in work on one, is given up for good. The tasks of an event
//! loop take turns without anything that could be seen from outside; their threads are never published.

use pitviper_ebpf::abi::{SocketId, SpanIds};
use rustc_hash::FxHashMap;

use crate::causality::ExchangeKey;
use crate::connection::Mark;
use crate::kernel::publish::{Published, thread};

/// Requests that have to be answered by the threads that had read them, before any is published.
const TRUSTED_AFTER: u32 = 2;

/// How a process deals with its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// So many requests were answered by the threads that had read them.
    ByReader(u32),
    /// Not by thread.
    Other,
}

/// A request in the hands of a thread.
#[derive(Clone, Copy, Debug)]
struct Served {
    pid: u32,
    tid: u32,
    socket: SocketId,
    /// Bytes sent over the socket before the request was read.
    sent: u64,
    entered: bool,
}

impl Served {
    fn thread(&self) -> u64 {
        thread(self.pid, self.tid)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Publisher {
    habits: FxHashMap<u32, Habit>,
    served: FxHashMap<ExchangeKey, Served>,
    threads: FxHashMap<u64, ExchangeKey>,
    /// Entries that are to be withdrawn.
    over: Vec<(u64, SocketId)>,
}

impl Publisher {
    /// A request was read; `sent` is how much had been sent over the socket.
    pub(super) fn request_read(&mut self, key: ExchangeKey, socket: SocketId, head: &Mark, sent: u64) {
        let Mark { pid, task, .. } = *head;
        let habit = *self.habits.entry(pid).or_insert(Habit::ByReader(0));
        if habit == Habit::Other || task.turn != 0 {
            return;
        }
        let served = Served { pid, tid: task.tid, socket, sent, entered: false };
        match self.threads.get(&served.thread()).and_then(|key| self.served.get(key)) {
            // The client did not wait for the answer; the thread begins with the first request.
            Some(other) if other.socket == socket => {}
            Some(_) => self.give_up(pid),
            None => {
                self.threads.insert(served.thread(), key);
                self.served.insert(key, served);
            }
        }
    }

    /// The response was begun.
    pub(super) fn answered(&mut self, key: ExchangeKey, by: &Mark) {
        let Some(served) = self.take(key) else { return };
        let Some(habit) = self.habits.get_mut(&served.pid) else { return };
        match habit {
            Habit::ByReader(times) if (by.pid, by.task.tid) == (served.pid, served.tid) => {
                *times = times.saturating_add(1);
            }
            _ => self.give_up(served.pid),
        }
    }

    /// The exchange is over, however it ended.
    pub(super) fn over(&mut self, key: ExchangeKey) {
        self.take(key);
    }

    fn take(&mut self, key: ExchangeKey) -> Option<Served> {
        let served = self.served.remove(&key)?;
        self.threads.remove(&served.thread());
        if served.entered {
            self.over.push((served.thread(), served.socket));
        }
        Some(served)
    }

    /// The process has ended, runs a new program, or is of no interest any more.
    pub(super) fn forget(&mut self, pid: u32) {
        self.give_up(pid);
        self.habits.remove(&pid);
    }

    /// Whether there are requests whose span may become known at any time.
    pub(super) fn is_waiting(&self) -> bool {
        self.served.values().any(|served| !served.entered && is_trusted(&self.habits, served.pid))
    }

    /// Brings the map up to date; `ids` tells the span of an exchange where it is known.
    pub(super) fn round(&mut self, map: &mut Published, ids: impl Fn(ExchangeKey) -> Option<SpanIds>) {
        for (thread, socket) in self.over.drain(..) {
            map.withdraw(thread, socket);
        }
        let habits = &self.habits;
        for (key, served) in self.served.iter_mut().filter(|(_, served)| !served.entered) {
            if is_trusted(habits, served.pid)
                && let Some(ids) = ids(*key)
            {
                // An answer that is on its way to the daemon already makes this a no, and an end of it.
                map.enter(served.thread(), served.socket, served.sent, ids);
                served.entered = true;
            }
        }
    }

    fn give_up(&mut self, pid: u32) {
        self.habits.insert(pid, Habit::Other);
        let of_process = self.served.iter().filter(|(_, served)| served.pid == pid);
        for key in of_process.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.over(key);
        }
    }
}

fn is_trusted(habits: &FxHashMap<u32, Habit>, pid: u32) -> bool {
    matches!(habits.get(&pid), Some(Habit::ByReader(times)) if *times >= TRUSTED_AFTER)
}

#[cfg(test)]
mod tests {
    use pitviper_ebpf::abi::Task;

    use super::*;

    const PID: u32 = 7;

    fn mark(tid: u32, turn: u32) -> Mark {
        let task = Task { tid, turn, context: 0 };
        Mark { pid: PID, ktime_ns: 0, task, sequence: None, position: 0 }
    }

    fn socket(sock: u64) -> SocketId {
        SocketId { sock, inode: sock }
    }

    /// Requests are read and answered by threads; whether the next one would be published.
    fn check(steps: &[(u32, u32)], turn: u32, expected: bool) {
        let mut publisher = Publisher::default();
        for (key, (reader, writer)) in (0..).zip(steps) {
            publisher.request_read(key, socket(key), &mark(*reader, turn), 0);
            publisher.answered(key, &mark(*writer, turn));
        }
        publisher.request_read(99, socket(99), &mark(1, turn), 0);
        assert_eq!(publisher.is_waiting(), expected, "{steps:?} {turn}");
    }

    #[test]
    fn only_threads_that_answer_what_they_read() {
        check(&[], 0, false);
        check(&[(1, 1)], 0, false);
        check(&[(1, 1), (2, 2)], 0, true);
        check(&[(1, 1), (2, 2), (3, 4)], 0, false);
        check(&[(3, 4), (1, 1), (2, 2), (1, 1)], 0, false);
        check(&[(1, 1), (2, 2)], 5, false);
    }

    #[test]
    fn two_requests_on_one_thread_are_no_thread_each() {
        let mut publisher = Publisher::default();
        publisher.habits.insert(PID, Habit::ByReader(9));
        publisher.request_read(1, socket(1), &mark(1, 0), 0);
        // The same connection: the client does not wait for answers.
        publisher.request_read(2, socket(1), &mark(1, 0), 0);
        assert!(publisher.is_waiting());
        publisher.request_read(3, socket(2), &mark(1, 0), 0);
        assert!(!publisher.is_waiting());
        assert_eq!(publisher.habits[&PID], Habit::Other);
    }

    #[test]
    fn what_is_over_is_withdrawn() {
        let mut publisher = Publisher::default();
        publisher.habits.insert(PID, Habit::ByReader(9));
        publisher.request_read(1, socket(1), &mark(1, 0), 0);
        publisher.served.get_mut(&1).unwrap().entered = true;
        publisher.forget(PID);
        assert_eq!(publisher.over, [(thread(PID, 1), socket(1))]);
        assert!(publisher.served.is_empty() && publisher.threads.is_empty() && publisher.habits.is_empty());
    }
}
