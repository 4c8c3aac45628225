//! The stages wired together: one thread that takes the kernel's records to finished spans and profile samples.
//!
//! Owns the order of things and nothing else: which stage sees a record when, and what is done from time to time. Each
//! stage's own rules are in its own module.

mod exchanges;
mod greetings;
mod ledger;
mod publish;
mod targets;
mod timing;
mod tracers;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pitviper_ebpf::abi::{COUNTERS, Counter};

use crate::causality::{self, Moment};
use crate::clock;
use crate::connection;
use crate::kernel::programs::Programs;
use crate::kernel::records::Record;
use crate::process::resource::Defaults;
use crate::process::sdk::{SdkProcesses, Sign};
use crate::process::select::Selector;
use crate::profile::Sample;
use crate::profile::profiler::{self, Profiler};
use crate::telemetry::Report;
use crate::telemetry::inquiry::{Question, Questions};
use crate::trace::sampler::Sampler;
use crate::trace::{FinishedSpan, assembly};

use exchanges::Exchanges;
use targets::{Change, Targets};
pub use targets::{Refusal, Tracked};
pub use timing::Settings as TimingSettings;

/// Records taken at a time, so that other duties are not starved under load.
const BATCH: usize = 4096;
/// After waking up the thread lets records gather for so long, and the kernel side does not have to wake it again: a
/// wake-up costs the observed process more than a record does.
const GATHER: Duration = Duration::from_millis(50);
/// The same while more than [`BUSY`] records come at a time, so that the ring buffer does not fill up.
const GATHER_BUSY: Duration = Duration::from_millis(5);
/// The same while spans are published for others to read: what is late is not there for short requests.
const GATHER_PUBLISHING: Duration = Duration::from_millis(1);
/// The longest sleep while the span of a request is about to become known.
const PUBLISHING: Duration = Duration::from_millis(5);
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
    /// Counted by the profiler.
    pub profiler: profiler::Stats,
    /// Records of a kind that this version does not know.
    pub unknown_records: u64,
    /// Spans given to the exporters.
    pub spans: u64,
    /// Commands by which Celery keeps its broker in order, which are no spans.
    pub broker_housekeeping: u64,
    /// Spans dropped because their process was found to be traced by an SDK in it.
    pub left_spans: u64,
    /// How much is remembered.
    pub tables: Tables,
}

/// Sizes of the tables that grow with the number of processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables {
    /// Processes that are traced, or followed for their children.
    pub processes: usize,
    /// Processes with lineage probes.
    pub probed: usize,
    /// Targets, as the kernel side sees it.
    pub targets: usize,
    /// Processes whose contexts or exchanges are remembered.
    pub lineages: usize,
    /// Connections.
    pub connections: usize,
}

impl Stats {
    /// One of the kernel's counts.
    pub fn kernel(&self, counter: Counter) -> u64 {
        self.kernel.get(counter as usize).copied().unwrap_or(0)
    }
}

/// What comes out of the pipeline.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is handed on at once and never kept")]
pub enum Output {
    /// A span, for the exporters of traces.
    Span(FinishedSpan),
    /// A profile sample, for the exporters of profiles.
    Sample(Sample),
}

/// What the user chose.
#[derive(Debug)]
pub struct Choices {
    /// Spans say why they have their parent.
    pub parent_evidence: bool,
    /// What becomes of processes with an SDK in them.
    pub sdks: SdkProcesses,
    /// Spans say where their time went.
    pub timing: Option<TimingSettings>,
    /// Somebody takes profile samples; may be cleared at any time.
    pub profiling: Arc<AtomicBool>,
    /// A sample names the C function too that a Python function was in.
    pub native: bool,
}

/// The pipeline, ready to run.
pub struct Pipeline {
    programs: Programs,
    targets: Targets,
    exchanges: Exchanges,
    profiler: Profiler,
    /// Nobody needs samples once nobody wants profiles.
    profiling: Option<Arc<AtomicBool>>,
    unknown_records: u64,
}

impl Pipeline {
    /// Selects and attaches to the processes that there are.
    pub fn start(
        mut programs: Programs,
        selector: Selector,
        defaults: Defaults,
        sampler: Sampler,
        choices: Choices,
    ) -> Result<Self, Refusal> {
        let Choices { parent_evidence, sdks, timing, profiling, native } = choices;
        let targets = Targets::start(selector, defaults, sdks, &mut programs)?;
        let mut exchanges = Exchanges::new(sampler, parent_evidence, sdks, timing, Arc::clone(&profiling));
        if programs.published().is_some() {
            exchanges = exchanges.publishing();
        }
        // Event loops need them too.
        let sampled_for_profiles = timing.is_none() && profiling.load(Ordering::Relaxed);
        Ok(Self {
            programs,
            targets,
            exchanges,
            profiler: Profiler::new(Arc::clone(&profiling), native),
            profiling: sampled_for_profiles.then_some(profiling),
            unknown_records: 0,
        })
    }

    /// The processes that are traced now.
    pub fn tracked(&mut self) -> Vec<Tracked> {
        self.targets.tracked()
    }

