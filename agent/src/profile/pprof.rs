//! A profile as pprof's protobuf, gzipped: a recording's `profile.pb.gz`, and what is pushed to Pyroscope.
//!
//! A sample of a request has the labels `span_id` and `trace_id`, as Pyroscope's own agents set them. The messages are
//! those of `proto/profile.proto` in google/pprof; the fields that a Python profile has no use for (mappings, comments) are
//! left out, which protobuf allows.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use rustc_hash::FxHashMap;

use crate::profile::stacks::{Stacks, Subject};
use crate::profile::{Frame, Link};

#[derive(Clone, PartialEq, Eq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Sample {
    /// Innermost first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
    #[prost(int64, tag = "5")]
    start_line: i64,
}

/// When a profile was recorded, and how.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// The first sample could have been taken now.
    pub start: SystemTime,
    /// For so long.
    pub duration: Duration,
    /// CPU time between two samples.
    pub period: Duration,
}

/// Writes the profile: `samples/count` and `cpu/nanoseconds` for each stack.
pub fn write(stacks: &Stacks, recorded: Recorded, to: impl Write) -> io::Result<()> {
    let mut gzip = GzEncoder::new(to, Compression::default());
    gzip.write_all(&profile(stacks, recorded).encode_to_vec())?;
    gzip.finish()?.flush()
}

fn profile(stacks: &Stacks, Recorded { start, duration, period }: Recorded) -> Profile {
    let mut tables = Tables::new();
    let mut value_type =
        |r#type: &str, unit: &str| ValueType { r#type: tables.string(r#type), unit: tables.string(unit) };
    let (samples, cpu) = (value_type("samples", "count"), value_type("cpu", "nanoseconds"));
    let period = nanoseconds(period);
    let sample = stacks
        .iter()
        .map(|entry| {
            let count = i64::try_from(entry.count).unwrap_or(i64::MAX);
            Sample {
                location_id: entry
                    .outermost_first()
                    .iter()
                    .rev()
                    .map(|frame| tables.location(frame))
                    .collect(),
                value: vec![count, count.saturating_mul(period)],
                label: tables.labels(entry.subject),
            }
        })
        .collect();
    let Tables { strings, functions, locations, .. } = tables;
    Profile {
        sample_type: vec![samples, cpu],
        sample,
        location: locations,
        function: functions,
        string_table: strings.iter().map(ToString::to_string).collect(),
        time_nanos: nanoseconds(start.duration_since(UNIX_EPOCH).unwrap_or_default()),
        duration_nanos: nanoseconds(duration),
        period_type: Some(cpu),
        period,
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Everything that is referred to by number. Ids begin with 1, strings with the empty one.
struct Tables {
    strings: Vec<Arc<str>>,
    string_ids: FxHashMap<Arc<str>, i64>,
    functions: Vec<Function>,
    function_ids: FxHashMap<Frame, u64>,
    locations: Vec<Location>,
    location_ids: FxHashMap<Frame, u64>,
}

impl Tables {
    fn new() -> Self {
        let mut tables = Self {
            strings: Vec::new(),
            string_ids: FxHashMap::default(),
            functions: Vec::new(),
            function_ids: FxHashMap::default(),
            locations: Vec::new(),
            location_ids: FxHashMap::default(),
        };
        tables.string("");
        tables
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(id) = self.string_ids.get(text) {
            return *id;
        }
        let (text, id): (Arc<str>, _) = (text.into(), self.strings.len() as i64);
        self.strings.push(Arc::clone(&text));
        self.string_ids.insert(text, id);
        id
    }

    fn labels(&mut self, Subject { route, link }: &Subject) -> Vec<Label> {
        let mut label = |key: &str, value: &str| Label { key: self.string(key), str: self.string(value) };
        let route = route.as_deref().map(|route| label("route", route));
        let link = link.map(|Link { trace_id, span_id }| {
            [label("span_id", &span_id.to_string()), label("trace_id", &trace_id.to_string())]
        });
        route.into_iter().chain(link.into_iter().flatten()).collect()
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let key = Frame { line: 0, ..frame.clone() };
        if let Some(id) = self.function_ids.get(&key) {
            return *id;
        }
        let id = self.functions.len() as u64 + 1;
        let name = self.string(&frame.function);
        let filename = self.string(&frame.file);
        let start_line = i64::from(frame.first_line);
        self.functions.push(Function { id, name, system_name: name, filename, start_line });
        self.function_ids.insert(key, id);
        id
    }

    fn location(&mut self, frame: &Frame) -> u64 {
        if let Some(id) = self.location_ids.get(frame) {
            return *id;
        }
        let function_id = self.function(frame);
        let id = self.locations.len() as u64 + 1;
        self.locations.push(Location { id, line: vec![Line { function_id, line: i64::from(frame.line) }] });
        self.location_ids.insert(frame.clone(), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::profile::stacks::tests::sample;

    #[test]
    fn what_is_written_can_be_read_back() {
        let recorded = Recorded {
            start: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            duration: Duration::from_secs(10),
            period: Duration::from_nanos(10_309_278),
        };
        let mut file = Vec::new();
        write(&sample(), recorded, &mut file).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(file.as_slice()).read_to_end(&mut bytes).unwrap();
        let profile = Profile::decode(bytes.as_slice()).unwrap();
        let text = |id: i64| profile.string_table[usize::try_from(id).unwrap()].as_str();
        let types: Vec<_> = profile.sample_type.iter().map(|t| (text(t.r#type), text(t.unit))).collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        let mut read: Vec<(String, i64)> = profile
            .sample
            .iter()
            .map(|sample| {
                let frames: Vec<String> = sample
                    .location_id
                    .iter()
                    .map(|id| {
                        let line = profile.location.iter().find(|l| l.id == *id).unwrap().line[0];
                        let function = profile.function.iter().find(|f| f.id == line.function_id).unwrap();
                        format!("{}:{}", text(function.name), line.line)
                    })
                    .collect();
                assert_eq!(sample.value[1], sample.value[0] * 10_309_278);
                let labels = sample.label.iter().map(|l| format!(" {}={}", text(l.key), text(l.str)));
                let labels: String = labels.filter(|label| !label.contains("trace_id")).collect();
                (frames.join(" < ") + &labels, sample.value[0])
            })
            .collect();
        read.sort();
        let expected = [
            ("Ware.größe:30 < main:21 route=GET /b span_id=0202020202020202", 2),
            ("main:22", 1),
            ("price:12 < main:20 route=GET /a span_id=0101010101010101", 3),
            ("price:14 < main:20 route=GET /a span_id=0101010101010101", 1),
        ];
        assert_eq!(read, expected.map(|(stack, count)| (stack.to_owned(), count)));
        assert_eq!(profile.function.len(), 3);
        assert_eq!((profile.time_nanos, profile.duration_nanos), (1_700_000_000_000_000_000, 10_000_000_000));
    }
}
