//! All connections of all targets: detection, feeding, verdicts, and when a connection is over.

use pitviper_ebpf::abi::{SocketId, Verdict};
use rustc_hash::FxHashMap;

use super::pipes::Pipes;
use super::stream::Stream;
use super::{Mark, Peers};
use crate::kernel::records::{SocketAddress, SocketData};
use crate::protocol::detect::{self, Detection};
use crate::protocol::{Direction, Event, Interest, Protocol, Segment, Walker, walker};

/// Connections that are kept; beyond it the one that was idle the longest is dropped and counted.
const MOST_CONNECTIONS: usize = 65_536;
/// Bytes buffered of a connection whose protocol cannot be told yet.
const MOST_BUFFERED: usize = 64 * 1024;
/// A body that is shorter than this is not worth a word to the kernel side.
const WORTH_SKIPPING: u64 = 64 * 1024;
/// A connection without open exchanges is forgotten after this time without traffic.
const IDLE_NS: u64 = 600_000_000_000;

/// What the kernel side does without a word.
pub(super) const NO_VERDICT: Verdict =
    Verdict { inode: 0, ignore: 0, skip_sent_until: 0, skip_received_until: 0 };

/// See [`Connection::patience`].
pub(super) const PATIENCE: u8 = 1;

/// An event of a walker, and the connection it happened on.
#[derive(Debug)]
pub struct Happening {
    /// Unique number of the connection over the daemon's life.
    pub connection: u64,
    /// Who it is between.
    pub peers: Peers,
    /// What happened.
    pub event: Event<Mark>,
}

/// What the table counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections by protocol: HTTP, PostgreSQL, Redis.
    pub recognised: [u64; 3],
    /// Connections that speak none of our protocols.
    pub foreign: u64,
    /// Bytes that were transferred and not captured, bodies that were skipped on purpose included.
    pub gap_bytes: u64,
    /// Processes of Celery's pools.
    pub pool_processes: u64,
    /// Connections dropped because there were too many.
    pub evicted: u64,
}

/// What could not be followed of a process's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Connections that are encrypted or speak none of our protocols.
    pub foreign: u64,
    /// Times that bytes went unseen which were not left out on purpose.
    pub gaps: u64,
}

pub(super) enum State {
    /// The protocol cannot be told yet.
    Detecting { buffered: Vec<(Direction, Owned, Mark)>, bytes: usize },
    /// A walker follows it.
    Walking(Box<dyn Walker<Mark>>),
    /// None of ours, or no longer.
    Ignored,
}

pub(super) enum Owned {
    Bytes(Box<[u8]>),
    Gap(u64),
}

impl Owned {
    fn of(segment: Segment<'_>) -> Self {
        match segment {
            Segment::Bytes(bytes) => Self::Bytes(bytes.into()),
            Segment::Gap(len) => Self::Gap(len),
        }
    }

    fn as_segment(&self) -> Segment<'_> {
        match self {
            Self::Bytes(bytes) => Segment::Bytes(bytes),
            Self::Gap(len) => Segment::Gap(*len),
        }
    }
}

pub(super) struct Connection {
    number: u64,
    pub(super) peers: Peers,
    sent: Stream,
    pub(super) received: Stream,
    pub(super) state: State,
    /// The TLS connection that goes over this socket.
    pub(super) carries: Option<SocketId>,
    /// The socket that this TLS connection goes over.
    pub(super) carrier: Option<SocketId>,
    /// It was counted as one that is not understood, of this process.
    pub(super) foreign_to: Option<u32>,
    pub(super) verdict: Verdict,
    /// So many records are still looked at when its protocol can be followed no longer. The next one may be a ClientHello, see
    /// [`super::tls::HANDSHAKE`].
    pub(super) patience: u8,
    last_mark: Option<Mark>,
}

/// The connections of all targets.
#[derive(Default)]
pub struct Connections {
    pub(super) by_sock: FxHashMap<u64, Connection>,
    pipes: Pipes,
    next_number: u64,
    pub(super) stats: Stats,
    pub(super) losses: FxHashMap<u32, Losses>,
    events: Vec<Event<Mark>>,
    /// TLS connections whose socket has not been announced yet.
    pub(super) early: FxHashMap<SocketId, SocketId>,
}

impl Connections {
    /// A socket was used for the first time.
    pub fn opened(&mut self, socket: SocketId, address: SocketAddress, out: &mut Vec<Happening>) {
        self.forget(socket.sock, out);
        let connection = self.fresh(socket, Some(address));
        self.by_sock.insert(socket.sock, connection);
        if let Some(tls) = self.early.remove(&socket) {
            self.tls_bound(tls, socket, out);
        }
    }

