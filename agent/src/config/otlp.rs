//! `OTEL_EXPORTER_OTLP_*`: where a signal is sent, how, and with which credentials.
//!
//! Each setting has a generic variable and one for the signal, which wins. Facts from "OpenTelemetry Protocol Exporter",
//! specification 1.60: a generic HTTP endpoint gets `v1/traces` and its kin appended, the one for a signal is used as it
//! is; the protocol is http/protobuf unless set; a URL's scheme beats INSECURE; header values are %-encoded.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::endpoint::{self, Endpoint};
use super::env::Env;
use super::{ConfigError, resource_attributes};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The spans of the observed services.
    Traces,
    /// The agent's metrics about itself.
    Metrics,
    /// The CPU profiles of the observed services.
    Profiles,
}

impl Signal {
    /// The variables of a setting: the signal's own, which wins, and the generic one.
    pub(super) fn variables(self, setting: &str) -> [String; 2] {
        let own = match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Profiles => "PROFILES",
        };
        [format!("OTEL_EXPORTER_OTLP_{own}_{setting}"), format!("OTEL_EXPORTER_OTLP_{setting}")]
    }

    /// Its part of the default URL path.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Profiles => "profiles",
        }
    }

    /// The version of its part of OTLP, which begins the default URL path.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Traces | Self::Metrics => "v1",
            Self::Profiles => "v1development",
        }
    }

    /// What it consists of.
    pub const fn items(self) -> &'static str {
        match self {
            Self::Traces => "spans",
            Self::Metrics => "metrics",
            Self::Profiles => "profiles",
        }
    }
}

/// How OTLP is transported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Over HTTP/2, by convention on port 4317.
    Grpc,
    /// Protobuf bodies over HTTP/1.1, by convention on port 4318.
    HttpProtobuf,
}

impl Protocol {
    /// Its name as `OTEL_EXPORTER_OTLP_PROTOCOL` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
        }
    }
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip
    Gzip,
}

/// PEM files for TLS. They are read when the exporter starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities to trust, instead of the system's.
    pub certificate: Option<PathBuf>,
    /// The client's certificate chain and its key, for mutual TLS.
    pub client: Option<ClientFiles>,
}

/// What a client proves its identity with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where and how to send a signal.
#[derive(Clone, PartialEq)]
pub struct OtlpConfig {
    /// Which.
    pub signal: Signal,
    /// The URL to send to: complete for HTTP, without a path for gRPC; never with credentials.
    pub endpoint: Url,
    /// The variable that named the endpoint; `None` for the default on localhost.
    pub endpoint_variable: Option<String>,
    /// gRPC or HTTP.
    pub protocol: Protocol,
    /// Headers of every request, decoded. The values are secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long a request may take, its retries included.
    pub timeout: Duration,
    /// How requests are compressed.
    pub compression: Compression,
    /// PEM files for TLS.
    pub tls: TlsFiles,
}

impl fmt::Debug for OtlpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signal, endpoint: _, endpoint_variable, protocol, headers, timeout, compression, tls } =
            self;
        f.debug_struct("OtlpConfig")
            .field("signal", signal)
            .field("endpoint", &self.place())
            .field("endpoint_variable", endpoint_variable)
            .field("protocol", protocol)
            .field("headers", &headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("timeout", timeout)
            .field("compression", compression)
            .field("tls", tls)
            .finish()
    }
}

impl OtlpConfig {
    pub(super) fn from_env(env: &mut Env<'_>, signal: Signal) -> Result<Self, ConfigError> {
        let protocol = protocol(env, signal)?;
        let Endpoint { url, variable, authorization } = endpoint::read(env, signal, protocol)?;
        let mut headers = headers(env, signal);
        if let Some(authorization) = authorization
            && !headers.iter().any(|(name, _)| *name == AUTHORIZATION)
        {
            headers.push((AUTHORIZATION, authorization));
        }
        let timeout = env.timeout(&signal.variables("TIMEOUT")).unwrap_or(Duration::from_secs(10));
        Ok(Self {
            signal,
            endpoint: url,
            endpoint_variable: variable,
            protocol,
            headers,
            timeout,
            compression: compression(env, signal),
            tls: tls(env, signal)?,
        })
    }

