//! What is kept of an HTTP exchange: the facts that a span needs, each bounded in length.
//!
//! Nothing of bodies is kept, and of the header fields only those named here.

/// Longest target kept, in bytes.
pub const MAX_TARGET: usize = 8 * 1024;
/// Longest value kept of any header field, in bytes.
pub const MAX_FIELD: usize = 512;

/// The methods of RFC 9110, PATCH (RFC 5789) and QUERY.
pub const STANDARD_METHODS: [&str; 10] =
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"];

/// The minor versions of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

impl Version {
    /// As `network.protocol.version` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
        }
    }
}

/// How an exchange came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The response was seen to its last byte.
    Complete,
    /// The connection left HTTP: a 101 response, or a 2xx response to CONNECT.
    Upgraded,
    /// The side that responds finished sending before the response was complete.
    PeerEnded,
    /// The connection was closed before the response was complete.
    ConnectionClosed,
    /// Bytes of the exchange were not captured, and its end is a deduction. This is no failure of the exchange.
    BytesLost,
}

/// An HTTP request and what is known of its response.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// Method, as sent.
    pub method: Box<str>,
    /// Request target as sent: origin form (`/path?query`), absolute form, authority form or `*`. It may hold secrets:
    /// mask it before it is shown.
    pub target: Box<str>,
    /// The target was longer than what was captured or is kept.
    pub target_truncated: bool,
    /// The request's head was longer than what was captured: header fields may be missing.
    pub head_truncated: bool,
    /// Version of the request.
    pub version: Version,
    /// `Host`
    pub host: Option<Box<str>>,
    /// `User-Agent`
    pub user_agent: Option<Box<str>>,
    /// The first address of `Forwarded` (`for=`), else of `X-Forwarded-For`, without port; addresses only, no names.
    pub forwarded_for: Option<std::net::IpAddr>,
    /// `http` or `https`: the first `proto=` of `Forwarded`, else of `X-Forwarded-Proto`.
    pub forwarded_proto: Option<&'static str>,
    /// Payload bytes of the request's body, chunk framing excluded. `None`: it has none, or its size is not known.
    pub request_body_size: Option<u64>,
    /// Status code of the final response.
    pub status: Option<u16>,
    /// Version of the response.
    pub response_version: Option<Version>,
    /// `Content-Type` of the response.
    pub content_type: Option<Box<str>>,
    /// Payload bytes of the response's body, chunk framing excluded. `None`: not known.
    pub response_body_size: Option<u64>,
    /// How it ended.
    pub ending: Ending,
}

impl Exchange {
    /// The response was seen to its end.
    pub fn complete(&self) -> bool {
        matches!(self.ending, Ending::Complete | Ending::Upgraded)
    }

    /// The connection left HTTP with this exchange.
    pub fn upgraded(&self) -> bool {
        self.ending == Ending::Upgraded
    }
}
