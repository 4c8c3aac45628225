//! PostgreSQL's frontend/backend protocol, version 3: bytes of one connection in, statements and their results out.
//!
//! [`guess`] tells whether a connection speaks it, [`PostgresWalker`] walks one. `frame` cuts messages, `parse` reads
//! them, `pair` finds the answer to each statement, `statements` remembers names, `types` says what an exchange was.
//! Passwords, parameters, rows and message texts are stepped over and never kept.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod frame;
mod pair;
mod parse;
mod statements;
#[cfg(test)]
mod tests;
mod types;

use frame::{Framer, Layout, Message, Unit};
use pair::Pairing;
use parse::{Chain, Side};
pub use types::{Ending, Exchange, Failure, Kind, Session, Severity};

use super::{Direction, Event, Guess, Interest, Role, Segment, Walker};

/// A body's remaining bytes are worth telling the capturer about from this many on.
const WORTH_SKIPPING: u64 = 512;

/// Whether these first bytes of a connection are PostgreSQL's, of either direction.
pub fn guess(bytes: &[u8]) -> Guess {
    if bytes.first().is_none_or(|byte| *byte == 0) {
        return guess_startup(bytes);
    }
    match (parse::chain(Side::Frontend, bytes), parse::chain(Side::Backend, bytes)) {
        (Chain::Yes, Chain::Yes) => Guess::Perhaps,
        (Chain::Yes, _) => Guess::Yes { request: true },
        (_, Chain::Yes) => Guess::Yes { request: false },
        (Chain::No, Chain::No) => Guess::No,
        _ => Guess::Perhaps,
    }
}

fn guess_startup(bytes: &[u8]) -> Guess {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes else {
        let sound = match bytes {
            [0, 0, c, d, ..] => (8..=10_000).contains(&u16::from_be_bytes([*c, *d])),
            _ => bytes.iter().take(2).all(|byte| *byte == 0),
        };
        return if sound { Guess::Perhaps } else { Guess::No };
    };
    let length = u32::from_be_bytes([*a, *b, *c, *d]);
    let code = u32::from_be_bytes([*e, *f, *g, *h]);
    let key = rest.first().is_none_or(|byte| byte.is_ascii_lowercase() || *byte == b'_' || *byte == 0);
    let sound = match code {
        parse::CODE_SSL | parse::CODE_GSSENC => length == 8,
        parse::CODE_CANCEL => (16..=268).contains(&length),
        _ => code >> 16 == 3 && (9..=10_000).contains(&length) && key,
    };
    if sound { Guess::Yes { request: true } } else { Guess::No }
}

/// A walker of one PostgreSQL connection.
pub struct PostgresWalker<M> {
    role: Role,
    frontend: Framer<M>,
    backend: Framer<M>,
    /// Nothing of this side has been seen.
    fresh: [bool; 2],
    pairing: Pairing<M>,
    /// The connection has left the protocol.
    left: bool,
}

