//! A thread's clocks, read at each of its records, cut into pieces that have an owner.
//!
//! Between two records of a thread its time belongs to what it was at work on:
//! - without an event loop, to what it did at the first of the two: it goes on with that until it reports something else. A
//!   worker of a pool sleeps until its next job is there, so that what came after the beginning of its last sleep is of the second one's task;
//! - on an event loop, and in one turn of it, to what it did at the second one: a task's step ends with what it sends.
//!   What was received belongs to nobody yet, as a callback of the loop does that; then it was the rest of the first
//!   one's step;
//! - from the last record of a turn to the next turn, to what was done at that record; from the beginning of a turn to its
//!   first record, to what was done at that.
//!
//! Where the tasks of the two records differ, nothing tells where the one ended and the other began: that time is in doubt for
//! both. Profile samples are records too, so that a doubt is as long as the time between two samples at most. Turns without
//! any record are in doubt as well, and are nobody's unless the same task was at work before and after them.

use pitviper_ebpf::abi::{CONTEXT_IS_BASE, Clocks, Times};
use rustc_hash::FxHashMap;

use crate::causality::Moment;

/// Threads that are remembered; with more of them all are forgotten, which costs each the time since its last record.
const MOST_THREADS: usize = 65_536;

/// A piece of a thread's time.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Whose it was is whose an operation at this moment would be.
    pub at: Moment,
    /// When it began and ended, CLOCK_MONOTONIC nanoseconds.
    pub span: (u64, u64),
    /// How much.
    pub times: Times,
    /// How much may be somebody else's; of what is in `times`, or of what somebody else was given.
    pub doubt: u64,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Bytes were received.
    Received,
    /// A context was made, at this address.
    Made(u64),
    /// Anything else.
    Other,
}

/// The last record of a thread.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Moment,
    times: Times,
    /// The contexts that its task has made last.
    children: [u64; 4],
}

/// The last record of each thread.
#[derive(Debug, Default)]
pub struct Threads {
    last: FxHashMap<(u32, u32), Last>,
}

impl Threads {
    /// A record of a thread was read. Gives the pieces that it closes to `out`.
    pub fn seen(&mut self, at: Moment, clocks: Clocks, deed: Deed, out: &mut impl FnMut(Share)) {
        if clocks == Clocks::default() {
            return;
        }
        if self.last.len() >= MOST_THREADS {
            self.last.clear();
        }
        let known = self.last.get(&(at.pid, at.task.tid)).copied();
        let mut children =
            known.filter(|last| last.at.task.context == at.task.context).map_or([0; 4], |last| last.children);
        if let Deed::Made(child) = deed {
            children.rotate_right(1);
            children[0] = child;
        }
        self.last.insert((at.pid, at.task.tid), Last { at, times: clocks.now, children });
        let received = deed == Deed::Received;
        let Some(Last { at: last, times: then, children }) = known else {
            // A new thread, or one that had nothing to do so far: it has come back from its sleep for this.
            let times = since(clocks.turn, clocks.now);
            if at.task.turn == 0 && sum(times) > 0 {
                let span = (at.ktime_ns.saturating_sub(sum(times)), at.ktime_ns);
                out(Share { at, span, times, doubt: 0 });
            }
            return;
        };
        if last.ktime_ns > at.ktime_ns {
            return;
        }
        let span = (last.ktime_ns, at.ktime_ns);
        // Who makes a task has done with that, and so the time was the task's.
        let begins = at.task.context != 0 && children.contains(&(at.task.context & !CONTEXT_IS_BASE));
        let same = last.task.context == at.task.context || begins;
        let mut share = |owner: Moment, other: Moment, times: Times, doubtful: bool| {
            let all = sum(times);
            if all > 0 {
                let doubt = if doubtful { all } else { 0 };
                // Time without an idle stretch in it: it began no earlier than this.
                let begun = if doubtful { span.0 } else { span.0.max(span.1.saturating_sub(all)) };
                out(Share { at: owner, span: (begun, span.1), times, doubt });
                if doubtful && !same {
                    out(Share { at: other, span: (span.1, span.1), times: Times::default(), doubt });
                }
            }
        };
        let (first_turn, turn) = (last.task.turn, at.task.turn);
        let (rest, step) = (since(then, clocks.turn), since(clocks.turn, clocks.now));
        if turn == 0
            && first_turn == 0
            && last.task.context != at.task.context
            && sum(clocks.turn) >= sum(then)
        {
            share(last, at, rest, !same);
            share(at, last, step, false);
            return;
        }
        if turn == first_turn {
            let (owner, other) = if (turn == 0 || received) && !begins { (last, at) } else { (at, last) };
            share(owner, other, since(then, clocks.now), !same);
            return;
        }
        if turn == first_turn.wrapping_add(1) && first_turn != 0 {
            share(last, at, rest, !same);
        } else if same {
            share(last, at, rest, true);
        }
        if !received {
            share(at, last, step, false);
        }
    }

