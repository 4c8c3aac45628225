//! HTTP/2, as far as it shows that a client exports its own traces over gRPC, and no further.
//!
//! Steps over the frames that a client sends (RFC 9113, section 4.1) and looks into the beginning of HEADERS, for the path of
//! the export as a literal (a path that was sent before is a reference to it, and says nothing), and of DATA, for a span in
//! a message that is not compressed. Knows no stream, keeps no HPACK table, makes no exchange.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

use super::otlp::{self, Signal};
use super::{Direction, Event, Interest, Segment, Walker};

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's head.
const HEAD: usize = 9;
/// Frame types.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// The HEADERS of a request that has no further ones.
const END_HEADERS: u8 = 4;
/// First bytes of a frame's payload that are looked at. A request's header fields are a few hundred bytes, and so is the
/// resource before the first span.
const JUDGED: usize = 4096;
/// No HEADERS frame of a request that concerns us is longer; it is the longest frame that need not be agreed on.
const MOST_HEADERS: usize = 16_384;
/// Requests after which a client that has shown nothing is let be. SDKs send metrics and logs on the same connection.
const PATIENCE: usize = 64;
/// `gRPC-Web` and others aside: one byte "compressed", four of length, before each message.
const GRPC_PREFIX: usize = 5;

/// Whether a client that sends these bytes speaks HTTP/2, by its preface or, in the midst of a connection, by a gRPC
/// request: HEADERS and then DATA of the same stream, and lengths that fit.
pub fn is_client(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"PRI * HTTP/2.0") {
        return true;
    }
    let (mut bytes, mut request) = (bytes, None);
    while let Some((head, rest)) = Head::read(bytes) {
        if !head.is_plausible() {
            return false;
        }
        match head.kind {
            HEADERS if head.flags & END_HEADERS != 0 => request = Some(head.stream),
            DATA if request == Some(head.stream) => return is_message(rest, head.length),
            HEADERS | DATA => return false,
            _ => {}
        }
        bytes = rest.get(head.length..).unwrap_or_default();
    }
    false
}

/// Whether a frame's payload of this length begins a gRPC message.
fn is_message(payload: &[u8], frame: usize) -> bool {
    let length = u32_of(payload.get(1..GRPC_PREFIX)).and_then(|length| usize::try_from(length).ok());
    matches!(payload.first(), Some(0 | 1))
        && length.is_some_and(|length| length.saturating_add(GRPC_PREFIX) >= frame)
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    /// The head that `bytes` begin with, and what follows it.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (&[a, b, c, kind, flags, ref stream @ ..], rest) = bytes.split_first_chunk::<HEAD>()?;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let stream = u32::from_be_bytes(*stream) & 0x7fff_ffff;
        Some((Self { length, kind, flags, stream }, rest))
    }

    /// Whether a client may send this: RFC 9113, section 6. Bytes of another kind are rarely so.
    fn is_plausible(self) -> bool {
        const PRIORITY: u8 = 2;
        const RST_STREAM: u8 = 3;
        const SETTINGS: u8 = 4;
        const PING: u8 = 6;
        const WINDOW_UPDATE: u8 = 8;
        let Self { length, kind, stream, .. } = self;
        match kind {
            HEADERS => stream % 2 == 1 && (1..=MOST_HEADERS).contains(&length),
            DATA => stream % 2 == 1,
            PRIORITY => length == 5,
            RST_STREAM => length == 4 && stream != 0,
            SETTINGS => length % 6 == 0 && length < 256 && stream == 0,
            PING => length == 8 && stream == 0,
            WINDOW_UPDATE => length == 4,
            _ => false,
        }
    }
}

fn u32_of(bytes: Option<&[u8]>) -> Option<u32> {
    Some(u32::from_be_bytes(bytes?.try_into().ok()?))
}

/// Where the walker is in what the client sends.
#[derive(Debug)]
enum State {
    /// At the very first bytes.
    Start,
    /// In a frame's head, or the preface.
    Head,
    /// In a frame's payload; so many bytes are to come.
    Payload { kind: u8, left: usize },
    /// It is not known where the next frame begins.
    Lost,
    /// Everything has been learnt that can be.
    Done,
}

/// The walker of a connection on which the observed process is an HTTP/2 client.
#[derive(Debug)]
pub struct Http2Walker {
    state: State,
    /// The head or the beginning of the payload so far.
    bytes: Vec<u8>,
    requests: usize,
}

impl Http2Walker {
    /// A walker for a connection from its beginning, or from the beginning of any frame.
    pub fn new() -> Self {
        Self { state: State::Start, bytes: Vec::new(), requests: 0 }
    }

