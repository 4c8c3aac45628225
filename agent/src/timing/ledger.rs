//! The accounts of requests: what their shares add up to, and what they waited for.

use std::sync::Arc;

use pitviper_ebpf::abi::Times;
use rustc_hash::FxHashMap;

use crate::causality::ExchangeKey;

/// Waits that are kept of one request; the time of further ones counts as "other".
const MOST_WAITS: usize = 1024;
/// Open accounts; beyond it new requests have none.
const MOST_LEDGERS: usize = 65_536;

/// A time in which a peer's answer was outstanding. CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The question was sent.
    pub from: u64,
    /// The answer was there.
    pub to: u64,
    /// Whose.
    pub peer: Arc<str>,
}

/// The wall time of a request. Nanoseconds; the parts, `other` included, add up to the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// On a CPU.
    pub cpu: u64,
    /// Ready, in the queue for a CPU.
    pub queued: u64,
    /// Waiting for the interpreter's lock.
    pub gil: u64,
    /// With nothing of the above, and at least one answer outstanding.
    pub sockets: u64,
    /// The same by peer, the longest first.
    pub peers: Vec<(Arc<str>, u64)>,
    /// The rest: sleeping, locks, files, other tasks on the event loop.
    pub other: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    times: Times,
    waits: Vec<Wait>,
}

/// The accounts of all open requests.
#[derive(Debug, Default)]
pub struct Ledgers {
    open: FxHashMap<ExchangeKey, Ledger>,
}

impl Ledgers {
    /// A request begins.
    pub fn open(&mut self, request: ExchangeKey) {
        if self.open.len() < MOST_LEDGERS {
            self.open.insert(request, Ledger::default());
        }
    }

    /// A piece of a thread's time was a request's.
    pub fn spent(&mut self, request: ExchangeKey, times: Times) {
        if let Some(Ledger { times: sum, .. }) = self.open.get_mut(&request) {
            sum.cpu += times.cpu;
            sum.queued += times.queued;
            sum.gil += times.gil;
        }
    }

    /// A request waited.
    pub fn waited(&mut self, request: ExchangeKey, wait: Wait) {
        if let Some(Ledger { waits, .. }) = self.open.get_mut(&request)
            && waits.len() < MOST_WAITS
        {
            waits.push(wait);
        }
    }

    /// A request is over, or given up: the split of its time, if it has an account.
    pub fn close(&mut self, request: ExchangeKey, from: u64, to: u64) -> Option<Split> {
        self.open.remove(&request).map(|ledger| split(ledger, from, to))
    }
}

/// The parts are cut to what is left of the wall time, in their order: several threads may have been at work at once.
fn split(Ledger { times, waits }: Ledger, from: u64, to: u64) -> Split {
    let mut left = to.saturating_sub(from);
    let mut take = |wanted: u64| {
        let taken = wanted.min(left);
        left -= taken;
        taken
    };
    let (cpu, queued, gil) = (take(times.cpu), take(times.queued), take(times.gil));
    let (outstanding, mut peers) = outstanding(&waits, from, to);
    let sockets = take(outstanding);
    for (_, time) in &mut peers {
        let share = u128::from(*time) * u128::from(sockets) / u128::from(outstanding.max(1));
        *time = u64::try_from(share).unwrap_or(u64::MAX);
    }
    peers.retain(|(_, time)| *time > 0);
    peers.sort_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
    Split { cpu, queued, gil, sockets, peers, other: left }
}

/// How long at least one answer was outstanding, in all and by peer; where several were, each has its part.
fn outstanding(waits: &[Wait], from: u64, to: u64) -> (u64, Vec<(Arc<str>, u64)>) {
    let mut edges: Vec<(u64, bool, usize)> = Vec::new();
    for (index, wait) in waits.iter().enumerate() {
        let (begin, end) = (wait.from.max(from), wait.to.min(to));
        if begin < end {
            edges.push((begin, true, index));
            edges.push((end, false, index));
        }
    }
    edges.sort_unstable();
    let mut all = 0;
    let mut peers: Vec<(Arc<str>, u64)> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut since = from;
    for (time, begins, index) in edges {
        let passed = time - since;
        if !open.is_empty() {
            all += passed;
            for wait in open.iter().filter_map(|open| waits.get(*open)) {
                let part = passed / open.len() as u64;
                match peers.iter_mut().find(|(peer, _)| *peer == wait.peer) {
                    Some((_, time)) => *time += part,
                    None => peers.push((Arc::clone(&wait.peer), part)),
                }
            }
        }
        since = time;
        if begins {
            open.push(index);
        } else {
            open.retain(|other| *other != index);
        }
    }
    (all, peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_of(times: Times, waits: &[(u64, u64, &str)]) -> (Split, u64) {
        let mut ledgers = Ledgers::default();
        ledgers.open(1);
        ledgers.spent(1, times);
        for &(from, to, peer) in waits {
            ledgers.waited(1, Wait { from, to, peer: peer.into() });
        }
        let split = ledgers.close(1, 1000, 2000).unwrap();
        let Split { cpu, queued, gil, sockets, other, .. } = split;
        (split, cpu + queued + gil + sockets + other)
    }

    fn peers(split: &Split) -> Vec<(&str, u64)> {
        split.peers.iter().map(|(peer, time)| (&**peer, *time)).collect()
    }

    #[test]
    fn the_parts_make_the_whole() {
        let times = Times { cpu: 200, queued: 50, gil: 30 };
        let (split, sum) = split_of(times, &[(1100, 1300, "pg"), (1200, 1400, "redis"), (1900, 2500, "pg")]);
        assert_eq!(sum, 1000);
        assert_eq!((split.sockets, split.other), (400, 320));
        assert_eq!(peers(&split), [("pg", 250), ("redis", 150)]);
    }

    #[test]
    fn overlaps_are_cut() {
        let (split, sum) = split_of(Times { cpu: 900, queued: 300, gil: 5 }, &[(0, 9000, "pg")]);
        assert_eq!(sum, 1000);
        assert_eq!((split.cpu, split.queued, split.gil, split.sockets), (900, 100, 0, 0));
        assert!(split.peers.is_empty());
        let (split, _) = split_of(Times { cpu: 500, ..Times::default() }, &[(0, 9000, "a"), (0, 9000, "b")]);
        assert_eq!((split.sockets, split.other), (500, 0));
        assert_eq!(peers(&split), [("a", 250), ("b", 250)]);
    }

    #[test]
    fn unknown_requests_have_no_split() {
        let mut ledgers = Ledgers::default();
        ledgers.spent(7, Times { cpu: 1, ..Times::default() });
        assert_eq!(ledgers.close(7, 0, 1), None);
    }
}