    /// How many processes are left to the SDK in them.
    pub fn left(&self) -> usize {
        self.targets.left()
    }

    /// Runs until `stop` is set, or until the last of the processes that were asked for by pid has ended. Gives every
    /// span and every profile sample to `out` as it becomes ready, and answers `questions` meanwhile. What is to be said at the end is in the
    /// last report.
    pub fn run(
        mut self,
        stop: &AtomicBool,
        questions: &Questions,
        mut out: impl FnMut(Output),
    ) -> (Stats, Report) {
        let mut gathered = 0;
        while !stop.load(Ordering::Relaxed) && !self.targets.all_gone() {
            let idle = if self.exchanges.is_publishing() { PUBLISHING } else { IDLE };
            let gather = match (self.programs.published().is_some(), gathered > BUSY) {
                (true, _) => GATHER_PUBLISHING,
                (false, true) => GATHER_BUSY,
                (false, false) => GATHER,
            };
            if self.programs.wait(idle) {
                self.programs.gather(gather);
            }
            gathered = 0;
            loop {
                let seen = self.round(&mut out);
                gathered += seen;
                questions.answer(|question| self.report(question));
                if seen < BATCH {
                    break;
                }
            }
        }
        // What happened before the end is still in the ring buffer.
        while self.round(&mut out) > 0 {}
        let tables = self.stats().tables;
        let Self { targets, exchanges, .. } = &mut self;
        exchanges.end(|pid, at_ns| targets.service(pid, at_ns), &mut |span| out(Output::Span(span)));
        self.release_samples(&mut out);
        (Stats { tables, ..self.stats() }, self.report(Question::Departed))
    }

    /// What is known of the processes that are traced; with [`Question::Departed`] also, once each, of those that were.
    fn report(&mut self, question: Question) -> Report {
        let Self { targets, exchanges, .. } = self;
        let mut processes: Vec<_> = targets
            .tracked()
            .iter()
            .map(|tracked| exchanges.account(tracked.pid).report_tracked(tracked))
            .collect();
        if question == Question::Departed {
            let ended = targets
                .ended()
                .into_iter()
                .filter(|(pid, _)| processes.iter().all(|known| known.pid != *pid));
            let ended: Vec<_> =
                ended.map(|(pid, service)| exchanges.account(pid).report(pid, &service.name)).collect();
            processes.extend(ended);
            processes.extend(exchanges.take_departed());
        }
        let stats = self.stats();
        Report {
            processes,
            lost: ledger::lost(&stats),
            connections: ledger::connections(&stats),
            unsampled: stats.assembly.unsampled,
            ..Report::new(std::process::id())
        }
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let stats = self.exchanges.stats();
        let tables = Tables {
            processes: self.targets.len(),
            probed: self.programs.probed(),
            targets: self.programs.target_pids().len(),
            ..stats.tables
        };
        Stats {
            kernel: self.programs.counters(),
            profiler: self.profiler.stats(),
            unknown_records: self.unknown_records,
            tables,
            ..stats
        }
    }

    /// Takes one batch of records through all stages; gives how many there were.
    fn round(&mut self, out: &mut impl FnMut(Output)) -> usize {
        let mut seen = 0;
        // What happens to a process divides the records: before it a pid is one process, after it perhaps another.
        while seen < BATCH {
            let (taken, change) = self.take(BATCH - seen);
            seen += taken;
            let Some(change) = change else { break };
            // What showed in the records before it is of the processes before it.
            let found = self.exchanges.sdks(None);
            self.leave(&found);
            self.apply(change);
        }
        self.targets.look_for_libraries(&mut self.programs);
        let now_ns = clock::ktime_ns();
        self.targets.follow_steps(now_ns, &mut self.programs);
        if self.targets.rescan_is_due(now_ns) {
            for pid in self.targets.rescan(now_ns, &mut self.programs) {
                self.apply(Change::Exited { pid, ktime_ns: now_ns });
            }
        }
        if self.profiling.take_if(|wanted| !wanted.load(Ordering::Relaxed)).is_some() {
            self.programs.stop_sampling();
        }
        self.symbolise();
        let found = self.exchanges.sdks(Some(now_ns));
        self.leave(&found);
        let Self { programs, targets, exchanges, .. } = self;
        let mut spans = |span| out(Output::Span(span));
        exchanges.round(now_ns, |pid, at_ns| targets.service(pid, at_ns), &mut spans);
        if let Some(map) = programs.published() {
            exchanges.publish(map);
        }
        self.release_samples(out);
        seen
    }

    /// Gives up processes that were found to be traced by an SDK in them.
    fn leave(&mut self, found: &[(u32, Sign)]) {
        let Self { programs, targets, exchanges, profiler, .. } = self;
        for (pid, sign) in found {
            if targets.leave(*pid, *sign, programs) {
                exchanges.process_left(*pid, clock::ktime_ns());
                profiler.forget(*pid);
            }
        }
    }

