//! W3C Trace Context: a request's `traceparent` and `tracestate` headers to the remote parent that they name.
//!
//! Takes the untrusted [`TraceHeaders`] that a walker found; gives a [`SpanContext`], or nothing, in which case the
//! request starts a trace. Facts from <https://www.w3.org/TR/trace-context-2/>, sections 3.2 and 3.3.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use opentelemetry::trace::{SpanContext, TraceState};
use opentelemetry::{SpanId, TraceFlags, TraceId};

use crate::protocol::TraceHeaders;

/// The parent that the headers name, marked as remote.
///
/// A `tracestate` that cannot be parsed does not spoil the `traceparent`, as the specification asks.
pub fn remote_parent(headers: &TraceHeaders) -> Option<SpanContext> {
    let (trace_id, span_id, flags) = parse_traceparent(headers.traceparent.as_deref()?)?;
    let state =
        headers.tracestate.as_deref().and_then(|state| state.parse().ok()).unwrap_or(TraceState::NONE);
    Some(SpanContext::new(trace_id, span_id, flags, true, state))
}

/// The parts of a `traceparent` value. Of the flags only `sampled` is kept: the others say nothing about a new span.
pub fn parse_traceparent(value: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let value = value.trim_matches([' ', '\t']).as_bytes();
    let (version, rest) = hex::<1>(value)?;
    let (trace_id, rest) = hex::<16>(dash(rest)?)?;
    let (span_id, rest) = hex::<8>(dash(rest)?)?;
    let ([flags], rest) = hex::<1>(dash(rest)?)?;
    match (version, rest) {
        // A later version may add fields after a dash, which must be ignored; version 0 has none, and ff is invalid.
        ([0], []) | ([1..=0xfe], [] | [b'-', ..]) => {}
        _ => return None,
    }
    let (trace_id, span_id) = (TraceId::from_bytes(trace_id), SpanId::from_bytes(span_id));
    if trace_id == TraceId::INVALID || span_id == SpanId::INVALID {
        return None;
    }
    Some((trace_id, span_id, TraceFlags::new(flags) & TraceFlags::SAMPLED))
}

fn dash(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(b"-")
}

/// `N` bytes in lowercase hexadecimal digits, and what follows them.
fn hex<const N: usize>(text: &[u8]) -> Option<([u8; N], &[u8])> {
    let mut bytes = [0; N];
    let mut rest = text;
    for byte in &mut bytes {
        let [high, low, tail @ ..] = rest else { return None };
        *byte = (nibble(*high)? << 4) | nibble(*low)?;
        rest = tail;
    }
    Some((bytes, rest))
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => digit.checked_sub(b'0'),
        b'a'..=b'f' => digit.checked_sub(b'a').and_then(|value| value.checked_add(10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn check(value: &str, expected: Option<bool>) {
        let parsed = parse_traceparent(value);
        assert_eq!(parsed.map(|(_, _, flags)| flags.is_sampled()), expected, "{value}");
        if let Some((trace_id, span_id, _)) = parsed {
            assert_eq!(trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
            assert_eq!(span_id.to_string(), "b7ad6b7169203331");
        }
    }

    #[test]
    fn values() {
        let ids = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        check(VALID, Some(true));
        check(&format!(" {VALID}\t"), Some(true));
        check(&format!("00-{ids}-00"), Some(false));
        check(&format!("00-{ids}-03"), Some(true));
        check(&format!("00-{ids}-fe"), Some(false));
        check(&format!("00-{ids}-01-"), None);
        check(&format!("00-{ids}-01-what"), None);
        check(&format!("00-{ids}-011"), None);
        check(&format!("cc-{ids}-01"), Some(true));
        check(&format!("cc-{ids}-01-what-the-future"), Some(true));
        check(&format!("cc-{ids}-01.what"), None);
        check(&format!("ff-{ids}-01"), None);
        check(&VALID.to_uppercase(), None);
        check(&format!("00-{ids}-0x"), None);
        check(&VALID.replace("b7ad6b7169203331", "0000000000000000"), None);
        check(&VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)), None);
        check(&VALID.replace('-', "_"), None);
        check(&VALID.replace("0af", "é"), None);
        check("", None);
    }

    #[test]
    fn every_truncation_is_invalid() {
        for length in 0..VALID.len() {
            check(&VALID[..length], None);
        }
    }

    #[test]
    fn every_single_wrong_byte_is_noticed_or_harmless() {
        for position in 0..VALID.len() {
            let mut value = VALID.as_bytes().to_vec();
            value[position] = b'g';
            assert_eq!(parse_traceparent(&String::from_utf8(value).unwrap()), None, "{position}");
        }
    }

    #[test]
    fn tracestate_is_carried_or_dropped_alone() {
        let parent = |state: Option<&str>| {
            let headers = TraceHeaders {
                traceparent: Some(VALID.into()),
                tracestate: state.map(Into::into),
                ..TraceHeaders::default()
            };
            remote_parent(&headers).unwrap()
        };
        assert!(parent(None).is_remote());
        assert_eq!(parent(Some("congo=t61,rojo=00f,")).trace_state().header(), "congo=t61,rojo=00f");
        assert_eq!(parent(Some(" a=1 ,\tb=2")).trace_state().header(), "a=1,b=2");
        assert_eq!(parent(Some("no pair")).trace_state().header(), "");
        assert_eq!(parent(Some("BAD=1")).trace_state().header(), "");
        let stray = TraceHeaders { tracestate: Some("a=1".into()), ..TraceHeaders::default() };
        assert_eq!(remote_parent(&stray), None);
    }
}
