//! Finished spans out of the process: a bounded queue, batches, and OTLP over gRPC or HTTP; [`metrics`] by the same way.
//!
//! Takes [`FinishedSpan`]s from any thread; gives them to one OTLP receiver over one connection, whatever the number
//! of services. Never blocks the pipeline: when the queue is full the oldest span is dropped, and every span that is
//! not delivered is counted ([`ExportStats`]). A receiver that fails is warned about once, with the remedy where one
//! is known, and once more when it works again. Messages go through `log`, and never hold a header or a credential.
//!
//! OTLP carries one resource per exporter here, so a batch is one request for each service instance in it.
//! Nothing in here knows where spans come from.

pub mod console;
mod failure;
mod health;
mod http;
mod limits;
pub mod metrics;
mod partial;
mod probe;
pub mod profiles;
mod queue;
#[cfg(test)]
mod receiver_tests;
#[cfg(test)]
pub(crate) mod test_receiver;
mod tls;
mod transport;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub use self::queue::ExportStats;
use self::queue::Queue;
use self::transport::Transport;
use self::worker::Worker;
use crate::config::OtelConfig;
use crate::trace::FinishedSpan;

/// The way out for spans. Clones share one queue.
#[derive(Clone, Debug)]
pub struct ExportHandle {
    /// `None` when nothing is to be exported.
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    queue: Arc<Queue>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl ExportHandle {
    /// Starts exporting as `config` says, on `runtime`. Fails if certificates cannot be read; does not wait for the
    /// receiver. Where `config` exports nothing over OTLP, the handle takes spans and forgets them.
    pub fn start(config: &OtelConfig, runtime: &Handle) -> anyhow::Result<Self> {
        if !config.exports_otlp() {
            return Ok(Self { inner: None });
        }
        let entered = runtime.enter();
        let transport = Transport::new(&config.otlp)?;
        drop(entered);
        let queue = Arc::new(Queue::new(&config.batch));
        let worker = Worker::new(queue.clone(), transport, config);
        let worker = Mutex::new(Some(runtime.spawn(worker.run())));
        Ok(Self { inner: Some(Arc::new(Inner { queue, worker })) })
    }

    /// Takes a span. Never blocks; a full queue drops its oldest span.
    pub fn push(&self, span: FinishedSpan) {
        if let Some(inner) = &self.inner {
            inner.queue.push(span);
        }
    }

    /// What became of the spans so far.
    pub fn stats(&self) -> ExportStats {
        self.inner.as_ref().map(|inner| inner.queue.stats()).unwrap_or_default()
    }

    /// Exports what is queued and stops, within `deadline`; what is left then is lost. Gives the final counts.
    pub async fn flush_and_shutdown(&self, deadline: Duration) -> ExportStats {
        let Some(inner) = &self.inner else { return ExportStats::default() };
        inner.queue.close();
        let worker = inner.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut worker) = worker else { return inner.queue.stats() };
        if tokio::time::timeout(deadline, &mut worker).await.is_err() {
            worker.abort();
            // Only once the task is gone do the counts stand still.
            let _ = worker.await;
        }
        let lost = inner.queue.abandon();
        if lost > 0 {
            log::warn!("{lost} spans could not be exported before the agent had to stop");
        }
        inner.queue.stats()
    }
}