impl<M: Copy> PostgresWalker<M> {
    /// A walker of a connection of which nothing is known.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            frontend: Framer::new(Side::Frontend, Layout::Typed),
            backend: Framer::new(Side::Backend, Layout::Typed),
            fresh: [true; 2],
            pairing: Pairing::new(role),
            left: false,
        }
    }

    fn side(&self, direction: Direction) -> Side {
        if direction == self.role.request_direction() { Side::Frontend } else { Side::Backend }
    }

    fn framer(&mut self, side: Side) -> &mut Framer<M> {
        match side {
            Side::Frontend => &mut self.frontend,
            Side::Backend => &mut self.backend,
        }
    }

    /// Whether this is the first that is seen of a side.
    fn first_of(&mut self, side: Side) -> bool {
        let [frontend, backend] = &mut self.fresh;
        match side {
            Side::Frontend => std::mem::take(frontend),
            Side::Backend => std::mem::take(backend),
        }
    }

    fn lost(&mut self, side: Side, mark: M, events: &mut Vec<Event<M>>) {
        self.framer(side).lose();
        self.missed(side, mark, events);
    }

    /// Bytes of a side went by unread. Later than the loss of framing too: what was asked meanwhile is in doubt.
    fn missed(&mut self, side: Side, mark: M, events: &mut Vec<Event<M>>) {
        match side {
            Side::Frontend => self.pairing.frontend_lost(mark, events),
            Side::Backend => self.pairing.backend_lost(),
        }
    }

    fn bytes(&mut self, side: Side, bytes: &[u8], mark: M, events: &mut Vec<Event<M>>) {
        let mut input = bytes;
        if self.first_of(side) && !bytes.is_empty() {
            if side == Side::Frontend && bytes.first() == Some(&0) {
                self.frontend.expect(Layout::Startup);
                self.backend.expect(Layout::Typed);
                self.fresh = [false; 2];
            } else if parse::chain(side, bytes) == Chain::No && !self.greeting(side) {
                self.framer(side).lose();
            }
        }
        if self.framer(side).is_lost() {
            let tail = self.framer(side).tail(bytes);
            if parse::chain(side, bytes) == Chain::Yes {
                self.framer(side).expect(Layout::Typed);
            } else if side == Side::Backend && parse::ready_at_end(&tail).is_some() {
                self.pairing.backend_lost();
                self.backend.expect(Layout::Typed);
                match parse::ready_at_end(bytes) {
                    Some(length) => {
                        input = bytes.get(bytes.len().saturating_sub(length)..).unwrap_or_default();
                        self.walk(side, &mut input, mark, events);
                    }
                    None => self.walk(side, &mut tail.as_slice(), mark, events),
                }
                return;
            } else {
                self.missed(side, mark, events);
            }
        }
        self.walk(side, &mut input, mark, events);
    }

    /// Whether the frontend waits for the one byte that answers `SSLRequest`.
    fn greeting(&self, side: Side) -> bool {
        side == Side::Backend && self.backend.is_byte()
    }

    fn walk(&mut self, side: Side, input: &mut &[u8], mark: M, events: &mut Vec<Event<M>>) {
        while !self.left {
            match self.framer(side).next(input, mark) {
                Some(Unit::Message(message)) => self.message(side, &message, events),
                Some(Unit::Lost) => self.lost(side, mark, events),
                None => return,
            }
        }
    }

    fn message(&mut self, side: Side, message: &Message<M>, events: &mut Vec<Event<M>>) {
        match (side, message.tag) {
            (Side::Frontend, 0) => self.startup(message),
            // One byte in reply to `SSLRequest` or `GSSENCRequest`: all but a refusal ends what can be read.
            (Side::Backend, b'N') if message.length == 4 => {}
            (Side::Backend, b'S' | b'G' | b'E') if message.length == 4 => self.left = true,
            (Side::Backend, b'W') => self.leave(message.last, events),
            (Side::Frontend, _) => self.pairing.ask(message, events),
            (Side::Backend, _) => self.pairing.answer(message, events),
        }
    }

    /// The connection carries no statements from here on.
    fn leave(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        self.pairing.end_all(Ending::Unknown, mark, events);
        self.left = true;
    }

    fn startup(&mut self, message: &Message<M>) {
        let Some((code, body)) = message.body.split_first_chunk::<4>() else { return };
        match u32::from_be_bytes(*code) {
            parse::CODE_SSL | parse::CODE_GSSENC => {
                self.frontend.expect(Layout::Startup);
                self.backend.expect(Layout::Byte);
            }
            parse::CODE_CANCEL => self.left = true,
            _ => {
                self.backend.expect(Layout::Typed);
                let mut session = Session::default();
                for (key, value) in parse::settings(body) {
                    let text = String::from_utf8_lossy(value).into_owned().into_boxed_str();
                    match key {
                        b"user" => session.user = Some(text),
                        b"database" => session.database = Some(text),
                        b"replication" => self.left |= !matches!(&*text, "false" | "off" | "no" | "0"),
                        _ => {}
                    }
                }
                if message.whole && session.database.is_none() {
                    // The database's name defaults to the user's.
                    session.database.clone_from(&session.user);
                }
                self.pairing.start(session);
            }
        }
    }
}

impl<M: Copy + Send> Walker<M> for PostgresWalker<M> {
    fn feed(&mut self, direction: Direction, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
        if self.left {
            return;
        }
        let side = self.side(direction);
        match segment {
            Segment::Bytes(bytes) => self.bytes(side, bytes, mark, events),
            Segment::Gap(0) => {}
            Segment::Gap(length) => {
                self.first_of(side);
                let (message, lost) = self.framer(side).gap(length, mark);
                if let Some(message) = message {
                    self.message(side, &message, events);
                }
                if lost && !self.left {
                    self.missed(side, mark, events);
                }
            }
        }
    }

    fn end(&mut self, direction: Direction, mark: M, events: &mut Vec<Event<M>>) {
        if self.side(direction) == Side::Backend {
            self.pairing.end_all(Ending::Disconnected, mark, events);
        }
    }

    fn close(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        self.pairing.end_all(Ending::Unknown, mark, events);
    }

    fn interest(&self, direction: Direction) -> Interest {
        if self.left {
            return Interest::Nothing;
        }
        let framer = match self.side(direction) {
            Side::Frontend => &self.frontend,
            Side::Backend => &self.backend,
        };
        match framer.unwanted() {
            length if length >= WORTH_SKIPPING => Interest::LengthOnly(length),
            _ => Interest::Bytes,
        }
    }

    fn open_exchanges(&self) -> usize {
        self.pairing.open()
    }
}
