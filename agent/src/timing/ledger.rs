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
    /// Of that, work of which some may have been the request's.
    pub unsure: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    pieces: Vec<Piece>,
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
        let Some(Ledger { pieces, full, .. }) = self.open.get_mut(&request) else { return };
        *full |= pieces.len() + bucket.pieces.len() > MOST_ENTRIES;
        if !*full {
            pieces.extend(bucket.pieces);
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

    /// A request is over: the split of its time, if it was seen at work.
    pub fn close(&mut self, request: ExchangeKey, from: u64, to: u64) -> Option<Split> {
        let Ledger { pieces, waits, full } = self.open.remove(&request)?;
        let (mut times, mut unsure, mut seen) = (Times::default(), 0, false);
        for piece in &pieces {
            // What was done before the request, or after the answer, is no part of the span.
            if piece.certain {
                let within = piece.within(from, to);
                seen |= sum(within) > 0;
                times.cpu += within.cpu;
                times.queued += within.queued;
                times.gil += within.gil;
            } else {
                unsure += piece.busy().min(piece.overlap(from, to));
            }
        }
        (!full && (seen || unsure > 0)).then(|| split(times, unsure, &pieces, &waits, from, to))
    }
}

/// The parts are cut to what is left of the wall time, in their order: several threads may have been at work at once.
fn split(times: Times, unsure: u64, pieces: &[Piece], waits: &[Wait], from: u64, to: u64) -> Split {
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
    Split { cpu, queued, gil, sockets, peers, other: left, unsure: unsure.min(left) }
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

/// How much of the certain work was done in these times; of a piece that is only partly inside, its part.
fn busy_within(pieces: &[Piece], times: &[(u64, u64)]) -> u64 {
    let within = |piece: &Piece| {
        let overlap: u64 =
            times.iter().map(|(from, to)| piece.to.min(*to).saturating_sub(piece.from.max(*from))).sum();
        let length = u128::from(piece.to.saturating_sub(piece.from).max(1));
        u64::try_from(u128::from(piece.busy()) * u128::from(overlap) / length).unwrap_or(u64::MAX)
    };
    pieces.iter().filter(|piece| piece.certain).map(within).sum()
}

#[cfg(test)]
mod tests {
    use super::super::buckets::Buckets;
    use super::super::threads::Share;
    use super::*;
    use crate::causality::Moment;
    use pitviper_ebpf::abi::Task;

    fn bucket(times: Times, span: (u64, u64), certain: bool) -> Bucket {
        let mut buckets = Buckets::default();
        let at = Moment { pid: 1, ktime_ns: span.1, task: Task { tid: 1, turn: 0, context: 16 } };
        buckets.add(&Share { at, span, times, certain });
        buckets.of_process(1).remove(0)
    }

    fn split_of(work: &[(Times, (u64, u64), bool)], waits: &[(u64, u64, &str)]) -> (Split, u64) {
        let mut ledgers = Ledgers::default();
        ledgers.open(1);
        for &(times, span, certain) in work {
            ledgers.spent(1, bucket(times, span, certain));
        }
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
        let (split, sum) = split_of(&[(times, (1400, 1700), true)], &waits);
        assert_eq!(sum, 1000);
        assert_eq!((split.sockets, split.other), (400, 320));
        assert_eq!(peers(&split), [("pg", 250), ("redis", 150)]);
    }

    #[test]
    fn work_while_an_answer_is_outstanding_is_no_wait() {
        let (split, sum) =
            split_of(&[(Times { cpu: 100, ..Times::default() }, (1200, 1300), true)], &[(1100, 1400, "pg")]);
        assert_eq!(sum, 1000);
        assert_eq!((split.cpu, split.sockets, split.other), (100, 200, 700));
    }

    #[test]
    fn overlaps_are_cut() {
        let work = |cpu, queued| (Times { cpu, queued, gil: 5 }, (1000, 2000), true);
        let (split, sum) = split_of(&[work(500, 200), work(400, 100)], &[(0, 9000, "pg")]);
        assert_eq!(sum, 1000);
        assert_eq!((split.cpu, split.queued, split.gil, split.sockets), (900, 100, 0, 0));
        assert!(split.peers.is_empty());
    }

    #[test]
    fn what_is_not_certain_is_counted_to_the_rest() {
        let times = Times { cpu: 100, ..Times::default() };
        let work = [(times, (1200, 1300), true), (times, (1300, 1400), false), (times, (1950, 2050), true)];
        let (split, sum) = split_of(&work, &[]);
        assert_eq!((sum, split.cpu, split.other, split.unsure), (1000, 150, 850, 100));
    }

    #[test]
    fn what_was_not_seen_at_work_has_no_split() {
        let mut ledgers = Ledgers::default();
        let times = Times { cpu: 50, ..Times::default() };
        ledgers.spent(7, bucket(times, (0, 50), true));
        assert_eq!(ledgers.close(7, 0, 1), None, "unknown");
        ledgers.open(1);
        ledgers.spent(1, bucket(times, (0, 50), true));
        assert_eq!(ledgers.close(1, 50, 100), None, "before it");
    }
}
