//! Traces out of exchanges, in every order in which their parents can become known.

use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;

use super::*;
use crate::causality::Orphan;
use crate::protocol::MessageId;
use crate::trace::join::JoinKey;
use crate::trace::sampler::Root;
use crate::trace::{SpanParts, semconv};

fn wall(ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(ns)
}

fn place(sequence: u32) -> Place {
    let client = "127.0.0.1:40000".parse().unwrap();
    let server = "127.0.0.1:80".parse().unwrap();
    Place { join: Some(JoinKey::Tcp { client, server, sequence }), ..Place::default() }
}

fn finish(assembly: &mut Assembly, key: ExchangeKey, over_ns: u64) {
    let service = Arc::new(Service {
        pid: 1,
        name: "test".to_owned(),
        server: None,
        resource: Resource::builder_empty().build(),
    });
    let parts = SpanParts {
        name: key.to_string(),
        kind: SpanKind::Client,
        attributes: Vec::new(),
        status: Status::Unset,
    };
    assembly.finished(
        key,
        over_ns,
        Finished { service, parts, end: wall(over_ns), events: Vec::new(), links: Vec::new() },
    );
}

/// The ready spans by name.
fn spans(assembly: &mut Assembly) -> std::collections::HashMap<String, SpanData> {
    assembly.drain().map(|span| (span.data.name.to_string(), span.data)).collect()
}

#[test]
fn a_client_span_waits_for_its_owner() {
    let mut assembly = Assembly::default();
    assembly.server_opened(1, 10, wall(10), None, Place::default());
    assembly.client_opened(2, 20, wall(20), Place::default());
    finish(&mut assembly, 2, 30);
    assert!(spans(&mut assembly).is_empty());
    assembly.settled(2, Ok((1, Evidence::Response)));
    assert!(spans(&mut assembly).is_empty(), "whether its request becomes a span is not known");
    finish(&mut assembly, 1, 40);
    let mut spans = spans(&mut assembly);
    let (client, server) = (spans.remove("2").unwrap(), spans.remove("1").unwrap());
    assert_eq!(client.parent_span_id, server.span_context.span_id());
    assert_eq!(client.span_context.trace_id(), server.span_context.trace_id());
    assert_eq!(server.parent_span_id, SpanId::INVALID);
    assert!(!client.parent_span_is_remote);
}

#[test]
fn a_request_that_becomes_no_span_is_nobodys_parent() {
    for ends in [false, true] {
        let mut assembly = Assembly::new(Sampler::default(), true);
        assembly.server_opened(1, 10, wall(10), None, Place::default());
        assembly.client_opened(2, 20, wall(20), Place::default());
        assembly.settled(2, Ok((1, Evidence::Response)));
        finish(&mut assembly, 2, 30);
        if ends {
            assembly.end();
        } else {
            assembly.discarded(1);
        }
        let client = spans(&mut assembly).remove("2").unwrap();
        assert_eq!(client.parent_span_id, SpanId::INVALID);
        let reason = KeyValue::new(semconv::PITVIPER_ORPHAN_REASON, "parent_lost");
        assert!(client.attributes.contains(&reason), "{:?}", client.attributes);
        let links = assembly.stats().links;
        assert_eq!((links.edges.sum(), links.orphans.sum()), (0, 1));
    }
}

#[test]
fn the_end_of_a_long_stream_is_not_waited_for() {
    let mut assembly = Assembly::default();
    assembly.server_opened(1, 10, wall(10), None, Place::default());
    assembly.client_opened(2, 20, wall(20), Place::default());
    assembly.settled(2, Ok((1, Evidence::Response)));
    finish(&mut assembly, 2, 30);
    assembly.tick(30 + LONGEST_HOLD_NS);
    assert!(spans(&mut assembly).is_empty());
    assembly.tick(31 + LONGEST_HOLD_NS);
    let client = spans(&mut assembly).remove("2").unwrap();
    finish(&mut assembly, 1, 40 + LONGEST_HOLD_NS);
    assert_eq!(client.parent_span_id, spans(&mut assembly)["1"].span_context.span_id());
}

