//! The agent's own configuration from OpenTelemetry's environment variables, as specification 1.60 defines them.
//!
//! Takes any look-up of names (so that it can be tested without a process environment); gives an [`OtelConfig`], or a
//! [`ConfigError`] for what the agent must not start with. What the specification says to ignore with a warning is
//! ignored, and said in [`OtelConfig::warnings`]. The exporter crates read some of these variables too, by their own
//! rules; [`crate::export`] hands them this result instead. No file is opened here.

pub mod batch;
mod endpoint;
mod env;
mod metrics;
pub mod otlp;
pub mod pyroscope;
pub mod resource_attributes;

use std::fmt;

pub use self::batch::{BatchConfig, SpanLimits};
use self::env::Env;
pub use self::metrics::MetricsConfig;
pub use self::otlp::{Compression, OtlpConfig, Protocol, Signal, TlsFiles};
pub use self::pyroscope::PyroscopeConfig;
use crate::trace::sampler::Sampler;

/// Where finished spans go (`OTEL_TRACES_EXPORTER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exporters {
    /// To an OTLP receiver.
    pub otlp: bool,
    /// To the terminal.
    pub console: bool,
}

/// Everything that the `OTEL_*` variables of the agent's own environment say.
#[derive(Clone, Debug)]
pub struct OtelConfig {
    /// `OTEL_SDK_DISABLED`: nothing is exported.
    pub disabled: bool,
    /// `OTEL_TRACES_EXPORTER`; `None` when it is unset, so that the caller may choose.
    pub exporters: Option<Exporters>,
    /// `OTEL_EXPORTER_OTLP_*` for spans.
    pub otlp: OtlpConfig,
    /// How the agent's metrics about itself are sent; `None` when they are not.
    pub metrics: Option<MetricsConfig>,
    /// `OTEL_EXPORTER_OTLP_*` for profiles; `None` when they are not sent.
    pub profiles: Option<OtlpConfig>,
    /// `PYROSCOPE_*`: where profiles go beside OTLP, or instead of it.
    pub pyroscope: Option<PyroscopeConfig>,
    /// `OTEL_BSP_*`.
    pub batch: BatchConfig,
    /// `OTEL_*_LIMIT`.
    pub limits: SpanLimits,
    /// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler: Sampler,
    /// `OTEL_RESOURCE_ATTRIBUTES`, decoded, in order.
    pub resource_attributes: Vec<(String, String)>,
    /// `OTEL_SERVICE_NAME`; it has precedence over `service.name` in the resource attributes.
    pub service_name: Option<String>,
    /// `OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS`: replaces the known methods; case-sensitive.
    pub http_known_methods: Option<Vec<String>>,
    /// One sentence for each value that was ignored. Never holds a secret.
    pub warnings: Vec<String>,
}

impl OtelConfig {
    /// Reads the variables through `lookup`, which gives a variable's value, or `None` if it is not set.
    pub fn from_env(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut env = Env::new(lookup);
        let disabled = env.boolean("OTEL_SDK_DISABLED");
        let exporters = exporters(&mut env)?;
        let otlp = OtlpConfig::from_env(&mut env, Signal::Traces)?;
        let metrics = if disabled { None } else { MetricsConfig::from_env(&mut env)? };
        let profiles = if disabled { None } else { profiles(&mut env)? };
        let pyroscope = if disabled { None } else { PyroscopeConfig::from_env(&mut env)? };
        let batch = BatchConfig::from_env(&mut env);
        let limits = SpanLimits::from_env(&mut env);
        let (sampler, warning) = Sampler::from_names(
            env.text("OTEL_TRACES_SAMPLER").as_deref(),
            env.text("OTEL_TRACES_SAMPLER_ARG").as_deref(),
        );
        env.warnings.extend(warning);
        let resource_attributes = env.text("OTEL_RESOURCE_ATTRIBUTES").and_then(|text| {
            resource_attributes::parse_resource_attributes(&text)
                .map_err(|error| env.warn(format!("OTEL_RESOURCE_ATTRIBUTES is ignored: {error}")))
                .ok()
        });
        let http_known_methods = env
            .text("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS")
            .map(|methods| list(&methods).map(str::to_owned).collect());
        Ok(Self {
            disabled,
            exporters,
            otlp,
            metrics,
            profiles,
            pyroscope,
            batch,
            limits,
            sampler,
            resource_attributes: resource_attributes.unwrap_or_default(),
            service_name: env.text("OTEL_SERVICE_NAME"),
            http_known_methods,
            warnings: env.warnings,
        })
    }

    /// Whether an OTLP endpoint is named at all. Without one, and without `OTEL_TRACES_EXPORTER`, a person at a
    /// terminal is better served by the console.
    pub fn otlp_configured(&self) -> bool {
        self.otlp.endpoint_variable.is_some()
    }

    /// Whether spans are to be sent to an OTLP receiver.
    pub fn exports_otlp(&self) -> bool {
        !self.disabled && self.exporters.map_or_else(|| self.otlp_configured(), |exporters| exporters.otlp)
    }

