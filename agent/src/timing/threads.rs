//! A thread's clocks, read at each of its records, cut into pieces that have an owner.
//!
//! The version that comes with the clocks counts how often the thread has entered and left a context, so it says what ran
//! between two records. A piece is certain, and so may be a request's, if nothing else did:
//! - both records are of the same task, and the version is the same: nothing was entered or left;
//! - from the beginning of a turn of the event loop, or from a worker's last sleep, to the first record since, if the record's
//!   context is the only one that was entered;
//! - from the last record of a turn to its end, if no other context was entered;
//! - from the making of a context by what has read a request, to the first record in that context, if the one was only left and the other
//!   only entered: who makes the task of a request has done with it;
//! - from a thread's taking of a job to the first record since, if the record's context is the only one that was entered.
//!
//! Every other piece is nobody's. The tasks at both its ends are told that it may have been theirs, in part. A task whose
//! context has ended, or that has handed its thread on, has no pieces any more: its address may be another one's already.

use pitviper_ebpf::abi::{CONTEXT_IS_BASE, CONTEXT_IS_GREENLET, Clocks, Times};
use rustc_hash::FxHashMap;

use crate::causality::Moment;

/// Threads that are remembered; with more of them all are forgotten, which costs each the time since its last record.
const MOST_THREADS: usize = 65_536;

/// What is marked in an address of a context.
pub(super) const MARKS: u64 = CONTEXT_IS_BASE | CONTEXT_IS_GREENLET;

/// A piece of a thread's time.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Whose it was is whose an operation at this moment would be.
    pub at: Moment,
    /// When it began and ended, CLOCK_MONOTONIC nanoseconds; no less.
    pub span: (u64, u64),
    /// How much.
    pub times: Times,
    /// It is known to be all its own; else some of it may be.
    pub certain: bool,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Bytes were received.
    Received,
    /// A context was made, at this address.
    Made(u64),
    /// The thread has taken a job, and begins with it.
    Began,
    /// Anything else.
    Other,
}

/// The last record of a thread.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Moment,
    times: Times,
    version: u32,
    /// Its task has ended since.
    ended: bool,
    /// It was the beginning of a job.
    began: bool,
    /// The turn in which bytes were last received; 0: in none.
    received: u32,
    /// The contexts that its task has made last.
    children: [u64; 4],
}

/// The last record of each thread.
#[derive(Debug, Default)]
pub struct Threads {
    processes: FxHashMap<u32, FxHashMap<u32, Last>>,
    /// How many they are.
    len: usize,
}

impl Threads {
    /// A record of a thread was read. Gives the pieces that it closes to `out`.
    pub fn seen(&mut self, at: Moment, clocks: Clocks, deed: Deed, out: &mut impl FnMut(Share)) {
        if clocks == Clocks::NONE {
            return;
        }
        if self.len >= MOST_THREADS {
            *self = Self::default();
        }
        let process = self.processes.entry(at.pid).or_default();
        let known = process.get(&at.task.tid).copied();
        if known.is_some_and(|last| last.at.ktime_ns > at.ktime_ns) {
            // The timer has interrupted the making of this record, and its sample went first.
            return;
        }
        let goes_on = |last: &Last| last.at.task.context == at.task.context && !last.ended;
        let mut children = known.filter(goes_on).map_or([0; 4], |last| last.children);
        if let Deed::Made(child) = deed {
            children.rotate_right(1);
            children[0] = child;
        }
        let received = match deed {
            Deed::Received => at.task.turn,
            _ => known.map_or(0, |last| last.received),
        };
        let version = clocks.now_version;
        let began = deed == Deed::Began;
        let last = Last { at, times: clocks.now, version, ended: false, began, received, children };
        if process.insert(at.task.tid, last).is_none() {
            self.len += 1;
        }
        if let Some(last) = known {
            pieces(&last, at, &clocks, out);
        } else if sum(clocks.turn) > 0 && certain_step(at, &clocks) {
            step(at, clocks.turn, clocks.now, out);
        }
    }

    /// A context ends, or its address is about to be another one's.
    pub fn context_ended(&mut self, pid: u32, context: u64) {
        for last in self.processes.get_mut(&pid).into_iter().flat_map(FxHashMap::values_mut) {
            last.ended |= last.at.task.context & !MARKS == context & !MARKS;
        }
    }

    /// What a thread does until its next record is not its last one's task's, although the context may stay.
    pub fn task_ended(&mut self, pid: u32, tid: u32) {
        if let Some(last) = self.processes.get_mut(&pid).and_then(|process| process.get_mut(&tid)) {
            last.ended = true;
        }
    }

