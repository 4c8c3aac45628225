//! From sockets to spans: the connection, causality and trace stages, and the table of open exchanges that links them.
//!
//! A walker numbers the exchanges of its connection; the later stages want numbers that are unique everywhere. This
//! table translates, and remembers of each open exchange whose it is and where it happens.

mod clocks;
mod contexts;
mod finish;
mod follow;
mod handover;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pitviper_ebpf::abi::{SocketId, SpanIds, Verdict};
use rustc_hash::{FxHashMap, FxHashSet};

use super::greetings::Greetings;
use super::ledger::{Account, Ledger};
use super::publish::Publisher;
use super::timing::{Settings, Timing};
use super::tracers::Tracers;
use super::{Stats, Tables};
use crate::causality::{self, Engine, ExchangeKey, Moment};
use crate::clock::{self, Clock};
use crate::connection::{Connections, Happening};
use crate::kernel::publish::Published;
use crate::kernel::records::{SocketAddress, SocketData};
use crate::process::resource::Service;
use crate::process::sdk::{SdkProcesses, Sign};
use crate::profile::runs::Runs;
use crate::protocol::Role;
use crate::telemetry::ProcessReport;
use crate::timing::threads::Deed;
use crate::trace::FinishedSpan;
use crate::trace::assembly::{Assembly, Finished, TraceOf};
use crate::trace::sampler::Sampler;
pub(super) use finish::Closed;

/// How often the wall clock is compared anew, and idle connections are looked for.
const HOUSEKEEPING_NS: u64 = 10_000_000_000;

/// An exchange between its opening and its close.
struct Open {
    key: ExchangeKey,
    role: Role,
    pid: u32,
    /// The thread that did it.
    tid: u32,
    /// Of its first byte.
    first_ns: u64,
    since_ns: u64,
}

/// The stages between records and spans.
pub(super) struct Exchanges {
    connections: Connections,
    engine: Engine,
    assembly: Assembly,
    tracers: Tracers,
    publisher: Option<Publisher>,
    clock: Clock,
    open: FxHashMap<(u64, u64), Open>,
    last_key: ExchangeKey,
    happenings: Vec<Happening>,
    closed: Vec<Closed>,
    greetings: Greetings,
    verdicts: FxHashMap<SocketId, Verdict>,
    runs: Runs,
    /// `None` when no clocks are kept.
    timing: Option<Timing>,
    /// Questions that stacks of sleeping threads are part of.
    stalls: FxHashSet<ExchangeKey>,
    /// Profile samples are wanted by somebody.
    profiling: Arc<AtomicBool>,
    /// Questions that profile samples are part of.
    questions: FxHashSet<ExchangeKey>,
    answers: Vec<(ExchangeKey, Option<ExchangeKey>)>,
    /// Server exchanges that are over, with the time of that, and wait for their samples to be known as theirs.
    unhurried: VecDeque<(ExchangeKey, u64, Finished)>,
    ledger: Ledger,
    epoch: u16,
    /// Socket calls since operations were last settled.
    unsettled: usize,
    spans: u64,
    /// Commands of kombu's own.
    housekeeping: u64,
    left_spans: u64,
    next_housekeeping_ns: u64,
}

impl Exchanges {
    pub(super) fn new(
        sampler: Sampler,
        parent_evidence: bool,
        sdks: SdkProcesses,
        timing: Option<Settings>,
        profiling: Arc<AtomicBool>,
    ) -> Self {
        Self {
            connections: Connections::default(),
            engine: Engine::default(),
            assembly: Assembly::new(sampler, parent_evidence),
            tracers: Tracers::new(sdks),
            publisher: None,
            clock: Clock::now(),
            open: FxHashMap::default(),
            last_key: 0,
            happenings: Vec::new(),
            closed: Vec::new(),
            greetings: Greetings::default(),
            verdicts: FxHashMap::default(),
            runs: Runs::default(),
            timing: timing.map(Timing::new),
            stalls: FxHashSet::default(),
            profiling,
            questions: FxHashSet::default(),
            unhurried: VecDeque::new(),
            answers: Vec::new(),
            ledger: Ledger::default(),
            epoch: 0,
            unsettled: 0,
            spans: 0,
            housekeeping: 0,
            left_spans: 0,
            next_housekeeping_ns: clock::ktime_ns() + HOUSEKEEPING_NS,
        }
    }

