//! HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112): a connection's two streams, walked into [`Exchange`]s.
//!
//! # Which response belongs to which request
//! While both streams are framed, response *k* answers request *k*. Where bytes are missing, or make no sense, so that it
//! is not known where a message ends, framing is lost, and these rules hold:
//!
//! 1. *A client that has not proved to pipeline does not*: its next request proves that the response before is over. The
//!    proof that it does is two requests in one segment, or response bytes without a gap while a later request is open. (A
//!    later request alone is none: a lost response is noticed only when the next one comes.) Such a client's requests
//!    prove nothing, and where proof is needed the walker leaves its connection.
//! 2. *The request stream lost its framing.* Requests known before are still answered in order. Nothing is believed to
//!    be a request until they are; then the next one may start at the start of a segment, with a standard method and its
//!    head whole. Responses that come while no request is open answer what was lost, and are ignored.
//! 3. *The response stream lost its framing, one exchange open.* All of what follows is its response. It ends with the
//!    last chunk at the end of a segment if it is chunked, else with the next request or with the connection. If it may have
//!    been the one that upgrades the connection, the walker leaves.
//! 4. *The response stream lost its framing, several exchanges open.* By rule 1 either all but the newest are over, and the
//!    newest is as in rule 3, or the client pipelines, and any of the responses may have gone by: all are closed, and the
//!    walker leaves. What is closed so ends as [`Ending::BytesLost`].
//!
//! Behind all of them stands one fact: bytes of a response come after the first byte of their request, also in the order in
//! which the observed process sees them.

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

mod body;
mod forwarded;
mod head;
mod pair;
mod requests;
mod responses;
mod start_line;
#[cfg(test)]
mod tests;
mod types;

pub use start_line::guess;
pub use types::{Ending, Exchange, MAX_FIELD, MAX_TARGET, STANDARD_METHODS, Version};

use super::{Direction, Event, Interest, Role, Segment, Walker};
use body::Body;
use head::HeadBuffer;
use pair::Pairing;

/// Where the walker is in one direction.
#[derive(Debug)]
enum State<M> {
    /// Between messages: the next byte starts one.
    Between,
    /// In a head.
    Head {
        /// Mark of its first byte.
        first: M,
    },
    /// In a body.
    Body(Body),
    /// Framing is lost.
    Lost,
}

/// One direction of the connection.
#[derive(Debug)]
struct Stream<M> {
    state: State<M>,
    head: HeadBuffer,
    /// Mark of the newest segment.
    last: Option<M>,
}

impl<M> Stream<M> {
    fn new() -> Self {
        Self { state: State::Between, head: HeadBuffer::default(), last: None }
    }

    fn interest(&self) -> Interest {
        if let State::Body(body) = &self.state { body.interest() } else { Interest::Bytes }
    }
}

/// The walker of one HTTP/1 connection.
#[derive(Debug)]
pub struct HttpWalker<M> {
    requests: Stream<M>,
    responses: Stream<M>,
    pairing: Pairing<M>,
    role: Role,
    /// The request head being collected was found after a loss: it may yet turn out to be none.
    tentative: bool,
    /// The client has proved to pipeline.
    pipelines: bool,
    /// Nothing more can be learnt from this connection.
    left: bool,
}

impl<M: Copy> HttpWalker<M> {
    /// A walker for a connection from its beginning, or from any later moment.
    pub fn new(role: Role) -> Self {
        Self {
            requests: Stream::new(),
            responses: Stream::new(),
            pairing: Pairing::new(),
            role,
            tentative: false,
            pipelines: false,
            left: false,
        }
    }

    fn is_request(&self, direction: Direction) -> bool {
        direction == self.role.request_direction()
    }

    /// Closes whatever is open, for the reason `ending`.
    fn finish(&mut self, ending: Ending, mark: M, events: &mut Vec<Event<M>>) {
        if self.left {
            return;
        }
        if let State::Head { .. } = self.responses.state {
            self.response_head(false, mark, events);
            self.responses.state = State::Between;
        }
        let last = self.responses.last.unwrap_or(mark);
        match &self.responses.state {
            State::Body(body) if body.is_until_end() => {
                self.close_front(Ending::Complete, mark, events);
            }
            State::Body(body) if !body.is_framed() => self.close_front(Ending::BytesLost, last, events),
            State::Lost => self.close_front(Ending::BytesLost, last, events),
            _ => {}
        }
        self.leave(ending, mark, events);
    }

    /// Closes the exchanges that are open, and looks at nothing more.
    fn leave(&mut self, ending: Ending, mark: M, events: &mut Vec<Event<M>>) {
        while self.pairing.open() > 0 {
            self.close_front(ending, mark, events);
        }
        self.left = true;
    }

    /// Closes the oldest open exchange, if there is one.
    fn close_front(&mut self, ending: Ending, mark: M, events: &mut Vec<Event<M>>) {
        if let State::Body(body) = &self.requests.state {
            self.pairing.request_body(body.size());
        }
        if let State::Body(body) = &self.responses.state {
            self.pairing.response_body(body.size());
        }
        self.pairing.close_front(ending, mark, events);
        self.responses.state = State::Between;
    }
}

impl<M: Copy + Send> Walker<M> for HttpWalker<M> {
    fn feed(&mut self, direction: Direction, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
        let request = self.is_request(direction);
        match segment {
            _ if self.left => {}
            Segment::Gap(0) | Segment::Bytes([]) => {}
            Segment::Bytes(bytes) if request => self.request_bytes(bytes, mark, events),
            Segment::Bytes(bytes) => self.response_bytes(bytes, mark, events),
            Segment::Gap(count) if request => self.request_gap(count, mark, events),
            Segment::Gap(count) => self.response_gap(count, mark, events),
        }
        if self.pipelines && self.pairing.open() == 0 && matches!(self.requests.state, State::Lost) {
            self.left = true;
        }
    }

    fn end(&mut self, direction: Direction, mark: M, events: &mut Vec<Event<M>>) {
        if !self.is_request(direction) {
            self.finish(Ending::PeerEnded, mark, events);
        }
    }

    fn close(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        self.finish(Ending::ConnectionClosed, mark, events);
    }

    fn interest(&self, direction: Direction) -> Interest {
        if self.left {
            Interest::Nothing
        } else if self.is_request(direction) {
            self.requests.interest()
        } else {
            self.responses.interest()
        }
    }

    fn open_exchanges(&self) -> usize {
        self.pairing.open()
    }
}
