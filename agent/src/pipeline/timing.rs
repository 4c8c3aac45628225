//! From clocks to what spans say of their time: keeps what is under way while the causality stage finds out whose it is.
//!
//! The span of a request waits here a moment after its end, so that what is known of its time is on it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pitviper_ebpf::abi::Clocks;
use rustc_hash::FxHashMap;

use crate::causality::{ExchangeKey, Moment};
use crate::clock::Clock;
use crate::connection::Mark;
use crate::kernel::records::LoopBlocked;
use crate::profile::LoopStack;
use crate::telemetry::report::LoopLag;
use crate::timing::blocking::{Blocking, Culprit};
use crate::timing::buckets::{Bucket, Buckets};
use crate::timing::threads::{Deed, Threads};
use crate::timing::{Ledgers, Wait, describe};
use crate::trace::assembly::{Finished, TraceOf};

/// A span waits so long for the turn of the event loop in which its request ended, and for the samples taken in it.
const HOLD_NS: u64 = 250_000_000;
/// And no longer than this for answers.
const LONGEST_HOLD_NS: u64 = 1_000_000_000;
/// Operations whose end or owner is not known; beyond it they are forgotten.
const MOST_OPERATIONS: usize = 65_536;

/// How clocks are kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// CPU time between two profile samples.
    pub period: Duration,
    /// The kernel tells waits for the interpreter's lock.
    pub locks: bool,
}

/// A request whose span waits.
pub(super) struct Held {
    pub(super) key: ExchangeKey,
    pub(super) pid: u32,
    /// The thread that read it.
    pub(super) tid: u32,
    pub(super) first_ns: u64,
    pub(super) over_ns: u64,
    /// Questions up to this one may be about it.
    pub(super) asked: ExchangeKey,
    pub(super) finished: Finished,
}

/// A request that is open.
#[derive(Clone, Copy)]
pub(super) struct Serving {
    pub(super) key: ExchangeKey,
    pub(super) pid: u32,
    pub(super) tid: u32,
    pub(super) first_ns: u64,
}

struct Operation {
    wait: Wait,
    over: bool,
    owner: Option<ExchangeKey>,
}

/// What a request is told of its event loop.
#[derive(Default)]
struct Told {
    /// It held the loop.
    events: Vec<opentelemetry::trace::Event>,
    /// It waited for so many nanoseconds for another request.
    culprits: Vec<(ExchangeKey, u64)>,
}

/// See the module.
pub(super) struct Timing {
    locks: bool,
    threads: Threads,
    buckets: Buckets,
    ledgers: Ledgers,
    blocking: Blocking,
    /// Buckets that a question has to be asked about.
    full: Vec<Bucket>,
    asked: FxHashMap<ExchangeKey, Bucket>,
    /// Questions without an answer, by process.
    outstanding: FxHashMap<u32, BTreeSet<ExchangeKey>>,
    operations: FxHashMap<ExchangeKey, Operation>,
    told: FxHashMap<ExchangeKey, Told>,
    held: Vec<Held>,
    lag: FxHashMap<u32, LoopLag>,
}

impl Timing {
    pub(super) fn new(settings: Settings) -> Self {
        let period_ns = u64::try_from(settings.period.as_nanos()).unwrap_or(u64::MAX);
        Self {
            locks: settings.locks,
            threads: Threads::default(),
            buckets: Buckets::default(),
            ledgers: Ledgers::default(),
            blocking: Blocking::new(period_ns),
            full: Vec::new(),
            asked: FxHashMap::default(),
            outstanding: FxHashMap::default(),
            operations: FxHashMap::default(),
            told: FxHashMap::default(),
            held: Vec::new(),
            lag: FxHashMap::default(),
        }
    }

    /// A record of a thread was read.
    pub(super) fn seen(&mut self, at: Moment, clocks: Clocks, deed: Deed) {
        let Self { threads, buckets, full, .. } = self;
        threads.seen(at, clocks, deed, &mut |share| full.extend(buckets.add(&share)));
    }

    /// A request begins or is answered on a thread.
    pub(super) fn boundary(&mut self, mark: &Mark) {
        self.full.append(&mut self.buckets.of_thread(mark.pid, mark.task.tid));
    }