    /// Host and port of the endpoint, for messages.
    pub fn place(&self) -> String {
        match (self.endpoint.host_str(), self.endpoint.port_or_known_default()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            _ => format!("{}:{}", self.endpoint.scheme(), self.endpoint.path()),
        }
    }

    /// Scheme, host, port and path of the endpoint, for messages: a query may hold a key.
    pub fn display_url(&self) -> String {
        let mut url = self.endpoint.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.to_string()
    }
}

fn protocol(env: &mut Env<'_>, signal: Signal) -> Result<Protocol, ConfigError> {
    for variable in signal.variables("PROTOCOL") {
        let Some(value) = env.text(&variable) else { continue };
        match value.to_ascii_lowercase().as_str() {
            "grpc" => return Ok(Protocol::Grpc),
            "http/protobuf" => return Ok(Protocol::HttpProtobuf),
            "http/json" => {
                return Err(ConfigError::new(
                    variable,
                    "http/json is not supported; every OTLP/HTTP receiver takes http/protobuf on the same port",
                ));
            }
            _ => env.warn(format!("{variable}: `{value}` is neither grpc nor http/protobuf, and is ignored")),
        }
    }
    Ok(Protocol::HttpProtobuf)
}

fn compression(env: &mut Env<'_>, signal: Signal) -> Compression {
    for variable in signal.variables("COMPRESSION") {
        let Some(value) = env.text(&variable) else { continue };
        match value.to_ascii_lowercase().as_str() {
            "gzip" => return Compression::Gzip,
            "none" => return Compression::None,
            _ => env.warn(format!("{variable}: `{value}` is neither gzip nor none, and is ignored")),
        }
    }
    Compression::None
}

/// The headers that can be sent. Those that cannot are named by their number in the list, never by their value.
fn headers(env: &mut Env<'_>, signal: Signal) -> Vec<(HeaderName, HeaderValue)> {
    let Some((variable, text)) = env.first(&signal.variables("HEADERS")) else { return Vec::new() };
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for pair in resource_attributes::pairs(&text) {
        let (name, value) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                env.warn(format!("{variable}: {error}, and is ignored"));
                continue;
            }
        };
        let (Ok(header), Ok(mut value)) = (HeaderName::try_from(&name), HeaderValue::try_from(value)) else {
            env.warn(format!(
                "{variable}: `{name}` is no valid header or has no valid value, and is ignored"
            ));
            continue;
        };
        value.set_sensitive(true);
        headers.retain(|(known, _)| *known != header);
        headers.push((header, value));
    }
    headers
}

