//! A process of a worker's pool and the two pipes that it has to its main process, as one connection: jobs come in, results
//! go out, one at a time.

use super::frame::{Framed, Framer};
use super::job::{Job, job};
use super::result::{Reply, reply};
use super::{Run, State};
use crate::protocol::{Direction, Event, Interest, Outcome, Role, Segment, Walker};

/// A job that has not ended.
struct Running {
    exchange: u64,
    job: Job,
}

/// Walker of the pipes of one pool process.
pub struct PoolWalker<M> {
    jobs: Framer<M>,
    results: Framer<M>,
    running: Option<Running>,
    next_exchange: u64,
}

impl<M: Copy> PoolWalker<M> {
    /// A walker of a process that has not been heard of.
    pub fn new() -> Self {
        Self { jobs: Framer::new(), results: Framer::new(), running: None, next_exchange: 0 }
    }

    fn close_running(&mut self, last: M, state: Option<State>, events: &mut Vec<Event<M>>) {
        let Some(Running { exchange, job }) = self.running.take() else { return };
        let Job { number: _, message, worker } = job;
        let outcome = match state {
            Some(state) => Outcome::Celery(Box::new(Run { message, worker, state })),
            None => Outcome::Discarded,
        };
        events.push(Event::Closed { exchange, last, outcome });
    }
}

impl<M: Copy> Default for PoolWalker<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Copy + Send> Walker<M> for PoolWalker<M> {
    fn feed(&mut self, direction: Direction, segment: Segment<'_>, mark: M, events: &mut Vec<Event<M>>) {
        match direction {
            Direction::Recv => {
                let mut jobs = Vec::new();
                self.jobs.feed(segment, mark, |Framed { first, last, bytes }| {
                    jobs.extend(job(bytes).map(|job| (first, last, job)));
                });
                for (first, head, job) in jobs {
                    // The result of the one before was lost.
                    self.close_running(first, None, events);
                    let exchange = self.next_exchange;
                    self.next_exchange = exchange.saturating_add(1);
                    let mut trace = job.message.trace.clone();
                    trace.message = Some(job.message.message_id());
                    let (role, fingerprint) = (Role::Server, 0);
                    events.push(Event::Opened { exchange, role, first, head, trace, fingerprint });
                    self.running = Some(Running { exchange, job });
                }
            }
            Direction::Send => {
                let mut ready = Vec::new();
                self.results.feed(segment, mark, |Framed { first, last, bytes }| {
                    if let Some(Reply::Ready { number, state }) = reply(bytes) {
                        ready.push((first, last, number, state));
                    }
                });
                for (first, last, number, state) in ready {
                    if let Some(running) =
                        self.running.as_ref().filter(|running| running.job.number == number)
                    {
                        events.push(Event::Answered { exchange: running.exchange, mark: first });
                        self.close_running(last, Some(state), events);
                    }
                }
            }
        }
    }

    fn end(&mut self, _direction: Direction, _mark: M, _events: &mut Vec<Event<M>>) {}

    fn close(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        self.close_running(mark, Some(State::Lost), events);
    }

    fn interest(&self, _direction: Direction) -> Interest {
        Interest::Bytes
    }

    fn open_exchanges(&self) -> usize {
        usize::from(self.running.is_some())
    }
}

/// Whether these are the first bytes of a job, its length included; `None`: more would tell.
pub fn guess_job(bytes: &[u8]) -> Option<bool> {
    guess(bytes, |pickle| job(pickle).is_some())
}

/// Whether these are the first bytes of a pool process's message, its length included; `None`: more would tell.
pub fn guess_result(bytes: &[u8]) -> Option<bool> {
    guess(bytes, |pickle| reply(pickle).is_some())
}

fn guess(bytes: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<bool> {
    /// So much holds a task's name and id.
    const ENOUGH: usize = 1024;
    let (header, pickle) = bytes.split_first_chunk::<4>()?;
    let len = u32::from_be_bytes(*header);
    if len > u32::MAX >> 1 || !matches!(pickle, [] | [0x80] | [0x80, 2..=5, ..]) {
        return Some(false);
    }
    if fits(pickle) {
        return Some(true);
    }
    let complete = u32::try_from(pickle.len()).is_ok_and(|got| got >= len) || pickle.len() >= ENOUGH;
    complete.then_some(false)
}
