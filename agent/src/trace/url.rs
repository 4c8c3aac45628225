//! Targets and authorities of HTTP requests as spans may show them: taken apart, and without their secrets.
//!
//! Takes strings as they were sent, also cut ones; gives strings. Knows no attribute keys.

use std::borrow::Cow;

/// What replaces a secret.
const REDACTED: &str = "REDACTED";

/// Query keys whose values are never shown, in lower case; matched regardless of case and percent-encoding. The first six
/// lines are the semantic conventions' list and its AWS and Google kin. `key` and `code` are too common in harmless
/// queries to be here.
const SECRET_KEYS: &[&str] = &[
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
    "x-goog-credential",
    "awsaccesskeyid",
    "signature",
    "sig",
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "auth",
    "auth_token",
    "authorization",
    "client_secret",
    "id_token",
    "jwt",
    "passwd",
    "password",
    "pwd",
    "refresh_token",
    "secret",
    "session_token",
    "token",
];

/// A request target, taken apart. The fragment, which clients do not send, is dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Of the absolute form.
    pub(super) scheme: Option<&'static str>,
    /// Of the absolute and the authority form, without user information.
    pub(super) authority: Option<&'a str>,
    /// The authority has user information.
    pub(super) has_user_info: bool,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Takes a target apart. `truncated`: it was cut at its end; a cut authority may be cut user information, and is dropped.
    pub(super) fn parse(target: &'a str, truncated: bool) -> Self {
        let target = target.split('#').next().unwrap_or_default();
        let split_query = |rest: &'a str| match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        if target.starts_with('/') || target == "*" {
            let (path, query) = split_query(target);
            return Self { path, query, ..Self::default() };
        }
        let (scheme, rest) = match target.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some("https"), rest),
            Some((_, rest)) => (Some("http"), rest),
            None => (None, target),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at_checked(end).unwrap_or((rest, ""));
        if truncated && rest.is_empty() {
            return Self { scheme, ..Self::default() };
        }
        let (path, query) = split_query(rest);
        let (has_user_info, authority) = match authority.rsplit_once('@') {
            Some((_, host)) => (true, host),
            None => (false, authority),
        };
        Self { scheme, authority: Some(authority), has_user_info, path, query }
    }
}

/// An authority's host, without brackets, and its port. `None` if it cannot be one.
pub(super) fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        (host, rest.strip_prefix(':'))
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return None;
    }
    match port {
        None | Some("") => Some((host, None)),
        Some(port) => Some((host, Some(port.parse().ok()?))),
    }
}

/// A query string with the values of secret keys replaced. A value that was cut is replaced as a whole one is.
pub(super) fn mask_query(query: &str) -> Cow<'_, str> {
    if !query.split('&').any(is_secret) {
        return Cow::Borrowed(query);
    }
    let mut masked = String::with_capacity(query.len());
    for (index, pair) in query.split('&').enumerate() {
        if index > 0 {
            masked.push('&');
        }
        match pair.split_once('=') {
            Some((key, _)) if is_secret(pair) => {
                masked.push_str(key);
                masked.push('=');
                masked.push_str(REDACTED);
            }
            _ => masked.push_str(pair),
        }
    }
    Cow::Owned(masked)
}

fn is_secret(pair: &str) -> bool {
    let Some((key, value)) = pair.split_once('=') else { return false };
    let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
    !value.is_empty() && SECRET_KEYS.iter().any(|secret| key.eq_ignore_ascii_case(secret))
}

/// `url.full`: the absolute URL of a target. `authority` is used where the target has none.
pub(super) fn full(target: &Target<'_>, scheme: &str, authority: &str) -> String {
    let user_info = if target.has_user_info { "REDACTED:REDACTED@" } else { "" };
    let authority = target.authority.unwrap_or(authority);
    let (_, authority) = authority.rsplit_once('@').unwrap_or(("", authority));
    let scheme = target.scheme.unwrap_or(scheme);
    let path = if target.path == "*" { "" } else { target.path };
    match target.query {
        Some(query) => format!("{scheme}://{user_info}{authority}{path}?{}", mask_query(query)),
        None => format!("{scheme}://{user_info}{authority}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, expected: &str) {
        assert_eq!(full(&Target::parse(target, false), "http", "host:8000"), expected);
    }

    #[test]
    fn urls_are_whole_and_masked() {
        check("/a?b=c", "http://host:8000/a?b=c");
        check("/", "http://host:8000/");
        check("/a?", "http://host:8000/a?");
        check("*", "http://host:8000");
        check("/a#frag?x", "http://host:8000/a");
        check("https://u:p@other/a?x=1", "https://REDACTED:REDACTED@other/a?x=1");
        check("HTTP://u@other:81?sig=x", "http://REDACTED:REDACTED@other:81?sig=REDACTED");
        check("db.example:443", "http://db.example:443");
        check("/s3?X-Amz-Signature=abc&x=1", "http://host:8000/s3?X-Amz-Signature=REDACTED&x=1");
        check(
            "/?a&SIG=1&X%2Damz%2Dcredential=2&token=&q=a@b",
            "http://host:8000/?a&SIG=REDACTED&X%2Damz%2Dcredential=REDACTED&token=&q=a@b",
        );
        check("/u@v/p", "http://host:8000/u@v/p");
    }

    #[test]
    fn every_cut_of_a_secret_stays_secret() {
        for whole in ["/x?a=1&password=hunter2&b=2", "http://bob:hunter2@host/x?token=hunter2"] {
            for cut in 0..whole.len() {
                let shown = full(&Target::parse(&whole[..cut], true), "http", "host");
                assert!(!shown.contains("=h") && !shown.contains(":h"), "{shown}");
            }
        }
    }

    #[test]
    fn authorities() {
        assert_eq!(host_and_port("a.b"), Some(("a.b", None)));
        assert_eq!(host_and_port("a.b:80"), Some(("a.b", Some(80))));
        assert_eq!(host_and_port("[::1]:80"), Some(("::1", Some(80))));
        assert_eq!(host_and_port("[::1]"), Some(("::1", None)));
        assert_eq!(host_and_port("a:"), Some(("a", None)));
        for bad in ["", ":80", "[::1", "a:b", "a:99999", "::1"] {
            assert_eq!(host_and_port(bad), None, "{bad}");
        }
    }
}
