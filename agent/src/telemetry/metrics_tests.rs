//! Metrics out of reports: names, series, and what happens when processes come and go.

use std::collections::BTreeMap;

use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Metric, MetricData};

use super::*;
use crate::config::tests::config;
use crate::telemetry::report::Counts;

fn metrics() -> SelfMetrics {
    let config = config(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ]);
    SelfMetrics::new(&config.unwrap(), Resource::builder_empty().build())
}

/// The value of each series, by its attributes in order.
fn series(metrics: &ResourceMetrics, name: &str) -> BTreeMap<String, i128> {
    let all: Vec<&Metric> = metrics.scope_metrics().flat_map(|scope| scope.metrics()).collect();
    let Some(metric) = all.iter().find(|metric| metric.name() == name) else { return BTreeMap::new() };
    let key = |attributes: &mut dyn Iterator<Item = &KeyValue>| {
        let mut pairs: Vec<_> = attributes.map(|pair| format!("{}={}", pair.key, pair.value)).collect();
        pairs.sort_unstable();
        pairs.join(" ")
    };
    match metric.data() {
        AggregatedMetrics::U64(MetricData::Sum(sum)) => {
            assert!(sum.is_monotonic(), "{name}");
            sum.data_points().map(|point| (key(&mut point.attributes()), i128::from(point.value()))).collect()
        }
        AggregatedMetrics::I64(MetricData::Sum(sum)) => {
            assert!(!sum.is_monotonic(), "{name}");
            sum.data_points().map(|point| (key(&mut point.attributes()), i128::from(point.value()))).collect()
        }
        other => panic!("{name} is {other:?}"),
    }
}

fn process(pid: u32, edges: u64) -> ProcessReport {
    ProcessReport {
        pid,
        service: "shop".to_owned(),
        tier: Some("full".to_owned()),
        edges: Counts::from([("response".to_owned(), edges)]),
        ..ProcessReport::default()
    }
}

fn report(processes: Vec<ProcessReport>) -> Report {
    Report { processes, ..Report::new(1) }
}

#[test]
fn a_process_has_its_series() {
    let metrics = metrics();
    let mut shop = process(7, 5);
    shop.orphans = Counts::from([("unrelated".to_owned(), 2)]);
    shop.conflicts = 3;
    let mut all = report(vec![shop]);
    all.lost = Counts::from([("socket_calls_ring_full".to_owned(), 9)]);
    let collected = metrics
        .collect(all, ExportStats { exported: 11, dropped_rejected: 1, queued: 4, ..Default::default() });
    let target = "pitviper.target.process.pid=7 pitviper.target.service.name=shop";
    let check = |name: &str, attributes: &str, expected: i128| {
        assert_eq!(
            series(&collected, name).get(attributes),
            Some(&expected),
            "{name}: {:?}",
            series(&collected, name)
        );
    };
    check("pitviper.edges", &format!("pitviper.parent.evidence=response {target}"), 5);
    check("pitviper.orphans", &format!("pitviper.orphan.reason=unrelated {target}"), 2);
    check("pitviper.conflicts", target, 3);
    check("pitviper.targets", "pitviper.tier=full", 1);
    check("pitviper.records.lost", "pitviper.loss.reason=socket_calls_ring_full", 9);
    let processor =
        "otel.component.name=batching_span_processor/0 otel.component.type=batching_span_processor";
    check("otel.sdk.processor.span.queue.size", processor, 4);
    check("otel.sdk.processor.span.processed", processor, 12);
    check("otel.sdk.processor.span.queue.capacity", processor, 16_384);
    let exporter = "otel.component.name=otlp_grpc_span_exporter/0 \
        otel.component.type=otlp_grpc_span_exporter server.address=collector server.port=4317";
    check("otel.sdk.exporter.span.exported", exporter, 11);
    check("otel.sdk.exporter.span.exported", &format!("error.type=rejected {exporter}"), 1);
}

#[test]
fn a_process_that_has_gone_is_told_once_more() {
    let metrics = metrics();
    let edges = |processes| {
        let collected = metrics.collect(report(processes), ExportStats::default());
        series(&collected, "pitviper.edges").into_values().collect::<Vec<_>>()
    };
    assert_eq!(edges(vec![process(7, 5)]), [5]);
    assert_eq!(edges(vec![ProcessReport { departed: true, tier: None, ..process(7, 6) }]), [6]);
    assert_eq!(edges(vec![]), Vec::<i128>::new());
    let collected = metrics.collect(report(vec![]), ExportStats::default());
    assert!(series(&collected, "pitviper.targets").is_empty());
}

#[test]
fn too_many_processes_are_summed_up_without_ever_going_down() {
    let metrics = metrics();
    let many = MOST_TARGETS as u32 + 20;
    let overflow = "otel.metric.overflow=true pitviper.parent.evidence=response";
    let edges = |processes| {
        let collected = metrics.collect(report(processes), ExportStats::default());
        let mut series = series(&collected, "pitviper.edges");
        (series.remove(overflow), series.len())
    };
    assert_eq!(edges((1..=many).map(|pid| process(pid, 10)).collect()), (Some(200), MOST_TARGETS));
    // One of the others goes, and one with series of its own: neither moves counts from one series to another.
    let departed = |pid| ProcessReport { departed: true, ..process(pid, 11) };
    let after = |pid| if [5, 110].contains(&pid) { departed(pid) } else { process(pid, 10) };
    assert_eq!(edges((1..=many).map(after).collect()), (Some(201), MOST_TARGETS));
    let rest = |more: u32| {
        let pids = (1..=many + more).filter(|pid| ![5, 110].contains(pid));
        pids.map(|pid| process(pid, 10)).collect()
    };
    assert_eq!(edges(rest(0)), (Some(201), MOST_TARGETS - 1));
    // The free place is a new one's.
    assert_eq!(edges(rest(1)), (Some(201), MOST_TARGETS));
    assert_eq!(edges(vec![]), (Some(11), 0));
}
