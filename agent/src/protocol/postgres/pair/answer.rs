//! What the backend answers: each message belongs to the head of the queue, or tells that bytes were lost.

use std::sync::Arc;

use super::{Pairing, Pending, Run};
use crate::protocol::Event;
use crate::protocol::postgres::frame::Message;
use crate::protocol::postgres::parse;
use crate::protocol::postgres::types::{Ending, Exchange, Kind};

impl<M: Copy> Pairing<M> {
    /// A message of the backend.
    pub(in crate::protocol::postgres) fn answer(&mut self, message: &Message<M>, events: &mut Vec<Event<M>>) {
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
}
