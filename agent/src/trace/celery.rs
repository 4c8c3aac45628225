//! Celery's tasks as spans, by the messaging conventions 1.44: PRODUCER `send {queue}`, CONSUMER `process {queue}`.
//!
//! The attributes `celery.*` are those of `opentelemetry-instrumentation-celery`, which users of the SDK know. There is no
//! well-known `messaging.system` for it; the conventions ask for a custom value then.

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};

use super::redis::{add_peer, add_server};
use super::{Endpoints, SpanParts, semconv};
use crate::protocol::Role;
use crate::protocol::celery::{Message, Run, State};
use crate::protocol::redis::{Exchange, Reply};

const SYSTEM: &str = "celery";
/// `error.type` of a task whose process has ended.
const WORKER_LOST: &str = "worker_lost";
/// `error.type` of a task that raised something that was not captured.
const OTHER: &str = "_OTHER";

/// What producer and consumer have in common.
struct Operation {
    /// `messaging.operation.name` and `messaging.operation.type`, which are the same here.
    name: &'static str,
    /// `celery.action`.
    action: &'static str,
}

/// The span of a message's sending: of the command that puts it on the queue.
pub fn producer(message: &Message, exchange: &Exchange, endpoints: &Endpoints) -> SpanParts {
    let operation = Operation { name: "send", action: "apply_async" };
    let mut attributes = operation.attributes(message);
    add_server(&mut attributes, endpoints, Role::Client);
    add_peer(&mut attributes, &endpoints.peer);
    let error = match &exchange.reply {
        Reply::Value | Reply::Silent => None,
        Reply::Error(code) => Some(code.to_string()),
        Reply::ConnectionLost => Some("connection_lost".to_owned()),
    };
    let status = if error.is_some() { Status::error("") } else { Status::Unset };
    attributes.extend(error.map(|error| KeyValue::new(semconv::ERROR_TYPE, error)));
    SpanParts { name: operation.span_name(message), kind: SpanKind::Producer, attributes, status }
}

/// The span of a task's run.
pub fn consumer(run: &Run) -> SpanParts {
    let Run { message, worker, state } = run;
    let operation = Operation { name: "process", action: "run" };
    let mut attributes = operation.attributes(message);
    if let Some(worker) = worker {
        attributes.push(KeyValue::new(semconv::CELERY_HOSTNAME, worker.to_string()));
    }
    // celery/states.py; a lost task is a failed one for Celery too, by its main process's word.
    let (state, error) = match state {
        State::Success => ("SUCCESS", None),
        State::Failure(class) => ("FAILURE", Some(class.as_deref().unwrap_or(OTHER))),
        State::Retry => ("RETRY", None),
        State::Ignored => ("IGNORED", None),
        State::Rejected => ("REJECTED", None),
        State::Lost => ("FAILURE", Some(WORKER_LOST)),
    };
    attributes.push(KeyValue::new(semconv::CELERY_STATE, state));
    let status = if error.is_some() { Status::error("") } else { Status::Unset };
    attributes.extend(error.map(|error| KeyValue::new(semconv::ERROR_TYPE, error.to_owned())));
    SpanParts { name: operation.span_name(message), kind: SpanKind::Consumer, attributes, status }
}

impl Operation {
    fn span_name(&self, message: &Message) -> String {
        match &message.routing_key {
            Some(queue) => format!("{} {queue}", self.name),
            None => self.name.to_owned(),
        }
    }

    fn attributes(&self, message: &Message) -> Vec<KeyValue> {
        let Message { task, id, routing_key, retries, redelivered: _, trace: _ } = message;
        let mut attributes = vec![
            KeyValue::new(semconv::MESSAGING_SYSTEM, SYSTEM),
            KeyValue::new(semconv::MESSAGING_OPERATION_NAME, self.name),
            KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, self.name),
            KeyValue::new(semconv::MESSAGING_MESSAGE_ID, id.to_string()),
            KeyValue::new(semconv::CELERY_ACTION, self.action),
            KeyValue::new(semconv::CELERY_TASK_NAME, task.to_string()),
        ];
        if let Some(queue) = routing_key {
            attributes.push(KeyValue::new(semconv::MESSAGING_DESTINATION_NAME, queue.to_string()));
        }
        // As the SDK's instrumentation: the first try has none.
        if *retries > 0 {
            attributes.push(KeyValue::new(semconv::CELERY_RETRIES, i64::from(*retries)));
        }
        attributes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Endpoint;

    fn message() -> Message {
        Message {
            task: "shop.charge".into(),
            id: "dac64b8a".into(),
            routing_key: Some("celery".into()),
            retries: 2,
            ..Message::default()
        }
    }

    fn shown(attributes: &[KeyValue]) -> Vec<String> {
        attributes.iter().map(|attribute| format!("{}={}", attribute.key, attribute.value)).collect()
    }

    const COMMON: [&str; 6] = [
        "messaging.system=celery",
        "messaging.message.id=dac64b8a",
        "celery.task_name=shop.charge",
        "messaging.destination.name=celery",
        "celery.retries=2",
        "error.type=ValueError",
    ];

    #[test]
    fn a_task_that_raised() {
        let state = State::Failure(Some("ValueError".into()));
        let run = Run { message: message(), worker: Some("celery@host".into()), state };
        let SpanParts { name, kind, attributes, status } = consumer(&run);
        assert_eq!((name.as_str(), kind, status), ("process celery", SpanKind::Consumer, Status::error("")));
        let shown = shown(&attributes);
        let own = [
            "messaging.operation.name=process",
            "messaging.operation.type=process",
            "celery.action=run",
            "celery.hostname=celery@host",
            "celery.state=FAILURE",
        ];
        for expected in COMMON.iter().chain(&own) {
            assert!(shown.iter().any(|attribute| attribute == expected), "no {expected} in {shown:?}");
        }
        assert_eq!(shown.len(), COMMON.len() + own.len());
    }

    #[test]
    fn a_task_that_was_sent() {
        let exchange = Exchange {
            operation: "LPUSH".into(),
            text: "LPUSH celery ?".into(),
            arguments: 3,
            arguments_len: 900,
            database: None,
            reply: Reply::Value,
            connection_setup: false,
            message: None,
            housekeeping: false,
            sign_of_life: false,
            first_work: true,
        };
        let local = Endpoint::Inet(([127, 0, 0, 1], 4000).into());
        let peer = Endpoint::Inet(([10, 0, 0, 2], 6379).into());
        let endpoints = Endpoints { local, peer, encrypted: false, server_name: None };
        let SpanParts { name, kind, attributes, status } = producer(&message(), &exchange, &endpoints);
        assert_eq!((name.as_str(), kind, status), ("send celery", SpanKind::Producer, Status::Unset));
        let shown = shown(&attributes);
        for expected in ["celery.action=apply_async", "server.address=10.0.0.2", "network.peer.port=6379"] {
            assert!(shown.iter().any(|attribute| attribute == expected), "no {expected} in {shown:?}");
        }
        assert!(!shown.iter().any(|attribute| attribute.starts_with("db.")), "{shown:?}");
    }
}
