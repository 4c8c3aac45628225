//! Why a span has the parent that it has, or why it has none; and the counts of both.
//!
//! A new kind of evidence is a variant, its place in `ALL` and its name in `as_str`: what is counted, printed and
//! exported follows by itself. The names are part of what users see; the README explains each.

use std::fmt;
use std::marker::PhantomData;

/// Why a span has its parent. Those from `Response` on are the owner rule's; the others are above server spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// The request's own headers name the parent.
    Header,
    /// The same bytes of the same connection were sent by another observed process.
    Connection,
    /// It runs a task whose message another span sent.
    Message,
    /// Its context, or the one that it was branched from, wrote the response.
    Response,
    /// Its context was branched off when the request was read, and the response confirmed it or never came.
    Reading,
    /// Its thread, which runs no event loop, had read the request and not finished it.
    Thread,
    /// The work was handed over: its thread had taken it as an item of a thread pool, or its thread or greenlet was started for
    /// it.
    Handover,
    /// Its thread takes jobs one at a time, and had taken this one and not given its result back.
    Job,
}

impl Evidence {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Header,
        Self::Connection,
        Self::Message,
        Self::Response,
        Self::Reading,
        Self::Thread,
        Self::Handover,
        Self::Job,
    ];

    /// Its name in the span attribute, in metrics and in `pitviper ps`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Connection => "connection",
            Self::Message => "message",
            Self::Response => "response",
            Self::Reading => "context",
            Self::Thread => "thread",
            Self::Handover => "handover",
            Self::Job => "job",
        }
    }
}

/// Why a client span has no parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Orphan {
    /// Neither its context nor its thread has to do with a request: work of the process's own, or a hand-over that
    /// leaves no trace.
    Unrelated,
    /// It was done by an event-loop thread outside every context, where anybody's callbacks run.
    OutsideContext,
    /// Several requests could have caused it.
    Ambiguous,
    /// The request in its lineage was over for long.
    LongOver,
    /// Its context answers one request after the other, and was between two of them.
    Leftover,
    /// Its context, or one above it, was made by another that was done with its own work, as a client library's queue is
    /// served: the call may be anybody's.
    HandedOn,
    /// Its context worked on after the request in its lineage and did not end, while others were served: a task that works
    /// for everybody. Or it is work that was handed over, as to a thread, and did not end with the request.
    Outlived,
    /// Its request is known, but has no span: its bytes were lost, its end was not seen, or it was forgotten.
    ParentLost,
}

impl Orphan {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Unrelated,
        Self::OutsideContext,
        Self::Ambiguous,
        Self::LongOver,
        Self::Leftover,
        Self::HandedOn,
        Self::Outlived,
        Self::ParentLost,
    ];

    /// Its name in the span attribute, in metrics and in `pitviper ps`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unrelated => "unrelated",
            Self::OutsideContext => "outside_context",
            Self::Ambiguous => "ambiguous",
            Self::LongOver => "long_over",
            Self::Leftover => "leftover",
            Self::HandedOn => "handed_on",
            Self::Outlived => "outlived",
            Self::ParentLost => "parent_lost",
        }
    }
}

/// A closed set of kinds that are counted, each with a name.
pub trait Kind: Copy + Eq + 'static {
    /// All of them, at most [`MOST_KINDS`].
    const KINDS: &'static [Self];

    /// Its name.
    fn name(self) -> &'static str;
}

impl Kind for Evidence {
    const KINDS: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.as_str()
    }
}

impl Kind for Orphan {
    const KINDS: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.as_str()
    }
}

/// Room of a [`Tally`].
const MOST_KINDS: usize = 16;
const _: () = assert!(Evidence::ALL.len() <= MOST_KINDS && Orphan::ALL.len() <= MOST_KINDS);

/// How often each kind occurred.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tally<K> {
    counts: [u64; MOST_KINDS],
    kind: PhantomData<K>,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self { counts: [0; MOST_KINDS], kind: PhantomData }
    }
}

impl<K: Kind> Tally<K> {
    /// One more.
    pub fn count(&mut self, kind: K) {
        let counted = self.counts.iter_mut().zip(K::KINDS).find(|(_, known)| **known == kind);
        if let Some((count, _)) = counted {
            *count += 1;
        }
    }

    /// Each kind and how often it occurred.
    pub fn iter(&self) -> impl Iterator<Item = (K, u64)> {
        K::KINDS.iter().copied().zip(self.counts)
    }

    /// Of all kinds together.
    pub fn sum(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }
}

impl<K: Kind> fmt::Debug for Tally<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(kind, count)| (kind.name(), count))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_in_its_place() {
        let mut edges = Tally::default();
        for evidence in Evidence::ALL {
            edges.count(evidence);
        }
        edges.count(Evidence::Thread);
        let expected = Evidence::ALL.map(|kind| (kind, if kind == Evidence::Thread { 2 } else { 1 }));
        assert_eq!(edges.iter().collect::<Vec<_>>(), expected);
        let mut twice = edges;
        twice.add(&edges);
        assert_eq!(twice.sum(), 2 * edges.sum());
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Evidence::ALL.map(Evidence::as_str).into();
        names.extend(Orphan::ALL.map(Orphan::as_str));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