    /// Bytes went over a socket. Gives the verdict for the kernel side when it has changed.
    pub fn data(&mut self, data: &SocketData<'_>, out: &mut Vec<Happening>) -> Option<Verdict> {
        if data.pipe {
            let Self { pipes, next_number, stats, events, .. } = self;
            let number = || {
                *next_number += 1;
                *next_number
            };
            return pipes.data(data, number, stats, events, out);
        }
        // The record that announced the socket was lost, or it is a TLS connection: those are not announced.
        self.ensure(data.socket, out);
        self.greeted(data);
        let Self { by_sock, stats, losses, events, .. } = self;
        let connection = by_sock.get_mut(&data.socket.sock)?;
        let lost = Losses { foreign: stats.foreign, gaps: u64::from(connection.misses(data)) };
        let verdict = connection.take(data, stats, events);
        let lost = Losses { foreign: stats.foreign - lost.foreign, ..lost };
        if lost != Losses::default() {
            let sum = losses.entry(data.pid).or_default();
            sum.foreign += lost.foreign;
            sum.gaps += lost.gaps;
            if lost.foreign != 0 {
                connection.foreign_to = Some(data.pid);
            }
        }
        connection.report(events, out);
        verdict
    }

    /// A TCP socket was closed, or will send nothing more, or a TLS connection has ended.
    pub fn closed(&mut self, socket: SocketId, ktime_ns: u64, sending_only: bool, out: &mut Vec<Happening>) {
        if let Some(tls) = self.carried(socket) {
            self.closed(tls, ktime_ns, sending_only, out);
        }
        if !sending_only {
            self.tls_ended(socket);
        }
        let Self { by_sock, events, .. } = self;
        let Some(connection) = by_sock.get_mut(&socket.sock).filter(|known| known.peers.socket == socket)
        else {
            return;
        };
        let Some(mark) = connection.last_mark.map(|mark| Mark { ktime_ns, ..mark }) else {
            if !sending_only {
                by_sock.remove(&socket.sock);
            }
            return;
        };
        if sending_only {
            if let State::Walking(walker) = &mut connection.state {
                walker.end(Direction::Send, mark, events);
            }
            connection.report(events, out);
        } else {
            connection.close(mark, events);
            connection.report(events, out);
            by_sock.remove(&socket.sock);
        }
    }

    /// Forgets connections that have been idle for long; `now_ns` is CLOCK_MONOTONIC.
    pub fn expire(&mut self, now_ns: u64) {
        self.by_sock.retain(|_, connection| {
            let idle = connection.last_mark.is_none_or(|mark| mark.ktime_ns.saturating_add(IDLE_NS) < now_ns);
            let open = matches!(&connection.state, State::Walking(walker) if walker.open_exchanges() > 0);
            open || !idle
        });
    }

    /// Closes the connections that were last used by a process that has ended.
    pub fn process_ended(&mut self, pid: u32, ktime_ns: u64, out: &mut Vec<Happening>) {
        let Self { by_sock, pipes, events, .. } = self;
        pipes.process_ended(pid, ktime_ns, events, out);
        by_sock.retain(|_, connection| {
            let Some(mark) = connection.last_mark.filter(|mark| mark.pid == pid) else { return true };
            connection.close(Mark { ktime_ns, ..mark }, events);
            connection.report(events, out);
            false
        });
    }

    /// How many connections are remembered.
    pub fn len(&self) -> usize {
        self.by_sock.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_sock.is_empty()
    }

    /// How many bytes are known to have been sent over a socket.
    pub fn sent(&self, socket: SocketId) -> Option<u64> {
        let known = self.by_sock.get(&socket.sock).filter(|known| known.peers.socket == socket)?;
        Some(known.sent.position())
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What was lost of a process's connections so far.
    pub fn losses(&self, pid: u32) -> Losses {
        self.losses.get(&pid).copied().unwrap_or_default()
    }

    /// Forgets what was lost of all processes but these.
    pub fn retain_losses(&mut self, mut known: impl FnMut(u32) -> bool) {
        self.losses.retain(|pid, _| known(*pid));
    }

    /// Makes sure that there is a connection for this socket, or TLS connection, and no older one in its place.
    pub(super) fn ensure(&mut self, socket: SocketId, out: &mut Vec<Happening>) {
        if self.by_sock.get(&socket.sock).is_none_or(|known| known.peers.socket != socket) {
            self.forget(socket.sock, out);
            let connection = self.fresh(socket, None);
            self.by_sock.insert(socket.sock, connection);
        }
    }

    fn fresh(&mut self, socket: SocketId, address: Option<SocketAddress>) -> Connection {
        if self.by_sock.len() >= MOST_CONNECTIONS {
            let oldest =
                self.by_sock.iter().min_by_key(|(_, known)| known.last_mark.map_or(0, |mark| mark.ktime_ns));
            if let Some(sock) = oldest.map(|(sock, _)| *sock) {
                self.by_sock.remove(&sock);
                self.stats.evicted += 1;
            }
        }
        self.next_number += 1;
        Connection {
            number: self.next_number,
            peers: Peers { socket, address, server_name: None },
            sent: Stream::default(),
            received: Stream::default(),
            state: State::Detecting { buffered: Vec::new(), bytes: 0 },
            carries: None,
            carrier: None,
            foreign_to: None,
            verdict: Verdict { inode: socket.inode, ..NO_VERDICT },
            patience: PATIENCE,
            last_mark: None,
        }
    }

    /// The address of a socket is used by a new one: what was open on the old one is over.
    fn forget(&mut self, sock: u64, out: &mut Vec<Happening>) {
        if let Some(mut old) = self.by_sock.remove(&sock)
            && let Some(mark) = old.last_mark
        {
            old.close(mark, &mut self.events);
            old.report(&mut self.events, out);
        }
    }
}

impl Connection {
    /// Whether bytes before these went unseen that the kernel side was not told to leave out.
    fn misses(&self, data: &SocketData<'_>) -> bool {
        let (stream, left_out) = if data.received {
            (&self.received, self.verdict.skip_received_until)
        } else {
            (&self.sent, self.verdict.skip_sent_until)
        };
        data.position > stream.position().max(left_out)
    }