    /// A request ends. Other threads may have worked for it.
    pub(super) fn request_over(&mut self, pid: u32) {
        self.full.append(&mut self.buckets.of_process(pid));
    }

    /// The address of a context is about to be another one's.
    pub(super) fn context_ends(&mut self, pid: u32, context: u64) {
        self.full.append(&mut self.buckets.of_context(pid, context));
        self.threads.context_ended(pid, context);
    }

    /// What a thread does from now on is another task's, although its context stays.
    pub(super) fn task_begins(&mut self, pid: u32, tid: u32) {
        self.full.append(&mut self.buckets.of_thread(pid, tid));
    }

    /// What a thread does from now on is nobody's for a while.
    pub(super) fn task_ends(&mut self, pid: u32, tid: u32) {
        self.full.append(&mut self.buckets.of_thread(pid, tid));
        self.threads.task_ended(pid, tid);
    }

    /// Ends of contexts were missed: no address means what it meant.
    pub(super) fn lineage_lost(&mut self) {
        self.buckets = Buckets::default();
        self.threads = Threads::default();
    }

    /// A process ends, or becomes another program.
    pub(super) fn process_ends(&mut self, pid: u32) {
        self.full.append(&mut self.buckets.of_process(pid));
        self.threads.process_ended(pid);
    }

    /// Buckets that a question has to be asked about now.
    pub(super) fn take_full(&mut self) -> Vec<Bucket> {
        let mut full = std::mem::take(&mut self.full);
        full.retain(|bucket| !bucket.pieces.is_empty());
        full
    }

    /// A question was asked about a bucket.
    pub(super) fn asked(&mut self, question: ExchangeKey, bucket: Bucket) {
        self.outstanding.entry(bucket.at.pid).or_default().insert(question);
        self.asked.insert(question, bucket);
    }

    /// A question was answered. Gives whether it was one about a bucket.
    pub(super) fn answered(&mut self, question: ExchangeKey, owner: Option<ExchangeKey>) -> bool {
        let Some(bucket) = self.asked.remove(&question) else { return false };
        if let Some(outstanding) = self.outstanding.get_mut(&bucket.at.pid) {
            outstanding.remove(&question);
            if outstanding.is_empty() {
                self.outstanding.remove(&bucket.at.pid);
            }
        }
        if let Some(owner) = owner {
            self.ledgers.spent(owner, bucket);
        }
        true
    }

    /// A question that a stack is part of was answered.
    pub(super) fn stack_answered(&mut self, question: ExchangeKey, owner: Option<ExchangeKey>) {
        self.blocking.answered(question, owner);
    }

    pub(super) fn request_opened(&mut self, key: ExchangeKey) {
        self.ledgers.open(key);
    }

    pub(super) fn operation_opened(&mut self, key: ExchangeKey, first_ns: u64, peer: Arc<str>) {
        if self.operations.len() >= MOST_OPERATIONS {
            self.operations.clear();
        }
        let wait = Wait { from: first_ns, to: first_ns, peer };
        self.operations.insert(key, Operation { wait, over: false, owner: None });
    }

    pub(super) fn operation_over(&mut self, key: ExchangeKey, last_ns: u64) {
        let Some(operation) = self.operations.get_mut(&key) else { return };
        operation.wait.to = last_ns;
        operation.over = true;
        self.account(key);
    }

    pub(super) fn operation_settled(&mut self, key: ExchangeKey, owner: Option<ExchangeKey>) {
        let Some(operation) = self.operations.get_mut(&key) else { return };
        operation.owner = owner;
        if owner.is_none() {
            self.operations.remove(&key);
        } else {
            self.account(key);
        }
    }

    fn account(&mut self, key: ExchangeKey) {
        let complete = |operation: &&Operation| operation.over && operation.owner.is_some();
        if self.operations.get(&key).filter(complete).is_some()
            && let Some(Operation { wait, owner: Some(owner), .. }) = self.operations.remove(&key)
        {
            self.ledgers.waited(owner, wait);
        }
    }

    /// An exchange turned out to be none.
    pub(super) fn discarded(&mut self, key: ExchangeKey) {
        self.operations.remove(&key);
        self.ledgers.discard(key);
        self.told.remove(&key);
    }

