//! The stream of responses: heads, interim responses, bodies, and what to do when their framing is lost.

use super::body::Body;
use super::head::{Progress, ResponseHead};
use super::requests::skip_line_ends;
use super::start_line::guess_response;
use super::types::Ending;
use super::{HttpWalker, State};
use crate::protocol::{Event, Guess};

impl<M: Copy> HttpWalker<M> {
    pub(super) fn response_bytes(&mut self, bytes: &[u8], mark: M, events: &mut Vec<Event<M>>) {
        self.responses.last = Some(mark);
        self.pipelines |= self.pairing.open() > 1 && !matches!(self.responses.state, State::Lost);
        let mut rest = bytes;
        while !rest.is_empty() && !self.left {
            match &mut self.responses.state {
                State::Lost => return,
                State::Between => {
                    rest = skip_line_ends(rest);
                    if rest.is_empty() {
                        return;
                    }
                    if self.pairing.open() == 0 && guess_response(rest) != Guess::No {
                        self.open_begun_request(mark, events);
                    }
                    if self.pairing.open() == 0 {
                        self.responses.state = State::Lost;
                        return;
                    }
                    self.responses.head.clear();
                    self.responses.state = State::Head { first: mark };
                }
                State::Head { .. } => {
                    let (taken, progress) = self.responses.head.push(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    match (guess_response(self.responses.head.bytes()), progress) {
                        (Guess::No, _) => return self.lose_responses(mark, events),
                        (_, Progress::Incomplete) => {}
                        (_, Progress::Complete) => self.response_head(true, mark, events),
                        (_, Progress::Full) => self.response_head(false, mark, events),
                    }
                }
                State::Body(body) => {
                    let taken = body.advance(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    self.settle_response_body(mark, events);
                }
            }
        }
    }

    pub(super) fn response_gap(&mut self, count: u64, mark: M, events: &mut Vec<Event<M>>) {
        self.responses.last = Some(mark);
        match &mut self.responses.state {
            State::Body(body) => {
                let taken = body.skip(count);
                self.settle_response_body(mark, events);
                if taken < count && !self.left {
                    self.lose_responses(mark, events);
                }
            }
            State::Head { .. } => self.response_head(false, mark, events),
            State::Between => self.lose_responses(mark, events),
            State::Lost => {}
        }
    }

    /// The head of a response is complete, or as complete as it will be.
    pub(super) fn response_head(&mut self, complete: bool, mark: M, events: &mut Vec<Event<M>>) {
        let State::Head { first } = self.responses.state else { return };
        let parsed = ResponseHead::parse(self.responses.head.bytes(), complete);
        self.responses.head.clear();
        let (Some(head), Some(method)) = (parsed, self.pairing.front_method()) else {
            return self.lose_responses(mark, events);
        };
        if head.is_interim() {
            if complete {
                self.responses.state = State::Between;
            } else {
                self.lose_responses(mark, events);
            }
            return;
        }
        let leaves = head.leaves_http(method);
        let body = Body::new(head.framing(method));
        self.pairing.response(head, first, events);
        if leaves {
            self.responses.state = State::Between;
            self.close_front(Ending::Upgraded, mark, events);
            return self.leave(Ending::BytesLost, mark, events);
        }
        self.responses.state = State::Body(body);
        self.settle_response_body(mark, events);
    }

    /// Goes on to what follows the body, if it is over; gives up on later responses if its end cannot be told.
    fn settle_response_body(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        let State::Body(body) = &self.responses.state else { return };
        let framed = body.is_framed();
        if body.is_done() {
            self.close_front(Ending::Complete, mark, events);
            if !framed {
                self.lose_responses(mark, events);
            }
        } else if !framed && !body.is_until_end() && self.pairing.open() > 1 {
            self.lose_responses(mark, events);
        }
    }

    /// It is not known where the next response starts: rules 3 and 4 of the module.
    fn lose_responses(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        if self.pairing.may_leave() || (self.pipelines && self.pairing.open() > 1) {
            return self.leave(Ending::BytesLost, mark, events);
        }
        while self.pairing.open() > 1 {
            let over = self.pairing.second_began().unwrap_or(mark);
            self.close_front(Ending::BytesLost, over, events);
        }
        self.responses.state = State::Lost;
    }
}
