//! One `check` for every conversation: whole, at every split, byte by byte.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::arithmetic_side_effects)]

use super::{Exchange, RedisWalker, Reply, guess};
use crate::protocol::{Direction::*, Event, Guess, Interest, Outcome, Role, Segment, Walker as _};

type Turn<'a> = (bool, &'a [u8]);

/// Runs a conversation (`true`: the client speaks), each turn cut by `cut`, and gives the exchanges.
fn run(
    turns: &[Turn<'_>],
    cut: impl Fn(usize, usize) -> Vec<usize>,
) -> (Vec<Event<usize>>, RedisWalker<usize>) {
    let mut walker = RedisWalker::new(Role::Client);
    let mut events = Vec::new();
    for (index, (sent, bytes)) in turns.iter().enumerate() {
        let direction = if *sent { Send } else { Recv };
        let mut from = 0;
        for to in cut(index, bytes.len()).into_iter().chain([bytes.len()]) {
            walker.feed(direction, Segment::Bytes(&bytes[from..to]), index, &mut events);
            from = to;
        }
    }
    (events, walker)
}

fn exchanges(events: &[Event<usize>]) -> Vec<Exchange> {
    let closed = events.iter().filter_map(|event| match event {
        Event::Closed { exchange, outcome: Outcome::Redis(outcome), .. } => {
            Some((*exchange, (**outcome).clone()))
        }
        _ => None,
    });
    closed.map(|(_, exchange)| exchange).collect()
}

fn line(exchange: &Exchange) -> String {
    let reply = match &exchange.reply {
        Reply::Value => "ok",
        Reply::Error(error) => error,
        Reply::Silent => "silent",
        Reply::ConnectionLost => "lost",
    };
    let database = exchange.database.map_or("-".into(), |index| index.to_string());
    format!("{} | {} | {database} | {reply}", exchange.operation, exchange.text)
}

fn check(turns: &[Turn<'_>], expected: &[&str]) {
    let lines = |events: &[Event<usize>]| exchanges(events).iter().map(line).collect::<Vec<_>>();
    let (whole, _) = run(turns, |_, _| Vec::new());
    assert_eq!(lines(&whole), expected);
    assert!(!format!("{whole:?}").contains("CANARY"), "a value left: {whole:?}");
    let (bytewise, _) = run(turns, |_, len| (0..len).collect());
    assert_eq!(bytewise, whole);
    for (turn, (_, bytes)) in turns.iter().enumerate() {
        for at in 0..bytes.len() {
            let (events, _) = run(turns, |index, _| if index == turn { vec![at] } else { Vec::new() });
            assert_eq!(events, whole, "turn {turn} split at {at}");
        }
    }
    gaps(turns, expected);
}

/// Cuts the end of one turn off into a gap: what is still reported must be what was reported before.
fn gaps(turns: &[Turn<'_>], expected: &[&str]) {
    for turn in 0..turns.len() {
        for at in 0..turns[turn].1.len() {
            let mut walker = RedisWalker::new(Role::Client);
            let mut events = Vec::new();
            for (index, (sent, bytes)) in turns.iter().enumerate() {
                let direction = if *sent { Send } else { Recv };
                let seen = if index == turn { at } else { bytes.len() };
                walker.feed(direction, Segment::Bytes(&bytes[..seen]), index, &mut events);
                walker.feed(direction, Segment::Gap((bytes.len() - seen) as u64), index, &mut events);
            }
            walker.close(usize::MAX, &mut events);
            let mut left = expected.iter();
            for exchange in
                exchanges(&events).iter().filter(|exchange| exchange.reply != Reply::ConnectionLost)
            {
                // The database may be unknown after a gap, the rest not another.
                let seen = line(exchange);
                let parts: Vec<_> = seen.split(" | ").collect();
                let matches = |line: &&&str| {
                    let other: Vec<_> = line.split(" | ").collect();
                    other[0] == parts[0]
                        && (other[3] == parts[3] || parts[3] == "ERR")
                        && (parts[2] == "-" || parts[2] == other[2])
                        && (other[1] == parts[1] || parts[1].contains("..."))
                };
                assert!(left.any(|line| matches(&line)), "turn {turn} cut at {at}: {seen}");
            }
        }
    }
}

#[test]
fn one_command() {
    check(
        &[(true, b"*3\r\n$3\r\nSET\r\n$6\r\nuser:1\r\n$6\r\nCANARY\r\n"), (false, b"+OK\r\n")],
        &["SET | SET user:1 ? | - | ok"],
    );
}

#[test]
fn pipeline_with_select_and_errors() {
    check(
        &[
            (true, b"*2\r\n$4\r\nAUTH\r\n$6\r\nCANARY\r\n"),
            (false, b"+OK\r\n"),
            (true, b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$4\r\nINCR\r\n$1\r\nb\r\n"),
            (false, b"+OK\r\n$-1\r\n-WRONGTYPE Operation CANARY\r\n"),
            (true, b"PING\r\n"),
            (false, b"+PONG\r\n"),
        ],
        &[
            "AUTH | AUTH ? | 0 | ok",
            "SELECT | SELECT ? | 0 | ok",
            "GET | GET a | 3 | ok",
            "INCR | INCR b | 3 | WRONGTYPE",
            "PING | PING | 3 | ok",
        ],
    );
}

#[test]
fn transaction() {
    check(
        &[
            (true, b"*1\r\n$5\r\nMULTI\r\n*3\r\n$4\r\nHSET\r\n$1\r\nh\r\n$1\r\nx\r\n*1\r\n$4\r\nEXEC\r\n"),
            (false, b"+OK\r\n+QUEUED\r\n*2\r\n*1\r\n:1\r\n-MOVED 1 CANARY\r\n"),
        ],
        &["MULTI | MULTI | - | ok", "HSET | HSET h ? | - | ok", "EXEC | EXEC | - | MOVED"],
    );
}

#[test]
fn resp3_forms() {
    check(
        &[
            (true, b"*1\r\n$4\r\nKEYS\r\n"),
            (false, b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n|1\r\n+ttl\r\n:3\r\n%2\r\n+a\r\n~2\r\n#t\r\n_\r\n,1.5\r\n*?\r\n(123\r\n$?\r\n;3\r\nabc\r\n;0\r\n.\r\n"),
            (true, b"*1\r\n$4\r\nTIME\r\n"),
            (false, b"!10\r\nERR CANARY\r\n"),
            (true, b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n*1\r\n$4\r\nPING\r\n"),
            (false, b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n=8\r\ntxt:PONG\r\n"),
        ],
        &["KEYS | KEYS | - | ok", "TIME | TIME | - | ERR", "SUBSCRIBE | SUBSCRIBE c | - | ok", "PING | PING | - | ok"],
    );
}

#[test]
fn subscriptions_and_silence() {
    check(
        &[
            (true, b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$4\r\nSKIP\r\n*2\r\n$3\r\nDEL\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n"),
            (false, b"+PONG\r\n"),
            (true, b"*3\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n$1\r\nb\r\n"),
            (false, b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"),
            (false, b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$6\r\nCANARY\r\n"),
        ],
        &[
            "CLIENT REPLY | CLIENT REPLY ? | - | silent",
            "DEL | DEL a | - | silent",
            "PING | PING | - | ok",
            "SUBSCRIBE | SUBSCRIBE a b | - | ok",
        ],
    );
}

#[test]
fn large_values_are_skipped_by_length() {
    let mut walker = RedisWalker::new(Role::Client);
    let mut events = Vec::new();
    walker.feed(Send, Segment::Bytes(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"), 0, &mut events);
    walker.feed(Recv, Segment::Bytes(b"$1000000\r\nabc"), 1, &mut events);
    assert_eq!(walker.interest(Recv), Interest::LengthOnly(999_999));
    walker.feed(Recv, Segment::Gap(999_999), 2, &mut events);
    assert_eq!(exchanges(&events).len(), 1);
    walker.feed(Send, Segment::Bytes(b"*2\r\n$4\r\nMGET\r\n$1\r\nk\r\n"), 3, &mut events);
    walker.feed(Recv, Segment::Bytes(b"*2\r\n$5\r\nab"), 4, &mut events);
    walker.feed(Recv, Segment::Gap(70_000), 4, &mut events);
    walker.feed(Recv, Segment::Bytes(b"yz\r\n"), 5, &mut events);
    assert_eq!(exchanges(&events).len(), 2);
    assert_eq!(walker.open_exchanges(), 0);
}

#[test]
fn a_discarded_select_selects_nothing() {
    check(
        &[
            (true, b"PING\r\n"),
            (false, b"+PONG\r\n"),
            (
                true,
                b"*2\r\n$6\r\nSELECT\r\n$1\r\n2\r\n*1\r\n$5\r\nMULTI\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n9\r\n",
            ),
            (false, b"+OK\r\n+OK\r\n+QUEUED\r\n"),
            (true, b"*1\r\n$7\r\nDISCARD\r\n*1\r\n$5\r\nMULTI\r\n*1\r\n$4\r\nEXEC\r\n*1\r\n$4\r\nTIME\r\n"),
            (false, b"+OK\r\n+OK\r\n*0\r\n*1\r\n:1\r\n"),
        ],
        &[
            "PING | PING | - | ok",
            "SELECT | SELECT ? | - | ok",
            "MULTI | MULTI | 2 | ok",
            "SELECT | SELECT ? | 2 | ok",
            "DISCARD | DISCARD | 2 | ok",
            "MULTI | MULTI | 2 | ok",
            "EXEC | EXEC | 2 | ok",
            "TIME | TIME | 2 | ok",
        ],
    );
}

/// After a loss a lock-step client is paired again, one that multiplexes is not.
#[test]
fn pairing_after_a_loss() {
    let ping = Segment::Bytes(b"*1\r\n$4\r\nPING\r\n");
    let pong = Segment::Bytes(b"+PONG\r\n");
    for (multiplexes, expected) in [(false, 2), (true, 0)] {
        let mut walker = RedisWalker::new(Role::Client);
        let mut events = Vec::new();
        let order = if multiplexes {
            [Send, Send, Recv, Send, Recv, Recv]
        } else {
            [Send, Send, Recv, Recv, Send, Recv]
        };
        // Multiplexing: a command between two replies of what was asked before.
        for direction in order {
            walker.feed(direction, if direction == Send { ping } else { pong }, 0, &mut events);
        }
        assert_eq!(exchanges(&events).len(), 3);
        events.clear();
        for (direction, segment) in [
            (Send, ping),
            (Recv, Segment::Gap(7)),
            (Recv, pong),
            (Send, ping),
            (Recv, pong),
            (Send, ping),
            (Recv, pong),
        ] {
            walker.feed(direction, segment, 0, &mut events);
        }
        let seen = exchanges(&events).len();
        assert_eq!(seen, expected);
        assert!(
            events.iter().any(|event| matches!(event, Event::Closed { outcome: Outcome::Discarded, .. }))
        );
    }
}

/// Keys are shown where they are, and nothing else.
#[test]
fn texts() {
    for (command, text) in [
        ("MSET a CANARY b CANARY", "MSET a ? b ?"),
        ("EVAL CANARY 2 k1 k2 CANARY", "EVAL ? 2 k1 k2 ?"),
        ("XREADGROUP GROUP CANARY CANARY STREAMS s1 s2 > >", "XREADGROUP ? ? ? ? s1 s2 ? ?"),
        ("BRPOP q1 q2 5", "BRPOP q1 q2 ?"),
        ("HELLO 3 AUTH CANARY CANARY", "HELLO ? ? ? ?"),
        ("CONFIG SET CANARY CANARY", "CONFIG SET ? ?"),
        ("ACL SETUSER CANARY CANARY", "ACL SETUSER ? ?"),
        ("MIGRATE h 1 CANARY 0 1 AUTH CANARY", "MIGRATE ? ? ? ? ? ? ?"),
        ("FOO.BAR CANARY", "FOO.BAR ?"),
    ] {
        let words: Vec<_> = command.split(' ').collect();
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let (events, _) = run(&[(true, bytes.as_bytes()), (false, b":1\r\n")], |_, _| Vec::new());
        assert_eq!(&*exchanges(&events)[0].text, text);
    }
}

#[test]
fn random_bytes_do_no_harm() {
    let seed: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nEXEC\r\n*2\r\n%1\r\n+a\r\n$2\r\nxy\r\n-ERR x\r\n>1\r\n:1\r\n|1\r\n";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3000 {
        let mut bytes = seed.to_vec();
        for _ in 0..4 {
            let at = random() as usize % bytes.len();
            bytes[at] = b"\r\n*$+-:>|%;?.0129aG\xff"[random() as usize % 20];
        }
        let mut walker = RedisWalker::new(Role::Client);
        let mut events = Vec::new();
        for part in bytes.chunks(1 + random() as usize % 20) {
            let direction = if random() % 2 == 0 { Send } else { Recv };
            let segment = if random() % 8 == 0 { Segment::Gap(random() % 50) } else { Segment::Bytes(part) };
            walker.feed(direction, segment, 0_usize, &mut events);
            let _ = guess(part);
        }
        walker.close(0, &mut events);
        let opened = events.iter().filter(|event| matches!(event, Event::Opened { .. })).count();
        let closed = events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
        assert_eq!(opened, closed);
    }
}

#[test]
fn guesses() {
    let yes = |request| Guess::Yes { request };
    for (bytes, expected) in [
        (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".as_slice(), yes(true)),
        (b"*2\r\n$3\r\nG", Guess::Perhaps),
        (b"PING\r\n", yes(true)),
        (b"+OK\r\n", yes(false)),
        (b"+OK", Guess::Perhaps),
        (b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n", yes(false)),
        (b"GET / HTTP/1.1\r\n", Guess::No),
        (b"GET /", Guess::No),
        (b"POST", Guess::No),
        (b"HTTP/1.1 200 OK\r\n", Guess::No),
        (b"Q\0\0\0\x0dselect 1\0", Guess::No),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Guess::No),
        (b"\x16\x03\x01", Guess::No),
    ] {
        assert_eq!(guess(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn setting_a_connection_up_is_not_worth_a_span() {
    let worth = |turns: &[Turn<'_>]| {
        let (events, _) = run(turns, |_, _| Vec::new());
        let worth = exchanges(&events).into_iter().filter(Exchange::is_worth_a_span);
        worth.map(|exchange| exchange.operation.into_string()).collect::<Vec<_>>()
    };
    let setup: [Turn<'_>; 6] = [
        (true, b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n"),
        (false, b"%1\r\n+proto\r\n:3\r\n"),
        (true, b"*4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$8\r\nLIB-NAME\r\n$1\r\nx\r\n"),
        (false, b"-ERR unknown subcommand\r\n"),
        (true, b"*2\r\n$6\r\nSELECT\r\n$1\r\n2\r\n"),
        (false, b"+OK\r\n"),
    ];
    let work: [Turn<'_>; 4] = [
        (true, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"),
        (false, b"$1\r\nv\r\n"),
        (true, b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n"),
        (false, b"+OK\r\n"),
    ];
    assert_eq!(worth(&[&setup[..], &work[..]].concat()), ["GET", "SELECT"]);
    let refused: [Turn<'_>; 2] = [(true, b"*2\r\n$4\r\nAUTH\r\n$1\r\nx\r\n"), (false, b"-WRONGPASS no\r\n")];
    assert_eq!(worth(&refused), ["AUTH"]);
}

/// What is told of a conversation: operations, a task's name instead where one is sent.
fn told(turns: &[Turn<'_>]) -> Vec<String> {
    let (events, _) = run(turns, |_, _| Vec::new());
    let told = exchanges(&events).into_iter().filter(Exchange::is_worth_a_span);
    told.map(|exchange| match exchange.message {
        Some(message) => message.task.into_string(),
        None => exchange.operation.into_string(),
    })
    .collect()
}

/// A command as a client sends it.
fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend(format!("${}\r\n", argument.len()).bytes());
        bytes.extend_from_slice(argument);
        bytes.extend(b"\r\n");
    }
    bytes
}

const TASK: &[u8] = include_bytes!("../celery/tests/message.json");

#[test]
fn a_task_is_sent_and_the_broker_kept_in_order() {
    let declare = [
        command(&[b"MULTI"]),
        command(&[b"LLEN", b"celery"]),
        command(&[b"LLEN", b"celery\x06\x163"]),
        command(&[b"EXEC"]),
    ]
    .concat();
    let bind = command(&[b"SADD", b"_kombu.binding.celery", b"celery\x06\x16\x06\x16celery"]);
    let send = command(&[b"LPUSH", b"celery", TASK]);
    let urgent = command(&[b"lpush", b"celery\x06\x169", TASK]);
    let (ping, get) = (command(&[b"PING"]), command(&[b"GET", b"k"]));
    let one: &[u8] = b":1\r\n";
    let turns: [Turn<'_>; 12] = [
        (true, &declare),
        (false, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:0\r\n:0\r\n"),
        (true, &bind),
        (false, one),
        (true, &send),
        (false, one),
        (true, &urgent),
        (false, one),
        (true, &ping),
        (false, b"+PONG\r\n"),
        // Whoever borrows kombu's connection is told of.
        (true, &get),
        (false, b"$-1\r\n"),
    ];
    assert_eq!(told(&turns), ["shop.work", "shop.work", "GET"]);
}

#[test]
fn a_workers_housekeeping() {
    let taken = [
        command(&[b"MULTI"]),
        command(&[b"ZADD", b"unacked_index", b"1.5", b"tag"]),
        command(&[b"HSET", b"unacked", b"tag", TASK]),
        command(&[b"EXEC"]),
    ]
    .concat();
    let again = TASK.strip_suffix(b"}").unwrap();
    let again = [again, br#", "headers": {"redelivered": true}}"#].concat();
    for (turns, expected) in [
        (
            [
                (true, taken.as_slice()),
                (false, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n:1\r\n".as_slice()),
            ],
            [].as_slice(),
        ),
        ([(true, &command(&[b"BRPOP", b"celery", b"celery\x06\x163", b"1"])), (false, b"*-1\r\n")], &[]),
        ([(true, &command(&[b"PUBLISH", b"/0.celeryev/worker.heartbeat", b"{}"])), (false, b":1\r\n")], &[]),
        ([(true, &command(&[b"EVALSHA", b"c3", b"1", b"unacked_mutex", b"x"])), (false, b":1\r\n")], &[]),
        ([(true, &command(&[b"RPUSH", b"celery", &again])), (false, b":1\r\n")], &[]),
        // An application's own queues look like this.
        ([(true, &command(&[b"BRPOP", b"jobs", b"1"])), (false, b"*-1\r\n")], &["BRPOP"]),
        ([(true, &command(&[b"LPUSH", b"jobs", b"{\"id\": 1}"])), (false, b":1\r\n")], &["LPUSH"]),
        ([(true, &command(&[b"HSET", b"unacked", b"a", b"b"])), (false, b":1\r\n")], &["HSET"]),
        ([(true, &command(&[b"PUBLISH", b"news", b"x"])), (false, b":1\r\n")], &["PUBLISH"]),
    ] {
        assert_eq!(told(&turns), expected, "{}", String::from_utf8_lossy(turns[0].1));
    }
}

#[test]
fn a_sign_of_life_before_a_connection_is_set_up() {
    let (ping, hello) = (command(&[b"PING"]), command(&[b"HELLO", b"3"]));
    let (pong, proto): (&[u8], &[u8]) = (b"+PONG\r\n", b"%1\r\n+proto\r\n:3\r\n");
    let turns: [Turn<'_>; 8] = [
        (true, &ping),
        (false, pong),
        (true, &hello),
        (false, proto),
        (true, &ping),
        (false, pong),
        (true, &ping),
        (false, pong),
    ];
    let (events, _) = run(&turns, |_, _| Vec::new());
    let seen: Vec<_> = exchanges(&events)
        .iter()
        .map(|exchange| (exchange.connection_setup, exchange.sign_of_life))
        .collect();
    assert_eq!(seen, [(false, true), (true, false), (false, true), (false, false)]);
}
