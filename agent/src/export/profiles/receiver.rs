//! One receiver of profiles: sends, and says once what is wrong with it.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry_proto::tonic::collector::profiles::v1development::profiles_service_client::ProfilesServiceClient;
use prost::Message as _;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use tonic::Code;

use super::{ServiceProfile, otlp, pyroscope};
use crate::config::{Compression, OtlpConfig, PyroscopeConfig};
use crate::export::tls;
use crate::export::transport::{AGENT, Connection};

/// How long a push to Pyroscope may take.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Where profiles go.
#[derive(Debug)]
pub(super) struct Receiver {
    target: Target,
    /// For messages.
    place: String,
    state: State,
}

#[derive(Debug)]
enum Target {
    Otlp(Box<(OtlpConfig, Connection)>),
    Pyroscope { url: Url, client: reqwest::Client, headers: Vec<(HeaderName, HeaderValue)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Working,
    /// It failed, and that has been said.
    Failing,
    /// It takes no profiles.
    Off,
}

/// Why a request was not taken.
#[derive(Debug)]
enum Refusal {
    /// The receiver knows no profiles.
    Unsupported(String),
    /// Anything else.
    Failed(String),
}

impl Receiver {
    pub(super) fn otlp(config: &OtlpConfig) -> anyhow::Result<Self> {
        let connection = Connection::new(config)?;
        let target = Target::Otlp(Box::new((config.clone(), connection)));
        Ok(Self { target, place: config.place(), state: State::Working })
    }

    pub(super) fn pyroscope(config: &PyroscopeConfig) -> anyhow::Result<Self> {
        tls::install_provider();
        let mut builder = reqwest::Client::builder()
            .timeout(PUSH_TIMEOUT)
            // A redirect could carry the credentials to another host.
            .redirect(reqwest::redirect::Policy::none());
        if config.address.scheme() == "http" {
            // Without this a machine that has no authorities installed could not even send in plain text.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().context("failed to set up the HTTP client for Pyroscope")?;
        let url = config.address.join(pyroscope::PATH).context("PYROSCOPE_SERVER_ADDRESS takes no path")?;
        let target = Target::Pyroscope { url, client, headers: config.headers.clone() };
        Ok(Self { target, place: config.place(), state: State::Working })
    }

    /// Whether it takes profiles, as far as is known.
    pub(super) fn is_on(&self) -> bool {
        self.state != State::Off
    }

    /// Sends, and tells whether all was taken.
    pub(super) async fn send(&mut self, profiles: &[ServiceProfile]) -> bool {
        let result = match &self.target {
            Target::Otlp(otlp) => export(&otlp.0, &otlp.1, profiles).await,
            Target::Pyroscope { url, client, headers } => {
                let body = pyroscope::request(profiles).encode_to_vec();
                let request = client.post(url.clone()).header(CONTENT_TYPE, pyroscope::CONTENT_TYPE);
                post(request, headers, body).await
            }
        };
        self.judge(result)
    }

    fn judge(&mut self, result: Result<(), Refusal>) -> bool {
        let place = &self.place;
        let (state, taken) = match result {
            Ok(()) => {
                if self.state == State::Failing {
                    log::warn!("exporting profiles to {place} again");
                }
                (State::Working, true)
            }
            Err(Refusal::Unsupported(answer)) => {
                log::warn!(
                    "{place} takes no profiles ({answer}): they are not exported from now on, traces are; with \
                     PYROSCOPE_SERVER_ADDRESS they go to a Pyroscope server, with --no-profiles none are taken"
                );
                (State::Off, false)
            }
            Err(Refusal::Failed(reason)) => {
                if self.state == State::Working {
                    log::warn!("profiles cannot be sent to {place} and are lost until they can: {reason}");
                }
                (State::Failing, false)
            }
        };
        self.state = state;
        taken
    }
}

async fn export(
    config: &OtlpConfig,
    connection: &Connection,
    profiles: &[ServiceProfile],
) -> Result<(), Refusal> {
    let message = otlp::request(profiles);
    let gzip = config.compression == Compression::Gzip;
    match connection {
        Connection::Grpc(channel, metadata) => {
            let mut client = ProfilesServiceClient::new(channel.clone());
            if gzip {
                client = client.send_compressed(tonic::codec::CompressionEncoding::Gzip);
            }
            let mut request = tonic::Request::new(message);
            *request.metadata_mut() = metadata.clone();
            match client.export(request).await {
                Ok(answer) => rejected(answer.into_inner().partial_success),
                Err(status) if status.code() == Code::Unimplemented => {
                    Err(Refusal::Unsupported("gRPC UNIMPLEMENTED".to_owned()))
                }
                Err(status) => Err(Refusal::Failed(described(&status))),
            }
        }
        Connection::Http(client, headers) => {
            let body = message.encode_to_vec();
            let mut request =
                client.post(config.endpoint.clone()).header(CONTENT_TYPE, "application/x-protobuf");
            let body = if gzip {
                request = request.header(reqwest::header::CONTENT_ENCODING, "gzip");
                compressed(&body)?
            } else {
                body
            };
            post(request, headers, body).await
        }
    }
}

/// The status, and what tonic's transport said. What the receiver says is left out: it may repeat a credential.
fn described(status: &tonic::Status) -> String {
    let mut innermost = std::error::Error::source(status);
    while let Some(next) = innermost.and_then(std::error::Error::source) {
        innermost = Some(next);
    }
    match innermost {
        Some(cause) => format!("{}, {cause}", status.code()),
        None => format!("gRPC {:?}", status.code()),
    }
}

fn rejected(
    partial: Option<
        opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesPartialSuccess,
    >,
) -> Result<(), Refusal> {
    match partial.filter(|partial| partial.rejected_profiles > 0) {
        Some(partial) => Err(Refusal::Failed(partial.error_message)),
        None => Ok(()),
    }
}

fn compressed(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(body).and_then(|()| gzip.finish()).map_err(|error| Refusal::Failed(error.to_string()))
}

async fn post(
    mut request: reqwest::RequestBuilder,
    headers: &[(HeaderName, HeaderValue)],
    body: Vec<u8>,
) -> Result<(), Refusal> {
    if !headers.iter().any(|(name, _)| *name == USER_AGENT) {
        request = request.header(USER_AGENT, AGENT);
    }
    for (name, value) in headers {
        request = request.header(name, value.clone());
    }
    // The URL may hold a key.
    let answer = match request.body(body).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => return Err(Refusal::Failed("no answer in time".to_owned())),
        Err(error) if error.is_connect() => {
            return Err(Refusal::Failed("no connection could be made".to_owned()));
        }
        Err(error) => return Err(Refusal::Failed(error.without_url().to_string())),
    };
    match answer.status().as_u16() {
        200..=299 => Ok(()),
        status @ (404 | 405 | 415 | 501) => Err(Refusal::Unsupported(format!("HTTP {status}"))),
        status @ (401 | 403) => Err(Refusal::Failed(format!("HTTP {status}, check the credentials"))),
        status => Err(Refusal::Failed(format!("HTTP {status}"))),
    }
}
