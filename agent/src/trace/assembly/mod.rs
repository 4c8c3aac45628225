//! Exchanges into traces: ids, parents, the sampling decision, and when a span is ready to leave.
//!
//! Takes exchanges as they open, are settled and finish; gives [`FinishedSpan`]s whose trace id is known. The parent of a
//! server exchange is, in this order: what its headers name; the client exchange of another observed process that sent
//! the very same bytes of the same connection; nobody. The parent of a client exchange is its owner as the causality
//! stage settles it. Who takes a message from a queue has the one who sent it for parent, in the same order, and a link to
//! it: a message has one sender and one taker, as a request has. A trace id is known only when all parents up to the
//! root are, so spans wait for one another.

mod leaving;
mod parents;
mod record;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::RandomIdGenerator;
use rustc_hash::FxHashMap;

use super::FinishedSpan;
use super::join::{Joins, Place};
use super::messages::Messages;
use super::sampler::Sampler;
use crate::causality::{Evidence, ExchangeKey, Owner};
use crate::process::resource::Service;
pub use record::{Finished, Links, Stats, TraceOf};
use record::{Held, NoParent, Parent, Record};

/// A span waits no longer than this for the end of the request that it was made in: a stream may go on for hours.
const LONGEST_HOLD_NS: u64 = 60_000_000_000;
/// A finished exchange is remembered for this long, because work that it started may still be settled to it.
const REMEMBERED_NS: u64 = 60_000_000_000;
/// A server exchange that is over waits this long for the other end of its connection to show up.
const JOIN_WAIT_NS: u64 = 100_000_000;
/// One that is not over does not wait longer than this: it may stream for hours.
const LONGEST_JOIN_WAIT_NS: u64 = 2_000_000_000;

/// The same while spans are published as soon as they are known: the sender of a request has left its system call by then,
/// if it is on time.
const PUBLISHED_JOIN_WAIT_NS: u64 = 20_000_000;

/// Exchanges on their way to become spans.
#[derive(Default)]
pub struct Assembly {
    sampler: Sampler,
    ids: RandomIdGenerator,
    records: FxHashMap<ExchangeKey, Record>,
    joins: Joins,
    messages: Messages,
    /// Server exchanges whose other end has not shown up yet.
    undecided: Vec<ExchangeKey>,
    /// Server exchanges whose spans have left, by the time at which they were over.
    gone: VecDeque<(u64, ExchangeKey)>,
    ready: Vec<FinishedSpan>,
    /// Finished spans whose server exchange goes on, by that: whether it becomes a span is not sure before its end.
    held: FxHashMap<ExchangeKey, Held>,
    links: FxHashMap<u32, (Arc<Service>, Links)>,
    /// Whether spans say why they have their parent.
    show_evidence: bool,
    publishes: bool,
    stats: Stats,
}

impl Assembly {
    /// An assembly that samples as `sampler` says. With `show_evidence` each span says why it has its parent.
    pub fn new(sampler: Sampler, show_evidence: bool) -> Self {
        Self { sampler, show_evidence, ..Self::default() }
    }

    /// Ids are wanted early, see [`Assembly::ids`].
    pub fn publish(&mut self) {
        self.publishes = true;
    }

    /// The ids that the span of an open exchange will have; `None` while they are not known, and if it will not be
    /// exported.
    pub fn ids(&self, key: ExchangeKey) -> Option<(TraceId, SpanId)> {
        let record = self.records.get(&key)?;
        let trace = record.trace.as_ref().filter(|trace| trace.sampled)?;
        Some((trace.id, record.span_id))
    }

    /// A request was read, or a message taken. `remote` is the parent that its headers name, `place` where its sender is.
    pub fn server_opened(
        &mut self,
        key: ExchangeKey,
        opened_ns: u64,
        start: SystemTime,
        remote: Option<SpanContext>,
        place: Place,
    ) {
        self.insert(key, opened_ns, start, true, place);
        let Place { join, message, pid: _ } = place;
        if let Some(remote) = remote {
            self.stats.remote += 1;
            self.decide(key, Parent::Remote(remote, Evidence::Header));
        } else if let Some(client) = join.and_then(|join| self.joins.server(join, key)) {
            self.join(client, key);
        } else if let Some(sender) = message.and_then(|message| self.messages.sender(message)) {
            self.taken_from(key, sender);
        } else if join.is_none() && message.is_none() {
            self.decide(key, Parent::None(NoParent::Begins));
        } else {
            self.undecided.push(key);
        }
    }

    /// A request was sent.
    pub fn client_opened(&mut self, key: ExchangeKey, opened_ns: u64, start: SystemTime, place: Place) {
        self.insert(key, opened_ns, start, false, place);
        if let Some(message) = place.message {
            self.messages.sent(message, key, place.pid);
        }
        if let Some(server) = place.join.and_then(|join| self.joins.client(join, key)) {
            self.join(key, server);
        }
    }

    /// The owner of a client exchange is known, or known to be nobody.
    pub fn settled(&mut self, key: ExchangeKey, owner: Owner) {
        let parent = match owner {
            Ok((owner, evidence)) => Parent::Exchange(owner, evidence),
            Err(reason) => Parent::None(NoParent::Orphan(reason)),
        };
        self.decide(key, parent);
    }

