//! Whether bytes are Redis: strict enough never to claim HTTP, PostgreSQL or noise.
//!
//! Takes the first bytes of one direction, from a place where a message may start.

use super::command::{is_name, words};
use super::lex::integer;
use super::reply::{ReplyReader, double_like, integer_like};
use crate::protocol::Guess;

/// Commands that people and health checks send inline, with the most arguments that are believed.
const INLINE: [(&str, usize); 12] = [
    ("PING", 1),
    ("QUIT", 0),
    ("INFO", 1),
    ("AUTH", 2),
    ("SELECT", 1),
    ("GET", 1),
    ("SET", 6),
    ("DEL", 8),
    ("EXISTS", 8),
    ("MONITOR", 0),
    ("ECHO", 1),
    ("INCR", 1),
];
/// Longest first line that is waited for.
const LINE_LIMIT: usize = 256;

/// Judges the first bytes of one direction.
pub fn guess(bytes: &[u8]) -> Guess {
    match bytes.first() {
        None => Guess::Perhaps,
        // An array is a command when its first element is a name; a server's reply may look the same, and when it
        // holds anything but strings it is one.
        Some(b'*') => array(bytes),
        Some(
            b'+' | b'-' | b':' | b'$' | b'_' | b'#' | b',' | b'(' | b'!' | b'=' | b'%' | b'~' | b'>' | b'|',
        ) => reply(bytes),
        Some(first) if first.is_ascii_alphabetic() => inline(bytes),
        Some(_) => Guess::No,
    }
}

/// Takes a line off, without its end. `Err`: it is not there yet, or will never be.
fn line(bytes: &[u8]) -> Result<(&[u8], &[u8]), Guess> {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        let plain = bytes.iter().all(|&byte| byte == b'\r' || !byte.is_ascii_control());
        return Err(if plain && bytes.len() <= LINE_LIMIT { Guess::Perhaps } else { Guess::No });
    };
    let (line, rest) = bytes.split_at_checked(end).ok_or(Guess::No)?;
    let line = line.strip_suffix(b"\r").ok_or(Guess::No)?;
    Ok((line, rest.get(1..).unwrap_or_default()))
}

fn array(bytes: &[u8]) -> Guess {
    let digits = bytes.iter().skip(1).take_while(|byte| byte.is_ascii_digit() || **byte == b'-').count();
    let after = bytes.get(digits.saturating_add(1)).copied();
    if digits > 10 || !matches!(after, None | Some(b'\r')) {
        return Guess::No;
    }
    let judged = (|| {
        let (head, rest) = line(bytes)?;
        let count = head.get(1..).and_then(integer).ok_or(Guess::No)?;
        if count < 1 {
            let valid = (-1..=0).contains(&count);
            return Err(if valid && rest.is_empty() { Guess::Perhaps } else { Guess::No });
        }
        let Some(&kind) = rest.first() else { return Err(Guess::Perhaps) };
        if kind != b'$' {
            return Ok(None);
        }
        let (head, rest) = line(rest)?;
        let len = head.get(1..).and_then(integer).ok_or(Guess::No)?;
        let Ok(len) = usize::try_from(len) else { return Ok(None) };
        if len == 0 || len > 48 {
            return Ok(None);
        }
        let Some(name) = rest.get(..len) else {
            return if is_name(rest) || rest.is_empty() { Err(Guess::Perhaps) } else { Ok(None) };
        };
        if !is_name(name) {
            return Ok(None);
        }
        match rest.get(len..).unwrap_or_default() {
            b"" | b"\r" => Err(Guess::Perhaps),
            after if after.starts_with(b"\r\n") => Ok(Some(name)),
            _ => Err(Guess::No),
        }
    })();
    match judged {
        Ok(Some(name)) if is_known(name) => Guess::Yes { request: true },
        Ok(Some(b"message" | b"pmessage" | b"smessage" | b"subscribe" | b"psubscribe" | b"unsubscribe")) => {
            reply(bytes)
        }
        // An array of strings whose first one is no known command: a module's command, or a reply.
        Ok(Some(_)) => Guess::Perhaps,
        Ok(None) => reply(bytes),
        Err(guess) => guess,
    }
}

