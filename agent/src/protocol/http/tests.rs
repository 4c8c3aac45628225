//! The walker against whole conversations, cut and gapped in every way.

mod gaps;
mod hostile;
mod samples;

use super::{Exchange, HttpWalker};
use crate::protocol::otlp::Signal;
use crate::protocol::{Direction, Event, Outcome, Role, Segment, Walker};
use samples::{Conversation, Step};

/// A walker of one side of a conversation, whose marks are the numbers of the conversation's steps.
struct Walk {
    walker: HttpWalker<usize>,
    role: Role,
    events: Vec<Event<usize>>,
}

impl Walk {
    fn new(role: Role) -> Self {
        Self { walker: HttpWalker::new(role), role, events: Vec::new() }
    }

    fn direction(&self, step: &Step) -> Direction {
        let requests = self.role.request_direction();
        match step {
            Step::Request(_) => requests,
            Step::Response(_) | Step::EndOfResponses => requests.opposite(),
        }
    }

    fn feed(&mut self, direction: Direction, segment: Segment<'_>, mark: usize) {
        self.walker.feed(direction, segment, mark, &mut self.events);
    }

    /// Feeds a step in the pieces that `cut` makes of it.
    fn step<'a>(&mut self, mark: usize, step: &'a Step, cut: impl Fn(&'a [u8]) -> Vec<Segment<'a>>) {
        let direction = self.direction(step);
        match step {
            Step::Request(bytes) | Step::Response(bytes) => {
                for segment in cut(bytes) {
                    self.feed(direction, segment, mark);
                }
            }
            Step::EndOfResponses => self.walker.end(direction, mark, &mut self.events),
        }
    }

    /// Closes the connection; checks what holds of any sequence of events.
    fn finish(mut self, mark: usize) -> Vec<Event<usize>> {
        self.walker.close(mark, &mut self.events);
        assert_eq!(self.walker.open_exchanges(), 0);
        let mut opened = 0;
        let mut answered = std::collections::HashSet::new();
        let mut closed = std::collections::HashSet::new();
        for event in &self.events {
            match event {
                Event::Opened { exchange, role, first, head, .. } => {
                    assert_eq!((*exchange, *role), (opened, self.role));
                    assert!(first <= head);
                    opened += 1;
                }
                Event::Telemetry { exchange, .. } => assert!(exchange.is_some_and(|it| it < opened)),
                Event::Answered { exchange, .. } => {
                    assert!(*exchange < opened && !closed.contains(exchange) && answered.insert(*exchange));
                }
                Event::Closed { exchange, outcome, .. } => {
                    assert!(*exchange < opened && closed.insert(*exchange));
                    let Outcome::Http(outcome) = outcome else { panic!("{outcome:?}") };
                    assert_eq!(outcome.status.is_some(), answered.contains(exchange));
                }
            }
        }
        assert_eq!(closed.len() as u64, opened, "{:#?}", self.events);
        self.events
    }
}

fn walk<'a>(
    conversation: &'a Conversation,
    role: Role,
    cut: impl Fn(usize, &'a [u8]) -> Vec<Segment<'a>>,
) -> Vec<Event<usize>> {
    let mut walk = Walk::new(role);
    for (mark, step) in conversation.steps.iter().enumerate() {
        walk.step(mark, step, |bytes| cut(mark, bytes));
    }
    walk.finish(conversation.steps.len())
}

fn exchanges(events: &[Event<usize>]) -> impl Iterator<Item = &Exchange> {
    events.iter().filter_map(|event| match event {
        Event::Closed { outcome: Outcome::Http(exchange), .. } => Some(&**exchange),
        _ => None,
    })
}

/// `GET /path 200 Complete -/5`: what was asked, what came, how it ended, sizes of the bodies.
fn line(exchange: &Exchange) -> String {
    let show = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    format!(
        "{} {} {} {:?} {}/{}",
        exchange.method,
        exchange.target,
        show(exchange.status.map(u64::from)),
        exchange.ending,
        show(exchange.request_body_size),
        show(exchange.response_body_size)
    )
}

