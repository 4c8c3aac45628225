//! Pairs commands and replies: Redis answers in the order in which it was asked.
//!
//! **When framing is lost** (a gap hid a length, or bytes are not RESP) every open exchange is discarded. Pairing
//! starts again with a command that is sent when all earlier ones must have been answered. That is certain only of a
//! client that works in lock step: it has never sent a command between two replies of the batch before. For such a
//! client, the first command behind a reply segment that ended a line is a new beginning; a client that was seen to
//! multiplex is not paired again. A reply that no command asked for is a loss as well.

use std::collections::VecDeque;

use super::command::{Arguments, CommandReader, may_start};
use super::kombu::{self, Purpose};
use super::lex::{Lost, integer};
use super::reply::{Form, Reply as Read, ReplyReader};
use super::text::{describe, upper};
use super::{Exchange, Reply, guess};
use crate::protocol::{Direction, Event, Guess, Interest, Outcome, Role, Segment, TraceHeaders, Walker};

/// Most commands that wait for their reply; beyond, pairing is given up until the client is in step again.
const PENDING_LIMIT: usize = 16 * 1024;

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

    fn feed_commands(&mut self, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
        let mut input = match segment {
            Segment::Bytes(bytes) => bytes,
            Segment::Gap(_) => [].as_slice(),
        };
        if let Pairing::Lost { settled } = self.pairing {
            let word = input.first().is_some_and(u8::is_ascii_alphabetic);
            let inline = word && !self.spoken && guess(input) != Guess::No;
            if !settled || self.multiplexed || !(may_start(input) || inline) {
                if self.tail_lost {
                    self.lose(mark, events);
                }
                self.pairing = Pairing::Lost { settled: false };
                return;
            }
            self.commands.reset();
            self.replies.reset();
            self.pairing = Pairing::Paired;
            self.reply_mode = Replies::On;
            self.replying = false;
        }
        if let Segment::Gap(gap) = segment
            && self.commands.skip(gap).is_err()
        {
            return self.lose(mark, events);
        }
        loop {
            if self.first.is_none() && !input.is_empty() {
                self.first = Some(mark);
                if self.replying && !self.pending.is_empty() {
                    self.multiplexed = true;
                }
                self.replying = false;
            }
            match self.commands.next(&mut input) {
                Ok(true) => {
                    let first = self.first.take().unwrap_or(mark);
                    self.sent(first, mark, events);
                    if self.pairing != Pairing::Paired {
                        return;
                    }
                    if self.pending.len() > PENDING_LIMIT {
                        return self.lose(mark, events);
                    }
                }
                Ok(false) => break,
                Err(Lost) => return self.lose(mark, events),
            }
        }
        // Line ends between inline commands are no beginning of one.
        if self.commands.between_commands() {
            self.first = None;
        }
    }

    /// A command is complete.
    fn sent(&mut self, first: M, head: M, events: &mut Vec<Event<M>>) {
        let arguments = self.commands.arguments();
        let name = upper(arguments.get(0).unwrap_or_default());
        let word = |index: usize| upper(arguments.whole(index).unwrap_or_default());
        let setup = matches!(name.as_str(), "HELLO" | "AUTH") || (name == "CLIENT" && word(1) == "SETINFO");
        // A client that looks after its connections asks for a sign of life before it sets one up.
        let ping = name == "PING";
        if (!self.spoken || (self.idle && !self.setting_up)) && setup {
            // Clients do this once, before they select: the connection is new.
            self.database = Some(0);
            self.setting_up = true;
        }
        self.setting_up &= matches!(name.as_str(), "HELLO" | "AUTH" | "CLIENT" | "SELECT" | "READONLY");
        let sign_of_life = self.idle && ping;
        let was_idle = self.idle;
        self.idle &= self.setting_up || (ping && !self.spoken);
        let first_work = was_idle && !self.idle && !ping;
        self.spoken = true;
        if name == "CLIENT" && (word(1).is_empty() || (word(1) == "REPLY" && word(2).is_empty())) {
            // What is hidden may have turned replies off.
            return self.lose(head, events);
        }
        let reply_option = (name == "CLIENT" && word(1) == "REPLY").then(|| word(2));
        let silent = match (reply_option.as_deref(), self.reply_mode) {
            (Some("OFF"), _) => {
                self.reply_mode = Replies::Off;
                true
            }
            (Some("ON"), _) => {
                self.reply_mode = Replies::On;
                false
            }
            (Some("SKIP"), Replies::On) => {
                self.reply_mode = Replies::SkipNext;
                true
            }
            (_, Replies::Off) => true,
            (_, Replies::SkipNext) => {
                self.reply_mode = Replies::On;
                true
            }
            (_, Replies::On) => false,
        };
        let effect = match name.as_str() {
            "SELECT" => {
                let index = arguments.whole(1).and_then(integer).and_then(|index| u32::try_from(index).ok());
                Effect::Select(index)
            }
            "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "SUNSUBSCRIBE" => {
                Effect::Subscription(arguments.count.saturating_sub(1).max(1))
            }
            "MONITOR" | "SYNC" | "PSYNC" => Effect::Leave,
            "MULTI" | "DISCARD" => Effect::Forget,
            "EXEC" => Effect::Exec,
            "RESET" => Effect::Reset,
            _ => Effect::None,
        };
        if self.pairing != Pairing::Paired {
            return;
        }
        let (operation, text) = describe(arguments);
        let purpose = kombu::purpose(&name, arguments);
        self.broker |= matches!(purpose, Purpose::Housekeeping | Purpose::Task(_));
        let mut exchange = Box::new(Exchange {
            operation,
            text,
            arguments: arguments.count,
            arguments_len: arguments.total_len,
            database: None,
            reply: Reply::Silent,
            connection_setup: self.setting_up,
            message: None,
            housekeeping: false,
            sign_of_life,
            first_work,
        });
        let (mut trace, mut neutral) = (TraceHeaders::default(), false);
        match purpose {
            Purpose::Unknown => {}
            Purpose::Neutral => neutral = true,
            Purpose::Housekeeping => exchange.housekeeping = true,
            Purpose::Task(message) => {
                trace.message = Some(message.message_id());
                exchange.message = Some(Box::new(message));
            }
        }
        let fingerprint = fingerprint(arguments);
        let number = self.next_number;
        self.next_number = number.saturating_add(1);
        let role = self.role;
        events.push(Event::Opened { exchange: number, role, first, head, trace, fingerprint });
        if silent {
            if matches!(effect, Effect::Select(_) | Effect::Exec) {
                self.database = None;
            }
            // Pipelined commands before it may still change the database.
            exchange.database = self.database.filter(|_| self.pending.is_empty());
            let outcome = Outcome::Redis(exchange);
            events.push(Event::Closed { exchange: number, last: head, outcome });
            return;
        }
        self.pending.push_back(Pending { number, effect, answered: false, neutral, exchange });
    }

    fn feed_replies(&mut self, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
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

/// FNV-1a over the name, the lengths and the first bytes of the first argument: the same at both ends, however cut.
fn fingerprint(arguments: &Arguments) -> u64 {
    let name = arguments.get(0).unwrap_or_default();
    let first = arguments.get(1).unwrap_or_default();
    let lengths = [arguments.count, arguments.total_len];
    let bytes = name.iter().chain(first).copied().chain(lengths.into_iter().flat_map(u64::to_le_bytes));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