/// Commands whose name proves a request; the first words of RESP2 push messages (`message`) are none.
fn is_known(name: &[u8]) -> bool {
    name.iter().any(u8::is_ascii_uppercase) && super::text::is_listed(&super::text::upper(name))
        || matches!(
            name,
            b"get" | b"set" | b"ping" | b"hello" | b"client" | b"auth" | b"select" | b"del" | b"multi"
        )
}

fn inline(bytes: &[u8]) -> Guess {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let mut parts = words(text);
    let name = super::text::upper(parts.next().unwrap_or_default());
    let arguments = parts.count();
    if text.iter().any(|byte| byte.is_ascii_control()) || text.len() > LINE_LIMIT {
        return Guess::No;
    }
    // HTTP's GET has a target that starts with a slash or a scheme, and a version behind it.
    let is_http = text.windows(5).any(|part| part == b"HTTP/") || text.windows(2).any(|part| part == b" /");
    if is_http {
        return Guess::No;
    }
    let only_name = !text.iter().any(u8::is_ascii_whitespace);
    let fits = INLINE.iter().any(|(known, most)| {
        if end.is_none() && only_name {
            known.starts_with(&name)
        } else {
            *known == name && arguments <= *most
        }
    });
    match (fits, end) {
        (false, _) => Guess::No,
        (true, None) => Guess::Perhaps,
        (true, Some(_)) => Guess::Yes { request: true },
    }
}

/// A reply proves itself when it is complete; a counted string or an aggregate when its second element began well.
fn reply(bytes: &[u8]) -> Guess {
    let (head, rest) = match line(bytes) {
        Ok(parts) => parts,
        Err(guess) => return if guess == Guess::Perhaps && !may_be_head(bytes) { Guess::No } else { guess },
    };
    let Some((&kind, text)) = head.split_first() else { return Guess::No };
    let valid = match kind {
        b'+' => text.len() <= 64 && text.iter().all(|byte| (0x20..0x7f).contains(byte)),
        b'-' => text.first().is_some_and(u8::is_ascii_uppercase),
        b':' | b'(' => integer_like(text),
        b',' => double_like(text),
        b'_' => text.is_empty(),
        b'#' => matches!(text, b"t" | b"f"),
        _ => text == b"?" || integer(text).is_some_and(|count| count >= -1),
    };
    if !valid {
        return Guess::No;
    }
    let mut reader = ReplyReader::new();
    let mut input = bytes;
    match reader.next(&mut input) {
        Err(_) => Guess::No,
        Ok(Some(_)) if input.is_empty() || b"+-:$*_#,(!=%~>|".contains(input.first().unwrap_or(&0)) => {
            Guess::Yes { request: false }
        }
        Ok(Some(_)) => Guess::No,
        // A long string has nothing but its head to show.
        Ok(None) if matches!(kind, b'$' | b'=') && rest.len() >= 512 => Guess::Yes { request: false },
        Ok(None) if reader.values_seen() >= 2 => Guess::Yes { request: false },
        Ok(None) => Guess::Perhaps,
    }
}

/// Whether a line that is not complete may become the head of a reply.
fn may_be_head(bytes: &[u8]) -> bool {
    let Some((&kind, text)) = bytes.split_first() else { return true };
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    match kind {
        b'+' => text.len() <= 64,
        b'-' => text.is_empty() || text.first().is_some_and(u8::is_ascii_uppercase),
        b'_' => text.is_empty(),
        b'#' => text.len() <= 1,
        b',' | b'(' => text.len() <= 64,
        _ => text.len() <= 19 && text.iter().all(|byte| byte.is_ascii_digit() || b"-+?".contains(byte)),
    }
}
