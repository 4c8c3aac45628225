//! `OTEL_METRICS_EXPORTER`, `OTEL_METRIC_EXPORT_*`: whether and how often the agent sends metrics about itself.
//!
//! By default they go where an endpoint is named for them, be it by the generic variable. The specification's default,
//! an OTLP receiver on this machine, would have an agent without any setting knock at a port in vain.

use std::time::Duration;

use opentelemetry_sdk::metrics::Temporality;

use super::env::Env;
use super::otlp::{OtlpConfig, Signal};
use super::{ConfigError, list};

const EXPORTER: &str = "OTEL_METRICS_EXPORTER";
const INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";

/// How metrics are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsConfig {
    /// Where to, by `OTEL_EXPORTER_OTLP_*`.
    pub otlp: OtlpConfig,
    /// `OTEL_METRIC_EXPORT_INTERVAL`: the time from one export to the next.
    pub interval: Duration,
    /// `OTEL_METRIC_EXPORT_TIMEOUT`: how long an export may take, all retries included.
    pub export_timeout: Duration,
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`
    pub temporality: Temporality,
}

impl MetricsConfig {
    /// `None`: no metrics are sent.
    pub(super) fn from_env(env: &mut Env<'_>) -> Result<Option<Self>, ConfigError> {
        let named = env.first(&Signal::Metrics.variables("ENDPOINT")).is_some();
        if !wanted(env)?.unwrap_or(named) {
            return Ok(None);
        }
        let interval = match env.duration(INTERVAL) {
            Some(Duration::ZERO) => {
                env.warn(format!("{INTERVAL}: 0 would never pause; 60000 is used"));
                None
            }
            interval => interval,
        };
        Ok(Some(Self {
            otlp: OtlpConfig::from_env(env, Signal::Metrics)?,
            interval: interval.unwrap_or(Duration::from_secs(60)),
            export_timeout: env.timeout(&["OTEL_METRIC_EXPORT_TIMEOUT"]).unwrap_or(Duration::from_secs(30)),
            temporality: temporality(env),
        }))
    }
}

/// What `OTEL_METRICS_EXPORTER` says; `None`: nothing that is understood.
fn wanted(env: &mut Env<'_>) -> Result<Option<bool>, ConfigError> {
    let Some(value) = env.text(EXPORTER) else { return Ok(None) };
    let (mut otlp, mut none) = (false, false);
    for name in list(&value) {
        match name.to_ascii_lowercase().as_str() {
            "otlp" => otlp = true,
            "none" => none = true,
            _ => env.warn(format!("{EXPORTER}: there is no exporter `{name}` here (otlp and none exist)")),
        }
    }
    match (otlp, none) {
        (true, true) => Err(ConfigError::new(EXPORTER, "`none` cannot be combined with other exporters")),
        (false, false) => Ok(None),
        (otlp, _) => Ok(Some(otlp)),
    }
}

fn temporality(env: &mut Env<'_>) -> Temporality {
    let Some(value) = env.text(TEMPORALITY) else { return Temporality::Cumulative };
    value.parse().unwrap_or_else(|()| {
        env.warn(format!(
            "{TEMPORALITY}: `{value}` is none of cumulative, delta and lowmemory, and is ignored"
        ));
        Temporality::Cumulative
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, refused};
    use super::*;
    use crate::config::Protocol;

    const GENERIC: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");

    fn check(variables: &[(&str, &str)], expected: Option<&str>, warnings: usize) {
        let config = config(variables).unwrap();
        let endpoint = config.metrics.as_ref().map(|metrics| metrics.otlp.endpoint.as_str());
        assert_eq!(endpoint, expected, "{variables:?}");
        assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
    }

    #[test]
    fn they_go_where_an_endpoint_is_named() {
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m/as/it/is");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t");
        check(&[], None, 0);
        check(&[traces], None, 0);
        check(&[GENERIC], Some("http://c:4318/v1/metrics"), 0);
        check(&[GENERIC, own], Some("http://m/as/it/is"), 0);
        check(&[GENERIC, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Some("http://c:4318/"), 0);
        check(&[GENERIC, ("OTEL_SDK_DISABLED", "true")], None, 0);
        check(&[GENERIC, ("OTEL_TRACES_EXPORTER", "none")], Some("http://c:4318/v1/metrics"), 0);
    }

    #[test]
    fn the_exporter_is_chosen_by_name() {
        let exporter = |names| (EXPORTER, names);
        check(&[GENERIC, exporter("none")], None, 0);
        check(&[exporter("otlp")], Some("http://localhost:4318/v1/metrics"), 0);
        check(&[GENERIC, exporter("console")], Some("http://c:4318/v1/metrics"), 1);
        check(&[exporter("prometheus")], None, 1);
        refused(&[GENERIC, exporter("otlp,none")], "cannot be combined");
    }

    #[test]
    fn each_signal_has_its_own_settings() {
        let config = config(&[
            GENERIC,
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-tenant=metrics"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=all"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "250"),
            (INTERVAL, "1500"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "700"),
            (TEMPORALITY, "Delta"),
        ])
        .unwrap();
        let MetricsConfig { otlp, interval, export_timeout, temporality } = config.metrics.unwrap();
        assert_eq!((otlp.signal, otlp.protocol), (Signal::Metrics, Protocol::Grpc));
        assert_eq!(otlp.headers[0].1.as_bytes(), b"metrics");
        assert_eq!(config.otlp.headers[0].1.as_bytes(), b"all");
        assert_eq!(config.otlp.protocol, Protocol::HttpProtobuf);
        assert_eq!(otlp.timeout, Duration::from_millis(250));
        assert_eq!((interval, export_timeout), (Duration::from_millis(1500), Duration::from_millis(700)));
        assert_eq!(temporality, Temporality::Delta);
    }

    #[test]
    fn nonsense_is_told_once() {
        check(&[GENERIC, ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd")], Some("http://c:4318/v1/metrics"), 1);
        check(&[GENERIC, (INTERVAL, "0"), (TEMPORALITY, "eternal")], Some("http://c:4318/v1/metrics"), 2);
    }
}
