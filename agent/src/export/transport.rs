//! The shared connection of a signal, and the exporters that send over it, one for each resource.
//!
//! An OTLP exporter of the SDK belongs to one resource, so each service instance gets its own; they share one gRPC
//! channel or one HTTP connection pool. What the crate would take from the environment is given to it here.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter as _;
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

/// The connection of a signal, which all services share.
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
    pub(super) fn exporter(&self, resource: &Resource) -> anyhow::Result<Exporter<SpanExporter>> {
        let (exporter, http) = match &self.connection {
            Connection::Grpc(channel, metadata) => {
                (self.over_grpc(SpanExporter::builder().with_tonic(), channel, metadata).build(), None)
            }
            Connection::Http(client, headers) => {
                let sender = HttpSender::new(client.clone(), headers.clone());
                (self.over_http(SpanExporter::builder().with_http(), &sender).build(), Some(sender))
            }
        };
        let mut exporter = self.exporting(exporter, http)?;
        exporter.exporter.set_resource(resource);
        Ok(exporter)
    }

    /// An exporter for metrics, whose resource they bring themselves.
    pub(super) fn metric_exporter(
        &self,
        temporality: Temporality,
    ) -> anyhow::Result<Exporter<MetricExporter>> {
        let builder = MetricExporter::builder().with_temporality(temporality);
        let (exporter, http) = match &self.connection {
            Connection::Grpc(channel, metadata) => {
                (self.over_grpc(builder.with_tonic(), channel, metadata).build(), None)
            }
            Connection::Http(client, headers) => {
                let sender = HttpSender::new(client.clone(), headers.clone());
                (self.over_http(builder.with_http(), &sender).build(), Some(sender))
            }
        };
        self.exporting(exporter, http)
    }

    fn over_grpc<B>(&self, builder: B, channel: &Channel, metadata: &MetadataMap) -> B
    where
        B: WithTonicConfig + WithExportConfig,
    {
        let metadata = metadata.clone();
        let builder = builder
            .with_channel(channel.clone())
            .with_timeout(self.config.timeout)
            // The crate adds the headers of the environment by its own rules; ours replace them.
            .with_interceptor(move |mut request: tonic::Request<()>| {
                let mut headers = std::mem::take(request.metadata_mut()).into_headers();
                headers.extend(metadata.clone().into_headers());
                *request.metadata_mut() = MetadataMap::from_headers(headers);
                Ok(request)
            });
        match self.config.compression {
            Compression::Gzip => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
            Compression::None => builder,
        }
    }

    fn over_http<B: WithHttpConfig + WithExportConfig>(&self, builder: B, sender: &HttpSender) -> B {
        let builder = builder
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(self.config.endpoint.as_str())
            .with_timeout(self.config.timeout)
            .with_http_client(sender.clone());
        match self.config.compression {
            Compression::Gzip => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
            Compression::None => builder,
        }
    }

    fn exporting<E>(
        &self,
        exporter: Result<E, ExporterBuildError>,
        http: Option<HttpSender>,
    ) -> anyhow::Result<Exporter<E>> {
        // The crate's error would quote the URL, and a query may hold a key.
        let exporter = exporter
            .map_err(|_| anyhow!("cannot make an OTLP exporter for {}", self.config.display_url()))?;
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

/// Sends one signal of one resource, with the crate's retries (three, 100 to 1600 ms apart or as the receiver asks, begun
/// within the configured timeout). At most one call at a time.
#[derive(Debug)]
pub(super) struct Exporter<E> {
    exporter: E,
    http: Option<HttpSender>,
    heard: Heard,
    listener: Dispatch,
}

impl Exporter<SpanExporter> {
    /// Sends `spans`, and gives up after `limit`.
    pub(super) async fn send(
        &self,
        spans: Vec<SpanData>,
        limit: Duration,
    ) -> Result<Option<PartialSuccess>, Failure> {
        self.watch(self.exporter.export(spans), limit).await
    }
}

impl Exporter<MetricExporter> {
    /// Sends `metrics`, and gives up after `limit`.
    pub(super) async fn send(
        &self,
        metrics: &ResourceMetrics,
        limit: Duration,
    ) -> Result<Option<PartialSuccess>, Failure> {
        self.watch(self.exporter.export(metrics), limit).await
    }
}

impl<E> Exporter<E> {
    async fn watch(
        &self,
        export: impl Future<Output = OTelSdkResult>,
        limit: Duration,
    ) -> Result<Option<PartialSuccess>, Failure> {
        let export = export.with_subscriber(self.listener.clone());
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
