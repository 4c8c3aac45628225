//! Where a body ends: by length, by chunks, with the stream, or by deduction when bytes are missing (RFC 9112, section 6).
//!
//! Takes the bytes of one message after its head, or the number of bytes that were not captured; gives how many of
//! them are its own, whether it is over, and how much payload it carried. The payload itself is never kept.

use crate::protocol::Interest;

/// How the head says that the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`
    Length(u64),
    /// `Transfer-Encoding: chunked`
    Chunked,
    /// A response that ends with the connection.
    UntilEnd,
    /// The head was cut, or contradicts itself.
    Unknown {
        /// It is known to be chunked.
        chunked: bool,
    },
}

/// What [`Interest::LengthOnly`] says of a body that ends with the stream: more than any connection carries.
const ENDLESS: u64 = 1 << 48;
/// The last chunk with the line end of the data before it.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

#[derive(Debug)]
enum State {
    Done,
    Length(u64),
    /// In a chunk's size line, before anything that is not a digit.
    ChunkSize {
        size: u64,
        digits: u8,
    },
    /// In a chunk's size line, after its digits.
    ChunkExtension(u64),
    ChunkData(u64),
    /// In the line end after a chunk's data; so many bytes are left.
    ChunkEnd(u8),
    /// In a line after the last chunk.
    Trailer {
        empty: bool,
    },
    UntilEnd,
    /// The end can only be recognised, not computed: by the last chunk at the end of a segment. Holds what was seen
    /// last, if the body is chunked.
    Unframed(Option<Vec<u8>>),
}

/// The body of a message that is being walked over.
#[derive(Debug)]
pub(super) struct Body {
    state: State,
    payload: u64,
    /// No byte is missing from the count.
    exact: bool,
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize { size: 0, digits: 0 },
            Framing::UntilEnd => State::UntilEnd,
            Framing::Unknown { chunked } => State::Unframed(chunked.then(Vec::new)),
        };
        let exact = !matches!(state, State::Unframed(_));
        Self { state, payload: 0, exact }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The walker knows where the body ends. Once it did not, what follows the body is in doubt even after its end.
    pub(super) fn is_framed(&self) -> bool {
        self.exact && !self.is_until_end()
    }

    /// The body ends with the stream.
    pub(super) fn is_until_end(&self) -> bool {
        matches!(self.state, State::UntilEnd)
    }

    /// Payload bytes so far, if they could be counted.
    pub(super) fn size(&self) -> Option<u64> {
        self.exact.then_some(self.payload)
    }

    /// What is worth seeing next. The last byte of a body is, because it ends the exchange.
    pub(super) fn interest(&self) -> Interest {
        let left = match &self.state {
            State::Length(left) | State::ChunkData(left) => left.saturating_sub(1),
            State::UntilEnd => ENDLESS,
            _ => 0,
        };
        if left == 0 { Interest::Bytes } else { Interest::LengthOnly(left) }
    }

    /// Takes the rest of a segment; says how many of its bytes belong to the body.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let (false, Some((&byte, after))) = (self.is_done(), rest.split_first()) {
            match &mut self.state {
                State::Done => {}
                State::Length(_) | State::ChunkData(_) | State::UntilEnd => {
                    let available = u64::try_from(rest.len()).unwrap_or(u64::MAX);
                    let taken = usize::try_from(self.skip_payload(available)).unwrap_or(rest.len());
                    rest = rest.get(taken..).unwrap_or_default();
                }
                State::Unframed(window) => {
                    let ended = window.as_mut().is_some_and(|window| ends_with_last_chunk(window, rest));
                    if ended {
                        self.state = State::Done;
                    }
                    rest = &[];
                }
                _ => {
                    if self.framing_byte(byte) {
                        rest = after;
                    } else {
                        self.lose_chunks();
                    }
                }
            }
        }
        bytes.len().saturating_sub(rest.len())
    }

    /// Takes a number of bytes that were not captured; says how many of them surely belong to the body.
    pub(super) fn skip(&mut self, count: u64) -> u64 {
        let mut left = count;
        while left > 0 && !self.is_done() {
            match &mut self.state {
                State::Done => {}
                State::Length(_) | State::ChunkData(_) | State::UntilEnd => {
                    left = left.saturating_sub(self.skip_payload(left));
                }
                State::ChunkEnd(end) => {
                    left = left.saturating_sub(1);
                    *end = end.saturating_sub(1);
                    if *end == 0 {
                        self.state = State::ChunkSize { size: 0, digits: 0 };
                    }
                }
                State::Unframed(window) => {
                    if let Some(window) = window {
                        window.clear();
                    }
                    left = 0;
                }
                _ => self.lose_chunks(),
            }
        }
        count.saturating_sub(left)
    }

    fn lose_chunks(&mut self) {
        self.exact = false;
        self.state = State::Unframed(Some(Vec::new()));
    }

    /// Steps over at most `count` payload bytes.
    fn skip_payload(&mut self, count: u64) -> u64 {
        let taken = match &mut self.state {
            State::Length(left) | State::ChunkData(left) => {
                let taken = count.min(*left);
                *left = left.saturating_sub(taken);
                taken
            }
            _ => count,
        };
        self.payload = self.payload.saturating_add(taken);
        match self.state {
            State::Length(0) => self.state = State::Done,
            State::ChunkData(0) => self.state = State::ChunkEnd(2),
            _ => {}
        }
        taken
    }

    /// Takes a byte of chunk framing; `false` if it cannot be one. Line ends may lack their CR.
    fn framing_byte(&mut self, byte: u8) -> bool {
        self.state = match (&self.state, byte) {
            (&State::ChunkSize { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                let Some(size) = size.checked_mul(16).and_then(|size| size.checked_add(digit)) else {
                    return false;
                };
                State::ChunkSize { size, digits: digits.saturating_add(1) }
            }
            (State::ChunkSize { digits: 0, .. }, _) => return false,
            (&State::ChunkSize { size, .. } | &State::ChunkExtension(size), b'\n') => match size {
                0 => State::Trailer { empty: true },
                size => State::ChunkData(size),
            },
            (&State::ChunkSize { size, .. }, b'\r' | b';' | b' ' | b'\t') => State::ChunkExtension(size),
            (State::ChunkSize { .. }, _) => return false,
            (&State::ChunkExtension(size), _) => State::ChunkExtension(size),
            (State::ChunkEnd(2), b'\r') => State::ChunkEnd(1),
            (State::ChunkEnd(_), b'\n') => State::ChunkSize { size: 0, digits: 0 },
            (State::Trailer { empty: true }, b'\n') => State::Done,
            (State::Trailer { .. }, b'\n') => State::Trailer { empty: true },
            (&State::Trailer { empty }, b'\r') => State::Trailer { empty },
            (State::Trailer { .. }, _) => State::Trailer { empty: false },
            _ => return false,
        };
        true
    }
}

