//! Redis exchanges as spans, by the database conventions 1.44 (`span.db.redis.client`).
//!
//! Takes an [`Exchange`] and both ends of its connection. The span's name is the operation's alone: the conventions
//! keep a Redis database index out of it.

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};

use super::{Endpoint, Endpoints, SpanParts, semconv};
use crate::protocol::Role;
use crate::protocol::redis::{Exchange, Reply};

/// Port that is not worth an attribute.
const DEFAULT_PORT: u16 = 6379;

/// The span of an exchange.
pub fn span_parts(exchange: &Exchange, role: Role, endpoints: &Endpoints) -> SpanParts {
    let Exchange { operation, text, database, reply, .. } = exchange;
    let mut attributes = vec![
        KeyValue::new(semconv::DB_SYSTEM_NAME, "redis"),
        KeyValue::new(semconv::DB_OPERATION_NAME, operation.to_string()),
        KeyValue::new(semconv::DB_QUERY_TEXT, text.to_string()),
    ];
    if let Some(database) = database {
        attributes.push(KeyValue::new(semconv::DB_NAMESPACE, database.to_string()));
    }
    let kind = match role {
        Role::Client => SpanKind::Client,
        Role::Server => SpanKind::Server,
    };
    add_server(&mut attributes, endpoints, role);
    add_peer(&mut attributes, &endpoints.peer);
    let status = match reply {
        Reply::Value | Reply::Silent => Status::Unset,
        Reply::Error(code) => {
            attributes.push(KeyValue::new(semconv::DB_RESPONSE_STATUS_CODE, code.to_string()));
            attributes.push(KeyValue::new(semconv::ERROR_TYPE, code.to_string()));
            Status::error("")
        }
        // These end the connection, and that is their reply.
        Reply::ConnectionLost if matches!(operation.to_ascii_uppercase().as_str(), "QUIT" | "SHUTDOWN") => {
            Status::Unset
        }
        Reply::ConnectionLost => {
            attributes.push(KeyValue::new(semconv::ERROR_TYPE, "connection_lost"));
            Status::error("")
        }
    };
    SpanParts { name: operation.to_string(), kind, attributes, status }
}

pub(super) fn add_server(attributes: &mut Vec<KeyValue>, endpoints: &Endpoints, role: Role) {
    let (address, port) = endpoints.server(role);
    attributes.extend(address.map(|address| KeyValue::new(semconv::SERVER_ADDRESS, address)));
    let port = port.filter(|port| *port != DEFAULT_PORT);
    attributes.extend(port.map(|port| KeyValue::new(semconv::SERVER_PORT, i64::from(port))));
}

pub(super) fn add_peer(attributes: &mut Vec<KeyValue>, peer: &Endpoint) {
    match peer {
        Endpoint::Inet(address) => {
            attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, address.ip().to_string()));
            attributes.push(KeyValue::new(semconv::NETWORK_PEER_PORT, i64::from(address.port())));
        }
        Endpoint::Unix(path) => {
            attributes.push(KeyValue::new(semconv::NETWORK_TRANSPORT, "unix"));
            if let Some(path) = path {
                attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, path.display().to_string()));
            }
        }
        Endpoint::Unknown => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_and_a_database() {
        let exchange = Exchange {
            operation: "GET".into(),
            text: "GET user:1".into(),
            arguments: 2,
            arguments_len: 9,
            database: Some(3),
            reply: Reply::Error("WRONGTYPE".into()),
            connection_setup: false,
            message: None,
            housekeeping: false,
            sign_of_life: false,
            first_work: true,
        };
        let local = Endpoint::Inet(([127, 0, 0, 1], 4000).into());
        let peer = Endpoint::Inet(([10, 0, 0, 2], 6380).into());
        let endpoints = Endpoints { local, peer, encrypted: false, server_name: None };
        let SpanParts { name, kind, attributes, status } = span_parts(&exchange, Role::Client, &endpoints);
        assert_eq!((name.as_str(), kind, status), ("GET", SpanKind::Client, Status::error("")));
        let shown: Vec<_> = attributes.iter().map(|a| format!("{}={}", a.key, a.value)).collect();
        assert_eq!(
            shown,
            [
                "db.system.name=redis",
                "db.operation.name=GET",
                "db.query.text=GET user:1",
                "db.namespace=3",
                "server.address=10.0.0.2",
                "server.port=6380",
                "network.peer.address=10.0.0.2",
                "network.peer.port=6380",
                "db.response.status_code=WRONGTYPE",
                "error.type=WRONGTYPE",
            ]
        );
    }
}
