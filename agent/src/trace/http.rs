//! Spans of HTTP exchanges, by the stable HTTP semantic conventions.
//!
//! Takes an [`Exchange`], the observed process's part in it and the ends of its connection; gives [`SpanParts`]. Names have
//! no route: what knows routes appends them. `user_agent.original` is opt-in for clients, and left out.

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{KeyValue, Value};

use super::url::{self, Target};
use super::{Endpoint, Endpoints, SpanParts, semconv};
use crate::protocol::Role;
use crate::protocol::http::{Ending, Exchange, STANDARD_METHODS};

/// `error.type` of an exchange without a response.
const CONNECTION_CLOSED: &str = "connection_closed";
/// `error.type` of a response that its sender did not finish.
const RESPONSE_TRUNCATED: &str = "response_truncated";

static KNOWN_METHODS: OnceLock<KnownMethods> = OnceLock::new();

/// The methods that spans name; any other is `_OTHER`, so that clients cannot invent span names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownMethods(Vec<Box<str>>);

impl Default for KnownMethods {
    fn default() -> Self {
        Self(STANDARD_METHODS.into_iter().map(Into::into).collect())
    }
}

impl KnownMethods {
    /// The value of `OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS`: comma-separated, case-sensitive, in place of the default.
    pub fn from_list(list: &str) -> Self {
        Self(list.split(',').map(str::trim).filter(|method| !method.is_empty()).map(Into::into).collect())
    }

    /// Makes these the methods that [`span_parts`] knows. Call it once, before the first span; later calls, and calls
    /// after the first span, change nothing and return `false`.
    pub fn install(self) -> bool {
        KNOWN_METHODS.set(self).is_ok()
    }

    fn contains(&self, method: &str) -> bool {
        self.0.iter().any(|known| **known == *method)
    }
}

/// The span of an exchange.
pub fn span_parts(exchange: &Exchange, role: Role, endpoints: &Endpoints) -> SpanParts {
    span_parts_knowing(exchange, role, endpoints, KNOWN_METHODS.get_or_init(KnownMethods::default))
}

/// The span of an exchange, with a choice of known methods.
pub fn span_parts_knowing(
    exchange: &Exchange,
    role: Role,
    endpoints: &Endpoints,
    known: &KnownMethods,
) -> SpanParts {
    let mut attributes = Attributes(Vec::with_capacity(16));
    let known = known.contains(&exchange.method);
    if known {
        attributes.add(semconv::HTTP_REQUEST_METHOD, &*exchange.method);
    } else {
        attributes.add(semconv::HTTP_REQUEST_METHOD, "_OTHER");
        attributes.add(semconv::HTTP_REQUEST_METHOD_ORIGINAL, &*exchange.method);
    }

    let target = Target::parse(&exchange.target, exchange.target_truncated);
    match role {
        Role::Server => attributes.of_server(exchange, &target, endpoints),
        Role::Client => attributes.of_client(exchange, &target, endpoints),
    }
    attributes.of_peer(&endpoints.peer);

    // A server is asked in a version, a client is answered in one.
    let version = match role {
        Role::Server => exchange.version,
        Role::Client => exchange.response_version.unwrap_or(exchange.version),
    };
    attributes.add(semconv::NETWORK_PROTOCOL_VERSION, version.as_str());
    attributes.maybe(semconv::HTTP_RESPONSE_STATUS_CODE, exchange.status.map(i64::from));
    attributes.maybe(semconv::HTTP_REQUEST_BODY_SIZE, exchange.request_body_size.map(size));
    attributes.maybe(semconv::HTTP_RESPONSE_BODY_SIZE, exchange.response_body_size.map(size));

    let error = error_type(exchange, role);
    let status = if error.is_some() { Status::error("") } else { Status::Unset };
    attributes.maybe(semconv::ERROR_TYPE, error);

    SpanParts {
        name: if known { exchange.method.to_string() } else { "HTTP".to_owned() },
        kind: match role {
            Role::Server => SpanKind::Server,
            Role::Client => SpanKind::Client,
        },
        attributes: attributes.0,
        status,
    }
}