#[test]
fn spans_that_waited_for_their_trace_leave_in_the_order_of_their_beginnings() {
    let mut assembly = Assembly::default();
    assembly.server_opened(1, 10, wall(10), None, place(7));
    for key in 2..6 {
        assembly.client_opened(key, 20, wall(20), Place::default());
        assembly.settled(key, Ok((1, Evidence::Response)));
        finish(&mut assembly, key, 30);
    }
    finish(&mut assembly, 1, 40);
    assembly.tick(41 + JOIN_WAIT_NS);
    let names: Vec<_> = assembly.drain().map(|span| span.data.name).collect();
    assert_eq!(names, ["1", "2", "3", "4", "5"]);
}

#[test]
fn two_processes_are_joined_in_either_order() {
    for server_first in [false, true] {
        let mut assembly = Assembly::default();
        assembly.server_opened(1, 10, wall(10), None, Place::default());
        let client = |assembly: &mut Assembly| assembly.client_opened(2, 22, wall(22), place(7));
        let server = |assembly: &mut Assembly| assembly.server_opened(3, 21, wall(21), None, place(7));
        if server_first {
            server(&mut assembly);
            client(&mut assembly);
        } else {
            client(&mut assembly);
            server(&mut assembly);
        }
        assembly.client_opened(4, 23, wall(23), Place::default());
        assembly.settled(4, Ok((3, Evidence::Response)));
        for key in [4, 3, 2] {
            finish(&mut assembly, key, 30);
        }
        assert!(
            spans(&mut assembly).is_empty(),
            "the trace is not known before the first process's span is settled"
        );
        assembly.settled(2, Ok((1, Evidence::Response)));
        finish(&mut assembly, 1, 40);
        let spans = spans(&mut assembly);
        let id = |name: &str| spans[name].span_context.span_id();
        assert_eq!(spans["4"].parent_span_id, id("3"));
        assert_eq!(spans["3"].parent_span_id, id("2"));
        assert_eq!(spans["2"].parent_span_id, id("1"));
        assert!(spans["3"].parent_span_is_remote);
        assert!(spans["2"].start_time <= spans["3"].start_time);
        let trace = spans["1"].span_context.trace_id();
        assert!(spans.values().all(|span| span.span_context.trace_id() == trace));
        assert_eq!(assembly.stats().joined, 1);
    }
}

#[test]
fn headers_come_before_the_connection() {
    let mut assembly = Assembly::default();
    let trace_id = TraceId::from(7);
    let remote = SpanContext::new(trace_id, SpanId::from(9), TraceFlags::SAMPLED, true, TraceState::NONE);
    assembly.client_opened(2, 20, wall(20), place(7));
    assembly.server_opened(3, 21, wall(21), Some(remote), place(7));
    finish(&mut assembly, 3, 30);
    let server = spans(&mut assembly).remove("3").unwrap();
    assert_eq!((server.span_context.trace_id(), server.parent_span_id), (trace_id, SpanId::from(9)));
    assert!(server.parent_span_is_remote);
}

#[test]
fn a_server_span_waits_for_the_other_end_only_so_long() {
    let mut assembly = Assembly::default();
    assembly.server_opened(1, 10, wall(10), None, place(7));
    finish(&mut assembly, 1, 20);
    assembly.tick(30);
    assert!(spans(&mut assembly).is_empty());
    assembly.tick(20 + JOIN_WAIT_NS + 1);
    assert_eq!(spans(&mut assembly).len(), 1);
}

#[test]
fn what_is_not_sampled_does_not_leave() {
    let mut assembly = Assembly::new(Sampler { parent_based: true, root: Root::AlwaysOn }, false);
    let remote =
        SpanContext::new(TraceId::from(7), SpanId::from(9), TraceFlags::NOT_SAMPLED, true, TraceState::NONE);
    assembly.server_opened(1, 10, wall(10), Some(remote), Place::default());
    assembly.client_opened(2, 20, wall(20), Place::default());
    assembly.settled(2, Ok((1, Evidence::Response)));
    finish(&mut assembly, 2, 30);
    finish(&mut assembly, 1, 40);
    assert!(spans(&mut assembly).is_empty());
    assert_eq!(assembly.stats().unsampled, 2);
}

#[test]
fn children_of_what_was_no_exchange_become_roots() {
    let mut assembly = Assembly::default();
    assembly.client_opened(1, 10, wall(10), place(7));
    assembly.server_opened(2, 11, wall(11), None, place(7));
    finish(&mut assembly, 2, 20);
    assembly.discarded(1);
    assert_eq!(spans(&mut assembly)["2"].parent_span_id, SpanId::INVALID);
}

