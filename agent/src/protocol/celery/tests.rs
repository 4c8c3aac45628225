//! Real messages of Celery 5.7 on CPython 3.11, whole, cut everywhere, garbled, and with parts that were not captured.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::arithmetic_side_effects)]

use super::job::{Job, job};
use super::result::{Reply, reply};
use super::*;
use crate::protocol::{Direction, Event, Outcome, Segment, Walker as _};

/// The pickle of a job, with the argument `secret='canary'`.
const JOB: &[u8] = include_bytes!("tests/job.pickle");
/// The message on the queue that it was made of.
const MESSAGE: &[u8] = include_bytes!("tests/message.json");
/// The first 200 bytes of 45 kilobytes by which a task says that it raised `Retry`.
const RETRY: &[u8] = include_bytes!("tests/retry.pickle");
/// `(ACK, (0, None, time, pid, fd))` and `(READY, (0, None, (True, (0, "{'n': 0, 's': 'canary'}", 0.02)), 9))`.
const ACK: &[u8] = b"\x80\x04\x95\x18\0\0\0\0\0\0\0K\0(K\0NG@\x8d\x15\x1fPt\xd1RM\x16[Nt\x94\x86\x94.";
const READY: &[u8] = b"\x80\x04\x957\0\0\0\0\0\0\0K\x01(K\0N\x88K\0\x8c\x17{'n': 0, 's': 'canary'}\x94G?\x97\xba\0\0\0\0\0\x87\x94\x86\x94K\tt\x94\x86\x94.";
const ID: &str = "dac64b8a-c7b7-42af-bc70-b5dd78a658ae";

/// With its length before it, as on a pipe.
fn framed(pickle: &[u8]) -> Vec<u8> {
    [&u32::try_from(pickle.len()).unwrap().to_be_bytes()[..], pickle].concat()
}

fn expected() -> Message {
    Message {
        task: "shop.work".into(),
        id: ID.into(),
        routing_key: Some("celery".into()),
        ..Message::default()
    }
}

#[test]
fn a_message() {
    assert_eq!(message(MESSAGE), Some(expected()));
    for at in 0..MESSAGE.len() {
        // What is behind the name, the id and the delivery information is not needed; what is read is never another.
        if let Some(Message { task, id, routing_key, .. }) = message(&MESSAGE[..at]) {
            assert_eq!((&*task, &*id), ("shop.work", ID), "cut at {at}");
            assert!(routing_key.is_none_or(|queue| &*queue == "celery"), "cut at {at}");
        }
    }
}

#[test]
fn what_a_message_says_of_its_trace_and_its_past() {
    let text = br#"{"body": "e30=", "headers": {"task": "caf\u00e9.\"serve\"", "id": "7", "retries": 3,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1"},
        "properties": {"delivery_info": {"exchange": "x", "routing_key": "video.encode", "redelivered": true}}}"#;
    let message = message(text).unwrap();
    assert_eq!(&*message.task, "caf\u{e9}.\"serve\"");
    assert_eq!((message.retries, message.redelivered), (3, true));
    assert_eq!(message.routing_key.as_deref(), Some("video.encode"));
    assert_eq!(message.trace.tracestate.as_deref(), Some("a=1"));
    assert!(message.trace.traceparent.unwrap().starts_with("00-0af76519"));
}

