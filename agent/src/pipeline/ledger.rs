//! What the stages counted of each process, put together for a [`Report`].
//!
//! A process's counts are given up once its last spans have left, some time after its end. Until somebody asks, what is
//! left of it is kept here, so that the last counts of a short-lived process are told once.

use std::collections::VecDeque;

use pitviper_ebpf::abi::Counter;
use rustc_hash::FxHashMap;

use super::Stats;
use super::targets::Tracked;
use crate::causality::{self, Kind, Tally};
use crate::connection::Losses;
use crate::process::ps::Tier;
use crate::telemetry::ProcessReport;
use crate::telemetry::report::{Counts, LoopLag};
use crate::trace::assembly::Links;

/// Processes that have departed and are not told yet; beyond it the oldest is forgotten.
const MOST_DEPARTED: usize = 1024;

/// What was counted of one process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub(super) links: Links,
    pub(super) causality: causality::Stats,
    pub(super) waiting: u64,
    pub(super) losses: Losses,
    pub(super) lag: LoopLag,
}

/// The accounts of processes that are no more.
#[derive(Default)]
pub(super) struct Ledger {
    /// Ended, but spans may follow.
    ended: FxHashMap<u32, causality::Stats>,
    departed: VecDeque<ProcessReport>,
}

impl Ledger {
    /// A process has ended, and the causality stage has forgotten it.
    pub(super) fn ended(&mut self, pid: u32, stats: &causality::Stats) {
        self.ended.entry(pid).or_default().add(stats);
    }

    /// What the causality stage counted of a process before it ended, if it has.
    pub(super) fn before_end(&self, pid: u32) -> causality::Stats {
        self.ended.get(&pid).copied().unwrap_or_default()
    }

    /// No more spans of the process will come.
    pub(super) fn departed(&mut self, pid: u32, service: &str, account: &Account) {
        self.ended.remove(&pid);
        if self.departed.len() >= MOST_DEPARTED {
            self.departed.pop_front();
        }
        self.departed.push_back(ProcessReport { departed: true, ..account.report(pid, service) });
    }

    /// Forgets all ended processes but the known ones.
    pub(super) fn retain(&mut self, mut known: impl FnMut(u32) -> bool) {
        self.ended.retain(|pid, _| known(*pid));
    }

    /// The last word on each process that has departed since the last call.
    pub(super) fn take_departed(&mut self) -> Vec<ProcessReport> {
        self.departed.drain(..).collect()
    }
}

impl Account {
    /// Of a process that has ended.
    pub(super) fn report(&self, pid: u32, service: &str) -> ProcessReport {
        let Self { links, causality, waiting, losses, lag } = self;
        let Losses { foreign, gaps } = *losses;
        ProcessReport {
            pid,
            service: service.to_owned(),
            python: None,
            tier: None,
            why: None,
            departed: false,
            edges: counts(&links.edges),
            orphans: counts(&links.orphans),
            roots: links.roots,
            waiting: *waiting,
            conflicts: causality.conflicts,
            amnesias: causality.amnesias,
            overdue: causality.overdue,
            foreign_connections: foreign,
            gaps,
            lag: *lag,
        }
    }

    /// Of a process that is traced.
    pub(super) fn report_tracked(&self, tracked: &Tracked) -> ProcessReport {
        let Tracked { pid, service, version, limit } = tracked;
        let tier = if limit.is_some() { Tier::Thread } else { Tier::Full };
        ProcessReport {
            python: Some(version.to_string()),
            tier: Some(tier.to_string()),
            why: limit.clone(),
            ..self.report(*pid, service)
        }
    }
}

fn counts<K: Kind>(tally: &Tally<K>) -> Counts {
    named(tally.iter().map(|(kind, count)| (kind.name(), count)))
}

fn named<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> Counts {
    let some = counts.into_iter().filter(|(_, count)| *count > 0);
    some.map(|(name, count)| (name.to_owned(), count)).collect()
}

/// Losses that cannot be put down to one process, by reason.
pub(super) fn lost(stats: &Stats) -> Counts {
    named([
        ("socket_calls_ring_full", stats.kernel(Counter::RingFullData)),
        ("context_copies_ring_full", stats.kernel(Counter::RingFullContext)),
        ("lifecycle_ring_full", stats.kernel(Counter::RingFullLifecycle)),
        ("user_memory_unreadable", stats.kernel(Counter::UserReadFailed)),
        ("kernel_memory_unreadable", stats.kernel(Counter::KernelReadFailed)),
        ("map_update_failed", stats.kernel(Counter::MapUpdateFailed)),
        ("not_understood", stats.unknown_records),
        ("connection_evicted", stats.connections.evicted),
    ])
}

/// Connections by protocol.
pub(super) fn connections(stats: &Stats) -> Counts {
    let [http, postgres, redis] = stats.connections.recognised;
    named([("http", http), ("postgresql", postgres), ("redis", redis), ("none", stats.connections.foreign)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causality::Orphan;

    #[test]
    fn the_departed_are_told_once_and_bounded() {
        let mut ledger = Ledger::default();
        let mut stats = causality::Stats { conflicts: 2, ..Default::default() };
        stats.orphans.count(Orphan::Unrelated);
        ledger.ended(7, &stats);
        // Spans may still come, and the pid may end again before they have.
        ledger.ended(7, &stats);
        assert_eq!(ledger.before_end(7).conflicts, 4);
        let account = Account { causality: ledger.before_end(7), ..Account::default() };
        ledger.departed(7, "shop", &account);
        assert_eq!(ledger.before_end(7), causality::Stats::default());
        let told = ledger.take_departed();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].pid, told[0].service.as_str(), told[0].conflicts), (7, "shop", 4));
        assert!(told[0].departed && told[0].tier.is_none());
        assert!(ledger.take_departed().is_empty());

        for pid in 0..MOST_DEPARTED as u32 + 5 {
            ledger.ended(pid, &stats);
            ledger.departed(pid, "shop", &account);
        }
        let told = ledger.take_departed();
        assert_eq!((told.len(), told[0].pid), (MOST_DEPARTED, 5));
        ledger.ended(1, &stats);
        ledger.retain(|_| false);
        assert_eq!(ledger.before_end(1), causality::Stats::default());
    }
}
