//! Beside a real OpenTelemetry SDK in the watched process: no span twice, no trace broken, and everything said.

use std::collections::HashMap;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{self, Agent};
use pitviper_tests::collector::{Collector, Transport};
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load};
use pitviper_tests::observation::{answered, lines, servers};
use pitviper_tests::oracle;
use pitviper_tests::process::wait_until;
use pitviper_tests::runner::Suite;
use pitviper_tests::service::{Service, UVICORN};
use pitviper_tests::sink::Sink;
use pitviper_tests::spans::Span;

const LEFT: &str = "is left to the OpenTelemetry SDK in it: ";
/// The SDK's batches: soon, or after the test.
const SOON: &str = "300";
const NEVER: &str = "600000";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for (name, transport) in [("gRPC", Transport::Grpc), ("HTTP", Transport::Http)] {
        suite = suite
            .case(format!("auto-instrumented, {name}"), move |lab| auto_instrumented(lab, transport))
            .case(format!("set up in code, {name}"), move |lab| in_code(lab, transport))
            .case(format!("set up in code, {name}, found late"), move |lab| found_late(lab, transport))
            .case(format!("--sdk-processes=trace, {name}"), move |lab| overridden(lab, transport));
    }
    suite
        .case("its own span ids in traceparent", propagates)
        .case("traces that it begins", begins)
        .case("a chain through an SDK's process", chain)
        .case("a proxy is no SDK", proxy)
        .case("metrics alone are no tracer", metrics)
        .main()
}

/// What an SDK exports to: not where pitviper does.
fn theirs(lab: &Lab) -> Result<Collector> {
    let directory = lab.directory().join("theirs");
    std::fs::create_dir_all(&directory)?;
    Collector::start(lab.python(), &directory)
}

/// `relay_app` with these variables, started by `opentelemetry-instrument` or as it is.
fn relay(lab: &Lab, auto: bool, environment: &[(&str, String)]) -> Result<Service> {
    let venv = lab.python().instrumented()?;
    Service::start_command(lab, "relay", |port| {
        let mut command =
            Command::new(venv.script(if auto { "opentelemetry-instrument" } else { "uvicorn" }));
        if auto {
            command.arg(venv.script("uvicorn"));
        }
        command.args(["--port", port, "--log-level", "warning", "relay_app:app"]);
        for name in ["OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"] {
            command.env(name, "none");
        }
        command.env("OTEL_SERVICE_NAME", "relay");
        command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        command
    })
}

fn exporting(collector: &Collector, transport: Transport, delay: &str) -> Vec<(&'static str, String)> {
    let mut environment = collector.environment(transport);
    environment.push(("OTEL_BSP_SCHEDULE_DELAY", delay.to_owned()));
    environment
}

/// The same, and the SDK is set up by the application.
fn by_itself(collector: &Collector, transport: Transport, delay: &str) -> Vec<(&'static str, String)> {
    let mut environment = exporting(collector, transport, delay);
    let protocol = if transport == Transport::Grpc { "grpc" } else { "http" };
    environment.push(("TEST_SDK", protocol.to_owned()));
    environment
}

fn watch(services: &[&Service], options: &[&str], collector: &Collector) -> Result<Agent> {
    let pids: Vec<String> = services.iter().map(|service| format!("--pid={}", service.pid())).collect();
    let arguments: Vec<&str> = pids.iter().map(String::as_str).chain(options.iter().copied()).collect();
    Agent::start(&arguments, collector)
}

/// Exactly one message says of the service that it is left, and why.
fn told_once(stderr: &str, service: &Service, why: &str) -> Result<()> {
    let told: Vec<_> = stderr.lines().filter(|line| line.contains(LEFT)).collect();
    let subject = format!("process {} (relay) {LEFT}{why}", service.pid());
    ensure!(told.len() == 1 && told[0].contains(&subject), "not once {subject:?} in {stderr}");
    ensure!(told[0].contains("--sdk-processes=trace"), "the message names no way out: {}", told[0]);
    Ok(())
}

