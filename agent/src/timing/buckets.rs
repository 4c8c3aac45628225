//! Pieces of time, added up by logical task until something happens by which the task may change hands.
//!
//! A task's owner changes only when its context's address is used anew, and when a request begins, is answered or ends on
//! its thread. Between two such moments all its pieces are one question to the causality stage.

use pitviper_ebpf::abi::Times;

use super::threads::{MARKS, Share, sum};
use crate::causality::Moment;

/// A bucket is not filled for longer than this: the causality stage bounds how long a question waits.
const LONGEST_NS: u64 = 1_000_000_000;
/// Intervals of a bucket; with as many it is full.
const MOST_PIECES: usize = 64;

/// A stretch of time with so much work in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// CLOCK_MONOTONIC nanoseconds.
    pub from: u64,
    /// CLOCK_MONOTONIC nanoseconds.
    pub to: u64,
    /// How much of it: on a CPU, in the queue for one, or waiting for the lock.
    pub times: Times,
    /// All of that was the task's; else some of it may have been.
    pub certain: bool,
}

impl Piece {
    /// How much of the time was spent at work, or in want of it.
    pub fn busy(&self) -> u64 {
        sum(self.times)
    }

    /// How much of it is between these times.
    pub fn overlap(&self, from: u64, to: u64) -> u64 {
        self.to.min(to).saturating_sub(self.from.max(from))
    }

    /// What of it was surely done between these times.
    pub fn within(&self, from: u64, to: u64) -> Times {
        let inside = self.overlap(from, to);
        let outside = self.to.saturating_sub(self.from).saturating_sub(inside);
        let Times { cpu, queued, gil } = self.times;
        let surely = |time: u64| time.saturating_sub(outside);
        Times { cpu: surely(cpu), queued: surely(queued), gil: surely(gil) }
    }

    /// Adds one that follows; gives whether that was possible.
    fn extend(&mut self, next: &Self) -> bool {
        if self.to != next.from || self.certain != next.certain {
            return false;
        }
        self.to = next.to;
        self.times.cpu += next.times.cpu;
        self.times.queued += next.times.queued;
        self.times.gil += next.times.gil;
        true
    }
}

/// What one task did on one thread.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Whose it was is whose an operation at this moment would be.
    pub at: Moment,
    /// When the first piece of it began, CLOCK_MONOTONIC nanoseconds.
    pub begun_ns: u64,
    /// What and when, no more than [`MOST_PIECES`].
    pub pieces: Vec<Piece>,
}

impl Bucket {
    fn add(&mut self, share: &Share) {
        let Share { at: _, span: (from, to), times, certain } = *share;
        let piece = Piece { from, to, times, certain };
        if piece.busy() > 0 && !self.pieces.last_mut().is_some_and(|last| last.extend(&piece)) {
            self.pieces.push(piece);
        }
    }
}

/// The buckets of all processes.
#[derive(Debug, Default)]
pub struct Buckets {
    open: Vec<Bucket>,
}

impl Buckets {
    /// Puts a piece of time into the bucket of its task; gives one that is full.
    pub fn add(&mut self, share: &Share) -> Option<Bucket> {
        let Moment { pid, ktime_ns, task } = share.at;
        let same = |bucket: &Bucket| {
            let at = bucket.at;
            (at.pid, at.task.tid, at.task.context) == (pid, task.tid, task.context)
        };
        let Some(index) = self.open.iter().position(same) else {
            let mut bucket = Bucket { at: share.at, begun_ns: share.span.0, pieces: Vec::new() };
            bucket.add(share);
            self.open.push(bucket);
            return None;
        };
        let bucket = self.open.get_mut(index)?;
        bucket.add(share);
        let full =
            bucket.pieces.len() >= MOST_PIECES || ktime_ns.saturating_sub(bucket.begun_ns) > LONGEST_NS;
        full.then(|| self.open.swap_remove(index))
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

    fn share(context: u64, from: u64, to: u64, certain: bool) -> Share {
        let at = Moment { pid: 1, ktime_ns: to, task: Task { tid: 1, turn: 1, context } };
        Share { at, span: (from, to), times: Times { cpu: to - from, ..Times::default() }, certain }
    }

    #[test]
    fn pieces_of_a_task_are_one_bucket() {
        let mut buckets = Buckets::default();
        for share in [
            share(16, 0, 5, true),
            share(32, 5, 7, true),
            share(16, 5, 8, true),
            share(16, 8, 9, false),
            share(16, 10, 11, false),
        ] {
            assert!(buckets.add(&share).is_none());
        }
        assert!(buckets.of_thread(1, 2).is_empty());
        let taken = buckets.of_context(1, 16);
        assert_eq!(taken.len(), 1);
        let pieces: Vec<_> =
            taken[0].pieces.iter().map(|piece| (piece.from, piece.to, piece.busy(), piece.certain)).collect();
        assert_eq!(pieces, [(0, 8, 8, true), (8, 9, 1, false), (10, 11, 1, false)]);
        assert_eq!(buckets.of_process(1).len(), 1);
        assert!(buckets.of_process(1).is_empty());
    }

    #[test]
    fn a_bucket_is_full_after_a_while() {
        let mut buckets = Buckets::default();
        assert!(buckets.add(&share(16, 0, 5, true)).is_none());
        assert!(buckets.add(&share(16, 5, LONGEST_NS + 9, true)).is_some());
        assert!(buckets.of_process(1).is_empty());
        let mut full =
            (0..=MOST_PIECES as u64).filter_map(|n| buckets.add(&share(16, 10 * n, 10 * n + 1, true)));
        assert_eq!(full.next().map(|bucket| bucket.pieces.len()), Some(MOST_PIECES));
    }

    #[test]
    fn only_what_was_surely_inside_counts() {
        let times = Times { cpu: 30, queued: 10, gil: 0 };
        let piece = Piece { from: 100, to: 150, times, certain: true };
        assert_eq!(piece.within(100, 150), times);
        assert_eq!(piece.within(0, 130), Times { cpu: 10, queued: 0, gil: 0 });
        assert_eq!(piece.within(160, 200), Times::default());
    }
}
