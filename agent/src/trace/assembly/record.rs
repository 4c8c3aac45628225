//! What is remembered of an exchange until its span can leave, and what is counted.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Event, Link, SpanContext, SpanId, TraceId, TraceState};

use crate::causality::{Evidence, ExchangeKey, Orphan, Tally};
use crate::process::resource::Service;
use crate::trace::join::Place;
use crate::trace::{FinishedSpan, SpanParts, semconv};

/// The trace that a span is part of.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    pub(super) id: TraceId,
    pub(super) sampled: bool,
    pub(super) state: TraceState,
}

/// Who the parent of an exchange is.
pub(super) enum Parent {
    /// Nobody.
    None(NoParent),
    /// A span that has no record here.
    Remote(SpanContext, Evidence),
    /// Another exchange.
    Exchange(ExchangeKey, Evidence),
}

/// Why there is no parent.
#[derive(Clone, Copy)]
pub(super) enum NoParent {
    /// A request from somewhere that is not observed: a trace begins, and nothing is missing.
    Begins,
    /// Work that some request may have caused.
    Orphan(Orphan),
}

/// The parent as a span says it.
#[derive(Clone, Copy)]
pub(super) struct ParentSpan {
    pub(super) id: SpanId,
    pub(super) remote: bool,
    pub(super) why: Result<Evidence, NoParent>,
}

impl ParentSpan {
    pub(super) fn none(why: NoParent) -> Self {
        Self { id: SpanId::INVALID, remote: false, why: Err(why) }
    }

    /// What `--parent-evidence` adds to the span.
    pub(super) fn attributes(&self) -> impl Iterator<Item = KeyValue> {
        let (evidence, reason) = match self.why {
            Ok(evidence) => (Some(evidence.as_str()), None),
            Err(NoParent::Orphan(reason)) => (Some("none"), Some(reason.as_str())),
            Err(NoParent::Begins) => (None, None),
        };
        let evidence = evidence.map(|name| KeyValue::new(semconv::PITVIPER_PARENT_EVIDENCE, name));
        evidence.into_iter().chain(reason.map(|name| KeyValue::new(semconv::PITVIPER_ORPHAN_REASON, name)))
    }
}

pub(super) struct Record {
    pub(super) span_id: SpanId,
    pub(super) server: bool,
    pub(super) opened_ns: u64,
    pub(super) start: SystemTime,
    /// `None` while it is not known whether there is a parent.
    pub(super) parent: Option<ParentSpan>,
    /// The server exchange of the same process that is the parent.
    pub(super) above: Option<ExchangeKey>,
    pub(super) trace: Option<Trace>,
    /// Exchanges whose parent this is, while the trace is not known.
    pub(super) waiting: Vec<ExchangeKey>,
    pub(super) finished: Option<Finished>,
    pub(super) over_ns: Option<u64>,
    pub(super) place: Place,
    /// There are profile samples of it.
    pub(super) profiled: bool,
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
    pub(super) fn left(&self) -> bool {
        self.over_ns.is_some() && self.finished.is_none()
    }

    /// Why it has no parent, when the one that it was to have is gone.
    pub(super) fn parent_lost(&self) -> NoParent {
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
    pub(super) fn count(&mut self, parent: ParentSpan) {
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
pub(super) struct Held {
    /// When the first of them was finished, CLOCK_MONOTONIC nanoseconds.
    pub(super) since_ns: u64,
    pub(super) spans: Vec<(FinishedSpan, ParentSpan)>,
}
