//! Which answer belongs to which statement: the queue of what the frontend asked and the backend has not answered.
//!
//! Takes both sides' messages in order; gives [`Event`]s. The backend answers strictly in order, so a message of a
//! type that the head of the queue cannot get means that bytes were lost: then everything pending up to the next
//! `ReadyForQuery` ends as unknown, rather than with another statement's result. It must not know about framing.

mod answer;
mod ask;

use std::collections::VecDeque;
use std::sync::Arc;

use super::statements::{Named, Names};
use super::types::{Ending, Exchange, Kind, Session, Statement};
use crate::protocol::{Event, Outcome, Role, TraceHeaders};

/// A portal, and where it came from.
#[derive(Clone)]
struct Bound<M> {
    statement: Arc<Statement>,
    parameters: bool,
    /// First byte and hash of what led here; taken by the first `Execute`.
    origin: Option<(M, u64)>,
}

impl<M: Copy> Named for Bound<M> {
    fn size(&self) -> usize {
        self.statement.size()
    }
}

/// A `Parse` that no `Execute` has used yet.
#[derive(Clone)]
struct Prepared<M> {
    statement: Arc<Statement>,
    batch: u64,
    origin: Option<(M, u64)>,
}

impl<M: Copy> Named for Prepared<M> {
    fn size(&self) -> usize {
        self.statement.size()
    }
}

enum Pending<M> {
    /// `Parse` (b'P'), `Bind` (b'B'), `Describe` (b'D') or `Close` (b'C').
    Prelude {
        tag: u8,
        statement: Option<Arc<Statement>>,
        first: M,
        last: M,
        fingerprint: u64,
    },
    Run(Box<Run>),
    Sync,
}

struct Run {
    id: u64,
    exchange: Exchange,
    answered: bool,
    copying: bool,
    /// The tag of one of its commands was not captured.
    partial: bool,
    /// Behind lost bytes, a tag was seen that can only be its own.
    proved: bool,
}

/// The state of one connection.
pub(super) struct Pairing<M> {
    role: Role,
    next: u64,
    queue: VecDeque<Pending<M>>,
    statements: Names<Prepared<M>>,
    portals: Names<Bound<M>>,
    session: Arc<Session>,
    /// Number of `Sync`s sent.
    batch: u64,
    /// An error was seen; the server skips everything up to the next `Sync`.
    skipping: bool,
    /// Bytes were lost: what is pending cannot be told apart.
    uncertain: bool,
    /// The frontend's bytes were lost: the queue lacks entries.
    holes: bool,
    /// So many `ReadyForQuery`s may yet come that belong to what was lost.
    doubt: usize,
}

impl<M: Copy> Pairing<M> {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            next: 0,
            queue: VecDeque::new(),
            statements: Names::default(),
            portals: Names::default(),
            session: Arc::default(),
            batch: 0,
            skipping: false,
            uncertain: false,
            holes: false,
            doubt: 0,
        }
    }

    pub(super) fn start(&mut self, session: Session) {
        self.session = Arc::new(session);
    }

    pub(super) fn open(&self) -> usize {
        self.queue.iter().filter(|pending| matches!(pending, Pending::Run(_))).count()
    }

    /// The backend's framing is lost.
    pub(super) fn backend_lost(&mut self) {
        self.uncertain |= !self.queue.is_empty();
        for pending in &mut self.queue {
            if let Pending::Run(run) = pending {
                run.proved = false;
            }
        }
    }

    /// What the unnamed statement and the portals stand for is no longer known. Named statements stay: PostgreSQL
    /// refuses to prepare a name twice.
    fn forget_unnamed(&mut self) {
        self.portals = Names::default();
        self.statements.remove(b"");
    }

    /// The frontend's framing is lost. A statement that was bound but not yet seen to run has run in the lost bytes.
    pub(super) fn frontend_lost(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        if let Some(Pending::Prelude { tag: b'B', statement: Some(statement), first, fingerprint, .. }) =
            self.queue.back()
        {
            let exchange = Exchange::new(Kind::Extended, statement.clone(), self.session.clone());
            let (first, fingerprint) = (*first, *fingerprint);
            self.run(exchange, first, mark, fingerprint, events);
        }
        self.forget_unnamed();
        self.uncertain = true;
        self.holes = true;
    }

    fn run(&mut self, exchange: Exchange, first: M, head: M, fingerprint: u64, events: &mut Vec<Event<M>>) {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let trace = TraceHeaders::default();
        events.push(Event::Opened { exchange: id, role: self.role, first, head, trace, fingerprint });
        self.queue.push_back(Pending::Run(Box::new(Run {
            id,
            exchange,
            answered: false,
            copying: false,
            partial: false,
            proved: false,
        })));
    }

    /// Ends everything that is pending.
    pub(super) fn end_all(&mut self, ending: Ending, last: M, events: &mut Vec<Event<M>>) {
        while let Some(pending) = self.queue.pop_front() {
            if let Pending::Run(run) = pending {
                self.close(*run, ending, last, events);
            }
        }
    }

    fn close(&mut self, run: Run, ending: Ending, last: M, events: &mut Vec<Event<M>>) {
        let Run { id, mut exchange, answered: _, copying: _, partial, proved: _ } = run;
        if partial {
            exchange.rows = None;
        }
        exchange.ending = if self.doubt > 0 { Ending::Unknown } else { ending };
        if exchange.ending != Ending::Complete {
            exchange.error = None;
            exchange.command = None;
            exchange.rows = None;
            exchange.commands = 0;
        }
        events.push(Event::Closed { exchange: id, last, outcome: Outcome::Postgres(Box::new(exchange)) });
    }
}
