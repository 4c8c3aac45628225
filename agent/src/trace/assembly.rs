//! Exchanges into traces: ids, parents, the sampling decision, and when a span is ready to leave.
//!
//! Takes exchanges as they open, are settled and finish; gives [`FinishedSpan`]s whose trace id is known. The parent of a
//! server exchange is, in this order: what its headers name; the client exchange of another observed process that sent
//! the very same bytes of the same connection; nobody. The parent of a client exchange is its owner as the causality
//! stage settles it. Who takes a message from a queue has the one who sent it for parent, in the same order, and a link to
//! it: a message has one sender and one taker, as a request has. A trace id is known only when all parents up to the root are, so spans wait for one another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use rustc_hash::FxHashMap;

use super::join::{Joins, Place};
use super::messages::{Messages, Sender, Sent};
use super::sampler::{ParentContext, Sampler};
use super::{FinishedSpan, SpanParts};
use crate::causality::ExchangeKey;
use crate::process::resource::Service;

/// A finished exchange is remembered for this long, because work that it started may still be settled to it.
const REMEMBERED_NS: u64 = 60_000_000_000;
/// A server exchange that is over waits this long for the other end of its connection to show up.
const JOIN_WAIT_NS: u64 = 100_000_000;
/// One that is not over does not wait longer than this: it may stream for hours.
const LONGEST_JOIN_WAIT_NS: u64 = 2_000_000_000;

/// The trace that a span is part of.
#[derive(Clone, Debug)]
struct Trace {
    id: TraceId,
    sampled: bool,
    state: TraceState,
}

/// Who the parent of an exchange is.
enum Parent {
    /// Nobody.
    Root,
    /// Named by the request's headers.
    Remote(SpanContext),
    /// Another exchange.
    Exchange(ExchangeKey),
}

/// The parent as a span says it.
#[derive(Clone, Copy)]
struct ParentSpan {
    id: SpanId,
    remote: bool,
}

impl ParentSpan {
    const NONE: Self = Self { id: SpanId::INVALID, remote: false };
}

struct Record {
    span_id: SpanId,
    server: bool,
    opened_ns: u64,
    start: SystemTime,
    /// `None` while it is not known whether there is a parent.
    parent: Option<ParentSpan>,
    trace: Option<Trace>,
    /// Exchanges whose parent this is, while the trace is not known.
    waiting: Vec<ExchangeKey>,
    finished: Option<Finished>,
    over_ns: Option<u64>,
    place: Place,
}

/// What is known of an exchange at its end.
pub struct Finished {
    /// Whose span it is.
    pub service: Arc<Service>,
    /// All of it but ids and times.
    pub parts: SpanParts,
    /// When its last byte moved.
    pub end: SystemTime,
}

/// What the assembly counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Spans that are not exported because their trace is not sampled.
    pub unsampled: u64,
    /// Server spans whose parent is a client span of another observed process.
    pub joined: u64,
    /// Server spans whose parent was named by the request.
    pub remote: u64,
}

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
    stats: Stats,
}