/// `error.type`, if the exchange failed. Bytes that were not captured are no failure, and neither is a reader that lost
/// interest in a response that had begun.
fn error_type(exchange: &Exchange, role: Role) -> Option<String> {
    let first_error = match role {
        Role::Server => 500,
        Role::Client => 400,
    };
    match (exchange.status, exchange.ending) {
        (Some(status), _) if status >= first_error => Some(status.to_string()),
        (Some(_), Ending::PeerEnded) if role == Role::Client => Some(RESPONSE_TRUNCATED.to_owned()),
        (None, Ending::PeerEnded | Ending::ConnectionClosed) => Some(CONNECTION_CLOSED.to_owned()),
        _ => None,
    }
}

impl Endpoints {
    fn scheme(&self) -> &'static str {
        if self.encrypted { "https" } else { "http" }
    }
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &'static str, value: impl Into<AttributeValue>) {
        self.0.push(KeyValue::new(key, value.into().0));
    }

    fn maybe(&mut self, key: &'static str, value: Option<impl Into<AttributeValue>>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }

    fn of_server(&mut self, exchange: &Exchange, target: &Target<'_>, endpoints: &Endpoints) {
        let scheme = exchange.forwarded_proto.or(target.scheme).unwrap_or(endpoints.scheme());
        self.add(semconv::URL_SCHEME, scheme);
        self.add(semconv::URL_PATH, target.path);
        self.maybe(semconv::URL_QUERY, target.query.map(|query| url::mask_query(query).into_owned()));
        self.of_origin(exchange, target, scheme, endpoints.server(Role::Server));
        let client = exchange.forwarded_for.or(match &endpoints.peer {
            Endpoint::Inet(peer) => Some(peer.ip()),
            Endpoint::Unix(_) | Endpoint::Unknown => None,
        });
        self.maybe(semconv::CLIENT_ADDRESS, client.map(|address| address.to_string()));
        self.maybe(semconv::USER_AGENT_ORIGINAL, exchange.user_agent.as_deref());
    }

    fn of_client(&mut self, exchange: &Exchange, target: &Target<'_>, endpoints: &Endpoints) {
        let scheme = target.scheme.unwrap_or(endpoints.scheme());
        let authority = match (exchange.host.as_deref(), &endpoints.server_name, &endpoints.peer) {
            (Some(host), ..) if url::host_and_port(host).is_some() => host.to_owned(),
            (_, Some(name), Endpoint::Inet(peer)) => format!("{name}:{}", peer.port()),
            (_, None, Endpoint::Inet(peer)) => peer.to_string(),
            (_, Some(name), Endpoint::Unknown) => name.to_string(),
            (_, _, Endpoint::Unix(_)) | (_, None, Endpoint::Unknown) => "localhost".to_owned(),
        };
        self.add(semconv::URL_FULL, url::full(target, scheme, &authority));
        self.of_origin(exchange, target, scheme, endpoints.server(Role::Client));
    }

    /// `server.*`: whom the request names, else the end of the connection that serves it.
    fn of_origin(
        &mut self,
        exchange: &Exchange,
        target: &Target<'_>,
        scheme: &str,
        server: (Option<String>, Option<u16>),
    ) {
        let named = target.authority.or(exchange.host.as_deref()).and_then(url::host_and_port);
        let default = if scheme == "https" { 443 } else { 80 };
        let (address, port) = match named {
            Some((host, port)) => (Some(host.to_owned()), Some(port.unwrap_or(default))),
            None => server,
        };
        self.maybe(semconv::SERVER_ADDRESS, address);
        self.maybe(semconv::SERVER_PORT, port.map(i64::from));
    }

    fn of_peer(&mut self, peer: &Endpoint) {
        match peer {
            Endpoint::Inet(address) => {
                self.add(semconv::NETWORK_PEER_ADDRESS, address.ip().to_string());
                self.add(semconv::NETWORK_PEER_PORT, i64::from(address.port()));
            }
            Endpoint::Unix(path) => {
                self.add(semconv::NETWORK_TRANSPORT, "unix");
                let path = path.as_ref().map(|path| path.display().to_string());
                self.maybe(semconv::NETWORK_PEER_ADDRESS, path);
            }
            Endpoint::Unknown => {}
        }
    }
}

/// A value by copy, whatever it was borrowed from.
struct AttributeValue(Value);

impl From<&str> for AttributeValue {
    fn from(value: &str) -> Self {
        Self(value.to_owned().into())
    }
}

impl From<String> for AttributeValue {
    fn from(value: String) -> Self {
        Self(value.into())
    }
}

impl From<i64> for AttributeValue {
    fn from(value: i64) -> Self {
        Self(value.into())
    }
}

fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