    /// From now on the spans of threads are published, by [`Exchanges::publish`].
    pub(super) fn publishing(mut self) -> Self {
        self.assembly.publish();
        self.publisher = Some(Publisher::default());
        self
    }

    /// Brings the map of published spans up to date.
    pub(super) fn publish(&mut self, map: &mut Published) {
        let Self { publisher, assembly, .. } = self;
        if let Some(publisher) = publisher {
            publisher.round(map, |key| {
                let (trace, span) = assembly.ids(key)?;
                let mut ids = SpanIds::default();
                let bytes = trace.to_bytes().into_iter().chain(span.to_bytes());
                ids.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
                Some(ids)
            });
        }
    }

    /// Whether a span may have to be published although nothing happens.
    pub(super) fn is_publishing(&self) -> bool {
        self.publisher.as_ref().is_some_and(Publisher::is_waiting)
    }

    pub(super) fn socket_opened(&mut self, socket: SocketId, address: SocketAddress) {
        self.connections.opened(socket, address, &mut self.happenings);
        self.follow();
    }

    pub(super) fn tls_bound(&mut self, tls: SocketId, socket: SocketId) {
        self.connections.tls_bound(tls, socket, &mut self.happenings);
        self.follow();
    }

    pub(super) fn socket_data(&mut self, data: &SocketData<'_>) {
        self.check_epoch(data.epoch);
        self.runs.end(data.pid);
        self.unsettled += 1;
        if self.unsettled >= causality::ROUND {
            self.settle(data.ktime_ns);
        }
        let at = Moment { pid: data.pid, ktime_ns: data.ktime_ns, task: data.task };
        self.clocks_seen(at, data.clocks, Deed::Other);
        if let Some(verdict) = self.connections.data(data, &mut self.happenings) {
            self.verdicts.insert(data.socket, verdict);
        }
        self.follow();
    }

    pub(super) fn socket_closed(&mut self, socket: SocketId, ktime_ns: u64, sending_only: bool) {
        self.runs.end_all();
        self.connections.closed(socket, ktime_ns, sending_only, &mut self.happenings);
        self.follow();
    }

    /// Answers to questions that profile samples are part of: the request, or none.
    pub(super) fn answers(&mut self) -> impl Iterator<Item = (ExchangeKey, Option<ExchangeKey>)> {
        self.answers.drain(..)
    }

    /// The trace of a request that was the answer to a question.
    pub(super) fn trace_of(&self, request: ExchangeKey) -> TraceOf {
        self.assembly.trace_of(request)
    }

