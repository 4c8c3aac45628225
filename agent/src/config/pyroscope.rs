//! `PYROSCOPE_*`: pushing profiles to a Pyroscope server directly, with the variables of its own agents.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::ConfigError;
use super::endpoint::take_credentials;
use super::env::Env;

pub(super) const ADDRESS: &str = "PYROSCOPE_SERVER_ADDRESS";
const TOKEN: &str = "PYROSCOPE_AUTH_TOKEN";
const USER: &str = "PYROSCOPE_BASIC_AUTH_USER";
const PASSWORD: &str = "PYROSCOPE_BASIC_AUTH_PASSWORD";
const TENANT: &str = "PYROSCOPE_TENANT_ID";
/// The header that names the tenant of a server with several.
const TENANT_HEADER: HeaderName = HeaderName::from_static("x-scope-orgid");

/// A Pyroscope server.
#[derive(Clone, PartialEq, Eq)]
pub struct PyroscopeConfig {
    /// Its address, without credentials, ending with a slash.
    pub address: Url,
    /// Headers of every request. The values are secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl std::fmt::Debug for PyroscopeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PyroscopeConfig").field("address", &self.place()).finish_non_exhaustive()
    }
}

impl PyroscopeConfig {
    pub(super) fn from_env(env: &mut Env<'_>) -> Result<Option<Self>, ConfigError> {
        let Some(text) = env.text(ADDRESS) else {
            if let Some((variable, _)) = env.first(&[TOKEN, USER]) {
                env.warn(format!("{variable} does nothing without {ADDRESS}"));
            }
            return Ok(None);
        };
        let mut address = Url::parse(&text)
            .map_err(|error| ConfigError::new(ADDRESS, format!("this is not a URL: {error}")))?;
        if !matches!(address.scheme(), "http" | "https") {
            return Err(ConfigError::new(ADDRESS, "the URL needs a scheme, http:// or https://"));
        }
        let in_url = take_credentials(&mut address);
        address.set_query(None);
        address.set_fragment(None);
        if let Ok(mut segments) = address.path_segments_mut() {
            segments.pop_if_empty().push("");
        }
        let authorization = match (env.text(TOKEN), env.text(USER), env.text(PASSWORD)) {
            (Some(token), ..) => Some(secret(TOKEN, format!("Bearer {token}"))?),
            (None, Some(user), password) => {
                let credentials = STANDARD.encode(format!("{user}:{}", password.unwrap_or_default()));
                Some(secret(USER, format!("Basic {credentials}"))?)
            }
            (None, None, _) => in_url,
        };
        let tenant = env.text(TENANT).map(|tenant| secret(TENANT, tenant)).transpose()?;
        let headers = authorization.map(|value| (AUTHORIZATION, value)).into_iter();
        let headers = headers.chain(tenant.map(|value| (TENANT_HEADER, value))).collect();
        Ok(Some(Self { address, headers }))
    }

    /// Host and port, for messages.
    pub fn place(&self) -> String {
        match (self.address.host_str(), self.address.port_or_known_default()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            _ => self.address.scheme().to_owned(),
        }
    }
}

fn secret(variable: &str, text: String) -> Result<HeaderValue, ConfigError> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| ConfigError::new(variable, "this cannot be sent in an HTTP header"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, refused};
    use super::*;

    fn check(variables: &[(&str, &str)], address: &str, authorization: Option<&str>) {
        let config = config(variables).unwrap().pyroscope.unwrap();
        assert_eq!(config.address.as_str(), address);
        let found = config.headers.iter().find(|(name, _)| *name == AUTHORIZATION);
        assert_eq!(found.map(|(_, value)| value.to_str().unwrap()), authorization);
    }

    #[test]
    fn addresses_and_credentials() {
        check(&[(ADDRESS, "http://p:4040")], "http://p:4040/", None);
        check(
            &[(ADDRESS, "https://p/profiles?x=1"), (TOKEN, "t0k")],
            "https://p/profiles/",
            Some("Bearer t0k"),
        );
        let basic = Some("Basic dTpw");
        check(&[(ADDRESS, "http://u:p@p:4040/")], "http://p:4040/", basic);
        check(&[(ADDRESS, "http://p:4040"), (USER, "u"), (PASSWORD, "p")], "http://p:4040/", basic);
    }

    #[test]
    fn tenants() {
        let config = config(&[(ADDRESS, "http://p"), (TENANT, "shop")]).unwrap().pyroscope.unwrap();
        assert_eq!(config.headers, [(TENANT_HEADER, HeaderValue::from_static("shop"))]);
    }

    #[test]
    fn what_is_refused_or_ignored() {
        refused(&[(ADDRESS, "p:4040")], "needs a scheme");
        refused(&[(ADDRESS, "http://p"), (TOKEN, "a\u{7}b")], "HTTP header");
        let config = config(&[(TOKEN, "hunter2")]).unwrap();
        assert!(config.pyroscope.is_none());
        assert!(config.warnings[0].contains(ADDRESS) && !config.warnings[0].contains("hunter2"));
    }

    #[test]
    fn debug_output_hides_secrets() {
        let config = config(&[(ADDRESS, "http://u:hunter2@p"), (TENANT, "hunter2")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
