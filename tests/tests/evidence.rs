//! Why each span has its parent, and how the daemon tells of its own work: the spans' attributes, `pitviper ps`, metrics.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{Agent, run_to_end};
use pitviper_tests::collector::Transport;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load};
use pitviper_tests::metrics::{Point, latest};
use pitviper_tests::oracle;
use pitviper_tests::process::{send_signal, wait_until};
use pitviper_tests::runner::Suite;
use pitviper_tests::service::{Service, UVICORN};
use pitviper_tests::spans::Span;
use serde_json::Value;

fn main() -> ExitCode {
    Suite::new()
        .case("spans say why they have their parent", spans_say_why)
        .case("spans say nothing unasked", unasked)
        .case("ps shows the edges of a running daemon", ps)
        .case("ps without a daemon, and with sockets that do not answer", hostile_sockets)
        .case("metrics over grpc", |lab| metrics(lab, Transport::Grpc))
        .case("metrics over http", |lab| metrics(lab, Transport::Http))
        .case("no metrics unless wanted", unwanted_metrics)
        .main()
}

const EVIDENCE: &str = "pitviper.parent.evidence";
const REASON: &str = "pitviper.orphan.reason";

fn service(lab: &Lab, environment: &[(&str, &str)]) -> Result<Service> {
    Service::start_with(lab, lab.python(), "fastapi_app", UVICORN, environment)
}

/// Spans by what they say of their parent.
fn by_evidence<'a>(spans: impl Iterator<Item = &'a Span>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for span in spans {
        *counts.entry(span.attribute(EVIDENCE).to_owned()).or_default() += 1;
    }
    counts
}

/// Two services, one behind the other, requests with and without `traceparent`, and one route that makes orphans.
fn spans_say_why(lab: &Lab) -> Result<String> {
    let back = service(lab, &[])?;
    let upstream = format!("http://127.0.0.1:{}", back.port());
    let front = service(lab, &[("TEST_UPSTREAM", &upstream)])?;
    let collector = lab.collector()?;
    let pids = [front.pid().to_string(), back.pid().to_string()];
    let agent = Agent::start(&["--pid", &pids[0], "--pid", &pids[1], "--parent-evidence"], collector)?;
    Load::new(front.port()).run("chain", 0..50)?;
    Load::new(front.port()).run("background", 100..150)?;
    Load::new(front.port()).run("executor", 200..250)?;
    Load::new(front.port()).run("mailbox", 400..450)?;
    let mut connection = Connection::new(front.port());
    for n in 1..=20 {
        connection
            .get(&format!("/work/{}", 300 + n), &format!("traceparent: 00-{n:032x}-{n:016x}-01\r\n"))?;
    }
    front.settle();
    let (_, spans) = agent.finish(collector)?;

    for span in &spans {
        let (evidence, reason) = (span.attribute(EVIDENCE), span.attribute(REASON));
        let parent = spans.iter().find(|parent| {
            !span.parent_id.is_empty() && parent.span_id == span.parent_id && parent.trace_id == span.trace_id
        });
        let same_process =
            |parent: &Span| parent.resource.get("process.pid") == span.resource.get("process.pid");
        let fits = match evidence {
            "header" => span.is_server() && parent.is_none() && !span.parent_id.is_empty(),
            "connection" => {
                span.is_server() && parent.is_some_and(|parent| parent.is_client() && !same_process(parent))
            }
            "response" | "context" | "thread" | "handover" => {
                span.is_client() && parent.is_some_and(|parent| parent.is_server() && same_process(parent))
            }
            "none" => span.is_client() && span.parent_id.is_empty() && !reason.is_empty(),
            "" => span.is_server() && span.parent_id.is_empty(),
            _ => false,
        };
        ensure!(fits, "{evidence:?} ({reason:?}) does not fit {}", span.line());
        ensure!(reason.is_empty() || evidence == "none", "a reason without an orphan: {}", span.line());
    }
    let servers = by_evidence(spans.iter().filter(|span| span.is_server()));
    let expected =
        [("", 200), ("connection", 190), ("header", 20)].map(|(name, count)| (name.to_owned(), count));
    ensure!(servers == BTreeMap::from(expected), "server spans: {servers:?}");
    let clients = by_evidence(spans.iter().filter(|span| span.is_client()));
    for kind in ["response", "handover", "none"] {
        ensure!(clients.get(kind).is_some_and(|count| *count > 0), "no client span by {kind}: {clients:?}");
    }
    Ok(format!("servers {servers:?}, clients {clients:?}"))
}

fn unasked(lab: &Lab) -> Result<String> {
    let service = service(lab, &[])?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    Load::new(service.port()).run("work", 0..20)?;
    let (_, spans) = agent.finish(collector)?;
    let evidence = |key: &String| key.starts_with("pitviper.") && !key.starts_with("pitviper.time.");
    let said = |span: &&Span| span.attributes.keys().any(evidence);
    ensure!(!spans.iter().any(|span| said(&span)), "{:?}", spans.iter().find(said).map(Span::line));
    Ok(format!("{} spans", spans.len()))
}

