//! What the client sends: commands, and what each will change once it is answered.

use super::{Effect, Pairing, Pending, RedisWalker, Replies};
use crate::protocol::redis::command::{Arguments, may_start};
use crate::protocol::redis::kombu::{self, Purpose};
use crate::protocol::redis::lex::{Lost, integer};
use crate::protocol::redis::text::{describe, upper};
use crate::protocol::redis::{Exchange, Reply, guess};
use crate::protocol::{Event, Guess, Outcome, Segment, TraceHeaders};

/// Most commands that wait for their reply; beyond, pairing is given up until the client is in step again.
const PENDING_LIMIT: usize = 16 * 1024;

impl<M: Copy> RedisWalker<M> {
    pub(super) fn feed_commands(&mut self, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
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
}

/// FNV-1a over the name, the lengths and the first bytes of the first argument: the same at both ends, however cut.
fn fingerprint(arguments: &Arguments) -> u64 {
    let name = arguments.get(0).unwrap_or_default();
    let first = arguments.get(1).unwrap_or_default();
    let lengths = [arguments.count, arguments.total_len];
    let bytes = name.iter().chain(first).copied().chain(lengths.into_iter().flat_map(u64::to_le_bytes));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
