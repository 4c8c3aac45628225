//! Cuts spans down to the limits of `OTEL_*_LIMIT`, and counts in each span what was cut off.

use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SpanData;

use crate::config::SpanLimits;

/// Applies `limits` to `span`.
pub(super) fn apply(limits: &SpanLimits, span: &mut SpanData) {
    let SpanLimits { attributes, value_length, events, links, event_attributes, link_attributes } = limits;
    span.dropped_attributes_count += cut(&mut span.attributes, *attributes);
    span.events.dropped_count += cut(&mut span.events.events, *events);
    span.links.dropped_count += cut(&mut span.links.links, *links);
    for event in &mut span.events.events {
        event.dropped_attributes_count += cut(&mut event.attributes, *event_attributes);
    }
    for link in &mut span.links.links {
        link.dropped_attributes_count += cut(&mut link.attributes, *link_attributes);
    }
    if let Some(length) = value_length {
        let of_events = span.events.events.iter_mut().flat_map(|event| &mut event.attributes);
        let of_links = span.links.links.iter_mut().flat_map(|link| &mut link.attributes);
        for KeyValue { value, .. } in span.attributes.iter_mut().chain(of_events).chain(of_links) {
            shorten_value(value, *length);
        }
    }
}

/// Keeps the first `limit` items, and says how many that lost.
fn cut<T>(items: &mut Vec<T>, limit: usize) -> u32 {
    let lost = items.len().saturating_sub(limit);
    items.truncate(limit);
    u32::try_from(lost).unwrap_or(u32::MAX)
}

fn shorten_value(value: &mut Value, length: usize) {
    match value {
        Value::String(text) => shorten(text, length),
        Value::Array(Array::String(texts)) => texts.iter_mut().for_each(|text| shorten(text, length)),
        _ => {}
    }
}

/// Keeps the first `length` characters.
fn shorten(text: &mut StringValue, length: usize) {
    if let Some((end, _)) = text.as_str().char_indices().nth(length) {
        *text = StringValue::from(text.as_str().get(..end).unwrap_or_default().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Event, Link, SpanContext};

    use super::super::test_receiver::span;
    use super::*;

    #[test]
    fn what_is_cut_off_is_counted() {
        let mut data = span("shop", "x").data;
        data.dropped_attributes_count = 0;
        data.attributes = (0..5).map(|number| KeyValue::new(format!("k{number}"), "äöü")).collect();
        for _ in 0..3 {
            let attributes = vec![KeyValue::new("a", 1), KeyValue::new("b", 2)];
            data.events.events.push(Event::new("e", data.start_time, attributes.clone(), 0));
            data.links.links.push(Link::new(SpanContext::empty_context(), attributes, 0));
        }
        let limits = SpanLimits {
            attributes: 4,
            value_length: Some(2),
            events: 2,
            links: 1,
            event_attributes: 1,
            link_attributes: 0,
        };
        apply(&limits, &mut data);
        assert_eq!((data.attributes.len(), data.dropped_attributes_count), (4, 1));
        assert_eq!(data.attributes[0].value.as_str(), "äö");
        assert_eq!((data.events.events.len(), data.events.dropped_count), (2, 1));
        assert_eq!((data.links.links.len(), data.links.dropped_count), (1, 2));
        assert_eq!(data.events.events[0].dropped_attributes_count, 1);
        assert_eq!(data.links.links[0].dropped_attributes_count, 2);
    }

    #[test]
    fn without_limits_values_are_whole() {
        let mut data = span("shop", "x").data;
        let long = "x".repeat(100_000);
        data.attributes = vec![KeyValue::new("k", long.clone())];
        apply(&SpanLimits::default(), &mut data);
        assert_eq!(data.attributes[0].value.as_str(), long);
    }
}
