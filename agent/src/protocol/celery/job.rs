//! A job, as the main process of a worker sends it to a process of its pool.
//!
//! `(TASK, (job, i, function, (name, id, request, body, content_type, content_encoding), {}))`: `Worker.workloop` in
//! `billiard/pool.py` and `Request.execute_using_pool` in `celery/worker/request.py`. `request` is a dictionary with the
//! message's headers and properties, and at its end the task's arguments; reading stops before those.

use super::pickle::{Reader, Token};
use super::{Message, short};

/// `TASK` in `billiard/pool.py`.
const TASK: i64 = 2;
/// Deepest nesting that is followed.
const DEPTH_LIMIT: usize = 32;

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// The pool's number of it.
    pub(super) number: i64,
    /// The task.
    pub(super) message: Message,
    /// The worker's name.
    pub(super) worker: Option<Box<str>>,
}

/// Reads a job from the first bytes of its pickle, as far as they go.
pub(super) fn job(bytes: &[u8]) -> Option<Job> {
    let mut reader = Reader::new(bytes);
    let [Token::Number(TASK), Token::Mark, Token::Number(number)] =
        [reader.next()?, reader.next()?, reader.next()?]
    else {
        return None;
    };
    let (Token::None | Token::Number(_)) = reader.next()? else { return None };
    let [Token::Text("celery.app.trace"), Token::Text(_), Token::Reduced(2), Token::Mark] =
        [reader.next()?, reader.next()?, reader.next()?, reader.next()?]
    else {
        return None;
    };
    let [Token::Text(task), Token::Text(id)] = [reader.next()?, reader.next()?] else { return None };
    let message = Message { task: short(task)?, id: short(id)?, ..Message::default() };
    let mut job = Job { number, message, worker: None };
    if reader.next() == Some(Token::Dict) && reader.next() == Some(Token::Mark) {
        request(&mut reader, &mut job);
    }
    Some(job)
}

/// What is between a mark and its end.
#[derive(Default)]
struct Level<'a> {
    dict: bool,
    /// Values so far: in a dictionary the even ones are keys.
    values: usize,
    key: Option<&'a str>,
}

/// Reads the items of the request, of which the mark has been read.
fn request(reader: &mut Reader<'_>, job: &mut Job) {
    let mut levels = vec![Level { dict: true, ..Level::default() }];
    let mut after_dict = false;
    // The last pair, which is no pair of this level if the next opcode makes it one of a dictionary with a single item.
    let mut pair = None;
    while let Some(token) = reader.next() {
        if token != Token::Pair
            && let Some((depth, key, value)) = pair.take()
        {
            note(depth, &levels, key, value, job);
        }
        let was_dict = std::mem::replace(&mut after_dict, token == Token::Dict);
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { return };
        match token {
            Token::Text(_) | Token::Number(_) | Token::None | Token::Flag(_) | Token::Other | Token::Dict => {
                let is_key = level.dict && level.values.is_multiple_of(2);
                level.values = level.values.saturating_add(1);
                match (is_key, token) {
                    (true, Token::Text(text)) => level.key = Some(text),
                    (true, _) => level.key = None,
                    (false, _) => pair = level.key.map(|key| (depth, key, token)),
                }
                // The arguments come last.
                if is_key && depth == 1 && matches!(level.key, Some("args" | "kwargs")) {
                    return;
                }
            }
            Token::Mark => {
                if depth >= DEPTH_LIMIT {
                    return;
                }
                levels.push(Level { dict: was_dict, ..Level::default() });
            }
            Token::Items | Token::Collected => {
                levels.pop();
                if token == Token::Collected
                    && let Some(outer) = levels.last_mut()
                {
                    outer.values = outer.values.saturating_add(1);
                }
            }
            Token::Pair => {
                pair = None;
                level.values = level.values.saturating_sub(2);
            }
            Token::Reduced(values) => {
                level.values = level.values.saturating_add(1).saturating_sub(usize::from(values));
            }
        }
    }
}

fn note(depth: usize, levels: &[Level<'_>], key: &str, value: Token<'_>, job: &mut Job) {
    let Job { number: _, message, worker } = job;
    let outer = depth.checked_sub(2).and_then(|outer| levels.get(outer)?.key);
    match (depth, outer, key, value) {
        (1, _, "retries", Token::Number(retries)) => message.retries = u32::try_from(retries).unwrap_or(0),
        (1, _, "hostname", Token::Text(name)) => *worker = short(name),
        (1, _, "traceparent", Token::Text(text)) => message.trace.traceparent = short(text),
        (1, _, "tracestate", Token::Text(text)) => message.trace.tracestate = Some(text.into()),
        (2 | 3, Some("delivery_info"), "routing_key", Token::Text(key)) if message.routing_key.is_none() => {
            message.routing_key = short(key);
        }
        (_, Some("delivery_info"), "redelivered", Token::Flag(again)) => message.redelivered = again,
        _ => {}
    }
}
