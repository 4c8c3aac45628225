//! Spans as a collector received them, flattened for assertions. Decodes OTLP's protobuf; judges nothing.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

/// A received span.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits, or empty for a root.
    pub parent_id: String,
    /// The span's name.
    pub name: String,
    /// The span's kind.
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// 0 unset, 1 ok, 2 error.
    pub status: i32,
    /// Its attributes; values that are not strings as text.
    pub attributes: BTreeMap<String, String>,
    /// The attributes of its resource.
    pub resource: BTreeMap<String, String>,
    /// W3C tracestate.
    pub trace_state: String,
    /// Trace and span ids of what it is linked to.
    pub links: Vec<(String, String)>,
    /// Names and attributes of its events.
    pub events: Vec<(String, BTreeMap<String, String>)>,
}

impl Span {
    /// An attribute's value, or the empty string.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// Whether it is a SERVER span.
    pub fn is_server(&self) -> bool {
        self.kind == SpanKind::Server
    }

    /// Whether it is a CLIENT span.
    pub fn is_client(&self) -> bool {
        self.kind == SpanKind::Client
    }

    /// Nanoseconds from start to end.
    pub fn duration(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// One line for error messages.
    pub fn line(&self) -> String {
        let Self { trace_id, span_id, parent_id, name, kind, attributes, .. } = self;
        let what = ["url.path", "url.full", "db.query.text", "messaging.message.id"]
            .iter()
            .filter_map(|key| attributes.get(*key));
        let what = what.cloned().collect::<Vec<_>>().join(" ");
        format!("{kind:?} `{name}` {what} trace={trace_id} id={span_id} parent={parent_id}")
    }
}

/// The spans of one export request.
pub fn flatten(request: &ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for group in &request.resource_spans {
        let resource =
            group.resource.as_ref().map(|resource| attributes(&resource.attributes)).unwrap_or_default();
        for span in group.scope_spans.iter().flat_map(|scope| &scope.spans) {
            spans.push(Span {
                trace_id: hexadecimal(&span.trace_id),
                span_id: hexadecimal(&span.span_id),
                parent_id: hexadecimal(&span.parent_span_id),
                name: span.name.clone(),
                kind: span.kind(),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                status: span.status.as_ref().map_or(0, |status| status.code),
                attributes: attributes(&span.attributes),
                resource: resource.clone(),
                trace_state: span.trace_state.clone(),
                links: span
                    .links
                    .iter()
                    .map(|link| (hexadecimal(&link.trace_id), hexadecimal(&link.span_id)))
                    .collect(),
                events: span
                    .events
                    .iter()
                    .map(|event| (event.name.clone(), attributes(&event.attributes)))
                    .collect(),
            });
        }
    }
    spans
}

pub(crate) fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map(text).unwrap_or_default())).collect()
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::ArrayValue(array)) => array.values.iter().map(text).collect::<Vec<_>>().join(","),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
