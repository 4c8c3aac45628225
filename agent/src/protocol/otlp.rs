//! Telemetry on its way out: requests by which an OpenTelemetry SDK exports, told from a request's own bytes.
//!
//! Takes what a head says, or the path of an HTTP/2 request; gives the [`Signal`] that is exported, or nothing where
//! there is doubt. Facts from <https://opentelemetry.io/docs/specs/otlp/> and the specification of the exporters.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics, logs or profiles.
    Other,
    /// Anything of pitviper's own.
    OfPitviper,
}

/// How the exporters of OpenTelemetry's SDKs introduce themselves: "OTLP Exporter, User Agent" in the specification's
/// protocol/exporter.md. A distribution may put its own name before it.
const EXPORTER: &str = "OTel-OTLP-Exporter-";
/// How pitviper introduces itself.
const PITVIPER: &str = "pitviper/";

/// Tells from the head of an HTTP/1 request whether it exports telemetry.
///
/// The default paths end so; other paths can be set and are not recognised. Protobuf at such a path is OTLP; JSON, or a
/// body of an unknown kind, may be anybody's, and counts only if the sender says what it is.
pub fn of_http(
    method: &[u8],
    target: &[u8],
    content_type: &[u8],
    user_agent: Option<&str>,
) -> Option<Signal> {
    if method != b"POST" {
        return None;
    }
    let path = target.split(|&byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    let signal = if path.ends_with(b"/v1/traces") {
        Signal::Traces
    } else if [&b"/v1/metrics"[..], b"/v1/logs", b"/v1development/profiles"]
        .iter()
        .any(|end| path.ends_with(end))
    {
        Signal::Other
    } else {
        return None;
    };
    let kind = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if user_agent.is_some_and(|agent| agent.starts_with(PITVIPER)) {
        return Some(Signal::OfPitviper);
    }
    let says_so = user_agent.is_some_and(|agent| agent.contains(EXPORTER));
    (kind.eq_ignore_ascii_case(b"application/x-protobuf") || says_so).then_some(signal)
}

/// `:path` of a trace export over gRPC.
const GRPC_TRACES: &[u8] = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The same in HPACK's Huffman code (RFC 7541, appendix B), which starts and is padded at a byte. gRPC's C core, which
/// Python's exporter uses, sends the path as it is; libraries built on others may not.
const GRPC_TRACES_HUFFMAN: &[u8] = &[
    0x60, 0xf5, 0x96, 0xa4, 0x96, 0x82, 0xd2, 0x54, 0xd9, 0xe9, 0x7a, 0xec, 0x3a, 0x4e, 0xb9, 0x0f, 0x45,
    0x05, 0x22, 0x4f, 0x62, 0xe9, 0xb0, 0x64, 0x2a, 0xfd, 0xc2, 0xbe, 0xfb, 0x06, 0x42, 0xee, 0x2d, 0x9d,
    0xcc, 0x42, 0xb1, 0x83, 0xcd, 0x67, 0xb1, 0x3f,
];

/// Whether a block of HTTP/2 header fields names the export of traces in so many words, and not by a reference to a
/// field that was sent before.
pub fn names_trace_export(fields: &[u8]) -> bool {
    [GRPC_TRACES, GRPC_TRACES_HUFFMAN]
        .iter()
        .any(|path| fields.windows(path.len()).any(|window| window == *path))
}

/// Whether the beginning of a message is that of an `ExportTraceServiceRequest` that is not compressed: there is a `Span`
/// in it. `message` begins behind gRPC's prefix.
///
/// A `Span` begins with `trace_id` (field 1, 16 bytes) and `span_id` (field 2, 8 bytes): trace.proto. So may an attribute
/// with a name of 16 letters, and these are told apart by what they are made of.
pub fn has_span(message: &[u8]) -> bool {
    const IDS: usize = 28;
    const LEAST_BINARY: usize = 3;
    // `resource_spans`, field 1.
    message.first() == Some(&0x0a)
        && message.windows(IDS).any(|window| {
            let [0x0a, 0x10, rest @ ..] = window else { return false };
            let Some((trace, [0x12, 0x08, span @ ..])) = rest.split_at_checked(16) else { return false };
            trace.iter().chain(span).filter(|byte| !byte.is_ascii()).count() >= LEAST_BINARY
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn exports_over_http() {
        let check = |method: &str, target: &str, kind: &str, agent: Option<&str>, expected| {
            let found = of_http(method.as_bytes(), target.as_bytes(), kind.as_bytes(), agent);
            assert_eq!(found, expected, "{method} {target} {kind} {agent:?}");
        };
        let python = Some("OTel-OTLP-Exporter-Python/1.45.1");
        let (traces, other) = (Some(Signal::Traces), Some(Signal::Other));
        check("POST", "/v1/traces", "application/x-protobuf", python, traces);
        check("POST", "/v1/traces", "application/x-protobuf", None, traces);
        check("POST", "/otlp/v1/traces?team=a", "Application/X-Protobuf; v=1", None, traces);
        check("POST", "/v1/traces", "application/json", python, traces);
        check("POST", "/v1/traces", "application/json", Some("splunk/1 OTel-OTLP-Exporter-Python/1"), traces);
        check(
            "POST",
            "/v1/traces",
            "application/x-protobuf",
            Some("pitviper/0.1.0"),
            Some(Signal::OfPitviper),
        );
        check("POST", "/v1/metrics", "application/x-protobuf", None, other);
        check("POST", "/v1/logs", "application/x-protobuf", python, other);
        check("POST", "/v1development/profiles", "application/x-protobuf", None, other);
        check("POST", "/v1/logs", "application/json", Some("python-requests/2"), None);
        check("POST", "/v1/traces", "", None, None);
        check("GET", "/v1/traces", "application/x-protobuf", python, None);
        check("POST", "/v1/traces/7", "application/x-protobuf", python, None);
        check("POST", "/work?next=/v1/traces", "application/x-protobuf", python, None);
    }

    #[test]
    fn exports_over_grpc() {
        for path in [GRPC_TRACES, GRPC_TRACES_HUFFMAN] {
            let block = [b"\x83\x86\x44\x3b", path, b"\x41\x01x"].concat();
            assert!(names_trace_export(&block));
            for end in 0..4 + path.len() {
                assert!(!names_trace_export(&block[..end]), "{end}");
            }
        }
        assert!(!names_trace_export(b"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"));
    }

    #[test]
    fn spans_in_messages() {
        let ids = |trace: &[u8; 16], span: &[u8; 8]| [b"\x0a\x10", &trace[..], b"\x12\x08", span].concat();
        let message = |inner: Vec<u8>| [b"\x0a\xff\x01\x0a\x05rrrrr\x12\x40".to_vec(), inner].concat();
        let random = b"\x8f\x01\xc0\xa9\x77\x13\xee\x02\x91\x55\xd4\x10\x07\x99\xfe\x31";
        let whole = message(ids(random, b"\x81\x02\xf3\x04\x95\x06\x17\xe8"));
        assert!(has_span(&whole));
        for end in 0..whole.len() {
            assert!(!has_span(&whole[..end]), "{end}");
        }
        // An attribute `http.status_code` whose value is a string of six letters.
        assert!(!has_span(&message(ids(b"http.status_code", b"\x0a\x06abcdef"))));
        assert!(!has_span(b""));
    }
}
