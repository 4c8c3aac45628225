//! The verdict on one operation, from what is known now.

use std::rc::Rc;

use super::exchange::Exchange;
use super::handover::{Passage, Way};
use super::lineage::{Node, Prior, Proof};
use super::{Evidence, ExchangeKey, Orphan, Owner, Stats};

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

/// What can be said now.
pub(super) enum Judgement {
    /// This, and nothing later can change it.
    Final(Owner),
    /// This, unless an answer that is still to come proves otherwise.
    Tentative(Result<(Rc<Exchange>, Evidence), Orphan>),
    /// Nothing before this time; then, that there is none.
    Later(u64),
}

/// Applies the owner rule.
pub(super) fn judge(operation: &Operation, stats: &mut Stats) -> Judgement {
    if let Some(exchange) = operation.serving.as_ref().filter(|_| operation.certain) {
        return Judgement::Final(Ok((exchange.key, Evidence::Job)));
    }
    let Some(node) = &operation.node else { return Judgement::Final(Err(Orphan::OutsideContext)) };
    let own = |exchange: &Rc<Exchange>, way: &Way<'_>, evidence| match way.leads_to(exchange) {
        Passage::Open => Judgement::Final(
            recent(exchange, operation.time).map(|()| (exchange.key, way.evidence(evidence))),
        ),
        Passage::Closed => Judgement::Final(Err(Orphan::Outlasting)),
        Passage::Until(time) => Judgement::Later(time),
    };
    let mut way = Way::default();
    let (mut tentative, mut none) = (None, Orphan::Unrelated);
    let mut time = operation.time;
    for node in node.lineage() {
        match node.proof(time) {
            Proof::Of(exchange) => return own(&exchange, &way, Evidence::Response),
            Proof::Ambiguous => return Judgement::Final(Err(Orphan::Ambiguous)),
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
                if matches!(way.leads_to(&exchange), Passage::Open) {
                    tentative = Some((exchange, way.evidence(Evidence::Reading)));
                } else {
                    none = Orphan::Outlasting;
                }
            }
            _ => {}
        }
        time = node.born();
        way.pass(node);
    }
    // The thread's exchange was answered elsewhere, or it would be proof: then it says nothing.
    let serving = operation.serving.as_ref().filter(|exchange| exchange.answered.get().is_none());
    let by_thread = |exchange: &Rc<Exchange>| {
        (Rc::clone(exchange), if exchange.exclusive { Evidence::Job } else { Evidence::Thread })
    };
    let tentative = tentative.or_else(|| serving.map(by_thread));
    Judgement::Tentative(tentative.ok_or(none).and_then(|(exchange, evidence)| {
        recent(&exchange, operation.time)?;
        Ok((exchange, evidence))
    }))
}

fn recent(exchange: &Exchange, time: u64) -> Result<(), Orphan> {
    if exchange.long_over(time) { Err(Orphan::LongOver) } else { Ok(()) }
}
