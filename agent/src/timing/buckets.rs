//! Pieces of time, added up by logical task until something happens by which the task may change hands.
//!
//! A task's owner changes only when its context's address is used anew, and when a request begins, is answered or ends on
//! its thread. Between two such moments all its pieces are one question to the causality stage.

use pitviper_ebpf::abi::{CONTEXT_IS_BASE, CONTEXT_IS_GREENLET, Times};

use super::threads::{Share, sum};
use crate::causality::Moment;

/// A bucket is not filled for longer than this: the causality stage bounds how long a question waits.
const LONGEST_NS: u64 = 1_000_000_000;
/// Intervals of a bucket that are told apart; further ones lengthen the last one.
const MOST_PIECES: usize = 64;

/// A stretch of time with so much work in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// CLOCK_MONOTONIC nanoseconds.
    pub from: u64,
    /// CLOCK_MONOTONIC nanoseconds.
    pub to: u64,
    /// How much of it: on a CPU, in the queue for one, or waiting for the lock.
    pub busy: u64,
}

/// What one task did on one thread.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Whose it was is whose an operation at this moment would be.
    pub at: Moment,
    /// When the first piece of it began, CLOCK_MONOTONIC nanoseconds.
    pub begun_ns: u64,
    /// How much.
    pub times: Times,
    /// How much may be somebody else's.
    pub doubt: u64,
    /// When.
    pub pieces: Vec<Piece>,
}

impl Bucket {
    fn add(&mut self, share: &Share) {
        let Times { cpu, queued, gil } = share.times;
        self.times.cpu += cpu;
        self.times.queued += queued;
        self.times.gil += gil;
        self.doubt += share.doubt;
        let (from, to) = share.span;
        let busy = sum(share.times);
        if busy == 0 {
            return;
        }
        let full = self.pieces.len() >= MOST_PIECES;
        match self.pieces.last_mut() {
            Some(last) if full || last.to == from => {
                last.to = last.to.max(to);
                last.busy += busy;
            }
            _ => self.pieces.push(Piece { from, to, busy }),
        }
    }
}

/// The buckets of all processes.
#[derive(Debug, Default)]
pub struct Buckets {
    open: Vec<Bucket>,
}

/// What is marked in an address of a context.
const MARKS: u64 = CONTEXT_IS_BASE | CONTEXT_IS_GREENLET;

impl Buckets {
    /// Puts a piece of time into the bucket of its task; gives one that is full.
    pub fn add(&mut self, share: &Share) -> Option<Bucket> {
        let Moment { pid, ktime_ns, task } = share.at;
        let same = |bucket: &Bucket| {
            let at = bucket.at;
            (at.pid, at.task.tid, at.task.context) == (pid, task.tid, task.context)
        };
        let Some(index) = self.open.iter().position(same) else {
            let mut bucket = Bucket {
                at: share.at,
                begun_ns: share.span.0,
                times: Times::default(),
                doubt: 0,
                pieces: Vec::new(),
            };
            bucket.add(share);
            self.open.push(bucket);
            return None;
        };
        let bucket = self.open.get_mut(index)?;
        bucket.add(share);
        (ktime_ns.saturating_sub(bucket.begun_ns) > LONGEST_NS).then(|| self.open.swap_remove(index))
    }

    /// A request begins or is answered on a thread.
    pub fn of_thread(&mut self, pid: u32, tid: u32) -> Vec<Bucket> {
        self.take(|at| at.pid == pid && at.task.tid == tid)
    }

    /// The address of a context is about to be another one's.
    pub fn of_context(&mut self, pid: u32, context: u64) -> Vec<Bucket> {
        self.take(|at| at.pid == pid && at.task.context & !MARKS == context & !MARKS)
    }

    /// A request or the process ends.
    pub fn of_process(&mut self, pid: u32) -> Vec<Bucket> {
        self.take(|at| at.pid == pid)
    }

    fn take(&mut self, wanted: impl Fn(&Moment) -> bool) -> Vec<Bucket> {
        if !self.open.iter().any(|bucket| wanted(&bucket.at)) {
            return Vec::new();
        }
        let (taken, left) = std::mem::take(&mut self.open).into_iter().partition(|bucket| wanted(&bucket.at));
        self.open = left;
        taken
    }
}

#[cfg(test)]
mod tests {
    use pitviper_ebpf::abi::Task;

    use super::*;

    fn share(context: u64, from: u64, to: u64, doubt: u64) -> Share {
        let at = Moment { pid: 1, ktime_ns: to, task: Task { tid: 1, turn: 1, context } };
        Share { at, span: (from, to), times: Times { cpu: to - from, ..Times::default() }, doubt }
    }

    #[test]
    fn pieces_of_a_task_are_one_bucket() {
        let mut buckets = Buckets::default();
        for share in [share(16, 0, 5, 1), share(32, 5, 7, 0), share(16, 5, 8, 0), share(16, 10, 11, 1)] {
            assert!(buckets.add(&share).is_none());
        }
        assert!(buckets.of_thread(1, 2).is_empty());
        let taken = buckets.of_context(1, 16);
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].times.cpu, taken[0].doubt), (9, 2));
        let pieces = [Piece { from: 0, to: 8, busy: 8 }, Piece { from: 10, to: 11, busy: 1 }];
        assert_eq!(taken[0].pieces, pieces);
        assert_eq!(buckets.of_process(1).len(), 1);
        assert!(buckets.of_process(1).is_empty());
    }

    #[test]
    fn a_bucket_is_full_after_a_while() {
        let mut buckets = Buckets::default();
        assert!(buckets.add(&share(16, 0, 5, 0)).is_none());
        assert!(buckets.add(&share(16, 5, LONGEST_NS + 9, 0)).is_some());
        assert!(buckets.of_process(1).is_empty());
    }
}
