//! Samples as an OTLP profiles request (opentelemetry-proto, `profiles/v1development`).
//!
//! The sample type is `samples/count` and the period type `cpu/nanoseconds`, which Pyroscope turns into its usual
//! `process_cpu:cpu:nanoseconds:cpu:nanoseconds` (its `pkg/ingester/otlp/convert.go`). Every table of the dictionary begins
//! with the zero value, which stands for "none".

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope};
use opentelemetry_proto::tonic::profiles::v1development as proto;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;

use super::ServiceProfile;
use crate::profile::stacks::Entry;
use crate::profile::table::Table;
use crate::profile::{Frame, FrameKind, Link};
use crate::trace;

/// Semantic conventions for profiles.
const FRAME_TYPE: &str = "profile.frame.type";
/// Its values, in the order in which they stand in the attribute table, after the zero value.
const FRAME_TYPES: [(FrameKind, &str); 2] = [(FrameKind::Python, "cpython"), (FrameKind::Native, "native")];

/// One request for all of them.
pub(super) fn request(profiles: &[ServiceProfile]) -> ExportProfilesServiceRequest {
    let mut dictionary = Dictionary::new();
    let resource_profiles =
        profiles.iter().map(|profile| resource_profile(profile, &mut dictionary)).collect();
    ExportProfilesServiceRequest { resource_profiles, dictionary: Some(dictionary.finish()) }
}

fn resource_profile(profile: &ServiceProfile, dictionary: &mut Dictionary) -> proto::ResourceProfiles {
    let ServiceProfile { service, start, duration, period, stacks } = profile;
    let ResourceAttributesWithSchema { attributes, schema_url } = (&service.resource).into();
    let scope = trace::scope();
    let samples = stacks.iter().map(|entry| sample(&entry, dictionary)).collect();
    let profile = proto::Profile {
        sample_type: Some(dictionary.value_type("samples", "count")),
        samples,
        time_unix_nano: unix_nanos(*start),
        duration_nano: nanos(*duration),
        period_type: Some(dictionary.value_type("cpu", "nanoseconds")),
        period: i64::try_from(nanos(*period)).unwrap_or(i64::MAX),
        ..proto::Profile::default()
    };
    proto::ResourceProfiles {
        resource: Some(Resource { attributes: attributes.0, ..Resource::default() }),
        scope_profiles: vec![proto::ScopeProfiles {
            scope: Some(InstrumentationScope::from((&scope, None))),
            profiles: vec![profile],
            schema_url: String::new(),
        }],
        schema_url: schema_url.unwrap_or_default(),
    }
}

fn sample(entry: &Entry<'_>, dictionary: &mut Dictionary) -> proto::Sample {
    let Entry { subject, count, .. } = entry;
    proto::Sample {
        stack_index: dictionary.stack(&entry.outermost_first()),
        link_index: subject.link.map_or(0, |link| dictionary.link(link)),
        values: vec![i64::try_from(*count).unwrap_or(i64::MAX)],
        ..proto::Sample::default()
    }
}

