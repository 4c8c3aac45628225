//! Bytes that no honest peer sends, and bytes that must never be shown.

use std::net::SocketAddr;

use super::{Step, Walk, exchanges, samples, walk};
use crate::protocol::{Direction, Event, Role, Segment, Walker};
use crate::trace::http::span_parts;
use crate::trace::{Endpoint, Endpoints};

/// Marsaglia's xorshift: the same numbers every time.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

fn mutate(bytes: &[u8], random: &mut Xorshift) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.below(256) as u8),
            2 => drop(bytes.splice(at.., bytes[at / 2..].to_vec())),
            _ if bytes.is_empty() => {}
            3 => drop(bytes.remove(at)),
            _ => bytes[at] = b"\r\n :;,09afHG\xff\0"[random.below(14)],
        }
    }
    bytes
}

#[test]
fn mutated_conversations_keep_the_contract() {
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let conversations = samples::all();
    for round in 0..20_000 {
        let (conversation, _) = &conversations[random.below(conversations.len())];
        let role = if round % 2 == 0 { Role::Server } else { Role::Client };
        let mut walk = Walk::new(role);
        for (mark, step) in conversation.steps.iter().enumerate() {
            let mutated = match step {
                Step::Request(bytes) => Step::Request(mutate(bytes, &mut random)),
                Step::Response(bytes) => Step::Response(mutate(bytes, &mut random)),
                Step::EndOfResponses => Step::EndOfResponses,
            };
            let (at, gap) = (random.below(mutated.len()), random.below(40) as u64);
            walk.step(mark, &mutated, |bytes| {
                let (left, right) = bytes.split_at(at);
                let gap = if gap < 10 { gap << (gap * 7 % 64) } else { 0 };
                vec![Segment::Bytes(left), Segment::Gap(gap), Segment::Bytes(right)]
            });
        }
        walk.finish(conversation.steps.len());
    }
}

#[test]
fn memory_is_bounded() {
    let mut walk = Walk::new(Role::Server);
    let head = format!("GET / HTTP/1.1\r\nHost: {}\r\nX: ", "h".repeat(9000));
    walk.feed(Direction::Recv, Segment::Bytes(head.as_bytes()), 0);
    for _ in 0..1000 {
        walk.feed(Direction::Recv, Segment::Bytes(&[b'x'; 1000]), 1);
    }
    assert_eq!(walk.walker.open_exchanges(), 1);
    let events = walk.finish(2);
    let exchange = exchanges(&events).next().unwrap();
    assert!(exchange.head_truncated && exchange.host.as_ref().is_some_and(|host| host.len() == 512));

    let mut walk = Walk::new(Role::Server);
    for mark in 0..1000 {
        walk.feed(Direction::Recv, Segment::Bytes(b"GET / HTTP/1.1\r\n\r\n"), mark);
        assert!(walk.walker.open_exchanges() <= 128);
    }
    walk.finish(1000);
}

#[test]
fn trace_context() {
    let trace = |head: &str| {
        let mut walk = Walk::new(Role::Server);
        walk.feed(Direction::Recv, Segment::Bytes(head.as_bytes()), 0);
        let events = walk.finish(1);
        let Event::Opened { trace, fingerprint, .. } = &events[0] else { panic!("{events:?}") };
        (
            trace.traceparent.as_deref().map(String::from),
            trace.tracestate.as_deref().map(String::from),
            *fingerprint,
        )
    };
    let one =
        trace("GET / HTTP/1.1\r\nTraceParent:  00-1-2-01 \r\ntracestate: a=1\r\nTRACESTATE: b=2\r\n\r\n");
    assert_eq!((one.0.as_deref(), one.1.as_deref()), (Some("00-1-2-01"), Some("a=1,b=2")));
    let two = trace("GET / HTTP/1.1\r\ntraceparent: x\r\ntraceparent: x\r\ntracestate: a=1\r\n\r\n");
    assert_eq!((two.0, two.1), (None, None));
    assert_ne!(one.2, two.2);
    // FNV-1a of the head, by another implementation.
    assert_eq!(trace("GET / HTTP/1.1\r\n\r\n").2, FNV_OF_GET);
}

const FNV_OF_GET: u64 = 0xd695_3bdd_fd93_2f23;

#[test]
fn secrets_are_never_shown() {
    const CANARY: &str = "c4n4ry";
    let request = format!(
        "POST /a?password={CANARY}&x=1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {CANARY}\r\nCookie: s={CANARY}\r\n\
         X-Forwarded-For: {CANARY}\r\nX-Api-Key: {CANARY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let body = format!("6;{CANARY}\r\n{CANARY}\r\n0\r\nX: {CANARY}\r\n\r\n");
    let response =
        format!("HTTP/1.1 500 {CANARY}\r\nSet-Cookie: {CANARY}\r\nLocation: /{CANARY}\r\n\r\n{CANARY}");
    let conversation = samples::Conversation {
        name: "canary".to_owned(),
        fragile: true,
        steps: vec![
            Step::Request(request.into_bytes()),
            Step::Request(body.into_bytes()),
            Step::Response(response.into_bytes()),
            Step::EndOfResponses,
        ],
    };
    let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let (local, peer) = (Endpoint::Inet(address), Endpoint::Inet(address));
    let endpoints = Endpoints { local, peer, encrypted: false, server_name: None };
    for role in [Role::Server, Role::Client] {
        let events = walk(&conversation, role, |_, bytes| vec![Segment::Bytes(bytes)]);
        let exchange = exchanges(&events).next().unwrap();
        assert_eq!((exchange.status, exchange.request_body_size), (Some(500), Some(6)));
        let parts = format!("{:?}", span_parts(exchange, role, &endpoints));
        assert!(!parts.contains(CANARY) && parts.contains("password=REDACTED"), "{parts}");
        // The target is kept as it was sent, and masked where it is shown.
        let events = format!("{events:?}").replace(&format!("password={CANARY}"), "");
        assert!(!events.contains(CANARY), "{events}");
    }
}
