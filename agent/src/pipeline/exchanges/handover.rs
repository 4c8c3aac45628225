//! Records of work that changes hands without a context, on their way to the causality stage.

use pitviper_ebpf::abi::Clocks;

use super::Exchanges;
use crate::causality::Moment;
use crate::kernel::records::WorkStep;
use crate::timing::threads::Deed;

impl Exchanges {
    pub(in super::super) fn work(&mut self, at: Moment, clocks: Clocks, step: WorkStep, epoch: u16) {
        self.check_epoch(epoch);
        self.runs.end(at.pid);
        self.clocks_seen(at, clocks, Deed::Other);
        match step {
            WorkStep::Submitted(_) => {}
            WorkStep::Taken(_) => self.task_begins(at.pid, at.task.tid),
            WorkStep::Done => self.task_ends(at.pid, at.task.tid),
        }
        match step {
            WorkStep::Submitted(item) => self.engine.work_submitted(at, item),
            WorkStep::Taken(item) => self.engine.work_taken(at, item),
            WorkStep::Done => self.engine.work_done(at),
        }
    }

    pub(in super::super) fn thread_started(&mut self, at: Moment, tid: u32, epoch: u16) {
        self.check_epoch(epoch);
        self.runs.end(at.pid);
        self.engine.thread_started(at, tid);
    }

    pub(in super::super) fn thread_ended(&mut self, pid: u32, tid: u32, ktime_ns: u64) {
        self.runs.end(pid);
        self.task_ends(pid, tid);
        self.engine.thread_ended(pid, tid, ktime_ns);
    }

    pub(in super::super) fn greenlet_gone(&mut self, pid: u32, greenlet: u64, ktime_ns: u64) {
        self.runs.end(pid);
        self.context_ends(pid, greenlet);
        self.engine.greenlet_gone(pid, greenlet, ktime_ns);
    }
}