    /// A process has ended, or is another program now.
    pub fn process_ended(&mut self, pid: u32) {
        self.last.retain(|(of, _), _| *of != pid);
    }
}

fn since(from: Times, to: Times) -> Times {
    Times {
        cpu: to.cpu.saturating_sub(from.cpu),
        queued: to.queued.saturating_sub(from.queued),
        gil: to.gil.saturating_sub(from.gil),
    }
}

/// All of it.
pub fn sum(Times { cpu, queued, gil }: Times) -> u64 {
    cpu + queued + gil
}

#[cfg(test)]
mod tests {
    use pitviper_ebpf::abi::Task;

    use super::*;

    fn moment(ktime_ns: u64, turn: u32, context: u64) -> Moment {
        Moment { pid: 1, ktime_ns, task: Task { tid: 1, turn, context } }
    }

    fn cpu(cpu: u64) -> Times {
        Times { cpu, ..Times::default() }
    }

    const SENT: Deed = Deed::Other;
    const READ: Deed = Deed::Received;

    /// Records as (time, turn, context, deed, CPU now, CPU at the turn's beginning); shares as (context, CPU, doubt).
    fn check(records: &[(u64, u32, u64, Deed, u64, u64)], expected: &[(u64, u64, u64)]) {
        let mut threads = Threads::default();
        let mut shares = Vec::new();
        for &(ktime_ns, turn, context, deed, now, began) in records {
            let clocks = Clocks { now: cpu(now), turn: cpu(began) };
            threads.seen(moment(ktime_ns, turn, context), clocks, deed, &mut |share| {
                shares.push((share.at.task.context, share.times.cpu, share.doubt));
            });
        }
        assert_eq!(shares, expected);
    }

    #[test]
    fn a_thread_goes_on_with_what_it_began() {
        check(
            &[
                (10, 0, 0xa, READ, 5, 0),
                (20, 0, 0xa, SENT, 25, 0),
                (30, 0, 0xb, READ, 26, 0),
                // It has slept, and has another job.
                (40, 0, 0xc, SENT, 96, 28),
            ],
            &[(0xa, 5, 0), (0xa, 20, 0), (0xa, 1, 1), (0xb, 0, 1), (0xb, 2, 2), (0xc, 0, 2), (0xc, 68, 0)],
        );
    }

    #[test]
    fn a_step_ends_with_what_it_sends() {
        check(
            &[
                (10, 3, 0xa, SENT, 5, 0),
                (20, 3, 0xb, SENT, 25, 0),
                (25, 3, 0xb, SENT, 27, 0),
                // A callback reads: the step of 0xb had gone on until then.
                (30, 3, 0xc, READ, 30, 0),
            ],
            &[(0xb, 20, 20), (0xa, 0, 20), (0xb, 2, 0), (0xb, 3, 3), (0xc, 0, 3)],
        );
    }

    #[test]
    fn turns() {
        check(
            &[
                (10, 3, 0xa, SENT, 5, 0),
                // The next turn: what was left of the last one, and the step that sends.
                (20, 4, 0xa, SENT, 25, 10),
                // It begins with a reading.
                (30, 5, 0xc, READ, 40, 33),
                // Turns without a record in between.
                (40, 9, 0xd, SENT, 60, 58),
                (50, 12, 0xd, SENT, 90, 85),
            ],
            &[(0xa, 5, 0), (0xa, 15, 0), (0xa, 8, 8), (0xc, 0, 8), (0xd, 2, 0), (0xd, 25, 25), (0xd, 5, 0)],
        );
    }

    #[test]
    fn a_task_begins_when_it_has_been_made() {
        check(
            &[
                (10, 3, 0, READ, 5, 0),
                (12, 3, 0, Deed::Made(0xa0), 6, 0),
                (14, 3, 0, Deed::Made(0xb0), 7, 0),
                (20, 3, 0xa0, SENT, 17, 0),
                (30, 3, 0xc0, SENT, 18, 0),
            ],
            &[(0, 1, 0), (0, 1, 0), (0xa0, 10, 0), (0xc0, 1, 1), (0xa0, 0, 1)],
        );
    }

    #[test]
    fn a_new_thread_has_worked_for_what_it_does_first() {
        check(&[(10, 0, 0xa0, SENT, 8, 0)], &[(0xa0, 8, 0)]);
        check(&[(10, 0, 0xa0, SENT, 8, 3)], &[(0xa0, 5, 0)]);
        check(&[(10, 7, 0xa0, SENT, 8, 3)], &[]);
    }

    #[test]
    fn forgets_processes() {
        let mut threads = Threads::default();
        let clocks = Clocks { now: cpu(1), turn: cpu(0) };
        threads.seen(moment(1, 0, 1), clocks, READ, &mut |_| {});
        threads.process_ended(1);
        assert!(threads.last.is_empty());
    }
}