    /// Takes bytes until `self.bytes` has `wanted`; gives the rest once it has.
    fn fill<'a>(&mut self, bytes: &'a [u8], wanted: usize) -> Option<&'a [u8]> {
        let missing = wanted.saturating_sub(self.bytes.len());
        let (taken, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
        self.bytes.extend_from_slice(taken);
        (self.bytes.len() >= wanted).then_some(rest)
    }

    fn sent<M: Copy>(&mut self, mut bytes: &[u8], mark: M, events: &mut Vec<Event<M>>) {
        // A frame may begin with a call.
        if matches!(self.state, State::Lost) && Head::read(bytes).is_some_and(|(head, _)| head.is_plausible())
        {
            self.state = State::Head;
        }
        while !bytes.is_empty() {
            match self.state {
                State::Start => {
                    // The preface reads as the head of a frame with more than there ever is in one.
                    let first = bytes.first() == PREFACE.first() || !self.bytes.is_empty();
                    let wanted = if first { PREFACE.len() } else { 0 };
                    let Some(rest) = self.fill(bytes, wanted) else { return };
                    bytes = rest;
                    self.state = if !first || self.bytes == PREFACE { State::Head } else { State::Done };
                    self.bytes.clear();
                }
                State::Head => {
                    let Some(rest) = self.fill(bytes, HEAD) else { return };
                    bytes = rest;
                    let head = Head::read(&self.bytes).map(|(head, _)| head);
                    self.bytes.clear();
                    let Some(Head { length, kind, .. }) = head else { return };
                    self.state = State::Payload { kind, left: length };
                    if length == 0 {
                        self.state = State::Head;
                    }
                }
                State::Payload { kind, left } => {
                    let (now, rest) = bytes.split_at_checked(left).unwrap_or((bytes, &[]));
                    let room = JUDGED.saturating_sub(self.bytes.len());
                    if matches!(kind, HEADERS | DATA) {
                        self.bytes.extend(now.iter().take(room));
                    }
                    bytes = rest;
                    self.passed(kind, left, now.len(), mark, events);
                }
                State::Lost | State::Done => return,
            }
        }
    }

    /// Bytes were not captured.
    fn gap<M: Copy>(&mut self, count: usize, mark: M, events: &mut Vec<Event<M>>) {
        match self.state {
            State::Done => {}
            State::Payload { kind, left } => {
                // Of a frame that is cut there is still its beginning.
                self.passed(kind, left, count, mark, events);
                if count > left && !matches!(self.state, State::Done) {
                    self.lose();
                }
            }
            State::Start | State::Head | State::Lost => {
                self.bytes.clear();
                self.lose();
            }
        }
    }

    fn lose(&mut self) {
        self.requests = self.requests.saturating_add(1);
        self.state = if self.requests > PATIENCE { State::Done } else { State::Lost };
    }

    /// So many bytes of a payload have gone by.
    fn passed<M: Copy>(&mut self, kind: u8, left: usize, count: usize, mark: M, events: &mut Vec<Event<M>>) {
        let left = left.saturating_sub(count);
        self.state = State::Payload { kind, left };
        if left > 0 {
            return;
        }
        self.state = State::Head;
        let exported = match kind {
            HEADERS => otlp::names_trace_export(&self.bytes),
            DATA => match self.bytes.split_first_chunk::<GRPC_PREFIX>() {
                Some(([0, ..], message)) => otlp::has_span(message),
                _ => false,
            },
            _ => false,
        };
        self.bytes.clear();
        if kind == HEADERS {
            self.requests = self.requests.saturating_add(1);
        }
        if exported {
            events.push(Event::Telemetry { exchange: None, signal: Signal::Traces, mark });
        }
        if exported || self.requests > PATIENCE {
            self.state = State::Done;
        }
    }
}

impl Default for Http2Walker {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Copy + Send> Walker<M> for Http2Walker {
    fn feed(&mut self, direction: Direction, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
        match (direction, segment) {
            (Direction::Recv, _) => {}
            (Direction::Send, Segment::Bytes(bytes)) => self.sent(bytes, mark, events),
            (Direction::Send, Segment::Gap(count)) => {
                self.gap(usize::try_from(count).unwrap_or(usize::MAX), mark, events);
            }
        }
    }

    fn end(&mut self, _: Direction, _: M, _: &mut Vec<Event<M>>) {}

    fn close(&mut self, _: M, _: &mut Vec<Event<M>>) {}

    fn interest(&self, direction: Direction) -> Interest {
        match (direction, &self.state) {
            (_, State::Done) => Interest::Nothing,
            // No position is ever reached that is so far away.
            (Direction::Recv, _) => Interest::LengthOnly(u64::MAX >> 1),
            (Direction::Send, State::Payload { left, .. }) if self.bytes.len() >= JUDGED => {
                Interest::LengthOnly(*left as u64)
            }
            (Direction::Send, _) => Interest::Bytes,
        }
    }

