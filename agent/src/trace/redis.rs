//! Placeholder.
use super::{Endpoints, SpanParts};
use crate::protocol::{Role, redis::Exchange};

/// The span of an exchange.
pub fn span_parts(_exchange: &Exchange, role: Role, _endpoints: &Endpoints) -> SpanParts {
    SpanParts {
        name: String::new(),
        kind: if role == Role::Server {
            opentelemetry::trace::SpanKind::Server
        } else {
            opentelemetry::trace::SpanKind::Client
        },
        attributes: Vec::new(),
        status: opentelemetry::trace::Status::Unset,
    }
}
