//! Redis: RESP2 and RESP3 commands and replies into exchanges, one for each command of a pipeline.
//!
//! [`lex`] cuts lines and counted strings, [`command`] and [`reply`] read one message each, [`walker`] pairs them,
//! [`text`] decides what may leave, [`guess`] recognises the protocol. Nothing here keeps a value.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod command;
mod guess;
mod kombu;
mod lex;
mod reply;
mod text;
mod walker;

#[cfg(test)]
mod tests;

pub use guess::guess;
pub use walker::RedisWalker;

use super::celery;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With a value.
    Value,
    /// With an error; its first word (`WRONGTYPE`, `MOVED`), never its text.
    Error(Box<str>),
    /// Without a reply, as the client wished (`CLIENT REPLY OFF`).
    Silent,
    /// The connection ended before the reply was complete.
    ConnectionLost,
}

/// A command and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The command's name as it was sent, with its sub-command (`CONFIG GET`).
    pub operation: Box<str>,
    /// The command with its keys, and `?` for every other argument.
    pub text: Box<str>,
    /// Number of arguments, the name included.
    pub arguments: u64,
    /// Sum of the arguments' lengths in bytes.
    pub arguments_len: u64,
    /// The selected database, where it is known beyond doubt.
    pub database: Option<u32>,
    /// How it ended.
    pub reply: Reply,
    /// The client library sent it to set a new connection up, before the application's first command.
    pub connection_setup: bool,
    /// The task that it puts on a queue of Celery's.
    pub message: Option<Box<celery::Message>>,
    /// Kombu, Celery's messaging library, sent it to keep its queues in order: no work of the application.
    pub housekeeping: bool,
    /// It is a `PING` before all work: it may be the application's, or that of a library that tries a new connection.
    pub sign_of_life: bool,
    /// The connection has done nothing but its setting up before it.
    pub first_work: bool,
}

impl Exchange {
    /// Whether a span should tell of it. What libraries send to set a connection up (`HELLO`, `AUTH`, `CLIENT SETINFO`,
    /// `SELECT`) is no work of the application, like the start-up messages of other protocols; a refusal is told of,
    /// but for that of a `CLIENT` sub-command, which older servers do not know and libraries pass over.
    pub fn is_worth_a_span(&self) -> bool {
        let client = || self.operation.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("CLIENT"));
        !self.housekeeping && (!self.connection_setup || (self.reply != Reply::Value && !client()))
    }
}
