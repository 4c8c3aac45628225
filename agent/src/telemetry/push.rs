//! Sends the agent's metrics from time to time, and once more at the end.

use std::time::Duration;

use opentelemetry_sdk::Resource;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::Report;
use super::inquiry::{Inquirer, Question};
use super::metrics::SelfMetrics;
use crate::config::OtelConfig;
use crate::export::ExportHandle;
use crate::export::metrics::{Fate, MetricsSender};

/// The task that sends.
#[derive(Debug)]
pub struct Pusher {
    last: oneshot::Sender<Report>,
    task: JoinHandle<()>,
}

struct Worker {
    sender: MetricsSender,
    metrics: SelfMetrics,
    spans: ExportHandle,
    interval: Duration,
}

impl Pusher {
    /// Begins to send as `config` says, with `resource` as the agent's own; `None` where it says not to. Fails if
    /// certificates cannot be read.
    pub fn start(
        config: &OtelConfig,
        resource: Resource,
        inquirer: Inquirer,
        spans: ExportHandle,
        runtime: &Handle,
    ) -> anyhow::Result<Option<Self>> {
        let (Some(sender), Some(metrics)) = (MetricsSender::new(config, runtime)?, &config.metrics) else {
            return Ok(None);
        };
        let worker =
            Worker { sender, metrics: SelfMetrics::new(config, resource), spans, interval: metrics.interval };
        let (last, told) = oneshot::channel();
        Ok(Some(Self { last, task: runtime.spawn(worker.run(inquirer, told)) }))
    }

    /// Sends the last report and ends, within `deadline`.
    pub async fn finish(self, report: Report, deadline: Duration) {
        let Self { last, mut task } = self;
        // The task may have ended before, because nobody wants its metrics.
        let _ = last.send(report);
        if timeout(deadline, &mut task).await.is_err() {
            task.abort();
        }
    }
}

impl Worker {
    async fn run(mut self, inquirer: Inquirer, mut last: oneshot::Receiver<Report>) {
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                report = &mut last => {
                    if let Ok(report) = report {
                        self.send(report).await;
                    }
                    return;
                }
                _ = ticks.tick() => {}
            }
            // A pipeline that is too busy to answer is asked again next time.
            if let Some(report) = inquirer.ask(Question::Departed).await
                && self.send(report).await == Fate::Unwanted
            {
                return;
            }
        }
    }

    async fn send(&mut self, report: Report) -> Fate {
        let metrics = self.metrics.collect(report, self.spans.stats());
        self.sender.send(&metrics).await
    }
}