    /// A stack of an event loop's thread was taken, and named.
    pub(super) fn stack(&mut self, pid: u32, tid: u32, stack: LoopStack) {
        self.blocking.seen(pid, tid, stack);
    }

    /// A turn of an event loop took long.
    pub(super) fn blocked(&mut self, turn: LoopBlocked) {
        self.lag.entry(turn.pid).or_default().count(turn.ended_ns.saturating_sub(turn.began_ns));
        self.blocking.blocked(turn);
    }

    /// How long the event loops of a process took for their long turns.
    pub(super) fn lag(&self, pid: u32) -> LoopLag {
        self.lag.get(&pid).copied().unwrap_or_default()
    }

    /// Forgets what was counted of all processes but the known ones.
    pub(super) fn retain_lag(&mut self, mut known: impl FnMut(u32) -> bool) {
        self.lag.retain(|pid, _| known(*pid));
    }

    /// Tells the requests concerned of turns that took long, as far as all is known. `serving` are the open requests.
    pub(super) fn resolve(&mut self, now_ns: u64, clock: Clock, serving: impl Fn() -> Vec<Serving>) {
        for (turn, culprit) in self.blocking.resolve(now_ns) {
            let Some(Culprit { request, held: (from, to), stack }) = culprit else { continue };
            let open = serving().into_iter().map(|it| (it, u64::MAX));
            let over = self.held.iter().map(|held| {
                let Held { key, pid, tid, first_ns, over_ns, .. } = *held;
                (Serving { key, pid, tid, first_ns }, over_ns)
            });
            let all: Vec<_> = open.chain(over).filter(|(it, _)| it.pid == turn.pid).collect();
            if !all.iter().any(|(it, _)| it.key == request) {
                // It has no span, or that has left.
                continue;
            }
            let length = to.saturating_sub(from);
            let event = describe::event(clock.wall(from), length, &stack);
            self.told.entry(request).or_default().events.push(event);
            // Whoever was open for all of it, and is served by the same loop, could not go on.
            let waited = |(it, over_ns): &&(Serving, u64)| {
                it.key != request && it.tid == turn.tid && it.first_ns <= from && *over_ns >= to
            };
            for (victim, _) in all.iter().filter(waited) {
                self.told.entry(victim.key).or_default().culprits.push((request, length));
            }
        }
    }

    /// The span of a request is to leave, once all that it has to say is known.
    pub(super) fn hold(&mut self, held: Held) {
        self.held.push(held);
    }

    /// Spans whose time it is to leave; at the end of time, all.
    pub(super) fn release(&mut self, now_ns: u64, trace_of: impl Fn(ExchangeKey) -> TraceOf) -> Vec<Held> {
        let Self { held, outstanding, blocking, told, .. } = self;
        let ready = |it: &mut Held| {
            let waited = now_ns.saturating_sub(it.over_ns);
            let unanswered = || {
                let first = outstanding.get(&it.pid).and_then(BTreeSet::first);
                first.is_some_and(|first| *first <= it.asked)
            };
            let unknown = || {
                let culprits = told.get(&it.key).map(|told| told.culprits.as_slice()).unwrap_or_default();
                culprits.iter().any(|(culprit, _)| trace_of(*culprit) == TraceOf::Open)
            };
            waited > LONGEST_HOLD_NS
                || (waited > HOLD_NS && !unanswered() && !unknown() && !blocking.is_waiting(it.pid))
        };
        let mut leaving: Vec<Held> = held.extract_if(.., ready).collect();
        for held in &mut leaving {
            let Held { key, first_ns, over_ns, finished, .. } = held;
            if let Some(split) = self.ledgers.close(*key, *first_ns, *over_ns) {
                finished.parts.attributes.extend(describe::split(&split, self.locks));
            }
            let Told { events, culprits } = self.told.remove(key).unwrap_or_default();
            finished.events.extend(events);
            for (culprit, length) in culprits {
                if let TraceOf::Known(span) = trace_of(culprit) {
                    finished.links.push(describe::link(span, length));
                }
            }
        }
        leaving
    }

    /// A process is no longer of interest: gives the requests whose spans waited.
    pub(super) fn process_left(&mut self, pid: u32) -> Vec<ExchangeKey> {
        self.blocking.process_ended(pid);
        self.held.extract_if(.., |held| held.pid == pid).map(|held| held.key).collect()
    }
}