    /// Whether spans are to be printed: by `OTEL_TRACES_EXPORTER`, or because they would go nowhere else.
    pub fn exports_console(&self) -> bool {
        !self.disabled
            && self.exporters.map_or_else(|| !self.otlp_configured(), |exporters| exporters.console)
    }
}

/// Profiles go where an endpoint is named for them, be it by the generic variable; a server that is named for traces
/// alone, or a Pyroscope server beside the generic one, is not sent any by OTLP.
fn profiles(env: &mut Env<'_>) -> Result<Option<OtlpConfig>, ConfigError> {
    let [own, generic] = Signal::Profiles.variables("ENDPOINT");
    let named =
        env.text(&own).is_some() || (env.text(&generic).is_some() && env.text(pyroscope::ADDRESS).is_none());
    named.then(|| OtlpConfig::from_env(env, Signal::Profiles)).transpose()
}

/// The items of a comma-separated list, trimmed, without the empty ones.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn exporters(env: &mut Env<'_>) -> Result<Option<Exporters>, ConfigError> {
    let Some(value) = env.text("OTEL_TRACES_EXPORTER") else { return Ok(None) };
    let mut chosen = Exporters { otlp: false, console: false };
    let mut none = false;
    let mut understood = false;
    for name in list(&value) {
        match name.to_ascii_lowercase().as_str() {
            "otlp" => chosen.otlp = true,
            "console" => chosen.console = true,
            "none" => none = true,
            _ => {
                env.warn(format!(
                    "OTEL_TRACES_EXPORTER: there is no exporter `{name}` here (otlp, console and none exist)"
                ));
                continue;
            }
        }
        understood = true;
    }
    if none && (chosen.otlp || chosen.console) {
        return Err(ConfigError::new(
            "OTEL_TRACES_EXPORTER",
            "`none` cannot be combined with other exporters",
        ));
    }
    Ok(understood.then_some(chosen))
}

/// A variable whose value the agent cannot start with: which one, and what to do. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The variable's name.
    pub variable: String,
    /// What is wrong with it, and the remedy.
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(variable: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { variable: variable.into(), reason: reason.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.reason)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The configuration that these variables give.
    pub(crate) fn config(variables: &[(&str, &str)]) -> Result<OtelConfig, ConfigError> {
        OtelConfig::from_env(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    /// Asserts that these variables are refused with a reason that contains `part`.
    pub(crate) fn refused(variables: &[(&str, &str)], part: &str) {
        match config(variables) {
            Ok(config) => panic!("{variables:?} was accepted: {config:?}"),
            Err(error) => assert!(error.to_string().contains(part), "`{error}` does not say `{part}`"),
        }
    }

    #[test]
    fn nothing_set_means_the_console() {
        let config = config(&[]).unwrap();
        assert!(!config.otlp_configured() && !config.exports_otlp() && config.exports_console());
        assert!(config.warnings.is_empty());
        assert_eq!(config.sampler, Sampler::default());
    }

    #[test]
    fn exporter_names() {
        let otlp = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let check = |variables: &[(&str, &str)], otlp: bool, console: bool, warnings: usize| {
            let config = config(variables).unwrap();
            assert_eq!((config.exports_otlp(), config.exports_console()), (otlp, console), "{variables:?}");
            assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
        };
        check(&[otlp], true, false, 0);
        check(&[("OTEL_TRACES_EXPORTER", "OTLP")], true, false, 0);
        check(&[("OTEL_TRACES_EXPORTER", "console, otlp")], true, true, 0);
        check(&[otlp, ("OTEL_TRACES_EXPORTER", "none")], false, false, 0);
        check(&[otlp, ("OTEL_TRACES_EXPORTER", "zipkin")], true, false, 1);
        check(&[otlp, ("OTEL_TRACES_EXPORTER", "")], true, false, 0);
        check(&[otlp, ("OTEL_SDK_DISABLED", "TRUE")], false, false, 0);
        check(&[otlp, ("OTEL_SDK_DISABLED", "1")], true, false, 1);
        refused(&[("OTEL_TRACES_EXPORTER", "none,otlp")], "cannot be combined");
    }

    #[test]
    fn identity_and_methods() {
        let config = config(&[
            ("OTEL_SERVICE_NAME", "shop"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b,service.name=other"),
            ("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "GET, PURGE"),
        ])
        .unwrap();
        assert_eq!(config.service_name.as_deref(), Some("shop"));
        assert_eq!(config.resource_attributes[0], ("team".into(), "a b".into()));
        assert_eq!(config.http_known_methods, Some(vec!["GET".into(), "PURGE".into()]));
    }

    #[test]
    fn an_undecodable_resource_is_ignored_as_a_whole() {
        let config = config(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b,c")]).unwrap();
        assert!(config.resource_attributes.is_empty());
        assert!(config.warnings[0].contains("OTEL_RESOURCE_ATTRIBUTES"));
    }
}
