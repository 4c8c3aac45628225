//! The stages wired together: one thread that takes the kernel's records to finished spans.
//!
//! Owns the order of things and nothing else: which stage sees a record when, and what is done from time to time. Each
//! stage's own rules are in its own module.

mod exchanges;
mod targets;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pitviper_ebpf::abi::{COUNTERS, Counter};

use crate::causality::{self, Moment};
use crate::clock;
use crate::connection;
use crate::kernel::programs::Programs;
use crate::kernel::records::Record;
use crate::process::resource::Defaults;
use crate::process::select::Selector;
use crate::trace::sampler::Sampler;
use crate::trace::{FinishedSpan, assembly};

use exchanges::Exchanges;
use targets::{Change, Targets};
pub use targets::{Refusal, Tracked};

/// Records taken at a time, so that other duties are not starved under load.
const BATCH: usize = 4096;
/// After waking up the thread lets records gather for so long, and the kernel side does not have to wake it again: a
/// wake-up costs the observed process more than a record does.
const GATHER: Duration = Duration::from_millis(50);
/// The same while more than [`BUSY`] records come at a time, so that the ring buffer does not fill up.
const GATHER_BUSY: Duration = Duration::from_millis(5);
/// See [`GATHER_BUSY`].
const BUSY: usize = 4 * BATCH;
/// The longest sleep when nothing happens.
const IDLE: Duration = Duration::from_millis(100);

/// What the pipeline did, for the closing words and for telemetry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Counted in the kernel, in the order of [`Counter`].
    pub kernel: [u64; COUNTERS as usize],
    /// Counted by the connection stage.
    pub connections: connection::Stats,
    /// Counted by the causality stage.
    pub causality: causality::Stats,
    /// Counted by the assembly.
    pub assembly: assembly::Stats,
    /// Records of a kind that this version does not know.
    pub unknown_records: u64,
    /// Spans given to the exporters.
    pub spans: u64,
}

impl Stats {
    /// One of the kernel's counts.
    pub fn kernel(&self, counter: Counter) -> u64 {
        self.kernel.get(counter as usize).copied().unwrap_or(0)
    }
}

/// The pipeline, ready to run.
pub struct Pipeline {
    programs: Programs,
    targets: Targets,
    exchanges: Exchanges,
    unknown_records: u64,
}

impl Pipeline {
    /// Selects and attaches to the processes that there are.
    pub fn start(
        mut programs: Programs,
        selector: Selector,
        defaults: Defaults,
        sampler: Sampler,
    ) -> Result<Self, Refusal> {
        let targets = Targets::start(selector, defaults, &mut programs)?;
        Ok(Self { programs, targets, exchanges: Exchanges::new(sampler), unknown_records: 0 })
    }

    /// The processes that are traced now.
    pub fn tracked(&self) -> Vec<Tracked> {
        self.targets.tracked()
    }

    /// Runs until `stop` is set, or until the last of the processes that were asked for by pid has ended. Gives every
    /// span to `out` as it becomes ready.
    pub fn run(mut self, stop: &AtomicBool, mut out: impl FnMut(FinishedSpan)) -> Stats {
        let mut gathered = 0;
        while !stop.load(Ordering::Relaxed) && !self.targets.all_gone() {
            let next_look = self.targets.next_look_in();
            if self.programs.wait(next_look.min(IDLE)) {
                self.programs.gather(next_look.min(if gathered > BUSY { GATHER_BUSY } else { GATHER }));
            }
            gathered = 0;
            loop {
                let seen = self.round(&mut out);
                gathered += seen;
                if seen < BATCH {
                    break;
                }
            }
        }
        // What happened before the end is still in the ring buffer.
        while self.round(&mut out) > 0 {}
        self.exchanges.end(&mut out);
        self.stats()
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        Stats {
            kernel: self.programs.counters(),
            unknown_records: self.unknown_records,
            ..self.exchanges.stats()
        }
    }

    /// Takes one batch of records through all stages; gives how many there were.
    fn round(&mut self, out: &mut impl FnMut(FinishedSpan)) -> usize {
        let Self { programs, targets, exchanges, unknown_records, .. } = self;
        let mut changes = Vec::new();
        let (seen, unknown) = programs.drain(BATCH, |record| match record {
            Record::SocketOpened { socket, address, .. } => exchanges.socket_opened(socket, address),
            Record::SocketData(data) => exchanges.socket_data(&data),
            Record::SocketClosed { socket, ktime_ns, sending_only } => {
                exchanges.socket_closed(socket, ktime_ns, sending_only);
            }
            Record::ContextMade { pid, ktime_ns, task, clocks: _, child, unrelated, epoch } => {
                exchanges.context_made(Moment { pid, ktime_ns, task }, child, unrelated, epoch);
            }
            Record::ProcessForked { pid, child } => changes.push(Change::Forked { parent: pid, child }),
            Record::ProcessExecuted { pid, target } => changes.push(Change::Executed { pid, target }),
            Record::ProcessExited { pid, ktime_ns } => changes.push(Change::Exited { pid, ktime_ns }),
            Record::LoopBlocked { pid, tid, turn, began_ns, ended_ns } => {
                log::info!("loop blocked {pid} {tid} {turn} {}", ended_ns - began_ns)
            }
            Record::SocketListening { pid, port } => changes.push(Change::Listening { pid, port }),
        });
        *unknown_records += unknown as u64;
        for (socket, verdict) in exchanges.verdicts() {
            programs.set_verdict(socket, verdict);
        }
        for change in changes {
            match change {
                Change::Executed { pid, .. } => exchanges.process_executed(pid),
                Change::Exited { pid, ktime_ns } => exchanges.process_ended(pid, ktime_ns),
                Change::Forked { .. } | Change::Listening { .. } => {}
            }
            targets.apply(change, programs);
        }
        let now_ns = clock::ktime_ns();
        targets.look(now_ns, programs);
        exchanges.round(now_ns, |pid| targets.service(pid), out);
        seen
    }
}