/// The server spans whose paths begin so.
fn beginning<'a>(spans: &'a [Span], start: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.is_server() && span.attribute("url.path").starts_with(start)).collect()
}

/// The SDK's server spans; its attributes are those of older conventions.
fn sdk_servers(spans: &[Span]) -> usize {
    spans.iter().filter(|span| span.is_server()).count()
}

fn auto_instrumented(lab: &Lab, transport: Transport) -> Result<String> {
    const WHY: &str = "it was started with OpenTelemetry's auto-instrumentation";
    let theirs = theirs(lab)?;
    let service = relay(lab, true, &exporting(&theirs, transport, SOON))?;
    let listing = agent::run_to_end(&["ps"])?.stdout;
    let mut rows = listing
        .lines()
        .skip_while(|line| line.split_whitespace().next() != Some(service.pid().to_string().as_str()));
    let row = rows.next().with_context(|| listing.clone())?;
    ensure!(row.split_whitespace().any(|cell| cell == "left"), "{row}");
    ensure!(rows.next().is_some_and(|reason| reason.contains(WHY)), "{listing}");

    let collector = lab.collector()?;
    let agent = watch(&[&service], &[], collector)?;
    Load::new(service.port()).run("work", 0..40)?;
    let sdk = wait_for_servers(&theirs, 40)?;
    let (finished, spans) = agent.finish(collector)?;
    told_once(&finished.stderr, &service, WHY)?;
    ensure!(spans.is_empty(), "doubled: {:#?}", lines(&spans));
    Ok(format!("{} spans of the SDK's, none of pitviper's", sdk.len()))
}

fn wait_for_servers(theirs: &Collector, count: usize) -> Result<Vec<Span>> {
    wait_until("the SDK has exported", Duration::from_secs(20), || {
        theirs.wait_for(0).ok().filter(|spans| sdk_servers(spans) >= count)
    })
}

fn wait_for_message(agent: &Agent) -> Result<()> {
    wait_until("pitviper finds the SDK", Duration::from_secs(15), || {
        agent.stderr().contains(LEFT).then_some(())
    })
    .with_context(|| agent.stderr())
}

/// Nothing but the export shows that there is an SDK. What was answered before it is doubled; nothing after it is.
fn in_code(lab: &Lab, transport: Transport) -> Result<String> {
    let theirs = theirs(lab)?;
    let service = relay(lab, false, &by_itself(&theirs, transport, SOON))?;
    let collector = lab.collector()?;
    let agent = watch(&[&service], &[], collector)?;
    let load = Load::new(service.port());
    load.run("inner", 0..20)?;
    wait_for_message(&agent)?;
    load.run("inner", 100..140)?;
    wait_for_servers(&theirs, 60)?;
    let (finished, spans) = agent.finish(collector)?;
    told_once(&finished.stderr, &service, "it exports spans of its own")?;
    let after = beginning(&spans, "/inner/1").into_iter().filter(|span| oracle_number(span) >= 100).count();
    ensure!(after == 0, "{after} requests doubled after the SDK was found: {:#?}", lines(&spans));
    Ok(format!("{} spans before the first export", spans.len()))
}

fn oracle_number(span: &Span) -> u64 {
    pitviper_tests::load::number_of(span.attribute("url.path"))
}

/// The connection to the collector is older than the daemon.
fn found_late(lab: &Lab, transport: Transport) -> Result<String> {
    let theirs = theirs(lab)?;
    let service = relay(lab, false, &by_itself(&theirs, transport, SOON))?;
    let load = Load::new(service.port());
    load.run("inner", 0..20)?;
    wait_for_servers(&theirs, 20)?;
    let collector = lab.collector()?;
    let agent = watch(&[&service], &[], collector)?;
    load.run("inner", 20..40)?;
    wait_for_message(&agent)?;
    load.run("inner", 100..140)?;
    wait_for_servers(&theirs, 80)?;
    let (finished, spans) = agent.finish(collector)?;
    told_once(&finished.stderr, &service, "it exports spans of its own")?;
    ensure!(
        beginning(&spans, "/inner/").iter().all(|span| oracle_number(span) < 100),
        "{:#?}",
        lines(&spans)
    );
    Ok(format!("{} spans before the first export seen", spans.len()))
}

