//! The verdict on one operation, from what is known now.

use std::rc::Rc;

use super::exchange::Exchange;
use super::handover::{Passage, Way};
use super::lineage::{Node, Prior, Proof};
use super::{Evidence, ExchangeKey, Stats};

/// A client exchange that waits for its owner.
pub(super) struct Operation {
    pub(super) key: ExchangeKey,
    pub(super) time: u64,
    /// Where it happened; `None`: an event-loop thread outside every context.
    pub(super) node: Option<Rc<Node>>,
    /// The exchange that its thread, which runs no event loop, was serving.
    pub(super) serving: Option<Rc<Exchange>>,
}

/// What can be said now.
pub(super) enum Judgement {
    /// This, and nothing later can change it.
    Final(Option<(ExchangeKey, Evidence)>),
    /// This, unless an answer that is still to come proves otherwise.
    Tentative(Option<(Rc<Exchange>, Evidence)>),
    /// Nothing before this time.
    Later(u64),
}

/// Applies the owner rule.
pub(super) fn judge(operation: &Operation, stats: &mut Stats) -> Judgement {
    let Some(node) = &operation.node else { return Judgement::Final(None) };
    let own = |exchange: &Rc<Exchange>, way: &Way<'_>, evidence| match way.leads_to(exchange) {
        Passage::Open if !exchange.long_over(operation.time) => {
            Judgement::Final(Some((exchange.key, way.evidence(evidence))))
        }
        Passage::Open | Passage::Closed => Judgement::Final(None),
        Passage::Until(time) => Judgement::Later(time),
    };
    let mut way = Way::default();
    let mut tentative = None;
    let mut time = operation.time;
    for node in node.lineage() {
        match node.proof(time) {
            Proof::Of(exchange) => return own(&exchange, &way, Evidence::Response),
            Proof::Ambiguous => return Judgement::Final(None),
            Proof::None => {}
        }
        match node.prior(time) {
            Some((exchange, Prior::Confirmed)) if exchange.covers(time) => {
                return own(&exchange, &way, Evidence::Reading);
            }
            Some((_, Prior::Refuted)) => {
                stats.conflicts += 1;
                node.drop_prior();
            }
            Some((exchange, Prior::Confirmed | Prior::Open)) if tentative.is_none() => {
                let led = matches!(way.leads_to(&exchange), Passage::Open);
                tentative = led.then(|| (exchange, way.evidence(Evidence::Reading)));
            }
            _ => {}
        }
        time = node.born();
        way.pass(node);
    }
    // The thread's exchange was answered elsewhere, or it would be proof: then it says nothing.
    let serving = operation.serving.as_ref().filter(|exchange| exchange.answered.get().is_none());
    let tentative = tentative.or_else(|| serving.map(|exchange| (Rc::clone(exchange), Evidence::Thread)));
    Judgement::Tentative(tentative.filter(|(exchange, _)| !exchange.long_over(operation.time)))
}
