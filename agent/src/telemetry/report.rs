//! What the daemon knows of its own work, by process, and the document in which it tells it.
//!
//! The document is JSON. Its `format` grows when a field changes its meaning; new fields may come without that, and a
//! reader ignores what it does not know. Counts run from the daemon's start.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The format of this version.
pub const FORMAT: u32 = 1;

/// Counts by name, without those that are 0.
pub type Counts = BTreeMap<String, u64>;

/// One daemon's report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// See the module.
    pub format: u32,
    /// The daemon's pid.
    pub daemon: u32,
    /// The daemon's version.
    pub version: String,
    /// The processes that it traces.
    pub processes: Vec<ProcessReport>,
    /// What was lost, of whatever process, by reason.
    #[serde(default)]
    pub lost: Counts,
    /// Connections by protocol.
    #[serde(default)]
    pub connections: Counts,
    /// Spans that are not exported because their trace is not sampled.
    #[serde(default)]
    pub unsampled: u64,
}

/// What was learnt of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessReport {
    /// The kernel's tgid.
    pub pid: u32,
    /// `service.name`
    pub service: String,
    /// The CPython's version; `None` when the process has ended.
    pub python: Option<String>,
    /// How well it is traced, as `pitviper ps` names it; `None` when the process has ended.
    pub tier: Option<String>,
    /// If not fully, why.
    pub why: Option<String>,
    /// It has ended, and these are its last counts, told once.
    pub departed: bool,
    /// Spans with a parent, by evidence.
    pub edges: Counts,
    /// Client spans without a parent, by reason.
    pub orphans: Counts,
    /// Server spans that begin a trace.
    pub roots: u64,
    /// Client operations that wait for their evidence.
    pub waiting: u64,
    /// Times that a response refuted what the reading of the request had suggested.
    pub conflicts: u64,
    /// Times that all lineage was forgotten.
    pub amnesias: u64,
    /// Operations that were settled before all evidence was in.
    pub overdue: u64,
    /// Connections that are encrypted or speak no known protocol.
    pub foreign_connections: u64,
    /// Times that bytes of a connection were lost.
    pub gaps: u64,
    /// Long turns of its event loops.
    pub lag: LoopLag,
}

/// Turns of event loops that took longer than the threshold: everything else on the loop waited for so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoopLag {
    /// How many.
    pub turns: u64,
    /// How long they took together, nanoseconds.
    pub time_ns: u64,
    /// How long the longest took, nanoseconds.
    pub longest_ns: u64,
}

impl LoopLag {
    /// A turn took so many nanoseconds.
    pub fn count(&mut self, duration_ns: u64) {
        self.add(&Self { turns: 1, time_ns: duration_ns, longest_ns: duration_ns });
    }

    fn add(&mut self, other: &Self) {
        let Self { turns, time_ns, longest_ns } = self;
        *turns += other.turns;
        *time_ns += other.time_ns;
        *longest_ns = (*longest_ns).max(other.longest_ns);
    }
}

impl Report {
    /// An empty one of the daemon with this pid.
    pub fn new(daemon: u32) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, daemon, version, ..Self::default() }
    }
}

impl ProcessReport {
    /// Adds the counts of another process, to sum up processes that are not told apart.
    pub fn absorb(&mut self, other: &Self) {
        let Self {
            pid: _,
            service: _,
            python: _,
            tier: _,
            why: _,
            departed: _,
            edges,
            orphans,
            roots,
            waiting,
            conflicts,
            amnesias,
            overdue,
            foreign_connections,
            gaps,
            lag,
        } = self;
        lag.add(&other.lag);
        for (counts, more) in [(edges, &other.edges), (orphans, &other.orphans)] {
            for (name, count) in more {
                *counts.entry(name.clone()).or_default() += count;
            }
        }
        for (count, more) in [
            (roots, other.roots),
            (waiting, other.waiting),
            (conflicts, other.conflicts),
            (amnesias, other.amnesias),
            (overdue, other.overdue),
            (foreign_connections, other.foreign_connections),
            (gaps, other.gaps),
        ] {
            *count += more;
        }
    }

    /// In words: a line on what is above its spans, and where something is missing, one on what and why.
    pub fn lines(&self) -> Vec<String> {
        let mut edges = format!("{} edges", grouped(sum(&self.edges)));
        append_kinds(&mut edges, &self.edges);
        let _ = write!(edges, "; {} orphans", grouped(sum(&self.orphans)));
        append_kinds(&mut edges, &self.orphans);
        let _ = write!(edges, "; {} conflicts", grouped(self.conflicts));
        if self.waiting > 0 {
            let _ = write!(edges, "; {} undecided", grouped(self.waiting));
        }
        let missing: Vec<String> = [
            (self.foreign_connections, "connections are encrypted or speak no known protocol"),
            (self.gaps, "times bytes of a connection were lost"),
            (self.amnesias, "times all lineage was forgotten, as context copies were lost"),
            (self.overdue, "operations were settled before all evidence was in"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(count)))
        .collect();
        let missing = (!missing.is_empty()).then(|| format!("missing: {}", missing.join("; ")));
        std::iter::once(edges).chain(missing).collect()
    }
}

/// Of all names together.
pub fn sum(counts: &Counts) -> u64 {
    counts.values().fold(0, |sum, count| sum.saturating_add(*count))
}

fn append_kinds(text: &mut String, counts: &Counts) {
    let mut kinds: Vec<_> = counts.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (index, (name, count)) in kinds.into_iter().enumerate() {
        let _ = write!(text, "{} {} {name}", if index == 0 { ":" } else { "," }, grouped(*count));
    }
}

/// With commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, u64)]) -> Counts {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn lines_tell_the_most_frequent_first() {
        let mut report = ProcessReport {
            edges: counts(&[("context", 1200), ("header", 30), ("response", 4100)]),
            ..ProcessReport::default()
        };
        let edges = "5,330 edges: 4,100 response, 1,200 context, 30 header";
        assert_eq!(report.lines(), [format!("{edges}; 0 orphans; 0 conflicts")]);
        report.orphans = counts(&[("unrelated", 12)]);
        report.conflicts = 1_234_567;
        report.waiting = 3;
        report.foreign_connections = 2;
        report.amnesias = 1;
        assert_eq!(
            report.lines(),
            [
                format!("{edges}; 12 orphans: 12 unrelated; 1,234,567 conflicts; 3 undecided"),
                "missing: 2 connections are encrypted or speak no known protocol; \
                 1 times all lineage was forgotten, as context copies were lost"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (u64::MAX, "18,446,744,073,709,551,615")]
        {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_later_versions_document_is_understood() {
        let text = r#"{"format": 1, "daemon": 7, "version": "9.9.9", "more": {},
            "processes": [{"pid": 8, "edges": {"telepathy": 5}, "new": []}]}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!(report.processes[0].lines(), ["5 edges: 5 telepathy; 0 orphans; 0 conflicts"]);
        let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(again, report);
    }
}
