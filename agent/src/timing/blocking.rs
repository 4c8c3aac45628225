//! Who held an event loop: which request the loop's thread was at work on, or slept for, in a turn that took long.
//!
//! Takes the stacks seen of a loop's thread, the answers to whose work each was, and the turns that took long. A stretch
//! between two stacks is a request's when both are, or when the thread slept all of it for that request. The culprit is the
//! request that held more than half of the turn; where there is none, nobody is blamed.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::causality::ExchangeKey;
use crate::kernel::records::LoopBlocked;
use crate::profile::{LoopStack, Stack};

/// Stacks of a thread that are remembered: the timer takes so many in a second and a quarter.
const MOST_STACKS: usize = 128;
/// Threads whose stacks are remembered; with more of them all are forgotten, and nobody is blamed for a while.
const MOST_THREADS: usize = 4096;
/// A turn waits no longer than this for answers.
const PATIENCE_NS: u64 = 3_000_000_000;

/// A stack of an event loop's thread, and whose work it was.
#[derive(Debug)]
struct Seen {
    stack: LoopStack,
    /// `None` while that is not known.
    owner: Option<Option<ExchangeKey>>,
}

/// Who held the loop in a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// The request.
    pub request: ExchangeKey,
    /// From when until when it certainly did, CLOCK_MONOTONIC nanoseconds.
    pub held: (u64, u64),
    /// What it was doing for most of that.
    pub stack: Stack,
}

/// Turns and stacks of all processes.
#[derive(Debug)]
pub struct Blocking {
    threads: FxHashMap<(u32, u32), VecDeque<Seen>>,
    blocked: Vec<LoopBlocked>,
    /// Time on a CPU between two stacks.
    period_ns: u64,
}

impl Blocking {
    /// `period_ns` is the time on a CPU between two stacks.
    pub fn new(period_ns: u64) -> Self {
        Self { threads: FxHashMap::default(), blocked: Vec::new(), period_ns }
    }

    /// A stack was taken of a thread that runs an event loop.
    pub fn seen(&mut self, pid: u32, tid: u32, stack: LoopStack) {
        if self.threads.len() >= MOST_THREADS {
            self.threads.clear();
        }
        let stacks = self.threads.entry((pid, tid)).or_default();
        if stacks.len() >= MOST_STACKS {
            stacks.pop_front();
        }
        stacks.push_back(Seen { stack, owner: None });
    }

    /// A question was answered.
    pub fn answered(&mut self, question: ExchangeKey, owner: Option<ExchangeKey>) {
        for seen in self.threads.values_mut().flatten().filter(|seen| seen.stack.question == question) {
            seen.owner = Some(owner);
        }
    }

    /// A turn took long.
    pub fn blocked(&mut self, turn: LoopBlocked) {
        self.blocked.push(turn);
    }

    /// Whether a turn of a process waits for answers.
    pub fn is_waiting(&self, pid: u32) -> bool {
        self.blocked.iter().any(|turn| turn.pid == pid)
    }

    /// The turns of which all is known that will be; at the end of time, all.
    pub fn resolve(&mut self, now_ns: u64) -> Vec<(LoopBlocked, Option<Culprit>)> {
        let mut resolved = Vec::new();
        for turn in std::mem::take(&mut self.blocked) {
            let all = self.threads.get(&(turn.pid, turn.tid)).into_iter().flatten();
            let stacks: Vec<&Seen> = all.filter(|seen| seen.stack.turn == turn.turn).collect();
            if stacks.iter().all(|seen| seen.owner.is_some())
                || now_ns.saturating_sub(turn.ended_ns) > PATIENCE_NS
            {
                resolved.push((turn, culprit(&turn, &stacks, self.period_ns)));
            } else {
                self.blocked.push(turn);
            }
        }
        resolved
    }

    /// A process has ended, or is another program now.
    pub fn process_ended(&mut self, pid: u32) {
        self.threads.retain(|(of, _), _| *of != pid);
        self.blocked.retain(|turn| turn.pid != pid);
    }
}

/// A stretch of a turn that is a request's: whose, from when until when, and by which stack.
type Stretch = (ExchangeKey, (u64, u64), usize);

