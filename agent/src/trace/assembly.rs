//! Exchanges into traces: ids, parents, the sampling decision, and when a span is ready to leave.
//!
//! Takes exchanges as they open, are settled and finish; gives [`FinishedSpan`]s whose trace id is known. The parent of a
//! server exchange is, in this order: what its headers name; the client exchange of another observed process that sent
//! the very same bytes of the same connection; nobody. The parent of a client exchange is its owner as the causality
//! stage settles it. Who takes a message from a queue has the one who sent it for parent, in the same order, and a link to
//! it: a message has one sender and one taker, as a request has. A trace id is known only when all parents up to the
//! root are, so spans wait for one another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Event, Link, SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use rustc_hash::FxHashMap;

use super::join::{Joins, Place};
use super::messages::{Messages, Sender, Sent};
use super::sampler::{ParentContext, Sampler};
use super::{FinishedSpan, SpanParts, semconv};
use crate::causality::{Evidence, ExchangeKey, Orphan, Owner, Tally};
use crate::process::resource::Service;

/// A span waits no longer than this for the end of the request that it was made in: a stream may go on for hours.
const LONGEST_HOLD_NS: u64 = 60_000_000_000;
/// Requests that spans wait for; with more of them they do not wait.
const MOST_HELD: usize = 16_384;
/// A finished exchange is remembered for this long, because work that it started may still be settled to it.
const REMEMBERED_NS: u64 = 60_000_000_000;
/// A server exchange that is over waits this long for the other end of its connection to show up.
const JOIN_WAIT_NS: u64 = 100_000_000;
/// One that is not over does not wait longer than this: it may stream for hours.
const LONGEST_JOIN_WAIT_NS: u64 = 2_000_000_000;

/// The same while spans are published as soon as they are known: the sender of a request has left its system call by then,
/// if it is on time.
const PUBLISHED_JOIN_WAIT_NS: u64 = 20_000_000;

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
    None(NoParent),
    /// A span that has no record here.
    Remote(SpanContext, Evidence),
    /// Another exchange.
    Exchange(ExchangeKey, Evidence),
}

/// Why there is no parent.
#[derive(Clone, Copy)]
enum NoParent {
    /// A request from somewhere that is not observed: a trace begins, and nothing is missing.
    Begins,
    /// Work that some request may have caused.
    Orphan(Orphan),
}

/// The parent as a span says it.
#[derive(Clone, Copy)]
struct ParentSpan {
    id: SpanId,
    remote: bool,
    why: Result<Evidence, NoParent>,
}

impl ParentSpan {
    fn none(why: NoParent) -> Self {
        Self { id: SpanId::INVALID, remote: false, why: Err(why) }
    }

    /// What `--parent-evidence` adds to the span.
    fn attributes(&self) -> impl Iterator<Item = KeyValue> {
        let (evidence, reason) = match self.why {
            Ok(evidence) => (Some(evidence.as_str()), None),
            Err(NoParent::Orphan(reason)) => (Some("none"), Some(reason.as_str())),
            Err(NoParent::Begins) => (None, None),
        };
        let evidence = evidence.map(|name| KeyValue::new(semconv::PITVIPER_PARENT_EVIDENCE, name));
        evidence.into_iter().chain(reason.map(|name| KeyValue::new(semconv::PITVIPER_ORPHAN_REASON, name)))
    }
}

struct Record {
    span_id: SpanId,
    server: bool,
    opened_ns: u64,
    start: SystemTime,
    /// `None` while it is not known whether there is a parent.
    parent: Option<ParentSpan>,
    /// The server exchange of the same process that is the parent.
    above: Option<ExchangeKey>,
    trace: Option<Trace>,
    /// Exchanges whose parent this is, while the trace is not known.
    waiting: Vec<ExchangeKey>,
    finished: Option<Finished>,
    over_ns: Option<u64>,
    place: Place,
    /// There are profile samples of it.
    profiled: bool,
}

/// The trace of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceOf {
    /// Not known yet.
    Open,
    /// Its own span.
    Known(SpanContext),
    /// It has none: it is not known any more, turned out to be no exchange, or its trace is not sampled.
    None,
}

