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
    let server = match role {
        Role::Client => &endpoints.peer,
        Role::Server => &endpoints.local,
    };
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
    add(semconv::ERROR_TYPE, error.clone());
    let name = summary.unwrap_or_else(|| {
        let target = namespace.map(str::to_owned).or_else(|| target(server));
        match (operation, target) {
            (Some(operation), Some(target)) => format!("{operation} {target}"),
            (Some(operation), None) => operation.to_owned(),
            (None, Some(target)) => target,
            (None, None) => SYSTEM.to_owned(),
        }
    });
    attributes.extend(address(server, &endpoints.peer));
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
        status: error.map_or(Status::Unset, Status::error),
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

fn target(server: &Endpoint) -> Option<String> {
    match server {
        Endpoint::Inet(address) => Some(address.to_string()),
        Endpoint::Unix(path) => path.as_ref().map(|path| path.display().to_string()),
    }
}

fn address(server: &Endpoint, peer: &Endpoint) -> Vec<KeyValue> {
    let mut attributes = Vec::new();
    match server {
        Endpoint::Inet(address) => {
            attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, address.ip().to_string()));
            attributes.push(KeyValue::new(semconv::SERVER_PORT, i64::from(address.port())));
        }
        Endpoint::Unix(path) => {
            let path = path.as_ref().map(|path| path.display().to_string());
            attributes.extend(path.map(|path| KeyValue::new(semconv::SERVER_ADDRESS, path)));
            attributes.push(KeyValue::new(semconv::NETWORK_TRANSPORT, "unix"));
        }
    }
    if let Endpoint::Inet(address) = peer {
        attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, address.ip().to_string()));
        attributes.push(KeyValue::new(semconv::NETWORK_PEER_PORT, i64::from(address.port())));
    }
    attributes
}
