//! When a span leaves: finished, its trace known, and the request that it was made in known to have a span.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, SpanContext, SpanId, TraceFlags};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::Assembly;
use super::record::{Finished, Held, Links, NoParent, ParentSpan};
use crate::causality::{ExchangeKey, Orphan};
use crate::process::resource::Service;
use crate::trace::join::Place;
use crate::trace::{FinishedSpan, SpanParts, scope, semconv};

/// Requests that spans wait for; with more of them they do not wait.
const MOST_HELD: usize = 16_384;

impl Assembly {
    /// A server exchange has its span, or goes on for so long that what was done in it waits no more.
    pub(super) fn let_go(&mut self, key: ExchangeKey) {
        for (span, parent) in self.held.remove(&key).map(|held| held.spans).unwrap_or_default() {
            self.leave(span, parent);
        }
    }

    /// A server exchange will have no span: what was done in it has no parent.
    pub(super) fn abandon(&mut self, key: ExchangeKey) {
        for (mut span, _) in self.held.remove(&key).map(|held| held.spans).unwrap_or_default() {
            let parent = ParentSpan::none(NoParent::Orphan(Orphan::ParentLost));
            (span.data.parent_span_id, span.data.parent_span_is_remote) = (parent.id, parent.remote);
            self.leave(span, parent);
        }
    }

    pub(super) fn leave(&mut self, mut span: FinishedSpan, parent: ParentSpan) {
        if self.show_evidence {
            span.data.attributes.extend(parent.attributes());
        }
        self.count(&span.service, parent);
        self.ready.push(span);
    }

    pub(super) fn count(&mut self, service: &Arc<Service>, parent: ParentSpan) {
        let (_, above) =
            self.links.entry(service.pid).or_insert_with(|| (Arc::clone(service), Links::default()));
        above.count(parent);
        self.stats.links.count(parent);
    }

    /// Lets a span leave if it is finished and its trace is known.
    pub(super) fn release(&mut self, key: ExchangeKey) {
        let Some(record) = self.records.get_mut(&key) else { return };
        let (Some(trace), Some(parent)) = (&record.trace, record.parent) else { return };
        let Some(Finished { service, parts, end, events: happened, links: related }) = record.finished.take()
        else {
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
        let mut events = SpanEvents::default();
        events.events = happened;
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
            events,
            links,
            status,
            instrumentation_scope: scope(),
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
