//! Which protocol a connection speaks, from its first segments in both directions.
//!
//! Takes segments in the order in which they happened; gives the protocol, the observed process's part, and where the
//! walker should begin. A message can only be recognised at its start, and messages start where the direction changes
//! (the agent may have attached in the middle of one), so every *turn* is judged by its first bytes, up to a gap.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use super::{Direction, Guess, Protocol, Role, Segment, http, http2, postgres, redis};

/// Which protocol a connection speaks, from its first segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// It is known.
    Known {
        /// What is spoken.
        protocol: Protocol,
        /// The observed process's part.
        role: Role,
        /// Index of the first segment that the walker should be fed.
        from: usize,
    },
    /// Keep buffering: more bytes would tell.
    NeedMore,
    /// None of ours.
    Unknown,
}

/// Turns without a hit after which a connection is given up.
const TURN_LIMIT: usize = 7;
/// Bytes, captured or not, after which it is.
const BYTE_LIMIT: u64 = 64 * 1024;
/// Segments after which it is.
const SEGMENT_LIMIT: usize = 32;
/// First bytes of a turn that are judged.
const JUDGED_BYTES: usize = 16 * 1024;

/// What one side said before the other one spoke.
struct Turn {
    from: usize,
    direction: Direction,
    bytes: Vec<u8>,
    /// A gap was met: what follows it is not judged.
    closed: bool,
}

