//! From sockets to spans: the connection, causality and trace stages, and the table of open exchanges that links them.
//!
//! A walker numbers the exchanges of its connection; the later stages want numbers that are unique everywhere. This
//! table translates, and remembers of each open exchange whose it is and where it happens.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use pitviper_ebpf::abi::{CONTEXT_IS_GREENLET, SocketId, Verdict};
use rustc_hash::FxHashMap;

use super::Stats;
use crate::causality::{self, Engine, ExchangeKey, Moment, Settled};
use crate::clock::{self, Clock};
use crate::connection::{Connections, Happening, Mark, Peers};
use crate::kernel::records::{SocketAddress, SocketData, WorkStep};
use crate::process::resource::Service;
use crate::protocol::{Event, Outcome, Role};
use crate::trace::assembly::{Assembly, Finished};
use crate::trace::join::JoinKey;
use crate::trace::sampler::Sampler;
use crate::trace::{self, Endpoint, Endpoints, FinishedSpan, propagation};

/// How often the wall clock is compared anew, and idle connections are looked for.
const HOUSEKEEPING_NS: u64 = 10_000_000_000;

/// An exchange between its opening and its close.
struct Open {
    key: ExchangeKey,
    role: Role,
    pid: u32,
}

/// The stages between records and spans.
pub(super) struct Exchanges {
    connections: Connections,
    engine: Engine,
    assembly: Assembly,
    clock: Clock,
    open: FxHashMap<(u64, u64), Open>,
    last_key: ExchangeKey,
    happenings: Vec<Happening>,
    closed: Vec<Closed>,
    verdicts: FxHashMap<SocketId, Verdict>,
    epoch: u16,
    /// Socket calls since operations were last settled.
    unsettled: usize,
    spans: u64,
    next_housekeeping_ns: u64,
}

/// An exchange that is over and waits for its service to be looked up.
struct Closed {
    open: Open,
    peers: Peers,
    last: Mark,
    outcome: Outcome,
}

impl Exchanges {
    pub(super) fn new(sampler: Sampler) -> Self {
        Self {
            connections: Connections::default(),
            engine: Engine::default(),
            assembly: Assembly::new(sampler),
            clock: Clock::now(),
            open: FxHashMap::default(),
            last_key: 0,
            happenings: Vec::new(),
            closed: Vec::new(),
            verdicts: FxHashMap::default(),
            epoch: 0,
            unsettled: 0,
            spans: 0,
            next_housekeeping_ns: clock::ktime_ns() + HOUSEKEEPING_NS,
        }
    }

    pub(super) fn socket_opened(&mut self, socket: SocketId, address: SocketAddress) {
        self.connections.opened(socket, address, &mut self.happenings);
        self.follow();
    }

    pub(super) fn socket_data(&mut self, data: &SocketData<'_>) {
        self.check_epoch(data.epoch);
        self.unsettled += 1;
        if self.unsettled >= causality::ROUND {
            self.settle(data.ktime_ns);
        }
        if let Some(verdict) = self.connections.data(data, &mut self.happenings) {
            self.verdicts.insert(data.socket, verdict);
        }
        self.follow();
    }

    pub(super) fn socket_closed(&mut self, socket: SocketId, ktime_ns: u64, sending_only: bool) {
        self.connections.closed(socket, ktime_ns, sending_only, &mut self.happenings);
        self.follow();
    }

    pub(super) fn context_made(&mut self, at: Moment, child: u64, unrelated: bool, epoch: u16) {
        self.check_epoch(epoch);
        if child & CONTEXT_IS_GREENLET != 0 {
            self.engine.greenlet_made(at, child);
        } else if unrelated {
            self.engine.context_created(at, child);
        } else {
            self.engine.context_copied(at, child);
        }
    }

    pub(super) fn work(&mut self, at: Moment, step: WorkStep, epoch: u16) {
        self.check_epoch(epoch);
        match step {
            WorkStep::Submitted(item) => self.engine.work_submitted(at, item),
            WorkStep::Taken(item) => self.engine.work_taken(at, item),
            WorkStep::Done => self.engine.work_done(at),
        }
    }

    pub(super) fn thread_started(&mut self, at: Moment, tid: u32, epoch: u16) {
        self.check_epoch(epoch);
        self.engine.thread_started(at, tid);
    }

    pub(super) fn thread_ended(&mut self, pid: u32, tid: u32, ktime_ns: u64) {
        self.engine.thread_ended(pid, tid, ktime_ns);
    }

    pub(super) fn greenlet_gone(&mut self, pid: u32, greenlet: u64, ktime_ns: u64) {
        self.engine.greenlet_gone(pid, greenlet, ktime_ns);
    }

    pub(super) fn process_executed(&mut self, pid: u32) {
        self.engine.process_executed(pid);
    }

    pub(super) fn process_ended(&mut self, pid: u32, ktime_ns: u64) {
        self.connections.process_ended(pid, ktime_ns, &mut self.happenings);
        self.follow();
        let mut settled = Vec::new();
        self.engine.process_ended(pid, &mut settled);
        self.take_settled(&settled);
    }

    /// Verdicts for the kernel side that have changed.
    pub(super) fn verdicts(&mut self) -> impl Iterator<Item = (SocketId, Verdict)> {
        self.verdicts.drain()
    }

