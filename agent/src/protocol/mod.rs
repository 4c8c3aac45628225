//! Bytes in, exchanges out: the walkers of the protocols that pitviper understands, and the contract they share.
//!
//! A walker sees one connection as two streams of [`Segment`]s in the order in which they happened. It knows no pid,
//! no clock and no I/O: what the caller knows about a segment (when, which thread, which logical task) travels as an
//! opaque [`Copy`] mark `M` and comes back in the [`Event`]s. No bytes whatsoever may make a walker panic, loop or
//! grow without bound, and a [`Segment::Gap`] (bytes that were transferred but not captured) costs at most the
//! exchanges it touches: lengths are used to step over it, and where that is not possible the walker resyncs.

pub mod celery;
pub mod detect;
pub mod http;
pub mod http2;
pub mod otlp;
pub mod postgres;
pub mod redis;
pub mod sql;

/// Which way bytes went, as seen by the observed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The observed process wrote them.
    Send,
    /// The observed process read them.
    Recv,
}

impl Direction {
    /// The other one.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Send => Self::Recv,
            Self::Recv => Self::Send,
        }
    }
}

/// The observed process's part in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It sends requests.
    Client,
    /// It receives requests.
    Server,
}

impl Role {
    /// Where requests travel for this role.
    pub const fn request_direction(self) -> Direction {
        match self {
            Self::Client => Direction::Send,
            Self::Server => Direction::Recv,
        }
    }
}

/// A piece of one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Captured bytes.
    Bytes(&'a [u8]),
    /// So many bytes were transferred here, and not captured.
    Gap(u64),
}

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    Http,
    /// HTTP/2, only to see whether a client exports its own traces.
    Http2,
    /// PostgreSQL's frontend/backend protocol, version 3.
    Postgres,
    /// RESP2 and RESP3.
    Redis,
}

/// One protocol's opinion of the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// These bytes are not mine.
    No,
    /// They may be; more bytes would tell.
    Perhaps,
    /// They are, and they are a request (`true`) or a response (`false`).
    Yes {
        /// Whether the bytes are a request; else they are a response or a server's greeting.
        request: bool,
    },
}

/// What an exchange asked for and got, once nothing more can be learnt of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// An HTTP request and its response.
    Http(Box<http::Exchange>),
    /// A PostgreSQL statement and its result.
    Postgres(Box<postgres::Exchange>),
    /// A Redis command and its reply.
    Redis(Box<redis::Exchange>),
    /// A task that a Celery worker ran, and how it ended.
    Celery(Box<celery::Run>),
    /// What was announced as [`Event::Opened`] turned out to be no exchange worth a span, or its bytes were lost.
    Discarded,
}

impl Outcome {
    /// Whether some of the exchange's bytes were lost, so that its end is a guess.
    pub fn bytes_lost(&self) -> bool {
        match self {
            Self::Http(exchange) => exchange.ending == http::Ending::BytesLost,
            Self::Postgres(_) | Self::Redis(_) | Self::Celery(_) => false,
            Self::Discarded => true,
        }
    }
}

/// What a request says in its own bytes of the trace that it is part of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceHeaders {
    /// Value of the `traceparent` header, as it was sent.
    pub traceparent: Option<Box<str>>,
    /// Values of the `tracestate` headers, joined with commas.
    pub tracestate: Option<Box<str>>,
    /// The message that it puts on a queue, or takes from one.
    pub message: Option<MessageId>,
    /// There may be a context that is not told here: the request was not seen whole, or contradicts itself.
    pub uncertain: bool,
}

/// Identity of a message that goes through a queue, the same for who sends it and who gets it: a hash of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(u128);

impl MessageId {
    /// Of the message with this id, sent for the `attempt`th time: FNV-1a, 128 bits wide.
    pub fn of(id: &str, attempt: u32) -> Self {
        const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let bytes = attempt.to_le_bytes().into_iter().chain(id.bytes());
        Self(bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME)))
    }
}

/// What a walker has learnt. `exchange` numbers count up from 0 on each connection, and every exchange goes through
/// `Opened`, at most one `Telemetry`, at most one `Answered`, and exactly one `Closed`, in this order (several exchanges
/// interleave).
#[derive(Clone, Debug, PartialEq)]
pub enum Event<M> {
    /// A request is known well enough to act on: an HTTP request's head is complete, a statement or command was sent.
    Opened {
        /// Number of the exchange on this connection.
        exchange: u64,
        /// The observed process's part.
        role: Role,
        /// Mark of the segment that held the request's first byte.
        first: M,
        /// Mark of the segment that made the request known: for HTTP the one that completed its head.
        head: M,
        /// The trace context that came with it.
        trace: TraceHeaders,
        /// A hash of the request's captured first bytes; both ends of a connection compute the same.
        fingerprint: u64,
    },
    /// A request carries telemetry: an exchange that was opened, or one of a protocol whose exchanges are not followed.
    Telemetry {
        /// Number of the exchange on this connection, if it was opened.
        exchange: Option<u64>,
        /// What it carries.
        signal: otlp::Signal,
        /// Mark of the segment that tells.
        mark: M,
    },
    /// The first byte of the (final) response was seen.
    Answered {
        /// Number of the exchange on this connection.
        exchange: u64,
        /// Mark of the segment with that byte.
        mark: M,
    },
    /// The exchange is over.
    Closed {
        /// Number of the exchange on this connection.
        exchange: u64,
        /// Mark of the segment with the last byte of the response (or of what ended the exchange).
        last: M,
        /// What it was.
        outcome: Outcome,
    },
}

/// What a walker wants to see next of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The bytes.
    Bytes,
    /// The next so many bytes are body; a [`Segment::Gap`] serves as well. The bytes after them matter again.
    LengthOnly(u64),
    /// Nothing more, ever, in either direction: the connection has left the protocol (an upgrade, encryption).
    Nothing,
}

/// A walker of one connection.
pub trait Walker<M: Copy>: Send {
    /// Takes the next segment of one direction, and appends what it teaches to `events`.
    fn feed(&mut self, direction: Direction, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>);

    /// The peer in `direction` will send nothing more (end of file). `Direction::Recv`: a read returned 0.
    fn end(&mut self, direction: Direction, mark: M, events: &mut Vec<Event<M>>);

    /// The connection is gone: every open exchange is closed.
    fn close(&mut self, mark: M, events: &mut Vec<Event<M>>);

    /// What the walker wants to see next of `direction`.
    fn interest(&self, direction: Direction) -> Interest;

    /// Number of exchanges that are open: for telemetry and limits.
    fn open_exchanges(&self) -> usize;
}

/// Makes the walker of a protocol. `role` is the observed process's part in the connection.
pub fn walker<M: Copy + Send + 'static>(protocol: Protocol, role: Role) -> Box<dyn Walker<M>> {
    match protocol {
        Protocol::Http => Box::new(http::HttpWalker::new(role)),
        Protocol::Http2 => Box::new(http2::Http2Walker::new()),
        Protocol::Postgres => Box::new(postgres::PostgresWalker::new(role)),
        Protocol::Redis => Box::new(redis::RedisWalker::new(role)),
    }
}
