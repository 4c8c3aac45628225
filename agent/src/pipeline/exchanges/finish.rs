//! Exchanges that are over, to spans: what each protocol says of them, and when they leave.

use std::sync::Arc;

use super::follow::endpoints;
use super::{Exchanges, Open};
use crate::causality::ExchangeKey;
use crate::connection::{Mark, Peers};
use crate::pipeline::timing::Held;
use crate::process::resource::Service;
use crate::protocol::{Outcome, Role};
use crate::trace;
use crate::trace::assembly::Finished;

/// A server span waits no longer than this for the samples of its request: a worker thread's are known when its work has ended.
const SAMPLES_WAIT_NS: u64 = 250_000_000;

/// An exchange that is over and waits for its service to be looked up.
pub(in super::super) struct Closed {
    pub(super) open: Open,
    pub(super) peers: Peers,
    pub(in super::super) connection: u64,
    pub(in super::super) last: Mark,
    pub(in super::super) outcome: Outcome,
}

impl Exchanges {
    /// Finds out whose the exchanges are that are over, by pid and time, while it can be found out.
    pub(in super::super) fn identify(
        &mut self,
        now_ns: u64,
        mut service: impl FnMut(u32, u64) -> Option<Arc<Service>>,
    ) {
        let closed = std::mem::take(&mut self.closed);
        for closed in self.greetings.sift(closed, now_ns) {
            match service(closed.open.pid, closed.open.since_ns) {
                Some(service) => self.finish(closed, service),
                None => self.discard(closed.open.key),
            }
        }
    }

    fn finish(&mut self, closed: Closed, service: Arc<Service>) {
        let Closed { open, peers, connection: _, last, outcome } = closed;
        let endpoints = endpoints(&peers, open.role);
        let parts = match outcome {
            Outcome::Http(exchange) => trace::http::span_parts(&exchange, open.role, &endpoints),
            Outcome::Postgres(exchange) => trace::postgres::span_parts(&exchange, open.role, &endpoints),
            Outcome::Redis(exchange) if exchange.is_worth_a_span() => match &exchange.message {
                Some(message) => trace::celery::producer(message, &exchange, &endpoints),
                None => trace::redis::span_parts(&exchange, open.role, &endpoints),
            },
            Outcome::Celery(run) => trace::celery::consumer(&run),
            Outcome::Redis(exchange) => {
                self.housekeeping += u64::from(exchange.housekeeping);
                self.discard(open.key);
                return;
            }
            Outcome::Discarded => {
                self.discard(open.key);
                return;
            }
        };
        let end = self.clock.wall(last.ktime_ns);
        let finished = Finished { service, parts, end, events: Vec::new(), links: Vec::new() };
        if open.role == Role::Client {
            self.assembly.finished(open.key, last.ktime_ns, finished);
        } else if let Some(timing) = &mut self.timing {
            let Open { key, pid, tid, first_ns, .. } = open;
            let (over_ns, asked) = (last.ktime_ns, self.last_key);
            timing.hold(Held { key, pid, tid, first_ns, over_ns, asked, finished });
        } else if self.questions.is_empty() {
            self.assembly.finished(open.key, last.ktime_ns, finished);
        } else {
            // Some of the samples whose request is not known yet may be its own.
            self.unhurried.push_back((open.key, last.ktime_ns, finished));
        }
    }

    /// Lets server spans go that have waited for what they have to say: the samples of their requests, where the time went.
    pub(super) fn let_go(&mut self, now_ns: u64) {
        let waited = |(_, over_ns, _): &mut (ExchangeKey, u64, Finished)| {
            now_ns.saturating_sub(*over_ns) >= SAMPLES_WAIT_NS
        };
        while let Some((key, over_ns, finished)) = self.unhurried.pop_front_if(waited) {
            self.assembly.finished(key, over_ns, finished);
        }
        self.release_timed(now_ns);
    }

    pub(super) fn discard(&mut self, key: ExchangeKey) {
        if let Some(timing) = &mut self.timing {
            timing.discarded(key);
        }
        self.assembly.discarded(key);
    }
}
