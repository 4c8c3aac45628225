//! The message of a task as kombu puts it on a Redis queue: one JSON object, the task's arguments as the text `body`.
//!
//! `headers` are those of Celery's message protocol 2
//! (<https://docs.celeryq.dev/en/stable/internals/protocol.html>), `properties` kombu's. In protocol 1, which Celery 4 has
//! replaced, name and id are inside the body, which is not looked into.

use super::json::{Value, scan};
use super::{Message, short};

/// Reads a message, as far as it was captured; `None`: it is no task.
pub fn message(bytes: &[u8]) -> Option<Message> {
    if !bytes.starts_with(b"{") {
        return None;
    }
    let (mut task, mut id, mut delivered) = (None, None, false);
    let mut message = Message::default();
    scan(bytes, |path, value| match (path, value) {
        ([b"headers", b"task"], Value::Text(text)) => task = plain(text),
        ([b"headers", b"id"], Value::Text(text)) => id = plain(text),
        ([b"headers", b"traceparent"], Value::Text(text)) => message.trace.traceparent = plain(text),
        ([b"headers", b"tracestate"], Value::Text(text)) => message.trace.tracestate = plain(text),
        ([b"headers", b"retries"], Value::Word(word)) => {
            message.retries = std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()).unwrap_or(0);
        }
        ([b"headers", b"redelivered"], Value::Word(b"true")) => message.redelivered = true,
        ([b"properties", b"delivery_info", key], value) => {
            delivered = true;
            match (*key, value) {
                (b"routing_key", Value::Text(text)) => message.routing_key = plain(text),
                (b"redelivered", Value::Word(b"true")) => message.redelivered = true,
                _ => {}
            }
        }
        _ => {}
    });
    // Other programs' lists hold JSON too; kombu's delivery information is in no other.
    delivered.then_some(())?;
    Some(Message { task: task?, id: id?, ..message })
}

fn plain(text: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(text).ok()?;
    if text.contains('\\') { short(&unescaped(text)?) } else { short(text) }
}

/// A JSON string's text; Python's `json` writes whatever is not ASCII as `\uXXXX`.
fn unescaped(text: &str) -> Option<String> {
    let mut units = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            units.extend(char.encode_utf16(&mut [0; 2]).iter());
            continue;
        }
        units.push(match chars.next()? {
            'u' => {
                let digits = chars.as_str().get(..4)?;
                let unit = u16::from_str_radix(digits, 16).ok()?;
                chars = chars.as_str().get(4..)?.chars();
                unit
            }
            simple @ ('"' | '\\' | '/') => u16::try_from(u32::from(simple)).ok()?,
            _ => return None,
        });
    }
    String::from_utf16(&units).ok()
}
