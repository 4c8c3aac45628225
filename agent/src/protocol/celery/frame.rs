//! Messages on a pipe of `billiard`'s: four bytes of length, big-endian, and so many bytes of pickle.
//!
//! Takes the bytes and gaps of one direction; gives the first bytes of each message. Where framing is lost, a length with
//! a pickle behind it begins anew. Facts from `Connection._send_bytes` in `billiard/connection.py`, and
//! <https://peps.python.org/pep-3154/>: a pickle begins with the byte 0x80 and its protocol's number.

use crate::protocol::Segment;

/// First bytes that are kept of a message: names and ids come first, and what is asked for after them is optional.
const KEPT: usize = 8 * 1024;
/// Bytes of a length.
const HEADER: usize = 4;

enum State {
    /// Reading a length; what there is of it.
    Header(Vec<u8>),
    /// Reading a pickle; how much of it is left.
    Body { left: u64, whole: bool },
}

/// A message: its first bytes, and where it was.
pub(super) struct Framed<'a, M> {
    /// Mark of its first byte.
    pub(super) first: M,
    /// Mark of its last byte.
    pub(super) last: M,
    /// Its first bytes.
    pub(super) bytes: &'a [u8],
}

/// Cuts one direction into messages.
pub(super) struct Framer<M> {
    state: State,
    kept: Vec<u8>,
    first: Option<M>,
}

impl<M: Copy> Framer<M> {
    pub(super) fn new() -> Self {
        Self { state: State::Header(Vec::new()), kept: Vec::new(), first: None }
    }

    /// Takes a segment, and hands over the messages that it completes.
    pub(super) fn feed(&mut self, segment: Segment<'_>, mark: M, mut each: impl FnMut(Framed<'_, M>)) {
        match segment {
            Segment::Bytes(bytes) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let before = rest.len();
                    if !self.step(&mut rest, mark, &mut each) {
                        // No message begins here. The next one begins with a call of its own.
                        return self.lose();
                    }
                    if rest.len() == before {
                        return;
                    }
                }
            }
            Segment::Gap(gap) => match &mut self.state {
                State::Body { left, whole } if gap <= *left && !self.kept.is_empty() => {
                    *left = left.saturating_sub(gap);
                    *whole = false;
                    self.complete(mark, &mut each);
                }
                _ => self.lose(),
            },
        }
    }

    /// Takes some of the bytes; `false`: they are no message.
    fn step(&mut self, rest: &mut &[u8], mark: M, each: &mut impl FnMut(Framed<'_, M>)) -> bool {
        match &mut self.state {
            State::Header(header) => {
                let (part, after) = rest.split_at(rest.len().min(HEADER.saturating_sub(header.len())));
                header.extend(part);
                *rest = after;
                self.first.get_or_insert(mark);
                let Ok(length) = <[u8; HEADER]>::try_from(header.as_slice()) else { return true };
                let left = u64::from(u32::from_be_bytes(length));
                self.kept.clear();
                self.state = State::Body { left, whole: true };
                (2..=u64::from(u32::MAX >> 1)).contains(&left)
            }
            State::Body { left, whole } => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                let (part, after) = rest.split_at(len);
                *rest = after;
                *left = left.saturating_sub(len as u64);
                if *whole {
                    let room = KEPT.saturating_sub(self.kept.len());
                    self.kept.extend(part.iter().take(room));
                }
                if !pickle_may_start(&self.kept) {
                    return false;
                }
                self.complete(mark, each);
                true
            }
        }
    }

    fn complete(&mut self, mark: M, each: &mut impl FnMut(Framed<'_, M>)) {
        if matches!(self.state, State::Body { left: 0, .. }) {
            let first = self.first.take().unwrap_or(mark);
            each(Framed { first, last: mark, bytes: &self.kept });
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.state = State::Header(Vec::new());
        self.kept.clear();
        self.first = None;
    }
}

fn pickle_may_start(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80] | [0x80, 2..=5, ..])
}
