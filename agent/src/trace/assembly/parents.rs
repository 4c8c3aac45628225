//! Who the parent of an exchange is, and with that its trace.

use std::time::SystemTime;

use opentelemetry::trace::TraceState;
use opentelemetry_sdk::trace::IdGenerator as _;

use super::Assembly;
use super::record::{Parent, ParentSpan, Record, Trace};
use crate::causality::{Evidence, ExchangeKey};
use crate::trace::join::Place;
use crate::trace::messages::{Sender, Sent};
use crate::trace::sampler::ParentContext;

impl Assembly {
    pub(super) fn insert(
        &mut self,
        key: ExchangeKey,
        opened_ns: u64,
        start: SystemTime,
        server: bool,
        place: Place,
    ) {
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
    pub(super) fn taken_from(&mut self, key: ExchangeKey, sender: Sender) {
        let parent = match sender.span {
            Sent::By(client) => Parent::Exchange(client, Evidence::Message),
            Sent::Within(context) => Parent::Remote(context, Evidence::Message),
        };
        if self.decide(key, parent) {
            self.stats.joined += 1;
        }
    }

    pub(super) fn join(&mut self, client: ExchangeKey, server: ExchangeKey) {
        let Some(start) = self.records.get(&server).map(|record| record.start) else { return };
        let Some(record) = self.records.get_mut(&client) else { return };
        // Both times are taken when the calls return; the receiver may be back before the sender.
        record.start = record.start.min(start);
        if self.decide(server, Parent::Exchange(client, Evidence::Connection)) {
            self.stats.joined += 1;
        }
    }

    /// Sets a parent that was open, and spreads the trace id as far as it is known now.
    pub(super) fn decide(&mut self, key: ExchangeKey, parent: Parent) -> bool {
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

    pub(super) fn new_trace(&self) -> Trace {
        let id = self.ids.new_trace_id();
        Trace { id, sampled: self.sampler.should_sample(id, None), state: TraceState::NONE }
    }

    pub(super) fn spread(&mut self, key: ExchangeKey, trace: &Trace) {
        let mut next = vec![key];
        while let Some(key) = next.pop() {
            let Some(record) = self.records.get_mut(&key) else { continue };
            record.trace = Some(trace.clone());
            // In the order of their beginnings: those of a pipeline begin and end at the same times.
            next.extend(record.waiting.drain(..).rev());
            self.release(key);
        }
    }
}
