//! Contexts and their parents, each a generation of an address that the interpreter recycles.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use pitviper_ebpf::abi::Task;

use super::exchange::Exchange;
use super::work::Work;

/// A longer lineage is cut: what lies behind is a chain of timers that start one another.
const DEEPEST: u16 = 64;
/// Responses that are remembered of one context, the latest ones. A worker thread may write this many between two
/// rounds of settling, see [`super::ROUND`].
const MOST_PROOFS: usize = super::ROUND;

/// One generation of a `contextvars.Context`, or a thread that has none, or one piece of work of such a thread.
#[derive(Debug, Default)]
pub(super) struct Node {
    parent: Option<Rc<Node>>,
    /// The work that it is, if it was handed over by its parent.
    handed: Option<Work>,
    depth: u16,
    /// When it was made, or the work left its parent; 0 if nothing was seen of that.
    born: u64,
    /// On which thread and in which turn of its loop.
    born_in: Option<(u32, u32)>,
    /// On which thread and in which turn it was deallocated, or its address was used again.
    gone: Cell<Option<(u32, u32)>>,
    /// Its first operation.
    worked: Cell<Option<u64>>,
    /// It went on working when the exchange was over in which it was made.
    outlived: Cell<bool>,
    /// Exchanges whose responses were written in it, or below it if it was made for them.
    proofs: RefCell<VecDeque<Rc<Exchange>>>,
    prior: RefCell<Option<(Rc<Exchange>, Window)>>,
    confirmed: Cell<bool>,
}

/// How a context came to be copied between the reading of a request and the next turn of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// By what read the request: the callback of its connection, or a thread without a loop.
    Reader,
    /// By an event loop that reads outside of the contexts of its callbacks: other callbacks run in the same turn.
    Loop,
}

impl Node {
    /// A context without a parent. `born` is 0 if it was found, not seen to be made.
    pub(super) fn root(born: u64) -> Rc<Self> {
        Rc::new(Self { born, ..Self::default() })
    }

    /// A copy of `parent`.
    pub(super) fn child(parent: &Rc<Self>, born: u64, task: Task) -> Rc<Self> {
        Self::below(parent, born, task, None)
    }

    /// Work that left `parent` at the time `born`, by the hand of `task`.
    pub(super) fn handed(parent: &Rc<Self>, born: u64, task: Task, work: Work) -> Rc<Self> {
        Self::below(parent, born, task, Some(work))
    }

    fn below(parent: &Rc<Self>, born: u64, task: Task, handed: Option<Work>) -> Rc<Self> {
        if parent.depth >= DEEPEST {
            return Self::root(born);
        }
        let (depth, parent) = (parent.depth + 1, Some(Rc::clone(parent)));
        let born_in = Some((task.tid, task.turn));
        Rc::new(Self { parent, handed, depth, born, born_in, ..Self::default() })
    }

