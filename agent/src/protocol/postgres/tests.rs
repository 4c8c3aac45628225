//! Conversations as real drivers hold them, whole, split at every point, byte by byte, and with holes.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use super::*;
use crate::protocol::{Outcome, Protocol, walker};
use Direction::{Recv, Send};

type Turn = (Direction, Vec<u8>);

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}
fn untyped(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
    [&length[..], &code.to_be_bytes(), body].concat()
}
fn start() -> Vec<Turn> {
    let hello = untyped(196_608, b"user\0ada\0database\0shop\0application_name\0x\0\0");
    let answer = [
        message(b'R', &[0; 4]),
        message(b'S', b"server_version\x0015.1\0"),
        message(b'K', b"\0\0\x12\x34abcd"),
        ready(),
    ];
    vec![(Send, hello), (Recv, answer.concat())]
}
fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}
fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}
fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}
fn bind(name: &str, value: Option<&str>) -> Vec<u8> {
    let mut body = format!("\0{name}\0").into_bytes();
    body.extend([0, 0, 0, u8::from(value.is_some())]);
    if let Some(value) = value {
        body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}
fn describe(name: &str) -> Vec<u8> {
    message(b'D', format!("S{name}\0").as_bytes())
}
fn describe_portal() -> Vec<u8> {
    message(b'D', b"P\0")
}
fn execute() -> Vec<u8> {
    message(b'E', &[0; 5])
}
fn sync() -> Vec<u8> {
    message(b'S', b"")
}
fn flush() -> Vec<u8> {
    message(b'H', b"")
}
fn ok(tag: u8) -> Vec<u8> {
    message(tag, b"")
}
fn columns() -> Vec<u8> {
    message(b'T', b"\0\x01id\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0")
}
fn row(value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    message(b'D', &[b"\0\x01", &length[..], value.as_bytes()].concat())
}
fn done(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}
fn error(code: &str) -> Vec<u8> {
    message(b'E', format!("SFEHLER\0VERROR\0C{code}\0Mcanary-message\0\0").as_bytes())
}

fn walk(segments: &[(Direction, Segment<'_>)]) -> Vec<Event<usize>> {
    let mut walker = walker(Protocol::Postgres, Role::Client);
    let mut events = Vec::new();
    for (mark, (direction, segment)) in segments.iter().enumerate() {
        walker.feed(*direction, *segment, mark, &mut events);
    }
    walker.close(segments.len(), &mut events);
    assert_eq!(walker.open_exchanges(), 0);
    assert_ordered(&events);
    events
}

/// Every exchange is opened, then answered at most once, then closed once, with marks that do not run backwards.
fn assert_ordered(events: &[Event<usize>]) {
    let mut states: Vec<(u8, usize)> = Vec::new();
    for event in events {
        match event {
            Event::Opened { exchange, first, head, .. } => {
                assert_eq!(*exchange, states.len() as u64);
                assert!(first <= head);
                states.push((0, *first));
            }
            Event::Telemetry { .. } => panic!("{event:?}"),
            Event::Answered { exchange, mark } => {
                let (state, first) = &mut states[usize::try_from(*exchange).unwrap()];
                assert!(*state == 0 && *first <= *mark);
                *state = 1;
            }
            Event::Closed { exchange, last, .. } => {
                let (state, first) = &mut states[usize::try_from(*exchange).unwrap()];
                assert!(*state < 2 && *first <= *last);
                *state = 2;
            }
        }
    }
    assert!(states.iter().all(|(state, _)| *state == 2));
}

/// One line for each exchange: how it ended, its text, its error, its command and rows. In the order of opening.
fn lines(events: &[Event<usize>]) -> Vec<String> {
    let mut found = Vec::new();
    for event in events {
        if let Event::Closed { exchange, outcome: Outcome::Postgres(it), .. } = event {
            let text = it.query_text().unwrap_or_else(|| "-".into());
            let error =
                it.error.map_or(String::new(), |error| format!(" !{}", error.sqlstate().unwrap_or("?")));
            let command = it.command.as_deref().map_or(String::new(), |command| format!(" {command}"));
            let rows = it.rows.map_or(String::new(), |rows| format!(" {rows}"));
            found.push((*exchange, format!("{:?}: {text}{error}{command}{rows}", it.ending)));
        }
    }
    found.sort();
    found.into_iter().map(|(_, line)| line).collect()
}

/// The conversation gives these lines, whole, split at every point and byte by byte. With a hole anywhere, and cut off
/// anywhere, no line says `Complete` that the whole does not say at the same statement.
fn check(turns: &[Turn], expected: &[&str]) {
    let whole: Vec<_> = turns.iter().map(|(direction, bytes)| (*direction, Segment::Bytes(bytes))).collect();
    let events = walk(&whole);
    assert_eq!(lines(&events), expected);
    let truth = facts(&events);
    let shown = format!("{events:?}");
    assert!(!shown.contains("canary"), "{shown}");

    let bytewise: Vec<_> = turns
        .iter()
        .flat_map(|(direction, bytes)| bytes.chunks(1).map(|byte| (*direction, Segment::Bytes(byte))))
        .collect();
    assert_eq!(lines(&walk(&bytewise)), expected, "byte by byte");

    for (index, (direction, bytes)) in turns.iter().enumerate() {
        for at in 1..bytes.len() {
            let (head, tail) = bytes.split_at(at);
            let mut split = whole.clone();
            split.splice(
                index..=index,
                [(*direction, Segment::Bytes(head)), (*direction, Segment::Bytes(tail))],
            );
            assert_eq!(lines(&walk(&split)), expected, "turn {index} split at {at}");

            for hole in [1, 2, 5, 17, bytes.len()] {
                let hole = hole.min(tail.len());
                let mut holed = whole.clone();
                holed.splice(
                    index..=index,
                    [
                        (*direction, Segment::Bytes(head)),
                        (*direction, Segment::Gap(hole as u64)),
                        (*direction, Segment::Bytes(&tail[hole..])),
                    ],
                );
                let place = format!("turn {index}, {hole} bytes lost at {at}");
                assert_true_or_unknown(&walk(&holed), &truth, &place);
            }
            let mut cut = whole[..index].to_vec();
            cut.push((*direction, Segment::Bytes(head)));
            assert_true_or_unknown(&walk(&cut), &truth, &format!("turn {index} cut at {at}"));
        }
    }
}

type Fact = (Ending, Option<String>, Option<Option<String>>, Option<String>, Option<u64>);

fn facts(events: &[Event<usize>]) -> Vec<Fact> {
    let fact = |it: &Exchange| {
        let error = it.error.map(|error| error.sqlstate().map(str::to_owned));
        (it.ending, it.query_text(), error, it.command.as_deref().map(str::to_owned), it.rows)
    };
    events
        .iter()
        .filter_map(|event| match event {
            Event::Closed { outcome: Outcome::Postgres(it), .. } => Some(fact(it)),
            _ => None,
        })
        .collect()
}

/// What is said of a complete exchange is true of one of the whole conversation, as far as it is said.
fn assert_true_or_unknown(events: &[Event<usize>], expected: &[Fact], place: &str) {
    for fact in facts(events) {
        let (Ending::Complete, text, error, command, rows) = &fact else { continue };
        let same = expected.iter().any(|(ending, whole, failure, tag, count)| {
            *ending == Ending::Complete
                && text.as_ref().is_none_or(|text| {
                    whole.as_ref().is_some_and(|whole| whole.starts_with(text.trim_end_matches('?')))
                })
                && (error.is_some() == failure.is_some()
                    && (error.as_ref().is_none_or(|it| it.is_none()) || error == failure))
                && (command.is_none() || command == tag)
                && (rows.is_none() || rows == count)
        });
        assert!(same, "{place}: {fact:?}");
    }
}

fn conversation(turns: Vec<Turn>) -> Vec<Turn> {
    start().into_iter().chain(turns).collect()
}

#[test]
fn psycopg2_simple_queries() {
    let turns = conversation(vec![
        (Send, query("BEGIN")),
        (Recv, [done("BEGIN"), message(b'Z', b"T")].concat()),
        (Send, query("SELECT id FROM users WHERE name = 'canary'")),
        (Recv, [columns(), row("canary-row"), row("b"), done("SELECT 2"), message(b'Z', b"T")].concat()),
        (Send, query("SELEKT 1")),
        (Recv, [error("42601"), message(b'Z', b"E")].concat()),
        (Send, query("COMMIT")),
        (Recv, [done("ROLLBACK"), ready()].concat()),
        (Send, message(b'X', b"")),
    ]);
    let expected = [
        "Complete: BEGIN BEGIN",
        "Complete: SELECT id FROM users WHERE name = ? SELECT 2",
        "Complete: SELEKT ? !42601",
        "Complete: COMMIT ROLLBACK",
    ];
    check(&turns, &expected);
}

#[test]
fn several_statements_in_one_query_are_one_exchange() {
    let turns = conversation(vec![
        (Send, query("INSERT INTO a VALUES (1); INSERT INTO a VALUES (2), (3)")),
        (Recv, [done("INSERT 0 1"), done("INSERT 0 2"), ready()].concat()),
    ]);
    check(&turns, &["Complete: INSERT INTO a VALUES (?); INSERT INTO a VALUES (?), (?) INSERT 3"]);
}

#[test]
fn psycopg3_extended_prepared_and_not() {
    let ask = |name: &str, sql: &str| {
        [parse(name, sql), bind(name, Some("canary")), describe_portal(), execute(), sync()].concat()
    };
    let turns = conversation(vec![
        (Send, ask("", "SELECT id FROM a WHERE x = $1 AND y = 'kept'")),
        (Recv, [ok(b'1'), ok(b'2'), columns(), row("canary"), done("SELECT 1"), ready()].concat()),
        (Send, [parse("_pg3_0", "UPDATE a SET x = $1"), sync()].concat()),
        (Recv, [ok(b'1'), ready()].concat()),
        (Send, [bind("_pg3_0", Some("canary")), describe_portal(), execute(), sync()].concat()),
        (Recv, [ok(b'2'), ok(b'n'), done("UPDATE 7"), ready()].concat()),
        (Send, [bind("_pg3_0", Some("canary")), describe_portal(), execute(), sync()].concat()),
        (Recv, [ok(b'2'), error("23505"), ready()].concat()),
        (Send, [parse("", "SELECT 'canary'"), bind("", None), describe_portal(), execute(), sync()].concat()),
        (Recv, [ok(b'1'), ok(b'2'), columns(), row("canary"), done("SELECT 1"), ready()].concat()),
    ]);
    let expected = [
        "Complete: SELECT id FROM a WHERE x = $1 AND y = 'kept' SELECT 1",
        "Complete: UPDATE a SET x = $1 UPDATE 7",
        "Complete: UPDATE a SET x = $1 !23505",
        "Complete: SELECT ? SELECT 1",
    ];
    check(&turns, &expected);
}

#[test]
fn psycopg_pipeline_with_an_error_skips_to_its_sync() {
    let ask = |sql: &str| [parse("", sql), bind("", Some("canary")), describe_portal(), execute()].concat();
    let good = || [ok(b'1'), ok(b'2'), ok(b'n'), done("DELETE 1")].concat();
    let turns = conversation(vec![
        (
            Send,
            [
                ask("DELETE FROM a WHERE i=$1"),
                ask("DELETE FROM bad WHERE i=$1"),
                ask("DELETE FROM c WHERE i=$1"),
                sync(),
            ]
            .concat(),
        ),
        (Send, [ask("DELETE FROM d WHERE i=$1"), sync()].concat()),
        (Recv, [good(), error("42P01"), message(b'Z', b"E"), good(), ready()].concat()),
    ]);
    let expected = [
        "Complete: DELETE FROM a WHERE i=$1 DELETE 1",
        "Complete: DELETE FROM bad WHERE i=$1 !42P01",
        "Skipped: DELETE FROM c WHERE i=$1",
        "Complete: DELETE FROM d WHERE i=$1 DELETE 1",
    ];
    check(&turns, &expected);
}

#[test]
fn asyncpg_prepares_introspects_and_runs() {
    let turns = conversation(vec![
        (
            Send,
            [parse("__asyncpg_1__", "SELECT a FROM t WHERE b = $1"), describe("__asyncpg_1__"), flush()]
                .concat(),
        ),
        (Recv, [ok(b'1'), message(b't', b"\0\x01\0\0\0\x17"), columns()].concat()),
        (
            Send,
            [
                parse("__asyncpg_2__", "SELECT typ FROM pg_type WHERE oid = $1"),
                describe("__asyncpg_2__"),
                flush(),
            ]
            .concat(),
        ),
        (Recv, [ok(b'1'), message(b't', b"\0\x01\0\0\0\x17"), columns()].concat()),
        (Send, [bind("__asyncpg_2__", Some("canary")), execute(), sync()].concat()),
        (Recv, [ok(b'2'), row("canary"), done("SELECT 1"), ready()].concat()),
        (Send, [bind("__asyncpg_1__", Some("canary")), execute(), sync()].concat()),
        (Recv, [ok(b'2'), row("canary"), row("canary"), done("SELECT 2"), ready()].concat()),
        (Send, [parse("__asyncpg_3__", "SELECT nope FROM t"), describe("__asyncpg_3__"), flush()].concat()),
        (Recv, error("42703")),
        (Send, sync()),
        (Recv, ready()),
        (Send, [message(b'C', b"S__asyncpg_1__\0"), sync()].concat()),
        (Recv, [ok(b'3'), ready()].concat()),
    ]);
    let expected = [
        "Complete: SELECT typ FROM pg_type WHERE oid = $1 SELECT 1",
        "Complete: SELECT a FROM t WHERE b = $1 SELECT 2",
        "Complete: SELECT nope FROM t !42703",
    ];
    check(&turns, &expected);
    let segments: Vec<_> =
        turns.iter().map(|(direction, bytes)| (*direction, Segment::Bytes(bytes))).collect();
    let firsts: Vec<_> = walk(&segments)
        .into_iter()
        .filter_map(|event| match event {
            Event::Opened { first, head, .. } => Some((first, head)),
            _ => None,
        })
        .collect();
    assert_eq!(firsts, [(4, 6), (8, 8), (10, 10)]);
}

#[test]
fn copy_in_and_out() {
    let turns = conversation(vec![
        (Send, query("COPY t (a) FROM STDIN")),
        (Recv, message(b'G', b"\0\0\x01\0\0")),
        (Send, [message(b'd', b"canary\n"), message(b'd', &[b'x'; 40]), ok(b'c')].concat()),
        (Recv, [done("COPY 2"), ready()].concat()),
        (
            Send,
            [parse("", "COPY t FROM STDIN"), bind("", None), describe_portal(), execute(), sync()].concat(),
        ),
        (Recv, [ok(b'1'), ok(b'2'), ok(b'n'), message(b'G', b"\0\0\x01\0\0")].concat()),
        (Send, [message(b'd', b"canary\n"), ok(b'c'), sync()].concat()),
        (Recv, [done("COPY 1"), ready()].concat()),
        (Send, query("COPY t TO STDOUT")),
        (
            Recv,
            [message(b'H', b"\0\0\x01\0\0"), message(b'd', b"canary\n"), ok(b'c'), done("COPY 1"), ready()]
                .concat(),
        ),
    ]);
    let expected = [
        "Complete: COPY t (a) FROM STDIN COPY 2",
        "Complete: COPY t FROM STDIN COPY 1",
        "Complete: COPY t TO STDOUT COPY 1",
    ];
    check(&turns, &expected);
}

#[test]
fn cursors_empty_queries_and_asynchronous_messages() {
    let notice = message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mcanary\0\0");
    let notification = message(b'A', b"\0\0\0\x01chan\0canary\0");
    let turns = conversation(vec![
        (
            Send,
            [
                parse("", "SELECT a FROM t WHERE b=$1"),
                bind("", Some("canary")),
                message(b'E', b"\0\0\0\0\x0a"),
                flush(),
            ]
            .concat(),
        ),
        (Recv, [ok(b'1'), ok(b'2'), row("a"), notice.clone(), ok(b's')].concat()),
        (Send, [message(b'E', b"\0\0\0\0\x0a"), sync()].concat()),
        (Recv, [row("b"), done("SELECT 1"), ready(), notification].concat()),
        (Send, query("")),
        (Recv, [notice, ok(b'I'), ready()].concat()),
    ]);
    let expected = [
        "Complete: SELECT a FROM t WHERE b=$1",
        "Complete: SELECT a FROM t WHERE b=$1 SELECT 1",
        "Complete: ",
    ];
    check(&turns, &expected);
}

fn one(turns: &[(Direction, Segment<'_>)]) -> Vec<String> {
    lines(&walk(turns))
}

#[test]
fn preludes_end_or_go_on() {
    let ssl = untyped(80_877_103, b"");
    let gss = untyped(80_877_104, b"");
    let mut turns =
        vec![(Send, gss.clone()), (Recv, b"N".to_vec()), (Send, ssl.clone()), (Recv, b"N".to_vec())];
    turns.extend(conversation(vec![
        (Send, query("SELECT 1")),
        (Recv, [columns(), row("1"), done("SELECT 1"), ready()].concat()),
    ]));
    check(&turns, &["Complete: SELECT ? SELECT 1"]);

    for (hello, answer) in [(ssl, &b"S"[..]), (gss, b"G")] {
        let mut walker = PostgresWalker::new(Role::Client);
        let mut events: Vec<Event<()>> = Vec::new();
        walker.feed(Send, Segment::Bytes(&hello), (), &mut events);
        assert_eq!(walker.interest(Send), Interest::Bytes);
        walker.feed(Recv, Segment::Bytes(answer), (), &mut events);
        assert_eq!(walker.interest(Send), Interest::Nothing);
        assert!(events.is_empty());
    }
    for hello in [
        untyped(80_877_102, b"\0\0\0\x01\0\0\0\x02"),
        untyped(196_608, b"user\0a\0replication\0database\0\0"),
    ] {
        let mut walker = PostgresWalker::new(Role::Client);
        walker.feed(Send, Segment::Bytes(&hello), (), &mut Vec::new());
        assert_eq!(walker.interest(Recv), Interest::Nothing);
    }
}

#[test]
fn late_attach() {
    let ask = [bind("old", Some("canary")), describe_portal(), execute(), sync()].concat();
    let answer = [ok(b'2'), columns(), row("x"), done("SELECT 1"), ready()].concat();
    assert_eq!(
        one(&[(Send, Segment::Bytes(&ask)), (Recv, Segment::Bytes(&answer))]),
        ["Complete: - SELECT 1"]
    );
    // In the middle of another result.
    let middle = [&b"canary middle of a row"[..], &row("x"), &done("SELECT 9"), &ready()].concat();
    let turns =
        [(Recv, Segment::Bytes(&middle)), (Send, Segment::Bytes(&ask)), (Recv, Segment::Bytes(&answer))];
    assert_eq!(one(&turns), ["Complete: - SELECT 1"]);
    let middle = &middle[..30];
    let turns =
        [(Recv, Segment::Bytes(middle)), (Send, Segment::Bytes(&ask)), (Recv, Segment::Bytes(&answer))];
    assert_eq!(one(&turns), ["Complete: - SELECT 1"]);
}

#[test]
fn an_answer_unread_while_framing_is_lost_is_not_replaced_by_the_next_one() {
    let [first, second] = ["begin", "select 1"].map(query);
    let second_answer = [columns(), row("1"), done("SELECT 1"), ready()].concat();
    // The loss is older than both statements: only the bytes that go by unread tell that an answer is missing.
    let lost =
        [(Send, Segment::Bytes(&second)), (Recv, Segment::Bytes(&second_answer)), (Recv, Segment::Gap(90))];
    let notice = message(b'N', b"SNOTICE\0Mtable does not exist\0\0");
    for unread in [Segment::Gap(24), Segment::Bytes(&notice[..20])] {
        let rest = [
            (Send, Segment::Bytes(first.as_slice())),
            (Recv, unread),
            (Send, Segment::Bytes(&second)),
            (Recv, Segment::Bytes(&second_answer)),
        ];
        let facts = facts(&walk(&[&lost[..], &rest].concat()));
        assert!(facts.iter().skip(1).all(|fact| fact.0 != Ending::Complete), "{facts:?}");
        let hidden = [
            (Send, Segment::Bytes(first.as_slice())),
            (Recv, unread),
            (Send, Segment::Gap(14)),
            (Recv, Segment::Bytes(&second_answer)),
        ];
        let facts = self::facts(&walk(&[&lost[..], &hidden].concat()));
        assert!(facts.iter().skip(1).all(|fact| fact.0 != Ending::Complete), "{facts:?}");
    }
}

#[test]
fn long_results_captured_at_both_ends() {
    let ask = query("SELECT a FROM t");
    let rows: Vec<u8> = (0..3000).flat_map(|_| row("canary-canary-canary")).collect();
    let answer = [columns(), rows, done("SELECT 3000"), ready()].concat();
    let (head, rest) = answer.split_at(1000);
    let (hole, tail) = rest.split_at(rest.len() - 256);
    let turns = [
        (Send, Segment::Bytes(&ask[..])),
        (Recv, Segment::Bytes(head)),
        (Recv, Segment::Gap(hole.len() as u64)),
        (Recv, Segment::Bytes(tail)),
        (Send, Segment::Bytes(&ask[..])),
        (Recv, Segment::Bytes(&answer)),
    ];
    assert_eq!(one(&turns), ["Complete: SELECT a FROM t SELECT 3000"; 2]);
    // Two statements in the lost stretch: nobody can tell whose the tag is.
    let two = [parse("", "SELECT $1"), bind("", None), execute(), bind("", None), execute(), sync()].concat();
    let turns = [(Send, Segment::Bytes(&two[..])), (Recv, Segment::Gap(9)), (Recv, Segment::Bytes(tail))];
    assert_eq!(one(&turns), ["Unknown: SELECT $1"; 2]);
}

#[test]
fn a_long_body_is_asked_for_by_length_only() {
    let sql = format!("SELECT '{}'", "canary".repeat(3000));
    let ask = query(&sql);
    let mut walker = PostgresWalker::new(Role::Client);
    let mut events = Vec::new();
    walker.feed(Send, Segment::Bytes(&ask[..8000]), 0, &mut events);
    let left = ask.len() - 8000;
    assert_eq!(walker.interest(Send), Interest::LengthOnly(left as u64));
    walker.feed(Send, Segment::Gap(left as u64), 1, &mut events);
    walker.feed(Recv, Segment::Bytes(&[done("SELECT 1"), ready()].concat()), 2, &mut events);
    assert_eq!(lines(&events), ["Complete: SELECT ? SELECT 1"]);
}

#[test]
fn a_server_that_goes_away_disconnects() {
    let mut walker = PostgresWalker::new(Role::Client);
    let mut events = Vec::new();
    walker.feed(Send, Segment::Bytes(&query("SELECT 1 FROM t")), 0, &mut events);
    walker.end(Recv, 1, &mut events);
    assert_eq!(lines(&events), ["Disconnected: SELECT ? FROM t"]);
}

#[test]
fn first_bytes_are_judged() {
    let yes = |bytes: &[u8], request: bool| assert_eq!(guess(bytes), Guess::Yes { request }, "{bytes:?}");
    for (direction, bytes) in start() {
        yes(&bytes, direction == Send);
    }
    yes(&untyped(80_877_103, b""), true);
    yes(&query("SELECT 1"), true);
    yes(&query("COMMIT"), true);
    yes(&[parse("", "SELECT $1"), bind("", Some("x")), execute(), sync()].concat(), true);
    yes(&query(&format!("INSERT INTO t VALUES ('{}')", "x".repeat(9000)))[..4096], true);
    yes(&[bind("s", None), execute(), sync()].concat(), true);
    yes(&[columns(), row("a"), done("SELECT 1"), ready()].concat(), false);
    yes(&[ok(b'1'), ok(b'2'), ok(b'n')].concat(), false);
    yes(&error("42601"), false);
    assert_eq!(guess(b""), Guess::Perhaps);
    assert_eq!(guess(b"\0\0\0"), Guess::Perhaps);
    assert_eq!(guess(b"Q\0\0"), Guess::Perhaps);
    for other in [
        &b"PUT / HTTP/1.1\r\n"[..],
        b"POST /x HTTP/1.1\r\n",
        b"PI",
        b"GET / HTTP/1.1",
        b"DELETE /",
        b"HEAD /",
        b"CONNECT a",
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"+OK\r\n",
        b"$-1\r\n",
        b":1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\0\0\0\x2a\0\0\0\x01",
        b"Q\0\0\0\x0chello w\0",
        b"SET a b\r\n",
        b"SSH-2.0-x",
        b"EHLO x\r\n",
        b"\0\0\x12\x04\0\0\0\0\0",
    ] {
        assert_eq!(guess(other), Guess::No, "{:?}", String::from_utf8_lossy(other));
    }
}

#[test]
fn mutated_conversations_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let ask = |sql: &str| [parse("s", sql), bind("s", Some("canary")), describe("s"), execute()].concat();
    let turns = conversation(vec![
        (Send, [ask("SELECT $1"), ask("DELETE FROM a"), sync(), query("COPY t FROM STDIN")].concat()),
        (Recv, [ok(b'1'), ok(b'2'), columns(), row("x"), done("SELECT 1"), error("42P01"), ready()].concat()),
        (Send, [message(b'd', b"abc"), message(b'c', b""), message(b'F', &[0; 20])].concat()),
        (Recv, [message(b'G', b"\0\0\0"), done("COPY 1"), ready(), message(b'V', &[0; 4]), ready()].concat()),
    ]);
    for _ in 0..4000 {
        let mut mutated = turns.clone();
        for _ in 0..=random(4) {
            let (_, bytes) = &mut mutated[random(turns.len())];
            let at = random(bytes.len());
            bytes[at] = u8::try_from(random(256)).unwrap();
        }
        let split: Vec<_> = mutated
            .iter()
            .flat_map(|(direction, bytes)| {
                let (head, tail) = bytes.split_at(random(bytes.len()));
                let hole = Segment::Gap(random(3) as u64 * 7);
                [(*direction, Segment::Bytes(head)), (*direction, hole), (*direction, Segment::Bytes(tail))]
            })
            .collect();
        walk(&split);
        mutated.iter().for_each(|(_, bytes)| {
            std::hint::black_box(guess(bytes));
        });
    }
}

/// A conversation recorded between a real driver and PostgreSQL 15: `>` is the driver's, `<` the server's, in hex.
fn recorded(text: &str) -> Vec<Turn> {
    text.lines()
        .map(|line| {
            let (direction, hex) = line.split_once(' ').unwrap();
            let bytes =
                (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap());
            (if direction == ">" { Send } else { Recv }, bytes.collect())
        })
        .collect()
}

#[test]
fn recorded_psycopg3() {
    let expected = [
        "Complete: BEGIN BEGIN",
        "Complete: create table items(id int primary key, name text) CREATE TABLE",
        "Complete: insert into items values ($1,$2) INSERT 1",
        "Complete: insert into items values ($1,$2) INSERT 1",
        "Complete: insert into items values ($1,$2) INSERT 1",
        "Complete: insert into items values ($1,$2) INSERT 1",
        "Complete: select name from items where id > $1 SELECT 2",
        "Complete: copy items from stdin COPY 1",
        "Complete: copy (select * from items) to stdout COPY 5",
        "Complete: select name from items where id = $1 SELECT 1",
        "Complete: select name from items where id = $1 SELECT 1",
        "Complete: select name from items where id = $1 SELECT 1",
        "Complete: select name from items where id = $1 SELECT 1",
        "Complete: select name from items where id = $1 SELECT 0",
        "Complete: select name from items where id = $1 SELECT 0",
        "Complete: select name from items where id = $1 SELECT 0",
        "Complete: COMMIT COMMIT",
        "Complete: BEGIN BEGIN",
        "Complete: insert into items values (?,?) !23505",
        "Complete: ROLLBACK ROLLBACK",
        "Complete: DEALLOCATE ALL DEALLOCATE ALL",
        "Complete: BEGIN BEGIN",
        "Complete: DECLARE \"cur\" CURSOR FOR select id from items DECLARE CURSOR",
        "Complete: FETCH FORWARD ? FROM \"cur\" FETCH 2",
        "Complete: FETCH FORWARD ? FROM \"cur\" FETCH 2",
        "Complete: CLOSE \"cur\" CLOSE CURSOR",
        "Complete: COMMIT COMMIT",
    ];
    check(&recorded(include_str!("recorded/psycopg3.txt")), &expected);
}

#[test]
fn recorded_psycopg3_pipeline() {
    let expected = [
        "Complete: BEGIN BEGIN",
        "Complete: select id from items where id=$1 SELECT 1",
        "Complete: select nope from items where id=$1 !42703",
        "Skipped: select name from items where id=$1",
        "Complete: COMMIT ROLLBACK",
    ];
    check(&recorded(include_str!("recorded/psycopg3_pipeline.txt")), &expected);
}

#[test]
fn recorded_asyncpg() {
    let expected = [
        "Complete: select name from items where id=$1 SELECT 1",
        "Complete: update items set name=? where id=? UPDATE 1",
        "Complete: BEGIN; BEGIN",
        "Complete: insert into items values ($1,$2) INSERT 1",
        "Complete: insert into items values ($1,$2) INSERT 1",
        "Complete: insert into items values ($1,$2) INSERT 1",
        "Complete: COMMIT; COMMIT",
        "Complete: select nope from items where id=$1 !42703",
        "Complete: COPY \"items\" FROM STDIN (FORMAT binary)  COPY 1",
        "Complete: BEGIN; BEGIN",
        "Complete: select id from items",
        "Complete: select id from items",
        "Complete: select id from items",
        "Complete: select id from items SELECT 0",
        "Complete: COMMIT; COMMIT",
    ];
    check(&recorded(include_str!("recorded/asyncpg.txt")), &expected);
}
