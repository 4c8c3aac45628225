//! The message formats of PostgreSQL's protocol 3: which headers are plausible, which bodies are sound, what they say.
//!
//! Takes bodies as they were captured; gives fields. Source: PostgreSQL documentation, "55.7. Message Formats".

use super::types::{Failure, Severity, TEXT_CAP};
use crate::protocol::sql;

/// Which end sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Frontend,
    Backend,
}

/// Length of a `ReadyForQuery`.
pub(super) const READY_LENGTH: usize = 6;
/// Bytes of each message's body that go into a fingerprint.
pub(super) const HASH_CAP: usize = 256;
pub(super) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;
/// PostgreSQL's own limit of a large message, `PQ_LARGE_MESSAGE_LIMIT`.
const LONGEST: u32 = 0x3fff_ffff;

pub(super) const CODE_CANCEL: u32 = 80_877_102;
pub(super) const CODE_SSL: u32 = 80_877_103;
pub(super) const CODE_GSSENC: u32 = 80_877_104;

/// FNV-1a: stable across processes.
pub(super) fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// How much of a body pairing reads. Passwords, rows and copied data: nothing.
pub(super) const fn keep(side: Side, tag: u8) -> usize {
    match (side, tag) {
        (Side::Frontend, 0) => 1024,
        (Side::Frontend, b'Q' | b'P') => TEXT_CAP + 256,
        (Side::Frontend, b'B') => 512,
        (Side::Frontend, b'E' | b'D' | b'C') => 256,
        (Side::Backend, b'E') => 64,
        (Side::Backend, b'C') => 64,
        (Side::Backend, b'Z') => 1,
        _ => 0,
    }
}

/// Whether a message of this type may have this length, which counts itself.
pub(super) fn plausible_header(side: Side, tag: u8, length: u32) -> bool {
    match (side, tag) {
        (Side::Frontend, 0) => (8..=10_000).contains(&length),
        (Side::Frontend, b'S' | b'H' | b'X' | b'c') => length == 4,
        (Side::Frontend, b'Q' | b'f' | b'p') => (5..=LONGEST).contains(&length),
        (Side::Frontend, b'P') => (8..=LONGEST).contains(&length),
        (Side::Frontend, b'B') => (12..=LONGEST).contains(&length),
        (Side::Frontend, b'E') => (9..=1024).contains(&length),
        (Side::Frontend, b'D' | b'C') => (6..=1024).contains(&length),
        (Side::Frontend, b'F') => (14..=LONGEST).contains(&length),
        (Side::Backend, b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'c') => length == 4,
        (Side::Backend, b'Z') => length == 5,
        (Side::Backend, b'K') => (12..=264).contains(&length),
        (Side::Backend, b'R') => (8..=65_536).contains(&length),
        (Side::Backend, b'C') => (6..=256).contains(&length),
        (Side::Backend, b'S') => (6..=65_536).contains(&length),
        (Side::Backend, b'E' | b'N') => (5..=LONGEST).contains(&length),
        (Side::Backend, b'T' | b't' | b'D') => (6..=LONGEST).contains(&length),
        (Side::Backend, b'G' | b'H' | b'W') => (7..=16_384).contains(&length),
        (Side::Backend, b'V' | b'v') => (8..=LONGEST).contains(&length),
        (Side::Backend, b'A') => (10..=65_536).contains(&length),
        (_, b'd') => (4..=LONGEST).contains(&length),
        _ => false,
    }
}

/// What a run of bytes looks like, read as messages of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    No,
    Perhaps,
    Yes,
}

/// Reads `bytes` as messages, as long as they are captured.
pub(super) fn chain(side: Side, bytes: &[u8]) -> Chain {
    let mut rest = bytes;
    let mut found = Chain::Perhaps;
    for _ in 0..64 {
        let [tag, a, b, c, d, after @ ..] = rest else {
            let known = rest.first().is_none_or(|tag| *tag != 0 && keyed(side, *tag));
            let small = rest.get(1).is_none_or(|byte| *byte < 0x40);
            return if known && small { found } else { Chain::No };
        };
        let length = u32::from_be_bytes([*a, *b, *c, *d]);
        if *tag == 0 || !plausible_header(side, *tag, length) {
            return Chain::No;
        }
        let size = usize::try_from(length.saturating_sub(4)).unwrap_or(usize::MAX);
        let body = after.get(..size);
        match sound(side, *tag, body.unwrap_or(after), body.is_some()) {
            Chain::No => return Chain::No,
            Chain::Yes => found = Chain::Yes,
            Chain::Perhaps => {}
        }
        match after.get(size..) {
            Some(next) if !next.is_empty() => rest = next,
            _ => break,
        }
    }
    found
}

