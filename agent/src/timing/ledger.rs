//! The accounts of requests: what their pieces of time add up to, and what they waited for.

use std::sync::Arc;

use pitviper_ebpf::abi::Times;
use rustc_hash::FxHashMap;

use super::buckets::{Bucket, Piece};
use super::threads::sum;
use crate::causality::ExchangeKey;

/// Waits and pieces that are kept of one request; a request with more of them has no split.
const MOST_ENTRIES: usize = 4096;
/// Open accounts; beyond it new requests have none.
const MOST_LEDGERS: usize = 65_536;
/// A split is given only if less than this part of the wall time, or less than so many nanoseconds, is in doubt.
const DOUBT_PART: u64 = 10;
const DOUBT_NS: u64 = 1_000_000;

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
    buckets: Vec<Bucket>,
    /// Pieces in them.
    pieces: usize,
    waits: Vec<Wait>,
    /// There was more than is kept.
    full: bool,
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

    /// Time of a thread was a request's.
    pub fn spent(&mut self, request: ExchangeKey, bucket: Bucket) {
        let Some(Ledger { buckets, pieces, full, .. }) = self.open.get_mut(&request) else { return };
        *pieces += bucket.pieces.len() + 1;
        *full |= *pieces > MOST_ENTRIES;
        if !*full {
            buckets.push(bucket);
        }
    }

    /// A request waited.
    pub fn waited(&mut self, request: ExchangeKey, wait: Wait) {
        let Some(Ledger { waits, full, .. }) = self.open.get_mut(&request) else { return };
        *full |= waits.len() >= MOST_ENTRIES;
        if !*full {
            waits.push(wait);
        }
    }

    /// A request turned out to be none.
    pub fn discard(&mut self, request: ExchangeKey) {
        self.open.remove(&request);
    }

    /// A request is over: the split of its time, if that is known well enough.
    pub fn close(&mut self, request: ExchangeKey, from: u64, to: u64) -> Option<Split> {
        let Ledger { buckets, pieces: _, waits, full } = self.open.remove(&request)?;
        let (mut times, mut doubt, mut pieces) = (Times::default(), 0, Vec::new());
        // What was done after the answer is no part of the span.
        for bucket in buckets.into_iter().filter(|bucket| bucket.begun_ns < to) {
            times.cpu += bucket.times.cpu;
            times.queued += bucket.times.queued;
            times.gil += bucket.times.gil;
            // What began before the request may be of the one before.
            doubt += if bucket.begun_ns < from { sum(bucket.times) } else { bucket.doubt };
            pieces.extend(bucket.pieces);
        }
        let doubtful = doubt > (to.saturating_sub(from) / DOUBT_PART).max(DOUBT_NS);
        // A request that took no time on any thread was not seen at work.
        let unseen = times == Times::default();
        (!full && !doubtful && !unseen).then(|| split(times, &pieces, &waits, from, to))
    }
}

/// The parts are cut to what is left of the wall time, in their order: several threads may have been at work at once.
fn split(times: Times, pieces: &[Piece], waits: &[Wait], from: u64, to: u64) -> Split {
    let mut left = to.saturating_sub(from);
    let mut take = |wanted: u64| {
        let taken = wanted.min(left);
        left -= taken;
        taken
    };
    let (cpu, queued, gil) = (take(times.cpu), take(times.queued), take(times.gil));
    let Outstanding { all, mut peers, gaps } = outstanding(waits, from, to);
    let sockets = take(all.saturating_sub(busy_within(pieces, &gaps)));
    for (_, time) in &mut peers {
        let share = u128::from(*time) * u128::from(sockets) / u128::from(all.max(1));
        *time = u64::try_from(share).unwrap_or(u64::MAX);
    }
    peers.retain(|(_, time)| *time > 0);
    peers.sort_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
    Split { cpu, queued, gil, sockets, peers, other: left }
}

/// When answers were outstanding.
#[derive(Default)]
struct Outstanding {
    /// How long at least one was.
    all: u64,
    /// The same by peer; where several were, each has its part.
    peers: Vec<(Arc<str>, u64)>,
    /// From when until when, in order and without overlaps.
    gaps: Vec<(u64, u64)>,
}

