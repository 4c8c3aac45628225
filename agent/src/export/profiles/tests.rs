//! Profiles over real sockets, to receivers that take them and to some that do not.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::profiles::v1development::profiles_service_server::{
    ProfilesService, ProfilesServiceServer,
};
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse,
};
use opentelemetry_sdk::Resource;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tonic::codegen::Service as _;

use super::*;
use crate::config::tests::config;
use crate::process::resource::Service;
use crate::profile::stacks::tests::sample;

pub(super) fn service_profile(name: &str) -> ServiceProfile {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", name.to_owned()),
            KeyValue::new("service.version", "1.2"),
        ])
        .build();
    ServiceProfile {
        service: Arc::new(Service { pid: 1, name: name.to_owned(), server: None, resource }),
        start: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        duration: Duration::from_secs(10),
        period: Duration::from_nanos(10_309_278),
        stacks: sample(),
    }
}

type Seen = Arc<Mutex<Vec<(String, HeaderMap, Vec<u8>)>>>;

/// An HTTP server that answers with `status`.
async fn http_server(status: u16) -> (u16, Seen) {
    let seen = Seen::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let shared = Arc::clone(&shared);
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes().to_vec();
                        shared.lock().unwrap().push((parts.uri.path().to_owned(), parts.headers, body));
                        let answer = Response::builder().status(status).body(Full::<Bytes>::default());
                        Ok::<_, Infallible>(answer.unwrap())
                    }
                });
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (port, seen)
}

struct Grpc {
    seen: Arc<Mutex<Vec<ExportProfilesServiceRequest>>>,
    implemented: bool,
}

#[tonic::async_trait]
impl ProfilesService for Grpc {
    async fn export(
        &self,
        request: tonic::Request<ExportProfilesServiceRequest>,
    ) -> Result<tonic::Response<ExportProfilesServiceResponse>, tonic::Status> {
        assert_eq!(request.metadata().get("x-key").unwrap(), "1");
        self.seen.lock().unwrap().push(request.into_inner());
        if self.implemented {
            Ok(tonic::Response::new(ExportProfilesServiceResponse::default()))
        } else {
            Err(tonic::Status::unimplemented("Bearer hunter2"))
        }
    }
}

async fn grpc_server(implemented: bool) -> (u16, Arc<Mutex<Vec<ExportProfilesServiceRequest>>>) {
    let seen = Arc::<Mutex<Vec<ExportProfilesServiceRequest>>>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let handler = Grpc { seen: Arc::clone(&shared), implemented };
                    async move { ProfilesServiceServer::new(handler).call(request).await }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (port, seen)
}

fn start(variables: &[(&str, &str)]) -> ProfileExport {
    let config = config(variables).unwrap();
    let otlp = config.otlp_configured().then_some(&config.otlp);
    let window = Duration::from_millis(20);
    let pyroscope = config.pyroscope.as_ref();
    ProfileExport::start_with(otlp, pyroscope, Duration::from_nanos(10_309_278), window, &Handle::current())
        .unwrap()
}

/// Samples of one service, in one window.
fn push(export: &ProfileExport) {
    let Some(inner) = &export.inner else { return };
    let mut windows = inner.windows();
    let ServiceProfile { service, stacks, .. } = service_profile("shop");
    for entry in stacks.iter() {
        for _ in 0..entry.count {
            windows.add(Sample {
                service: Arc::clone(&service),
                pid: 1,
                tid: 1,
                time: UNIX_EPOCH,
                stack: entry.stack.clone(),
                link: entry.subject.link,
            });
        }
    }
}

const SAMPLES: u64 = 7;

/// The SDK's resource has no order, and a window begins when it begins.
fn comparable(mut request: ExportProfilesServiceRequest) -> ExportProfilesServiceRequest {
    let profiles = request.resource_profiles.iter_mut().flat_map(|resource| &mut resource.scope_profiles);
    for profile in profiles.flat_map(|scope| &mut scope.profiles) {
        (profile.time_unix_nano, profile.duration_nano) = (0, 0);
    }
    for resource in request.resource_profiles.iter_mut().filter_map(|profiles| profiles.resource.as_mut()) {
        resource.attributes.sort_by(|a, b| a.key.cmp(&b.key));
    }
    request
}

