//! Traces as people see them.

use std::sync::Arc;

use opentelemetry::trace::{Event, SpanContext, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::*;
use crate::process::resource::Service;

const STYLE: Style = Style { color: false, width: 140 };

fn span(id: u64, parent: u64, kind: SpanKind, name: &'static str, at: (u64, u64)) -> FinishedSpan {
    let service = Service {
        server: None,
        pid: 1,
        name: "shop".into(),
        resource: opentelemetry_sdk::Resource::builder_empty().build(),
    };
    let time = |micros| UNIX_EPOCH + Duration::from_secs(3661) + Duration::from_micros(micros);
    let trace = TraceId::from(0xabcd_ef01_u128 << 96);
    let context = SpanContext::new(trace, SpanId::from(id), TraceFlags::SAMPLED, false, TraceState::NONE);
    let data = SpanData {
        span_context: context,
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: false,
        span_kind: kind,
        name: name.into(),
        start_time: time(at.0),
        end_time: time(at.1),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("test").build(),
    };
    FinishedSpan { service: Arc::new(service), data }
}

fn request() -> Vec<FinishedSpan> {
    let mut server = span(1, 0, SpanKind::Server, "GET /items", (0, 2400));
    server.data.attributes = vec![
        KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, 200),
        KeyValue::new(semconv::URL_PATH, "/items"),
        KeyValue::new(semconv::URL_QUERY, "a=1"),
    ];
    let mut get = span(2, 1, SpanKind::Client, "GET", (100, 600));
    get.data.attributes = vec![KeyValue::new(semconv::DB_QUERY_TEXT, "GET item:1")];
    let mut select = span(3, 1, SpanKind::Client, "SELECT items", (1200, 2400));
    select.data.status = Status::error("");
    select.data.attributes = vec![
        KeyValue::new(semconv::DB_RESPONSE_STATUS_CODE, "42P01"),
        KeyValue::new(semconv::DB_QUERY_TEXT, "SELECT *\nFROM items"),
    ];
    vec![select, server, get]
}

#[test]
fn a_tree_with_a_timeline() {
    let expected = "\
01:01:01.000Z  abcdef01  shop  2.4ms
shop ◀ GET /items                             ━━━━━━━━━━━━━━━━━━━━━━━━     2.4ms  200  /items?a=1
├─ shop ▶ GET                                 ·━━━━━··················     500µs  GET item:1
└─ shop ▶ SELECT items                        ············━━━━━━━━━━━━     1.2ms  42P01  SELECT * FROM items
";
    assert_eq!(render(&request(), &STYLE), expected);
}

#[test]
fn where_the_time_went() {
    let mut server = span(1, 0, SpanKind::Server, "GET /items", (0, 200_000));
    server.data.attributes = vec![
        KeyValue::new(semconv::URL_PATH, "/items"),
        KeyValue::new(semconv::PITVIPER_TIME_ON_CPU, 0.1202),
        KeyValue::new(semconv::PITVIPER_TIME_RUN_QUEUE, 0.001),
        KeyValue::new(semconv::PITVIPER_TIME_SOCKET_WAIT, 0.05),
    ];
    let told = |text: &str| text.lines().nth(1).unwrap().split_once("200.0ms").unwrap().1.to_owned();
    assert_eq!(told(&render(&[server.clone()], &STYLE)), "  /items  [cpu 120.2ms, peers 50.0ms]");
    let held = KeyValue::new(semconv::PITVIPER_EVENT_LOOP_BLOCKED_DURATION, 0.12);
    let event = Event::new(semconv::PITVIPER_EVENT_LOOP_BLOCKED, UNIX_EPOCH, vec![held], 0);
    server.data.events.events.push(event);
    server.data.attributes.truncate(1);
    assert_eq!(told(&render(&[server.clone()], &STYLE)), "  /items  [held its event loop 120.0ms]");
    let narrow = render(&[server], &Style { color: false, width: 100 });
    assert_eq!(told(&narrow), "  /items", "no room");
}

#[test]
fn colours_and_width() {
    let narrow = render(&request(), &Style { color: false, width: 90 });
    assert!(narrow.lines().all(|line| line.chars().count() <= 90), "{narrow}");
    let colored = render(&request(), &Style { color: true, width: 140 });
    assert!(colored.contains("\x1b[31m42P01\x1b[0m"), "{colored}");
}

#[test]
fn many_alike_are_folded() {
    let mut spans = vec![span(1, 0, SpanKind::Server, "GET", (0, 5000))];
    spans.extend((0..12).map(|n| span(10 + n, 1, SpanKind::Client, "SELECT", (100 * n, 100 * n + 50))));
    let text = render(&spans, &STYLE);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("SELECT × 12") && text.contains("600µs"), "{text}");
}

#[test]
fn a_terminal_is_not_commanded() {
    let mut orphan = span(1, 0, SpanKind::Client, "GET", (0, 10));
    orphan.data.attributes = vec![KeyValue::new(semconv::DB_QUERY_TEXT, "GET \x1b[2Jk\u{202e}\u{9b}31m")];
    let text = render(&[orphan], &STYLE);
    assert!(text.contains("(no request)"), "{text}");
    assert!(text.contains("\\u{1b}[2Jk"), "{text}");
    assert!(!text.contains(['\x1b', '\u{202e}', '\u{9b}']));
}

#[test]
fn traces_wait_until_they_are_quiet() {
    let mut console = Console::new(STYLE);
    let now = Instant::now();
    for span in request() {
        console.push(span, now);
    }
    assert!(console.tick(now + Duration::from_millis(100)).is_empty());
    assert_eq!(console.tick(now + Duration::from_millis(301)).len(), 1);
    console.push(span(5, 4, SpanKind::Client, "GET", (0, 1)), now);
    assert!(console.tick(now + Duration::from_secs(1)).is_empty());
    for n in 0..SPANS_LIMIT as u64 {
        console.push(span(100 + n, 4, SpanKind::Client, "GET", (0, 1)), now);
    }
    assert_eq!(console.dropped(), 1);
    assert_eq!(console.tick(now + Duration::from_secs(6)).len(), 1);
    assert!(console.flush().is_empty());
}