    /// Takes records until something happens to a process.
    fn take(&mut self, limit: usize) -> (usize, Option<Change>) {
        let Self { programs, targets, exchanges, profiler, unknown_records, .. } = self;
        let mut change = None;
        let (seen, unknown) = programs.drain(limit, |record| {
            change = change_of(&record);
            match record {
                Record::SocketOpened { socket, address, .. } => exchanges.socket_opened(socket, address),
                Record::SocketData(data) => exchanges.socket_data(&data),
                Record::TlsBound { tls, socket } => exchanges.tls_bound(tls, socket),
                Record::SocketClosed { socket, ktime_ns, sending_only } => {
                    exchanges.socket_closed(socket, ktime_ns, sending_only);
                }
                Record::ContextMade { pid, ktime_ns, task, clocks, child, unrelated, epoch } => {
                    exchanges.context_made(Moment { pid, ktime_ns, task }, clocks, child, unrelated, epoch);
                }
                Record::ContextEntered { pid, ktime_ns, task, clocks, context, epoch } => {
                    targets.context_entered(pid);
                    exchanges.context_entered(Moment { pid, ktime_ns, task }, clocks, context, epoch);
                }
                Record::ContextGone { pid, task, context, epoch } => {
                    exchanges.context_gone(pid, task, context, epoch);
                }
                Record::WorkItem { pid, ktime_ns, task, clocks, step, epoch } => {
                    exchanges.work(Moment { pid, ktime_ns, task }, clocks, step, epoch);
                }
                Record::ThreadStarted { pid, ktime_ns, task, tid, epoch } => {
                    exchanges.thread_started(Moment { pid, ktime_ns, task }, tid, epoch);
                }
                Record::ThreadEnded { pid, ktime_ns, tid } => exchanges.thread_ended(pid, tid, ktime_ns),
                Record::GreenletGone { pid, ktime_ns, greenlet } => {
                    exchanges.greenlet_gone(pid, greenlet, ktime_ns);
                }
                Record::StackSample(sample) => {
                    profiler.take(exchanges.sampled(&sample), &sample);
                }
                Record::LoopBlocked(turn) => exchanges.loop_blocked(turn),
                Record::ProcessForked { .. }
                | Record::ProcessExecuted { .. }
                | Record::ProcessStirred { .. }
                | Record::ProcessExited { .. }
                | Record::SocketListening { .. } => {}
            }
            if change.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        *unknown_records += unknown as u64;
        for (socket, verdict) in exchanges.verdicts() {
            programs.set_verdict(socket, verdict);
        }
        (seen, change)
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Forked { parent, child, ktime_ns } => {
                // A child whose pid is known is another process than the one that had it: that one's end was lost.
                if self.targets.knows(child) {
                    self.ended(child, ktime_ns);
                    self.targets.apply(Change::Exited { pid: child, ktime_ns }, &mut self.programs);
                }
                self.profiler.forked(parent, child);
            }
            Change::Executed { pid, .. } => {
                self.symbolise();
                let Self { targets, exchanges, profiler, .. } = self;
                profiler.forget(pid);
                exchanges.identify(clock::ktime_ns(), |pid, at_ns| targets.service(pid, at_ns));
                exchanges.process_executed(pid);
            }
            Change::Exited { pid, ktime_ns } => self.ended(pid, ktime_ns),
            Change::Stirred { .. } | Change::Listening { .. } => {}
        }
        self.targets.apply(change, &mut self.programs);
    }

    /// A process has ended, and its pid still means it.
    fn ended(&mut self, pid: u32, ktime_ns: u64) {
        self.symbolise();
        let Self { targets, exchanges, profiler, .. } = self;
        profiler.forget(pid);
        exchanges.process_ended(pid, ktime_ns);
        exchanges.identify(clock::ktime_ns(), |pid, at_ns| targets.service(pid, at_ns));
    }

    /// Names the samples that have come, while their processes are the ones that they were taken of.
    fn symbolise(&mut self) {
        let Self { targets, exchanges, profiler, .. } = self;
        let clock = exchanges.clock();
        profiler.symbolise(
            clock,
            |pid| targets.profiled(pid),
            |pid, tid, seen| {
                exchanges.stack_named(pid, tid, seen);
            },
        );
    }

    /// Hands over the samples whose request and trace are known.
    fn release_samples(&mut self, out: &mut impl FnMut(Output)) {
        let Self { exchanges, profiler, .. } = self;
        let mut out = |sample| out(Output::Sample(sample));
        for (question, owner) in exchanges.answers() {
            profiler.answered(question, owner, &mut out);
        }
        profiler.release(|request| exchanges.trace_of(request), &mut out);
    }
}

fn change_of(record: &Record<'_>) -> Option<Change> {
    Some(match *record {
        Record::ProcessForked { pid, child, ktime_ns } => Change::Forked { parent: pid, child, ktime_ns },
        Record::ProcessExecuted { pid, target } => Change::Executed { pid, target },
        Record::ProcessStirred { pid } => Change::Stirred { pid },
        Record::ProcessExited { pid, ktime_ns } => Change::Exited { pid, ktime_ns },
        Record::SocketListening { pid, port } => Change::Listening { pid, port },
        _ => return None,
    })
}