fn unix_nanos(time: SystemTime) -> u64 {
    nanos(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Indices are signed in OTLP; 0 is none.
fn index(place: usize) -> i32 {
    i32::try_from(place).unwrap_or(0)
}

/// The tables that all profiles of a request share.
struct Dictionary {
    strings: Table<Arc<str>, String>,
    functions: Table<Frame, proto::Function>,
    locations: Table<Frame, proto::Location>,
    stacks: Table<Vec<i32>, proto::Stack>,
    links: Table<Link, proto::Link>,
    attributes: Vec<proto::KeyValueAndUnit>,
}

impl Dictionary {
    fn new() -> Self {
        let mut dictionary = Self {
            strings: Table::with_none(String::new()),
            functions: Table::with_none(proto::Function::default()),
            locations: Table::with_none(proto::Location::default()),
            stacks: Table::with_none(proto::Stack::default()),
            links: Table::with_none(proto::Link::default()),
            attributes: vec![proto::KeyValueAndUnit::default()],
        };
        let key_strindex = dictionary.string(&FRAME_TYPE.into());
        dictionary.attributes.extend(FRAME_TYPES.map(|(_, value)| {
            let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
            proto::KeyValueAndUnit { key_strindex, value, unit_strindex: 0 }
        }));
        dictionary
    }

    fn string(&mut self, text: &Arc<str>) -> i32 {
        if text.is_empty() {
            return 0;
        }
        let known = self.strings.find(text);
        index(known.unwrap_or_else(|| self.strings.add(Arc::clone(text), text.to_string())))
    }

    fn value_type(&mut self, r#type: &str, unit: &str) -> proto::ValueType {
        proto::ValueType {
            type_strindex: self.string(&r#type.into()),
            unit_strindex: self.string(&unit.into()),
        }
    }

    fn function(&mut self, frame: &Frame) -> i32 {
        let key = Frame { line: 0, ..frame.clone() };
        index(self.functions.find(&key).unwrap_or_else(|| {
            let function = proto::Function {
                name_strindex: self.string(&frame.function),
                system_name_strindex: 0,
                filename_strindex: self.string(&frame.file),
                start_line: i64::from(frame.first_line),
            };
            self.functions.add(key, function)
        }))
    }

    fn location(&mut self, frame: &Frame) -> i32 {
        index(self.locations.find(frame).unwrap_or_else(|| {
            let function_index = self.function(frame);
            let lines = vec![proto::Line { function_index, line: i64::from(frame.line), column: 0 }];
            let kind = FRAME_TYPES.iter().position(|(kind, _)| *kind == frame.kind);
            let attribute_indices = kind.map(|place| index(place + 1)).into_iter().collect();
            let location = proto::Location { lines, attribute_indices, ..proto::Location::default() };
            self.locations.add(frame.clone(), location)
        }))
    }

    fn stack(&mut self, frames: &[Frame]) -> i32 {
        // Innermost first.
        let location_indices: Vec<i32> = frames.iter().rev().map(|frame| self.location(frame)).collect();
        index(
            self.stacks.find(&location_indices).unwrap_or_else(|| {
                self.stacks.add(location_indices.clone(), proto::Stack { location_indices })
            }),
        )
    }

    fn link(&mut self, link: Link) -> i32 {
        index(self.links.find(&link).unwrap_or_else(|| {
            let trace_id = link.trace_id.to_bytes().to_vec();
            let span_id = link.span_id.to_bytes().to_vec();
            self.links.add(link, proto::Link { trace_id, span_id })
        }))
    }

    fn finish(self) -> proto::ProfilesDictionary {
        proto::ProfilesDictionary {
            mapping_table: vec![proto::Mapping::default()],
            location_table: self.locations.finish(),
            function_table: self.functions.finish(),
            link_table: self.links.finish(),
            string_table: self.strings.finish(),
            attribute_table: self.attributes,
            stack_table: self.stacks.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::profiles::tests::service_profile;

    fn text(dictionary: &proto::ProfilesDictionary, index: i32) -> &str {
        &dictionary.string_table[usize::try_from(index).unwrap()]
    }

    /// The tables' rules, and every sample spelt out.
    #[test]
    fn samples_can_be_read_back() {
        let request = request(&[service_profile("shop"), service_profile("stock")]);
        let dictionary = request.dictionary.as_ref().unwrap();
        assert_eq!(dictionary.string_table[0], "");
        assert_eq!(dictionary.location_table[0], proto::Location::default());
        assert_eq!(dictionary.stack_table[0], proto::Stack::default());
        assert_eq!(dictionary.link_table[0], proto::Link::default());
        assert_eq!(dictionary.mapping_table, [proto::Mapping::default()]);
        assert_eq!(dictionary.function_table.len(), 4, "shared by both services");
        assert_eq!(request.resource_profiles.len(), 2);
        for profiles in &request.resource_profiles {
            let [profile] = &profiles.scope_profiles[0].profiles[..] else { panic!() };
            let kind = |t: &Option<proto::ValueType>| {
                let t = t.unwrap();
                (text(dictionary, t.type_strindex).to_owned(), text(dictionary, t.unit_strindex).to_owned())
            };
            assert_eq!(kind(&profile.sample_type), ("samples".to_owned(), "count".to_owned()));
            assert_eq!(kind(&profile.period_type), ("cpu".to_owned(), "nanoseconds".to_owned()));
            let mut read: Vec<String> = profile.samples.iter().map(|s| spelt(dictionary, s)).collect();
            read.sort();
            let expected = [
                "Ware.größe:30 < main:21 02020202 x2",
                "main:22  x1",
                "price:12 < main:20 01010101 x3",
                "price:14 < main:20 01010101 x1",
            ];
            assert_eq!(read, expected);
        }
    }

    fn spelt(dictionary: &proto::ProfilesDictionary, sample: &proto::Sample) -> String {
        let stack = &dictionary.stack_table[usize::try_from(sample.stack_index).unwrap()];
        let frames = stack.location_indices.iter().map(|index| {
            let location = &dictionary.location_table[usize::try_from(*index).unwrap()];
            let line = location.lines[0];
            let function = &dictionary.function_table[usize::try_from(line.function_index).unwrap()];
            assert_eq!(text(dictionary, function.filename_strindex), "/srv/shop/main.py");
            format!("{}:{}", text(dictionary, function.name_strindex), line.line)
        });
        let frames = frames.collect::<Vec<_>>().join(" < ");
        let link = &dictionary.link_table[usize::try_from(sample.link_index).unwrap()];
        let span: String = link.span_id.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{frames} {span} x{}", sample.values[0])
    }
}