/// What a span says of its parent.
fn said(span: &SpanData) -> Vec<(&str, String)> {
    span.attributes.iter().map(|pair| (pair.key.as_str(), pair.value.to_string())).collect()
}

#[test]
fn each_parent_says_why() {
    let mut assembly = Assembly::new(Sampler::default(), true);
    let remote =
        SpanContext::new(TraceId::from(7), SpanId::from(9), TraceFlags::SAMPLED, true, TraceState::NONE);
    assembly.server_opened(1, 10, wall(10), Some(remote), Place::default());
    assembly.server_opened(2, 10, wall(10), None, Place::default());
    assembly.client_opened(3, 20, wall(20), place(7));
    assembly.server_opened(4, 21, wall(21), None, place(7));
    assembly.client_opened(5, 22, wall(22), Place::default());
    assembly.client_opened(6, 23, wall(23), Place::default());
    assembly.client_opened(7, 24, wall(24), Place::default());
    assembly.settled(3, Ok((2, Evidence::Reading)));
    assembly.settled(5, Err(Orphan::Ambiguous));
    assembly.settled(6, Ok((2, Evidence::Response)));
    // Nobody has heard of this owner, or not any more.
    assembly.settled(7, Ok((99, Evidence::Response)));
    for key in 1..=7 {
        finish(&mut assembly, key, 30);
    }
    let spans = spans(&mut assembly);
    let evidence = |name: &str| said(&spans[name]);
    let only = |kind: &str| vec![("pitviper.parent.evidence", kind.to_owned())];
    let orphan = |reason: &str| [only("none"), vec![("pitviper.orphan.reason", reason.to_owned())]].concat();
    assert_eq!(evidence("1"), only("header"));
    assert_eq!(evidence("2"), []);
    assert_eq!(evidence("3"), only("context"));
    assert_eq!(evidence("4"), only("connection"));
    assert_eq!(evidence("5"), orphan("ambiguous"));
    assert_eq!(evidence("6"), only("response"));
    assert_eq!(evidence("7"), orphan("parent_lost"));

    let links = assembly.links(1);
    assert_eq!((links.edges.sum(), links.orphans.sum(), links.roots), (4, 2, 1));
    assert!(assembly.forget_links(|pid| pid == 1).is_empty());
    let forgotten: Vec<_> = assembly.forget_links(|_| false).into_iter().map(|(_, links)| links).collect();
    assert_eq!(forgotten, [links]);
    assert_eq!((assembly.links(1), assembly.stats().links), (Links::default(), links));
}

#[test]
fn nothing_is_said_unasked() {
    let mut assembly = Assembly::default();
    assembly.client_opened(1, 10, wall(10), Place::default());
    assembly.settled(1, Err(Orphan::Unrelated));
    finish(&mut assembly, 1, 20);
    assert_eq!(said(&spans(&mut assembly)["1"]), []);
}

#[test]
fn records_are_forgotten() {
    let mut assembly = Assembly::default();
    assembly.server_opened(1, 10, wall(10), None, Place::default());
    finish(&mut assembly, 1, 20);
    assembly.tick(20 + REMEMBERED_NS + 1);
    assert!(assembly.records.is_empty());
}

/// A message, sent or taken by a process.
fn message(id: &str, pid: u32) -> Place {
    Place { message: Some(MessageId::of(id, 0)), pid, ..Place::default() }
}

/// The consumer's span is the producer's child, and linked to it.
fn check_sent_and_taken(spans: &std::collections::HashMap<String, SpanData>) {
    let (producer, consumer) = (&spans["2"], &spans["3"]);
    assert_eq!(consumer.parent_span_id, producer.span_context.span_id());
    assert_eq!(consumer.span_context.trace_id(), producer.span_context.trace_id());
    let [link] = consumer.links.links.as_slice() else { panic!("{:?}", consumer.links) };
    assert_eq!(link.span_context.span_id(), producer.span_context.span_id());
    assert_eq!(link.span_context.trace_id(), producer.span_context.trace_id());
    assert!(producer.links.links.is_empty());
}

