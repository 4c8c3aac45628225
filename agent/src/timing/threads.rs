//! A thread's clocks, read at each of its records, cut into pieces that have an owner.
//!
//! The version that comes with the clocks counts how often the thread has entered and left a context, so it says what ran
//! between two records. A piece is certain, and so may be a request's, if nothing else did:
//! - both records are of the same task, and the version is the same: nothing was entered or left;
//! - the task was left for what it was entered from, and no other was entered: the time until then, or until the loop's turn
//!   ended or a worker went to sleep, is the task's. The little that a loop or a worker does between two tasks goes to the first
//!   one: until its next record, or its next sleep, and the end of the request at most;
//! - from the beginning of a turn of the event loop, or from a worker's last sleep, to the first record since, if the record's
//!   context is the only one that was entered.
//!
//! Where the kernel side tells when a context is entered, that leaves little. Every other piece is nobody's: the tasks at both its
//! ends are told that it may have been theirs, in part. A task whose context has ended, or that has handed its thread on, has no
//! pieces any more: its address may be another one's already.

use pitviper_ebpf::abi::{CONTEXT_IS_BASE, CONTEXT_IS_GREENLET, Clocks, Times};
use rustc_hash::FxHashMap;

use super::nesting::{Nesting, is_base};
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
    /// The context at this address is entered.
    Entered(u64),
    /// Anything else.
    Other,
}

/// The last record of a thread.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Moment,
    times: Times,
    version: u32,
    nesting: Nesting,
    /// Its task has ended since.
    ended: bool,
}

impl Last {
    fn of(at: Moment, clocks: &Clocks) -> Self {
        let nesting = Nesting::of(at.task.context);
        Self { at, times: clocks.now, version: clocks.now_version, nesting, ended: false }
    }

    /// The same thread at the next record, if it has entered no other context since.
    fn next(&self, at: Moment, clocks: &Clocks) -> Option<Self> {
        let passed = clocks.now_version.wrapping_sub(self.version);
        let known = self.version != 0 && clocks.now_version != 0;
        let nesting = match passed {
            0 if at.task.context == self.at.task.context => Some(self.nesting),
            0 => None,
            _ => self.nesting.leave(passed, at.task.context),
        };
        let nesting = nesting.filter(|_| known)?;
        Some(Self { nesting, ..Self::of(at, clocks) })
    }

