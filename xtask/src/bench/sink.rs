//! An OTLP collector that counts spans and forgets them.
//!
//! It reads just enough protobuf to count: `ExportTraceServiceRequest.resource_spans` (1), `.scope_spans` (2), `.spans` (2).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Result;

use crate::http;

/// Field numbers from an export request down to a span.
const SPANS: [u64; 3] = [1, 2, 2];

/// A running collector on a local port, OTLP over HTTP with protobuf.
pub(crate) struct Sink {
    pub(crate) port: u16,
    spans: Arc<AtomicU64>,
}

impl Sink {
    pub(crate) fn start() -> Result<Self> {
        let spans = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&spans);
        let port = http::serve(move |body| {
            counter.fetch_add(count(body, &SPANS), Ordering::Relaxed);
            b""
        })?;
        Ok(Self { port, spans })
    }

    /// Spans received since the start.
    pub(crate) fn spans(&self) -> u64 {
        self.spans.load(Ordering::Relaxed)
    }
}

/// How many messages there are at the end of a path of field numbers; what is malformed counts as nothing.
fn count(message: &[u8], path: &[u64]) -> u64 {
    let Some((&wanted, rest)) = path.split_first() else { return 1 };
    let (mut message, mut total) = (message, 0);
    while let Some((number, field)) = next_field(&mut message) {
        if number == wanted {
            total += field.map_or(0, |field| count(field, rest));
        }
    }
    total
}

/// Takes a field off the front: its number, and its bytes if it is length-delimited.
fn next_field<'a>(message: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let key = varint(message)?;
    let length = match key & 7 {
        0 => {
            varint(message)?;
            return Some((key >> 3, None));
        }
        1 => 8,
        2 => usize::try_from(varint(message)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (field, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some((key >> 3, (key & 7 == 2).then_some(field)))
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }

    #[test]
    fn spans_are_counted_and_nothing_else() {
        let span = field(2, &field(5, b"GET /"));
        let scope = field(2, &[&field(1, b"scope"), &span[..], &span].concat());
        let resource = field(1, &[field(1, b"resource"), scope.clone(), scope].concat());
        let request = [resource.clone(), vec![0x18, 0x96, 0x01], resource].concat();
        assert_eq!(count(&request, &SPANS), 8);
        assert_eq!(count(&request[..request.len() - 1], &SPANS), 4);
        assert_eq!(count(b"\xff\xff", &SPANS), 0);
    }
}
