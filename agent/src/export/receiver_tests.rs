//! The whole export path against real receivers ([`super::test_receiver`]).

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use tokio::runtime::Handle;

use super::metrics::{Fate, MetricsSender};
use super::test_receiver::{Kind, Receiver, Reply, certificates, service, span, span_of};
use super::{ExportHandle, ExportStats};
use crate::config::tests::config;
use crate::trace::semconv::SCHEMA_URL;

/// Longer than any test takes, so that only what is tested ends a wait.
const LONG: Duration = Duration::from_secs(60);

/// What was logged by any test; each test looks for its own port.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct TestLogger;

impl log::Log for TestLogger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LOGGED.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// The warnings that name this port.
fn warnings(port: u16) -> Vec<String> {
    let port = format!(":{port}");
    LOGGED.lock().unwrap().iter().filter(|message| message.contains(&port)).cloned().collect()
}

fn log_to_tests() {
    static LOGGER: LazyLock<()> = LazyLock::new(|| {
        log::set_logger(&TestLogger).expect("these tests need to see the log");
        log::set_max_level(log::LevelFilter::Warn);
    });
    LazyLock::force(&LOGGER);
}

/// Starts exporting to `port`, with these variables more.
fn start(scheme: &str, protocol: &str, port: u16, more: &[(&str, &str)]) -> ExportHandle {
    log_to_tests();
    let endpoint = format!("{scheme}://127.0.0.1:{port}");
    // The first of equal names counts.
    let mut variables = more.to_vec();
    variables.extend([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_BSP_SCHEDULE_DELAY", "1"),
    ]);
    ExportHandle::start(&config(&variables).unwrap(), &Handle::current()).unwrap()
}

const GRPC: &str = "grpc";
const HTTP: &str = "http/protobuf";

