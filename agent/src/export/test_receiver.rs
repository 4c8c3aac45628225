//! OTLP receivers for tests, on real sockets: gRPC by the generated service, HTTP by hyper, each with or without TLS.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry::trace::{SpanContext, SpanKind, Status};
use opentelemetry::{KeyValue, SpanId, TraceFlags, TraceId};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::codec::CompressionEncoding;
use tonic::codegen::Service as _;

use crate::process::resource::Service;
use crate::trace::FinishedSpan;

/// A service whose resource holds its name.
pub(crate) fn service(name: &str) -> Arc<Service> {
    let resource =
        Resource::builder_empty().with_attribute(KeyValue::new("service.name", name.to_owned())).build();
    Arc::new(Service { pid: 1, name: name.to_owned(), server: None, resource })
}

/// A span of a service of its own.
pub(crate) fn span(service_name: &str, name: &str) -> FinishedSpan {
    span_of(&service(service_name), name)
}

pub(super) fn span_of(service: &Arc<Service>, name: &str) -> FinishedSpan {
    let start_time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let state = "vendor=1".parse().unwrap();
    let context = SpanContext::new(TraceId::from(7), SpanId::from(8), TraceFlags::SAMPLED, false, state);
    let data = SpanData {
        span_context: context,
        parent_span_id: SpanId::from(9),
        parent_span_is_remote: true,
        span_kind: SpanKind::Server,
        name: name.to_owned().into(),
        start_time,
        end_time: start_time + Duration::from_millis(5),
        attributes: vec![KeyValue::new("url.path", "/")],
        dropped_attributes_count: 3,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: crate::trace::scope(),
    };
    FinishedSpan { service: service.clone(), data }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Grpc,
    HttpTls,
    GrpcTls,
    /// With a client's certificate required.
    GrpcMutualTls,
    HttpMutualTls,
}

/// What a receiver answers instead of success.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    Http(u16),
    Grpc(tonic::Code),
    /// It takes the request but for so many spans.
    Partial(i64),
    /// It never answers.
    Silence,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) request: ExportTraceServiceRequest,
}

impl Received {
    /// `service.name`, and the names of the spans.
    pub(super) fn names(&self) -> (String, Vec<String>) {
        let spans = &self.request.resource_spans[0];
        let service = spans.resource.as_ref().unwrap().attributes[0].value.clone().unwrap();
        let Some(opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue(service)) =
            service.value
        else {
            panic!("the service name is no string")
        };
        let names = spans.scope_spans.iter().flat_map(|scope| &scope.spans).map(|span| span.name.clone());
        (service, names.collect())
    }
}

#[derive(Debug, Default)]
struct Shared {
    connections: AtomicUsize,
    received: Mutex<Vec<Received>>,
    replies: Mutex<VecDeque<Reply>>,
    arrived: Notify,
}

