//! What the server sends: replies, each to the command that waits at the front, and messages that nobody asked for.

use super::{Effect, Pairing, RedisWalker, Replies};
use crate::protocol::redis::Reply;
use crate::protocol::redis::lex::Lost;
use crate::protocol::redis::reply::{Form, Reply as Read};
use crate::protocol::{Event, Outcome, Segment};

impl<M: Copy> RedisWalker<M> {
    pub(super) fn feed_replies(&mut self, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
        let mut input = match segment {
            Segment::Bytes(bytes) => bytes,
            Segment::Gap(gap) => {
                if matches!(self.pairing, Pairing::Lost { .. }) {
                    self.pairing = Pairing::Lost { settled: false };
                    return;
                }
                if self.replies.skip(gap).is_err() {
                    return self.reply_gap(mark, events);
                }
                &[]
            }
        };
        if matches!(self.pairing, Pairing::Lost { .. }) {
            let settled = input.ends_with(b"\r\n");
            self.pairing = Pairing::Lost { settled };
            if settled && self.tail_lost {
                self.tail_lost = false;
                self.answer(Reply::Value, mark, events);
            }
            return;
        }
        self.replying = true;
        let ends_line = input.ends_with(b"\r\n");
        loop {
            if self.replies.between_replies() && !matches!(input.first(), None | Some(b'>' | b'|')) {
                self.answered(mark, events);
            }
            match self.replies.next(&mut input) {
                Ok(Some(reply)) => self.received(&reply, mark, events),
                Ok(None) => break,
                Err(Lost) if self.pairing == Pairing::Subscribed => self.pairing = Pairing::Left,
                Err(Lost) => self.lose(mark, events),
            }
            if !matches!(self.pairing, Pairing::Paired | Pairing::Subscribed) {
                break;
            }
        }
        if let Pairing::Lost { settled } = &mut self.pairing {
            *settled = ends_line;
        }
    }

    /// A gap hides where the reply in hand ends.
    fn reply_gap(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        if self.pairing == Pairing::Subscribed {
            self.pairing = Pairing::Left;
            return;
        }
        let begun = matches!(self.replies.form(), Some(Form::Array | Form::Value));
        // The only reply that was asked for: it ends where the peer stops, whatever is inside.
        let only = begun && !self.multiplexed && self.pending.len() == 1;
        let plain = self.pending.front().is_some_and(|front| front.effect == Effect::None);
        if only && plain {
            self.replies.reset();
            self.commands.reset();
            self.first = None;
            self.pairing = Pairing::Lost { settled: false };
            self.tail_lost = true;
        } else {
            self.lose(mark, events);
        }
    }

    /// The front command's reply begins.
    fn answered(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        if self.pairing == Pairing::Paired
            && let Some(front) = self.pending.front_mut()
            && !front.answered
        {
            front.answered = true;
            events.push(Event::Answered { exchange: front.number, mark });
        }
    }

    /// Closes the front exchange.
    fn answer(&mut self, reply: Reply, mark: M, events: &mut Vec<Event<M>>) {
        self.answered(mark, events);
        if let Some(mut front) = self.pending.pop_front() {
            front.exchange.reply = reply;
            front.exchange.database = self.database;
            front.exchange.housekeeping |= front.neutral && self.broker;
            let outcome = Outcome::Redis(front.exchange);
            events.push(Event::Closed { exchange: front.number, last: mark, outcome });
        }
    }

    /// A reply is complete.
    fn received(&mut self, reply: &Read, mark: M, events: &mut Vec<Event<M>>) {
        if self.pairing == Pairing::Subscribed {
            let left = reply.form == Form::Array && reply.number == Some(0);
            let unsubscribed = left && (reply.says("unsubscribe") || reply.says("punsubscribe"));
            if unsubscribed || (reply.form == Form::Status && reply.says("RESET")) {
                self.lose(mark, events);
            }
            return;
        }
        let Some(front) = self.pending.front() else {
            if reply.form == Form::Push || self.is_extra_ack(reply) {
                return;
            }
            return self.lose(mark, events);
        };
        let (effect, acknowledges) = (front.effect, reply.says(&front.exchange.operation));
        if reply.form == Form::Push {
            if let (Effect::Subscription(acks), true) = (effect, acknowledges)
                && !self.is_extra_ack(reply)
            {
                self.extra_acks = acks.saturating_sub(1);
                self.answer(Reply::Value, mark, events);
            }
            return;
        }
        // `answered` may have been told of an acknowledgement too early; it is the same segment's mark at worst.
        if !acknowledges && self.is_extra_ack(reply) {
            return;
        }
        let outcome = match (&reply.error, effect) {
            (Some(error), Effect::Exec) => Reply::Error(error.clone()),
            (Some(error), _) if reply.form == Form::Error => Reply::Error(error.clone()),
            _ => Reply::Value,
        };
        let failed = outcome != Reply::Value;
        let queued = reply.form == Form::Status && reply.says("QUEUED");
        self.answer(outcome, mark, events);
        match effect {
            Effect::Select(index) if queued => self.queued_database = Some(index),
            Effect::Select(index) if !failed => self.database = index,
            Effect::Forget if !failed => self.queued_database = None,
            Effect::Exec => {
                if let Some(index) = self.queued_database.take()
                    && reply.form == Form::Array
                {
                    self.database = index.filter(|_| !failed);
                }
            }
            Effect::Reset if !failed && !queued => {
                self.database = Some(0);
                self.queued_database = None;
                self.reply_mode = Replies::On;
            }
            Effect::Leave if !failed && !queued => self.leave(mark, events),
            Effect::Subscription(acks) if reply.form == Form::Array => {
                if reply.number == Some(0) {
                    self.extra_acks = acks.saturating_sub(1);
                } else {
                    self.discard_pending(mark, events);
                    self.pairing = Pairing::Subscribed;
                }
            }
            _ => {}
        }
    }

    fn is_extra_ack(&mut self, reply: &Read) -> bool {
        let ack = self.extra_acks > 0
            && matches!(reply.form, Form::Array | Form::Push)
            && reply.word.to_ascii_lowercase().ends_with(b"subscribe");
        if ack {
            self.extra_acks = self.extra_acks.saturating_sub(1);
        }
        ack
    }
}