#[test]
fn what_is_no_task() {
    for text in [
        "",
        "{",
        "[1]",
        "canary",
        r#"{"task": "a", "id": "b"}"#,
        r#"{"headers": {"task": "a", "id": "b"}}"#,
        r#"{"headers": {"task": "a"}, "properties": {"delivery_info": {"routing_key": "q"}}}"#,
        // Message protocol 1, and an event of kombu's.
        r#"{"body": "eyJ0YXNrIjogImEifQ==", "headers": {}, "properties": {"delivery_info": {"routing_key": "q"}}}"#,
    ] {
        assert_eq!(message(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn a_job() {
    let whole = job(JOB).unwrap();
    let worker = Some("celery@vm".into());
    assert_eq!(whole, Job { number: 0, message: expected(), worker });
    let named = JOB.windows(ID.len()).position(|window| window == ID.as_bytes()).unwrap() + ID.len();
    for at in 0..JOB.len() {
        let cut = job(&JOB[..at]);
        assert_eq!(cut.is_some(), at >= named, "cut at {at}");
        if let Some(Job { number: 0, message, .. }) = cut {
            assert_eq!((&*message.task, &*message.id, message.retries), ("shop.work", ID, 0));
            assert!(message.routing_key.is_none_or(|queue| &*queue == "celery"), "cut at {at}");
        }
    }
}

/// `pickle.dumps((2, (300, None, trace_task_ret, ("t", "i", request, b"")))` with the first items of a request.
fn job_with(request: &[u8]) -> Vec<u8> {
    let head = b"\x80\x05K\x02(M\x2c\x01N\x8c\x10celery.app.trace\x94\x8c\x0etrace_task_ret\x94\x93\x94(\x8c\x01t\x94\x8c\x01i\x94}\x94(";
    [&head[..], request].concat()
}

#[test]
fn what_a_job_holds_beside_its_name() {
    let pairs = b"\x8c\x07retries\x94K\x02\x8c\x0btraceparent\x94\x8c\x02tp\x94\x8c\x09timelimit\x94NN\x86\x94\x8c\x08hostname\x94\x8c\x01w\x94\
        \x8c\x0ddelivery_info\x94}\x94(\x8c\x0brouting_key\x94\x8c\x01q\x94\x8c\x0bredelivered\x94\x88uN.";
    let job = job(&job_with(pairs)).unwrap();
    assert_eq!((job.number, job.message.retries, job.worker.as_deref()), (300, 2, Some("w")));
    assert_eq!(job.message.trace.traceparent.as_deref(), Some("tp"));
    assert_eq!((job.message.routing_key.as_deref(), job.message.redelivered), (Some("q"), true));
}

/// A dictionary with one item has no mark: its key must not be taken for one of the request's.
#[test]
fn what_looks_like_the_requests_own() {
    let pairs = b"\x8c\x01x\x94}\x94\x8c\x08hostname\x94\x8c\x06canary\x94s\x8c\x01y\x94]\x94(\x8c\x08hostname\x94\x8c\x06canary\x94e\
        \x8c\x01z\x94}\x94(\x8c\x08hostname\x94\x8c\x06canary\x94\x8c\x07retries\x94K\x05u\x8c\x07retries\x94K\x01\
        \x8c\x04args\x94]\x94\x8c\x08hostname\x94\x8c\x06canary\x94N.";
    let job = job(&job_with(pairs)).unwrap();
    assert_eq!((job.worker, job.message.retries), (None, 1));
}

#[test]
fn how_a_task_ended() {
    let ready = |pickle: &[u8]| match reply(pickle) {
        Some(Reply::Ready { number: 0, state }) => state,
        other => panic!("{other:?}"),
    };
    assert_eq!(ready(READY), State::Success);
    assert_eq!(ready(RETRY), State::Retry);
    let raised = |module: &[u8], name: &[u8]| {
        let text = |text: &[u8]| [&[0x8c, u8::try_from(text.len()).unwrap()], text, &[0x94]].concat();
        let head = b"\x80\x04K\x01(K\0N\x88K\x01\x8c\x0ebilliard.einfo\x94\x8c\x0dExceptionInfo\x94\x93\x94)\x81\x94}\x94(";
        ready(&[&head[..], &text(b"type"), &text(module), &text(name), b"\x93"].concat())
    };
    assert_eq!(raised(b"builtins", b"ValueError"), State::Failure(Some("ValueError".into())));
    assert_eq!(raised(b"shop.errors", b"Empty"), State::Failure(Some("shop.errors.Empty".into())));
    assert_eq!(raised(b"celery.exceptions", b"Ignore"), State::Ignored);
    assert_eq!(raised(b"celery.exceptions", b"Reject"), State::Rejected);
    // The job's function itself failed.
    assert_eq!(ready(b"\x80\x04K\x01(K\0N\x89N"), State::Failure(None));
    for at in 0..RETRY.len() {
        if let Some(Reply::Ready { state, .. }) = reply(&RETRY[..at]) {
            assert!(matches!(state, State::Retry | State::Failure(None)), "cut at {at}: {state:?}");
        }
    }
    assert_eq!(reply(ACK), Some(Reply::Other));
    assert_eq!(reply(JOB), None, "what the main process writes");
    assert_eq!(reply(b"\x80\x04N."), None);
}

type Call<'a> = (Direction, &'a [u8]);

/// Runs calls, each cut by `cut`; gives the events.
fn run(calls: &[Call<'_>], cut: impl Fn(usize, usize) -> Vec<usize>) -> Vec<Event<usize>> {
    let mut walker = PoolWalker::new();
    let mut events = Vec::new();
    for (index, (direction, bytes)) in calls.iter().enumerate() {
        let mut from = 0;
        for to in cut(index, bytes.len()).into_iter().chain([bytes.len()]) {
            walker.feed(*direction, Segment::Bytes(&bytes[from..to]), index, &mut events);
            from = to;
        }
    }
    events
}

/// The states of the tasks that were closed.
fn closed(events: &[Event<usize>]) -> Vec<Option<State>> {
    let outcome = |event: &Event<usize>| match event {
        Event::Closed { outcome: Outcome::Celery(run), .. } => Some(Some(run.state.clone())),
        Event::Closed { .. } => Some(None),
        Event::Opened { .. } | Event::Answered { .. } | Event::Telemetry { .. } => None,
    };
    events.iter().filter_map(outcome).collect()
}

#[test]
fn jobs_and_their_results() {
    let (length, body) = (u32::try_from(JOB.len()).unwrap().to_be_bytes(), JOB);
    let (ack, ready) = (framed(ACK), framed(READY));
    let calls = [
        (Direction::Recv, &length[..]),
        (Direction::Recv, body),
        (Direction::Send, &ack[..]),
        (Direction::Send, &ready[..]),
        (Direction::Recv, &length[..]),
        (Direction::Recv, body),
        (Direction::Send, &ready[..]),
    ];
    let whole = run(&calls, |_, _| Vec::new());
    assert_eq!(closed(&whole), [Some(State::Success), Some(State::Success)]);
    let Event::Opened { first: 0, head: 1, trace, .. } = &whole[0] else { panic!("{whole:?}") };
    assert_eq!(trace.message, Some(expected().message_id()));
    assert!(matches!(&whole[1], Event::Answered { mark: 3, .. }), "{whole:?}");
    assert!(!format!("{whole:?}").contains("canary"), "a value left: {whole:?}");
    for (call, (_, bytes)) in calls.iter().enumerate() {
        for at in 0..bytes.len() {
            let events = run(&calls, |index, _| if index == call { vec![at] } else { Vec::new() });
            assert_eq!(events, whole, "call {call} split at {at}");
        }
    }
}

#[test]
fn long_messages_are_stepped_over() {
    let mut walker = PoolWalker::new();
    let mut events = Vec::new();
    for round in 0..2 {
        walker.feed(Direction::Recv, Segment::Bytes(&1_000_000_u32.to_be_bytes()), round, &mut events);
        walker.feed(Direction::Recv, Segment::Bytes(&JOB[..400]), round, &mut events);
        walker.feed(Direction::Recv, Segment::Gap(900_000), round, &mut events);
        walker.feed(Direction::Recv, Segment::Bytes(b"a tail"), round, &mut events);
        walker.feed(Direction::Recv, Segment::Gap(1_000_000 - 900_406), round, &mut events);
        walker.feed(Direction::Send, Segment::Bytes(&[0, 0, 0xb0, 0xf9]), round, &mut events);
        walker.feed(Direction::Send, Segment::Bytes(RETRY), round, &mut events);
        walker.feed(Direction::Send, Segment::Gap(0xb0f9 - RETRY.len() as u64), round, &mut events);
    }
    assert_eq!(closed(&events), [Some(State::Retry), Some(State::Retry)]);
}

#[test]
fn a_lost_result_and_a_lost_process() {
    let mut walker = PoolWalker::new();
    let mut events = Vec::new();
    let job = framed(JOB);
    walker.feed(Direction::Recv, Segment::Bytes(&job[..600]), 0, &mut events);
    walker.feed(Direction::Recv, Segment::Gap(5000), 1, &mut events);
    assert!(events.is_empty(), "more was lost than the message is long: {events:?}");
    walker.feed(Direction::Recv, Segment::Bytes(&job), 2, &mut events);
    walker.feed(Direction::Send, Segment::Gap(80), 3, &mut events);
    walker.feed(Direction::Recv, Segment::Bytes(&job), 4, &mut events);
    assert_eq!(walker.open_exchanges(), 1);
    walker.close(5, &mut events);
    assert_eq!(closed(&events), [None, Some(State::Lost)]);
    assert_eq!(walker.open_exchanges(), 0);
}

#[test]
fn guesses() {
    let job = framed(JOB);
    let enough = (0..job.len()).find(|at| guess_job(&job[..*at]) == Some(true)).unwrap();
    assert!(enough < 128, "{enough}");
    for at in 0..job.len() {
        assert_eq!(guess_job(&job[..at]), (at >= enough).then_some(true), "cut at {at}");
    }
    assert_eq!(guess_result(&framed(READY)), Some(true));
    assert_eq!(guess_result(&framed(b"\x80\x04K\x05M\x16[\x85\x94\x86\x94.")), Some(true), "WORKER_UP");
    assert_eq!(guess_result(&job), Some(false), "what the main process writes");
    assert_eq!(guess_job(&framed(READY)), Some(false));
    for foreign in
        [b"[2026-11-21 10:22:51: INFO] ready\n".as_slice(), b"GET / HTTP/1.1\r\n", &[0xff; 64], &[0; 64]]
    {
        assert_eq!((guess_job(foreign), guess_result(foreign)), (Some(false), Some(false)));
    }
}

#[test]
fn garbled_input_is_survived() {
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let samples = [framed(JOB), framed(READY), framed(ACK), framed(RETRY), MESSAGE.to_vec()];
    for _ in 0..4000 {
        let mut bytes = samples[random() as usize % samples.len()].clone();
        for _ in 0..4 {
            let at = random() as usize % bytes.len();
            bytes[at] = if random() % 2 == 0 {
                random() as u8
            } else {
                b"(}]ues\x94\x8cK\x85\x86\x93\"{,:\\"[random() as usize % 17]
            };
        }
        let _ =
            (message(&bytes), job(&bytes[4..]), reply(&bytes[4..]), guess_job(&bytes), guess_result(&bytes));
        let mut walker = PoolWalker::new();
        let mut events = Vec::new();
        for part in bytes.chunks(1 + random() as usize % 400) {
            let direction = if random() % 2 == 0 { Direction::Send } else { Direction::Recv };
            let segment = if random() % 8 == 0 { Segment::Gap(random() % 900) } else { Segment::Bytes(part) };
            walker.feed(direction, segment, 0, &mut events);
        }
        walker.close(0, &mut events);
        let opened = events.iter().filter(|event| matches!(event, Event::Opened { .. })).count();
        assert_eq!(opened, closed(&events).len());
    }
}
