//! Profiles out of the process: to the OTLP receiver, to a Pyroscope server, or both.
//!
//! Takes the samples of a service over a while ([`ServiceProfile`]); gives each receiver one request for all that is there.
//! Never blocks: the queue is short, and when it is full the oldest profile is dropped. Every sample that is not
//! delivered is counted ([`ProfileStats`]). A receiver that takes no profiles at all is told about once and left alone from
//! then on: OTLP profiles are young, and traces are exported whatever becomes of them.

mod otlp;
mod pyroscope;
mod receiver;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use self::receiver::Receiver;
use crate::config::{OtlpConfig, PyroscopeConfig};
use crate::profile::windows::ServiceProfile;

/// Profiles that may wait; a service gives one every few seconds.
const QUEUE: usize = 256;

/// What became of the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProfileStats {
    /// Taken by every receiver that takes profiles.
    pub exported: u64,
    /// Not taken, or not sent in time.
    pub dropped: u64,
}

/// The way out for profiles. Clones share one queue.
#[derive(Clone, Debug)]
pub struct ProfileExport {
    /// `None` when there is no receiver.
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    queue: Mutex<(VecDeque<ServiceProfile>, bool)>,
    changed: Notify,
    exported: AtomicU64,
    dropped: AtomicU64,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl ProfileExport {
    /// Starts exporting on `runtime`. Fails if certificates cannot be read; does not wait for a receiver.
    pub fn start(
        otlp: Option<&OtlpConfig>,
        pyroscope: Option<&PyroscopeConfig>,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        let entered = runtime.enter();
        let otlp = otlp.map(Receiver::otlp).transpose()?;
        let receivers: Vec<Receiver> =
            otlp.into_iter().chain(pyroscope.map(Receiver::pyroscope).transpose()?).collect();
        drop(entered);
        if receivers.is_empty() {
            return Ok(Self { inner: None });
        }
        let inner = Arc::new(Inner {
            queue: Mutex::default(),
            changed: Notify::new(),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            worker: Mutex::default(),
        });
        let worker = runtime.spawn(Arc::clone(&inner).run(receivers));
        *inner.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
        Ok(Self { inner: Some(inner) })
    }

    /// Whether there is anybody who may want profiles.
    pub fn is_wanted(&self) -> bool {
        self.inner.is_some()
    }

    /// Takes a profile. Never blocks; a full queue drops its oldest one.
    pub fn push(&self, profile: ServiceProfile) {
        let Some(inner) = self.inner.as_ref().filter(|_| !profile.stacks.is_empty()) else { return };
        let mut queue = inner.lock();
        if queue.0.len() >= QUEUE
            && let Some(oldest) = queue.0.pop_front()
        {
            inner.dropped.fetch_add(oldest.stacks.total(), Ordering::Relaxed);
        }
        queue.0.push_back(profile);
        drop(queue);
        inner.changed.notify_one();
    }

    /// What became of the samples so far.
    pub fn stats(&self) -> ProfileStats {
        self.inner.as_ref().map(|inner| inner.stats()).unwrap_or_default()
    }

    /// Exports what is queued and stops, within `deadline`; what is left then is lost. Gives the final counts.
    pub async fn flush_and_shutdown(&self, deadline: Duration) -> ProfileStats {
        let Some(inner) = &self.inner else { return ProfileStats::default() };
        inner.lock().1 = true;
        inner.changed.notify_one();
        let worker = inner.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut worker) = worker
            && tokio::time::timeout(deadline, &mut worker).await.is_err()
        {
            worker.abort();
            let _ = worker.await;
        }
        let left: u64 = inner.lock().0.drain(..).map(|profile| profile.stacks.total()).sum();
        inner.dropped.fetch_add(left, Ordering::Relaxed);
        inner.stats()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<ServiceProfile>, bool)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> ProfileStats {
        ProfileStats {
            exported: self.exported.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Sends what comes in until the queue is closed and empty.
    async fn run(self: Arc<Self>, mut receivers: Vec<Receiver>) {
        loop {
            let (profiles, closed) = {
                let mut queue = self.lock();
                (queue.0.drain(..).collect::<Vec<_>>(), queue.1)
            };
            if profiles.is_empty() {
                if closed {
                    return;
                }
                self.changed.notified().await;
                continue;
            }
            let samples: u64 = profiles.iter().map(|profile| profile.stacks.total()).sum();
            let mut taken = receivers.iter().any(Receiver::is_on);
            for receiver in receivers.iter_mut().filter(|receiver| receiver.is_on()) {
                taken &= receiver.send(&profiles).await;
            }
            let count = if taken { &self.exported } else { &self.dropped };
            count.fetch_add(samples, Ordering::Relaxed);
        }
    }
}