impl Record {
    /// Its span is on its way, or is not wanted.
    fn left(&self) -> bool {
        self.over_ns.is_some() && self.finished.is_none()
    }
}

impl Record {
    /// Why it has no parent, when the one that it was to have is gone.
    fn parent_lost(&self) -> NoParent {
        if self.server { NoParent::Begins } else { NoParent::Orphan(Orphan::ParentLost) }
    }
}

/// What is known of an exchange at its end.
pub struct Finished {
    /// Whose span it is.
    pub service: Arc<Service>,
    /// All of it but ids and times.
    pub parts: SpanParts,
    /// When its last byte moved.
    pub end: SystemTime,
    /// What happened in it.
    pub events: Vec<Event>,
    /// Spans that it has to do with.
    pub links: Vec<Link>,
}

/// The spans of a process and what is above them, those of unsampled traces included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Spans with a parent, by evidence.
    pub edges: Tally<Evidence>,
    /// Client spans without a parent, by reason.
    pub orphans: Tally<Orphan>,
    /// Server spans that begin a trace.
    pub roots: u64,
}

impl Links {
    fn count(&mut self, parent: ParentSpan) {
        match parent.why {
            Ok(evidence) => self.edges.count(evidence),
            Err(NoParent::Orphan(reason)) => self.orphans.count(reason),
            Err(NoParent::Begins) => self.roots += 1,
        }
    }
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
    /// Server spans that had left when the first of their profile samples was known to be theirs.
    pub late_profiles: u64,
    /// What is above the spans of all processes.
    pub links: Links,
}

/// Spans that wait for their server exchange.
struct Held {
    /// When the first of them was finished, CLOCK_MONOTONIC nanoseconds.
    since_ns: u64,
    spans: Vec<(FinishedSpan, ParentSpan)>,
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

    /// A server exchange has its span, or goes on for so long that what was done in it waits no more.
    fn let_go(&mut self, key: ExchangeKey) {
        for (span, parent) in self.held.remove(&key).map(|held| held.spans).unwrap_or_default() {
            self.leave(span, parent);
        }
    }

    /// A server exchange will have no span: what was done in it has no parent.
    fn abandon(&mut self, key: ExchangeKey) {
        for (mut span, _) in self.held.remove(&key).map(|held| held.spans).unwrap_or_default() {
            let parent = ParentSpan::none(NoParent::Orphan(Orphan::ParentLost));
            (span.data.parent_span_id, span.data.parent_span_is_remote) = (parent.id, parent.remote);
            self.leave(span, parent);
        }
    }

    fn leave(&mut self, mut span: FinishedSpan, parent: ParentSpan) {
        if self.show_evidence {
            span.data.attributes.extend(parent.attributes());
        }
        self.count(&span.service, parent);
        self.ready.push(span);
    }