/// Waits until every span is accounted for.
async fn settled(export: &ExportHandle) -> ExportStats {
    loop {
        let stats = export.stats();
        if stats.queued == 0 && stats.in_flight == 0 {
            return stats;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Exports one span, and gives what became of it.
async fn export_one(export: &ExportHandle) -> ExportStats {
    export.push(span("shop", "GET"));
    settled(export).await
}

const DECORATED: [(&str, &str); 3] = [
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2,x-percent=a%2525b"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "0"),
];

#[tokio::test]
async fn grpc_carries_all_of_a_span_and_its_headers() {
    let receiver = Receiver::start(Kind::Grpc).await;
    let export = start("http", GRPC, receiver.port(), &DECORATED);
    assert_eq!(export_one(&export).await, ExportStats { exported: 1, ..Default::default() });
    let received = &receiver.requests(1).await[0];
    assert_eq!(received.path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    assert_eq!(received.headers["grpc-encoding"], "gzip");
    assert_eq!(received.headers["authorization"], "Bearer hunter2");
    assert_eq!(received.headers["x-percent"], "a%25b");
    assert_eq!(received.headers.get_all("authorization").iter().count(), 1);
    assert_eq!(received.names(), ("shop".into(), vec!["GET".into()]));
    let scope = &received.request.resource_spans[0].scope_spans[0];
    assert_eq!(scope.schema_url, SCHEMA_URL);
    let name_and_version = scope.scope.as_ref().map(|scope| (scope.name.as_str(), scope.version.as_str()));
    assert_eq!(name_and_version, Some(("pitviper", env!("CARGO_PKG_VERSION"))));
    let span = &scope.spans[0];
    // Sampled, the parent's remoteness is known, and it is remote (opentelemetry/proto/trace/v1/trace.proto).
    assert_eq!(span.flags, 0x301);
    assert_eq!(span.trace_state, "vendor=1");
    assert_eq!(span.kind, SpanKind::Server as i32);
    assert_eq!(span.dropped_attributes_count, 3 + 1);
    assert_eq!(span.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 9]);
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 5_000_000);
}

#[tokio::test]
async fn http_uses_the_path_and_decodes_headers_once() {
    let receiver = Receiver::start(Kind::Http).await;
    let export = start("http", HTTP, receiver.port(), &DECORATED);
    assert_eq!(export_one(&export).await, ExportStats { exported: 1, ..Default::default() });
    let received = &receiver.requests(1).await[0];
    assert_eq!(received.path, "/v1/traces");
    assert_eq!(received.headers["content-type"], "application/x-protobuf");
    assert_eq!(received.headers["content-encoding"], "gzip");
    assert_eq!(received.headers["authorization"], "Bearer hunter2");
    assert_eq!(received.headers["x-percent"], "a%25b");
    assert!(received.headers["user-agent"].to_str().unwrap().starts_with("pitviper/"));
    assert_eq!(received.request.resource_spans[0].scope_spans[0].spans[0].flags, 0x301);
}

#[tokio::test]
async fn services_share_a_connection_and_keep_their_resources() {
    for (kind, protocol) in [(Kind::Grpc, GRPC), (Kind::Http, HTTP)] {
        let receiver = Receiver::start(kind).await;
        let export = start("http", protocol, receiver.port(), &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]);
        let services: Vec<_> = (0..10).map(|number| service(&format!("service-{number}"))).collect();
        for round in ["a", "b"] {
            for service in &services {
                export.push(span_of(service, round));
            }
        }
        let stats = export.flush_and_shutdown(LONG).await;
        assert_eq!(stats, ExportStats { exported: 20, ..Default::default() });
        let mut names: Vec<_> =
            receiver.requests(10).await.iter().map(super::test_receiver::Received::names).collect();
        names.sort();
        let expected: Vec<_> = (0..10)
            .map(|number| (format!("service-{number}"), vec!["a".to_owned(), "b".to_owned()]))
            .collect();
        assert_eq!(names, expected);
        let most = if protocol == GRPC { 1 } else { super::worker::CONCURRENCY };
        assert!(receiver.connections() <= most, "{protocol}: {} connections", receiver.connections());
    }
}

#[tokio::test]
async fn a_full_batch_leaves_at_once() {
    let receiver = Receiver::start(Kind::Http).await;
    let long = [("OTEL_BSP_SCHEDULE_DELAY", "3600000"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")];
    let export = start("http", HTTP, receiver.port(), &long);
    let service = service("shop");
    for name in ["a", "b", "c", "d"] {
        export.push(span_of(&service, name));
    }
    assert_eq!(receiver.requests(1).await[0].names().1, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_dead_receiver_is_told_once_and_so_is_its_return() {
    for (kind, protocol) in [(Kind::Grpc, GRPC), (Kind::Http, HTTP)] {
        let port = Receiver::start(kind).await.stop().await;
        let export = start("http", protocol, port, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "90")]);
        for lost in 1..=3 {
            assert_eq!(export_one(&export).await.dropped_failed, lost);
        }
        let told = warnings(port);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("refused"), "{told:?}");
        let receiver = Receiver::start_on(kind, port).await;
        // On a slow machine the first tries may still take too long, which is told too.
        while export_one(&export).await.exported == 0 {}
        let lost = export.stats().dropped_failed;
        assert!(!receiver.requests(1).await.is_empty());
        export.flush_and_shutdown(LONG).await;
        let told = warnings(port);
        assert_eq!(told.iter().filter(|message| message.contains("refused")).count(), 1, "{told:?}");
        assert!(told[told.len() - 1].contains(&format!("again; {lost} spans were lost")), "{told:?}");
    }
}

#[tokio::test]
async fn an_outage_of_one_answer_is_retried_without_a_word() {
    let receiver = Receiver::start(Kind::Grpc).await;
    receiver.reply([Reply::Grpc(tonic::Code::Unavailable)]);
    let export = start("http", GRPC, receiver.port(), &[]);
    assert_eq!(export_one(&export).await.exported, 1);
    let http = Receiver::start(Kind::Http).await;
    http.reply([Reply::Http(503)]);
    assert_eq!(export_one(&start("http", HTTP, http.port(), &[])).await.exported, 1);
    assert_eq!(warnings(receiver.port()), [""; 0]);
    assert_eq!(warnings(http.port()), [""; 0]);
}

/// Asserts that the only warning about this receiver holds `parts`, and no secret.
async fn check_warning(
    receiver: Receiver,
    scheme: &str,
    protocol: &str,
    more: &[(&str, &str)],
    parts: &[&str],
) {
    let mut variables = vec![("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2")];
    variables.extend_from_slice(more);
    let export = start(scheme, protocol, receiver.port(), &variables);
    assert_eq!(export_one(&export).await.dropped_failed, 1);
    export.flush_and_shutdown(LONG).await;
    let told = warnings(receiver.port());
    let [message] = told.as_slice() else { panic!("not one warning: {told:?}") };
    for part in parts {
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    }
    assert!(!message.contains("hunter2"), "{message}");
}

/// [`check_warning`] of a new receiver.
async fn check_kind(kind: Kind, scheme: &str, protocol: &str, more: &[(&str, &str)], parts: &[&str]) {
    check_warning(Receiver::start(kind).await, scheme, protocol, more, parts).await;
}

#[tokio::test]
async fn the_wrong_protocol_is_named() {
    let authority = certificates().join("ca.pem");
    let authority = [("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.to_str().unwrap())];
    let grpc = ["speaks gRPC", "is http/protobuf: set it to grpc"];
    let http = ["speaks HTTP/1.1", "is grpc: set it to http/protobuf"];
    tokio::join!(
        check_kind(Kind::Grpc, "http", HTTP, &[], &grpc),
        check_kind(Kind::Http, "http", GRPC, &[], &http),
        check_kind(Kind::GrpcTls, "https", HTTP, &authority, &grpc),
        check_kind(Kind::HttpTls, "https", GRPC, &authority, &http),
    );
}

#[tokio::test]
async fn wrong_tls_is_named() {
    let encrypted = ["speaks TLS", "https://"];
    let plain = ["does not speak TLS", "http://"];
    let untrusted = ["not accepted", "UnknownIssuer", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
    tokio::join!(
        check_kind(Kind::GrpcTls, "http", GRPC, &[], &encrypted),
        check_kind(Kind::HttpTls, "http", HTTP, &[], &encrypted),
        check_kind(Kind::Grpc, "https", GRPC, &[], &plain),
        check_kind(Kind::Http, "https", HTTP, &[], &plain),
        check_kind(Kind::GrpcTls, "https", GRPC, &[], &untrusted),
        check_kind(Kind::HttpTls, "https", HTTP, &[], &untrusted),
    );
}

#[tokio::test]
async fn refusals_are_named() {
    for (code, part) in [
        (tonic::Code::Unimplemented, "takes no traces"),
        (tonic::Code::Unauthenticated, "OTEL_EXPORTER_OTLP_HEADERS"),
        (tonic::Code::PermissionDenied, "OTEL_EXPORTER_OTLP_HEADERS"),
        (tonic::Code::InvalidArgument, "InvalidArgument"),
    ] {
        let receiver = Receiver::start(Kind::Grpc).await;
        receiver.reply([Reply::Grpc(code)]);
        check_warning(receiver, "http", GRPC, &[], &[part]).await;
    }
    for (status, part) in
        [(404, "/v1/traces was appended"), (401, "HTTP 401"), (403, "HTTP 403"), (302, "HTTP 302")]
    {
        let receiver = Receiver::start(Kind::Http).await;
        receiver.reply([Reply::Http(status)]);
        check_warning(receiver, "http", HTTP, &[], &[part]).await;
    }
}

#[tokio::test]
async fn tls_with_an_own_authority_and_a_client_certificate() {
    let path = |name: &str| certificates().join(name).to_str().unwrap().to_owned();
    let (authority, certificate, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let authority = ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.as_str());
    let client = [
        authority,
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", certificate.as_str()),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", key.as_str()),
    ];
    for (kind, protocol, variables) in [
        (Kind::GrpcTls, GRPC, &client[..1]),
        (Kind::HttpTls, HTTP, &client[..1]),
        (Kind::GrpcMutualTls, GRPC, &client),
        (Kind::HttpMutualTls, HTTP, &client),
    ] {
        let receiver = Receiver::start(kind).await;
        let export = start("https", protocol, receiver.port(), variables);
        assert_eq!(export_one(&export).await.exported, 1, "{kind:?}: {:?}", warnings(receiver.port()));
    }
    // Without the certificate the receiver must refuse, or the test above shows nothing.
    let without = async |kind, protocol| {
        let receiver = Receiver::start(kind).await;
        let export = start("https", protocol, receiver.port(), &[authority]);
        assert_eq!(export_one(&export).await.dropped_failed, 1, "{kind:?}");
        assert!(receiver.connections() == 0, "{kind:?}");
    };
    tokio::join!(without(Kind::GrpcMutualTls, GRPC), without(Kind::HttpMutualTls, HTTP));
}

#[tokio::test]
async fn a_missing_or_wrong_certificate_file_is_refused_at_the_start() {
    let key = certificates().join("client.key");
    for (file, part) in
        [("/nonexistent.pem", "failed to read /nonexistent.pem"), (key.to_str().unwrap(), "no PEM")]
    {
        let variables =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost"), ("OTEL_EXPORTER_OTLP_CERTIFICATE", file)];
        let error = ExportHandle::start(&config(&variables).unwrap(), &Handle::current()).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(part) && error.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"), "{error}");
    }
}

#[tokio::test]
async fn partial_success_is_counted_and_told_once() {
    for (kind, protocol) in [(Kind::Grpc, GRPC), (Kind::Http, HTTP)] {
        let receiver = Receiver::start(kind).await;
        receiver.reply([Reply::Partial(1), Reply::Partial(1)]);
        let export = start("http", protocol, receiver.port(), &[]);
        export_one(&export).await;
        export_one(&export).await;
        let stats = export_one(&export).await;
        assert_eq!(
            stats,
            ExportStats { exported: 1, dropped_rejected: 2, ..Default::default() },
            "{protocol}"
        );
        let told = warnings(receiver.port());
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("refused 1 spans") && told[0].contains("too old"), "{told:?}");
    }
}

#[tokio::test]
async fn shutdown_ends_in_time_even_if_the_receiver_is_silent() {
    for (kind, protocol) in [(Kind::Grpc, GRPC), (Kind::Http, HTTP)] {
        let receiver = Receiver::start(kind).await;
        receiver.reply([Reply::Silence]);
        let one = [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")];
        let export = start("http", protocol, receiver.port(), &one);
        for _ in 0..5 {
            export.push(span("shop", "GET"));
        }
        receiver.requests(1).await;
        let stats = export.flush_and_shutdown(Duration::from_millis(10)).await;
        assert_eq!(stats, ExportStats { dropped_shutdown: 5, ..Default::default() });
        export.push(span("shop", "late"));
        assert_eq!(export.stats().dropped_shutdown, 6);
    }
}

#[tokio::test]
async fn a_silent_receiver_is_given_up() {
    let receiver = Receiver::start(Kind::Http).await;
    receiver.reply([Reply::Silence]);
    let more = [("OTEL_EXPORTER_OTLP_TIMEOUT", "30")];
    check_warning(receiver, "http", HTTP, &more, &["does not answer within 30 ms"]).await;
    let receiver = Receiver::start(Kind::Grpc).await;
    receiver.reply([Reply::Silence]);
    check_warning(receiver, "http", GRPC, &more, &["does not answer within 30 ms"]).await;
}

#[tokio::test]
async fn nothing_is_exported_when_disabled() {
    let receiver = Receiver::start(Kind::Http).await;
    for more in
        [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_EXPORTER", "console")]
    {
        let export = start("http", HTTP, receiver.port(), &[more]);
        export.push(span("shop", "GET"));
        assert_eq!(export.flush_and_shutdown(LONG).await, ExportStats::default());
    }
    assert_eq!(receiver.connections(), 0);
}

/// Makes a sender of metrics to `port`, with these variables more, and sends once for each of the `fates`.
async fn send_metrics(protocol: &str, port: u16, more: &[(&str, &str)], fates: &[Fate]) {
    log_to_tests();
    let endpoint = format!("http://127.0.0.1:{port}");
    let mut variables = more.to_vec();
    variables.extend([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
    ]);
    let config = config(&variables).unwrap();
    let mut sender = MetricsSender::new(&config, &Handle::current()).unwrap().unwrap();
    for fate in fates {
        assert_eq!(sender.send(&ResourceMetrics::default()).await, *fate, "{protocol} {more:?}");
    }
}

#[tokio::test]
async fn metrics_that_nobody_wants_are_turned_off_with_one_message() {
    // The test's gRPC receiver has no service but that for traces.
    let grpc = Receiver::start(Kind::Grpc).await;
    send_metrics(GRPC, grpc.port(), &[], &[Fate::Unwanted]).await;
    let http = Receiver::start(Kind::Http).await;
    http.reply([Reply::Http(404)]);
    send_metrics(HTTP, http.port(), &[], &[Fate::Unwanted]).await;
    for port in [grpc.port(), http.port()] {
        let [warning] = &warnings(port)[..] else { panic!("{:?}", warnings(port)) };
        assert!(
            warning.contains("takes no metrics") && warning.contains("OTEL_METRICS_EXPORTER"),
            "{warning}"
        );
    }
    // What the receiver has for traces is as it was.
    let export = start("http", GRPC, grpc.port(), &[]);
    assert_eq!(export_one(&export).await.exported, 1);
}

#[tokio::test]
async fn metrics_go_to_their_own_path() {
    let receiver = Receiver::start(Kind::Http).await;
    let headers = ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-tenant=a%20b");
    send_metrics(HTTP, receiver.port(), &[headers], &[Fate::Taken]).await;
    let received = &receiver.requests(1).await[0];
    assert_eq!(received.path, "/v1/metrics");
    assert_eq!(received.headers["x-tenant"], "a b");
}

#[tokio::test]
async fn what_is_wrong_with_metrics_is_told_once_and_not_twice_for_one_receiver() {
    let receiver = Receiver::start(Kind::Http).await;
    let fates = [Fate::Lost, Fate::Lost, Fate::Taken];
    let refusals = || [401, 401].map(Reply::Http);
    receiver.reply(refusals());
    // The spans' exporter says it.
    send_metrics(HTTP, receiver.port(), &[], &fates).await;
    assert_eq!(warnings(receiver.port()), Vec::<String>::new());
    receiver.reply(refusals());
    send_metrics(HTTP, receiver.port(), &[("OTEL_TRACES_EXPORTER", "console")], &fates).await;
    let [refused, again] = &warnings(receiver.port())[..] else { panic!("{:?}", warnings(receiver.port())) };
    assert!(refused.contains("pitviper's own metrics") && refused.contains("HTTP 401"), "{refused}");
    assert!(again.contains("again"), "{again}");
}
