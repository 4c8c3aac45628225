//! The agent's own metrics to the OTLP receiver.
//!
//! Takes collected metrics, one after the other; says what is wrong once, and that it works again. A receiver that is
//! one for traces only is no failure: the metrics are turned off, with one message, and the spans go on.

use std::time::Duration;

use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use tokio::runtime::Handle;

use super::health::Health;
use super::probe;
use super::transport::{Exporter, Transport};
use crate::config::{MetricsConfig, OtelConfig, OtlpConfig};

/// What became of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The receiver took it.
    Taken,
    /// It was lost; the next one may not be.
    Lost,
    /// The receiver takes no metrics: send no more.
    Unwanted,
}

/// Sends metrics.
#[derive(Debug)]
pub struct MetricsSender {
    exporter: Exporter<MetricExporter>,
    otlp: OtlpConfig,
    export_timeout: Duration,
    /// Whether spans go to the same receiver, and tell what is wrong with it.
    shared: bool,
    health: Health,
}

impl MetricsSender {
    /// Fails if certificates cannot be read; does not wait for the receiver. `None` where `config` sends no metrics.
    pub fn new(config: &OtelConfig, runtime: &Handle) -> anyhow::Result<Option<Self>> {
        let Some(MetricsConfig { otlp, export_timeout, temporality, interval: _ }) = &config.metrics else {
            return Ok(None);
        };
        let _entered = runtime.enter();
        Ok(Some(Self {
            exporter: Transport::new(otlp)?.metric_exporter(*temporality)?,
            otlp: otlp.clone(),
            export_timeout: *export_timeout,
            shared: config.exports_otlp() && otlp.place() == config.otlp.place(),
            health: Health::default(),
        }))
    }

    /// Sends `metrics` once, with the retries of OTLP.
    pub async fn send(&mut self, metrics: &ResourceMetrics) -> Fate {
        let place = self.otlp.place();
        let failure = match self.exporter.send(metrics, self.export_timeout).await {
            Ok(partial) => {
                if let Some(partial) = partial {
                    log::debug!("{place} refused {} data points: {}", partial.rejected, partial.message);
                }
                if self.health.worked().is_some() && !self.shared {
                    log::warn!("sending pitviper's own metrics to {place} again");
                }
                return Fate::Taken;
            }
            Err(failure) => failure,
        };
        if self.health.failed(&failure, 0) {
            let cause = probe::diagnose(&failure, &self.otlp).await;
            if cause.is_other_signals() {
                log::warn!(
                    "{place} takes no metrics, and gets none of pitviper's own any more \
                     (OTEL_METRICS_EXPORTER=none avoids this message)"
                );
                return Fate::Unwanted;
            }
            let sentence = format!("pitviper's own metrics: {}", cause.sentence(&self.otlp));
            match (self.health.diagnosed(failure, &cause), self.shared) {
                (true, false) => log::warn!("{sentence}"),
                // It is said of the spans, for which it matters more.
                (true, true) => log::debug!("{sentence}"),
                (false, _) => {}
            }
        }
        Fate::Lost
    }
}
