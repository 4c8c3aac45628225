//! Pairs commands and replies: Redis answers in the order in which it was asked.
//!
//! **When framing is lost** (a gap hid a length, or bytes are not RESP) every open exchange is discarded. Pairing
//! starts again with a command that is sent when all earlier ones must have been answered. That is certain only of a
//! client that works in lock step: it has never sent a command between two replies of the batch before. For such a
//! client, the first command behind a reply segment that ended a line is a new beginning; a client that was seen to
//! multiplex is not paired again. A reply that no command asked for is a loss as well.

mod commands;
mod replies;

use std::collections::VecDeque;

use super::command::CommandReader;
use super::reply::ReplyReader;
use super::{Exchange, Reply};
use crate::protocol::{Direction, Event, Interest, Outcome, Role, Segment, Walker};

/// What a command changes once its reply is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    /// `SELECT`; `None`: of something that is no number.
    Select(Option<u32>),
    /// A member of the subscription family, with the acknowledgements that it will get.
    Subscription(u64),
    /// `MONITOR`, `SYNC`, `PSYNC`: what follows the reply is no reply.
    Leave,
    /// `MULTI`, `DISCARD`: nothing is queued.
    Forget,
    Exec,
    Reset,
}

struct Pending {
    number: u64,
    effect: Effect,
    answered: bool,
    /// It is kombu's if the connection is.
    neutral: bool,
    exchange: Box<Exchange>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pairing {
    /// Replies answer the pending commands.
    Paired,
    /// They may not; `settled`: the last thing that happened was a reply segment that ended a line, or nothing yet.
    Lost { settled: bool },
    /// RESP2 subscriber: what arrives are messages.
    Subscribed,
    /// Nothing more can be learnt.
    Left,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Replies {
    On,
    Off,
    SkipNext,
}

/// Walker of one Redis connection.
pub struct RedisWalker<M> {
    role: Role,
    commands: CommandReader,
    replies: ReplyReader,
    pairing: Pairing,
    pending: VecDeque<Pending>,
    next_number: u64,
    /// Mark of the first byte of the command that is being read.
    first: Option<M>,
    /// A command has been read since the walker began.
    spoken: bool,
    /// All commands so far set the connection up.
    setting_up: bool,
    reply_mode: Replies,
    /// A reply byte was seen since the last command.
    replying: bool,
    multiplexed: bool,
    /// The front reply's inside was lost, and its end can still be told by a line end.
    tail_lost: bool,
    /// Acknowledgements of a closed subscription command that are still to come.
    extra_acks: u64,
    database: Option<u32>,
    /// The connection is one of kombu's.
    broker: bool,
    /// Nothing but a `PING` and what sets a connection up has been sent.
    idle: bool,
    /// A `SELECT` was queued in the transaction that is open.
    queued_database: Option<Option<u32>>,
}

impl<M: Copy> RedisWalker<M> {
    /// A walker of a connection in which the observed process has this part.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            commands: CommandReader::new(),
            replies: ReplyReader::new(),
            pairing: Pairing::Lost { settled: true },
            pending: VecDeque::new(),
            next_number: 0,
            first: None,
            spoken: false,
            setting_up: false,
            reply_mode: Replies::On,
            replying: false,
            multiplexed: false,
            tail_lost: false,
            extra_acks: 0,
            database: None,
            broker: false,
            idle: true,
            queued_database: None,
        }
    }

    fn lose(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        for pending in self.pending.drain(..) {
            let exchange = pending.number;
            events.push(Event::Closed { exchange, last: mark, outcome: Outcome::Discarded });
        }
        self.pairing = Pairing::Lost { settled: false };
        self.commands.reset();
        self.replies.reset();
        self.first = None;
        self.tail_lost = false;
        self.extra_acks = 0;
        self.database = None;
        self.queued_database = None;
    }

    fn discard_pending(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        for pending in self.pending.drain(..) {
            let exchange = pending.number;
            events.push(Event::Closed { exchange, last: mark, outcome: Outcome::Discarded });
        }
    }

    fn leave(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        self.discard_pending(mark, events);
        self.pairing = Pairing::Left;
    }
}

impl<M: Copy + Send> Walker<M> for RedisWalker<M> {
    fn feed(&mut self, direction: Direction, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
        if self.pairing == Pairing::Left || matches!(segment, Segment::Bytes(&[]) | Segment::Gap(0)) {
            return;
        }
        if direction != self.role.request_direction() {
            self.feed_replies(segment, mark, events);
        } else if self.pairing != Pairing::Subscribed {
            self.feed_commands(segment, mark, events);
        }
    }

    fn end(&mut self, direction: Direction, mark: M, events: &mut Vec<Event<M>>) {
        if direction != self.role.request_direction() {
            self.close(mark, events);
        }
    }

    fn close(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        while let Some(mut pending) = self.pending.pop_front() {
            pending.exchange.reply = Reply::ConnectionLost;
            pending.exchange.database = self.database;
            let outcome = if self.tail_lost { Outcome::Discarded } else { Outcome::Redis(pending.exchange) };
            events.push(Event::Closed { exchange: pending.number, last: mark, outcome });
        }
        self.pairing = Pairing::Left;
    }

    fn interest(&self, direction: Direction) -> Interest {
        let skippable = match self.pairing {
            Pairing::Left => return Interest::Nothing,
            Pairing::Lost { .. } => 0,
            _ if direction == self.role.request_direction() => self.commands.skippable(),
            _ => self.replies.skippable(),
        };
        if skippable > 0 { Interest::LengthOnly(skippable) } else { Interest::Bytes }
    }

    fn open_exchanges(&self) -> usize {
        self.pending.len()
    }
}
