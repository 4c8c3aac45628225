//! The span of a PostgreSQL exchange. Source: semantic conventions 1.44, "PostgreSQL client operations" and "Name".
//!
//! Takes a finished [`Exchange`]; gives all of its span but ids, times and parent. No text that could hold a value of
//! the user's leaves here: the exchange gives its query redacted only.

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};

use super::{Endpoint, Endpoints, SpanParts, semconv};
use crate::protocol::Role;
use crate::protocol::postgres::{Ending, Exchange};

const SYSTEM: &str = "postgresql";

/// The span of an exchange.
pub fn span_parts(exchange: &Exchange, role: Role, endpoints: &Endpoints) -> SpanParts {
    let mut attributes = vec![KeyValue::new(semconv::DB_SYSTEM_NAME, SYSTEM)];
    let mut add = |key: &'static str, value: Option<String>| {
        attributes.extend(value.map(|value| KeyValue::new(key, value)));
    };
    let summary = exchange.query_summary();
    let namespace = exchange.session.database.as_deref();
    // Without a text, the server's own account of the command is all there is.
    let operation = exchange.command.as_deref().filter(|_| summary.is_none());
    let error = error_type(exchange);
    add(semconv::DB_NAMESPACE, namespace.map(str::to_owned));
    add(semconv::DB_OPERATION_NAME, operation.map(str::to_owned));
    add(semconv::DB_QUERY_TEXT, exchange.query_text());
    add(semconv::DB_QUERY_SUMMARY, summary.clone());
    add(
        semconv::DB_RESPONSE_STATUS_CODE,
        exchange.error.as_ref().and_then(|error| error.sqlstate()).map(str::to_owned),
    );
    let failed = error.is_some();
    add(semconv::ERROR_TYPE, error);
    let name = summary.unwrap_or_else(|| {
        let target = namespace.map(str::to_owned).or_else(|| target(endpoints, role));
        match (operation, target) {
            (Some(operation), Some(target)) => format!("{operation} {target}"),
            (Some(operation), None) => operation.to_owned(),
            (None, Some(target)) => target,
            (None, None) => SYSTEM.to_owned(),
        }
    });
    attributes.extend(address(endpoints, role));
    if let Some(rows) = exchange.returned_rows().and_then(|rows| i64::try_from(rows).ok()) {
        attributes.push(KeyValue::new(semconv::DB_RESPONSE_RETURNED_ROWS, rows));
    }
    if exchange.commands > 1 {
        attributes.push(KeyValue::new(semconv::DB_OPERATION_BATCH_SIZE, i64::from(exchange.commands)));
    }
    SpanParts {
        name,
        kind: match role {
            Role::Client => SpanKind::Client,
            Role::Server => SpanKind::Server,
        },
        attributes,
        // No description: it would only repeat `error.type`.
        status: if failed { Status::error("") } else { Status::Unset },
    }
}

/// SQLSTATE where the server gave one, else what befell the exchange. Lost bytes are our failure, not the operation's.
fn error_type(exchange: &Exchange) -> Option<String> {
    let kind = match (&exchange.error, exchange.ending) {
        (Some(failure), _) => failure.sqlstate().unwrap_or("_OTHER"),
        (None, Ending::Skipped) => "pipeline_aborted",
        (None, Ending::Disconnected) => "connection_closed",
        (None, Ending::Complete | Ending::Unknown) => return None,
    };
    Some(kind.to_owned())
}

fn target(endpoints: &Endpoints, role: Role) -> Option<String> {
    let (address, port) = endpoints.server(role);
    Some(match (address?, port) {
        (address, Some(port)) if address.contains(':') => format!("[{address}]:{port}"),
        (address, Some(port)) => format!("{address}:{port}"),
        (address, None) => address,
    })
}

