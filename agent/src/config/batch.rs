//! `OTEL_BSP_*` and `OTEL_*_LIMIT`: how spans are queued and batched, and how large one may be.

use std::time::Duration;

use super::env::Env;

/// How spans wait and in which portions they leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// `OTEL_BSP_SCHEDULE_DELAY`: the longest a span waits for others to leave with it.
    pub schedule_delay: Duration,
    /// `OTEL_BSP_MAX_QUEUE_SIZE`: spans that wait at most; then the oldest are dropped. The specification's default of
    /// 2048 is meant for one process that has an SDK; here all services of a node share the queue, and what is settled
    /// together arrives in one go.
    pub max_queue_size: usize,
    /// `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`: spans that leave at once at most.
    pub max_export_batch_size: usize,
    /// `OTEL_BSP_EXPORT_TIMEOUT`: how long one batch may take, all retries included.
    pub export_timeout: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            schedule_delay: Duration::from_millis(5000),
            max_queue_size: 16_384,
            max_export_batch_size: 512,
            export_timeout: Duration::from_millis(30000),
        }
    }
}

impl BatchConfig {
    pub(super) fn from_env(env: &mut Env<'_>) -> Self {
        let default = Self::default();
        let max_queue_size = size(env, "OTEL_BSP_MAX_QUEUE_SIZE", default.max_queue_size);
        let mut max_export_batch_size =
            size(env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", default.max_export_batch_size);
        if max_export_batch_size > max_queue_size {
            if env.text("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_some() {
                env.warn(format!(
                    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: {max_export_batch_size} is more than the queue holds; \
                     {max_queue_size} is used"
                ));
            }
            max_export_batch_size = max_queue_size;
        }
        Self {
            schedule_delay: env.duration("OTEL_BSP_SCHEDULE_DELAY").unwrap_or(default.schedule_delay),
            max_queue_size,
            max_export_batch_size,
            export_timeout: env.timeout(&["OTEL_BSP_EXPORT_TIMEOUT"]).unwrap_or(default.export_timeout),
        }
    }
}

/// A size of at least 1.
fn size(env: &mut Env<'_>, name: &str, default: usize) -> usize {
    match env.number(&[name]) {
        None => default,
        Some(0) => {
            env.warn(format!("{name}: 0 would export nothing; {default} is used"));
            default
        }
        Some(number) => usize::try_from(number).unwrap_or(usize::MAX),
    }
}

/// How large a span may be. What is cut off is counted in the span's dropped counts, except for shortened values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanLimits {
    /// Attributes of a span.
    pub attributes: usize,
    /// Unicode characters of a string value; `None` is no limit.
    pub value_length: Option<usize>,
    /// Events of a span.
    pub events: usize,
    /// Links of a span.
    pub links: usize,
    /// Attributes of an event.
    pub event_attributes: usize,
    /// Attributes of a link.
    pub link_attributes: usize,
}

impl Default for SpanLimits {
    fn default() -> Self {
        Self {
            attributes: 128,
            value_length: None,
            events: 128,
            links: 128,
            event_attributes: 128,
            link_attributes: 128,
        }
    }
}

impl SpanLimits {
    pub(super) fn from_env(env: &mut Env<'_>) -> Self {
        let default = Self::default();
        let mut limit = |names: &[&str]| env.number(names).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        Self {
            attributes: limit(&["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"])
                .unwrap_or(default.attributes),
            value_length: limit(&[
                "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
                "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            ]),
            events: limit(&["OTEL_SPAN_EVENT_COUNT_LIMIT"]).unwrap_or(default.events),
            links: limit(&["OTEL_SPAN_LINK_COUNT_LIMIT"]).unwrap_or(default.links),
            event_attributes: limit(&["OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT"])
                .unwrap_or(default.event_attributes),
            link_attributes: limit(&["OTEL_LINK_ATTRIBUTE_COUNT_LIMIT"]).unwrap_or(default.link_attributes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    #[test]
    fn defaults_are_the_specifications() {
        let config = config(&[]).unwrap();
        assert_eq!(config.batch, BatchConfig::default());
        assert_eq!(config.limits, SpanLimits::default());
    }

    #[test]
    fn values_are_taken() {
        let config = config(&[
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "2500"),
            ("OTEL_ATTRIBUTE_COUNT_LIMIT", "10"),
            ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "64"),
            ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "32"),
        ])
        .unwrap();
        let BatchConfig { schedule_delay, max_queue_size, max_export_batch_size, export_timeout } =
            config.batch;
        assert_eq!((schedule_delay, export_timeout), (Duration::ZERO, Duration::from_millis(2500)));
        assert_eq!((max_queue_size, max_export_batch_size), (100, 100));
        assert_eq!((config.limits.attributes, config.limits.value_length), (10, Some(64)));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn times_that_no_clock_can_reach_are_capped() {
        let endless = [("OTEL_BSP_SCHEDULE_DELAY", "18446744073709551615"), ("OTEL_BSP_EXPORT_TIMEOUT", "0")];
        let batch = config(&endless).unwrap().batch;
        assert_eq!(batch.schedule_delay, Duration::from_millis(2_147_483_647));
        assert_eq!(batch.export_timeout, batch.schedule_delay);
    }

    #[test]
    fn nonsense_warns_and_defaults() {
        let config = config(&[
            ("OTEL_BSP_SCHEDULE_DELAY", "5s"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "99999"),
            ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
            ("OTEL_ATTRIBUTE_COUNT_LIMIT", "7"),
        ])
        .unwrap();
        assert_eq!(config.batch, BatchConfig { max_export_batch_size: 16_384, ..BatchConfig::default() });
        assert_eq!(config.limits.attributes, 7);
        assert_eq!(config.warnings.len(), 4, "{:?}", config.warnings);
    }
}
