//! Cuts one direction of a connection into messages, by their lengths; keeps of each body only what pairing reads.
//!
//! Takes [`Segment`]s' bytes and gaps; gives [`Message`]s, or says that the framing is lost. It must not know what a
//! message means. Layout: PostgreSQL documentation, "55.7. Message Formats".

use super::parse::{self, Side};

/// A message's header, and the captured beginning of its body.
pub(super) struct Message<M> {
    /// Its type byte; 0 for the untyped messages that begin a connection.
    pub(super) tag: u8,
    pub(super) body: Vec<u8>,
    /// `body` is all of the message.
    pub(super) whole: bool,
    pub(super) length: u32,
    pub(super) first: M,
    pub(super) last: M,
    pub(super) fingerprint: u64,
}

/// What the next bytes begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Length, then the body: before and including the `StartupMessage`.
    Startup,
    /// The server's one byte in reply to `SSLRequest` or `GSSENCRequest`.
    Byte,
    /// Type, length, body.
    Typed,
}

pub(super) enum Unit<M> {
    Message(Message<M>),
    /// These bytes are no message.
    Lost,
}

enum State<M> {
    Header {
        layout: Layout,
        bytes: Vec<u8>,
        first: Option<M>,
    },
    /// `message` is still to be given out, if any; `left` bytes of its body are to come.
    Body {
        message: Option<Message<M>>,
        left: u64,
        keep: usize,
    },
    /// The framing is lost; `tail` is the end of what was seen since.
    Lost {
        tail: Vec<u8>,
    },
}

pub(super) struct Framer<M> {
    side: Side,
    state: State<M>,
}

impl<M: Copy> Framer<M> {
    pub(super) fn new(side: Side, layout: Layout) -> Self {
        Self { side, state: Self::header(layout) }
    }

    fn header(layout: Layout) -> State<M> {
        State::Header { layout, bytes: Vec::new(), first: None }
    }

    /// The next message has this layout.
    pub(super) fn expect(&mut self, layout: Layout) {
        self.state = Self::header(layout);
    }

    pub(super) fn lose(&mut self) {
        self.state = State::Lost { tail: Vec::new() };
    }

    /// The next byte answers `SSLRequest` or `GSSENCRequest`.
    pub(super) fn is_byte(&self) -> bool {
        matches!(self.state, State::Header { layout: Layout::Byte, .. })
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost { .. })
    }

    /// The bytes of the current body that are still to come, and that nobody wants.
    pub(super) fn unwanted(&self) -> u64 {
        match &self.state {
            State::Body { message: None, left, .. } => *left,
            State::Body { message: Some(message), left, keep } if message.body.len() >= *keep => *left,
            _ => 0,
        }
    }

    /// Notes bytes seen while the framing is lost; gives the last few, across segments.
    pub(super) fn tail(&mut self, input: &[u8]) -> Vec<u8> {
        if let State::Lost { tail } = &mut self.state {
            let fresh = input.get(input.len().saturating_sub(parse::READY_LENGTH)..).unwrap_or_default();
            tail.extend_from_slice(fresh);
            tail.drain(..tail.len().saturating_sub(parse::READY_LENGTH));
            return tail.clone();
        }
        Vec::new()
    }

    /// Takes bytes off `input` until a message is known or none are left.
    pub(super) fn next(&mut self, input: &mut &[u8], mark: M) -> Option<Unit<M>> {
        while !input.is_empty() {
            let unit = match &mut self.state {
                State::Lost { .. } => {
                    *input = &[];
                    None
                }
                State::Header { .. } => self.take_header(input, mark),
                State::Body { .. } => self.take_body(input, mark),
            };
            if unit.is_some() {
                return unit;
            }
        }
        None
    }

    fn take_header(&mut self, input: &mut &[u8], mark: M) -> Option<Unit<M>> {
        let State::Header { layout, bytes, first } = &mut self.state else { return None };
        let layout = *layout;
        let needed: usize = match layout {
            Layout::Startup => 4,
            Layout::Byte => 1,
            Layout::Typed => 5,
        };
        let first = *first.get_or_insert(mark);
        bytes.extend_from_slice(take(input, needed.saturating_sub(bytes.len())));
        let (tag, length) = match (layout, bytes.as_slice()) {
            (Layout::Byte, [tag]) => (*tag, 4),
            (Layout::Startup, [a, b, c, d]) => (0, u32::from_be_bytes([*a, *b, *c, *d])),
            (Layout::Typed, [tag, a, b, c, d]) => (*tag, u32::from_be_bytes([*a, *b, *c, *d])),
            _ => return None,
        };
        let fingerprint = parse::hash(parse::HASH_START, bytes);
        if layout != Layout::Byte && !parse::plausible_header(self.side, tag, length) {
            self.lose();
            return Some(Unit::Lost);
        }
        let left = u64::from(length.saturating_sub(4));
        let keep = parse::keep(self.side, tag).min(usize::try_from(left).unwrap_or(usize::MAX));
        let message =
            Message { tag, body: Vec::new(), whole: left == 0, length, first, last: mark, fingerprint };
        if keep == 0 {
            self.state = if left == 0 {
                Self::header(Layout::Typed)
            } else {
                State::Body { message: None, left, keep }
            };
            return Some(Unit::Message(message));
        }
        self.state = State::Body { message: Some(message), left, keep };
        None
    }

    fn take_body(&mut self, input: &mut &[u8], mark: M) -> Option<Unit<M>> {
        let State::Body { message, left, keep } = &mut self.state else { return None };
        let bytes = take(input, usize::try_from(*left).unwrap_or(usize::MAX));
        *left = left.saturating_sub(bytes.len() as u64);
        if let Some(message) = message {
            let room = keep.saturating_sub(message.body.len()).min(bytes.len());
            message.body.extend_from_slice(bytes.get(..room).unwrap_or_default());
            message.last = mark;
        }
        self.finish_body()
    }

    fn finish_body(&mut self) -> Option<Unit<M>> {
        let State::Body { message, left: 0, .. } = &mut self.state else { return None };
        let message = message.take();
        self.state = Self::header(Layout::Typed);
        message.map(|mut message| {
            message.whole = message.body.len() as u64 == u64::from(message.length.saturating_sub(4));
            let hashed = message.body.get(..parse::HASH_CAP.min(message.body.len())).unwrap_or_default();
            message.fingerprint = parse::hash(message.fingerprint, hashed);
            Unit::Message(message)
        })
    }

    /// Steps over `length` bytes that were not captured. Gives the message that ends with them, and whether the
    /// framing is lost behind it.
    pub(super) fn gap(&mut self, length: u64, mark: M) -> (Option<Message<M>>, bool) {
        if length == 0 {
            return (None, false);
        }
        let State::Body { message, left, keep } = &mut self.state else {
            self.lose();
            return (None, true);
        };
        if length <= *left {
            *left = left.saturating_sub(length);
            if let Some(message) = message {
                // What follows the hole is no continuation of what went before it.
                *keep = message.body.len();
                message.last = mark;
            }
            return match self.finish_body() {
                Some(Unit::Message(message)) => (Some(message), false),
                _ => (None, false),
            };
        }
        *left = 0;
        let message = match self.finish_body() {
            Some(Unit::Message(message)) => Some(message),
            _ => None,
        };
        self.lose();
        (message, true)
    }
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at_checked(count).unwrap_or((*input, &[]));
    *input = rest;
    taken
}