/// Whether a segment ends with the last chunk. `window` holds the bytes seen just before it, and none after a gap: what
/// follows a gap may start with the last chunk.
fn ends_with_last_chunk(window: &mut Vec<u8>, segment: &[u8]) -> bool {
    let kept = LAST_CHUNK.len();
    window.extend_from_slice(segment.get(segment.len().saturating_sub(kept)..).unwrap_or_default());
    let whole = window.len() < kept && segment.len() < kept;
    window.drain(..window.len().saturating_sub(kept));
    window.as_slice() == LAST_CHUNK || (whole && LAST_CHUNK.get(2..) == Some(window.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks `message` whole and cut in two at every place; `payload` bytes of it are payload, and `after` are not its own.
    fn check(framing: Framing, message: &[u8], payload: u64, after: usize) {
        for cut in 0..=message.len() {
            let mut body = Body::new(framing);
            let mut taken = body.advance(&message[..cut]);
            taken += body.advance(&message[taken.max(cut)..]);
            assert!(body.is_done(), "cut at {cut}: {body:?}");
            assert_eq!((body.size(), message.len() - taken), (Some(payload), after), "cut at {cut}");
        }
    }

    #[test]
    fn finds_the_end() {
        check(Framing::Length(5), b"helloHTTP", 5, 4);
        check(Framing::Chunked, b"5\r\nhello\r\n0\r\n\r\nGET", 5, 3);
        check(
            Framing::Chunked,
            b"5;a=\"b\"\r\nhello\r\nA \r\n0123456789\r\n000\r\nX: y\r\nZ:\r\n\r\n",
            15,
            0,
        );
        check(Framing::Chunked, b"1\nx\n0\n\n", 1, 0);
    }

    #[test]
    fn gaps_inside_data_only_count() {
        let mut body = Body::new(Framing::Chunked);
        body.advance(b"100\r\nabc");
        assert_eq!(body.interest(), Interest::LengthOnly(0x100 - 4));
        assert_eq!(body.skip(0x100 - 3 + 2), 0x100 - 1);
        assert_eq!(body.advance(b"0\r\n\r\nnext"), 5);
        assert_eq!((body.is_done(), body.is_framed(), body.size()), (true, true, Some(0x100)));
    }

    #[test]
    fn the_last_chunk_is_recognised_after_a_loss() {
        for segments in [&[&b"xyz\r\n0\r\n\r\n"[..]][..], &[b"0\r\n\r\n"], &[b"xyz\r", b"\n0\r", b"\n\r\n"]] {
            let mut body = Body::new(Framing::Chunked);
            body.advance(b"5\r\nhello\r\n");
            assert_eq!(body.skip(1000), 1000);
            for segment in segments {
                assert!(!body.is_done());
                assert_eq!(body.advance(segment), segment.len());
            }
            assert_eq!((body.is_done(), body.is_framed(), body.size()), (true, false, None));
        }
        let mut body = Body::new(Framing::Unknown { chunked: true });
        body.advance(b"1230\r\n\r\n");
        assert!(!body.is_done());
    }

    #[test]
    fn bad_chunks_lose_the_framing() {
        for bad in [&b"\r\n"[..], b"xyz", b"11111111111111111\r\n", b"1\r\nab", b"1x\r\n"] {
            let mut body = Body::new(Framing::Chunked);
            assert_eq!(body.advance(bad), bad.len());
            assert_eq!((body.is_done(), body.is_framed()), (false, false), "{}", bad.escape_ascii());
        }
    }
}
