//! The instruments of the agent's own metrics: names, units, and where each value comes from.
//!
//! Names by the semantic conventions' "OpenTelemetry SDK metrics" where they have one, else under `pitviper.`.

use std::sync::{Arc, Mutex};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::ProcessReport;
use super::metrics::{State, locked};
use super::report::Counts;
use crate::config::{OtelConfig, Protocol};
use crate::export::ExportStats;
use crate::trace::semconv;

/// Takes a value and the attributes of its series.
type Observe<'a> = dyn FnMut(u64, &[KeyValue]) + 'a;

/// Makes all instruments; they live as long as the meter's provider, and show `state`.
pub(super) fn make(meter: Meter, state: &Arc<Mutex<State>>, config: &OtelConfig) {
    let instruments = Instruments { meter, state: Arc::clone(state) };
    instruments.of_targets();
    instruments.of_the_agent();
    if config.exports_otlp() {
        instruments.of_the_export(config);
    }
}

struct Instruments {
    meter: Meter,
    state: Arc<Mutex<State>>,
}

impl Instruments {
    fn counter(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        observe: impl Fn(&State, &mut Observe<'_>) + Send + Sync + 'static,
    ) {
        let state = Arc::clone(&self.state);
        let builder = self.meter.u64_observable_counter(name).with_unit(unit).with_description(description);
        let callback = builder.with_callback(move |instrument| {
            observe(&locked(&state), &mut |value, attributes| instrument.observe(value, attributes));
        });
        let _ = callback.build();
    }

    /// Seconds, with a series for each process: a counter, or the latest of a value.
    fn seconds(
        &self,
        name: &'static str,
        description: &'static str,
        counts: bool,
        of: fn(&ProcessReport) -> u64,
    ) {
        let state = Arc::clone(&self.state);
        let each = move |observe: &mut dyn FnMut(f64, &[KeyValue])| {
            for (target, attributes) in locked(&state).targets() {
                observe(std::time::Duration::from_nanos(of(target)).as_secs_f64(), &attributes);
            }
        };
        if counts {
            let builder =
                self.meter.f64_observable_counter(name).with_unit("s").with_description(description);
            let _ = builder
                .with_callback(move |instrument| each(&mut |value, of| instrument.observe(value, of)))
                .build();
        } else {
            let builder = self.meter.f64_observable_gauge(name).with_unit("s").with_description(description);
            let _ = builder
                .with_callback(move |instrument| each(&mut |value, of| instrument.observe(value, of)))
                .build();
        }
    }

    /// What goes up and down.
    fn level(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        observe: impl Fn(&State, &mut Observe<'_>) + Send + Sync + 'static,
    ) {
        let state = Arc::clone(&self.state);
        let builder =
            self.meter.i64_observable_up_down_counter(name).with_unit(unit).with_description(description);
        let callback = builder.with_callback(move |instrument| {
            observe(&locked(&state), &mut |value, attributes| {
                instrument.observe(i64::try_from(value).unwrap_or(i64::MAX), attributes);
            });
        });
        let _ = callback.build();
    }

    /// A counter with a series for each kind of something in each process.
    fn kinds(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        key: &'static str,
        of: fn(&ProcessReport) -> &Counts,
    ) {
        self.counter(name, unit, description, move |state, observe| {
            for (target, attributes) in state.targets() {
                each(of(target), key, &attributes, observe);
            }
        });
    }

    /// A counter with a series for each process.
    fn count(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        of: fn(&ProcessReport) -> u64,
    ) {
        self.counter(name, unit, description, move |state, observe| {
            for (target, attributes) in state.targets() {
                observe(of(target), &attributes);
            }
        });
    }

    fn of_targets(&self) {
        self.kinds(
            "pitviper.edges",
            "{edge}",
            "Spans with a parent, by the evidence for it.",
            semconv::PITVIPER_PARENT_EVIDENCE,
            |target| &target.edges,
        );
        self.kinds(
            "pitviper.orphans",
            "{span}",
            "Client spans without a parent, by the reason.",
            semconv::PITVIPER_ORPHAN_REASON,
            |target| &target.orphans,
        );
        self.count("pitviper.roots", "{span}", "Server spans that begin a trace.", |target| target.roots);
        self.count(
            "pitviper.conflicts",
            "{conflict}",
            "Times that a response refuted what the reading of the request had suggested.",
            |target| target.conflicts,
        );
        self.count(
            "pitviper.amnesias",
            "{amnesia}",
            "Times that the lineage of all contexts was forgotten.",
            |target| target.amnesias,
        );
        self.count(
            "pitviper.overdue",
            "{operation}",
            "Operations that were settled before all evidence was in.",
            |target| target.overdue,
        );
        self.count(
            "pitviper.connections.foreign",
            "{connection}",
            "Connections that are encrypted or speak no known protocol.",
            |target| target.foreign_connections,
        );
        self.count("pitviper.gaps", "{gap}", "Times that bytes of a connection were lost.", |target| {
            target.gaps
        });
        self.count(
            "pitviper.event_loop.blocked.turns",
            "{turn}",
            "Turns of an event loop that took longer than the threshold.",
            |target| target.lag.turns,
        );
        self.seconds(
            "pitviper.event_loop.blocked.time",
            "How long those turns took together.",
            true,
            |target| target.lag.time_ns,
        );
        self.seconds(
            "pitviper.event_loop.lag.max",
            "How long the longest of those turns took.",
            false,
            |target| target.lag.longest_ns,
        );
        self.level(
            "pitviper.operations.waiting",
            "{operation}",
            "Operations that wait for their evidence.",
            |state, observe| {
                for (target, attributes) in state.targets() {
                    observe(target.waiting, &attributes);
                }
            },
        );
    }

    fn of_the_agent(&self) {
        self.level("pitviper.targets", "{process}", "Processes that are traced.", |state, observe| {
            let mut tiers = Counts::new();
            for tier in state.report.processes.iter().filter_map(|process| process.tier.as_ref()) {
                *tiers.entry(tier.clone()).or_default() += 1;
            }
            each(&tiers, semconv::PITVIPER_TIER, &[], observe);
        });
        self.counter(
            "pitviper.records.lost",
            "{record}",
            "What the kernel side saw and the agent did not take in.",
            |state, observe| each(&state.report.lost, semconv::PITVIPER_LOSS_REASON, &[], observe),
        );
        self.counter(
            "pitviper.connections",
            "{connection}",
            "Connections, by the protocol that was recognised.",
            |state, observe| each(&state.report.connections, semconv::PITVIPER_PROTOCOL, &[], observe),
        );
        self.counter(
            "pitviper.spans.unsampled",
            "{span}",
            "Spans that are not exported because their trace is not sampled.",
            |state, observe| observe(state.report.unsampled, &[]),
        );
    }

    fn of_the_export(&self, config: &OtelConfig) {
        let component = |kind: &str| {
            let name = KeyValue::new(semconv::OTEL_COMPONENT_NAME, format!("{kind}/0"));
            vec![name, KeyValue::new(semconv::OTEL_COMPONENT_TYPE, kind.to_owned())]
        };
        let failed = |attributes: &[KeyValue], error: &'static str| {
            [attributes, &[KeyValue::new(semconv::ERROR_TYPE, error)]].concat()
        };
        let processor = component("batching_span_processor");
        let mut exporter = component(match config.otlp.protocol {
            Protocol::Grpc => "otlp_grpc_span_exporter",
            Protocol::HttpProtobuf => "otlp_http_span_exporter",
        });
        let endpoint = &config.otlp.endpoint;
        exporter
            .extend(endpoint.host_str().map(|host| KeyValue::new(semconv::SERVER_ADDRESS, host.to_owned())));
        let port = endpoint.port_or_known_default();
        exporter.extend(port.map(|port| KeyValue::new(semconv::SERVER_PORT, i64::from(port))));

        let capacity = config.batch.max_queue_size as u64;
        let attributes = processor.clone();
        self.level(
            "otel.sdk.processor.span.queue.size",
            "{span}",
            "Spans that wait to be exported.",
            move |state, observe| observe(state.exports.queued, &attributes),
        );
        let attributes = processor.clone();
        self.level(
            "otel.sdk.processor.span.queue.capacity",
            "{span}",
            "Spans that may wait to be exported.",
            move |_, observe| observe(capacity, &attributes),
        );
        let (full, shut_down) = (failed(&processor, "queue_full"), failed(&processor, "already_shutdown"));
        self.counter(
            "otel.sdk.processor.span.processed",
            "{span}",
            "Spans that left the queue for the exporter, or that it did not take.",
            move |state, observe| {
                let ExportStats { queued: _, in_flight, exported, dropped_failed, dropped_rejected, .. } =
                    state.exports;
                observe(in_flight + exported + dropped_failed + dropped_rejected, &processor);
                observe(state.exports.dropped_queue_full, &full);
                observe(state.exports.dropped_shutdown, &shut_down);
            },
        );
        let attributes = exporter.clone();
        self.level(
            "otel.sdk.exporter.span.inflight",
            "{span}",
            "Spans that are on their way to the receiver.",
            move |state, observe| observe(state.exports.in_flight, &attributes),
        );
        // `_OTHER` is the conventions' fallback: the causes are in the log.
        let (rejected, lost) = (failed(&exporter, "rejected"), failed(&exporter, "_OTHER"));
        self.counter(
            "otel.sdk.exporter.span.exported",
            "{span}",
            "Spans for which the export has finished, successful or not.",
            move |state, observe| {
                observe(state.exports.exported, &exporter);
                observe(state.exports.dropped_rejected, &rejected);
                observe(state.exports.dropped_failed, &lost);
            },
        );
    }
}

fn each(counts: &Counts, key: &'static str, attributes: &[KeyValue], observe: &mut Observe<'_>) {
    for (name, count) in counts {
        observe(*count, &[attributes, &[KeyValue::new(key, name.clone())]].concat());
    }
}