fn tls(env: &mut Env<'_>, signal: Signal) -> Result<TlsFiles, ConfigError> {
    let file = |setting| env.first(&signal.variables(setting));
    let certificate = file("CERTIFICATE").map(|(_, path)| PathBuf::from(path));
    let client = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
        (None, None) => None,
        (Some((_, certificate)), Some((_, key))) => {
            Some(ClientFiles { certificate: certificate.into(), key: key.into() })
        }
        (Some((variable, _)), None) => {
            return Err(ConfigError::new(
                variable,
                "a client certificate needs OTEL_EXPORTER_OTLP_CLIENT_KEY too",
            ));
        }
        (None, Some((variable, _))) => {
            return Err(ConfigError::new(
                variable,
                "a client key needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE too",
            ));
        }
    };
    Ok(TlsFiles { certificate, client })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, refused};
    use super::*;

    fn headers_of(variables: &[(&str, &str)]) -> (Vec<(String, String)>, Vec<String>) {
        let config = config(variables).unwrap();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = config.otlp.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
        (headers.collect(), config.warnings)
    }

    #[test]
    fn defaults() {
        let OtlpConfig { signal, endpoint, endpoint_variable, protocol, headers, timeout, compression, tls } =
            config(&[]).unwrap().otlp;
        assert_eq!(signal, Signal::Traces);
        assert_eq!(endpoint.as_str(), "http://localhost:4318/v1/traces");
        assert_eq!((endpoint_variable, protocol), (None, Protocol::HttpProtobuf));
        assert_eq!((timeout, compression), (Duration::from_secs(10), Compression::None));
        assert!(headers.is_empty() && tls == TlsFiles::default());
    }

    #[test]
    fn header_values_are_decoded_and_the_traces_list_replaces_the_generic_one() {
        let (headers, warnings) = headers_of(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-generic=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "Authorization=Bearer%20s3,X-Set=a%3Db, x-set = c"),
        ]);
        assert_eq!(headers, [("authorization".into(), "Bearer s3".into()), ("x-set".into(), "c".into())]);
        assert!(warnings.is_empty());
    }

    #[test]
    fn bad_headers_are_skipped_without_telling_their_values() {
        let (headers, warnings) =
            headers_of(&[("OTEL_EXPORTER_OTLP_HEADERS", "hunter2,bad name=hunter2,x=hunter2%0A,ok=1")]);
        assert_eq!(headers, [("ok".into(), "1".into())]);
        assert_eq!(warnings.len(), 3);
        assert!(!warnings.concat().contains("hunter2"), "{warnings:?}");
    }

    #[test]
    fn debug_output_hides_secrets() {
        let config = config(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:hunter2@host/?key=hunter2"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2"),
        ]);
        let shown = format!("{config:?}");
        assert!(shown.contains("api-key") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn names_of_protocol_and_compression() {
        let check = |variables: &[(&str, &str)], protocol, compression, warnings: usize| {
            let config = config(variables).unwrap();
            assert_eq!(
                (config.otlp.protocol, config.otlp.compression),
                (protocol, compression),
                "{variables:?}"
            );
            assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
        };
        let protocol = "OTEL_EXPORTER_OTLP_PROTOCOL";
        check(&[(protocol, "grpc")], Protocol::Grpc, Compression::None, 0);
        check(&[(protocol, "GRPC")], Protocol::Grpc, Compression::None, 0);
        check(&[(protocol, "http")], Protocol::HttpProtobuf, Compression::None, 1);
        check(
            &[(protocol, "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")],
            Protocol::HttpProtobuf,
            Compression::None,
            0,
        );
        let compression = "OTEL_EXPORTER_OTLP_COMPRESSION";
        check(&[(compression, "gzip")], Protocol::HttpProtobuf, Compression::Gzip, 0);
        check(&[(compression, "zstd")], Protocol::HttpProtobuf, Compression::None, 1);
        check(
            &[(compression, "gzip"), ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none")],
            Protocol::HttpProtobuf,
            Compression::None,
            0,
        );
        refused(&[(protocol, "http/json")], "http/protobuf");
    }

    #[test]
    fn a_client_certificate_and_its_key_belong_together() {
        let certificate = ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem");
        let key = ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/k.pem");
        let tls =
            config(&[certificate, key, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem")]).unwrap().otlp.tls;
        assert_eq!(tls.certificate, Some("/ca.pem".into()));
        assert_eq!(tls.client, Some(ClientFiles { certificate: "/c.pem".into(), key: "/k.pem".into() }));
        refused(&[certificate], "CLIENT_KEY");
        refused(&[key], "CLIENT_CERTIFICATE");
    }

    #[test]
    fn timeouts() {
        let timeout = |value| config(&[("OTEL_EXPORTER_OTLP_TIMEOUT", value)]).unwrap().otlp.timeout;
        assert_eq!(timeout("250"), Duration::from_millis(250));
        assert_eq!(timeout("ten"), Duration::from_secs(10));
        assert!(timeout("0") > Duration::from_secs(24 * 3600));
    }
}