    /// How kernel times become wall-clock times.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    pub(super) fn process_executed(&mut self, pid: u32) {
        self.runs.end(pid);
        self.clocks_end(pid);
        self.engine.process_executed(pid);
        self.forget(pid);
    }

    /// Processes that were found to be traced by an SDK in them. To be asked before anything happens to a process; and before
    /// each round with the time, which is to settle what it can, so that what is left to the SDK has not been handed over.
    pub(super) fn sdks(&mut self, now_ns: Option<u64>) -> Vec<(u32, Sign)> {
        if let Some(now_ns) = now_ns {
            self.settle(now_ns);
        }
        self.tracers.take_found()
    }

    /// A process is no longer of interest: what is known of its exchanges is dropped, and what hangs on them becomes roots.
    pub(super) fn process_left(&mut self, pid: u32, now_ns: u64) {
        self.process_ended(pid, now_ns);
        self.let_go(u64::MAX);
        let (mut left, closed): (Vec<_>, _) =
            std::mem::take(&mut self.closed).into_iter().partition(|closed| closed.open.pid == pid);
        self.closed = closed;
        left.append(&mut self.greetings.leave(pid));
        for Closed { open, .. } in left {
            self.left_spans += 1;
            self.discard(open.key);
        }
        for key in self.timing.as_mut().map(|timing| timing.process_left(pid)).unwrap_or_default() {
            self.left_spans += 1;
            self.discard(key);
        }
        self.left_spans += self.assembly.process_left(pid);
    }

    pub(super) fn process_ended(&mut self, pid: u32, ktime_ns: u64) {
        self.runs.end(pid);
        self.clocks_end(pid);
        self.forget(pid);
        self.connections.process_ended(pid, ktime_ns, &mut self.happenings);
        self.follow();
        let mut settled = Vec::new();
        if let Some(stats) = self.engine.process_ended(pid, &mut settled) {
            self.ledger.ended(pid, &stats);
        }
        self.take_settled(&settled);
    }

    fn forget(&mut self, pid: u32) {
        self.tracers.forget(pid);
        if let Some(publisher) = &mut self.publisher {
            publisher.forget(pid);
        }
    }

    /// Verdicts for the kernel side that have changed.
    pub(super) fn verdicts(&mut self) -> impl Iterator<Item = (SocketId, Verdict)> {
        self.verdicts.drain()
    }

    /// After a batch of records: settles, finishes and hands over what is ready.
    pub(super) fn round(
        &mut self,
        now_ns: u64,
        mut service: impl FnMut(u32, u64) -> Option<Arc<Service>>,
        out: &mut impl FnMut(FinishedSpan),
    ) {
        self.settle(now_ns);
        self.identify(now_ns, &mut service);
        self.let_go(now_ns);
        self.assembly.tick(now_ns);
        self.hand_over(out);
        if now_ns >= self.next_housekeeping_ns {
            self.next_housekeeping_ns = now_ns + HOUSEKEEPING_NS;
            self.clock = Clock::now();
            self.connections.expire(now_ns);
            self.close_accounts(|pid| service(pid, 0).is_some());
        }
    }

    /// What was counted of a process.
    pub(super) fn account(&self, pid: u32) -> Account {
        let mut causality = self.ledger.before_end(pid);
        causality.add(&self.engine.process_stats(pid).unwrap_or_default());
        Account {
            links: self.assembly.links(pid),
            causality,
            waiting: self.engine.waiting(pid) as u64,
            losses: self.connections.losses(pid),
            lag: self.timing.as_ref().map(|timing| timing.lag(pid)).unwrap_or_default(),
        }
    }

    /// The last word on each process that has departed since the last call.
    pub(super) fn take_departed(&mut self) -> Vec<ProcessReport> {
        self.ledger.take_departed()
    }

    /// Forgets what was counted of processes that are no longer known.
    fn close_accounts(&mut self, mut known: impl FnMut(u32) -> bool) {
        for (service, links) in self.assembly.forget_links(&mut known) {
            let account = Account { links, ..self.account(service.pid) };
            self.ledger.departed(service.pid, &service.name, &account);
        }
        if let Some(timing) = &mut self.timing {
            timing.retain_lag(&mut known);
        }
        self.engine.retain(&mut known);
        self.ledger.retain(&mut known);
        self.connections.retain_losses(&mut known);
    }

    /// The daemon ends: what is finished leaves with the parents that are known.
    pub(super) fn end(
        &mut self,
        service: impl FnMut(u32, u64) -> Option<Arc<Service>>,
        out: &mut impl FnMut(FinishedSpan),
    ) {
        self.identify(u64::MAX, service);
        let mut settled = Vec::new();
        self.engine.settle_all(&mut settled);
        self.take_settled(&settled);
        self.let_go(u64::MAX);
        self.assembly.end();
        self.hand_over(out);
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.stats(),
            causality: self.engine.stats(),
            assembly: self.assembly.stats(),
            spans: self.spans,
            broker_housekeeping: self.housekeeping,
            left_spans: self.left_spans,
            tables: Tables {
                lineages: self.engine.processes(),
                connections: self.connections.len(),
                ..Tables::default()
            },
            ..Stats::default()
        }
    }

    fn hand_over(&mut self, out: &mut impl FnMut(FinishedSpan)) {
        for span in self.assembly.drain() {
            self.spans += 1;
            out(span);
        }
    }

    fn check_epoch(&mut self, epoch: u16) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.runs.end_all();
            if let Some(timing) = &mut self.timing {
                timing.lineage_lost();
            }
            self.engine.lineage_lost();
        }
    }
}
