//! What a process of a pool sends back: that it has taken a job, and how the job ended.
//!
//! `(ACK, (job, ...))`, `(READY, (job, i, (ok, outcome), ...))`, `(DEATH, ...)`, `(WORKER_UP, ...)`: `Worker.workloop` in
//! `billiard/pool.py`. The outcome of a task is `(failed, value, seconds)`: `fast_trace_task` in `celery/app/trace.py`. Of the
//! value nothing is read but, when it is an `ExceptionInfo`, the class of the exception.

use super::State;
use super::pickle::{Reader, Token};
use super::short;

// billiard/pool.py
const ACK: i64 = 0;
const READY: i64 = 1;
const DEATH: i64 = 4;
const WORKER_UP: i64 = 5;

/// A message of a pool process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A job is done.
    Ready {
        /// The pool's number of it.
        number: i64,
        /// How it ended.
        state: State,
    },
    /// Any other.
    Other,
}

/// Reads a message from the first bytes of its pickle; `None`: it is no pool process's.
pub(super) fn reply(bytes: &[u8]) -> Option<Reply> {
    let mut reader = Reader::new(bytes);
    let Token::Number(kind) = reader.next()? else { return None };
    if !matches!(kind, ACK | READY | DEATH | WORKER_UP) {
        return None;
    }
    let next = reader.next()?;
    if kind != READY {
        // A tuple of up to three values has no mark.
        return matches!(next, Token::Mark | Token::Number(_)).then_some(Reply::Other);
    }
    let [Token::Mark, Token::Number(number)] = [next, reader.next()?] else { return None };
    let (Token::None | Token::Number(_)) = reader.next()? else { return None };
    let Token::Flag(ok) = reader.next()? else { return None };
    let failed = !ok || !matches!(reader.next(), Some(Token::Number(0) | Token::Flag(false)));
    Some(Reply::Ready { number, state: if failed { failure(&mut reader) } else { State::Success } })
}

/// How a task failed: `ExceptionInfo.type` is a class, pickled as its module and its name.
fn failure(reader: &mut Reader<'_>) -> State {
    /// The key is among the first tokens of the pickled `ExceptionInfo`.
    const TOKENS: usize = 24;
    let mut last = [None; 4];
    for _ in 0..TOKENS {
        let Some(token) = reader.next() else { break };
        let [_, second, third, fourth] = last;
        last = [second, third, fourth, Some(token)];
        if let [
            Some(Token::Text("type")),
            Some(Token::Text(module)),
            Some(Token::Text(name)),
            Some(Token::Reduced(2)),
        ] = last
        {
            return match (module, name) {
                ("celery.exceptions", "Retry") => State::Retry,
                ("celery.exceptions", "Ignore") => State::Ignored,
                ("celery.exceptions", "Reject") => State::Rejected,
                ("builtins", name) => State::Failure(short(name)),
                (module, name) => State::Failure(short(&format!("{module}.{name}"))),
            };
        }
    }
    State::Failure(None)
}