fn overridden(lab: &Lab, transport: Transport) -> Result<String> {
    let theirs = theirs(lab)?;
    let service = relay(lab, true, &exporting(&theirs, transport, SOON))?;
    let collector = lab.collector()?;
    let agent = watch(&[&service], &["--sdk-processes=trace"], collector)?;
    let replies = Load::new(service.port()).run("work", 0..40)?;
    wait_for_servers(&theirs, 40)?;
    let (finished, spans) = agent.finish(collector)?;
    ensure!(!finished.stderr.contains(LEFT), "{}", finished.stderr);
    oracle::score(&replies, &spans)?.assert_perfect()?;
    let exports = spans.iter().filter(|span| span.attribute("url.full").contains("/v1/"));
    ensure!(exports.count() == 0, "spans of the exports: {:#?}", lines(&spans));
    Ok(format!("{} spans", spans.len()))
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A request comes with a context, and leads to one with a span in between: that decides before anything has left.
fn propagates(lab: &Lab) -> Result<String> {
    let theirs = theirs(lab)?;
    let service = relay(lab, false, &by_itself(&theirs, Transport::Http, NEVER))?;
    let collector = lab.collector()?;
    let agent = watch(&[&service], &[], collector)?;
    let mut connection = Connection::new(service.port());
    for n in 0..20 {
        let header = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
        answered(&connection.get(&format!("/work/{n}"), &header)?)?;
    }
    wait_for_message(&agent)?;
    let (finished, spans) = agent.finish(collector)?;
    told_once(&finished.stderr, &service, "its requests carry span ids of its own")?;
    ensure!(spans.is_empty(), "doubled: {:#?}", lines(&spans));
    Ok("decided by the first request".to_owned())
}

/// Requests come without a context: the second trace that they begin decides.
fn begins(lab: &Lab) -> Result<String> {
    let theirs = theirs(lab)?;
    let service = relay(lab, false, &by_itself(&theirs, Transport::Http, NEVER))?;
    let collector = lab.collector()?;
    let agent = watch(&[&service], &[], collector)?;
    let mut connection = Connection::new(service.port());
    answered(&connection.get("/work/0", "")?)?;
    answered(&connection.get("/work/1", "")?)?;
    wait_for_message(&agent)?;
    for n in 100..120 {
        answered(&connection.get(&format!("/work/{n}"), "")?)?;
    }
    let (finished, spans) = agent.finish(collector)?;
    told_once(&finished.stderr, &service, "its requests carry span ids of its own")?;
    ensure!(
        beginning(&spans, "/work/1").iter().all(|span| oracle_number(span) < 100),
        "{:#?}",
        lines(&spans)
    );
    Ok(format!("{} spans before", spans.len()))
}

/// pitviper's service calls the SDK's, which calls another one of pitviper's.
fn chain(lab: &Lab) -> Result<String> {
    let theirs = theirs(lab)?;
    let last = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let mut environment = exporting(&theirs, Transport::Grpc, SOON);
    environment.push(("TEST_UPSTREAM", format!("http://127.0.0.1:{}", last.port())));
    let middle = relay(lab, true, &environment)?;
    let upstream = format!("http://127.0.0.1:{}", middle.port());
    let first =
        Service::start_with(lab, lab.python(), "fastapi_app", UVICORN, &[("TEST_UPSTREAM", &upstream)])?;
    let collector = lab.collector()?;
    let agent = watch(&[&first, &middle, &last], &[], collector)?;
    Load::new(first.port()).run("chain", 0..30)?;
    let sdk = wait_for_servers(&theirs, 90)?;
    // The client spans may be in the next batch.
    sleep(Duration::from_secs(1));
    let sdk = theirs.wait_for(sdk.len())?;
    let (finished, spans) = agent.finish(collector)?;
    told_once(&finished.stderr, &middle, "it was started with")?;

    let ours: HashMap<&str, &Span> = spans.iter().map(|span| (span.span_id.as_str(), span)).collect();
    let its: HashMap<&str, &Span> = sdk.iter().map(|span| (span.span_id.as_str(), span)).collect();
    let (begun, ended) = (beginning(&spans, "/chain/"), beginning(&spans, "/up/"));
    ensure!(begun.len() == 30 && ended.len() == 90, "{} and {} server spans", begun.len(), ended.len());
    for span in &ended {
        let parent =
            its.get(span.parent_id.as_str()).with_context(|| format!("not the SDK's: {}", span.line()))?;
        ensure!(
            parent.is_client() && parent.trace_id == span.trace_id,
            "{} below {}",
            span.line(),
            parent.line()
        );
    }
    for span in spans.iter().filter(|span| span.is_client()) {
        let parent =
            ours.get(span.parent_id.as_str()).with_context(|| format!("an orphan: {}", span.line()))?;
        let number = oracle::operation_key(span).with_context(|| span.line())?;
        let of_parent = parent.attribute("url.path").split('/').nth(2).unwrap_or_default();
        ensure!(number.split(':').nth(1) == Some(of_parent), "{} below {}", span.line(), parent.line());
    }
    // Nothing can tell the SDK of what called it: its server spans are roots.
    ensure!(sdk.iter().filter(|span| span.is_server()).all(|span| span.parent_id.is_empty()));
    Ok(format!("{} spans of pitviper's, {} of the SDK's", spans.len(), sdk.len()))
}

fn proxy(lab: &Lab) -> Result<String> {
    let service = relay(lab, false, &[])?;
    let collector = lab.collector()?;
    let agent = watch(&[&service], &[], collector)?;
    let mut connection = Connection::new(service.port());
    let mut replies = Vec::new();
    for n in 0..30 {
        // Every third caller sends no context.
        let header = format!("traceparent: 00-{TRACE}-{n:016x}-01\r\n");
        let reply = connection.get(&format!("/forward/{n}"), if n % 3 == 0 { "" } else { &header })?;
        answered(&reply)?;
        replies.push(reply);
    }
    let (finished, spans) = agent.finish(collector)?;
    ensure!(!finished.stderr.contains(LEFT), "{}", finished.stderr);
    oracle::score(&replies, &spans)?.assert_perfect()?;
    let continued = beginning(&spans, "/forward/").iter().filter(|span| span.trace_id == TRACE).count();
    ensure!(continued == 20, "{continued} of 20 requests continue the caller's trace");
    Ok(format!("{} spans", spans.len()))
}

fn metrics(lab: &Lab) -> Result<String> {
    let sink = Sink::start()?;
    let environment = [
        ("TEST_SDK", "metrics".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", sink.port())),
    ];
    let service = relay(lab, false, &environment)?;
    let collector = lab.collector()?;
    let agent = watch(&[&service], &[], collector)?;
    let replies = Load::new(service.port()).run("work", 0..40)?;
    let before = sink.posted().len();
    wait_until("more metrics", Duration::from_secs(10), || (sink.posted().len() > before + 2).then_some(()))?;
    let (finished, spans) = agent.finish(collector)?;
    ensure!(!finished.stderr.contains(LEFT), "{}", finished.stderr);
    oracle::score(&replies, &spans)?.assert_perfect()?;
    let exports = spans.iter().filter(|span| span.attribute("url.full").contains("/v1/metrics")).count();
    ensure!(exports == 0, "{exports} spans of exports");
    ensure!(servers(&spans, "/v1/metrics").is_empty());
    Ok(format!("{} spans, {} exports of metrics", spans.len(), sink.posted().len()))
}