    fn open_exchanges(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    fn request(path: &str, message: &[u8]) -> Vec<u8> {
        let field = [&[0x83, 0x86, 0x44, u8::try_from(path.len()).unwrap()], path.as_bytes()].concat();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let data = [&[0], &length[..], message].concat();
        [frame(HEADERS, END_HEADERS, 1, &field), frame(DATA, 1, 1, &data)].concat()
    }

    /// Feeds the bytes in two pieces, cut everywhere, and truncated everywhere.
    fn check(bytes: &[u8], expected: bool) {
        let exports = |pieces: &[&[u8]]| {
            let (mut walker, mut events) = (Http2Walker::new(), Vec::new());
            for piece in pieces {
                walker.feed(Direction::Send, Segment::Bytes(piece), 0, &mut events);
            }
            assert!(events.len() <= 1, "{events:?}");
            !events.is_empty()
        };
        for at in 0..=bytes.len() {
            let (first, second) = bytes.split_at(at);
            assert_eq!(exports(&[first, second]), expected, "cut at {at}");
            assert!(expected || !exports(&[first]), "truncated at {at}");
        }
    }

    const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    const SPAN: &[u8] = b"\x0a\x40\x12\x3e\x12\x3c\x0a\x10\x8f\x01\xc0\xa9\x77\x13\xee\x02\x91\x55\xd4\x10\x07\x99\xfe\x31\x12\x08\x81\x02\xf3\x04\x95\x06\x17\xe8";

    #[test]
    fn an_export_is_known_by_its_path() {
        let settings = frame(4, 0, 0, &[0; 12]);
        let start = [PREFACE, &settings].concat();
        check(&[&start[..], &request(TRACES, b"")].concat(), true);
        check(&[&start[..], &request(METRICS, b"m"), &request(TRACES, b"")].concat(), true);
        check(
            &[&start[..], &request(METRICS, b"m"), &request("/shop.Orders/Place", b"order")].concat(),
            false,
        );
        // The path as part of a message is not the path.
        check(&[&start[..], &request("/shop.Orders/Place", TRACES.as_bytes())].concat(), false);
    }

    #[test]
    fn in_the_midst_of_a_connection_by_what_is_sent() {
        // The path is a reference to an earlier one.
        let later = |message: &[u8]| {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            let data = [&[0], &length[..], message].concat();
            let ping = frame(6, 0, 0, &[0; 8]);
            let window = frame(8, 0, 7, &[0; 4]);
            [ping, frame(HEADERS, END_HEADERS, 7, &[0x83, 0x86, 0xbe]), window, frame(DATA, 1, 7, &data)]
                .concat()
        };
        assert!(is_client(&later(SPAN)) && is_client(PREFACE));
        check(&later(SPAN), true);
        check(&later(b"\x0a\x03abc"), false);
        for other in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"Q\0\0\0\x0dselect 1\0",
            b"*1\r\n$4\r\nPING\r\n",
            b"\x16\x03\x01",
        ] {
            assert!(!is_client(other));
        }
        let response = [frame(HEADERS, END_HEADERS, 2, b"\x88"), frame(DATA, 1, 2, &[0; 5])].concat();
        assert!(!is_client(&response), "a pushed stream is no client's");
    }

    #[test]
    fn gaps_in_payloads_are_stepped_over() {
        let (mut walker, mut events) = (Http2Walker::new(), Vec::new());
        let start = [PREFACE, &frame(DATA, 0, 1, &[0; 9000])[..5000]].concat();
        walker.feed(Direction::Send, Segment::Bytes(&start), 0, &mut events);
        let interest = Walker::<i32>::interest(&walker, Direction::Send);
        assert_eq!(interest, Interest::LengthOnly(9000 + 9 - 5000));
        walker.feed(Direction::Send, Segment::Gap(9000 + 9 - 5000), 0, &mut events);
        walker.feed(Direction::Send, Segment::Bytes(&request(TRACES, b"")), 0, &mut events);
        assert_eq!(events.len(), 1);
        assert_eq!(Walker::<i32>::interest(&walker, Direction::Recv), Interest::Nothing);
    }

    /// gRPC's C core hands a request over in more pieces than are captured: the rest of the call is a gap.
    #[test]
    fn a_cut_call_shows_its_beginning_and_the_next_call_begins_anew() {
        let (mut walker, mut events) = (Http2Walker::new(), Vec::new());
        let metrics = request(METRICS, &[0; 300]);
        walker.feed(Direction::Send, Segment::Bytes(PREFACE), 0, &mut events);
        walker.feed(Direction::Send, Segment::Bytes(&metrics[..50]), 0, &mut events);
        walker.feed(Direction::Send, Segment::Gap(metrics.len() as u64 - 50), 0, &mut events);
        walker.feed(Direction::Send, Segment::Bytes(b"the tail of it"), 0, &mut events);
        assert!(events.is_empty());
        let traces = request(TRACES, &[0; 300]);
        let cut = 13 + TRACES.len();
        walker.feed(Direction::Send, Segment::Bytes(&traces[..cut]), 1, &mut events);
        walker.feed(Direction::Send, Segment::Gap((traces.len() - cut) as u64), 1, &mut events);
        assert!(matches!(events[..], [Event::Telemetry { mark: 1, .. }]), "{events:?}");
    }

    #[test]
    fn a_client_that_exports_nothing_is_let_be() {
        let (mut walker, mut events) = (Http2Walker::new(), Vec::new());
        for _ in 0..=PATIENCE {
            walker.feed(Direction::Send, Segment::Bytes(&request("/a", b"")), 0, &mut events);
        }
        assert_eq!(Walker::<i32>::interest(&walker, Direction::Send), Interest::Nothing);
        assert!(events.is_empty());
    }
}