    /// A process has ended, or is another program now.
    pub fn process_ended(&mut self, pid: u32) {
        self.len -= self.processes.remove(&pid).map_or(0, |process| process.len());
    }
}

/// The time between two records of a thread.
fn pieces(last: &Last, at: Moment, clocks: &Clocks, out: &mut impl FnMut(Share)) {
    let Last { at: before, times: then, version, ended, .. } = *last;
    let (first_turn, turn) = (before.task.turn, at.task.turn);
    let known = version != 0 && clocks.now_version != 0;
    let span = (before.ktime_ns, at.ktime_ns);
    let maybe = |at: Moment, times: Times| Share { at, span, times, certain: false };
    if known && version == clocks.now_version && before.task.context == at.task.context {
        let times = since(then, clocks.now);
        if !ended {
            out(Share { at, span, times, certain: true });
        }
        return;
    }
    // Whether a turn, or a sleep of a worker, lies between.
    let parted = if turn == 0 { sum(clocks.turn) > sum(then) } else { turn != first_turn };
    if !parted {
        let times = since(then, clocks.now);
        let made = turn != 0
            && last.received == turn
            && last.children.contains(&at.task.context)
            && at.task.context & MARKS == 0
            && clocks.now_version.wrapping_sub(version) == left(before) + 1;
        let taken = last.began && clocks.now_version.wrapping_sub(version) == left(at);
        if known && !ended && (made || taken) {
            out(Share { at, span, times, certain: true });
        } else {
            out(maybe(at, times));
            if !ended && before.task.context != at.task.context {
                out(maybe(before, times));
            }
        }
        return;
    }
    let rest = since(then, clocks.turn);
    if !ended && sum(rest) > 0 {
        let next = turn != 0 && turn == first_turn.wrapping_add(1);
        let passed = clocks.turn_version.wrapping_sub(version);
        let certain = known && clocks.turn_version != 0 && (passed == 0 || (next && passed == left(before)));
        out(Share { at: before, span, times: rest, certain });
    }
    // What of the turn, or of the job, was before the last record has been told.
    let begun = if sum(clocks.turn) > sum(then) { clocks.turn } else { then };
    if certain_step(at, clocks) {
        step(at, begun, clocks.now, out);
    } else {
        out(maybe(at, since(begun, clocks.now)));
    }
}

/// How often the version goes up when a task is left for what there is without it.
fn left(at: Moment) -> u32 {
    u32::from(at.task.context != 0 && at.task.context & CONTEXT_IS_BASE == 0)
}

/// Whether the task is the only one that was entered since the beginning of the turn, or the last sleep.
fn certain_step(at: Moment, clocks: &Clocks) -> bool {
    let known = clocks.now_version != 0 && clocks.turn_version != 0;
    let entered = clocks.now_version.wrapping_sub(clocks.turn_version);
    known && (entered == 0 || entered == left(at))
}