#[test]
fn a_message_is_joined_however_long_it_was_in_its_queue() {
    for gone in [false, true] {
        let mut assembly = Assembly::default();
        let mut all = std::collections::HashMap::new();
        assembly.server_opened(1, 10, wall(10), None, Place::default());
        assembly.client_opened(2, 20, wall(20), message("a", 7));
        finish(&mut assembly, 2, 30);
        let mut request_over = |assembly: &mut Assembly| {
            finish(assembly, 1, 40);
            assembly.settled(2, Ok((1, Evidence::Response)));
            assembly.tick(1000 * LONGEST_JOIN_WAIT_NS);
            all.extend(spans(assembly));
        };
        if gone {
            request_over(&mut assembly);
        }
        assembly.server_opened(3, 50, wall(50), None, message("a", 8));
        finish(&mut assembly, 3, 60);
        if !gone {
            request_over(&mut assembly);
        }
        all.extend(spans(&mut assembly));
        check_sent_and_taken(&all);
        assert_eq!(all["2"].span_context.trace_id(), all["1"].span_context.trace_id());
    }
}

#[test]
fn the_sending_is_seen_after_the_taking() {
    let mut assembly = Assembly::default();
    assembly.server_opened(3, 50, wall(50), None, message("a", 8));
    assembly.client_opened(2, 51, wall(51), message("a", 7));
    assembly.settled(2, Err(Orphan::Unrelated));
    finish(&mut assembly, 2, 60);
    finish(&mut assembly, 3, 70);
    assembly.tick(80);
    check_sent_and_taken(&spans(&mut assembly));
}

/// A task that nobody was seen to send puts another one in its own place.
#[test]
fn a_task_is_not_its_own_sender() {
    let mut assembly = Assembly::default();
    assembly.server_opened(1, 10, wall(10), None, message("a", 8));
    assembly.client_opened(2, 20, wall(20), message("a", 8));
    assembly.settled(2, Ok((1, Evidence::Response)));
    finish(&mut assembly, 2, 30);
    finish(&mut assembly, 1, 40);
    assembly.tick(40);
    assembly.tick(40 + 2 * JOIN_WAIT_NS);
    assembly.server_opened(3, 50, wall(50), None, message("a", 9));
    finish(&mut assembly, 3, 60);
    let spans = spans(&mut assembly);
    assert_eq!(spans["1"].parent_span_id, SpanId::INVALID);
    assert!(spans["1"].links.links.is_empty());
    assert_eq!(spans["2"].parent_span_id, spans["1"].span_context.span_id());
    check_sent_and_taken(&spans);
}

#[test]
fn a_request_with_samples_names_its_profile() {
    let mut assembly = Assembly::default();
    for key in [1, 2] {
        assembly.server_opened(key, 10, wall(10), None, place(u32::try_from(key).unwrap()));
    }
    assert_eq!(assembly.trace_of(1), TraceOf::Open, "the other end may show up");
    assembly.profiled(1);
    for key in [1, 2] {
        finish(&mut assembly, key, 20);
    }
    assembly.end();
    let mut spans = spans(&mut assembly);
    let (with, without) = (spans.remove("1").unwrap(), spans.remove("2").unwrap());
    let TraceOf::Known(of) = assembly.trace_of(1) else { panic!("it is known at the end") };
    assert_eq!((of.trace_id(), of.span_id()), (with.span_context.trace_id(), with.span_context.span_id()));
    let id = KeyValue::new("pyroscope.profile.id", format!("{:016x}", with.span_context.span_id()));
    assert_eq!(with.attributes, [id]);
    assert_eq!(without.attributes, []);
    assert_eq!(assembly.stats().late_profiles, 0);
    // Its first sample is known to be its own only now; the sample still finds the trace.
    assembly.profiled(2);
    assert_eq!(assembly.stats().late_profiles, 1);
    assert!(matches!(assembly.trace_of(2), TraceOf::Known(_)));
    assert_eq!(assembly.trace_of(3), TraceOf::None);
}

#[test]
fn what_is_not_exported_has_no_trace() {
    let mut assembly = Assembly::new(Sampler { parent_based: true, root: Root::AlwaysOff }, false);
    assembly.server_opened(1, 10, wall(10), None, Place::default());
    assert_eq!(assembly.trace_of(1), TraceOf::None);
    let mut assembly = Assembly::default();
    assembly.server_opened(1, 10, wall(10), None, Place::default());
    assert!(matches!(assembly.trace_of(1), TraceOf::Known(_)));
    assembly.discarded(1);
    assert_eq!(assembly.trace_of(1), TraceOf::None);
}