fn culprit(turn: &LoopBlocked, stacks: &[&Seen], period_ns: u64) -> Option<Culprit> {
    let owner = |index: usize| stacks.get(index)?.owner?;
    let mut stretches: Vec<Stretch> = Vec::new();
    for (index, seen) in stacks.iter().enumerate() {
        let Some(request) = owner(index) else { continue };
        if index == 0 && seen.stack.ktime_ns.saturating_sub(turn.began_ns) <= 2 * period_ns {
            stretches.push((request, (turn.began_ns, seen.stack.ktime_ns), index));
        }
        let next = stacks.get(index + 1).map_or(turn.ended_ns, |next| next.stack.ktime_ns);
        let (slept_since, slept) = turn.slept;
        let awake = slept_since.saturating_add(slept);
        let same = match stacks.get(index + 1) {
            Some(_) => owner(index + 1) == Some(request),
            None => turn.ended_ns.saturating_sub(seen.stack.ktime_ns) <= 2 * period_ns,
        };
        if same {
            stretches.push((request, (seen.stack.ktime_ns, next), index));
        } else if seen.stack.asleep && seen.stack.ktime_ns == slept_since {
            stretches.push((request, (slept_since, awake.min(next)), index));
        }
    }
    let mut sums: FxHashMap<ExchangeKey, u64> = FxHashMap::default();
    for (request, (from, to), _) in &stretches {
        *sums.entry(*request).or_default() += to.saturating_sub(*from);
    }
    let length = turn.ended_ns.saturating_sub(turn.began_ns);
    let (request, _) = sums.into_iter().find(|(_, sum)| *sum > length / 2)?;
    let own: Vec<&Stretch> = stretches.iter().filter(|(of, ..)| *of == request).collect();
    let held = (own.first()?.1.0, own.last()?.1.1);
    // The stack that stood longest; of equal ones all together.
    let mut weights: Vec<(u64, &Stack)> = Vec::new();
    for (_, (from, to), index) in own {
        let stack = &stacks.get(*index)?.stack.stack;
        match weights.iter_mut().find(|(_, other)| *other == stack) {
            Some((weight, _)) => *weight += to - from,
            None => weights.push((to - from, stack)),
        }
    }
    let (_, stack) = weights.into_iter().max_by_key(|(weight, _)| *weight)?;
    Some(Culprit { request, held, stack: stack.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::stacks::tests::{frame, stack};

    const MS: u64 = 1_000_000;

    /// Stacks as (time in ms, asleep, owner); the turn lasts from 1000 ms to 1200 ms.
    fn check(
        stacks: &[(u64, bool, Option<ExchangeKey>)],
        slept: (u64, u64),
        expected: Option<(u64, u64, u64)>,
    ) {
        let mut blocking = Blocking::new(10 * MS);
        for (question, (time, asleep, owner)) in (100..).zip(stacks) {
            let (turn, ktime_ns, stack) = (7, time * MS, stack([frame("main", 1)]));
            blocking.seen(1, 2, LoopStack { turn, ktime_ns, asleep: *asleep, question, stack });
            blocking.answered(question, *owner);
        }
        let slept = (slept.0 * MS, slept.1 * MS);
        let (began_ns, ended_ns) = (1000 * MS, 1200 * MS);
        blocking.blocked(LoopBlocked { pid: 1, tid: 2, turn: 7, began_ns, ended_ns, slept });
        let resolved = blocking.resolve(1201 * MS);
        let found = resolved[0].1.as_ref().map(|it| (it.request, it.held.0 / MS, it.held.1 / MS));
        assert_eq!(found, expected);
    }

    #[test]
    fn who_sleeps_holds_the_loop() {
        check(&[(1002, true, Some(5))], (1002, 195), Some((5, 1000, 1197)));
        // Another sleep is the long one, and nothing is known of it.
        check(&[(1002, true, Some(5))], (1040, 150), None);
        check(&[(1002, true, None)], (1002, 195), None);
    }

    #[test]
    fn who_computes_holds_the_loop() {
        let burning: Vec<_> = (100..120).map(|tick| (tick * 10, false, Some(5))).collect();
        check(&burning, (0, 0), Some((5, 1000, 1200)));
        let shared: Vec<_> = (100..120).map(|tick| (tick * 10, false, Some(tick))).collect();
        check(&shared, (0, 0), None);
        let mostly: Vec<_> =
            (100..120).map(|tick| (tick * 10, false, Some(if tick < 106 { 4 } else { 5 }))).collect();
        check(&mostly, (0, 0), Some((5, 1060, 1200)));
    }

    #[test]
    fn nobody_is_blamed_without_stacks() {
        check(&[], (0, 0), None);
        // Starved of CPU: one stack says nothing of the rest.
        check(&[(1100, false, Some(5))], (0, 0), None);
    }

    #[test]
    fn waits_for_answers() {
        let mut blocking = Blocking::new(10 * MS);
        let (ktime_ns, stack) = (1002 * MS, stack([frame("main", 1)]));
        blocking.seen(1, 2, LoopStack { turn: 7, ktime_ns, asleep: true, question: 9, stack });
        let slept = (1002 * MS, 190 * MS);
        blocking.blocked(LoopBlocked {
            pid: 1,
            tid: 2,
            turn: 7,
            began_ns: 1000 * MS,
            ended_ns: 1200 * MS,
            slept,
        });
        assert!(blocking.resolve(1300 * MS).is_empty());
        assert!(blocking.is_waiting(1));
        blocking.answered(9, Some(5));
        assert_eq!(blocking.resolve(1300 * MS).len(), 1);
        assert!(!blocking.is_waiting(1));
    }
}
