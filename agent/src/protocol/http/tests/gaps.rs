//! What is made of a conversation when bytes are missing: how much survives, and when the walker recovers.

use super::{Walk, exchanges, line};
use crate::protocol::{Direction, Event, Interest, Role, Segment, Walker};

/// A piece of a conversation as a server process has it.
enum Piece<'a> {
    Request(&'a str),
    Response(&'a str),
    LostRequest(u64),
    LostResponse(u64),
}
use Piece::{LostRequest, LostResponse, Request, Response};

fn events(pieces: &[Piece<'_>]) -> Vec<Event<usize>> {
    let mut walk = Walk::new(Role::Server);
    for (mark, piece) in pieces.iter().enumerate() {
        let (direction, segment) = match piece {
            Request(text) => (Direction::Recv, Segment::Bytes(text.as_bytes())),
            Response(text) => (Direction::Send, Segment::Bytes(text.as_bytes())),
            LostRequest(count) => (Direction::Recv, Segment::Gap(*count)),
            LostResponse(count) => (Direction::Send, Segment::Gap(*count)),
        };
        walk.feed(direction, segment, mark);
    }
    walk.finish(pieces.len())
}

fn check(pieces: &[Piece<'_>], expected: &[&str]) {
    let lines: Vec<_> = exchanges(&events(pieces)).map(line).collect();
    assert_eq!(lines, expected);
}

const A: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const B: &str = "GET /b HTTP/1.1\r\nHost: h\r\n\r\n";
const C: &str = "GET /c HTTP/1.1\r\nHost: h\r\n\r\n";
const OK_A: &str = "HTTP/1.1 201 OK\r\nContent-Length: 1\r\n\r\na";
const OK_B: &str = "HTTP/1.1 202 OK\r\nContent-Length: 1\r\n\r\nb";
const OK_C: &str = "HTTP/1.1 203 OK\r\nContent-Length: 1\r\n\r\nc";

#[test]
fn bodies_are_stepped_over() {
    check(
        &[
            Request("POST /a HTTP/1.1\r\nContent-Length: 100000\r\n\r\nabc"),
            LostRequest(99_997),
            Response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\nabc"),
            LostResponse(0x10000 - 3),
            Response("\r\n5\r\nhello\r\n0\r\n\r\n"),
            Request(B),
            Response(OK_B),
        ],
        &["POST /a 200 Complete 100000/65541", "GET /b 202 Complete -/1"],
    );
}

#[test]
fn a_cut_head_keeps_its_first_line() {
    let pieces = [
        Request("GET /a?x HTTP/1.1\r\nHost: h\r\ntraceparent: 00-1-2-01\r\nCookie: aaa"),
        LostRequest(5000),
        Request("aaa\r\n\r\n"),
        Response(OK_A),
        Request(B),
        Response("HTTP/1.1 202 OK\r\nSet-Cookie: aaa"),
        LostResponse(5000),
        Response("\r\n\r\nbody"),
        Request(C),
        Response(OK_C),
    ];
    check(&pieces, &["GET /a?x 201 Complete -/1", "GET /b 202 BytesLost -/-", "GET /c 203 Complete -/1"]);
    let events = events(&pieces);
    let Event::Opened { first: 0, head: 1, trace, .. } = &events[0] else { panic!("{events:#?}") };
    assert_eq!(trace.traceparent.as_deref(), Some("00-1-2-01"));
    let last = events.iter().filter_map(|event| match event {
        Event::Closed { last, .. } => Some(*last),
        _ => None,
    });
    assert_eq!(last.collect::<Vec<_>>(), [3, 7, 9]);
}

#[test]
fn a_long_target_is_kept_as_far_as_it_goes() {
    let target = format!("GET /{}", "a".repeat(2000));
    let events = events(&[Request(&target), LostRequest(500), Response(OK_A)]);
    let exchange = exchanges(&events).next().unwrap();
    assert!(exchange.target_truncated && exchange.head_truncated && exchange.target.len() == 2001);
    assert_eq!(exchange.status, Some(201));
}

#[test]
fn the_last_chunk_ends_a_response_whose_chunks_were_lost() {
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nabc";
    let expected = ["GET /a 200 Complete -/-", "GET /b 202 Complete -/1"];
    check(
        &[
            Request(A),
            Response(chunks),
            LostResponse(90_000),
            Response("xyz\r\n0\r\n\r\n"),
            Request(B),
            Response(OK_B),
        ],
        &expected,
    );
    check(
        &[
            Request(A),
            Response(chunks),
            LostResponse(90_000),
            Response("xyz\r\n"),
            Response("0\r\n\r\n"),
            Request(B),
            Response(OK_B),
        ],
        &expected,
    );
    // Not at the end of a segment it proves nothing; the next request does.
    let pieces = [
        Request(A),
        Response(chunks),
        LostResponse(90_000),
        Response("\r\n0\r\n\r\n."),
        Request(B),
        Response(OK_B),
    ];
    check(&pieces, &["GET /a 200 BytesLost -/-", "GET /b 202 Complete -/1"]);
}

#[test]
fn lost_responses_leave_their_request_without_one() {
    check(
        &[Request(A), LostResponse(60), Response(OK_B), Request(C), Response(OK_C)],
        &["GET /a - BytesLost -/-", "GET /c 203 Complete -/1"],
    );
    check(
        &[
            Request(A),
            Response("HTTP/1.1 201 OK\r\nContent-Length: 9\r\n\r\n"),
            LostResponse(10),
            Request(C),
            Response(OK_C),
        ],
        &["GET /a 201 Complete -/9", "GET /c 203 Complete -/1"],
    );
}

#[test]
fn lost_requests_take_their_responses_with_them() {
    check(
        &[Request(A), Response(OK_A), LostRequest(60), Response(OK_B), Request(C), Response(OK_C)],
        &["GET /a 201 Complete -/1", "GET /c 203 Complete -/1"],
    );
    // What follows a gap while a request is unanswered may be its body.
    check(
        &[
            Request("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"),
            LostRequest(60),
            Request(B),
            Response(OK_A),
            Request(C),
            Response(OK_C),
        ],
        &["POST /a 201 Complete -/1", "GET /c 203 Complete -/1"],
    );
}

#[test]
fn pipelines_are_left_when_proof_is_needed() {
    let both = format!("{A}{B}");
    let lost = ["GET /a - BytesLost -/-", "GET /b - BytesLost -/-"];
    check(&[Request(&both), LostResponse(50), Response(OK_B), Request(C), Response(OK_C)], &lost);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n";
    check(
        &[Request(&both), Response(chunked), LostResponse(50), Response(OK_B), Request(C), Response(OK_C)],
        &["GET /a 200 BytesLost -/-", "GET /b - BytesLost -/-"],
    );
    // What was known before the request stream was lost is still answered in order.
    check(
        &[
            Request(&both),
            LostRequest(50),
            Response(OK_A),
            Response(OK_B),
            Response(OK_C),
            Request(C),
            Response(OK_C),
        ],
        &["GET /a 201 Complete -/1", "GET /b 202 Complete -/1"],
    );
    // A client that has pipelined may do so again.
    check(
        &[
            Request(&both),
            Response(OK_A),
            Response(OK_B),
            Request(A),
            LostResponse(40),
            Request(C),
            Response(OK_C),
        ],
        &["GET /a 201 Complete -/1", "GET /b 202 Complete -/1", "GET /a - BytesLost -/-"],
    );
}

#[test]
fn a_gap_noticed_late_costs_only_what_it_touches() {
    // The response to A is lost, which shows only when that to B comes.
    let pieces = [Request(A), Request(B), LostResponse(40), Response(OK_B), Request(C), Response(OK_C)];
    check(&pieces, &["GET /a - BytesLost -/-", "GET /b - BytesLost -/-", "GET /c 203 Complete -/1"]);
    let events = events(&pieces);
    let closed = events.iter().filter_map(|event| match event {
        Event::Closed { last, .. } => Some(*last),
        _ => None,
    });
    assert_eq!(closed.collect::<Vec<_>>(), [1, 3, 5]);
    // The rest of a response with a known length.
    check(
        &[
            Request(A),
            Response("HTTP/1.1 201 OK\r\nContent-Length: 9\r\n\r\n"),
            Request(B),
            LostResponse(9),
            Response(OK_B),
        ],
        &["GET /a 201 Complete -/9", "GET /b 202 Complete -/1"],
    );
    // The response to A and the request B are lost, and nothing shows that yet when the response to B comes.
    check(
        &[Request(A), LostResponse(40), Response(OK_B), LostRequest(40), Request(C), Response(OK_C)],
        &["GET /a - BytesLost -/-", "GET /c 203 Complete -/1"],
    );
}

#[test]
fn interest_follows_the_bodies() {
    let mut walk = Walk::new(Role::Client);
    let mut feed = |direction, text: &str, mark| {
        walk.feed(direction, Segment::Bytes(text.as_bytes()), mark);
        (walk.walker.interest(Direction::Send), walk.walker.interest(Direction::Recv))
    };
    let (bytes, nothing) = (Interest::Bytes, Interest::Nothing);
    let head = "PUT /a HTTP/1.1\r\nContent-Length: 100\r\n\r\n";
    assert_eq!(feed(Direction::Send, head, 0), (Interest::LengthOnly(99), bytes));
    assert_eq!(feed(Direction::Send, &"x".repeat(99), 1), (bytes, bytes));
    assert_eq!(feed(Direction::Send, "x", 2), (bytes, bytes));
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    assert_eq!(feed(Direction::Recv, head, 3), (bytes, Interest::LengthOnly(6)));
    assert_eq!(feed(Direction::Recv, "defghij", 4), (bytes, bytes));
    assert_eq!(feed(Direction::Send, "CONNECT h:1 HTTP/1.1\r\n\r\n", 5), (bytes, bytes));
    assert_eq!(feed(Direction::Recv, "HTTP/1.1 200 OK\r\n\r\n", 6), (nothing, nothing));
    assert_eq!(exchanges(&walk.finish(7)).count(), 2);
}
