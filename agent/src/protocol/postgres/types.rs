//! What a PostgreSQL exchange was: the statement, who asked, and how it ended. No parameter, row or message text.
//!
//! The query's bytes stay private: others get them redacted, or as they are if the program wrote them with parameters.

use std::fmt;
use std::sync::Arc;

use crate::protocol::sql;

/// Most bytes of a query's text that are kept.
pub(super) const TEXT_CAP: usize = 4096;

/// How a statement was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Query`: text with its values in it.
    Simple,
    /// `Parse`, `Bind`, `Execute`.
    Extended,
    /// `FunctionCall`.
    FunctionCall,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server answered in full; `Exchange::error` says whether with an error.
    Complete,
    /// The server skipped it, because of an earlier error in the same pipeline.
    Skipped,
    /// The server closed the connection before it had answered.
    Disconnected,
    /// Bytes were lost, or the connection was no longer watched.
    Unknown,
}

/// `S` or `V` field of an `ErrorResponse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ended.
    Fatal,
    /// All sessions ended.
    Panic,
    /// Not captured.
    Unknown,
}

/// An `ErrorResponse`, without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How bad it is.
    pub severity: Severity,
    sqlstate: Option<[u8; 5]>,
}

impl Failure {
    pub(super) fn new(severity: Severity, sqlstate: Option<[u8; 5]>) -> Self {
        let valid = |code: &[u8; 5]| code.iter().all(u8::is_ascii_alphanumeric);
        Self { severity, sqlstate: sqlstate.filter(valid) }
    }

    /// The five characters of the SQLSTATE, where they were captured.
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_ref().and_then(|code| std::str::from_utf8(code).ok())
    }
}

/// Who is connected to what, from the `StartupMessage`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Role name.
    pub user: Option<Box<str>>,
    /// Database name.
    pub database: Option<Box<str>>,
}

/// A query's text, as it was prepared or sent.
#[derive(PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) name: Box<[u8]>,
    /// `None` if it was prepared before we looked.
    pub(super) text: Option<Box<[u8]>>,
    pub(super) truncated: bool,
    pub(super) parameters: bool,
}

impl Statement {
    pub(super) fn new(name: &[u8], text: Option<&[u8]>, truncated: bool) -> Self {
        let (text, cut) = match text {
            Some(text) if text.len() > TEXT_CAP => (text.get(..TEXT_CAP), true),
            text => (text, truncated),
        };
        let parameters = text.is_some_and(sql::has_parameters);
        Self { name: name.into(), text: text.map(Into::into), truncated: cut, parameters }
    }

    /// Bytes that it holds.
    pub(super) fn size(&self) -> usize {
        self.text.as_ref().map_or(0, |text| text.len()).saturating_add(self.name.len())
    }
}

/// A statement and its result.
#[derive(Clone, PartialEq)]
pub struct Exchange {
    pub(super) statement: Arc<Statement>,
    /// How it was sent.
    pub kind: Kind,
    /// The text has parameters, so its literals are the program's own.
    pub parameterised: bool,
    /// It copied data in or out (`COPY`).
    pub copy: bool,
    /// The connection's user and database, where its start was seen.
    pub session: Arc<Session>,
    /// How it ended.
    pub ending: Ending,
    /// The error it ended with.
    pub error: Option<Failure>,
    /// The command by the server's account, such as `SELECT` or `CREATE TABLE`; of several, the last.
    pub command: Option<Box<str>>,
    /// Rows returned, affected or copied, all commands together.
    pub rows: Option<u64>,
    /// Number of commands that completed: more than one only for a simple query.
    pub commands: u32,
}

impl Exchange {
    pub(super) fn new(kind: Kind, statement: Arc<Statement>, session: Arc<Session>) -> Self {
        let parameterised = kind == Kind::Extended && statement.parameters;
        Self {
            statement,
            kind,
            parameterised,
            copy: false,
            session,
            ending: Ending::Unknown,
            error: None,
            command: None,
            rows: None,
            commands: 0,
        }
    }

    /// The query, fit for export; `None` if it was prepared before we looked.
    pub fn query_text(&self) -> Option<String> {
        let Statement { text, truncated, .. } = &*self.statement;
        let text = text.as_deref()?;
        Some(if self.parameterised {
            sql::parameterised(text, *truncated)
        } else {
            sql::redact(text, *truncated)
        })
    }

    /// The query in a few words; `None` if nothing is known.
    pub fn query_summary(&self) -> Option<String> {
        let Statement { text, truncated, .. } = &*self.statement;
        let summary = sql::summary(text.as_deref()?, *truncated);
        (!summary.is_empty()).then_some(summary)
    }

    /// Name of the prepared statement; `None` for the unnamed one.
    pub fn statement_name(&self) -> Option<String> {
        let name = &self.statement.name;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// A simple query that may hold more than one statement.
    pub(super) fn may_be_several(&self) -> bool {
        let inner = self.statement.text.as_deref().unwrap_or_default().trim_ascii_end();
        let inner = inner.strip_suffix(b";").unwrap_or(inner);
        self.kind == Kind::Simple && (self.statement.truncated || inner.contains(&b';'))
    }

    /// Rows that came back, for commands whose count says so.
    pub fn returned_rows(&self) -> Option<u64> {
        self.rows.filter(|_| matches!(self.command.as_deref(), Some("SELECT" | "FETCH")))
    }

    /// Whether the whole answer is known.
    pub fn is_complete(&self) -> bool {
        self.ending == Ending::Complete
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { statement: _, kind, parameterised, copy, session, ending, error, command, rows, commands } =
            self;
        formatter
            .debug_struct("Exchange")
            .field("query_text", &self.query_text())
            .field("statement_name", &self.statement_name())
            .field("kind", kind)
            .field("parameterised", parameterised)
            .field("copy", copy)
            .field("session", session)
            .field("ending", ending)
            .field("error", error)
            .field("command", command)
            .field("rows", rows)
            .field("commands", commands)
            .finish()
    }
}
