//! OTLP export as the specification's variables ask for it, to a receiver that was not written here.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::collector::{Collector, Transport};
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Load, Reply};
use pitviper_tests::oracle;
use pitviper_tests::process::{free_port, wait_until};
use pitviper_tests::runner::Suite;
use pitviper_tests::service::{Service, UVICORN};
use pitviper_tests::sink::Sink;

fn main() -> ExitCode {
    Suite::new()
        .case("grpc", |lab| complete(lab, Transport::Grpc, &[]))
        .case("grpc, gzip", |lab| {
            complete(lab, Transport::Grpc, &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")])
        })
        .case("http", |lab| complete(lab, Transport::Http, &[]))
        .case("http, gzip", |lab| {
            complete(lab, Transport::Http, &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")])
        })
        .case("headers, path and compression", headers)
        .case("the service's resource", resource)
        .case("a collector that comes late", dead_then_alive)
        .case("the wrong protocol is named", wrong_protocol)
        .case("samplers", samplers)
        .case("OTEL_SDK_DISABLED", disabled)
        .main()
}

type Variables = Vec<(&'static str, String)>;

fn service(lab: &Lab) -> Result<Service> {
    Service::start(lab, lab.python(), "fastapi_app", UVICORN)
}

fn attach(service: &Service, environment: &[(&'static str, String)]) -> Result<Agent> {
    Agent::start_with(&["--pid", &service.pid().to_string()], environment)
}

fn with(mut base: Variables, more: &[(&'static str, &str)]) -> Variables {
    base.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    base
}

fn complete(lab: &Lab, transport: Transport, more: &[(&'static str, &str)]) -> Result<String> {
    let service = service(lab)?;
    let collector = lab.collector()?;
    let agent = attach(&service, &with(collector.environment(transport), more))?;
    let replies = Load::new(service.port()).run("work", 0..200)?;
    let (_, spans) = agent.finish(collector)?;
    let score = oracle::score(&replies, &spans)?;
    score.assert_perfect()?;
    Ok(format!("{} spans", spans.len()))
}

fn headers(lab: &Lab) -> Result<String> {
    let service = service(lab)?;
    let sink = Sink::start()?;
    let generic = vec![
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}/base/", sink.port())),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b,authorization=Bearer%20t%3D1".to_owned()),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
    ];
    let specific = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://127.0.0.1:{}/as/it/is", sink.port())),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none".to_owned()),
    ];
    for (path, encoding, environment) in [
        ("/base/v1/traces", Some("gzip"), generic.clone()),
        ("/as/it/is", None, [generic, specific.to_vec()].concat()),
    ] {
        sink.clear();
        let agent = attach(&service, &environment)?;
        Load::new(service.port()).run("work", 0..20)?;
        ensure!(agent.stop()?.status.success());
        ensure!(!sink.spans()?.is_empty(), "nothing was exported");
        for posted in sink.posted().into_iter().filter(|posted| !posted.body.is_empty()) {
            // Metrics and profiles have nothing but the generic settings.
            let (path, encoding) = if posted.is_metrics() {
                ("/base/v1/metrics", Some("gzip"))
            } else if posted.is_profiles() {
                ("/base/v1development/profiles", Some("gzip"))
            } else {
                (path, encoding)
            };
            let line = format!("POST {path} HTTP/1.1");
            ensure!(posted.request_line == line, "not {line}: {}", posted.request_line);
            ensure!(posted.header("x-tenant") == Some("a b"), "{:?}", posted.headers);
            ensure!(posted.header("authorization") == Some("Bearer t=1"), "{:?}", posted.headers);
            ensure!(posted.header("content-type") == Some("application/x-protobuf"), "{:?}", posted.headers);
            ensure!(posted.header("content-encoding") == encoding, "{:?}", posted.headers);
        }
    }
    Ok("two endpoints".to_owned())
}

fn resource(lab: &Lab) -> Result<String> {
    let named = [
        ("OTEL_SERVICE_NAME", "shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,team=a%20b"),
    ];
    let service = Service::start_with(lab, lab.python(), "fastapi_app", UVICORN, &named)?;
    let unnamed = Service::start(
        lab,
        lab.python(),
        "flask_app",
        pitviper_tests::service::Server::Gunicorn { class: "sync", workers: 2, threads: 1 },
    )?;
    let collector = lab.collector()?;
    let pids = [service.pid().to_string(), unnamed.pid().to_string()];
    let agent = Agent::start(&["--pid", &pids[0], "--pid", &pids[1]], collector)?;
    Load::new(service.port()).run("work", 0..30)?;
    Load::new(unnamed.port()).run("work", 100..160)?;
    let (_, spans) = agent.finish(collector)?;
    let mut names = std::collections::BTreeSet::new();
    for span in &spans {
        let of = |key: &str| span.resource.get(key).map_or("", String::as_str);
        names.insert(of("service.name").to_owned());
        for key in [
            "service.instance.id",
            "process.pid",
            "process.runtime.version",
            "host.name",
            "telemetry.sdk.language",
        ] {
            ensure!(!of(key).is_empty(), "no {key} in {:#?}", span.resource);
        }
        if of("service.name") == "shop" {
            ensure!(
                of("team") == "a b" && of("deployment.environment.name") == "test",
                "{:#?}",
                span.resource
            );
            ensure!(of("process.pid") == pids[0], "{:#?}", span.resource);
        }
    }
    let expected = ["flask_app", "shop"].map(str::to_owned);
    ensure!(names == expected.into(), "{names:?}");
    Ok(format!("{} spans", spans.len()))
}

fn dead_then_alive(lab: &Lab) -> Result<String> {
    let service = service(lab)?;
    let (grpc, http) = (free_port()?, free_port()?);
    let environment = vec![
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{grpc}")),
    ];
    let agent = attach(&service, &environment)?;
    let load = Load::new(service.port());
    load.run("work", 0..50)?;
    let warned = |agent: &Agent| {
        // Profiles go out every ten seconds, by themselves, and are spoken of once too.
        let warning = |line: &&str| {
            line.starts_with("pitviper: warning: ")
                && line.contains(&format!("127.0.0.1:{grpc}"))
                && !line.contains("profiles")
        };
        agent.stderr().lines().filter(warning).count()
    };
    wait_until("a warning that names the endpoint", Duration::from_secs(30), || {
        (warned(&agent) > 0).then_some(())
    })
    .with_context(|| agent.stderr())?;
    std::thread::sleep(Duration::from_secs(3));
    let warnings = warned(&agent);
    let collector = Collector::start_on(lab.python(), lab.directory(), grpc, http)?;
    let arrived = |replies: &[Reply]| -> Result<bool> {
        let spans = collector.wait_for(0)?;
        let served = |reply: &Reply| {
            spans.iter().any(|span| span.is_server() && span.attribute("url.path") == reply.path)
        };
        Ok(replies.iter().all(served))
    };
    let replies = load.run("work", 100..150)?;
    wait_until("the spans after the recovery", Duration::from_secs(60), || {
        arrived(&replies).is_ok_and(|all| all).then_some(())
    })
    .with_context(|| agent.stderr())?;
    let finished = agent.stop()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    ensure!(warnings == 1, "warned {warnings} times, not once:\n{}", finished.stderr);
    oracle::score(&replies, &collector.wait_for(0)?)?.assert_perfect()?;
    Ok("recovered".to_owned())
}

fn wrong_protocol(lab: &Lab) -> Result<String> {
    let service = service(lab)?;
    let collector = lab.collector()?;
    // The sink speaks HTTP/1.1 only; the collector's gRPC port HTTP/2 only.
    let http = format!("http://127.0.0.1:{}", Sink::start()?.port());
    let grpc = collector.environment(Transport::Grpc).swap_remove(1).1;
    let mut told = Vec::new();
    for (spoken, endpoint, fix) in [("grpc", http, "http/protobuf"), ("http/protobuf", grpc, "grpc")] {
        let environment = vec![
            ("OTEL_EXPORTER_OTLP_PROTOCOL", spoken.to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ];
        let agent = attach(&service, &environment)?;
        Load::new(service.port()).run("work", 0..20)?;
        let setting = "OTEL_EXPORTER_OTLP_PROTOCOL";
        let hint = || {
            agent
                .stderr()
                .lines()
                .find(|line| line.contains(setting) && line.contains(fix))
                .map(str::to_owned)
        };
        let line = wait_until("the message that names the fix", Duration::from_secs(20), hint);
        told.push(line.with_context(|| agent.stderr())?);
        agent.stop()?;
    }
    Ok(told.join(" | "))
}

fn samplers(lab: &Lab) -> Result<String> {
    let service = service(lab)?;
    let collector = lab.collector()?;
    // Numbers are not used twice: the text of a statement that was prepared before the daemon came is not known to it.
    let run = |sampler: &str,
               argument: &str,
               numbers: Range<u64>|
     -> Result<(Vec<Reply>, Vec<pitviper_tests::spans::Span>)> {
        collector.clear();
        let sampling = [("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)];
        let agent = attach(&service, &with(collector.environment(Transport::Grpc), &sampling))?;
        let replies = Load::new(service.port()).run("work", numbers)?;
        Ok((replies, agent.finish(collector)?.1))
    };
    let (_, none) = run("always_off", "", 0..100)?;
    ensure!(none.is_empty(), "{} spans in spite of always_off", none.len());
    let (replies, spans) = run("parentbased_traceidratio", "0.5", 1000..1400)?;
    let sampled =
        |reply: &Reply| spans.iter().any(|span| span.is_server() && span.attribute("url.path") == reply.path);
    let kept: Vec<_> = replies.into_iter().filter(sampled).collect();
    // 400 tosses: outside of these bounds once in more than a thousand million runs.
    ensure!((135..=265).contains(&kept.len()), "{} of 400 at a ratio of one half", kept.len());
    oracle::score(&kept, &spans)?.assert_perfect()?;
    Ok(format!("{} of 400 at one half", kept.len()))
}

fn disabled(lab: &Lab) -> Result<String> {
    let service = service(lab)?;
    let sink = Sink::start()?;
    let environment = vec![
        ("OTEL_SDK_DISABLED", "true".to_owned()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", sink.port())),
    ];
    let agent = attach(&service, &environment)?;
    Load::new(service.port()).run("work", 0..50)?;
    ensure!(agent.stop()?.status.success());
    ensure!(sink.posted().is_empty(), "exported in spite of OTEL_SDK_DISABLED");
    Ok("nothing exported".to_owned())
}
