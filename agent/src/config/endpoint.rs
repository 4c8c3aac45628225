//! The URL to send to, from ENDPOINT and INSECURE: with `v1/traces` or the like where that is to be appended, and without
//! the credentials that a person may have put into it, which become a header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use reqwest::header::HeaderValue;

use super::ConfigError;
use super::env::Env;
use super::otlp::{Protocol, Signal};

const GENERIC: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where to send a signal.
pub(super) struct Endpoint {
    /// The URL, without credentials.
    pub(super) url: Url,
    /// The variable that named it.
    pub(super) variable: Option<String>,
    /// The credentials that were in it, as an `Authorization` value.
    pub(super) authorization: Option<HeaderValue>,
}

pub(super) fn read(env: &mut Env<'_>, signal: Signal, protocol: Protocol) -> Result<Endpoint, ConfigError> {
    let Some((variable, text)) = env.first(&signal.variables("ENDPOINT")) else {
        let url = match protocol {
            Protocol::Grpc => "http://localhost:4317/".to_owned(),
            Protocol::HttpProtobuf => format!("http://localhost:4318/{}/{}", signal.version(), signal.path()),
        };
        let url = Url::parse(&url).map_err(|error| ConfigError::new(GENERIC, error.to_string()))?;
        return Ok(Endpoint { url, variable: None, authorization: None });
    };
    let text = match (has_scheme(&text), protocol) {
        (true, _) => text,
        // gRPC names a target, host:port, and INSECURE says whether TLS is used; a scheme would beat it.
        (false, Protocol::Grpc) if insecure(env, signal) => format!("http://{text}"),
        (false, Protocol::Grpc) => format!("https://{text}"),
        (false, Protocol::HttpProtobuf) => {
            return Err(ConfigError::new(variable, "the URL needs a scheme, http:// or https://"));
        }
    };
    let mut url = Url::parse(&text)
        .map_err(|error| ConfigError::new(&variable, format!("this is not a URL: {error}")))?;
    let schemes: &[&str] = match protocol {
        Protocol::Grpc => &["http", "https", "unix"],
        Protocol::HttpProtobuf => &["http", "https"],
    };
    if !schemes.contains(&url.scheme()) {
        let reason = format!("{} cannot use the scheme {}://", protocol.name(), url.scheme());
        return Err(ConfigError::new(variable, reason));
    }
    let authorization = take_credentials(&mut url);
    match protocol {
        Protocol::Grpc if url.scheme() != "unix" => {
            // The path of a gRPC request names the method.
            url.set_path("");
            url.set_query(None);
        }
        Protocol::HttpProtobuf if variable == GENERIC => {
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty().extend([signal.version(), signal.path()]);
            }
        }
        Protocol::Grpc | Protocol::HttpProtobuf => {}
    }
    url.set_fragment(None);
    Ok(Endpoint { url, variable: Some(variable), authorization })
}

/// Whether `text` begins with a scheme: `://` comes before any path.
fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| !scheme.contains(['/', '?', '#']))
}

fn insecure(env: &mut Env<'_>, signal: Signal) -> bool {
    signal
        .variables("INSECURE")
        .iter()
        .find(|name| env.text(name).is_some())
        .is_some_and(|name| env.boolean(name))
}

/// Removes `user:password@` from `url`, and gives it as HTTP's Basic authentication (RFC 7617).
pub(super) fn take_credentials(url: &mut Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut credentials: Vec<u8> = percent_decode_str(url.username()).collect();
    credentials.push(b':');
    credentials.extend(percent_decode_str(url.password().unwrap_or_default()));
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(credentials))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, refused};
    use super::*;

    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const INSECURE: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE"];

    fn check(variables: &[(&str, &str)], expected: &str) {
        assert_eq!(config(variables).unwrap().otlp.endpoint.as_str(), expected, "{variables:?}");
    }

    #[test]
    fn http_paths() {
        check(&[(GENERIC, "http://c:4318")], "http://c:4318/v1/traces");
        check(&[(GENERIC, "http://c:4318/")], "http://c:4318/v1/traces");
        check(&[(GENERIC, "https://c/otlp")], "https://c/otlp/v1/traces");
        check(&[(GENERIC, "https://c/otlp/?key=1")], "https://c/otlp/v1/traces?key=1");
        check(&[(TRACES, "http://c:4318")], "http://c:4318/");
        check(&[(TRACES, "http://c:4318/x/"), (GENERIC, "http://d")], "http://c:4318/x/");
        check(&[(TRACES, ""), (GENERIC, " http://d ")], "http://d/v1/traces");
    }

    #[test]
    fn grpc_targets() {
        let grpc = (PROTOCOL, "grpc");
        let insecure = |value| (INSECURE[1], value);
        check(&[grpc], "http://localhost:4317/");
        check(&[grpc, (GENERIC, "http://c:4317/v1/traces")], "http://c:4317/");
        check(&[grpc, (GENERIC, "c:4317")], "https://c:4317/");
        check(&[grpc, (GENERIC, "c:4317"), insecure("True")], "http://c:4317/");
        check(&[grpc, (GENERIC, "c:4317"), insecure("1")], "https://c:4317/");
        check(&[grpc, (GENERIC, "c:4317"), insecure("true"), (INSECURE[0], "false")], "https://c:4317/");
        check(&[grpc, (GENERIC, "https://c:4317"), insecure("true")], "https://c:4317/");
        check(&[grpc, (GENERIC, "http://c:4317"), insecure("false")], "http://c:4317/");
        check(&[grpc, (GENERIC, "unix:///run/otel.sock")], "unix:///run/otel.sock");
    }

    #[test]
    fn credentials_become_a_header() {
        let variables = [(GENERIC, "https://me:p%40ss@c")];
        check(&variables, "https://c/v1/traces");
        let headers = config(&variables).unwrap().otlp.headers;
        assert_eq!(headers[0].1.as_bytes(), b"Basic bWU6cEBzcw==");
        let headers = config(&[variables[0], ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=x")]).unwrap();
        assert_eq!(headers.otlp.headers.len(), 1);
    }

    #[test]
    fn what_is_refused() {
        refused(&[(GENERIC, "localhost:4318")], "needs a scheme");
        refused(&[(GENERIC, "http://")], "not a URL");
        refused(&[(GENERIC, "ftp://c")], "http/protobuf cannot use the scheme ftp://");
        refused(&[(GENERIC, "unix:///x")], "cannot use");
        refused(&[(PROTOCOL, "grpc"), (GENERIC, "h2c://c")], "grpc cannot use");
    }
}