    fn take(
        &mut self,
        data: &SocketData<'_>,
        stats: &mut Stats,
        events: &mut Vec<Event<Mark>>,
    ) -> Option<Verdict> {
        let mark = Mark::of(data);
        self.last_mark = Some(mark);
        let direction = if data.received { Direction::Recv } else { Direction::Send };
        let Self { sent, received, state, .. } = self;
        let stream = if data.received { received } else { sent };
        stream.segments(data, |segment| {
            if let Segment::Gap(len) = segment {
                stats.gap_bytes += len;
            }
            match state {
                State::Detecting { buffered, bytes } => {
                    if let Segment::Bytes(new) = segment {
                        *bytes += new.len();
                    }
                    buffered.push((direction, Owned::of(segment), mark));
                }
                State::Walking(walker) => walker.feed(direction, segment, mark, events),
                State::Ignored => {}
            }
        });
        if let State::Detecting { .. } = self.state {
            self.detect(stats, events);
        }
        if data.end
            && let State::Walking(walker) = &mut self.state
        {
            walker.end(direction, mark, events);
        }
        self.new_verdict(direction)
    }

    /// Tries to tell the protocol from what is buffered, and if it can, lets the walker catch up.
    fn detect(&mut self, stats: &mut Stats, events: &mut Vec<Event<Mark>>) {
        let State::Detecting { buffered, bytes } = &mut self.state else { return };
        let segments: Vec<_> =
            buffered.iter().map(|(direction, owned, _)| (*direction, owned.as_segment())).collect();
        match detect::detect(&segments) {
            Detection::Known { protocol, role, from } => {
                stats.count(protocol);
                let mut walker = walker(protocol, role);
                for (direction, owned, mark) in buffered.iter().skip(from) {
                    walker.feed(*direction, owned.as_segment(), *mark, events);
                }
                self.state = State::Walking(walker);
            }
            Detection::NeedMore if *bytes < MOST_BUFFERED => {}
            Detection::NeedMore | Detection::Unknown => {
                stats.foreign += 1;
                self.state = State::Ignored;
            }
        }
    }

    /// What the kernel side should do from now on, if that has changed.
    fn new_verdict(&mut self, direction: Direction) -> Option<Verdict> {
        let mut verdict = self.verdict;
        if self.is_over(direction) {
            match self.patience.checked_sub(1) {
                Some(left) => self.patience = left,
                None => verdict.ignore = 1,
            }
        }
        match &self.state {
            State::Detecting { .. } | State::Ignored => {}
            State::Walking(walker) => match walker.interest(direction) {
                Interest::Bytes | Interest::Nothing => {}
                Interest::LengthOnly(more) if more < WORTH_SKIPPING => {}
                Interest::LengthOnly(more) => {
                    let (stream, until) = match direction {
                        Direction::Send => (&self.sent, &mut verdict.skip_sent_until),
                        Direction::Recv => (&self.received, &mut verdict.skip_received_until),
                    };
                    *until = stream.position().saturating_add(more).max(*until);
                }
            },
        }
        if verdict == self.verdict {
            return None;
        }
        self.verdict = verdict;
        if verdict.ignore != 0 {
            self.state = State::Ignored;
        }
        Some(verdict)
    }

    /// Whether nothing that comes can be understood.
    fn is_over(&self, direction: Direction) -> bool {
        match &self.state {
            State::Detecting { .. } => false,
            State::Walking(walker) => walker.interest(direction) == Interest::Nothing,
            State::Ignored => true,
        }
    }

    fn close(&mut self, mark: Mark, events: &mut Vec<Event<Mark>>) {
        if let State::Walking(walker) = &mut self.state {
            walker.close(mark, events);
        }
        self.state = State::Ignored;
    }

    fn report(&self, events: &mut Vec<Event<Mark>>, out: &mut Vec<Happening>) {
        out.extend(events.drain(..).map(|event| Happening {
            connection: self.number,
            peers: self.peers.clone(),
            event,
        }));
    }
}

impl Stats {
    fn count(&mut self, protocol: Protocol) {
        let [http, postgres, redis] = &mut self.recognised;
        *match protocol {
            Protocol::Http => http,
            Protocol::Http2 => &mut self.foreign,
            Protocol::Postgres => postgres,
            Protocol::Redis => redis,
        } += 1;
    }
}