fn address(endpoints: &Endpoints, role: Role) -> Vec<KeyValue> {
    let (address, port) = endpoints.server(role);
    let mut attributes: Vec<_> =
        address.map(|address| KeyValue::new(semconv::SERVER_ADDRESS, address)).into_iter().collect();
    attributes.extend(port.map(|port| KeyValue::new(semconv::SERVER_PORT, i64::from(port))));
    let Endpoints { local, peer, .. } = endpoints;
    if [local, peer].into_iter().any(|end| matches!(end, Endpoint::Unix(_))) {
        attributes.push(KeyValue::new(semconv::NETWORK_TRANSPORT, "unix"));
    }
    if let Endpoint::Inet(address) = peer {
        attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, address.ip().to_string()));
        attributes.push(KeyValue::new(semconv::NETWORK_PEER_PORT, i64::from(address.port())));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Direction, Event, Outcome, Protocol, Segment, walker};

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn span(sent: &[u8], received: &[u8], peer: Endpoint) -> SpanParts {
        let mut walker = walker(Protocol::Postgres, Role::Client);
        let mut events = Vec::new();
        let startup = b"\0\0\0\x20\0\x03\0\0user\0ada\0database\0shop\0\0";
        walker.feed(Direction::Send, Segment::Bytes(startup), (), &mut events);
        walker.feed(Direction::Send, Segment::Bytes(sent), (), &mut events);
        walker.feed(Direction::Recv, Segment::Bytes(received), (), &mut events);
        let exchange = events.into_iter().find_map(|event| match event {
            Event::Closed { outcome: Outcome::Postgres(exchange), .. } => Some(exchange),
            _ => None,
        });
        let local = Endpoint::Inet("10.0.0.1:40000".parse().unwrap());
        span_parts(
            &exchange.unwrap(),
            Role::Client,
            &Endpoints { local, peer, encrypted: false, server_name: None },
        )
    }

    fn check(parts: &SpanParts, expected: &[(&str, &str)]) {
        let found: Vec<_> =
            parts.attributes.iter().map(|it| (it.key.as_str(), it.value.to_string())).collect();
        let expected: Vec<_> = expected.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_query_is_named_by_its_summary_and_hides_its_values() {
        let sent = message(b'Q', b"SELECT a FROM shop.orders WHERE name = 'canary'\0");
        let received =
            [message(b'D', b"\0\x01\0\0\0\x06canary"), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")];
        let parts = span(&sent, &received.concat(), Endpoint::Inet("10.0.0.2:5432".parse().unwrap()));
        assert_eq!(
            (parts.name.as_str(), &parts.kind, &parts.status),
            ("SELECT shop.orders", &SpanKind::Client, &Status::Unset)
        );
        assert!(!format!("{parts:?}").contains("canary"));
        check(
            &parts,
            &[
                ("db.system.name", "postgresql"),
                ("db.namespace", "shop"),
                ("db.query.text", "SELECT a FROM shop.orders WHERE name = ?"),
                ("db.query.summary", "SELECT shop.orders"),
                ("server.address", "10.0.0.2"),
                ("server.port", "5432"),
                ("network.peer.address", "10.0.0.2"),
                ("network.peer.port", "5432"),
                ("db.response.returned_rows", "1"),
            ],
        );
    }

    #[test]
    fn an_error_gives_its_sqlstate_and_no_text() {
        let sent = message(b'Q', b"INSERT INTO t VALUES ('canary')\0");
        let received = [message(b'E', b"SERROR\0VERROR\0C23505\0Mcanary\0\0"), message(b'Z', b"I")];
        let parts = span(&sent, &received.concat(), Endpoint::Unix(Some("/run/.s.PGSQL.5432".into())));
        assert_eq!((parts.name.as_str(), &parts.status), ("INSERT t", &Status::error("")));
        assert!(!format!("{parts:?}").contains("canary"));
        check(
            &parts,
            &[
                ("db.system.name", "postgresql"),
                ("db.namespace", "shop"),
                ("db.query.text", "INSERT INTO t VALUES (?)"),
                ("db.query.summary", "INSERT t"),
                ("db.response.status_code", "23505"),
                ("error.type", "23505"),
                ("server.address", "/run/.s.PGSQL.5432"),
                ("network.transport", "unix"),
            ],
        );
    }

    #[test]
    fn a_statement_prepared_before_we_looked_is_named_by_its_command() {
        let sent = [
            message(b'B', b"\0old\0\0\0\0\x01\0\0\0\x06canary\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
        ];
        let received = [message(b'2', b""), message(b'C', b"UPDATE 3\0"), message(b'Z', b"I")];
        let parts = span(&sent.concat(), &received.concat(), Endpoint::Inet("[::1]:6432".parse().unwrap()));
        assert_eq!(parts.name, "UPDATE shop");
        assert!(!format!("{parts:?}").contains("canary"));
    }
}