    /// After a batch of records: settles, finishes and hands over what is ready.
    pub(super) fn round(
        &mut self,
        now_ns: u64,
        mut service: impl FnMut(u32) -> Option<Arc<Service>>,
        out: &mut impl FnMut(FinishedSpan),
    ) {
        self.settle(now_ns);
        for closed in std::mem::take(&mut self.closed) {
            match service(closed.open.pid) {
                Some(service) => self.finish(closed, service),
                None => self.assembly.discarded(closed.open.key),
            }
        }
        self.assembly.tick(now_ns);
        self.hand_over(out);
        if now_ns >= self.next_housekeeping_ns {
            self.next_housekeeping_ns = now_ns + HOUSEKEEPING_NS;
            self.clock = Clock::now();
            self.connections.expire(now_ns);
        }
    }

    /// The daemon ends: what is finished leaves with the parents that are known.
    pub(super) fn end(&mut self, out: &mut impl FnMut(FinishedSpan)) {
        let mut settled = Vec::new();
        self.engine.settle_all(&mut settled);
        self.take_settled(&settled);
        self.assembly.tick(u64::MAX);
        self.hand_over(out);
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.stats(),
            causality: self.engine.stats(),
            assembly: self.assembly.stats(),
            spans: self.spans,
            ..Stats::default()
        }
    }

    fn settle(&mut self, now_ns: u64) {
        self.unsettled = 0;
        let mut settled = Vec::new();
        self.engine.settle(now_ns, &mut settled);
        self.take_settled(&settled);
    }

    fn take_settled(&mut self, settled: &[Settled]) {
        for Settled { operation, owner } in settled {
            self.assembly.settled(*operation, owner.map(|(key, _)| key));
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
            self.engine.lineage_lost();
        }
    }

    /// Takes what the walkers have learnt to the later stages.
    fn follow(&mut self) {
        let mut happenings = std::mem::take(&mut self.happenings);
        for Happening { connection, peers, event } in happenings.drain(..) {
            match event {
                Event::Opened { exchange, role, first, head, trace, fingerprint } => {
                    self.last_key += 1;
                    let open = Open { key: self.last_key, role, pid: head.pid };
                    let join = join_key(&peers, role, &first, fingerprint);
                    let start = self.clock.wall(first.ktime_ns);
                    match role {
                        Role::Server => {
                            self.engine.request_read(open.key, connection, moment(&first), moment(&head));
                            let remote = propagation::remote_parent(&trace);
                            self.assembly.server_opened(open.key, first.ktime_ns, start, remote, join);
                        }
                        Role::Client => {
                            self.engine.operation(open.key, moment(&first));
                            self.assembly.client_opened(open.key, first.ktime_ns, start, join);
                        }
                    }
                    self.open.insert((connection, exchange), open);
                }
                Event::Answered { exchange, mark } => {
                    if let Some(open) = self.open.get(&(connection, exchange))
                        && open.role == Role::Server
                    {
                        self.engine.response_begun(open.key, moment(&mark));
                    }
                }
                Event::Closed { exchange, last, outcome } => {
                    if let Some(open) = self.open.remove(&(connection, exchange)) {
                        if open.role == Role::Server {
                            self.engine.request_over(open.key, last.ktime_ns);
                        }
                        self.closed.push(Closed { open, peers, last, outcome });
                    }
                }
            }
        }
        self.happenings = happenings;
    }

    fn finish(&mut self, closed: Closed, service: Arc<Service>) {
        let Closed { open, peers, last, outcome } = closed;
        let endpoints = endpoints(&peers, open.role);
        let parts = match outcome {
            Outcome::Http(exchange) => trace::http::span_parts(&exchange, open.role, &endpoints),
            Outcome::Postgres(exchange) => trace::postgres::span_parts(&exchange, open.role, &endpoints),
            Outcome::Redis(exchange) if exchange.is_worth_a_span() => {
                trace::redis::span_parts(&exchange, open.role, &endpoints)
            }
            Outcome::Redis(_) | Outcome::Discarded => {
                self.assembly.discarded(open.key);
                return;
            }
        };
        let end = self.clock.wall(last.ktime_ns);
        self.assembly.finished(open.key, last.ktime_ns, Finished { service, parts, end });
    }
}

fn moment(mark: &Mark) -> Moment {
    Moment { pid: mark.pid, ktime_ns: mark.ktime_ns, task: mark.task }
}

fn join_key(peers: &Peers, role: Role, first: &Mark, fingerprint: u64) -> Option<JoinKey> {
    match (peers.address?, role) {
        (SocketAddress::Inet { local, remote }, Role::Client) => {
            Some(JoinKey::Tcp { client: local, server: remote, sequence: first.sequence? })
        }
        (SocketAddress::Inet { local, remote }, Role::Server) => {
            Some(JoinKey::Tcp { client: remote, server: local, sequence: first.sequence? })
        }
        (SocketAddress::Unix { peer_sock, .. }, Role::Client) => {
            Some(JoinKey::Unix { server_sock: peer_sock, fingerprint })
        }
        (SocketAddress::Unix { .. }, Role::Server) => {
            Some(JoinKey::Unix { server_sock: peers.socket.sock, fingerprint })
        }
    }
}

fn endpoints(peers: &Peers, role: Role) -> Endpoints {
    match peers.address {
        Some(SocketAddress::Inet { local, remote }) => {
            Endpoints { local: Endpoint::Inet(local), peer: Endpoint::Inet(remote) }
        }
        Some(SocketAddress::Unix { path, .. }) => {
            // Clients do not bind: the path is the answering end's.
            let path = Some(path.as_bytes())
                .filter(|path| !path.is_empty())
                .map(|path| PathBuf::from(OsStr::from_bytes(path)));
            let (local, peer) = if role == Role::Server { (path, None) } else { (None, path) };
            Endpoints { local: Endpoint::Unix(local), peer: Endpoint::Unix(peer) }
        }
        None => Endpoints { local: Endpoint::Unix(None), peer: Endpoint::Unix(None) },
    }
}