    fn count(&mut self, service: &Arc<Service>, parent: ParentSpan) {
        let (_, above) =
            self.links.entry(service.pid).or_insert_with(|| (Arc::clone(service), Links::default()));
        above.count(parent);
        self.stats.links.count(parent);
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

    fn insert(&mut self, key: ExchangeKey, opened_ns: u64, start: SystemTime, server: bool, place: Place) {
        let record = Record {
            span_id: self.ids.new_span_id(),
            server,
            opened_ns,
            start,
            parent: None,
            above: None,
            trace: None,
            waiting: Vec::new(),
            finished: None,
            over_ns: None,
            place,
            profiled: false,
        };
        self.records.insert(key, record);
    }

    /// A message was taken that `sender` has sent.
    fn taken_from(&mut self, key: ExchangeKey, sender: Sender) {
        let parent = match sender.span {
            Sent::By(client) => Parent::Exchange(client, Evidence::Message),
            Sent::Within(context) => Parent::Remote(context, Evidence::Message),
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
        if self.decide(server, Parent::Exchange(client, Evidence::Connection)) {
            self.stats.joined += 1;
        }
    }

    /// Sets a parent that was open, and spreads the trace id as far as it is known now.
    fn decide(&mut self, key: ExchangeKey, parent: Parent) -> bool {
        let Some(lost) =
            self.records.get(&key).filter(|record| record.parent.is_none()).map(Record::parent_lost)
        else {
            return false;
        };
        let above = match parent {
            Parent::Exchange(above, _) if self.records.get(&above).is_some_and(|above| above.server) => {
                Some(above)
            }
            _ => None,
        };
        let (span, trace) = match parent {
            Parent::None(why) => (ParentSpan::none(why), Some(self.new_trace())),
            Parent::Remote(context, evidence) => {
                let id = context.trace_id();
                let remote = ParentContext { sampled: context.is_sampled(), remote: true };
                let sampled = self.sampler.should_sample(id, Some(remote));
                let trace = Trace { id, sampled, state: context.trace_state().clone() };
                (ParentSpan { id: context.span_id(), remote: true, why: Ok(evidence) }, Some(trace))
            }
            Parent::Exchange(parent, evidence) => match self.records.get_mut(&parent) {
                Some(parent) => {
                    if parent.trace.is_none() {
                        parent.waiting.push(key);
                    }
                    // A client exchange below a server exchange is the same process's; the reverse crosses processes.
                    let span = ParentSpan { id: parent.span_id, remote: !parent.server, why: Ok(evidence) };
                    (span, parent.trace.clone())
                }
                None => (ParentSpan::none(lost), Some(self.new_trace())),
            },
        };
        if let Some(record) = self.records.get_mut(&key) {
            record.parent = Some(span);
            record.above = above;
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
            // In the order of their beginnings: those of a pipeline begin and end at the same times.
            next.extend(record.waiting.drain(..).rev());
            self.release(key);
        }
    }

    /// Lets a span leave if it is finished and its trace is known.
    fn release(&mut self, key: ExchangeKey) {
        let Some(record) = self.records.get_mut(&key) else { return };
        let (Some(trace), Some(parent)) = (&record.trace, record.parent) else { return };
        let Some(Finished { service, parts, end, events, links: related }) = record.finished.take() else {
            return;
        };
        let (trace, span_id, start, server, profiled) =
            (trace.clone(), record.span_id, record.start, record.server, record.profiled);
        let (above, over_ns) = (record.above, record.over_ns.unwrap_or(record.opened_ns));
        let Place { join, message, pid: _ } = std::mem::take(&mut record.place);
        if server {
            self.gone.push_back((over_ns, key));
        } else {
            self.records.remove(&key);
        }
        self.joins.forget(join, key);
        let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        let context = |id| SpanContext::new(trace.id, id, flags, false, trace.state.clone());
        let mut links = SpanLinks::default();
        links.links = related;
        match message {
            Some(message) if !server => self.messages.left(message, key, context(span_id)),
            Some(_) if parent.id != SpanId::INVALID => {
                links.links.push(Link::with_context(context(parent.id)));
            }
            _ => {}
        }
        if !trace.sampled {
            self.count(&service, parent);
            self.stats.unsampled += 1;
            return;
        }
        let SpanParts { name, kind, mut attributes, status } = parts;
        let mut happened = SpanEvents::default();
        happened.events = events;
        if profiled {
            attributes.push(KeyValue::new(semconv::PYROSCOPE_PROFILE_ID, span_id.to_string()));
        }
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
            events: happened,
            links,
            status,
            instrumentation_scope: super::scope(),
        };
        let span = FinishedSpan { service, data };
        // A server exchange whose end was lost, or that turns out to be none, is no span, and nobody's parent.
        let goes_on = |above: &ExchangeKey| self.records.get(above).is_some_and(|above| !above.left());
        match above.filter(goes_on) {
            Some(above) if self.held.len() < MOST_HELD => {
                let held = self.held.entry(above);
                held.or_insert_with(|| Held { since_ns: over_ns, spans: Vec::new() })
                    .spans
                    .push((span, parent));
            }
            _ => self.leave(span, parent),
        }
        if server {
            self.let_go(key);
        }
    }
}

#[cfg(test)]
#[path = "assembly_tests.rs"]
mod tests;