fn keyed(side: Side, tag: u8) -> bool {
    let tags: &[u8] = match side {
        Side::Frontend => b"QPBEDCSHXFdcfp",
        Side::Backend => b"RSKZ123TtDCENnsAIGHWVvcd",
    };
    tags.contains(&tag)
}

/// Whether a body, `whole` or cut, can be one of this type.
fn sound(side: Side, tag: u8, body: &[u8], whole: bool) -> Chain {
    let verdict = |sound: bool| match (sound, whole) {
        (false, _) => Chain::No,
        (true, true) => Chain::Yes,
        (true, false) => Chain::Perhaps,
    };
    match (side, tag) {
        (Side::Frontend, b'Q' | b'P') => {
            let (text, rest) = if tag == b'P' {
                let Some((name, rest)) = string(body) else { return verdict(!whole && plain(body)) };
                if name.len() > 128 || !plain(name) {
                    return Chain::No;
                }
                until_nul(rest)
            } else {
                until_nul(body)
            };
            let closed = match (tag, rest) {
                (b'Q', Some(rest)) => rest.is_empty(),
                (_, Some([a, b, types @ ..])) => {
                    let size = usize::from(u16::from_be_bytes([*a, *b])).saturating_mul(4);
                    if whole { types.len() == size } else { types.len() < size }
                }
                (_, Some(_)) => !whole,
                (_, None) => !whole,
            };
            let statement = plain(text) && (text.is_empty() || sql::looks_like_statement(text));
            if !closed || !(statement || (!whole && text.len() < 16 && plain(text))) {
                Chain::No
            } else if statement && text.len() >= 8 {
                Chain::Yes
            } else {
                verdict(true)
            }
        }
        (Side::Frontend, b'B') => {
            let named = string(body).and_then(|(portal, rest)| Some((portal, string(rest)?)));
            match named {
                Some((portal, (statement, rest))) => {
                    let sound = plain(portal) && plain(statement) && formats(rest).is_none_or(|ok| ok);
                    verdict(sound && (!whole || rest.len() >= 6))
                }
                None => verdict(!whole && body.len() < 256),
            }
        }
        (Side::Frontend, b'E') => verdict(
            string(body)
                .map_or(!whole && plain(body), |(name, rest)| plain(name) && (rest.len() == 4 || !whole)),
        ),
        (Side::Frontend, b'D' | b'C') => verdict(match body.split_first() {
            Some((b'S' | b'P', rest)) => {
                string(rest).map_or(!whole && plain(rest), |(name, rest)| plain(name) && rest.is_empty())
            }
            Some(_) => false,
            None => !whole,
        }),
        (Side::Backend, b'Z') => verdict(match body.first() {
            Some(status) => matches!(status, b'I' | b'T' | b'E'),
            None => !whole,
        }),
        (Side::Backend, b'C') => {
            verdict(if whole { command(body).is_some() } else { body.iter().all(u8::is_ascii_graphic) })
        }
        (Side::Backend, b'E' | b'N') => verdict(match body {
            [] => !whole,
            [b'S', rest @ ..] => {
                string(rest).map_or(!whole, |(word, _)| word.len() < 32) && (!whole || rest.ends_with(&[0]))
            }
            _ => false,
        }),
        (Side::Backend, b'S') => verdict(match string(body) {
            Some((name, rest)) => {
                plain(name)
                    && !name.is_empty()
                    && (!whole || string(rest).is_some_and(|(_, end)| end.is_empty()))
            }
            None => !whole && plain(body),
        }),
        (Side::Backend, b'D') => verdict(row(body, whole)),
        (Side::Backend, b'T') => verdict(!whole || body.len() >= 2),
        (Side::Backend, b'R') => match body {
            [0, 0, 0, code, ..] => verdict(*code <= 12),
            _ => verdict(!whole),
        },
        // A body without structure proves nothing.
        (_, b'd' | b'p' | b'f' | b'F' | b'V' | b'v' | b't' | b'A' | b'G' | b'H' | b'W' | b'K')
            if !body.is_empty() =>
        {
            Chain::Perhaps
        }
        _ => verdict(true),
    }
}

/// Whether the columns of a `DataRow` fill it exactly.
fn row(body: &[u8], whole: bool) -> bool {
    let [a, b, rest @ ..] = body else { return !whole };
    let mut rest = rest;
    for _ in 0..u16::from_be_bytes([*a, *b]) {
        let [a, b, c, d, after @ ..] = rest else { return !whole };
        let length = i32::from_be_bytes([*a, *b, *c, *d]);
        if length < -1 {
            return false;
        }
        let Some(after) = after.get(usize::try_from(length).unwrap_or(0)..) else { return !whole };
        rest = after;
    }
    rest.is_empty()
}