/// Walks a conversation whole, cut in two at every place, and byte by byte: it must make no difference. Then with a gap
/// at every place, of every length to the end of the step and of some short ones: no response may go to the wrong request.
fn check(conversation: &Conversation, expected: &[String]) {
    for role in [Role::Server, Role::Client] {
        let whole = walk(conversation, role, |_, bytes| vec![Segment::Bytes(bytes)]);
        let lines: Vec<_> = exchanges(&whole).map(line).collect();
        assert_eq!(lines, expected, "{}", conversation.name);

        let bytewise = walk(conversation, role, |_, bytes| bytes.chunks(1).map(Segment::Bytes).collect());
        assert_eq!(bytewise, whole, "{}, byte by byte", conversation.name);

        for (mark, step) in conversation.steps.iter().enumerate() {
            for at in 0..step.len() {
                let split = walk(conversation, role, |index, bytes| {
                    let (left, right) = bytes.split_at(if index == mark { at } else { 0 });
                    vec![Segment::Bytes(left), Segment::Bytes(right)]
                });
                assert_eq!(split, whole, "{}, step {mark} cut at {at}", conversation.name);
                // The roles differ only in their directions.
                let gaps: &[usize] = if role == Role::Server { &[1, 2, 9, 50, usize::MAX] } else { &[] };
                for &gap in gaps {
                    check_gap(conversation, role, mark, at..at.saturating_add(gap).min(step.len()), expected);
                }
            }
        }
    }
}

/// Walks a conversation of which some bytes are not seen.
fn check_gap(
    conversation: &Conversation,
    role: Role,
    mark: usize,
    lost: std::ops::Range<usize>,
    expected: &[String],
) {
    let events = walk(conversation, role, |index, bytes| {
        if index != mark {
            return vec![Segment::Bytes(bytes)];
        }
        let gap = (lost.end - lost.start) as u64;
        vec![Segment::Bytes(&bytes[..lost.start]), Segment::Gap(gap), Segment::Bytes(&bytes[lost.end..])]
    });
    let untouched = exchanges(&events).map(line).filter(|line| expected.contains(line)).count();
    assert!(
        conversation.fragile || untouched + 1 >= expected.len(),
        "{}: step {mark} without {lost:?} costs more than one exchange: {events:#?}",
        conversation.name
    );
    for exchange in exchanges(&events) {
        let Some(status) = exchange.status else { continue };
        let pair = format!("{} {} {status} ", exchange.method, exchange.target);
        assert!(
            expected.iter().any(|line| line.starts_with(&pair)),
            "{}: step {mark} without {lost:?} pairs {pair}: {events:#?}",
            conversation.name
        );
    }
}

#[test]
fn conversations() {
    for (conversation, expected) in samples::all() {
        check(&conversation, &expected);
    }
}

#[test]
fn marks_are_those_of_the_bytes() {
    let mut walk = Walk::new(Role::Client);
    for (mark, (direction, text)) in [
        (Direction::Send, "\r\n"),
        (Direction::Send, "POST / HTTP/1.1\r\nContent-"),
        (Direction::Send, "Length: 2\r\nExpect: 100-continue\r\n\r"),
        (Direction::Send, "\n"),
        (Direction::Recv, "HTTP/1.1 100 Continue\r\n\r\n"),
        (Direction::Send, "ab"),
        (Direction::Recv, "HTT"),
        (Direction::Recv, "P/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
        (Direction::Recv, "a"),
        (Direction::Recv, "b"),
    ]
    .into_iter()
    .enumerate()
    {
        walk.feed(direction, Segment::Bytes(text.as_bytes()), mark);
    }
    let events = walk.finish(99);
    assert!(
        matches!(
            events[..],
            [
                Event::Opened { exchange: 0, first: 1, head: 3, .. },
                Event::Answered { exchange: 0, mark: 6 },
                Event::Closed { exchange: 0, last: 9, .. },
            ]
        ),
        "{events:#?}"
    );
}

#[test]
fn exports_of_telemetry_are_told() {
    let request = "POST /v1/traces HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1\r\n\r\nx";
    for role in [Role::Client, Role::Server] {
        let mut walk = Walk::new(role);
        walk.feed(role.request_direction(), Segment::Bytes(request.as_bytes()), 0);
        let events = walk.finish(1);
        assert!(
            matches!(events[1], Event::Telemetry { exchange: Some(0), signal: Signal::Traces, .. }),
            "{events:?}"
        );
    }
}
