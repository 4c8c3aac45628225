//! OTLP's partial success: spans or data points that the receiver refused within a request that it took.
//!
//! opentelemetry-otlp 0.33 reports these only as a `tracing` event named `*.PartialSuccess`. A [`Listener`] that is
//! the subscriber of one exporter's futures, and of nothing else, hears just that event.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Subscriber};

/// What the receiver said about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartialSuccess {
    /// Spans, or data points, that it refused.
    pub(super) rejected: u64,
    /// Why, or (with none refused) a warning.
    pub(super) message: String,
}

/// Where a [`Listener`] leaves what it heard.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<Option<PartialSuccess>>>);

impl Heard {
    /// What was heard since the last call.
    pub(super) fn take(&self) -> Option<PartialSuccess> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A subscriber that leaves here what it hears.
    pub(super) fn listen(&self) -> Dispatch {
        Dispatch::new(Listener(self.clone()))
    }
}

struct Listener(Heard);

fn wanted(metadata: &Metadata<'_>) -> bool {
    metadata.target() == "opentelemetry-otlp" && metadata.name().ends_with(".PartialSuccess")
}

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if wanted(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        if wanted(event.metadata()) {
            let mut heard = PartialSuccess::default();
            event.record(&mut heard);
            *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
        }
    }

    // Spans are never enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for PartialSuccess {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if matches!(field.name(), "rejected_spans" | "rejected_data_points") {
            self.rejected = u64::try_from(value).unwrap_or_default();
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "error_message" {
            self.message = value.chars().filter(|c| !c.is_control()).take(200).collect();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