#[derive(Debug)]
pub(super) struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// On a port that no other test has had: each looks for its own one in what was logged.
    pub(super) async fn start(kind: Kind) -> Self {
        static USED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
        loop {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            if USED.lock().unwrap().insert(listener.local_addr().unwrap().port()) {
                return Self::serve(kind, listener);
            }
        }
    }

    pub(super) async fn start_on(kind: Kind, port: u16) -> Self {
        Self::serve(kind, TcpListener::bind(("127.0.0.1", port)).await.unwrap())
    }

    fn serve(kind: Kind, listener: TcpListener) -> Self {
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::<Shared>::default();
        let task = tokio::spawn(accept(listener, kind, shared.clone()));
        Self { port, shared, task }
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// Closes the socket and every connection.
    pub(super) async fn stop(mut self) -> u16 {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.port
    }

    /// The next requests are answered so.
    pub(super) fn reply(&self, replies: impl IntoIterator<Item = Reply>) {
        self.shared.replies.lock().unwrap().extend(replies);
    }

    /// Waits for so many requests.
    pub(super) async fn requests(&self, count: usize) -> Vec<Received> {
        loop {
            let received = self.shared.received.lock().unwrap().clone();
            if received.len() >= count {
                return received;
            }
            self.shared.arrived.notified().await;
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, kind: Kind, shared: Arc<Shared>) {
    let tls = match kind {
        Kind::Http | Kind::Grpc => None,
        Kind::HttpTls => Some(acceptor(b"http/1.1", false)),
        Kind::HttpMutualTls => Some(acceptor(b"http/1.1", true)),
        Kind::GrpcTls => Some(acceptor(b"h2", false)),
        Kind::GrpcMutualTls => Some(acceptor(b"h2", true)),
    };
    let grpc = matches!(kind, Kind::Grpc | Kind::GrpcTls | Kind::GrpcMutualTls);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, grpc, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, grpc, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    grpc: bool,
    shared: Arc<Shared>,
) {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    if grpc {
        let service = service_fn(move |request| grpc_answer(request, shared.clone()));
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    } else {
        let service = service_fn(move |request| http_answer(request, shared.clone()));
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

async fn http_answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let mut body = body.collect().await?.to_bytes().to_vec();
    if parts.method != hyper::Method::POST {
        return Ok(status(405));
    }
    if parts.headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(body.as_slice()), &mut plain).unwrap();
        body = plain;
    }
    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    let path = parts.uri.path().to_owned();
    let answer = match arrive(&shared, Received { path, headers: parts.headers, request }).await {
        Some(Reply::Http(code)) => status(code),
        Some(Reply::Partial(rejected)) => {
            Response::new(Bytes::from(partial(rejected).encode_to_vec()).into())
        }
        _ => Response::new(Full::default()),
    };
    Ok(answer)
}

fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::default()).unwrap()
}

fn partial(rejected_spans: i64) -> ExportTraceServiceResponse {
    let error_message = "too old".to_owned();
    ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess { rejected_spans, error_message }),
    }
}

/// Notes a request, and says how it is to be answered.
async fn arrive(shared: &Shared, received: Received) -> Option<Reply> {
    shared.received.lock().unwrap().push(received);
    shared.arrived.notify_one();
    let reply = shared.replies.lock().unwrap().pop_front();
    if let Some(Reply::Silence) = reply {
        std::future::pending::<()>().await;
    }
    reply
}

async fn grpc_answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<tonic::body::Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    let handler = GrpcHandler { path, headers, shared };
    let mut server = TraceServiceServer::new(handler).accept_compressed(CompressionEncoding::Gzip);
    server.call(request).await
}

struct GrpcHandler {
    path: String,
    headers: HeaderMap,
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl TraceService for GrpcHandler {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let received = Received {
            path: self.path.clone(),
            headers: self.headers.clone(),
            request: request.into_inner(),
        };
        match arrive(&self.shared, received).await {
            Some(Reply::Grpc(code)) => Err(tonic::Status::new(code, "Bearer hunter2")),
            Some(Reply::Partial(rejected)) => Ok(tonic::Response::new(partial(rejected))),
            _ => Ok(tonic::Response::new(ExportTraceServiceResponse::default())),
        }
    }
}

/// A directory with `ca.pem`, `server.{pem,key}` and `client.{pem,key}`, made once by the openssl command.
pub(super) fn certificates() -> &'static Path {
    static MADE: LazyLock<PathBuf> = LazyLock::new(|| {
        let directory = std::env::temp_dir().join(format!("pitviper-certificates-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let script = "set -e
            key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'
            openssl req -x509 $key -keyout ca.key -out ca.pem -subj '/CN=test authority'
            for name in server client; do
                openssl req $key -keyout $name.key -out $name.csr -subj /CN=$name
                echo 'subjectAltName=DNS:localhost,IP:127.0.0.1' > $name.ext
                openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                    -extfile $name.ext -out $name.pem
            done";
        let output = Command::new("sh").args(["-c", script]).current_dir(&directory).output().unwrap();
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        directory
    });
    &MADE
}

fn acceptor(protocol: &[u8], mutual: bool) -> TlsAcceptor {
    let directory = certificates();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if mutual {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_file(directory.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
