//! Where the time of a request went, in a few words.

use std::time::Duration;

use super::{duration, human};
use crate::trace::{FinishedSpan, semconv};

/// The parts, by what they are called here.
const PARTS: [(&str, &str); 4] = [
    ("cpu", semconv::PITVIPER_TIME_ON_CPU),
    ("run queue", semconv::PITVIPER_TIME_RUN_QUEUE),
    ("lock", semconv::PITVIPER_TIME_GIL_WAIT),
    ("peers", semconv::PITVIPER_TIME_SOCKET_WAIT),
];
/// A part that is not so great a part of the whole is not worth a word: one in so many.
const WORTH: u32 = 20;

/// `cpu 20.1ms, peers 3.0ms; held its event loop 120.0ms`, or nothing.
pub(super) fn told(span: &FinishedSpan) -> String {
    let least = duration(span) / WORTH;
    let part = |(name, key): (&str, &str)| {
        let time = seconds(span.data.attributes.iter(), key)?;
        (time >= least && !time.is_zero()).then(|| format!("{name} {}", human(time)))
    };
    let parts: Vec<String> = PARTS.into_iter().filter_map(part).collect();
    let held = span.data.events.iter().filter(|event| event.name == semconv::PITVIPER_EVENT_LOOP_BLOCKED);
    let held: Duration = held
        .filter_map(|event| seconds(event.attributes.iter(), semconv::PITVIPER_EVENT_LOOP_BLOCKED_DURATION))
        .sum();
    let held = (!held.is_zero()).then(|| format!("held its event loop {}", human(held)));
    let parts = Some(parts.join(", ")).filter(|parts| !parts.is_empty());
    parts.into_iter().chain(held).collect::<Vec<_>>().join("; ")
}

fn seconds<'a>(
    mut attributes: impl Iterator<Item = &'a opentelemetry::KeyValue>,
    key: &str,
) -> Option<Duration> {
    let found = attributes.find(|attribute| attribute.key.as_str() == key)?;
    let opentelemetry::Value::F64(seconds) = found.value else { return None };
    Duration::try_from_secs_f64(seconds).ok()
}
