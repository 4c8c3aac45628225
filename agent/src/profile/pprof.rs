//! A profile as pprof's protobuf, gzipped: a recording's `profile.pb.gz`, and what is pushed to Pyroscope.
//!
//! A sample of a request has the labels `span_id` and `trace_id`, as Pyroscope's own agents set them; in a recording the
//! labels are `service` and `route`. The messages are
//! those of `proto/profile.proto` in google/pprof; the fields that a Python profile has no use for (mappings, comments) are
//! left out, which protobuf allows.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use crate::profile::stacks::{Stacks, Subject};
use crate::profile::table::Table;
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
    let mut value_type = |r#type: &str, unit: &str| ValueType {
        r#type: tables.string(&r#type.into()),
        unit: tables.string(&unit.into()),
    };
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
    let Tables { strings, functions, locations } = tables;
    Profile {
        sample_type: vec![samples, cpu],
        sample,
        location: locations.finish(),
        function: functions.finish(),
        string_table: strings.finish(),
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
    strings: Table<Arc<str>, String>,
    functions: Table<Frame, Function>,
    locations: Table<Frame, Location>,
}

impl Tables {
    fn new() -> Self {
        let mut strings = Table::default();
        strings.add("".into(), String::new());
        Self { strings, functions: Table::default(), locations: Table::default() }
    }

    fn string(&mut self, text: &Arc<str>) -> i64 {
        let known = self.strings.find(text);
        known.unwrap_or_else(|| self.strings.add(Arc::clone(text), text.to_string())) as i64
    }

    fn label(&mut self, key: &str, value: &Arc<str>) -> Label {
        Label { key: self.string(&key.into()), str: self.string(value) }
    }

    fn labels(&mut self, Subject { service, route, link }: &Subject) -> Vec<Label> {
        let service = service.as_ref().map(|service| self.label("service", service));
        let route = route.as_ref().map(|route| self.label("route", route));
        let link = link.map(|Link { trace_id, span_id }| {
            let span = self.label("span_id", &span_id.to_string().into());
            [span, self.label("trace_id", &trace_id.to_string().into())]
        });
        service.into_iter().chain(route).chain(link.into_iter().flatten()).collect()
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let key = Frame { line: 0, ..frame.clone() };
        let place = self.functions.find(&key).unwrap_or_else(|| {
            let name = self.string(&frame.function);
            let filename = self.string(&frame.file);
            let start_line = i64::from(frame.first_line);
            let id = id(self.functions.next());
            self.functions.add(key, Function { id, name, system_name: name, filename, start_line })
        });
        id(place)
    }

    fn location(&mut self, frame: &Frame) -> u64 {
        let place = self.locations.find(frame).unwrap_or_else(|| {
            let line = Line { function_id: self.function(frame), line: i64::from(frame.line) };
            let location = Location { id: id(self.locations.next()), line: vec![line] };
            self.locations.add(frame.clone(), location)
        });
        id(place)
    }
}

/// The id of what stands at a place of its table: 0 is none.
const fn id(place: usize) -> u64 {
    place as u64 + 1
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
