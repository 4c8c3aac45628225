//! Heads of requests and responses: collected up to a bound, then read for the few fields that matter.
//!
//! Takes the bytes of a head in any pieces, and whether it was seen whole; gives the facts of [`Exchange`], the framing
//! of the body, the trace context and the fingerprint. Says nothing about which response belongs to which request.

use super::body::Framing;
use super::forwarded::Forwarding;
use super::start_line::{request_line, status_line};
use super::types::{Ending, Exchange, MAX_FIELD, MAX_TARGET, Version};
use crate::protocol::TraceHeaders;
use crate::protocol::otlp::{self, Signal};

/// Longest head collected, in bytes; a longer one counts as cut there.
const MAX_HEAD: usize = 16 * 1024;
/// Capacity kept between messages, in bytes.
const IDLE_CAPACITY: usize = 1024;
/// Bytes of a request's head that make its fingerprint.
const FINGERPRINT: usize = 1024;

/// What became of the bytes given to a [`HeadBuffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Incomplete,
    Complete,
    /// The head is longer than what is collected.
    Full,
}

/// The bytes of a head so far.
#[derive(Debug, Default)]
pub(super) struct HeadBuffer {
    bytes: Vec<u8>,
    line_start: usize,
    judged: bool,
}

impl HeadBuffer {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(IDLE_CAPACITY);
        self.line_start = 0;
        self.judged = false;
    }

    /// The first line has been found to be that of a request.
    pub(super) fn is_judged(&self) -> bool {
        self.judged
    }

    pub(super) fn set_judged(&mut self) {
        self.judged = true;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes bytes up to the empty line that ends the head; says how many it took.
    pub(super) fn push(&mut self, input: &[u8]) -> (usize, Progress) {
        let mut taken: usize = 0;
        for line in input.split_inclusive(|&byte| byte == b'\n') {
            let room = MAX_HEAD.saturating_sub(self.bytes.len());
            let Some(line) = line.get(..line.len().min(room)).filter(|line| !line.is_empty()) else {
                return (taken, Progress::Full);
            };
            self.bytes.extend_from_slice(line);
            taken = taken.saturating_add(line.len());
            if line.ends_with(b"\n") {
                let whole = self.bytes.get(self.line_start..).unwrap_or_default();
                if matches!(whole, b"\r\n" | b"\n") {
                    return (taken, Progress::Complete);
                }
                self.line_start = self.bytes.len();
            }
        }
        (taken, Progress::Incomplete)
    }
}

/// The first line of a head, and its fields. A field whose line is cut is left out.
fn lines(head: &[u8]) -> (&[u8], impl Iterator<Item = (&[u8], &[u8])>) {
    let mut lines = head.split_inclusive(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default().trim_ascii_end();
    let fields = lines.filter(|line| line.ends_with(b"\n")).filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        Some((name, value.get(1..)?.trim_ascii()))
    });
    (first, fields)
}

/// At most `limit` bytes of `bytes`, as text.
fn text(bytes: &[u8], limit: usize) -> Box<str> {
    let kept = bytes.get(..limit).unwrap_or(bytes);
    String::from_utf8_lossy(kept).into_owned().into_boxed_str()
}

/// What a head says about the body after it.
#[derive(Debug, Default)]
struct BodyFields {
    length: Option<u64>,
    contradiction: bool,
    /// `Transfer-Encoding` is there; whether its last coding is chunked.
    chunked: Option<bool>,
}

