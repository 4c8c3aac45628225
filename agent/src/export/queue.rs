//! The bounded queue between the pipeline and the exporter, and the counts of what became of each span.
//!
//! Takes spans from any thread without ever waiting for room: a full queue drops its oldest span, because what
//! happens now is worth more than what happened before the receiver failed. Gives them in order, in portions.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::config::BatchConfig;
use crate::trace::FinishedSpan;

/// What became of the spans. Each span that was pushed is in exactly one of these counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportStats {
    /// Waiting to be exported.
    pub queued: u64,
    /// On their way.
    pub in_flight: u64,
    /// Taken by the receiver.
    pub exported: u64,
    /// Dropped as the oldest of a full queue.
    pub dropped_queue_full: u64,
    /// Lost because the receiver could not be reached, or refused the request.
    pub dropped_failed: u64,
    /// Refused by the receiver one by one, within a request that it took (OTLP's partial success).
    pub dropped_rejected: u64,
    /// Lost because the agent stopped, or pushed after it did.
    pub dropped_shutdown: u64,
}

impl ExportStats {
    /// All that did not arrive.
    pub const fn dropped(&self) -> u64 {
        self.dropped_queue_full + self.dropped_failed + self.dropped_rejected + self.dropped_shutdown
    }
}

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The receiver took it, but for so many spans.
    Exported { rejected: u64 },
    /// All of it is lost.
    Failed,
}

/// Why [`Queue::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// There is a full batch.
    Full,
    /// The oldest span has waited long enough.
    Elapsed,
    /// The queue is closed; there may be spans left.
    Closed,
}

#[derive(Debug)]
struct State {
    spans: VecDeque<FinishedSpan>,
    stats: ExportStats,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    capacity: usize,
    batch_size: usize,
    delay: Duration,
}

impl Queue {
    pub(super) fn new(config: &BatchConfig) -> Self {
        let state = State { spans: VecDeque::new(), stats: ExportStats::default(), closed: false };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            capacity: config.max_queue_size,
            batch_size: config.max_export_batch_size,
            delay: config.schedule_delay,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, span: FinishedSpan) {
        let mut state = self.lock();
        if state.closed {
            state.stats.dropped_shutdown += 1;
            return;
        }
        let oldest = if state.spans.len() >= self.capacity { state.spans.pop_front() } else { None };
        state.stats.dropped_queue_full += u64::from(oldest.is_some());
        state.spans.push_back(span);
        let waiting = state.spans.len();
        drop(state);
        drop(oldest);
        if waiting == 1 || waiting == self.batch_size {
            self.changed.notify_one();
        }
    }

    /// Waits until there is something to export.
    pub(super) async fn wait(&self) -> Wake {
        let mut elapses = None;
        loop {
            let (waiting, closed) = {
                let state = self.lock();
                (state.spans.len(), state.closed)
            };
            if closed {
                return Wake::Closed;
            }
            if waiting >= self.batch_size {
                return Wake::Full;
            }
            if waiting == 0 {
                self.changed.notified().await;
                continue;
            }
            let elapses = *elapses.get_or_insert_with(|| Instant::now() + self.delay);
            tokio::select! {
                () = sleep_until(elapses) => return Wake::Elapsed,
                () = self.changed.notified() => {}
            }
        }
    }

    /// The oldest spans, at most a batch of them and at least `least`, else none. They are in flight from now on.
    pub(super) fn take(&self, least: usize) -> Vec<FinishedSpan> {
        let mut state = self.lock();
        if state.spans.len() < least {
            return Vec::new();
        }
        let count = state.spans.len().min(self.batch_size);
        let spans: Vec<_> = state.spans.drain(..count).collect();
        state.stats.in_flight += spans.len() as u64;
        spans
    }

    pub(super) const fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Says what became of `count` spans that were in flight.
    pub(super) fn settle(&self, count: u64, fate: Fate) {
        let mut state = self.lock();
        let stats = &mut state.stats;
        stats.in_flight = stats.in_flight.saturating_sub(count);
        match fate {
            Fate::Exported { rejected } => {
                let rejected = rejected.min(count);
                stats.exported += count - rejected;
                stats.dropped_rejected += rejected;
            }
            Fate::Failed => stats.dropped_failed += count,
        }
    }

    /// Takes no more spans.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Gives up what is still queued or in flight, and says how much that was.
    pub(super) fn abandon(&self) -> u64 {
        let mut state = self.lock();
        let lost = state.spans.len() as u64 + state.stats.in_flight;
        state.spans.clear();
        state.stats.in_flight = 0;
        state.stats.dropped_shutdown += lost;
        lost
    }

    pub(super) fn stats(&self) -> ExportStats {
        let state = self.lock();
        ExportStats { queued: state.spans.len() as u64, ..state.stats }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_receiver::span;
    use super::*;

    fn queue(capacity: usize, batch_size: usize) -> Queue {
        Queue::new(&BatchConfig {
            max_queue_size: capacity,
            max_export_batch_size: batch_size,
            schedule_delay: Duration::from_secs(3600),
            ..BatchConfig::default()
        })
    }

    fn names(spans: &[FinishedSpan]) -> Vec<&str> {
        spans.iter().map(|span| span.data.name.as_ref()).collect()
    }

    #[test]
    fn the_oldest_is_dropped() {
        let queue = queue(3, 2);
        for name in ["a", "b", "c", "d", "e"] {
            queue.push(span("shop", name));
        }
        assert_eq!(queue.stats(), ExportStats { queued: 3, dropped_queue_full: 2, ..Default::default() });
        assert_eq!(names(&queue.take(1)), ["c", "d"]);
        assert_eq!(queue.take(2).len(), 0);
        assert_eq!(names(&queue.take(1)), ["e"]);
    }

    #[test]
    fn every_span_is_counted_once() {
        let queue = queue(10, 4);
        for _ in 0..10 {
            queue.push(span("shop", "x"));
        }
        let count = queue.take(4).len() as u64;
        queue.settle(count, Fate::Exported { rejected: 1 });
        let count = queue.take(4).len() as u64;
        assert_eq!(queue.stats().in_flight, 4);
        queue.settle(count, Fate::Failed);
        queue.close();
        queue.push(span("shop", "late"));
        assert_eq!(queue.abandon(), 2);
        let expected = ExportStats {
            exported: 3,
            dropped_rejected: 1,
            dropped_failed: 4,
            dropped_shutdown: 3,
            ..Default::default()
        };
        assert_eq!(queue.stats(), expected);
        assert_eq!(expected.dropped(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_leaves_when_it_is_full_or_old_or_the_last() {
        let queue = queue(10, 2);
        queue.push(span("shop", "a"));
        let start = Instant::now();
        assert_eq!(queue.wait().await, Wake::Elapsed);
        assert_eq!(start.elapsed().as_secs(), 3600);
        queue.push(span("shop", "b"));
        assert_eq!(queue.wait().await, Wake::Full);
        assert_eq!(start.elapsed().as_secs(), 3600);
        queue.take(1);
        queue.close();
        assert_eq!(queue.wait().await, Wake::Closed);
    }
}
