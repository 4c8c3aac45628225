//! Which answer belongs to which statement: the queue of what the frontend asked and the backend has not answered.
//!
//! Takes both sides' messages in order; gives [`Event`]s. The backend answers strictly in order, so a message of a
//! type that the head of the queue cannot get means that bytes were lost: then everything pending up to the next
//! `ReadyForQuery` ends as unknown, rather than with another statement's result. It must not know about framing.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frame::Message;
use super::parse;
use super::statements::{Named, Names};
use super::types::{Ending, Exchange, Kind, Session, Statement};
use crate::protocol::{Event, Outcome, Role, TraceHeaders};

const MAX_PENDING: usize = 4096;

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

    fn unknown_statement(name: &[u8]) -> Arc<Statement> {
        Arc::new(Statement::new(name, None, false))
    }

    /// A message of the frontend.
    pub(super) fn ask(&mut self, message: &Message<M>, events: &mut Vec<Event<M>>) {
        let Message { tag, body, whole, first, last, fingerprint, length: _ } = message;
        if self.queue.is_empty() && !self.holes {
            // Nothing was asked, so nothing of what is to come was asked before.
            self.uncertain = false;
        }
        // What is asked behind lost answers mixes with what was asked before them.
        self.holes |= self.uncertain && !matches!(tag, b'S' | b'H' | b'd' | b'c' | b'f');
        if self.queue.len() >= MAX_PENDING {
            self.end_all(Ending::Unknown, *last, events);
            self.uncertain = true;
            self.holes = true;
        }
        match tag {
            b'Q' => {
                let (text, rest) = parse::until_nul(body);
                let statement = Arc::new(Statement::new(b"", Some(text), rest.is_none() || !whole));
                let exchange = Exchange::new(Kind::Simple, statement, self.session.clone());
                self.run(exchange, *first, *last, *fingerprint, events);
            }
            b'F' => {
                let statement = Self::unknown_statement(b"");
                let exchange = Exchange::new(Kind::FunctionCall, statement, self.session.clone());
                self.run(exchange, *first, *last, *fingerprint, events);
            }
            b'P' => self.parse(message),
            b'B' => self.bind(message),
            b'E' => self.execute(message, events),
            b'D' | b'C' => {
                let name = body.get(1..).and_then(parse::string).map(|(name, _)| name);
                let statement = match (body.first(), name) {
                    (Some(b'S'), Some(name)) => self.statements.get(name).map(|prepared| prepared.statement),
                    (_, Some(name)) => self.portals.get(name).map(|bound| bound.statement),
                    _ => None,
                };
                if let (b'C', Some(name)) = (tag, name) {
                    match body.first() {
                        Some(b'S') => self.statements.remove(name),
                        _ => self.portals.remove(name),
                    }
                }
                self.prelude(message, statement);
            }
            // A server in copy-in mode ignores a `Sync`; libpq sends one along with every `Execute`.
            b'S' if !self.copying() => {
                self.queue.push_back(Pending::Sync);
                self.batch = self.batch.wrapping_add(1);
            }
            b'c' | b'f' => {
                if let Some(Pending::Run(run)) = self.queue.front_mut() {
                    run.copying = false;
                }
            }
            _ => {}
        }
    }

    fn copying(&self) -> bool {
        matches!(self.queue.front(), Some(Pending::Run(run)) if run.copying && run.exchange.kind == Kind::Extended)
    }

    fn prelude(&mut self, message: &Message<M>, statement: Option<Arc<Statement>>) {
        let Message { tag, first, last, fingerprint, .. } = *message;
        self.queue.push_back(Pending::Prelude { tag, statement, first, last, fingerprint });
    }

    fn parse(&mut self, message: &Message<M>) {
        let Some((name, rest)) = parse::string(&message.body) else {
            self.forget_unnamed();
            return self.prelude(message, None);
        };
        let (text, rest) = parse::until_nul(rest);
        let statement = Arc::new(Statement::new(name, Some(text), rest.is_none()));
        let origin = Some((message.first, message.fingerprint));
        self.statements.insert(name, Prepared { statement: statement.clone(), batch: self.batch, origin });
        self.prelude(message, Some(statement));
    }

    fn bind(&mut self, message: &Message<M>) {
        let names = parse::string(&message.body)
            .and_then(|(portal, rest)| parse::string(rest).map(|(name, rest)| (portal, name, rest)));
        let Some((portal, name, rest)) = names else {
            self.forget_unnamed();
            return self.prelude(message, None);
        };
        let mut origin = Some((message.first, message.fingerprint));
        let mut statement = None;
        if let Some(mut prepared) = self.statements.get(name) {
            let earlier = prepared.origin.take().filter(|_| prepared.batch == self.batch);
            if let Some((first, hash)) = earlier {
                origin = Some((first, parse::hash(hash, &message.fingerprint.to_be_bytes())));
            }
            statement = Some(prepared.statement.clone());
            self.statements.insert(name, prepared);
        }
        let statement = statement.unwrap_or_else(|| Self::unknown_statement(name));
        let parameters = parse::parameter_count(rest).is_some_and(|count| count > 0);
        self.portals.insert(portal, Bound { statement: statement.clone(), parameters, origin });
        self.prelude(message, Some(statement));
    }

    fn execute(&mut self, message: &Message<M>, events: &mut Vec<Event<M>>) {
        let portal = parse::string(&message.body).map(|(portal, _)| portal);
        let mut origin = None;
        let mut parameters = false;
        let mut statement = Self::unknown_statement(b"");
        if let Some((portal, mut bound)) = portal.and_then(|name| Some((name, self.portals.get(name)?))) {
            origin = bound.origin.take();
            parameters = bound.parameters;
            statement = bound.statement.clone();
            self.portals.insert(portal, bound);
        }
        let mut exchange = Exchange::new(Kind::Extended, statement, self.session.clone());
        exchange.parameterised |= parameters;
        let (first, hash) = origin.unwrap_or((message.first, parse::HASH_START));
        let fingerprint = parse::hash(hash, &message.fingerprint.to_be_bytes());
        self.run(exchange, first, message.last, fingerprint, events);
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

    /// A message of the backend.
    pub(super) fn answer(&mut self, message: &Message<M>, events: &mut Vec<Event<M>>) {
        let Message { tag, body, first, last, .. } = message;
        match tag {
            b'R' | b'K' | b'S' | b'A' | b'N' | b'v' => return,
            b'Z' => return self.ready(*last, events),
            _ => {}
        }
        if self.queue.is_empty() {
            return;
        }
        if self.uncertain && !self.only_one(*tag) {
            return;
        }
        match (tag, self.queue.front_mut()) {
            (b'1', Some(Pending::Prelude { tag: b'P', .. }))
            | (b'2', Some(Pending::Prelude { tag: b'B', .. }))
            | (b'3', Some(Pending::Prelude { tag: b'C', .. }))
            | (b'T' | b'n', Some(Pending::Prelude { tag: b'D', .. })) => {
                self.queue.pop_front();
                self.answered_next(*first, events);
            }
            (b't', Some(Pending::Prelude { tag: b'D', .. })) => {}
            (b'E', Some(_)) => self.failed(message, events),
            (b'C', Some(Pending::Run(run))) => {
                Self::answered(run, *first, events);
                run.exchange.commands = run.exchange.commands.saturating_add(1);
                match parse::command(body) {
                    Some((command, rows)) => {
                        run.exchange.command = Some(command);
                        if let Some(rows) = rows {
                            run.exchange.rows = Some(run.exchange.rows.unwrap_or(0).saturating_add(rows));
                        }
                    }
                    None => run.partial = true,
                }
                run.proved = self.uncertain;
                // Behind lost bytes the tags before this one are lost too.
                run.partial |= self.uncertain && run.exchange.may_be_several();
                self.command_done(*last, events);
            }
            (b'I' | b's', Some(Pending::Run(run))) => {
                Self::answered(run, *first, events);
                self.command_done(*last, events);
            }
            (b'G', Some(Pending::Run(run))) => {
                Self::answered(run, *first, events);
                run.exchange.copy = true;
                run.copying = true;
                if run.exchange.kind == Kind::Extended {
                    self.queue.retain(|pending| !matches!(pending, Pending::Sync));
                }
            }
            (b'H' | b'D' | b'd' | b'c' | b'V', Some(Pending::Run(run))) => {
                Self::answered(run, *first, events);
                run.exchange.copy |= *tag == b'H';
            }
            (b'T', Some(Pending::Run(run))) if run.exchange.kind == Kind::Simple => {
                Self::answered(run, *first, events);
            }
            _ => self.uncertain = true,
        }
    }

    /// Behind lost bytes: whether this message can only belong to the one statement that is pending. Drops what else
    /// that statement was waiting for.
    fn only_one(&mut self, tag: u8) -> bool {
        let syncs = self.queue.iter().filter(|pending| matches!(pending, Pending::Sync)).count();
        if self.holes || self.open() != 1 || syncs > 1 || !matches!(tag, b'C' | b'I' | b's' | b'E') {
            return false;
        }
        self.queue.retain(|pending| !matches!(pending, Pending::Prelude { .. }));
        matches!(self.queue.front(), Some(Pending::Run(_)))
    }

    fn answered(run: &mut Run, mark: M, events: &mut Vec<Event<M>>) {
        if !std::mem::replace(&mut run.answered, true) {
            events.push(Event::Answered { exchange: run.id, mark });
        }
    }

    /// The answer to a prelude is the first of the answer to the `Execute` behind it.
    fn answered_next(&mut self, mark: M, events: &mut Vec<Event<M>>) {
        for pending in self.queue.iter_mut().take(8) {
            match pending {
                Pending::Run(run) => return Self::answered(run, mark, events),
                Pending::Sync => return,
                Pending::Prelude { .. } => {}
            }
        }
    }

    /// A command is done; an `Execute` with it, a `Query` goes on to its `ReadyForQuery`.
    fn command_done(&mut self, last: M, events: &mut Vec<Event<M>>) {
        if let Some(Pending::Run(run)) = self.queue.pop_front() {
            if run.exchange.kind == Kind::Extended {
                self.close(*run, Ending::Complete, last, events);
            } else {
                self.queue.push_front(Pending::Run(run));
            }
        }
    }

    fn failed(&mut self, message: &Message<M>, events: &mut Vec<Event<M>>) {
        let Message { body, first, last, .. } = message;
        let failure = parse::failure(body);
        match self.queue.front_mut() {
            Some(Pending::Run(run)) if run.exchange.kind != Kind::Extended => {
                Self::answered(run, *first, events);
                run.exchange.error.get_or_insert(failure);
                run.copying = false;
                return;
            }
            // An error at the `Sync` itself (a deferred constraint) is no single statement's.
            None | Some(Pending::Sync) => return,
            Some(_) => {}
        }
        let mut blamed = false;
        let mut cause = None;
        while let Some(pending) = self.queue.pop_front() {
            match pending {
                Pending::Sync => {
                    self.queue.push_front(Pending::Sync);
                    break;
                }
                Pending::Prelude { tag, statement, first, last, fingerprint } => {
                    if cause.is_none() && !blamed {
                        cause = Some((tag, statement, first, last, fingerprint));
                    }
                }
                Pending::Run(mut run) => {
                    let own = match &cause {
                        Some((_, Some(statement), ..)) => Arc::ptr_eq(statement, &run.exchange.statement),
                        Some((_, None, ..)) => false,
                        None => true,
                    };
                    if own && !blamed {
                        blamed = true;
                        Self::answered(&mut run, *first, events);
                        run.exchange.error = Some(failure);
                        self.close(*run, Ending::Complete, *last, events);
                    } else {
                        self.close(*run, Ending::Skipped, *last, events);
                    }
                }
            }
        }
        self.skipping = true;
        if let (false, Some((b'P' | b'B' | b'D', Some(statement), first, head, fingerprint))) =
            (blamed, cause)
        {
            let mut exchange = Exchange::new(Kind::Extended, statement, self.session.clone());
            exchange.error = Some(failure);
            self.run(exchange, first, head, fingerprint, events);
            if let Some(Pending::Run(mut run)) = self.queue.pop_back() {
                Self::answered(&mut run, message.first, events);
                self.close(*run, Ending::Complete, *last, events);
            }
        }
    }

    fn ready(&mut self, last: M, events: &mut Vec<Event<M>>) {
        self.settle(last, events);
        self.doubt = self.doubt.saturating_sub(1);
    }

    fn settle(&mut self, last: M, events: &mut Vec<Event<M>>) {
        if self.uncertain {
            let ready = |pending: &&Pending<M>| match pending {
                Pending::Sync => true,
                Pending::Run(run) => run.exchange.kind != Kind::Extended,
                Pending::Prelude { .. } => false,
            };
            let syncs = self.queue.iter().filter(ready).count();
            self.doubt = self.doubt.max(syncs.max(usize::from(self.holes)));
            let sole = !self.holes && self.queue.len() == 1;
            match self.queue.front() {
                // A simple query whose command tag was read although the rows before it were lost.
                Some(Pending::Run(run)) if sole && run.proved => {
                    self.doubt = 0;
                    self.end_all(Ending::Complete, last, events);
                }
                Some(Pending::Run(run)) if sole && run.exchange.error.is_some() => {
                    self.end_all(Ending::Complete, last, events);
                }
                _ => self.end_all(Ending::Unknown, last, events),
            }
            self.uncertain = false;
            self.holes = false;
            self.skipping = false;
            return;
        }
        let ending = if self.skipping { Ending::Skipped } else { Ending::Unknown };
        self.skipping = false;
        while let Some(pending) = self.queue.pop_front() {
            match pending {
                Pending::Sync => break,
                Pending::Prelude { .. } => {}
                Pending::Run(run) if run.exchange.kind == Kind::Extended => {
                    self.close(*run, ending, last, events);
                }
                Pending::Run(run) => {
                    self.close(*run, Ending::Complete, last, events);
                    break;
                }
            }
        }
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
