//! The task that takes batches from the queue, groups them by resource, and sends them.
//!
//! One batch at a time, and of it at most [`CONCURRENCY`] requests at once: a slow receiver makes the queue fill,
//! never the number of requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::SpanData;
use tokio::task::JoinSet;

use super::failure::Failure;
use super::health::Health;
use super::limits;
use super::partial::PartialSuccess;
use super::probe;
use super::queue::{Fate, Queue, Wake};
use super::transport::{Exporter, Transport};
use crate::config::{OtelConfig, OtlpConfig, SpanLimits};
use crate::process::resource::Service;
use crate::trace::FinishedSpan;

/// Requests of one batch that are on their way at once.
pub(super) const CONCURRENCY: usize = 4;

/// Exporters that are kept for the next batch, by service instance.
const MOST_EXPORTERS: usize = 128;

pub(super) struct Worker {
    queue: Arc<Queue>,
    transport: Transport,
    otlp: OtlpConfig,
    limits: SpanLimits,
    export_timeout: Duration,
    /// The most recently used last.
    exporters: VecDeque<(Arc<Service>, Arc<Exporter<SpanExporter>>)>,
    health: Health,
    rejection_told: bool,
}

/// The spans of one service instance.
struct Group {
    service: Arc<Service>,
    spans: Vec<SpanData>,
}

/// What became of a group.
struct Sent {
    spans: u64,
    result: Result<Option<PartialSuccess>, Failure>,
}

impl Worker {
    pub(super) fn new(queue: Arc<Queue>, transport: Transport, config: &OtelConfig) -> Self {
        Self {
            queue,
            transport,
            otlp: config.otlp.clone(),
            limits: config.limits.clone(),
            export_timeout: config.batch.export_timeout,
            exporters: VecDeque::new(),
            health: Health::default(),
            rejection_told: false,
        }
    }

    /// Exports until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        loop {
            let wake = self.queue.wait().await;
            let least = match wake {
                Wake::Full => self.queue.batch_size(),
                Wake::Elapsed | Wake::Closed => 1,
            };
            loop {
                let batch = self.queue.take(least);
                if batch.is_empty() {
                    break;
                }
                self.export(batch).await;
            }
            if wake == Wake::Closed {
                return;
            }
        }
    }

    async fn export(&mut self, batch: Vec<FinishedSpan>) {
        let mut groups = self.group(batch).into_iter();
        let mut requests = JoinSet::new();
        let mut all_taken = true;
        loop {
            while requests.len() < CONCURRENCY
                && let Some(group) = groups.next()
            {
                self.spawn(&mut requests, group);
            }
            match requests.join_next().await {
                None => break,
                Some(Ok(sent)) => all_taken &= self.settle(sent).await,
                // A request that panicked leaves its spans in flight; they are counted when the agent stops.
                Some(Err(error)) => log::error!("exporting spans failed unexpectedly: {error}"),
            }
        }
        if all_taken && let Some(lost) = self.health.worked() {
            log::warn!("exporting to {} again; {lost} spans were lost meanwhile", self.otlp.place());
        }
    }

    /// The batch by service instance, each within its limits, in the order of first appearance.
    fn group(&self, batch: Vec<FinishedSpan>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for FinishedSpan { service, mut data } in batch {
            limits::apply(&self.limits, &mut data);
            match groups.iter_mut().find(|group| Arc::ptr_eq(&group.service, &service)) {
                Some(group) => group.spans.push(data),
                None => groups.push(Group { service, spans: vec![data] }),
            }
        }
        groups
    }

    fn spawn(&mut self, requests: &mut JoinSet<Sent>, Group { service, spans }: Group) {
        let count = spans.len() as u64;
        let limit = self.export_timeout;
        match self.exporter(&service) {
            Ok(exporter) => {
                requests
                    .spawn(async move { Sent { spans: count, result: exporter.send(spans, limit).await } });
            }
            Err(error) => {
                let result = Err(Failure::Other(format!("{error:#}")));
                requests.spawn(async move { Sent { spans: count, result } });
            }
        }
    }

    /// The service instance's exporter, from the last time or new.
    fn exporter(&mut self, service: &Arc<Service>) -> anyhow::Result<Arc<Exporter<SpanExporter>>> {
        let known = self.exporters.iter().position(|(known, _)| Arc::ptr_eq(known, service));
        let entry = match known.and_then(|index| self.exporters.remove(index)) {
            Some(entry) => entry,
            None => (service.clone(), Arc::new(self.transport.exporter(&service.resource)?)),
        };
        let exporter = entry.1.clone();
        self.exporters.push_back(entry);
        if self.exporters.len() > MOST_EXPORTERS {
            self.exporters.pop_front();
        }
        Ok(exporter)
    }

    /// Counts and tells what became of a request; `true` if the receiver took it.
    async fn settle(&mut self, Sent { spans, result }: Sent) -> bool {
        match result {
            Ok(partial) => {
                let rejected = partial.as_ref().map_or(0, |partial| partial.rejected);
                self.queue.settle(spans, Fate::Exported { rejected });
                if let Some(partial) = partial {
                    self.tell_rejection(&partial);
                }
                true
            }
            Err(failure) => {
                self.queue.settle(spans, Fate::Failed);
                if self.health.failed(&failure, spans) {
                    let cause = probe::diagnose(&failure, &self.otlp).await;
                    if self.health.diagnosed(failure, &cause) {
                        log::warn!("{}", cause.sentence(&self.otlp));
                    }
                }
                false
            }
        }
    }

    /// Warns the first time; the counts tell the rest.
    fn tell_rejection(&mut self, PartialSuccess { rejected, message }: &PartialSuccess) {
        let place = self.otlp.place();
        if std::mem::replace(&mut self.rejection_told, true) {
            log::debug!("{place} refused {rejected} spans: {message}");
        } else {
            log::warn!("{place} refused {rejected} spans of a request: {message} (told once)");
        }
    }
}
