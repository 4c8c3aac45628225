//! What the frontend asks: statements are prepared, bound to portals and run.

use std::sync::Arc;

use super::{Bound, Pairing, Pending, Prepared};
use crate::protocol::Event;
use crate::protocol::postgres::frame::Message;
use crate::protocol::postgres::parse;
use crate::protocol::postgres::types::{Ending, Exchange, Kind, Statement};

/// With more than this waiting for answers something is wrong.
const MAX_PENDING: usize = 4096;

impl<M: Copy> Pairing<M> {
    fn unknown_statement(name: &[u8]) -> Arc<Statement> {
        Arc::new(Statement::new(name, None, false))
    }

    /// A message of the frontend.
    pub(in crate::protocol::postgres) fn ask(&mut self, message: &Message<M>, events: &mut Vec<Event<M>>) {
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
}
