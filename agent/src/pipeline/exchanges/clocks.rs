//! The clocks of threads, and the turns of event loops, on their way to the timing stage; and its questions and answers.

use pitviper_ebpf::abi::Clocks;

use super::{Exchanges, Open};
use crate::causality::Moment;
use crate::connection::Mark;
use crate::kernel::records::LoopBlocked;
use crate::pipeline::timing::Serving;
use crate::profile::LoopStack;
use crate::protocol::Role;
use crate::timing::threads::Deed;

impl Exchanges {
    /// A turn of an event loop took long.
    pub(in super::super) fn loop_blocked(&mut self, turn: LoopBlocked) {
        if let Some(timing) = &mut self.timing {
            timing.blocked(turn);
        }
    }

    /// A stack of an event loop's thread was named.
    pub(in super::super) fn stack_named(&mut self, pid: u32, tid: u32, stack: LoopStack) {
        if let Some(timing) = &mut self.timing {
            timing.stack(pid, tid, stack);
        }
    }

    pub(super) fn clocks_seen(&mut self, at: Moment, clocks: Clocks, deed: Deed) {
        if let Some(timing) = &mut self.timing {
            timing.seen(at, clocks, deed);
            self.ask();
        }
    }

    pub(super) fn context_ends(&mut self, pid: u32, context: u64) {
        if let Some(timing) = &mut self.timing {
            timing.context_ends(pid, context);
            self.ask();
        }
    }

    /// A thread begins with something else, in the same context.
    pub(super) fn task_begins(&mut self, pid: u32, tid: u32) {
        if let Some(timing) = &mut self.timing {
            timing.task_begins(pid, tid);
            self.ask();
        }
    }

    /// A thread has done with what it was at work on.
    pub(super) fn task_ends(&mut self, pid: u32, tid: u32) {
        if let Some(timing) = &mut self.timing {
            timing.task_ends(pid, tid);
            self.ask();
        }
    }

    /// A request begins or is answered: whose the time before was is asked first.
    pub(super) fn boundary(&mut self, mark: &Mark) {
        if let Some(timing) = &mut self.timing {
            timing.boundary(mark);
            self.ask();
        }
    }

    /// A request ends. Other threads may have worked for it.
    pub(super) fn request_ends(&mut self, pid: u32) {
        if let Some(timing) = &mut self.timing {
            timing.request_over(pid);
            self.ask();
        }
    }

    /// Asks whose the time was that is to be asked about now.
    fn ask(&mut self) {
        let Self { timing: Some(timing), engine, last_key, .. } = self else { return };
        for bucket in timing.take_full() {
            *last_key += 1;
            engine.question(*last_key, bucket.at);
            timing.asked(*last_key, bucket);
        }
    }

    pub(super) fn clocks_end(&mut self, pid: u32) {
        if let Some(timing) = &mut self.timing {
            timing.process_ends(pid);
            self.ask();
        }
    }

    /// Lets the spans of requests leave of whose time all is known that will be.
    pub(super) fn release_timed(&mut self, now_ns: u64) {
        let Self { timing: Some(timing), assembly, open, clock, .. } = self else { return };
        timing.resolve(now_ns, *clock, || {
            let served = open.values().filter(|open| open.role == Role::Server);
            let serving = |open: &Open| {
                let Open { key, pid, tid, first_ns, .. } = *open;
                Serving { key, pid, tid, first_ns }
            };
            served.map(serving).collect()
        });
        for held in timing.release(now_ns, |key| assembly.trace_of(key)) {
            assembly.finished(held.key, held.over_ns, held.finished);
        }
    }
}
