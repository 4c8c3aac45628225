//! Who a request was made for, as proxies tell it: `Forwarded` (RFC 7239), `X-Forwarded-For`, `X-Forwarded-Proto`.
//!
//! Only the first hop counts, and only if it is an IP address: names and obfuscated identifiers are not kept. These fields
//! are a claim of whoever sent them. `Forwarded` goes before the older ones.

use std::net::{IpAddr, SocketAddr};

/// What the forwarding fields of one request say.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    standard: Hop,
    legacy: Hop,
}

#[derive(Debug, Default)]
struct Hop {
    address: Option<IpAddr>,
    proto: Option<&'static str>,
}

impl Forwarding {
    pub(super) fn read(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(b"forwarded") {
            for pair in first_item(value).split(';') {
                let Some((key, value)) = pair.trim().split_once('=') else { continue };
                if key.eq_ignore_ascii_case("for") {
                    self.standard.address = self.standard.address.or_else(|| address(value));
                } else if key.eq_ignore_ascii_case("proto") {
                    self.standard.proto = self.standard.proto.or_else(|| scheme(value));
                }
            }
        } else if name.eq_ignore_ascii_case(b"x-forwarded-for") {
            self.legacy.address = self.legacy.address.or_else(|| address(first_item(value)));
        } else if name.eq_ignore_ascii_case(b"x-forwarded-proto") {
            self.legacy.proto = self.legacy.proto.or_else(|| scheme(first_item(value)));
        }
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.standard.address.or(self.legacy.address)
    }

    pub(super) fn proto(&self) -> Option<&'static str> {
        self.standard.proto.or(self.legacy.proto)
    }
}

/// The first element of a comma-separated list: the hop nearest to the client.
fn first_item(value: &[u8]) -> &str {
    let first = value.split(|&byte| byte == b',').next().unwrap_or_default();
    std::str::from_utf8(first).unwrap_or_default()
}

/// An address as `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]`, or one of these with a port; quoted or not.
fn address(value: &str) -> Option<IpAddr> {
    let value = value.trim().trim_matches('"');
    if let Ok(with_port) = value.parse::<SocketAddr>() {
        return Some(with_port.ip());
    }
    value.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn scheme(value: &str) -> Option<&'static str> {
    let value = value.trim().trim_matches('"');
    ["http", "https"].into_iter().find(|scheme| value.eq_ignore_ascii_case(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &[(&str, &str)], expected: Option<&str>, proto: Option<&str>) {
        let mut forwarding = Forwarding::default();
        for (name, value) in fields {
            forwarding.read(name.as_bytes(), value.as_bytes());
        }
        assert_eq!(forwarding.address().map(|address| address.to_string()).as_deref(), expected);
        assert_eq!(forwarding.proto(), proto);
    }

    #[test]
    fn first_hop_only() {
        check(&[("X-Forwarded-For", "203.0.113.7, 10.0.0.1")], Some("203.0.113.7"), None);
        check(
            &[("x-forwarded-for", "203.0.113.7:4711"), ("X-Forwarded-Proto", "HTTPS")],
            Some("203.0.113.7"),
            Some("https"),
        );
        check(
            &[("Forwarded", "for=192.0.2.60;proto=http;by=203.0.113.43, for=1.2.3.4")],
            Some("192.0.2.60"),
            Some("http"),
        );
        check(&[("Forwarded", "For=\"[2001:db8:cafe::17]:4711\"")], Some("2001:db8:cafe::17"), None);
        check(
            &[("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=\"[2001:db8::1]\"")],
            Some("2001:db8::1"),
            None,
        );
        check(&[("X-Forwarded-For", "2001:db8::1")], Some("2001:db8::1"), None);
        check(
            &[("X-Forwarded-For", "unknown"), ("Forwarded", "for=_hidden"), ("X-Forwarded-Proto", "gopher")],
            None,
            None,
        );
    }
}
