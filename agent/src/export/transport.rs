//! The shared connection, and the exporters that send over it, one for each resource.
//!
//! An OTLP exporter of the SDK belongs to one resource, so each service instance gets its own; they share one gRPC
//! channel or one HTTP connection pool. What the crate would take from the environment is given to it here.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use reqwest::header::{HeaderName, HeaderValue, USER_AGENT};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tracing::Dispatch;
use tracing::instrument::WithSubscriber as _;

use super::failure::Failure;
use super::http::HttpSender;
use super::partial::{Heard, PartialSuccess};
use super::tls::{self, Pem};
use crate::config::{Compression, OtlpConfig, Protocol};

/// How we introduce ourselves, unless the headers say otherwise.
pub(super) const AGENT: &str = concat!("pitviper/", env!("CARGO_PKG_VERSION"));

/// A new connection must be made within this time, or within the request's timeout where that is shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection that all services share.
#[derive(Debug)]
pub(super) struct Transport {
    config: OtlpConfig,
    connection: Connection,
}

/// A connection as a configuration describes it, with the headers of its requests.
#[derive(Debug)]
pub(super) enum Connection {
    /// A gRPC channel.
    Grpc(Channel, MetadataMap),
    /// An HTTP connection pool.
    Http(reqwest::Client, Arc<[(HeaderName, HeaderValue)]>),
}

impl Connection {
    /// Must be called inside a tokio runtime. Connects when there is something to send.
    pub(super) fn new(config: &OtlpConfig) -> anyhow::Result<Self> {
        tls::install_provider();
        let pem = Pem::read(&config.tls)?;
        match config.protocol {
            Protocol::Grpc => grpc(config, &pem),
            Protocol::HttpProtobuf => http(config, &pem),
        }
    }
}

impl Transport {
    /// Must be called inside a tokio runtime. Connects when there is something to send.
    pub(super) fn new(config: &OtlpConfig) -> anyhow::Result<Self> {
        Ok(Self { config: config.clone(), connection: Connection::new(config)? })
    }

    /// An exporter for the spans of `resource`.
    pub(super) fn exporter(&self, resource: &Resource) -> anyhow::Result<Exporter> {
        let OtlpConfig { endpoint, timeout, compression, .. } = &self.config;
        let gzip = *compression == Compression::Gzip;
        let (exporter, http) = match &self.connection {
            Connection::Grpc(channel, metadata) => {
                let metadata = metadata.clone();
                let mut builder = SpanExporter::builder()
                    .with_tonic()
                    .with_channel(channel.clone())
                    .with_timeout(*timeout)
                    // The crate adds the headers of the environment by its own rules; ours replace them.
                    .with_interceptor(move |mut request: tonic::Request<()>| {
                        let mut headers = std::mem::take(request.metadata_mut()).into_headers();
                        headers.extend(metadata.clone().into_headers());
                        *request.metadata_mut() = MetadataMap::from_headers(headers);
                        Ok(request)
                    });
                if gzip {
                    builder = builder.with_compression(opentelemetry_otlp::Compression::Gzip);
                }
                (builder.build(), None)
            }
            Connection::Http(client, headers) => {
                let sender = HttpSender::new(client.clone(), headers.clone());
                let mut builder = SpanExporter::builder()
                    .with_http()
                    .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                    .with_endpoint(endpoint.as_str())
                    .with_timeout(*timeout)
                    .with_http_client(sender.clone());
                if gzip {
                    builder = builder.with_compression(opentelemetry_otlp::Compression::Gzip);
                }
                (builder.build(), Some(sender))
            }
        };
        // The crate's error would quote the URL, and a query may hold a key.
        let mut exporter = exporter
            .map_err(|_| anyhow!("cannot make an OTLP exporter for {}", self.config.display_url()))?;
        exporter.set_resource(resource);
        let heard = Heard::default();
        let listener = heard.listen();
        Ok(Exporter { exporter, http, heard, listener })
    }
}

fn grpc(config: &OtlpConfig, pem: &Pem) -> anyhow::Result<Connection> {
    let mut endpoint = Endpoint::from_shared(config.endpoint.to_string())
        .context("the OTLP endpoint is no gRPC target")?
        .user_agent(AGENT)?
        .timeout(config.timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
        .tcp_keepalive(Some(Duration::from_secs(30)));
    if config.endpoint.scheme() == "https" {
        endpoint = endpoint.tls_config(pem.tonic()).context(
            "failed to set up TLS for the OTLP endpoint; OTEL_EXPORTER_OTLP_CERTIFICATE may name authorities",
        )?;
    }
    let metadata = MetadataMap::from_headers(config.headers.iter().cloned().collect());
    Ok(Connection::Grpc(endpoint.connect_lazy(), metadata))
}

fn http(config: &OtlpConfig, pem: &Pem) -> anyhow::Result<Connection> {
    let mut builder = reqwest::Client::builder()
        .timeout(config.timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
        .tcp_keepalive(Duration::from_secs(30))
        // A redirect could carry the headers, and so the credentials, to another host.
        .redirect(reqwest::redirect::Policy::none());
    builder = if config.endpoint.scheme() == "https" {
        pem.reqwest(builder)?
    } else {
        // Without this a machine that has no authorities installed could not even send in plain text.
        builder.tls_certs_only([])
    };
    let client = builder.build().context(
        "failed to set up the HTTP client for the OTLP endpoint; OTEL_EXPORTER_OTLP_CERTIFICATE may name authorities",
    )?;
    let mut headers = config.headers.clone();
    if !headers.iter().any(|(name, _)| *name == USER_AGENT) {
        headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
    }
    Ok(Connection::Http(client, headers.into()))
}

/// Sends the spans of one resource.
#[derive(Debug)]
pub(super) struct Exporter {
    exporter: SpanExporter,
    http: Option<HttpSender>,
    heard: Heard,
    listener: Dispatch,
}

impl Exporter {
    /// Sends `spans`, with the crate's retries (three, 100 to 1600 ms apart or as the receiver asks, begun within the
    /// configured timeout), and gives up after `limit`. At most one call at a time.
    pub(super) async fn send(
        &self,
        spans: Vec<SpanData>,
        limit: Duration,
    ) -> Result<Option<PartialSuccess>, Failure> {
        let export = self.exporter.export(spans).with_subscriber(self.listener.clone());
        let Ok(result) = tokio::time::timeout(limit, export).await else { return Err(Failure::Timeout) };
        let partial = self.heard.take();
        match result {
            Ok(()) => Ok(partial),
            Err(error) => {
                let recorded = self.http.as_ref().and_then(HttpSender::take_failure);
                Err(recorded.unwrap_or_else(|| Failure::from_crate(&error)))
            }
        }
    }
}