/// No control characters but white space: a name or a text.
fn plain(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte >= 0x20 || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c))
}

/// A NUL-terminated string, and what follows it.
pub(super) fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end.checked_add(1)?..)?))
}

/// A string that may be cut: then nothing follows it.
pub(super) fn until_nul(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    string(bytes).map_or((bytes, None), |(text, rest)| (text, Some(rest)))
}

/// Whether a `Bind`'s parameter formats are 0 or 1; `None` if they are not all there.
fn formats(rest: &[u8]) -> Option<bool> {
    let [a, b, codes @ ..] = rest else { return None };
    let size = usize::from(u16::from_be_bytes([*a, *b])).checked_mul(2)?;
    Some(codes.get(..size)?.chunks(2).all(|code| matches!(code, [0, 0 | 1])))
}

/// Number of parameters of a `Bind`, from what follows its names.
pub(super) fn parameter_count(rest: &[u8]) -> Option<u16> {
    let [a, b, codes @ ..] = rest else { return None };
    let size = usize::from(u16::from_be_bytes([*a, *b])).checked_mul(2)?;
    match codes.get(size..)? {
        [a, b, ..] => Some(u16::from_be_bytes([*a, *b])),
        _ => None,
    }
}

/// `CommandComplete`: the command and its number of rows, as in `INSERT 0 5` or `CREATE TABLE`.
pub(super) fn command(body: &[u8]) -> Option<(Box<str>, Option<u64>)> {
    let (tag, rest) = string(body)?;
    let tag = std::str::from_utf8(tag).ok().filter(|_| rest.is_empty())?;
    let words: Vec<&str> = tag.split(' ').collect();
    let upper = |word: &&&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
    let numeric = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let verbs: Vec<&str> = words.iter().take_while(upper).copied().collect();
    let numbers = words.get(verbs.len()..)?;
    let sound = !verbs.is_empty() && numbers.len() <= 2 && numbers.iter().all(numeric);
    let count = numbers.last().and_then(|number| number.parse().ok());
    sound.then(|| (verbs.join(" ").into(), count))
}

/// `ErrorResponse`: severity and SQLSTATE; they precede the texts.
pub(super) fn failure(body: &[u8]) -> Failure {
    let mut severity = Severity::Unknown;
    let mut sqlstate = None;
    let mut rest = body;
    while let [field @ (b'S' | b'V' | b'C'), after @ ..] = rest {
        let Some((value, next)) = string(after) else { break };
        match (field, value) {
            // `V` is never translated, and comes after `S`.
            (b'S' | b'V', b"ERROR") => severity = Severity::Error,
            (b'S' | b'V', b"FATAL") => severity = Severity::Fatal,
            (b'S' | b'V', b"PANIC") => severity = Severity::Panic,
            (b'C', code) => sqlstate = <[u8; 5]>::try_from(code).ok(),
            _ => {}
        }
        rest = next;
    }
    Failure::new(severity, sqlstate)
}

/// Where messages begin again in a segment behind lost bytes, by its end: a `ReadyForQuery`, and the
/// `CommandComplete` just before it if it is there. Gives the number of bytes from there to the end.
pub(super) fn ready_at_end(bytes: &[u8]) -> Option<usize> {
    let start = bytes.len().checked_sub(READY_LENGTH)?;
    let (before, ready) = bytes.split_at_checked(start)?;
    let [b'Z', 0, 0, 0, 5, b'I' | b'T' | b'E'] = ready else { return None };
    let window = before.get(before.len().saturating_sub(64)..)?;
    for (offset, candidate) in window.iter().enumerate() {
        let Some([b'C', 0, 0, 0, length, body @ ..]) = window.get(offset..).filter(|_| *candidate == b'C')
        else {
            continue;
        };
        if usize::from(*length) == body.len().saturating_add(4) && command(body).is_some() {
            return Some(body.len().saturating_add(5).saturating_add(READY_LENGTH));
        }
    }
    Some(READY_LENGTH)
}

/// `StartupMessage` after its code: keys and values.
pub(super) fn settings(body: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    let mut rest = body;
    while let Some((key, after)) = string(rest) {
        let Some((value, next)) = string(after) else { break };
        if key.is_empty() || found.len() >= 32 {
            break;
        }
        found.push((key, value));
        rest = next;
    }
    found
}
