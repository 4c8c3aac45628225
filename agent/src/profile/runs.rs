//! Samples of one task that nothing has come between are part of the same request: one question to the causality stage.
//!
//! A handler that computes for a second is sampled a hundred times, and does nothing else meanwhile that the kernel side
//! sees. What ends a run is anything that may change the answer: another record of its process, or the answer itself.

use pitviper_ebpf::abi::Task;
use rustc_hash::FxHashMap;

use crate::causality::{ExchangeKey, Moment};

/// A run is not longer than this: the causality stage bounds how long a question waits.
const LONGEST_NS: u64 = 1_000_000_000;

struct Run {
    task: Task,
    begun_ns: u64,
    key: ExchangeKey,
}

/// The runs that are going on, by process.
#[derive(Default)]
pub struct Runs {
    by_process: FxHashMap<u32, Vec<Run>>,
}

impl Runs {
    /// The question that a sample is part of, if it has been asked already.
    pub fn find(&self, at: &Moment) -> Option<ExchangeKey> {
        let same = |run: &&Run| run.task == at.task && at.ktime_ns.saturating_sub(run.begun_ns) < LONGEST_NS;
        Some(self.by_process.get(&at.pid)?.iter().find(same)?.key)
    }

    /// A sample that a question is asked for.
    pub fn begin(&mut self, at: &Moment, key: ExchangeKey) {
        let runs = self.by_process.entry(at.pid).or_default();
        runs.retain(|run| run.task.tid != at.task.tid);
        runs.push(Run { task: at.task, begun_ns: at.ktime_ns, key });
    }

    /// Something happened in a process.
    pub fn end(&mut self, pid: u32) {
        self.by_process.remove(&pid);
    }

    /// Something happened that may concern any process.
    pub fn end_all(&mut self) {
        self.by_process.clear();
    }

    /// A question has been answered: what comes later asks again.
    pub fn answered(&mut self, key: ExchangeKey) {
        self.by_process.retain(|_, runs| {
            runs.retain(|run| run.key != key);
            !runs.is_empty()
        });
    }
}
