//! From exchanges to spans: names, kinds, attributes and status by OpenTelemetry's semantic conventions.
//!
//! Takes finished [`crate::protocol::Outcome`]s and where they happened; gives [`SpanParts`]. Attribute keys are
//! spelled in [`semconv`] only. Nothing here speaks OTLP.

pub mod assembly;
pub mod celery;
pub mod http;
pub mod join;
mod messages;
pub mod postgres;
pub mod propagation;
pub mod redis;
pub mod sampler;
pub mod semconv;
mod url;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::SpanData;

use crate::process::resource::Service;
use crate::protocol::Role;

/// The instrumentation scope of every span.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("pitviper")
        .with_version(env!("CARGO_PKG_VERSION"))
        .with_schema_url(semconv::SCHEMA_URL)
        .build()
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP; IPv4-mapped IPv6 addresses are given as IPv4.
    Inet(SocketAddr),
    /// AF_UNIX; the path where it is known.
    Unix(Option<PathBuf>),
    /// It was not seen.
    Unknown,
}

/// Both ends of a connection, as the observed process sees them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// The observed process's own end.
    pub local: Endpoint,
    /// The other end.
    pub peer: Endpoint,
    /// By TLS.
    pub encrypted: bool,
    /// Whom the client has asked for in the TLS handshake, if that was seen.
    pub server_name: Option<Arc<str>>,
}

impl Endpoints {
    /// `server.address` and `server.port`, as far as the connection tells: the name is preferred to the number behind it.
    fn server(&self, role: Role) -> (Option<String>, Option<u16>) {
        let server = match role {
            Role::Client => &self.peer,
            Role::Server => &self.local,
        };
        let name = self.server_name.as_deref().map(str::to_owned);
        match server {
            Endpoint::Inet(address) => {
                (name.or_else(|| Some(address.ip().to_string())), Some(address.port()))
            }
            Endpoint::Unix(path) => (path.as_ref().map(|path| path.display().to_string()), None),
            Endpoint::Unknown => (name, None),
        }
    }
}

/// All of a span but its ids, its times and its parent.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanParts {
    /// Span name, low cardinality.
    pub name: String,
    /// SERVER for requests that were served, CLIENT for requests that were made, PRODUCER and CONSUMER for messages.
    pub kind: SpanKind,
    /// Attributes by semantic conventions 1.44.
    pub attributes: Vec<KeyValue>,
    /// Unset or Error.
    pub status: Status,
}

/// A span on its way to the exporters, and whose it is.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// The service instance that the span belongs to: its resource.
    pub service: Arc<Service>,
    /// The span.
    pub data: SpanData,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_preferred_to_a_number() {
        let [local, peer] =
            ["10.0.0.1:4000", "10.0.0.2:5432"].map(|end| Endpoint::Inet(end.parse().unwrap()));
        let unnamed = Endpoints { local, peer, encrypted: true, server_name: None };
        assert_eq!(unnamed.server(Role::Client), (Some("10.0.0.2".to_owned()), Some(5432)));
        assert_eq!(unnamed.server(Role::Server), (Some("10.0.0.1".to_owned()), Some(4000)));
        let named = Endpoints { server_name: Some("db.example".into()), ..unnamed };
        assert_eq!(named.server(Role::Client), (Some("db.example".to_owned()), Some(5432)));
        let unknown = Endpoints { peer: Endpoint::Unknown, ..named };
        assert_eq!(unknown.server(Role::Client), (Some("db.example".to_owned()), None));
    }
}
