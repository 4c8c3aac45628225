//! The pipes of Celery's pool processes: which of a process's pipes bring it jobs and which take its results away, and the
//! two as one connection.
//!
//! The main process holds the other ends of the same pipes. What it does with them says nothing new: of each pipe one
//! direction is of interest, and the kernel side is told to leave the other one out, as with all pipes that turn out to
//! be something else.

use pitviper_ebpf::abi::{SocketId, Verdict};
use rustc_hash::{FxHashMap, FxHashSet};

use super::stream::Stream;
use super::table::Stats;
use super::{Happening, Mark, Peers};
use crate::kernel::records::SocketData;
use crate::protocol::celery::{PoolWalker, guess_job, guess_result};
use crate::protocol::{Direction, Event, Segment, Walker as _};

/// Calls in which a message must begin, or the pipe is none of these.
const MOST_CALLS: u32 = 16;
/// Pipes that are remembered; beyond it those that carry neither jobs nor results are forgotten, and looked at anew.
const MOST_PIPES: usize = 16 * 1024;
/// Position that nothing is behind: a direction of a pipe that is of no interest.
const NEVER: u64 = u64::MAX;

/// One direction of a pipe, as one process uses it.
#[derive(Default)]
struct Pipe {
    stream: Stream,
    /// It carries jobs or results.
    known: bool,
    /// What may be the beginning of a message.
    begun: Vec<Call>,
    calls: u32,
}

/// A call's first bytes, and how many there were behind them.
struct Call {
    head: Box<[u8]>,
    rest: u64,
    mark: Mark,
}

struct Process {
    number: u64,
    peers: Peers,
    walker: PoolWalker<Mark>,
    last_mark: Mark,
}

/// All pipes of all Celery workers.
#[derive(Default)]
pub(super) struct Pipes {
    pipes: FxHashMap<(u32, SocketId, Direction), Pipe>,
    processes: FxHashMap<u32, Process>,
    verdicts: FxHashMap<SocketId, Verdict>,
}

impl Pipes {
    /// Bytes went through a pipe. Gives the verdict for the kernel side when it has changed; `number` makes the number of
    /// a connection.
    pub(super) fn data(
        &mut self,
        data: &SocketData<'_>,
        number: impl FnOnce() -> u64,
        stats: &mut Stats,
        events: &mut Vec<Event<Mark>>,
        out: &mut Vec<Happening>,
    ) -> Option<Verdict> {
        let Self { pipes, processes, verdicts } = self;
        let direction = if data.received { Direction::Recv } else { Direction::Send };
        let mark = Mark::of(data);
        if pipes.len() >= MOST_PIPES {
            pipes.retain(|_, pipe| pipe.known);
            verdicts.clear();
        }
        let pipe = pipes.entry((data.pid, data.socket, direction)).or_default();
        let known = pipe.known;
        let mut held = Vec::new();
        if !known && pipe.calls < MOST_CALLS {
            // What is skipped now is not to be missed later.
            pipe.stream.segments(data, |_| {});
            held = pipe.recognise(data, direction, mark).unwrap_or_default();
        }
        if pipe.known {
            let process = processes.entry(data.pid).or_insert_with(|| {
                stats.pool_processes += 1;
                let peers = Peers { socket: data.socket, address: None, server_name: None };
                Process { number: number(), peers, walker: PoolWalker::new(), last_mark: mark }
            });
            process.last_mark = mark;
            let Process { walker, .. } = process;
            for Call { head, rest, mark } in &held {
                walker.feed(direction, Segment::Bytes(head), *mark, events);
                if *rest > 0 {
                    walker.feed(direction, Segment::Gap(*rest), *mark, events);
                }
            }
            if known {
                pipe.stream.segments(data, |segment| walker.feed(direction, segment, mark, events));
            }
            process.report(events, out);
        }
        // One direction of a pipe that carries jobs or results, or both of one that does not.
        let unwanted = match (pipe.known, known, pipe.calls >= MOST_CALLS) {
            (true, false, _) => match direction {
                Direction::Recv => Direction::Send,
                Direction::Send => Direction::Recv,
            },
            (false, _, true) => direction,
            _ => return None,
        };
        let fresh =
            Verdict { inode: data.socket.inode, ignore: 0, skip_sent_until: 0, skip_received_until: 0 };
        let verdict = verdicts.entry(data.socket).or_insert(fresh);
        match unwanted {
            Direction::Send => verdict.skip_sent_until = NEVER,
            Direction::Recv => verdict.skip_received_until = NEVER,
        }
        Some(*verdict)
    }

    /// A process has ended, and with it the job that it was at.
    pub(super) fn process_ended(
        &mut self,
        pid: u32,
        ktime_ns: u64,
        events: &mut Vec<Event<Mark>>,
        out: &mut Vec<Happening>,
    ) {
        let Self { pipes, processes, verdicts } = self;
        if let Some(mut process) = processes.remove(&pid) {
            let mark = Mark { ktime_ns, ..process.last_mark };
            process.walker.close(mark, events);
            process.report(events, out);
        }
        // What the main process has of them is of no use any more either.
        let its: FxHashSet<SocketId> =
            pipes.keys().filter(|(owner, _, _)| *owner == pid).map(|(_, socket, _)| *socket).collect();
        pipes.retain(|(owner, socket, _), pipe| *owner != pid && (pipe.known || !its.contains(socket)));
        let used: FxHashSet<SocketId> = pipes.keys().map(|(_, socket, _)| *socket).collect();
        verdicts.retain(|socket, _| used.contains(socket));
    }
}

impl Pipe {
    /// Looks for the beginning of a message; hands over what was held back when there is one.
    fn recognise(&mut self, data: &SocketData<'_>, direction: Direction, mark: Mark) -> Option<Vec<Call>> {
        self.calls += 1;
        let guess = match direction {
            Direction::Recv => guess_job,
            Direction::Send => guess_result,
        };
        let rest = u64::from(data.len).saturating_sub(data.head.len() as u64);
        self.begun.push(Call { head: data.head.into(), rest, mark });
        while !self.begun.is_empty() {
            let bytes: Vec<u8> = self.begun.iter().flat_map(|call| call.head.iter().copied()).collect();
            match guess(&bytes) {
                None => return None,
                Some(true) => {
                    self.known = true;
                    return Some(std::mem::take(&mut self.begun));
                }
                // The message may begin with a later one of these calls.
                Some(false) => drop(self.begun.remove(0)),
            }
        }
        None
    }
}

impl Process {
    fn report(&self, events: &mut Vec<Event<Mark>>, out: &mut Vec<Happening>) {
        let Self { number, peers, .. } = self;
        out.extend(events.drain(..).map(|event| Happening {
            connection: *number,
            peers: peers.clone(),
            event,
        }));
    }
}
