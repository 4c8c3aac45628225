//! The stream of requests: heads, bodies, and finding a head again after a loss.

use super::body::{Body, Framing};
use super::head::{Progress, RequestHead};
use super::start_line::guess_request;
use super::types::{Ending, Exchange, STANDARD_METHODS, Version};
use super::{HttpWalker, State};
use crate::protocol::{Event, Guess};

impl<M: Copy> HttpWalker<M> {
    pub(super) fn request_bytes(&mut self, bytes: &[u8], mark: M, events: &mut Vec<Event<M>>) {
        let mut rest = bytes;
        let mut at_start = true;
        while !rest.is_empty() && !self.left {
            match &mut self.requests.state {
                State::Lost => {
                    if !at_start || !self.may_believe_a_request() || guess_request(rest) == Guess::No {
                        return;
                    }
                    self.requests.head.clear();
                    self.requests.state = State::Head { first: mark };
                    self.tentative = true;
                }
                State::Between => {
                    rest = skip_line_ends(rest);
                    if rest.is_empty() {
                        return;
                    }
                    // Two requests in one segment: the second was sent before the first could be answered.
                    self.pipelines |=
                        !at_start && self.pairing.open() > 0 && !self.response_ends_with_next_request();
                    self.requests.head.clear();
                    self.requests.state = State::Head { first: mark };
                    self.tentative = false;
                }
                State::Head { .. } if at_start && self.tentative && is_request_line(rest) => {
                    // What was collected was the end of something else that looked like a method.
                    self.tentative = false;
                    self.requests.state = State::Lost;
                    continue;
                }
                State::Head { .. } => {
                    let judged = self.requests.head.is_judged();
                    let (taken, progress) = self.requests.head.push(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    if !judged {
                        match guess_request(self.requests.head.bytes()) {
                            Guess::No => {
                                self.requests.state = State::Lost;
                                return;
                            }
                            Guess::Perhaps => {}
                            Guess::Yes { .. } => self.requests.head.set_judged(),
                        }
                    }
                    match progress {
                        Progress::Incomplete => {}
                        Progress::Complete => self.open_request(true, mark, events),
                        Progress::Full => self.open_request(false, mark, events),
                    }
                }
                State::Body(body) => {
                    let taken = body.advance(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    self.settle_request_body();
                }
            }
            at_start = false;
        }
    }

    pub(super) fn request_gap(&mut self, count: u64, mark: M, events: &mut Vec<Event<M>>) {
        match &mut self.requests.state {
            State::Body(body) => {
                let taken = body.skip(count);
                self.settle_request_body();
                if taken < count {
                    self.requests.state = State::Lost;
                }
            }
            State::Head { .. } => {
                self.open_request(false, mark, events);
                self.requests.state = State::Lost;
            }
            State::Between | State::Lost => self.requests.state = State::Lost,
        }
    }

    /// A response begins, and no request is open: if one has begun, its head will not get better.
    pub(super) fn open_begun_request(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        if !self.tentative && matches!(self.requests.state, State::Head { .. }) {
            self.open_request(false, mark, events);
        }
    }

    fn open_request(&mut self, complete: bool, mark: M, events: &mut Vec<Event<M>>) {
        let State::Head { first } = self.requests.state else { return };
        self.requests.state = State::Lost;
        let parsed = RequestHead::parse(self.requests.head.bytes(), complete);
        self.requests.head.clear();
        let Some(head) = parsed else { return };
        if self.tentative && !(complete && is_credible(&head.exchange)) {
            return;
        }
        if self.response_ends_with_next_request() {
            let last = self.responses.last.unwrap_or(mark);
            self.close_front(Ending::BytesLost, last, events);
            if self.pipelines {
                return self.leave(Ending::BytesLost, mark, events);
            }
        }
        if self.pairing.is_full() {
            return self.leave(Ending::BytesLost, mark, events);
        }
        if self.pairing.open() == 0 {
            self.responses.state = State::Between;
        }
        let framing = head.framing;
        self.pairing.request(head, self.role, (first, mark), events);
        if framing == Framing::None {
            self.requests.state = State::Between;
        } else {
            self.requests.state = State::Body(Body::new(framing));
            self.settle_request_body();
        }
    }

    /// Goes on to what follows the body, if it is over or cannot be followed.
    fn settle_request_body(&mut self) {
        let State::Body(body) = &self.requests.state else { return };
        if body.is_framed() && !body.is_done() {
            return;
        }
        self.pairing.request_body(body.size());
        self.requests.state = if body.is_framed() { State::Between } else { State::Lost };
    }

    /// After a loss, bytes that look like a request are one only if they cannot be the body of another.
    fn may_believe_a_request(&self) -> bool {
        !self.pipelines && (self.pairing.open() == 0 || self.response_ends_with_next_request())
    }

    /// One exchange is open, and the end of its response cannot be computed: the next request proves it.
    fn response_ends_with_next_request(&self) -> bool {
        self.pairing.open() == 1
            && match &self.responses.state {
                State::Lost => true,
                State::Body(body) => !body.is_framed(),
                State::Between | State::Head { .. } => false,
            }
    }
}

fn is_request_line(bytes: &[u8]) -> bool {
    let method = bytes.split(|&byte| byte == b' ').next().unwrap_or_default();
    STANDARD_METHODS.iter().any(|standard| standard.as_bytes() == method)
        && matches!(guess_request(bytes), Guess::Yes { .. })
}

/// What looks like a request after a loss is one, and no piece of one.
fn is_credible(exchange: &Exchange) -> bool {
    STANDARD_METHODS.contains(&&*exchange.method)
        && (exchange.host.is_some() || exchange.version == Version::Http10)
}

/// Empty lines before a message are allowed (RFC 9112, section 2.2).
pub(super) fn skip_line_ends(bytes: &[u8]) -> &[u8] {
    let count = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    bytes.get(count..).unwrap_or_default()
}
