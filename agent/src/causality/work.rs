//! Pieces of work that were handed over, and whether they are part of the exchange in whose course that happened.
//!
//! Work that does not end may be everybody's, like the sender loop of some client library that the first request happened to
//! start. So a piece of work counts as part of a request only if it ended by the end of that request, or shortly after.

use std::cell::Cell;

use super::Evidence;
use super::exchange::Exchange;
use super::lineage::Node;

/// The record of an end may be on its way for so long.
const SLACK_NS: u64 = 50_000_000;
/// While a response is being sent, work that is part of it may not have ended. It is waited for for so long.
const STREAM_WAIT_NS: u64 = 10_000_000_000;

/// A piece of work that was handed over.
#[derive(Debug)]
pub(super) struct Work {
    /// When it was taken up.
    begun: u64,
    /// How long after the request it may end.
    lingers: u64,
    ended: Cell<Option<u64>>,
}

impl Work {
    pub(super) fn new(begun: u64, lingers: u64) -> Self {
        Self { begun, lingers, ended: Cell::new(None) }
    }

    /// It ended.
    pub(super) fn end(&self, ktime_ns: u64) {
        self.ended.set(Some(ktime_ns));
    }

    /// Whether it is part of an exchange in whose course it was handed over.
    fn is_part_of(&self, exchange: &Exchange) -> Passage {
        match (self.ended.get(), exchange.over.get()) {
            (Some(_), None) => Passage::Open,
            (ended, Some(over)) => {
                let latest = over.max(self.begun).saturating_add(self.lingers);
                match ended {
                    Some(ended) if ended <= latest => Passage::Open,
                    Some(_) => Passage::Closed,
                    None => Passage::Until(latest.saturating_add(SLACK_NS)),
                }
            }
            (None, None) => match exchange.answered.get() {
                Some(answered) => Passage::Until(answered.saturating_add(STREAM_WAIT_NS)),
                None => Passage::Closed,
            },
        }
    }
}

/// The handovers that lie between an operation and a node further up its lineage.
#[derive(Clone, Default)]
pub(super) struct Way<'a>(Vec<&'a Work>);

/// Whether what is found further up holds for the operation.
pub(super) enum Passage {
    /// It does.
    Open,
    /// It does not.
    Closed,
    /// To be asked again at this time.
    Until(u64),
}

impl<'a> Way<'a> {
    /// Goes on to the node from which this one comes.
    pub(super) fn pass(&mut self, node: &'a Node) {
        self.0.extend(node.work_handed());
    }

    /// Whether the operation is part of an exchange that was found here.
    pub(super) fn leads_to(&self, exchange: &Exchange) -> Passage {
        let mut latest = None;
        for work in &self.0 {
            match work.is_part_of(exchange) {
                Passage::Open => {}
                Passage::Closed => return Passage::Closed,
                Passage::Until(time) => latest = latest.max(Some(time)),
            }
        }
        latest.map_or(Passage::Open, Passage::Until)
    }

    /// The evidence found here, as it holds for the operation.
    pub(super) fn evidence(&self, found: Evidence) -> Evidence {
        if self.0.is_empty() { found } else { Evidence::Handover }
    }
}
