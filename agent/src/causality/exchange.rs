//! A server exchange as the owner rule sees it: three times, and who read the request.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::ExchangeKey;
use super::lineage::Node;

/// Work in the lineage of an exchange that has been over for longer is nobody's. A context that has lived on for longer is
/// not taken for one that works for that exchange only.
pub(super) const LONG_NS: u64 = 30_000_000_000;

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
    /// Some of its bytes were lost: its end is a guess, and it may be that it was answered unseen.
    pub(super) lost: Cell<bool>,
    /// What read the end of its head; nothing for an event loop outside every context.
    reader: Weak<Node>,
    /// The first context that was copied after the read, unless the reader itself copied it.
    first_copy: RefCell<Weak<Node>>,
}

impl Exchange {
    pub(super) fn new(
        key: ExchangeKey,
        connection: u64,
        exclusive: bool,
        start: u64,
        reader: Option<&Rc<Node>>,
    ) -> Self {
        Self {
            key,
            connection,
            exclusive,
            start,
            answered: Cell::new(None),
            over: Cell::new(None),
            lost: Cell::new(false),
            reader: reader.map(Rc::downgrade).unwrap_or_default(),
            first_copy: RefCell::default(),
        }
    }

    /// Whether a context that wrote the response was at work on this exchange at `time`. A response that is still
    /// being sent covers all times so far.
    pub(super) fn covers(&self, time: u64) -> bool {
        self.start <= time && self.over.get().is_none_or(|over| time <= over)
    }

    /// Whether the exchange was over at `time`.
    pub(super) fn over_by(&self, time: u64) -> bool {
        self.over.get().is_some_and(|over| time > over)
    }

    /// Whether the exchange was over, for so long that work in its lineage is hardly its own, at `time`.
    pub(super) fn long_over(&self, time: u64) -> bool {
        self.over_by(time.saturating_sub(LONG_NS))
    }

    /// Whether it is over without an answer: the client went away, or the answer was lost.
    pub(super) fn given_up(&self) -> bool {
        self.answered.get().is_none() && self.over.get().is_some()
    }

    pub(super) fn was_read_by(&self, node: &Node) -> bool {
        std::ptr::eq(self.reader.as_ptr(), node)
    }

    /// Takes note of a copy that the reader did not make itself; only the first one counts.
    pub(super) fn note_copy(&self, node: &Rc<Node>) {
        let mut first = self.first_copy.borrow_mut();
        if first.strong_count() == 0 {
            *first = Rc::downgrade(node);
        }
    }

    pub(super) fn first_copy(&self) -> Option<Rc<Node>> {
        self.first_copy.borrow().upgrade()
    }
}