/// What `pitviper ps --json` says of a process that this daemon traces.
fn traced(pid: u32, daemon: u32) -> Result<Value> {
    let finished = run_to_end(&["ps", "--json"])?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    let document: Value = serde_json::from_str(&finished.stdout).context("ps --json is no JSON")?;
    let rows = document["processes"].as_array().context("no processes")?;
    let row = rows.iter().find(|row| row["pid"] == pid).with_context(|| format!("no row {pid}"))?;
    let daemons = row["traced_by"].as_array().context("no daemons")?;
    let by = daemons.iter().find(|by| by["daemon"] == daemon);
    Ok(by.with_context(|| format!("not traced by {daemon}: {row}\n{}", finished.stderr))?["report"].clone())
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().into_iter().flat_map(|counts| counts.values()).filter_map(Value::as_u64).sum()
}

fn ps(lab: &Lab) -> Result<String> {
    let service = service(lab, &[])?;
    let other = self::service(lab, &[])?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    // A client that connects, says nothing and never reads holds nobody up.
    let address = SocketAddr::from_abstract_name(format!("pitviper-{}", agent.pid()))?;
    let _hanging: Vec<UnixStream> =
        (0..3).map(|_| UnixStream::connect_addr(&address)).collect::<Result<_, _>>()?;
    let before = traced(service.pid(), agent.pid())?;
    ensure!(sum(&before["edges"]) == 0, "edges before the first request: {before}");
    let replies = Load::new(service.port()).run("work", 0..100)?;
    let mailbox = Load::new(service.port()).run("mailbox", 200..220)?;
    let report = wait_until("all operations are decided", Duration::from_secs(20), || {
        let report = traced(service.pid(), agent.pid()).ok()?;
        (report["roots"] == 120 && report["waiting"] == 0).then_some(report)
    })?;
    let text = run_to_end(&["ps"])?;
    ensure!(text.status.success(), "{}", text.stderr);
    let row = format!("└ traced by {}: ", agent.pid());
    let line = text.stdout.lines().find(|line| line.contains(&row)).map(str::trim);
    let line = line.with_context(|| format!("no line {row:?} in\n{}", text.stdout))?.to_owned();
    ensure!(line.contains(" response") && line.contains("; 0 conflicts"), "{line}");
    let daemon = agent.pid();
    ensure!(traced(other.pid(), daemon).is_err(), "a process that is not traced is said to be");

    let (_, spans) = agent.finish(collector)?;
    // The same numbers as those of the spans that arrived.
    let below = spans.iter().filter(|span| span.is_client() && !span.parent_id.is_empty()).count() as u64;
    let orphans = spans.iter().filter(|span| span.is_client() && span.parent_id.is_empty()).count() as u64;
    ensure!(sum(&report["edges"]) == below, "{below} spans have a parent, but {report}");
    ensure!(sum(&report["orphans"]) == orphans, "{orphans} orphans, but {report}");
    ensure!(orphans > 0, "a thread that works for everybody made no orphans");
    ensure!(report["tier"] == "full" && report["conflicts"] == 0, "{report}");
    oracle::score(&replies, &spans)?.assert_perfect()?;
    oracle::score(&mailbox, &spans)?.assert_honest()?;
    Ok(line)
}

/// Sockets with a daemon's name, where nobody answers or nonsense is said; and a daemon that was killed.
fn hostile_sockets(lab: &Lab) -> Result<String> {
    let bind = |pid: u32| -> Result<UnixListener> {
        Ok(UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("pitviper-{pid}"))?)?)
    };
    // Numbers that no process has: the kernel's pids end at 4194304.
    let (silent, babbling) = (std::process::id() + 100_000_000, std::process::id() + 200_000_000);
    let _silent = bind(silent)?;
    let listener = bind(babbling)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, b"{\"format\": \"one\"");
        }
    });
    let service = service(lab, &[])?;
    let mut agent = Agent::start(&["--pid", &service.pid().to_string()], lab.collector()?)?;
    let start = Instant::now();
    let shown = run_to_end(&["ps"])?;
    ensure!(shown.status.success(), "{}", shown.stderr);
    ensure!(start.elapsed() < Duration::from_secs(20), "ps took {:?}", start.elapsed());
    for (pid, reason) in [(silent, "it does not answer"), (babbling, "its answer is not understood")] {
        let warning = format!("pitviper: warning: the daemon {pid} tells nothing: {reason}");
        ensure!(shown.stderr.contains(&warning), "no {warning:?} in\n{}", shown.stderr);
    }
    let row = format!("└ traced by {}: ", agent.pid());
    ensure!(shown.stdout.contains(&row), "no {row:?} in\n{}", shown.stdout);

    send_signal(agent.pid(), libc::SIGKILL);
    agent.wait(Duration::from_secs(10))?;
    let name = format!("@pitviper-{}", agent.pid());
    let sockets = std::fs::read_to_string("/proc/net/unix")?;
    ensure!(!sockets.lines().any(|line| line.ends_with(&name)), "the killed daemon left its socket");
    let shown = run_to_end(&["ps"])?;
    ensure!(shown.status.success() && !shown.stdout.contains(&row), "{}", shown.stdout);
    ensure!(shown.stdout.contains(&service.pid().to_string()), "{}", shown.stdout);
    Ok(format!("{:.1} s", start.elapsed().as_secs_f32()))
}