/// What a thread has done since it began a turn, or came back from its sleep. If it has slept meanwhile it began before.
fn step(at: Moment, from: Times, to: Times, out: &mut impl FnMut(Share)) {
    let times = since(from, to);
    out(Share { at, span: (at.ktime_ns.saturating_sub(sum(times)), at.ktime_ns), times, certain: true });
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

    const BASE: u64 = 0xf0 | CONTEXT_IS_BASE;
    const SENT: Deed = Deed::Other;
    const READ: Deed = Deed::Received;

    fn cpu(cpu: u64) -> Times {
        Times { cpu, ..Times::default() }
    }

    /// A record: time, turn, context, deed; CPU and version now; the same at the turn's beginning.
    type Seen = (u64, u32, u64, Deed, (u64, u32), (u64, u32));

    fn see(threads: &mut Threads, records: &[Seen]) -> Vec<(u64, u64, bool)> {
        let mut shares = Vec::new();
        for &(ktime_ns, turn, context, deed, (now, now_version), (began, turn_version)) in records {
            let clocks = Clocks { now: cpu(now), turn: cpu(began), now_version, turn_version };
            let at = Moment { pid: 1, ktime_ns, task: Task { tid: 1, turn, context } };
            threads.seen(at, clocks, deed, &mut |share| {
                shares.push((share.at.task.context, share.times.cpu, share.certain));
            });
        }
        shares
    }

    /// Shares as context, CPU, and whether they are certain.
    fn check(records: &[Seen], expected: &[(u64, u64, bool)]) {
        assert_eq!(see(&mut Threads::default(), records), expected);
    }

    #[test]
    fn what_nothing_else_ran_in_is_certain() {
        check(
            &[
                (10, 3, 0xa0, SENT, (5, 7), (1, 6)),
                (20, 3, 0xa0, SENT, (25, 7), (1, 6)),
                // Something else was entered and left.
                (30, 3, 0xa0, SENT, (29, 9), (1, 6)),
                (40, 3, 0xb0, SENT, (35, 11), (1, 6)),
            ],
            &[(0xa0, 4, true), (0xa0, 20, true), (0xa0, 4, false), (0xb0, 6, false), (0xa0, 6, false)],
        );
    }

    #[test]
    fn a_turn_ends_with_its_last_task_and_begins_with_its_first() {
        check(
            &[
                (10, 3, 0xa0, SENT, (5, 7), (1, 6)),
                // 0xa was left, and 0xb entered.
                (30, 4, 0xb0, SENT, (29, 9), (15, 8)),
                // After 0xb another one was entered, and one before 0xc.
                (50, 5, 0xc0, SENT, (59, 15), (40, 12)),
                // Several turns.
                (70, 9, 0xd0, SENT, (79, 19), (70, 18)),
            ],
            &[
                (0xa0, 4, true),
                (0xa0, 10, true),
                (0xb0, 14, true),
                (0xb0, 11, false),
                (0xc0, 19, false),
                (0xc0, 11, false),
                (0xd0, 9, true),
            ],
        );
    }

    #[test]
    fn a_worker_does_one_job_after_the_other() {
        check(
            &[
                (10, 0, 0xa0, SENT, (5, 7), (0, 6)),
                // It has slept in it.
                (20, 0, 0xa0, SENT, (9, 7), (7, 7)),
                // It has slept after it.
                (40, 0, 0xb0, SENT, (29, 9), (15, 8)),
                // It did not sleep, and was at work on both.
                (50, 0, 0xc0, SENT, (39, 11), (15, 8)),
            ],
            &[(0xa0, 4, true), (0xa0, 6, false), (0xb0, 14, true), (0xc0, 10, false), (0xb0, 10, false)],
        );
    }

    #[test]
    fn who_reads_a_request_has_done_when_its_task_is_made() {
        let made = |version| {
            [
                (10, 3, BASE, READ, (5, 6), (5, 6)),
                (12, 3, 0xa0, Deed::Made(0xc0), (6, 7), (5, 6)),
                (30, 3, 0xc0, SENT, (19, version), (5, 6)),
            ]
        };
        let begun = [(BASE, 0, true), (0xa0, 1, false), (BASE, 1, false)];
        check(&made(9), &[begun.as_slice(), &[(0xc0, 13, true)]].concat());
        check(&made(11), &[begun.as_slice(), &[(0xc0, 13, false), (0xa0, 13, false)]].concat());
    }

    #[test]
    fn an_address_that_has_ended_is_given_nothing() {
        let before = (10, 0, 0xa0, SENT, (5, 7), (5, 7));
        let after = [(20, 0, 0xa0, SENT, (25, 7), (5, 7)), (30, 0, 0xa0, SENT, (26, 7), (5, 7))];
        for end in [
            |threads: &mut Threads| threads.context_ended(1, 0xa0),
            |threads: &mut Threads| threads.task_ended(1, 1),
        ] {
            let mut threads = Threads::default();
            see(&mut threads, &[before]);
            end(&mut threads);
            assert_eq!(see(&mut threads, &after), [(0xa0, 1, true)]);
        }
    }

    #[test]
    fn a_record_that_was_interrupted_counts_no_time_twice() {
        check(
            &[
                (10, 3, 0xa0, SENT, (5, 7), (5, 7)),
                (20, 3, 0xa0, SENT, (15, 7), (5, 7)),
                (19, 3, 0xa0, SENT, (14, 7), (5, 7)),
                (30, 3, 0xa0, SENT, (25, 7), (5, 7)),
            ],
            &[(0xa0, 0, true), (0xa0, 10, true), (0xa0, 10, true)],
        );
    }

    #[test]
    fn what_is_not_known_is_not_certain() {
        check(
            &[(10, 3, 0xa0, SENT, (5, 0), (1, 0)), (20, 3, 0xa0, SENT, (25, 0), (1, 0))],
            &[(0xa0, 20, false)],
        );
    }

    #[test]
    fn forgets_processes() {
        let mut threads = Threads::default();
        see(&mut threads, &[(1, 0, 1, READ, (1, 1), (0, 0))]);
        assert_eq!(threads.len, 1);
        threads.process_ended(1);
        assert_eq!((threads.len, threads.processes.len()), (0, 0));
    }
}