#[tokio::test]
async fn over_http() {
    let (port, seen) = http_server(200).await;
    let url = format!("http://127.0.0.1:{port}/v1development/profiles");
    let export =
        start(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url), ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=1")]);
    push(&export);
    let stats = export.flush_and_shutdown(Duration::from_secs(10)).await;
    assert_eq!(stats, ProfileStats { exported: SAMPLES, ..ProfileStats::default() });
    let seen = seen.lock().unwrap();
    let (path, headers, body) = &seen[0];
    assert_eq!((path.as_str(), headers["x-key"].to_str().unwrap()), ("/v1development/profiles", "1"));
    let request = ExportProfilesServiceRequest::decode(body.as_slice()).unwrap();
    assert_eq!(comparable(request), comparable(otlp::request(&[service_profile("shop")])));
}

#[tokio::test]
async fn over_grpc() {
    let (port, seen) = grpc_server(true).await;
    let url = format!("http://127.0.0.1:{port}");
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let export =
        start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), grpc, ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=1")]);
    push(&export);
    let stats = export.flush_and_shutdown(Duration::from_secs(10)).await;
    assert_eq!(stats, ProfileStats { exported: SAMPLES, ..ProfileStats::default() });
    let request = seen.lock().unwrap()[0].clone();
    assert_eq!(comparable(request), comparable(otlp::request(&[service_profile("shop")])));
}

/// It is asked once, and then left alone.
#[tokio::test]
async fn a_receiver_without_profiles() {
    let (http, http_seen) = http_server(404).await;
    let (grpc, grpc_seen) = grpc_server(false).await;
    let variables: [&[(&str, &str)]; 2] = [
        &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("http://127.0.0.1:{http}/v1development/profiles"))],
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{grpc}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=1"),
        ],
    ];
    for variables in variables {
        let export = start(variables);
        let wanted = export.wanted().unwrap();
        assert!(wanted.load(Ordering::Relaxed));
        for unwanted in 1..=3 {
            push(&export);
            while export.stats().unwanted < unwanted * SAMPLES {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let stats = export.flush_and_shutdown(Duration::from_secs(10)).await;
        assert_eq!(stats, ProfileStats { unwanted: 3 * SAMPLES, ..ProfileStats::default() });
        assert!(!wanted.load(Ordering::Relaxed));
    }
    assert_eq!((http_seen.lock().unwrap().len(), grpc_seen.lock().unwrap().len()), (1, 1));
}

/// What fails for another reason is tried again with the next profile.
#[tokio::test]
async fn a_receiver_that_fails() {
    let (port, seen) = http_server(503).await;
    let export = start(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("http://127.0.0.1:{port}/x"))]);
    for dropped in 1..=2 {
        push(&export);
        while export.stats().dropped < dropped * SAMPLES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert!(export.wanted().unwrap().load(Ordering::Relaxed));
}

#[tokio::test]
async fn to_pyroscope() {
    let (port, seen) = http_server(200).await;
    let export = start(&[
        ("PYROSCOPE_SERVER_ADDRESS", &format!("http://127.0.0.1:{port}")),
        ("PYROSCOPE_AUTH_TOKEN", "t0k"),
    ]);
    push(&export);
    let stats = export.flush_and_shutdown(Duration::from_secs(10)).await;
    assert_eq!(stats.exported, SAMPLES);
    let seen = seen.lock().unwrap();
    let (path, headers, body) = &seen[0];
    assert_eq!(path, "/push.v1.PusherService/Push");
    assert_eq!(
        (&headers["content-type"], &headers["authorization"]),
        (&"application/proto".parse().unwrap(), &"Bearer t0k".parse().unwrap())
    );
    assert!(pyroscope::PushRequest::decode(body.as_slice()).is_ok());
}

#[tokio::test]
async fn nobody_wants_profiles() {
    let export = start(&[]);
    assert!(export.wanted().is_none());
    push(&export);
    assert_eq!(export.flush_and_shutdown(Duration::from_secs(1)).await, ProfileStats::default());
}
