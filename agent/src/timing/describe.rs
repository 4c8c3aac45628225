//! What a span says of its time: attributes of the request, the event on the one that held the loop, the links of those that
//! waited for it.

use std::fmt::Write as _;
use std::time::SystemTime;

use opentelemetry::trace::{Event, Link, SpanContext};
use opentelemetry::{Array, KeyValue, StringValue, Value};

use super::ledger::Split;
use crate::profile::{Frame, Stack};
use crate::trace::semconv;

/// Value of `pitviper.link.reason`.
const WAITED_FOR: &str = "event_loop_blocked";

/// The attributes `pitviper.time.*`, in seconds. Without `locks` the waits for the interpreter's lock are not known, and are
/// part of the rest.
pub fn split(split: &Split, locks: bool) -> Vec<KeyValue> {
    let Split { cpu, queued, gil, sockets, peers, other, unsure } = split;
    let seconds = |key: &'static str, nanoseconds: u64| KeyValue::new(key, seconds(nanoseconds));
    let mut attributes = vec![
        seconds(semconv::PITVIPER_TIME_ON_CPU, *cpu),
        seconds(semconv::PITVIPER_TIME_RUN_QUEUE, *queued),
        seconds(semconv::PITVIPER_TIME_SOCKET_WAIT, *sockets),
        seconds(semconv::PITVIPER_TIME_OTHER, *other),
    ];
    if locks {
        attributes.push(seconds(semconv::PITVIPER_TIME_GIL_WAIT, *gil));
    }
    if *unsure > 0 {
        attributes.push(seconds(semconv::PITVIPER_TIME_UNSURE, *unsure));
    }
    if !peers.is_empty() {
        let names = peers.iter().map(|(peer, _)| StringValue::from(peer.to_string())).collect();
        let waits = peers.iter().map(|(_, time)| self::seconds(*time)).collect();
        attributes.push(KeyValue::new(semconv::PITVIPER_TIME_PEER_NAMES, Value::Array(Array::String(names))));
        attributes.push(KeyValue::new(semconv::PITVIPER_TIME_PEER_WAITS, Value::Array(Array::F64(waits))));
    }
    attributes
}

/// The request held its event loop for so many nanoseconds, from `time` on.
pub fn event(time: SystemTime, duration: u64, stack: &Stack) -> Event {
    let attributes = vec![
        KeyValue::new(semconv::PITVIPER_EVENT_LOOP_BLOCKED_DURATION, seconds(duration)),
        KeyValue::new(semconv::CODE_STACKTRACE, traceback(stack)),
    ];
    Event::new(semconv::PITVIPER_EVENT_LOOP_BLOCKED, time, attributes, 0)
}

/// The request could not go on for so many nanoseconds because `culprit` held the event loop.
pub fn link(culprit: SpanContext, duration: u64) -> Link {
    let attributes = vec![
        KeyValue::new(semconv::PITVIPER_LINK_REASON, WAITED_FOR),
        KeyValue::new(semconv::PITVIPER_EVENT_LOOP_BLOCKED_DURATION, seconds(duration)),
    ];
    Link::new(culprit, attributes, 0)
}

/// The stack as CPython prints one.
fn traceback(stack: &Stack) -> String {
    let mut text = "Stack (most recent call last):\n".to_owned();
    for Frame { function, file, line, .. } in stack.frames.iter().rev() {
        let _ = writeln!(text, "  File \"{file}\", line {line}, in {function}");
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "a request does not take a hundred days")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::stacks::tests::{frame, stack};

    #[test]
    fn a_split_in_seconds() {
        let whole = Split {
            cpu: 1_500_000,
            queued: 0,
            gil: 2_000_000,
            sockets: 30_000_000,
            peers: vec![("127.0.0.1:5432".into(), 30_000_000)],
            other: 1,
            unsure: 1,
        };
        let shown = |locks| {
            let all = split(&whole, locks);
            all.iter().map(|it| format!("{}={}", it.key, it.value)).collect::<Vec<_>>()
        };
        let mut expected = vec![
            "pitviper.time.on_cpu=0.0015",
            "pitviper.time.run_queue=0",
            "pitviper.time.socket_wait=0.03",
            "pitviper.time.other=0.000000001",
            "pitviper.time.gil_wait=0.002",
            "pitviper.time.unsure=0.000000001",
            "pitviper.time.peer.names=[\"127.0.0.1:5432\"]",
            "pitviper.time.peer.waits=[0.03]",
        ];
        assert_eq!(shown(true), expected);
        expected.remove(4);
        assert_eq!(shown(false), expected);
    }

    #[test]
    fn a_stack_as_cpython_prints_it() {
        let text = traceback(&stack([frame("main", 20), frame("price", 12)]));
        let expected = "Stack (most recent call last):\n  File \"/srv/shop/main.py\", line 20, in main\n  File \
                        \"/srv/shop/main.py\", line 12, in price\n";
        assert_eq!(text, expected);
    }
}
