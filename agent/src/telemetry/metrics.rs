//! The agent's metrics about itself, collected from the latest [`Report`] and what became of the exported spans.
//!
//! What is of one observed process carries its service name and pid, under keys of our own: the plain keys are the agent's, in the
//! resource. A host may run through any number of processes, so that only so many at a time have series of their own;
//! the others are summed up in one, marked as the specification's cardinality limit marks it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Temporality};

use super::{ProcessReport, Report, instruments};
use crate::config::OtelConfig;
use crate::export::ExportStats;
use crate::trace::{scope, semconv};

/// Processes with series of their own: times the kinds of evidence this stays below the SDK's limit of 2000 series for
/// an instrument.
const MOST_TARGETS: usize = 100;

/// The instruments, and what they show.
pub struct SelfMetrics {
    state: Arc<Mutex<State>>,
    reader: Reader,
    /// Holds the instruments.
    _provider: SdkMeterProvider,
}

impl fmt::Debug for SelfMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelfMetrics").finish_non_exhaustive()
    }
}

/// What the instruments show at the next collection.
#[derive(Default)]
pub(super) struct State {
    pub(super) report: Report,
    pub(super) exports: ExportStats,
    /// The processes that have series of their own.
    admitted: BTreeSet<u32>,
    /// Those that have not.
    summed_up: BTreeSet<u32>,
    /// The sum of those that have not, and have departed.
    departed: ProcessReport,
    /// The sum of all that have not.
    others: Option<ProcessReport>,
}

impl State {
    fn update(&mut self, report: Report, exports: ExportStats) {
        let present: BTreeSet<u32> = report.processes.iter().map(|process| process.pid).collect();
        self.admitted.retain(|pid| present.contains(pid));
        self.summed_up.retain(|pid| present.contains(pid));
        let mut others = self.departed.clone();
        for process in &report.processes {
            let ProcessReport { pid, departed, .. } = process;
            // Once in the sum, always in the sum: it must not go down.
            if !self.summed_up.contains(pid)
                && (self.admitted.contains(pid) || self.admitted.len() < MOST_TARGETS)
            {
                self.admitted.insert(*pid);
                continue;
            }
            self.summed_up.insert(*pid);
            others.absorb(process);
            if *departed {
                self.departed.absorb(&ProcessReport { waiting: 0, ..process.clone() });
            }
        }
        self.others = (others != ProcessReport::default()).then_some(others);
        self.report = report;
        self.exports = exports;
    }

    /// Each process with series of its own, and the sum of the others, with what tells them apart.
    pub(super) fn targets(&self) -> impl Iterator<Item = (&ProcessReport, Vec<KeyValue>)> {
        let own = self.report.processes.iter().filter(|process| self.admitted.contains(&process.pid));
        let own = own.map(|process| {
            let service = KeyValue::new(semconv::PITVIPER_TARGET_SERVICE, process.service.clone());
            (process, vec![service, KeyValue::new(semconv::PITVIPER_TARGET_PID, i64::from(process.pid))])
        });
        let overflow = || vec![KeyValue::new(semconv::OTEL_METRIC_OVERFLOW, true)];
        own.chain(self.others.iter().map(move |others| (others, overflow())))
    }
}

pub(super) fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SelfMetrics {
    /// Instruments for an agent with this configuration and resource.
    pub fn new(config: &OtelConfig, resource: Resource) -> Self {
        let temporality =
            config.metrics.as_ref().map_or(Temporality::Cumulative, |metrics| metrics.temporality);
        let reader = Reader(Arc::new(ManualReader::builder().with_temporality(temporality).build()));
        let provider =
            SdkMeterProvider::builder().with_resource(resource).with_reader(reader.clone()).build();
        let state = Arc::<Mutex<State>>::default();
        instruments::make(provider.meter_with_scope(scope()), &state, config);
        Self { state, reader, _provider: provider }
    }

    /// The metrics as of this report.
    pub fn collect(&self, report: Report, exports: ExportStats) -> ResourceMetrics {
        locked(&self.state).update(report, exports);
        let mut metrics = ResourceMetrics::default();
        if let Err(error) = self.reader.collect(&mut metrics) {
            log::debug!("failed to collect metrics: {error}");
        }
        metrics
    }
}

/// The SDK's reader by hand, shared between the provider, which owns one, and us, who ask it.
#[derive(Clone, Debug)]
struct Reader(Arc<ManualReader>);

impl MetricReader for Reader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
