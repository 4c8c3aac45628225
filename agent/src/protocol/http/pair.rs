//! The exchanges of a connection that are open, oldest first.
//!
//! Takes heads of requests and the facts of responses; gives [`Event`]s. Knows nothing of bytes.

use std::collections::VecDeque;

use super::head::{RequestHead, ResponseHead};
use super::types::{Ending, Exchange};
use crate::protocol::{Event, Outcome, Role};

/// More requests than this are never open at once: a client that pipelines deeper is not followed.
const MAX_OPEN: usize = 128;

#[derive(Debug)]
struct Open<M> {
    number: u64,
    exchange: Box<Exchange>,
    may_leave: bool,
    /// Mark of the first byte of the request after this one.
    next_began: Option<M>,
}

/// The open exchanges.
#[derive(Debug)]
pub(super) struct Pairing<M> {
    open: VecDeque<Open<M>>,
    next: u64,
}

impl<M: Copy> Pairing<M> {
    pub(super) fn new() -> Self {
        Self { open: VecDeque::new(), next: 0 }
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.open.len() >= MAX_OPEN
    }

    /// Method of the oldest open exchange.
    pub(super) fn front_method(&self) -> Option<&str> {
        self.open.front().map(|open| &*open.exchange.method)
    }

    /// The response to an open exchange may take the connection out of HTTP.
    pub(super) fn may_leave(&self) -> bool {
        self.open.iter().any(|open| open.may_leave)
    }

    /// Mark of the first byte of the request after the oldest open one.
    pub(super) fn second_began(&self) -> Option<M> {
        self.open.front()?.next_began
    }

    /// A request's head is complete, or as complete as it will be.
    pub(super) fn request(
        &mut self,
        head: RequestHead,
        role: Role,
        marks: (M, M),
        events: &mut Vec<Event<M>>,
    ) {
        let RequestHead { exchange, trace, fingerprint, framing: _, may_leave, exports } = head;
        let (first, head) = marks;
        if let Some(before) = self.open.back_mut() {
            before.next_began = Some(first);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.push_back(Open { number, exchange: Box::new(exchange), may_leave, next_began: None });
        events.push(Event::Opened { exchange: number, role, first, head, trace, fingerprint });
        if let Some(signal) = exports {
            events.push(Event::Telemetry { exchange: Some(number), signal, mark: head });
        }
    }

    /// Notes the size so far of the body of the newest request, if that is still open.
    pub(super) fn request_body(&mut self, size: Option<u64>) {
        let newest = self.next.wrapping_sub(1);
        if let Some(open) = self.open.back_mut().filter(|open| open.number == newest) {
            open.exchange.request_body_size = size;
        }
    }

    /// The final response to the oldest open exchange has begun.
    pub(super) fn response(&mut self, head: ResponseHead, first: M, events: &mut Vec<Event<M>>) {
        let Some(Open { number, exchange, .. }) = self.open.front_mut() else { return };
        exchange.status = Some(head.status);
        exchange.response_version = Some(head.version);
        exchange.content_type = head.content_type;
        events.push(Event::Answered { exchange: *number, mark: first });
    }

    /// Notes the size so far of the body of the response to the oldest open exchange.
    pub(super) fn response_body(&mut self, size: Option<u64>) {
        if let Some(open) = self.open.front_mut() {
            open.exchange.response_body_size = size;
        }
    }

    /// The oldest open exchange is over.
    pub(super) fn close_front(&mut self, ending: Ending, last: M, events: &mut Vec<Event<M>>) {
        let Some(Open { number, mut exchange, .. }) = self.open.pop_front() else { return };
        exchange.ending = ending;
        events.push(Event::Closed { exchange: number, last, outcome: Outcome::Http(exchange) });
    }
}