    /// This context, the one that it was copied from, and so on.
    pub(super) fn lineage(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| node.parent.as_deref())
    }

    pub(super) fn born(&self) -> u64 {
        self.born
    }

    /// The work that it is, if it was handed over by its parent.
    pub(super) fn work_handed(&self) -> Option<&Work> {
        self.handed.as_ref()
    }

    pub(super) fn end(&self, task: Task) {
        self.gone.set(Some((task.tid, task.turn)));
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.get().is_some()
    }

    /// It made an operation.
    pub(super) fn work(&self, time: u64) {
        self.worked.set(self.worked.get().or(Some(time)));
    }

    /// Whether it had done its work when `child` was copied from it: it ended in the same turn of the loop or in the next
    /// one, in which asyncio lets go of a task that has returned.
    pub(super) fn handed_on(&self, child: &Self) -> bool {
        let (Some((tid, turn)), Some((gone_tid, gone_turn))) = (child.born_in, self.gone.get()) else {
            return false;
        };
        let worked = self.worked.get().is_some_and(|worked| worked < child.born);
        worked && turn != 0 && gone_tid == tid && gone_turn.wrapping_sub(turn) <= 1
    }

    pub(super) fn outlive(&self) {
        self.outlived.set(true);
    }

    pub(super) fn has_outlived(&self) -> bool {
        self.outlived.get()
    }

    /// Whether it, or one that it descends from, has to do with an exchange.
    pub(super) fn has_evidence(&self) -> bool {
        self.lineage().any(|node| node.prior.borrow().is_some() || !node.proofs.borrow().is_empty())
    }

    pub(super) fn set_prior(&self, exchange: &Rc<Exchange>, window: Window) {
        *self.prior.borrow_mut() = Some((Rc::clone(exchange), window));
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed.get()
    }

    /// It wrote the first byte of the response, which is proof for it and for those above it that were made since the
    /// request was read. Its own priors for that exchange, and those above it, are confirmed.
    pub(super) fn prove(&self, exchange: &Rc<Exchange>) {
        for node in self.lineage() {
            if std::ptr::eq(node, self) || node.born >= exchange.start {
                let mut proofs = node.proofs.borrow_mut();
                if proofs.len() >= MOST_PROOFS {
                    proofs.pop_front();
                }
                proofs.push_back(Rc::clone(exchange));
            }
            if node.prior.borrow().as_ref().is_some_and(|(prior, _)| Rc::ptr_eq(prior, exchange)) {
                node.confirmed.set(true);
            }
        }
    }

    /// The exchange that this context was at work on at `time`, by its responses. `leftovers`: contexts of this process
    /// are known to go on with a request that they have answered.
    pub(super) fn proof(&self, time: u64, leftovers: bool) -> Proof {
        let proofs = self.proofs.borrow();
        // Of several, the one answered first after `time`; else one whose response was still going on.
        let answered_after = |exchange: &&Rc<Exchange>| exchange.answered.get().is_some_and(|at| at >= time);
        let covering = || proofs.iter().filter(|exchange| exchange.covers(time));
        let Some(found) = covering()
            .filter(answered_after)
            .min_by_key(|exchange| exchange.answered.get())
            .or_else(|| covering().max_by_key(|exchange| exchange.start))
        else {
            return self.rest(time, &proofs);
        };
        // A request that had been waiting while this context was busy with an earlier one: at `time` it may have been
        // at work on the rest of the earlier one just as well. One that it reads itself does not wait.
        let unsure = proofs.iter().any(|earlier| {
            let end = earlier.over.get().or(earlier.answered.get());
            !Rc::ptr_eq(earlier, found)
                && earlier.answered.get() < found.answered.get()
                && earlier.answered.get().is_some_and(|at| at <= time)
                && earlier.start <= found.start
                && (end.is_some_and(|end| found.start <= end) || (leftovers && !found.was_read_by(self)))
        });
        if unsure { Proof::Ambiguous } else { Proof::Of(Rc::clone(found)) }
    }

    /// The same when none of its exchanges covers `time`.
    fn rest(&self, time: u64, proofs: &VecDeque<Rc<Exchange>>) -> Proof {
        let mut earlier = proofs.iter().filter(|exchange| exchange.over_by(time));
        match (earlier.next(), proofs.len()) {
            // It was made for this request, and has answered no other.
            (Some(only), 1) if only.start <= self.born => Proof::After(Rc::clone(only)),
            (Some(_), _) => Proof::Between { next: proofs.iter().any(|exchange| exchange.start > time) },
            (None, _) => Proof::None,
        }
    }

    /// The exchange in whose reading window it was copied, as far as that says something about `time`, and what the
    /// response said about it.
    pub(super) fn prior(&self, time: u64) -> Option<(Rc<Exchange>, Prior)> {
        let (exchange, window) = self.prior.borrow().clone()?;
        // It has gone on to another request since, or is another context at the same address.
        let later = |proof: &Rc<Exchange>| proof.start > exchange.start && proof.start <= time;
        if self.proofs.borrow().iter().any(later) {
            return None;
        }
        let state = match (self.confirmed.get(), exchange.answered.get()) {
            (true, _) => Prior::Confirmed,
            (false, Some(_)) => Prior::Refuted,
            (false, None) => Prior::Open(window),
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
    /// It had answered this exchange, for which alone it was made.
    After(Rc<Exchange>),
    /// It had answered some exchange and, as far as is known, not begun with another.
    Between {
        /// It has answered one since that was read later.
        next: bool,
    },
}

/// What has become of a prior.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Prior {
    /// The exchange has not been answered.
    Open(Window),
    /// It was answered in this context or below it.
    Confirmed,
    /// It was answered elsewhere.
    Refuted,
}