    /// The same thread when it has entered this context.
    fn entered(self, context: u64) -> Self {
        let mut at = self.at;
        let current = std::mem::replace(&mut at.task.context, context);
        match self.nesting.enter(current) {
            Some(nesting) if self.version != 0 => {
                Self { at, nesting, version: self.version.wrapping_add(1), ..self }
            }
            _ => Self { at, version: 0, ..self },
        }
    }
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
        let next = known.and_then(|last| last.next(at, &clocks));
        if let Some(last) = known {
            pieces(&last, at, &clocks, next.is_some(), out);
        } else if sum(clocks.turn) > 0 && certain_step(at, &clocks) {
            step(at, clocks.turn, clocks.now, out);
        }
        let mut last = next.unwrap_or_else(|| Last::of(at, &clocks));
        if let Deed::Entered(context) = deed {
            last = last.entered(context);
        }
        if process.insert(at.task.tid, last).is_none() {
            self.len += 1;
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

/// The time between two records of a thread, in which it has entered no context, or (`undisturbed` is not set) may have.
fn pieces(last: &Last, at: Moment, clocks: &Clocks, undisturbed: bool, out: &mut impl FnMut(Share)) {
    let Last { at: before, times: then, version, nesting, ended } = *last;
    let turn = at.task.turn;
    let span = (before.ktime_ns, at.ktime_ns);
    let maybe = |at: Moment, times: Times| Share { at, span, times, certain: false };
    // Whether a turn, or a sleep of a worker, lies between.
    let parted = if turn == 0 { sum(clocks.turn) > sum(then) } else { turn != before.task.turn };
    let slept_in_it = turn == 0 && clocks.turn_version == version;
    let stayed = version == clocks.now_version || !is_base(at.task.context);
    if undisturbed && (stayed || slept_in_it || !parted) {
        if !ended {
            out(Share { at: before, span, times: since(then, clocks.now), certain: true });
        }
        return;
    }
    if !parted {
        let times = since(then, clocks.now);
        out(maybe(at, times));
        if !ended && before.task.context != at.task.context {
            out(maybe(before, times));
        }
        return;
    }
    let rest = since(then, clocks.turn);
    if !ended && sum(rest) > 0 {
        let passed = clocks.turn_version.wrapping_sub(version);
        let certain = version != 0 && clocks.turn_version != 0 && (passed == 0 || nesting.is_left_by(passed));
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

/// Whether the task is the only one that was entered since the beginning of the turn, or the last sleep; or it and what it was
/// entered from: if another one had been entered before, it would have been left too, and the number would be three at least. A
/// worker may have slept in a context, and left that.
fn certain_step(at: Moment, clocks: &Clocks) -> bool {
    let known = clocks.now_version != 0 && clocks.turn_version != 0;
    let entered = clocks.now_version.wrapping_sub(clocks.turn_version);
    let most = if at.task.turn == 0 { 1 } else { 2 };
    known && (entered == 0 || (entered <= most && !is_base(at.task.context)))
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
            &[(0xa0, 4, true), (0xa0, 6, true), (0xb0, 14, true), (0xc0, 10, false), (0xb0, 10, false)],
        );
    }

    #[test]
    fn a_step_is_from_entering_to_entering() {
        check(
            &[
                (10, 3, BASE, SENT, (5, 6), (5, 6)),
                (12, 3, BASE, Deed::Entered(0xa0), (6, 6), (5, 6)),
                // Nothing was seen of it until the next one is entered.
                (30, 3, BASE, Deed::Entered(0xb0), (19, 8), (5, 6)),
                (40, 3, 0xb0, SENT, (29, 9), (5, 6)),
                // It enters another one in its step, and leaves it again.
                (50, 3, 0xb0, Deed::Entered(0xc0), (39, 9), (5, 6)),
                (60, 3, 0xb0, SENT, (48, 11), (5, 6)),
                // Back to the loop.
                (70, 3, BASE, SENT, (55, 12), (5, 6)),
                // Something was entered that was not reported.
                (80, 3, 0xb0, SENT, (65, 13), (5, 6)),
            ],
            &[
                (BASE, 0, true),
                (BASE, 1, true),
                (0xa0, 13, true),
                (0xb0, 10, true),
                (0xb0, 10, true),
                (0xc0, 9, true),
                (0xb0, 7, true),
                (0xb0, 10, false),
                (BASE, 10, false),
            ],
        );
    }

    #[test]
    fn steps_in_two_contexts_that_were_not_seen_to_be_entered() {
        check(
            &[
                (10, 3, 0xb0, SENT, (5, 8), (1, 6)),
                (30, 4, 0xb0, SENT, (20, 12), (18, 10)),
                // One was entered and left before, and one after.
                (50, 5, 0xb0, SENT, (40, 20), (38, 16)),
                // A worker has slept in one, left it, and entered another.
                (70, 0, 0xc0, SENT, (60, 30), (58, 28)),
            ],
            &[
                (0xb0, 4, true),
                (0xb0, 13, true),
                (0xb0, 2, true),
                (0xb0, 18, false),
                (0xb0, 2, false),
                (0xb0, 18, false),
                (0xc0, 2, false),
            ],
        );
    }

    #[test]
    fn steps_in_two_contexts_end_with_the_turn() {
        check(
            &[
                (10, 3, BASE, Deed::Entered(0xa0), (5, 6), (5, 6)),
                (11, 3, 0xa0, Deed::Entered(0xb0), (6, 7), (5, 6)),
                (30, 4, BASE, Deed::Entered(0xa0), (20, 10), (18, 10)),
                (31, 4, 0xa0, Deed::Entered(0xb0), (21, 11), (18, 10)),
                // One was entered that was not reported.
                (50, 5, BASE, SENT, (40, 16), (38, 16)),
            ],
            &[
                (BASE, 0, true),
                (0xa0, 1, true),
                (0xb0, 12, true),
                (BASE, 2, true),
                (0xa0, 1, true),
                (0xb0, 17, false),
                (BASE, 2, true),
            ],
        );
    }

    #[test]
    fn a_job_in_a_context_ends_with_the_worker_s_sleep() {
        let job = |slept| {
            [
                (10, 0, BASE, Deed::Entered(0xa0), (5, 6), (2, 6)),
                // It has slept, at work or after it, and has a next one.
                (30, 0, BASE, SENT, (19, 8), slept),
            ]
        };
        check(&job((9, 7)), &[(BASE, 3, true), (0xa0, 14, true)]);
        check(&job((9, 8)), &[(BASE, 3, true), (0xa0, 4, true), (BASE, 10, true)]);
        check(&job((2, 6)), &[(BASE, 3, true), (0xa0, 14, true)]);
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
        see(&mut threads, &[(1, 0, 1, SENT, (1, 1), (0, 0))]);
        assert_eq!(threads.len, 1);
        threads.process_ended(1);
        assert_eq!((threads.len, threads.processes.len()), (0, 0));
    }
}