    /// There are profile samples of a server exchange. Its span says so if it has not left yet.
    pub fn profiled(&mut self, key: ExchangeKey) {
        if let Some(record) = self.records.get_mut(&key) {
            if !record.profiled && record.left() {
                self.stats.late_profiles += 1;
            }
            record.profiled = true;
        }
    }

    /// The span of an exchange, also for some time after it has left.
    pub fn trace_of(&self, key: ExchangeKey) -> TraceOf {
        let Some(record) = self.records.get(&key) else { return TraceOf::None };
        match &record.trace {
            None => TraceOf::Open,
            Some(trace) if !trace.sampled => TraceOf::None,
            Some(trace) => {
                let flags = TraceFlags::SAMPLED;
                TraceOf::Known(SpanContext::new(trace.id, record.span_id, flags, false, TraceState::NONE))
            }
        }
    }

    /// An exchange is over.
    pub fn finished(&mut self, key: ExchangeKey, over_ns: u64, finished: Finished) {
        let Some(record) = self.records.get_mut(&key) else { return };
        record.over_ns = Some(over_ns);
        record.finished = Some(finished);
        self.release(key);
    }

    /// What was opened turned out to be no exchange: what hangs on it becomes roots.
    pub fn discarded(&mut self, key: ExchangeKey) {
        let Some(record) = self.records.remove(&key) else { return };
        self.abandon(key);
        self.joins.forget(record.place.join, key);
        if let Some(message) = record.place.message.filter(|_| !record.server) {
            self.messages.discarded(message, key);
        }
        for child in record.waiting {
            if let Some(record) = self.records.get_mut(&child) {
                record.parent = None;
                let why = record.parent_lost();
                self.decide(child, Parent::None(why));
            }
        }
    }

    /// A process is no longer of interest: its spans that have not left are dropped, and what hangs on them becomes roots.
    /// Gives how many there were.
    pub fn process_left(&mut self, pid: u32) -> u64 {
        let ready = self.ready.len();
        self.ready.retain(|span| span.service.pid != pid);
        let waiting: usize = self.held.values().map(|held| held.spans.len()).sum();
        self.held.values_mut().for_each(|held| held.spans.retain(|(span, _)| span.service.pid != pid));
        let waiting = waiting - self.held.values().map(|held| held.spans.len()).sum::<usize>();
        let of_process = |record: &Record| record.finished.as_ref().is_some_and(|it| it.service.pid == pid);
        let held: Vec<_> =
            self.records.iter().filter(|(_, record)| of_process(record)).map(|(key, _)| *key).collect();
        for key in &held {
            self.discarded(*key);
        }
        (ready - self.ready.len() + waiting + held.len()) as u64
    }

    /// Gives up waiting, and remembering, where it is time; `now_ns` is CLOCK_MONOTONIC.
    pub fn tick(&mut self, now_ns: u64) {
        self.give_up(now_ns);
        let long = |held: &Held| now_ns.saturating_sub(held.since_ns) > LONGEST_HOLD_NS;
        let long: Vec<_> = self.held.iter().filter(|(_, held)| long(held)).map(|(key, _)| *key).collect();
        long.into_iter().for_each(|key| self.let_go(key));
        while let Some((over, key)) = self.gone.front().copied()
            && now_ns.saturating_sub(over) >= REMEMBERED_NS
        {
            self.gone.pop_front();
            self.records.remove(&key);
        }
    }

    /// Gives up waiting everywhere: what is not over will be no span.
    pub fn end(&mut self) {
        self.give_up(u64::MAX);
        let held: Vec<_> = self.held.keys().copied().collect();
        held.into_iter().for_each(|key| self.abandon(key));
    }

    fn give_up(&mut self, now_ns: u64) {
        let since = |then: u64| now_ns.saturating_sub(then);
        let longest = if self.publishes { PUBLISHED_JOIN_WAIT_NS } else { LONGEST_JOIN_WAIT_NS };
        let undecided = std::mem::take(&mut self.undecided);
        for key in undecided {
            let Some(record) = self.records.get(&key).filter(|record| record.parent.is_none()) else {
                continue;
            };
            // The call that sends a message may return after another process has taken it. What the taker's own process
            // has sent since, it may have sent in the task itself.
            let Place { message, pid, .. } = record.place;
            let sender = message.filter(|_| record.server).and_then(|message| self.messages.sender(message));
            if let Some(sender) = sender.filter(|sender| sender.pid != pid) {
                self.taken_from(key, sender);
                continue;
            }
            let late = since(record.opened_ns) > longest
                || record.over_ns.is_some_and(|over| since(over) > JOIN_WAIT_NS);
            if late {
                self.decide(key, Parent::None(NoParent::Begins));
            } else {
                self.undecided.push(key);
            }
        }
    }

    /// Spans that are ready to leave.
    pub fn drain(&mut self) -> impl Iterator<Item = FinishedSpan> {
        self.ready.drain(..)
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What is above the spans of a process so far.
    pub fn links(&self, pid: u32) -> Links {
        self.links.get(&pid).map(|(_, links)| *links).unwrap_or_default()
    }

    /// Forgets the counts of all processes but the known ones; gives them.
    pub fn forget_links(&mut self, mut known: impl FnMut(u32) -> bool) -> Vec<(Arc<Service>, Links)> {
        let gone: Vec<u32> = self.links.keys().copied().filter(|pid| !known(*pid)).collect();
        gone.into_iter().filter_map(|pid| self.links.remove(&pid)).collect()
    }
}

#[cfg(test)]
mod tests;
