//! Contexts and their parents, each a generation of an address that the interpreter recycles.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::exchange::Exchange;
use super::handover::Work;

/// A longer lineage is cut: what lies behind is a chain of timers that start one another.
const DEEPEST: u16 = 64;
/// Responses that are remembered of one context, the latest ones. A worker thread may write this many between two
/// rounds of settling, see [`super::ROUND`].
const MOST_PROOFS: usize = super::ROUND;

/// One generation of a `contextvars.Context`, or a thread that has none, or one piece of work of such a thread.
#[derive(Debug, Default)]
pub(super) struct Node {
    parent: Option<Rc<Node>>,
    /// The work that it is, if it was handed over.
    work: Option<Work>,
    depth: u16,
    /// When it was copied from its parent, or its work left that.
    born: u64,
    /// Exchanges whose responses it wrote.
    proofs: RefCell<VecDeque<Rc<Exchange>>>,
    prior: RefCell<Option<Rc<Exchange>>>,
    confirmed: Cell<bool>,
}

impl Node {
    /// A context of unknown origin.
    pub(super) fn root(born: u64) -> Rc<Self> {
        Rc::new(Self { born, ..Self::default() })
    }

    /// A copy of `parent`.
    pub(super) fn child(parent: &Rc<Self>, born: u64) -> Rc<Self> {
        Self::below(parent, born, None)
    }

    /// Work that left `parent` at the time `born`.
    pub(super) fn handed_over(parent: &Rc<Self>, born: u64, work: Work) -> Rc<Self> {
        Self::below(parent, born, Some(work))
    }

    fn below(parent: &Rc<Self>, born: u64, work: Option<Work>) -> Rc<Self> {
        if parent.depth >= DEEPEST {
            return Self::root(born);
        }
        let depth = parent.depth + 1;
        Rc::new(Self { parent: Some(Rc::clone(parent)), work, depth, born, ..Self::default() })
    }

    /// This context, the one that it was copied from, and so on.
    pub(super) fn lineage(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| node.parent.as_deref())
    }

    pub(super) fn born(&self) -> u64 {
        self.born
    }

    /// The work that it is, if it was handed over by its parent.
    pub(super) fn work(&self) -> Option<&Work> {
        self.work.as_ref()
    }

    /// Whether it, or one that it descends from, has to do with an exchange.
    pub(super) fn has_evidence(&self) -> bool {
        self.lineage().any(|node| node.prior.borrow().is_some() || !node.proofs.borrow().is_empty())
    }

    pub(super) fn set_prior(&self, exchange: &Rc<Exchange>) {
        *self.prior.borrow_mut() = Some(Rc::clone(exchange));
    }

    /// It wrote the first byte of the response: its own priors for that exchange, and those above it, are confirmed.
    pub(super) fn prove(&self, exchange: &Rc<Exchange>) {
        let mut proofs = self.proofs.borrow_mut();
        if proofs.len() >= MOST_PROOFS {
            proofs.pop_front();
        }
        proofs.push_back(Rc::clone(exchange));
        for node in self.lineage() {
            if node.prior.borrow().as_ref().is_some_and(|prior| Rc::ptr_eq(prior, exchange)) {
                node.confirmed.set(true);
            }
        }
    }

    /// The exchange that this context was at work on at `time`, by its responses.
    pub(super) fn proof(&self, time: u64) -> Proof {
        let proofs = self.proofs.borrow();
        // Of several, the one answered first after `time`; else one whose response was still going on.
        let answered_after = |exchange: &&Rc<Exchange>| exchange.answered.get().is_some_and(|at| at >= time);
        let covering = || proofs.iter().filter(|exchange| exchange.covers(time));
        let Some(found) = covering()
            .filter(answered_after)
            .min_by_key(|exchange| exchange.answered.get())
            .or_else(|| covering().max_by_key(|exchange| exchange.start))
        else {
            return Proof::None;
        };
        // A request that had been waiting while this context was busy with an earlier one: at `time` it may have been
        // at work on the rest of the earlier one just as well.
        let waited = proofs.iter().any(|earlier| {
            !Rc::ptr_eq(earlier, found)
                && earlier.answered.get().is_some_and(|at| at <= time)
                && earlier.start < found.start
                && earlier.over.get().or(earlier.answered.get()).is_some_and(|end| found.start <= end)
        });
        if waited { Proof::Ambiguous } else { Proof::Of(Rc::clone(found)) }
    }

    /// The exchange in whose reading window it was copied, as far as that says something about `time`, and what the
    /// response said about it.
    pub(super) fn prior(&self, time: u64) -> Option<(Rc<Exchange>, Prior)> {
        let exchange = self.prior.borrow().clone()?;
        // It has gone on to another request since, or is another context at the same address.
        let later = |proof: &Rc<Exchange>| proof.start > exchange.start && proof.start <= time;
        if self.proofs.borrow().iter().any(later) {
            return None;
        }
        let state = match (self.confirmed.get(), exchange.answered.get()) {
            (true, _) => Prior::Confirmed,
            (false, Some(_)) => Prior::Refuted,
            (false, None) => Prior::Open,
        };
        Some((exchange, state))
    }

    /// Drops a refuted prior, so that it is counted once.
    pub(super) fn drop_prior(&self) {
        *self.prior.borrow_mut() = None;
    }
}

/// What the responses of a context say of a time.
pub(super) enum Proof {
    /// Nothing.
    None,
    /// It was at work on this exchange.
    Of(Rc<Exchange>),
    /// It was at work on one of several.
    Ambiguous,
}

/// What has become of a prior.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Prior {
    /// The exchange has not been answered.
    Open,
    /// It was answered in this context or below it.
    Confirmed,
    /// It was answered elsewhere.
    Refuted,
}
