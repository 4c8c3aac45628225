//! Profiles out of the process: to the OTLP receiver, to a Pyroscope server, or both.
//!
//! Takes samples and adds them up by service; every few seconds each receiver gets one request with all of them. Never
//! blocks: while a receiver is slow the window just grows, to a limit. Every sample that is not delivered is counted
//! ([`ProfileStats`]). A receiver that takes no profiles at all is told about once and left alone from then on: OTLP profiles
//! are young, and traces are exported whatever becomes of them.

mod otlp;
mod pyroscope;
mod receiver;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use self::receiver::Receiver;
use crate::config::{OtlpConfig, PyroscopeConfig};
use crate::profile::Sample;
use crate::profile::windows::{ServiceProfile, Windows};

/// How long samples are added up: what Pyroscope's own agents send at a time.
const WINDOW: Duration = Duration::from_secs(10);
/// Different stacks in one window, each of a request; further samples are dropped. Hours of a slow receiver.
const MOST_STACKS: usize = 200_000;

/// What became of the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProfileStats {
    /// Taken by every receiver that takes profiles.
    pub exported: u64,
    /// Not taken, or not sent in time.
    pub dropped: u64,
    /// Nobody takes profiles.
    pub unwanted: u64,
}

/// The way out for samples. Clones share one window.
#[derive(Clone, Debug)]
pub struct ProfileExport {
    /// `None` when there is no receiver.
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    windows: Mutex<Windows>,
    closed: AtomicBool,
    changed: Notify,
    exported: AtomicU64,
    dropped: AtomicU64,
    unwanted: AtomicU64,
    worker: Mutex<Option<JoinHandle<()>>>,
    /// Cleared when the last receiver turned out to take no profiles.
    wanted: Mutex<Option<Arc<AtomicBool>>>,
}

impl ProfileExport {
    /// Starts exporting on `runtime`. `period` is the CPU time between two samples. Fails if certificates cannot be read;
    /// does not wait for a receiver.
    pub fn start(
        otlp: Option<&OtlpConfig>,
        pyroscope: Option<&PyroscopeConfig>,
        period: Duration,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        Self::start_with(otlp, pyroscope, period, WINDOW, runtime)
    }

    fn start_with(
        otlp: Option<&OtlpConfig>,
        pyroscope: Option<&PyroscopeConfig>,
        period: Duration,
        window: Duration,
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
            windows: Mutex::new(Windows::new(SystemTime::now(), period)),
            closed: AtomicBool::new(false),
            changed: Notify::new(),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            unwanted: AtomicU64::new(0),
            worker: Mutex::default(),
            wanted: Mutex::default(),
        });
        let worker = runtime.spawn(Arc::clone(&inner).run(receivers, window));
        *inner.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
        Ok(Self { inner: Some(inner) })
    }

    /// Whether there is anybody who may want profiles.
    pub fn is_wanted(&self) -> bool {
        self.inner.is_some()
    }

    /// From now on `wanted` says whether there is a receiver that takes profiles, as far as is known.
    pub fn tell_unwanted(&self, wanted: Arc<AtomicBool>) {
        if let Some(inner) = &self.inner {
            *inner.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
        }
    }

    /// Takes a sample. Never blocks.
    pub fn push(&self, sample: Sample) {
        let Some(inner) = &self.inner else { return };
        let mut windows = inner.windows();
        if windows.stacks() < MOST_STACKS {
            windows.add(sample);
        } else {
            inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of the samples so far.
    pub fn stats(&self) -> ProfileStats {
        self.inner.as_ref().map(|inner| inner.stats()).unwrap_or_default()
    }

    /// Exports what there is and stops, within `deadline`; what is left then is lost. Gives the final counts.
    pub async fn flush_and_shutdown(&self, deadline: Duration) -> ProfileStats {
        let Some(inner) = &self.inner else { return ProfileStats::default() };
        inner.closed.store(true, Ordering::Release);
        inner.changed.notify_one();
        let worker = inner.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut worker) = worker
            && tokio::time::timeout(deadline, &mut worker).await.is_err()
        {
            worker.abort();
            let _ = worker.await;
        }
        let left = inner.windows().close(SystemTime::now());
        inner.dropped.fetch_add(samples(&left), Ordering::Relaxed);
        inner.stats()
    }
}

impl Inner {
    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> ProfileStats {
        ProfileStats {
            exported: self.exported.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            unwanted: self.unwanted.load(Ordering::Relaxed),
        }
    }

    /// Sends window after window; after the shutdown has begun, the last one.
    async fn run(self: Arc<Self>, mut receivers: Vec<Receiver>, window: Duration) {
        loop {
            // Woken up only by the shutdown.
            let _ = tokio::time::timeout(window, self.changed.notified()).await;
            let last = self.closed.load(Ordering::Acquire);
            let profiles = self.windows().close(SystemTime::now());
            if !profiles.is_empty() {
                let in_flight = InFlight { inner: &self, samples: samples(&profiles) };
                let mut taken = true;
                for receiver in receivers.iter_mut().filter(|receiver| receiver.is_on()) {
                    // One that takes no profiles loses none.
                    taken &= receiver.send(&profiles).await || !receiver.is_on();
                }
                let wanted = receivers.iter().any(Receiver::is_on);
                in_flight.landed(taken, wanted);
                if !wanted && let Some(flag) = &*self.wanted.lock().unwrap_or_else(PoisonError::into_inner) {
                    flag.store(false, Ordering::Relaxed);
                }
            }
            if last {
                return;
            }
        }
    }
}

/// Samples on their way; dropped with the task, they are lost.
struct InFlight<'a> {
    inner: &'a Inner,
    samples: u64,
}

impl InFlight<'_> {
    /// `wanted`: there is a receiver that takes profiles.
    fn landed(mut self, taken: bool, wanted: bool) {
        if taken {
            let samples = std::mem::take(&mut self.samples);
            let count = if wanted { &self.inner.exported } else { &self.inner.unwanted };
            count.fetch_add(samples, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.inner.dropped.fetch_add(self.samples, Ordering::Relaxed);
    }
}

fn samples(profiles: &[ServiceProfile]) -> u64 {
    profiles.iter().map(|profile| profile.stacks.total()).sum()
}
