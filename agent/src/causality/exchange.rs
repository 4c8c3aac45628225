//! A server exchange as the owner rule sees it: three times.

use std::cell::Cell;

use super::ExchangeKey;

/// A request that was read, and the progress of its response.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) key: ExchangeKey,
    pub(super) connection: u64,
    /// The thread that has read it does nothing else until it has answered, whatever contexts and loops it runs.
    pub(super) exclusive: bool,
    /// First byte of the request.
    pub(super) start: u64,
    /// First byte of the response.
    pub(super) answered: Cell<Option<u64>>,
    /// Last byte of the response, or whatever ended the exchange.
    pub(super) over: Cell<Option<u64>>,
}

impl Exchange {
    pub(super) fn new(key: ExchangeKey, connection: u64, exclusive: bool, start: u64) -> Self {
        Self { key, connection, exclusive, start, answered: Cell::new(None), over: Cell::new(None) }
    }

    /// Whether a context that wrote the response was at work on this exchange at `time`. A response that is still
    /// being sent covers all times so far.
    pub(super) fn covers(&self, time: u64) -> bool {
        self.start <= time && self.over.get().is_none_or(|over| time <= over)
    }

    /// Whether the exchange was over, for so long that work in its lineage is hardly its own, at `time`.
    pub(super) fn long_over(&self, time: u64) -> bool {
        const LONG_NS: u64 = 30_000_000_000;
        self.over.get().is_some_and(|over| time > over.saturating_add(LONG_NS))
    }
}