fn outstanding(waits: &[Wait], from: u64, to: u64) -> Outstanding {
    let mut edges: Vec<(u64, bool, usize)> = Vec::new();
    for (index, wait) in waits.iter().enumerate() {
        let (begin, end) = (wait.from.max(from), wait.to.min(to));
        if begin < end {
            edges.push((begin, true, index));
            edges.push((end, false, index));
        }
    }
    edges.sort_unstable();
    let Outstanding { mut all, mut peers, mut gaps } = Outstanding::default();
    let mut open: Vec<usize> = Vec::new();
    let mut since = from;
    for (time, begins, index) in edges {
        let passed = time - since;
        if !open.is_empty() && passed > 0 {
            all += passed;
            match gaps.last_mut() {
                Some((_, end)) if *end == since => *end = time,
                _ => gaps.push((since, time)),
            }
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
    Outstanding { all, peers, gaps }
}

/// How much of the work was done in these times; of a piece that is only partly inside, its part.
fn busy_within(pieces: &[Piece], times: &[(u64, u64)]) -> u64 {
    let within = |piece: &Piece| {
        let overlap: u64 =
            times.iter().map(|(from, to)| piece.to.min(*to).saturating_sub(piece.from.max(*from))).sum();
        let length = u128::from(piece.to.saturating_sub(piece.from).max(1));
        u64::try_from(u128::from(piece.busy) * u128::from(overlap) / length).unwrap_or(u64::MAX)
    };
    pieces.iter().map(within).sum()
}

#[cfg(test)]
mod tests {
    use super::super::buckets::Buckets;
    use super::super::threads::Share;
    use super::*;
    use crate::causality::Moment;
    use pitviper_ebpf::abi::Task;

    fn bucket(times: Times, span: (u64, u64), doubt: u64) -> Bucket {
        let mut buckets = Buckets::default();
        let at = Moment { pid: 1, ktime_ns: span.1, task: Task { tid: 1, turn: 0, context: 16 } };
        buckets.add(&Share { at, span, times, doubt });
        buckets.of_process(1).remove(0)
    }

    fn split_of(times: Times, span: (u64, u64), waits: &[(u64, u64, &str)]) -> (Split, u64) {
        let mut ledgers = Ledgers::default();
        ledgers.open(1);
        ledgers.spent(1, bucket(times, span, 0));
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
        let waits = [(1100, 1300, "pg"), (1200, 1400, "redis"), (1900, 2500, "pg")];
        let (split, sum) = split_of(times, (1400, 1700), &waits);
        assert_eq!(sum, 1000);
        assert_eq!((split.sockets, split.other), (400, 320));
        assert_eq!(peers(&split), [("pg", 250), ("redis", 150)]);
    }

    #[test]
    fn work_while_an_answer_is_outstanding_is_no_wait() {
        let (split, sum) =
            split_of(Times { cpu: 100, ..Times::default() }, (1200, 1300), &[(1100, 1400, "pg")]);
        assert_eq!(sum, 1000);
        assert_eq!((split.cpu, split.sockets, split.other), (100, 200, 700));
    }

    #[test]
    fn overlaps_are_cut() {
        let times = Times { cpu: 900, queued: 300, gil: 5 };
        let (split, sum) = split_of(times, (0, 9000), &[(0, 9000, "pg")]);
        assert_eq!(sum, 1000);
        assert_eq!((split.cpu, split.queued, split.gil, split.sockets), (900, 100, 0, 0));
        assert!(split.peers.is_empty());
    }

    #[test]
    fn what_is_not_known_well_has_no_split() {
        let mut ledgers = Ledgers::default();
        let times = Times { cpu: 5_000_000, ..Times::default() };
        ledgers.spent(7, bucket(times, (0, 5_000_000), 0));
        assert_eq!(ledgers.close(7, 0, 1), None, "unknown");
        let close = |doubt, to| {
            let mut ledgers = Ledgers::default();
            ledgers.open(1);
            ledgers.spent(1, bucket(times, (0, 5_000_000), doubt));
            ledgers.close(1, 0, to)
        };
        assert!(close(900_000, 6_000_000).is_some());
        assert!(close(1_100_000, 6_000_000).is_none());
        assert!(close(1_100_000, 60_000_000).is_some());
        ledgers.open(2);
        assert_eq!(ledgers.close(2, 0, 1_000_000), None, "not seen at work");
    }
}
