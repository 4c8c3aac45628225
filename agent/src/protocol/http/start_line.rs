//! Request lines and status lines (RFC 9112, sections 3 and 4), whole or cut short.
//!
//! Takes the first bytes of a message; gives the line's parts, or how sure one can be that it is such a line at all.

use super::types::Version;
use crate::protocol::Guess;

/// Longest method that is believed. The longest registered one is `UPDATEREDIRECTREF`.
const MAX_METHOD: usize = 24;
/// A target of this length, after a plausible method, is believed without its version.
const LONG_TARGET: usize = 1024;

const REQUEST: Guess = Guess::Yes { request: true };
const RESPONSE: Guess = Guess::Yes { request: false };

/// Judges the first bytes of either direction of a connection.
///
/// A request is a plausible method, a target and `HTTP/1.`; HTTP/2's preface is none. A response starts with `HTTP/1.`.
pub fn guess(bytes: &[u8]) -> Guess {
    match starts_like(bytes, b"HTTP/1.", RESPONSE) {
        Guess::No => guess_request(bytes),
        other => other,
    }
}

/// Judges the first bytes of what should be a request.
pub(super) fn guess_request(bytes: &[u8]) -> Guess {
    let Some((method, rest)) = split_at_space(bytes) else {
        return if is_method(bytes) || bytes.is_empty() { Guess::Perhaps } else { Guess::No };
    };
    if !is_method(method) || method == b"PRI" {
        return Guess::No;
    }
    match split_at_space(rest) {
        Some((target, version)) if is_target(method, target, true) => {
            starts_like(version, b"HTTP/1.", REQUEST)
        }
        None if is_target(method, rest, false) => {
            if rest.len() >= LONG_TARGET {
                REQUEST
            } else {
                Guess::Perhaps
            }
        }
        _ => Guess::No,
    }
}

/// Judges the first bytes of what should be a response: `HTTP/1.x nnn`.
pub(super) fn guess_response(bytes: &[u8]) -> Guess {
    let mut template = b"HTTP/1.d ddd".iter();
    for byte in bytes {
        match template.next() {
            Some(b'd') if byte.is_ascii_digit() => {}
            Some(expected) if expected == byte => {}
            Some(_) => return Guess::No,
            None => return RESPONSE,
        }
    }
    if template.next().is_none() { RESPONSE } else { Guess::Perhaps }
}

fn starts_like(bytes: &[u8], pattern: &[u8], yes: Guess) -> Guess {
    if bytes.starts_with(pattern) {
        yes
    } else if pattern.starts_with(bytes) {
        Guess::Perhaps
    } else {
        Guess::No
    }
}

fn split_at_space(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == b' ')?;
    bytes.split_at_checked(at).map(|(left, right)| (left, right.get(1..).unwrap_or_default()))
}

fn is_method(bytes: &[u8]) -> bool {
    (1..=MAX_METHOD).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_'))
}

/// Whether `bytes` are a target, or (not `whole`) may become one.
fn is_target(method: &[u8], bytes: &[u8], whole: bool) -> bool {
    if !bytes.iter().all(|&byte| byte > b' ' && byte != 0x7f) {
        return false;
    }
    match bytes.first() {
        None => !whole,
        Some(b'/') => true,
        Some(b'*') => bytes.len() == 1,
        Some(first) if method == b"CONNECT" => first.is_ascii_alphanumeric() || *first == b'[',
        Some(_) => [b"http://".as_slice(), b"https://"].iter().any(|scheme| {
            let shared = scheme.len().min(bytes.len());
            (bytes.len() > scheme.len() || !whole)
                && bytes.get(..shared).is_some_and(|start| {
                    scheme.get(..shared).is_some_and(|scheme| start.eq_ignore_ascii_case(scheme))
                })
        }),
    }
}

/// The parts of a request line.
#[derive(Debug, PartialEq)]
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
    /// The line ends inside the target.
    pub(super) truncated: bool,
    pub(super) version: Version,
}

/// Takes a request line apart; `line` is without its line end, and may be cut anywhere.
pub(super) fn request_line(line: &[u8]) -> Option<RequestLine<'_>> {
    if guess_request(line) != REQUEST {
        return None;
    }
    let (method, rest) = split_at_space(line)?;
    Some(match split_at_space(rest) {
        Some((target, version)) => {
            RequestLine { method, target, truncated: false, version: minor(version.get(7)) }
        }
        None => RequestLine { method, target: rest, truncated: true, version: Version::Http11 },
    })
}

/// Version and status code of a status line, which may be cut after the code.
pub(super) fn status_line(line: &[u8]) -> Option<(Version, u16)> {
    if guess_response(line) != RESPONSE {
        return None;
    }
    let status = std::str::from_utf8(line.get(9..12)?).ok()?.parse().ok()?;
    (100..=999).contains(&status).then(|| (minor(line.get(7)), status))
}

fn minor(digit: Option<&u8>) -> Version {
    if digit == Some(&b'0') { Version::Http10 } else { Version::Http11 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Guess) {
        assert_eq!(guess(bytes), expected, "{}", bytes.escape_ascii());
        if let Guess::Yes { .. } = expected {
            for cut in 0..bytes.len() {
                assert_ne!(guess(&bytes[..cut]), Guess::No, "{}", bytes[..cut].escape_ascii());
            }
        }
    }

    #[test]
    fn tells_http_from_the_rest() {
        for request in [
            "GET / HTTP/1.1\r\n",
            "get / HTTP/1.0\r\n",
            "M-SEARCH * HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "CONNECT [::1]:443 HTTP/1.1",
            "GET http://a/ HTTP/1.1",
            "GET HTTPS://a/b?c HTTP/1.1",
            "PROPFIND /dav HTTP/1.1",
        ] {
            check(request.as_bytes(), REQUEST);
        }
        check(b"HTTP/1.1 200 OK\r\n", RESPONSE);
        check(format!("GET /{}", "a".repeat(LONG_TARGET)).as_bytes(), REQUEST);
        for perhaps in ["", "H", "HTTP/", "GET", "GET /x", "GET h", "GET / HTTP/1"] {
            check(perhaps.as_bytes(), Guess::Perhaps);
        }
        for no in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"GET key\r\n",
            b"SELECT 1",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\x16\x03\x01\x02\0",
            b"GET / HTTP/2",
            b"GET  / HTTP/1.1",
            b"GET /a b HTTP/1.1",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b" ",
        ] {
            check(no, Guess::No);
        }
    }

    #[test]
    fn takes_lines_apart() {
        let line = request_line(b"POST /a?b HTTP/1.0").unwrap();
        assert_eq!((line.method, line.target, line.version), (&b"POST"[..], &b"/a?b"[..], Version::Http10));
        assert_eq!(request_line(b"GET /a"), None);
        assert_eq!(status_line(b"HTTP/1.1 404 Not Found"), Some((Version::Http11, 404)));
        assert_eq!(status_line(b"HTTP/1.0 204"), Some((Version::Http10, 204)));
        assert_eq!(status_line(b"HTTP/1.1 20"), None);
        assert_eq!(status_line(b"HTTP/1.1 099"), None);
    }
}