/// The daemon's metrics arrive while it runs and once more at its end, and say what the spans say.
fn metrics(lab: &Lab, transport: Transport) -> Result<String> {
    let service = service(lab, &[("OTEL_SERVICE_NAME", "shop")])?;
    let collector = lab.collector()?;
    let mut environment = collector.environment(transport);
    environment.push(("OTEL_METRIC_EXPORT_INTERVAL", "400".to_owned()));
    environment.push(("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab".to_owned()));
    let agent = Agent::start_with(&["--pid", &service.pid().to_string()], &environment)?;
    let replies = Load::new(service.port()).run("work", 0..100)?;
    Load::new(service.port()).run("mailbox", 200..220)?;
    let total =
        |points: &[Point], name: &str| latest(points, name).iter().map(|point| point.value).sum::<i64>();
    wait_until("metrics of all requests, while the daemon runs", Duration::from_secs(20), || {
        collector.points().is_ok_and(|points| total(&points, "pitviper.roots") == 120).then_some(())
    })
    .with_context(|| agent.stderr())?;
    let daemon = agent.pid().to_string();
    let (finished, spans) = agent.finish(collector)?;
    oracle::score(&replies, &spans)?.assert_perfect()?;
    let (exported, _) = finished.counts()?;
    let points = wait_until("the last metrics", Duration::from_secs(10), || {
        let points = collector.points().ok()?;
        let done = total(&points, "otel.sdk.exporter.span.exported") == i64::try_from(exported).ok()?;
        done.then_some(points)
    })?;

    let of = |span: &&Span| span.is_client() && !span.parent_id.is_empty();
    let expected = i64::try_from(spans.iter().filter(of).count())?;
    let edges = latest(&points, "pitviper.edges");
    ensure!(total(&points, "pitviper.edges") == expected, "{expected} edges, but {edges:#?}");
    let orphans = i64::try_from(spans.iter().filter(|span| span.is_client()).count())? - expected;
    ensure!(orphans > 0 && total(&points, "pitviper.orphans") == orphans, "{orphans} orphans");
    for point in &edges {
        ensure!(
            !point.attribute(EVIDENCE).is_empty() && point.monotonic && point.unit == "{edge}",
            "{point:#?}"
        );
        let target = [("service.name", "shop".to_owned()), ("process.pid", service.pid().to_string())];
        for (key, value) in target {
            ensure!(
                point.attribute(&format!("pitviper.target.{key}")) == value,
                "no {key} {value}: {point:#?}"
            );
        }
    }
    let targets = latest(&points, "pitviper.targets");
    ensure!(targets.iter().any(|point| point.attribute("pitviper.tier") == "full"), "{targets:#?}");
    let queue = latest(&points, "otel.sdk.processor.span.queue.size");
    ensure!(queue.iter().all(|point| point.value == 0 && !point.monotonic), "{queue:#?}");
    let sent = latest(&points, "otel.sdk.exporter.span.exported");
    let kind = match transport {
        Transport::Grpc => "otlp_grpc_span_exporter",
        Transport::Http => "otlp_http_span_exporter",
    };
    ensure!(sent.iter().all(|point| point.attribute("otel.component.type") == kind), "{sent:#?}");
    for point in &points {
        let of = |key: &str| point.resource.get(key).map_or("", String::as_str);
        ensure!(of("service.name") == "pitviper" && of("process.pid") == daemon, "{:#?}", point.resource);
        ensure!(!of("service.version").is_empty() && !of("host.name").is_empty(), "{:#?}", point.resource);
        ensure!(of("deployment.environment.name") == "lab", "{:#?}", point.resource);
    }
    let names: std::collections::BTreeSet<_> = points.iter().map(|point| point.name.as_str()).collect();
    Ok(format!("{} points of {} metrics", points.len(), names.len()))
}

fn unwanted_metrics(lab: &Lab) -> Result<String> {
    let service = service(lab, &[])?;
    let collector = lab.collector()?;
    let mut environment = collector.environment(Transport::Grpc);
    environment.push(("OTEL_METRICS_EXPORTER", "none".to_owned()));
    environment.push(("OTEL_METRIC_EXPORT_INTERVAL", "100".to_owned()));
    let agent = Agent::start_with(&["--pid", &service.pid().to_string()], &environment)?;
    Load::new(service.port()).run("work", 0..20)?;
    std::thread::sleep(Duration::from_millis(500));
    let (_, spans) = agent.finish(collector)?;
    ensure!(
        !spans.is_empty() && collector.points()?.is_empty(),
        "metrics in spite of OTEL_METRICS_EXPORTER=none"
    );
    Ok("none".to_owned())
}
