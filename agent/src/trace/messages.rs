//! Messages on a queue: who has sent which, from the time it is sent until whoever takes it asks.
//!
//! A message may lie in its queue long after the span of its sending has left, so that the span's context is kept here.

use std::collections::{HashMap, VecDeque};

use opentelemetry::trace::SpanContext;

use crate::causality::ExchangeKey;
use crate::protocol::MessageId;

/// Messages that are remembered; beyond it the oldest is forgotten, and who takes it starts a trace.
const MOST: usize = 65_536;

/// Who has sent a message.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    /// The process.
    pub(super) pid: u32,
    pub(super) span: Sent,
}

/// The span of a message's sending.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    /// It has not left.
    By(ExchangeKey),
    /// It has.
    Within(SpanContext),
}

/// See the module.
#[derive(Default)]
pub(super) struct Messages {
    senders: HashMap<MessageId, Sender>,
    order: VecDeque<MessageId>,
}

impl Messages {
    /// A message was sent. A task that puts another one in its own place sends that under its own id.
    pub(super) fn sent(&mut self, id: MessageId, by: ExchangeKey, pid: u32) {
        if self.senders.insert(id, Sender { pid, span: Sent::By(by) }).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.senders.remove(&oldest);
        }
    }

    /// The span of the sending leaves.
    pub(super) fn left(&mut self, id: MessageId, by: ExchangeKey, context: SpanContext) {
        if let Some(sender) = self.senders.get_mut(&id)
            && matches!(sender.span, Sent::By(open) if open == by)
        {
            sender.span = Sent::Within(context);
        }
    }

    /// What was taken for the sending of a message was none.
    pub(super) fn discarded(&mut self, id: MessageId, by: ExchangeKey) {
        if matches!(self.senders.get(&id), Some(Sender { span: Sent::By(open), .. }) if *open == by) {
            self.senders.remove(&id);
        }
    }

    /// Who has sent this message.
    pub(super) fn sender(&self, id: MessageId) -> Option<Sender> {
        self.senders.get(&id).cloned()
    }
}
