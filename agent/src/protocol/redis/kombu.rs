//! What kombu does on a broker's connection beside sending tasks: which queues there are, who has taken what, who is alive.
//!
//! Kombu has clients of its own, so that a connection is either the broker's or the application's. It is the broker's once a
//! command on it names what only kombu names: `_kombu.binding.*` (queues), `unacked_index` (tasks that were taken),
//! `celeryev` and `celery.pidbox` (events and remote control), or a queue with a priority. From then on, commands of
//! neutral content count too. Facts from `kombu/transport/redis.py` and `celery/events`.

use super::celery::{Message, message};
use super::command::{Arguments, is_push};

/// Separates a queue's name from a priority, and the fields of a binding: `Channel.sep`.
const SEPARATOR: &[u8] = b"\x06\x16";

/// What a command is for kombu.
pub(super) enum Purpose {
    /// Nothing that can be told from it.
    Unknown,
    /// It may be kombu's, if the connection is.
    Neutral,
    /// It is kombu's own business.
    Housekeeping,
    /// It puts a task on a queue.
    Task(Message),
}

/// What the command is for; `name` is in upper case.
pub(super) fn purpose(name: &str, arguments: &Arguments) -> Purpose {
    let first = arguments.get(1).unwrap_or_default();
    if is_push(name.as_bytes()) {
        // A task that is put back, after a worker that has taken it is gone, is not sent by anybody.
        return match arguments.get(2).and_then(message) {
            Some(message) if !message.redelivered => Purpose::Task(message),
            Some(_) => Purpose::Housekeeping,
            None if is_kombus(first) => Purpose::Housekeeping,
            None => Purpose::Unknown,
        };
    }
    let marked = match name {
        "EVAL" | "EVALSHA" => arguments.get(3).is_some_and(is_kombus),
        "BRPOP" => (1..).map_while(|index| arguments.get(index)).any(is_kombus),
        _ => is_kombus(first),
    };
    let neutral = match name {
        "MULTI" | "EXEC" | "DISCARD" | "UNWATCH" | "PING" | "LLEN" | "BRPOP" | "SCRIPT" => true,
        "WATCH" | "HGET" | "HSET" | "HDEL" | "HEXISTS" | "HLEN" => first.ends_with(b"unacked"),
        _ => false,
    };
    match (marked, neutral) {
        (true, _) => Purpose::Housekeeping,
        (false, true) => Purpose::Neutral,
        (false, false) => Purpose::Unknown,
    }
}

/// Whether only kombu calls a key or channel so. A global prefix may come before each.
fn is_kombus(key: &[u8]) -> bool {
    let has = |part: &[u8]| key.windows(part.len()).any(|window| window == part);
    key.ends_with(b"unacked_index")
        || key.ends_with(b"unacked_mutex")
        || [b"_kombu.binding".as_slice(), SEPARATOR, b".celeryev/", b"celery.pidbox"].into_iter().any(has)
}
