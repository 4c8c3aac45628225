//! The server's name in the first bytes of a TLS connection: what a ClientHello asks for (RFC 8446, section 4.1.2; RFC 6066,
//! section 3).
//!
//! Takes the first bytes that the client sends, as many as there are: the rest of a long ClientHello may be missing.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)
)]

/// A record's content type `handshake`, and the major version of all of them.
const HANDSHAKE: u8 = 22;
/// See [`HANDSHAKE`].
const MAJOR: u8 = 3;
/// The type of the handshake message.
const CLIENT_HELLO: u8 = 1;
/// The extension `server_name`, and its only kind of name.
const SERVER_NAME: u16 = 0;
/// See [`SERVER_NAME`].
const HOST_NAME: u8 = 0;
/// A host name is not longer (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 253;

/// Whether these bytes may begin a ClientHello.
pub(super) fn begins(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE, MAJOR, _, _, _, CLIENT_HELLO, ..])
}

/// The name, if these bytes begin a ClientHello that has one.
pub(super) fn server_name(bytes: &[u8]) -> Option<&str> {
    if !begins(bytes) {
        return None;
    }
    // A record: its type, version and length. A message: its type and length, `legacy_version` and `random`.
    let mut rest = bytes;
    take(&mut rest, 5 + 4 + 2 + 32)?;
    // `legacy_session_id`, `cipher_suites` and `legacy_compression_methods`
    for width in [1, 2, 1] {
        vector(&mut rest, width)?;
    }
    // The length of the extensions.
    take(&mut rest, 2)?;
    loop {
        let kind = number(take(&mut rest, 2)?);
        let mut extension = vector(&mut rest, 2)?;
        if kind == usize::from(SERVER_NAME) {
            let mut names = vector(&mut extension, 2)?;
            let is_host = take(&mut names, 1)? == [HOST_NAME];
            let name = std::str::from_utf8(vector(&mut names, 2)?).ok()?;
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            let fits = (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_name);
            return (is_host && fits).then_some(name);
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// What follows its length, a number of `width` bytes.
fn vector<'a>(rest: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let length = number(take(rest, width)?);
    take(rest, length)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello with these extensions.
    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
        let extensions: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, body)| [&kind.to_be_bytes()[..], &with_length(body)].concat())
            .collect();
        let body = [
            &b"\x03\x03"[..],
            &[7; 32],
            b"\x20",
            &[9; 32],
            &with_length(&[0x13, 1, 0x13, 2]),
            b"\x01\0",
            &with_length(&extensions),
        ]
        .concat();
        let message = [b"\x01\0", &with_length(&body)[..]].concat();
        [b"\x16\x03\x01", &with_length(&message)[..]].concat()
    }

    fn name(name: &[u8]) -> Vec<u8> {
        let length = name.len() as u16;
        [&(length + 3).to_be_bytes()[..], b"\0", &length.to_be_bytes(), name].concat()
    }

    #[test]
    fn the_name_wherever_it_is() {
        let named = name(b"db.shop.example");
        for extensions in
            [&[(0, named.as_slice()), (43, b"\x02\x03\x04")][..], &[(10, b"\0\x02\0\x1d"), (0, &named)]]
        {
            let hello = hello(extensions);
            assert_eq!(server_name(&hello), Some("db.shop.example"));
            // What follows it may be missing, it itself may not.
            let end = hello.windows(named.len()).position(|window| window == named).unwrap() + named.len();
            for cut in 0..hello.len() {
                let expected = (cut >= end).then_some("db.shop.example");
                assert_eq!(server_name(&hello[..cut]), expected, "{cut} bytes");
            }
        }
    }

    #[test]
    fn no_name() {
        assert_eq!(server_name(&hello(&[(43, b"\x02\x03\x04")])), None);
        for odd in [&b"a b"[..], b"", b"\xff\xfe", &[b'a'; 254]] {
            assert_eq!(server_name(&hello(&[(0, &name(odd))])), None, "{odd:?}");
        }
        assert_eq!(server_name(b"GET / HTTP/1.1\r\n\r\n"), None);
        // A ServerHello.
        assert_eq!(server_name(b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03"), None);
        assert_eq!(server_name(b""), None);
    }
}
