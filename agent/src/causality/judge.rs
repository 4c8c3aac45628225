//! The verdict on one operation, from what is known now.

use std::cell::Cell;
use std::rc::Rc;

use super::exchange::Exchange;
use super::lineage::{Node, Prior, Proof, Window};
use super::work::Way;
use super::{Evidence, ExchangeKey, Orphan, Stats};

/// A client exchange that waits for its owner.
pub(super) struct Operation {
    pub(super) key: ExchangeKey,
    pub(super) time: u64,
    /// Where it happened; `None`: an event-loop thread outside every context.
    pub(super) node: Option<Rc<Node>>,
    /// The exchange that its thread, which runs no event loop, was serving.
    pub(super) serving: Option<Rc<Exchange>>,
    /// The thread serves one exchange at a time and this is no other context's: there is nothing to wait for.
    pub(super) certain: bool,
    /// It is a client exchange, and not only a question.
    pub(super) counted: bool,
}

/// How the service of this process works, as its requests have shown.
#[derive(Default)]
pub(super) struct Habits {
    /// A context that serves several requests has worked on after a response.
    pub(super) leftovers: Cell<bool>,
    /// The first copy after a read has turned out to be the handler.
    pub(super) first_copy_handles: Cell<bool>,
    /// The first copy after a read has turned out to be something else.
    pub(super) first_copy_strays: Cell<bool>,
}

/// An exchange that an operation may be part of.
pub(super) struct Claim<'a> {
    pub(super) exchange: Rc<Exchange>,
    pub(super) evidence: Evidence,
    /// The context that left the exchange's own one, if it or one below it that led to the operation is still there.
    pub(super) living: Option<&'a Node>,
    /// When one on the way from there to the operation was made by another that was about to end, having done its own work:
    /// a client library that takes the next one's call from its queue does so.
    pub(super) handed_on: Option<u64>,
    /// The handovers between the exchange and the operation.
    pub(super) way: Way<'a>,
}

impl Claim<'_> {
    /// The thread itself is at work on it.
    fn by_thread(exchange: Rc<Exchange>, evidence: Evidence) -> Self {
        Self { exchange, evidence, living: None, handed_on: None, way: Way::default() }
    }

    pub(super) fn owner(&self) -> (ExchangeKey, Evidence) {
        (self.exchange.key, self.evidence)
    }
}

/// What can be said now.
pub(super) enum Judgement<'a> {
    /// Nobody's, and nothing later can change it.
    Orphan(Orphan),
    /// This one's; no answer that is still to come can change it.
    Proven(Claim<'a>),
    /// This one's or nobody's, unless an answer that is still to come proves otherwise.
    Tentative(Result<Claim<'a>, Orphan>),
    /// Nobody's, unless it is part of an exchange whose answer is still to come; else the context that it happened in works
    /// on after its responses, which is sure if it has answered the `next` exchange.
    Leftover { next: bool },
}

/// Applies the owner rule.
pub(super) fn judge<'a>(operation: &'a Operation, habits: &Habits, stats: &mut Stats) -> Judgement<'a> {
    if let Some(exchange) = operation.serving.as_ref().filter(|_| operation.certain) {
        let exchange = Rc::clone(exchange);
        return Judgement::Proven(Claim::by_thread(exchange, Evidence::Job));
    }
    let Some(node) = &operation.node else { return Judgement::Orphan(Orphan::OutsideContext) };
    // If the thread's exchange was answered elsewhere, or it would be proof, it says nothing.
    let serving = operation.serving.as_ref().filter(|exchange| exchange.answered.get().is_none());
    let mut tentative: Option<Claim<'a>> = None;
    let mut time = operation.time;
    let mut living = false;
    let mut handed_on = None;
    let mut way = Way::default();
    let mut branch: Option<&'a Node> = None;
    for node in node.lineage() {
        let claim = |exchange, evidence| {
            let living = branch.filter(|_| living);
            Claim { exchange, evidence: way.evidence(evidence), living, handed_on, way: way.clone() }
        };
        match node.proof(time, habits.leftovers.get()) {
            Proof::Of(exchange) => return Judgement::Proven(claim(exchange, Evidence::Response)),
            Proof::Ambiguous => return Judgement::Orphan(Orphan::Ambiguous),
            Proof::After(exchange) => {
                tentative = tentative.or_else(|| Some(claim(exchange, Evidence::Response)));
                break;
            }
            Proof::Between { next } if tentative.is_none() && serving.is_none() => {
                return Judgement::Leftover { next };
            }
            Proof::Between { .. } => break,
            Proof::None => {}
        }
        match node.prior(time) {
            Some((exchange, Prior::Confirmed)) if exchange.covers(time) => {
                return Judgement::Proven(claim(exchange, Evidence::Reading));
            }
            // A question changes nothing.
            Some((_, Prior::Refuted)) if operation.counted => {
                stats.conflicts += 1;
                node.drop_prior();
            }
            Some((exchange, Prior::Open(Window::Loop))) if !habits.is_handler(&exchange, node) => {}
            Some((exchange, Prior::Confirmed | Prior::Open(_))) if tentative.is_none() => {
                tentative = Some(claim(exchange, Evidence::Reading));
            }
            _ => {}
        }
        if let Some(child) = branch
            && node.handed_on(child)
        {
            handed_on = Some(child.born());
        }
        time = node.born();
        // Work that was handed over is asked itself whether it has ended.
        living |= node.work_handed().is_none() && !node.is_gone();
        way.pass(node);
        branch = Some(node);
    }
    let serving = || {
        let exchange = Rc::clone(serving?);
        let evidence = if exchange.exclusive { Evidence::Job } else { Evidence::Thread };
        Some(Claim::by_thread(exchange, evidence))
    };
    Judgement::Tentative(tentative.or_else(serving).ok_or(Orphan::Unrelated))
}

impl Habits {
    /// Whether a context that was copied after the read of a request that was never answered is surely its handler.
    fn is_handler(&self, exchange: &Exchange, node: &Node) -> bool {
        self.first_copy_handles.get()
            && !self.first_copy_strays.get()
            && exchange.first_copy().is_some_and(|first| std::ptr::eq(Rc::as_ptr(&first), node))
    }

    /// An exchange was answered: what does that say of the first copy after its read?
    pub(super) fn learn(&self, exchange: &Exchange) {
        if let Some(first) = exchange.first_copy() {
            let habit = if first.is_confirmed() { &self.first_copy_handles } else { &self.first_copy_strays };
            habit.set(true);
        }
    }
}
