//! Celery: the tasks that kombu puts on a Redis queue, and the jobs that a worker's pool hands to its processes.
//!
//! A task travels twice. From the producer to the worker as kombu's JSON, the value of an `LPUSH`: [`message`] reads it.
//! From the worker's main process to the process that runs it as a pickle through a pipe, answered by a pickle through
//! another pipe: [`PoolWalker`] sees the two pipes as one connection, with the job as the request and the result as the
//! response; [`frame`] cuts them into messages, [`job`] and [`result`] read one each, by the opcodes of [`pickle`] and
//! without ever making an object of it. Nothing here keeps an argument or a result.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod frame;
mod job;
mod json;
mod message;
mod pickle;
mod pool;
mod result;

#[cfg(test)]
mod tests;

pub use message::message;
pub use pool::{PoolWalker, guess_job, guess_result};

use super::{MessageId, TraceHeaders};

/// Longest name, id or queue that is believed.
const TEXT_LIMIT: usize = 255;

/// A task on its way: what producer and worker both know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The task's name.
    pub task: Box<str>,
    /// The task's id.
    pub id: Box<str>,
    /// The routing key, which for queues without an exchange of their own is the queue's name.
    pub routing_key: Option<Box<str>>,
    /// How often it has been tried before.
    pub retries: u32,
    /// The worker has put it back: it is no new message.
    pub redelivered: bool,
    /// The trace context that an SDK in the producer has put into the message.
    pub trace: TraceHeaders,
}

impl Message {
    /// The message's identity, for both ends.
    pub fn message_id(&self) -> MessageId {
        MessageId::of(&self.id, self.retries)
    }
}

/// How a task ended, by Celery's own names of the states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It returned.
    Success,
    /// It raised; the exception's class, where it was captured.
    Failure(Option<Box<str>>),
    /// It will be tried again.
    Retry,
    /// It raised `Ignore`.
    Ignored,
    /// It raised `Reject`.
    Rejected,
    /// The process that ran it ended before it did.
    Lost,
}

/// A task that a worker ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What it was told to do.
    pub message: Message,
    /// The worker's name, such as `celery@host`.
    pub worker: Option<Box<str>>,
    /// How it ended.
    pub state: State,
}

/// A text that may leave, if it is one: a name, an id, a queue.
fn short(text: &str) -> Option<Box<str>> {
    (!text.is_empty() && text.len() <= TEXT_LIMIT && !text.contains(char::is_control)).then(|| text.into())
}
