//! A thread's clocks, read at each of its records, cut into pieces that have an owner.
//!
//! Between two records of a thread its time belongs to what it was at work on:
//! - without an event loop, to what it did at the first of the two: it goes on with that until it reports something else;
//! - on an event loop, and in one turn of it, to what it did at the second one: a task's step ends with what it sends.
//!   What was received belongs to nobody yet, as a callback of the loop does that; then it was the rest of the first
//!   one's step;
//! - the time from the last record of a turn to the turn's end, to what was done at that record; that of whole turns without
//!   any record, and of the beginning of a turn that begins with something received, to nobody.

use pitviper_ebpf::abi::{Clocks, Times};
use rustc_hash::FxHashMap;

use crate::causality::Moment;

/// Threads that are remembered; with more of them all are forgotten, which costs each the time since its last record.
const MOST_THREADS: usize = 65_536;

/// A piece of a thread's time.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Whose it was is whose an operation at this moment would be.
    pub at: Moment,
    /// How much.
    pub times: Times,
}

/// The last record of each thread.
#[derive(Debug, Default)]
pub struct Threads {
    last: FxHashMap<(u32, u32), (Moment, Times)>,
}

impl Threads {
    /// A record of a thread was read; `received`: it says that bytes were received. Gives the pieces that it closes.
    pub fn seen(&mut self, at: Moment, clocks: Clocks, received: bool) -> [Option<Share>; 2] {
        if self.last.len() >= MOST_THREADS {
            self.last.clear();
        }
        let last = self.last.insert((at.pid, at.task.tid), (at, clocks.now));
        let Some((last, then)) = last.filter(|(last, _)| last.ktime_ns <= at.ktime_ns) else {
            return [None; 2];
        };
        let (first_turn, turn) = (last.task.turn, at.task.turn);
        let share = |at, from: Times, to: Times| Some(Share { at, times: since(from, to) }).filter(worth_it);
        if turn == first_turn {
            let owner = if turn == 0 || received { last } else { at };
            return [share(owner, then, clocks.now), None];
        }
        let rest = (turn == first_turn.wrapping_add(1) && first_turn != 0).then_some(last);
        let step = (!received).then_some(at);
        [
            rest.and_then(|last| share(last, then, clocks.turn)),
            step.and_then(|at| share(at, clocks.turn, clocks.now)),
        ]
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

fn worth_it(share: &Share) -> bool {
    share.times != Times::default()
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

    fn clocks(now: u64, turn: u64) -> Clocks {
        Clocks { now: cpu(now), turn: cpu(turn) }
    }

    /// Records as (time, turn, context, received, CPU now, CPU at the turn's beginning); shares as (context, CPU).
    fn check(records: &[(u64, u32, u64, bool, u64, u64)], expected: &[(u64, u64)]) {
        let mut threads = Threads::default();
        let mut shares = Vec::new();
        for &(ktime_ns, turn, context, received, now, began) in records {
            let seen = threads.seen(moment(ktime_ns, turn, context), clocks(now, began), received);
            shares.extend(seen.iter().flatten().map(|share| (share.at.task.context, share.times.cpu)));
        }
        assert_eq!(shares, expected);
    }

    #[test]
    fn a_thread_goes_on_with_what_it_began() {
        check(
            &[(10, 0, 0xa, true, 5, 0), (20, 0, 0xb, false, 25, 0), (30, 0, 0xb, true, 26, 0)],
            &[(0xa, 20), (0xb, 1)],
        );
    }

    #[test]
    fn a_step_ends_with_what_it_sends() {
        check(
            &[
                (10, 3, 0xa, false, 5, 0),
                (20, 3, 0xb, false, 25, 0),
                // A callback reads: the step of 0xb had gone on until then.
                (30, 3, 0xc, true, 30, 0),
                (40, 3, 0xd, false, 37, 0),
            ],
            &[(0xb, 20), (0xb, 5), (0xd, 7)],
        );
    }

    #[test]
    fn turns() {
        check(
            &[
                (10, 3, 0xa, false, 5, 0),
                // The next turn: what was left of the last one, and the step that sends.
                (20, 4, 0xb, false, 25, 10),
                // It begins with a reading.
                (30, 5, 0xc, true, 40, 33),
                // Turns without a record in between.
                (40, 9, 0xd, false, 60, 58),
            ],
            &[(0xa, 5), (0xb, 15), (0xb, 8), (0xd, 2)],
        );
    }

    #[test]
    fn forgets_processes() {
        let mut threads = Threads::default();
        threads.seen(moment(1, 0, 1), clocks(1, 0), true);
        threads.process_ended(1);
        assert!(threads.last.is_empty());
    }
}