impl BodyFields {
    fn read(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(b"content-length") {
            for item in value.split(|&byte| byte == b',') {
                let digits = Some(item.trim_ascii())
                    .filter(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
                let length = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
                self.contradiction |= length.is_none() || self.length.is_some_and(|old| Some(old) != length);
                self.length = length;
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let last = value.rsplit(|&byte| byte == b',').next().unwrap_or_default().trim_ascii();
            self.chunked = Some(last.eq_ignore_ascii_case(b"chunked"));
        }
    }

    /// `otherwise`: the framing if the head names none that can be followed.
    fn framing(&self, complete: bool, absent: Framing, otherwise: Framing) -> Framing {
        match self {
            _ if !complete => Framing::Unknown { chunked: self.chunked == Some(true) },
            Self { chunked: Some(true), .. } => Framing::Chunked,
            Self { chunked: Some(false), .. } | Self { contradiction: true, .. } => otherwise,
            Self { length: Some(length), .. } => Framing::Length(*length),
            _ => absent,
        }
    }
}

/// What the head of a request says.
#[derive(Debug)]
pub(super) struct RequestHead {
    /// Without anything of a response.
    pub(super) exchange: Exchange,
    pub(super) trace: TraceHeaders,
    pub(super) fingerprint: u64,
    pub(super) framing: Framing,
    /// The response may take the connection out of HTTP.
    pub(super) may_leave: bool,
    /// The request exports telemetry.
    pub(super) exports: Option<Signal>,
}

impl RequestHead {
    /// Reads a head; `None` if not even its first line can be made out. `complete`: it was seen to its end.
    pub(super) fn parse(head: &[u8], complete: bool) -> Option<Self> {
        let (first, fields) = lines(head);
        let line = request_line(first)?;
        let mut exchange = Exchange {
            method: text(line.method, line.method.len()),
            target: text(line.target, MAX_TARGET),
            target_truncated: line.truncated || line.target.len() > MAX_TARGET,
            head_truncated: !complete,
            version: line.version,
            host: None,
            user_agent: None,
            forwarded_for: None,
            forwarded_proto: None,
            request_body_size: None,
            status: None,
            response_version: None,
            content_type: None,
            response_body_size: None,
            ending: Ending::BytesLost,
        };
        let mut body = BodyFields::default();
        let mut forwarding = Forwarding::default();
        let mut trace = Trace::default();
        let mut may_leave = line.method == b"CONNECT";
        let mut content_type: &[u8] = b"";
        for (name, value) in fields {
            body.read(name, value);
            forwarding.read(name, value);
            trace.read(name, value);
            if name.eq_ignore_ascii_case(b"host") {
                exchange.host.get_or_insert_with(|| text(value, MAX_FIELD));
            } else if name.eq_ignore_ascii_case(b"user-agent") {
                exchange.user_agent.get_or_insert_with(|| text(value, MAX_FIELD));
            } else if name.eq_ignore_ascii_case(b"upgrade") {
                may_leave = true;
            } else if name.eq_ignore_ascii_case(b"content-type") {
                content_type = value;
            }
        }
        exchange.forwarded_for = forwarding.address();
        exchange.forwarded_proto = forwarding.proto();
        let framing = body.framing(complete, Framing::None, Framing::Unknown { chunked: false });
        let exports = otlp::of_http(line.method, line.target, content_type, exchange.user_agent.as_deref());
        Some(Self {
            exchange,
            trace: trace.finish(complete),
            fingerprint: fingerprint(head),
            framing,
            may_leave,
            exports,
        })
    }
}

/// What the head of a response says.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) version: Version,
    pub(super) status: u16,
    pub(super) content_type: Option<Box<str>>,
    body: BodyFields,
    complete: bool,
}

impl ResponseHead {
    /// Reads a head; `None` if not even its status can be made out. `complete`: it was seen to its end.
    pub(super) fn parse(head: &[u8], complete: bool) -> Option<Self> {
        let (first, fields) = lines(head);
        let (version, status) = status_line(first)?;
        let mut parsed = Self { version, status, content_type: None, body: BodyFields::default(), complete };
        for (name, value) in fields {
            parsed.body.read(name, value);
            if name.eq_ignore_ascii_case(b"content-type") {
                parsed.content_type = Some(text(value, MAX_FIELD));
            }
        }
        Some(parsed)
    }

    /// Another response to the same request follows.
    pub(super) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// The connection leaves HTTP after this response to `method`.
    pub(super) fn leaves_http(&self, method: &str) -> bool {
        self.status == 101 || (method == "CONNECT" && (200..300).contains(&self.status))
    }

    /// How the body of this response to `method` is framed.
    pub(super) fn framing(&self, method: &str) -> Framing {
        if self.complete && (method == "HEAD" || matches!(self.status, 100..=199 | 204 | 304)) {
            return Framing::None;
        }
        self.body.framing(self.complete, Framing::UntilEnd, Framing::UntilEnd)
    }
}

/// The W3C trace context fields.
#[derive(Debug, Default)]
struct Trace {
    parents: usize,
    headers: TraceHeaders,
}

impl Trace {
    fn read(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(b"traceparent") {
            self.parents = self.parents.saturating_add(1);
            self.headers.traceparent = Some(text(value, MAX_FIELD));
        } else if name.eq_ignore_ascii_case(b"tracestate") {
            let value = text(value, value.len());
            self.headers.tracestate = Some(match self.headers.tracestate.take() {
                Some(before) => format!("{before},{value}").into_boxed_str(),
                None => value,
            });
        }
    }

    /// A request with several parents has none, and state without a parent means nothing. `complete`: there are no
    /// further fields.
    fn finish(self, complete: bool) -> TraceHeaders {
        let uncertain = !complete || self.parents > 1;
        let headers = if self.parents == 1 { self.headers } else { TraceHeaders::default() };
        TraceHeaders { uncertain, ..headers }
    }
}

/// FNV-1a, 64 bits: stable across builds and machines.
fn fingerprint(head: &[u8]) -> u64 {
    head.iter().take(FINGERPRINT).fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