impl Assembly {
    /// An assembly that samples as `sampler` says.
    pub fn new(sampler: Sampler) -> Self {
        Self { sampler, ..Self::default() }
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
            self.decide(key, Parent::Remote(remote));
        } else if let Some(client) = join.and_then(|join| self.joins.server(join, key)) {
            self.join(client, key);
        } else if let Some(sender) = message.and_then(|message| self.messages.sender(message)) {
            self.taken_from(key, sender);
        } else if join.is_none() && message.is_none() {
            self.decide(key, Parent::Root);
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
    pub fn settled(&mut self, key: ExchangeKey, owner: Option<ExchangeKey>) {
        let parent =
            owner.filter(|owner| self.records.contains_key(owner)).map_or(Parent::Root, Parent::Exchange);
        self.decide(key, parent);
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
        self.joins.forget(record.place.join, key);
        if let Some(message) = record.place.message.filter(|_| !record.server) {
            self.messages.discarded(message, key);
        }
        for child in record.waiting {
            if let Some(child) = self.records.get_mut(&child) {
                child.parent = None;
            }
            self.decide(child, Parent::Root);
        }
    }

    /// Gives up waiting where it is time; `now_ns` is CLOCK_MONOTONIC, or the end of time to give up everywhere.
    pub fn tick(&mut self, now_ns: u64) {
        let since = |then: u64| now_ns.saturating_sub(then);
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
            let late = since(record.opened_ns) > LONGEST_JOIN_WAIT_NS
                || record.over_ns.is_some_and(|over| since(over) > JOIN_WAIT_NS);
            if late {
                self.decide(key, Parent::Root);
            } else {
                self.undecided.push(key);
            }
        }
        while let Some((over, key)) = self.gone.front().copied()
            && since(over) >= REMEMBERED_NS
        {
            self.gone.pop_front();
            self.records.remove(&key);
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

    fn insert(&mut self, key: ExchangeKey, opened_ns: u64, start: SystemTime, server: bool, place: Place) {
        let record = Record {
            span_id: self.ids.new_span_id(),
            server,
            opened_ns,
            start,
            parent: None,
            trace: None,
            waiting: Vec::new(),
            finished: None,
            over_ns: None,
            place,
        };
        self.records.insert(key, record);
    }

    /// A message was taken that `sender` has sent.
    fn taken_from(&mut self, key: ExchangeKey, sender: Sender) {
        let parent = match sender.span {
            Sent::By(client) => Parent::Exchange(client),
            Sent::Within(context) => Parent::Remote(context),
        };
        if self.decide(key, parent) {
            self.stats.joined += 1;
        }
    }

    fn join(&mut self, client: ExchangeKey, server: ExchangeKey) {
        let Some(start) = self.records.get(&server).map(|record| record.start) else { return };
        let Some(record) = self.records.get_mut(&client) else { return };
        // Both times are taken when the calls return; the receiver may be back before the sender.
        record.start = record.start.min(start);
        if self.decide(server, Parent::Exchange(client)) {
            self.stats.joined += 1;
        }
    }

    /// Sets a parent that was open, and spreads the trace id as far as it is known now.
    fn decide(&mut self, key: ExchangeKey, parent: Parent) -> bool {
        if self.records.get(&key).is_none_or(|record| record.parent.is_some()) {
            return false;
        }
        let (span, trace) = match parent {
            Parent::Root => (ParentSpan::NONE, Some(self.new_trace())),
            Parent::Remote(context) => {
                let id = context.trace_id();
                let remote = ParentContext { sampled: context.is_sampled(), remote: true };
                let sampled = self.sampler.should_sample(id, Some(remote));
                let trace = Trace { id, sampled, state: context.trace_state().clone() };
                (ParentSpan { id: context.span_id(), remote: true }, Some(trace))
            }
            Parent::Exchange(parent) => match self.records.get_mut(&parent) {
                Some(parent) => {
                    if parent.trace.is_none() {
                        parent.waiting.push(key);
                    }
                    // A client exchange below a server exchange is the same process's; the reverse crosses processes.
                    (ParentSpan { id: parent.span_id, remote: !parent.server }, parent.trace.clone())
                }
                None => (ParentSpan::NONE, Some(self.new_trace())),
            },
        };
        if let Some(record) = self.records.get_mut(&key) {
            record.parent = Some(span);
        }
        if let Some(trace) = trace {
            self.spread(key, &trace);
        }
        true
    }

    fn new_trace(&self) -> Trace {
        let id = self.ids.new_trace_id();
        Trace { id, sampled: self.sampler.should_sample(id, None), state: TraceState::NONE }
    }

    fn spread(&mut self, key: ExchangeKey, trace: &Trace) {
        let mut next = vec![key];
        while let Some(key) = next.pop() {
            let Some(record) = self.records.get_mut(&key) else { continue };
            record.trace = Some(trace.clone());
            next.append(&mut record.waiting);
            self.release(key);
        }
    }

    /// Lets a span leave if it is finished and its trace is known.
    fn release(&mut self, key: ExchangeKey) {
        let Some(record) = self.records.get_mut(&key) else { return };
        let (Some(trace), Some(parent)) = (&record.trace, record.parent) else { return };
        let Some(Finished { service, parts, end }) = record.finished.take() else { return };
        let (trace, span_id, start, server) = (trace.clone(), record.span_id, record.start, record.server);
        let Place { join, message, pid: _ } = std::mem::take(&mut record.place);
        if server {
            self.gone.push_back((record.over_ns.unwrap_or(record.opened_ns), key));
        } else {
            self.records.remove(&key);
        }
        self.joins.forget(join, key);
        let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        let context = |id| SpanContext::new(trace.id, id, flags, false, trace.state.clone());
        let mut links = SpanLinks::default();
        match message {
            Some(message) if !server => self.messages.left(message, key, context(span_id)),
            Some(_) if parent.id != SpanId::INVALID => {
                links.links.push(Link::with_context(context(parent.id)));
            }
            _ => {}
        }
        if !trace.sampled {
            self.stats.unsampled += 1;
            return;
        }
        let SpanParts { name, kind, attributes, status } = parts;
        let data = SpanData {
            span_context: SpanContext::new(trace.id, span_id, TraceFlags::SAMPLED, false, trace.state),
            parent_span_id: parent.id,
            parent_span_is_remote: parent.remote,
            span_kind: kind,
            name: name.into(),
            start_time: start,
            end_time: end.max(start),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status,
            instrumentation_scope: super::scope(),
        };
        self.ready.push(FinishedSpan { service, data });
    }
}

#[cfg(test)]
#[path = "assembly_tests.rs"]
mod tests;
