//! Contexts and profile samples on their way to the causality stage, and its answers.

use std::sync::atomic::Ordering;

use pitviper_ebpf::abi::{CONTEXT_IS_GREENLET, Clocks, Task};

use super::Exchanges;
use crate::causality::{ExchangeKey, Moment, Settled};
use crate::kernel::records::StackSample;
use crate::timing::threads::Deed;

impl Exchanges {
    pub(in super::super) fn context_made(
        &mut self,
        at: Moment,
        clocks: Clocks,
        child: u64,
        unrelated: bool,
        epoch: u16,
    ) {
        self.check_epoch(epoch);
        self.runs.end(at.pid);
        self.clocks_seen(at, clocks, Deed::Other);
        self.context_ends(at.pid, child);
        if child & CONTEXT_IS_GREENLET != 0 {
            self.engine.greenlet_made(at, child);
        } else if unrelated {
            self.engine.context_created(at, child);
        } else {
            self.engine.context_copied(at, child);
        }
    }

    /// A thread enters a context.
    pub(in super::super) fn context_entered(&mut self, at: Moment, clocks: Clocks, context: u64, epoch: u16) {
        self.check_epoch(epoch);
        self.clocks_seen(at, clocks, Deed::Entered(context));
    }

    pub(in super::super) fn context_gone(&mut self, pid: u32, task: Task, context: u64, epoch: u16) {
        self.check_epoch(epoch);
        self.runs.end(pid);
        self.context_ends(pid, context);
        self.engine.context_gone(pid, task, context);
    }

    /// A profile sample was taken: gives the question, to be answered later, whose request it is part of.
    pub(in super::super) fn sampled(&mut self, sample: &StackSample<'_>) -> ExchangeKey {
        let at = Moment { pid: sample.pid, ktime_ns: sample.ktime_ns, task: sample.task };
        self.check_epoch(sample.epoch);
        self.clocks_seen(at, sample.clocks, Deed::Other);
        if sample.asleep {
            self.last_key += 1;
            self.stalls.insert(self.last_key);
            self.engine.question(self.last_key, at);
            return self.last_key;
        }
        if let Some(question) = self.runs.find(&at) {
            return question;
        }
        self.last_key += 1;
        let question = self.last_key;
        self.runs.begin(&at, question);
        self.questions.insert(question);
        self.engine.question(question, at);
        question
    }

    pub(super) fn settle(&mut self, now_ns: u64) {
        self.unsettled = 0;
        let mut settled = Vec::new();
        self.engine.settle(now_ns, &mut settled);
        self.take_settled(&settled);
    }

    pub(super) fn take_settled(&mut self, settled: &[Settled]) {
        self.tracers.settled(settled);
        for Settled { operation, owner } in settled {
            let request = owner.ok().map(|(key, _)| key);
            if let Some(timing) = &mut self.timing
                && timing.answered(*operation, request)
            {
                continue;
            }
            let sampled = self.questions.remove(operation);
            if sampled || self.stalls.remove(operation) {
                self.runs.answered(*operation);
                if let Some(timing) = &mut self.timing {
                    timing.stack_answered(*operation, request);
                }
                self.answers.push((*operation, request));
                if let Some(request) = request.filter(|_| sampled && self.profiling.load(Ordering::Relaxed)) {
                    self.assembly.profiled(request);
                }
            } else {
                if let Some(timing) = &mut self.timing {
                    timing.operation_settled(*operation, request);
                }
                self.assembly.settled(*operation, *owner);
            }
        }
    }
}