/// Judges a connection by its first segments in both directions, in the order in which they happened.
pub fn detect(segments: &[(Direction, Segment<'_>)]) -> Detection {
    let turns = turns(segments);
    let exporter =
        turns.iter().find(|turn| turn.direction == Direction::Send && http2::is_client(&turn.bytes));
    if let Some(Turn { from, .. }) = exporter {
        return Detection::Known { protocol: Protocol::Http2, role: Role::Client, from: *from };
    }
    if turns.first().is_some_and(|turn| is_foreign(&turn.bytes)) {
        return Detection::Unknown;
    }
    let mut inline: Option<&Turn> = None;
    for (index, turn) in turns.iter().enumerate() {
        let [http, postgres, redis] =
            [http::guess, postgres::guess, redis::guess].map(|guess| guess(&turn.bytes));
        let weak = is_weak(&turn.bytes);
        let hits = [
            (Protocol::Http, http),
            (Protocol::Postgres, postgres),
            (Protocol::Redis, if weak { Guess::No } else { redis }),
        ];
        let mut yes = hits.iter().filter_map(|&(protocol, guess)| match guess {
            Guess::Yes { request } => Some((protocol, request)),
            _ => None,
        });
        if let (Some((protocol, request)), None) = (yes.next(), yes.next()) {
            return Detection::Known { protocol, role: role(turn.direction, request), from: turn.from };
        }
        // An inline command is Redis's when the connection began with it and the answer is Redis's too.
        match (index, redis) {
            (0, Guess::Yes { request: true }) => inline = Some(turn),
            (1, Guess::Yes { request: false }) => {
                if let Some(first) = inline {
                    let role = role(first.direction, true);
                    return Detection::Known { protocol: Protocol::Redis, role, from: first.from };
                }
            }
            _ => {}
        }
    }
    let bytes = segments.iter().fold(0_u64, |sum, (_, segment)| {
        sum.saturating_add(match segment {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::Gap(gap) => *gap,
        })
    });
    if turns.len() >= TURN_LIMIT || bytes >= BYTE_LIMIT || segments.len() >= SEGMENT_LIMIT {
        return Detection::Unknown;
    }
    Detection::NeedMore
}

fn role(direction: Direction, request: bool) -> Role {
    if (direction == Direction::Send) == request { Role::Client } else { Role::Server }
}

fn turns(segments: &[(Direction, Segment<'_>)]) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::new();
    for (from, (direction, segment)) in segments.iter().enumerate() {
        if turns.last().is_none_or(|turn| turn.direction != *direction) {
            turns.push(Turn { from, direction: *direction, bytes: Vec::new(), closed: false });
        }
        let Some(turn) = turns.last_mut() else { continue };
        match segment {
            Segment::Bytes(bytes) if !turn.closed => {
                let room = JUDGED_BYTES.saturating_sub(turn.bytes.len());
                turn.bytes.extend(bytes.iter().take(room));
            }
            Segment::Bytes(_) => {}
            Segment::Gap(_) => turn.closed = true,
        }
    }
    turns
}

/// Inline commands and one-line replies look like those of POP3, SMTP or memcached: alone they prove nothing.
fn is_weak(bytes: &[u8]) -> bool {
    !matches!(bytes.first(), Some(b'*' | b'$' | b'%' | b'~' | b'>' | b'|' | b'='))
}

/// The openings of protocols that are certainly none of ours.
fn is_foreign(bytes: &[u8]) -> bool {
    let openings: [&[u8]; 9] = [
        b"\x16\x03",
        b"PRI * HTTP/2.0",
        b"SSH-",
        b"AMQP",
        b"\0AUTH ",
        b"AUTH EXTERNAL",
        b"AUTH DBUS_COOKIE",
        b"AUTH ANONYMOUS",
        b"220 ",
    ];
    // MySQL's greeting: three bytes of length, sequence 0, protocol 10, a version.
    let mysql = matches!(bytes, [_, _, 0, 0, 10, b'0'..=b'9', ..]);
    mysql || openings.iter().any(|opening| bytes.starts_with(opening))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

    use super::Direction::{Recv, Send};
    use super::*;

    const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n";

    /// Checks the whole, and that no prefix of it, cut anywhere, says anything else than "need more".
    fn check(turns: &[(Direction, &[u8])], expected: Detection) {
        let whole: Vec<_> =
            turns.iter().map(|(direction, bytes)| (*direction, Segment::Bytes(bytes))).collect();
        assert_eq!(detect(&whole), expected);
        for index in 0..turns.len() {
            for at in 0..turns[index].1.len() {
                let (direction, bytes) = turns[index];
                let mut prefix = whole[..index].to_vec();
                prefix.push((direction, Segment::Bytes(&bytes[..at])));
                let early = detect(&prefix);
                assert!(early == Detection::NeedMore || early == expected, "turn {index} at {at}: {early:?}");
                let split: Vec<_> = whole[..index]
                    .iter()
                    .copied()
                    .chain([
                        (direction, Segment::Bytes(&bytes[..at])),
                        (direction, Segment::Bytes(&bytes[at..])),
                    ])
                    .chain(whole[index + 1..].iter().copied())
                    .collect();
                let shifted = match (detect(&split), expected) {
                    (Detection::Known { protocol, role, .. }, Detection::Known { from, .. }) => {
                        Detection::Known { protocol, role, from }
                    }
                    (other, _) => other,
                };
                assert_eq!(shifted, expected, "turn {index} split at {at}");
            }
        }
    }

    fn known(protocol: Protocol, role: Role, from: usize) -> Detection {
        Detection::Known { protocol, role, from }
    }

    #[test]
    fn from_the_start() {
        check(&[(Send, GET), (Recv, b"$1\r\nx\r\n")], known(Protocol::Redis, Role::Client, 0));
        check(&[(Send, b"PING\r\n"), (Recv, b"+PONG\r\n")], known(Protocol::Redis, Role::Client, 0));
        let http: &[u8] = b"GET /items HTTP/1.1\r\nHost: a\r\n\r\n";
        check(&[(Recv, http)], known(Protocol::Http, Role::Server, 0));
        check(&[(Send, http)], known(Protocol::Http, Role::Client, 0));
        let startup: &[u8] = b"\0\0\0\x13\0\x03\0\0user\0alice\0\0";
        let query: &[u8] = b"Q\0\0\0\x0dselect 1\0";
        let ready: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        check(&[(Send, startup), (Recv, ready), (Send, query)], known(Protocol::Postgres, Role::Client, 0));
    }

    #[test]
    fn in_the_middle() {
        check(&[(Recv, b"lf a value\r\n"), (Send, GET)], known(Protocol::Redis, Role::Client, 1));
        check(&[(Recv, b"+OK\r\n"), (Send, GET)], known(Protocol::Redis, Role::Client, 1));
        let segments = [(Recv, Segment::Gap(900)), (Recv, Segment::Bytes(GET)), (Send, Segment::Bytes(GET))];
        assert_eq!(detect(&segments), known(Protocol::Redis, Role::Client, 2));
    }

    #[test]
    fn foreigners() {
        let openings: [&[u8]; 5] = [
            b"\x16\x03\x01\x02\0",
            b"SSH-2.0-OpenSSH\r\n",
            b"J\0\0\0\x0a8.0.36\0",
            b"AMQP\0\0\x09\x01",
            b"\0AUTH EXTERNAL 31303030\r\n",
        ];
        for opening in openings {
            assert_eq!(detect(&[(Send, Segment::Bytes(opening))]), Detection::Unknown, "{opening:?}");
        }
        let http2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        check(&[(Send, http2)], known(Protocol::Http2, Role::Client, 0));
        check(&[(Recv, http2)], Detection::Unknown);
        let pop3: [(Direction, &[u8]); 6] = [
            (Recv, b"+OK ready\r\n"),
            (Send, b"USER bob\r\n"),
            (Recv, b"+OK\r\n"),
            (Send, b"PASS x\r\n"),
            (Recv, b"+OK\r\n"),
            (Send, b"QUIT\r\n"),
        ];
        let pop3: Vec<_> =
            pop3.iter().map(|(direction, bytes)| (*direction, Segment::Bytes(bytes))).collect();
        assert_eq!(detect(&pop3), Detection::NeedMore);
        let cache = [(Send, Segment::Bytes(b"get foo\r\n".as_slice())), (Recv, Segment::Bytes(b"END\r\n"))];
        assert_eq!(detect(&cache), Detection::NeedMore);
    }
}
