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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ktime_ns: u64, tid: u32, context: u64) -> Moment {
        Moment { pid: 1, ktime_ns, task: Task { tid, turn: 1, context } }
    }

    #[test]
    fn a_run_is_one_task_without_anything_between() {
        let mut runs = Runs::default();
        assert_eq!(runs.find(&at(0, 1, 16)), None);
        runs.begin(&at(0, 1, 16), 7);
        runs.begin(&at(0, 2, 32), 8);
        assert_eq!(runs.find(&at(10, 1, 16)), Some(7));
        assert_eq!(runs.find(&at(10, 2, 32)), Some(8));
        assert_eq!(runs.find(&at(10, 1, 32)), None, "another context");
        assert_eq!(runs.find(&at(LONGEST_NS, 1, 16)), None, "too long");
        runs.begin(&at(20, 1, 32), 9);
        assert_eq!(runs.find(&at(30, 1, 16)), None, "the thread has done something else meanwhile");
        runs.answered(9);
        assert_eq!(runs.find(&at(40, 1, 32)), None);
        assert_eq!(runs.find(&at(40, 2, 32)), Some(8));
        runs.end(2);
        assert_eq!(runs.find(&at(40, 2, 32)), Some(8), "another process");
        runs.end(1);
        assert_eq!(runs.find(&at(40, 2, 32)), None);
    }
}
