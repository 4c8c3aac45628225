//! The harness itself, without the daemon: a wrong service, load generator or collector must not look like a wrong agent.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::collector::Transport;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load};
use pitviper_tests::oracle;
use pitviper_tests::python;
use pitviper_tests::runner::Suite;
use pitviper_tests::service::{Server, Service, UVICORN};

fn main() -> ExitCode {
    let gunicorn = |class, workers, threads| Server::Gunicorn { class, workers, threads };
    let fastapi = [
        "work",
        "sync",
        "to_thread",
        "executor",
        "background",
        "later",
        "sse",
        "chain",
        "orm",
        "groups",
        "queue",
        "mailbox",
    ];
    Suite::new()
        .case("the collector receives an SDK's spans over gRPC", |lab| collector(lab, Transport::Grpc))
        .case("the collector receives an SDK's spans over HTTP", |lab| collector(lab, Transport::Http))
        .case("every interpreter has the libraries", environments)
        .case("fastapi", move |lab| answers(lab, "fastapi_app", UVICORN, &fastapi))
        .case("the protocol service", protocol_service)
        .case("middleware", |lab| answers(lab, "middleware_app", UVICORN, &["work", "sync"]))
        .case("hypercorn", |lab| {
            answers(lab, "fastapi_app", Server::Hypercorn { class: "asyncio" }, &["work"])
        })
        .case("flask", move |lab| answers(lab, "flask_app", gunicorn("gthread", 1, 16), &["work"]))
        .case("pools", |lab| answers(lab, "pool_app", UVICORN, &["executor", "nested", "flusher_item"]))
        .case("gevent", move |lab| answers(lab, "flask_app", gunicorn("gevent", 1, 1), &["work", "spawn"]))
        .case("django wsgi", move |lab| answers(lab, "django_app", gunicorn("sync", 2, 1), &["work"]))
        .case("django asgi", |lab| answers(lab, "django_app:asgi", UVICORN, &["work", "awork"]))
        .case("aiohttp", |lab| answers(lab, "aiohttp_app", Server::Script, &["work"]))
        .main()
}

/// Sends the spans of two hundred requests with OpenTelemetry's Python SDK, a tenth of them misplaced on purpose, and expects
/// the oracle to see exactly that.
fn collector(lab: &Lab, transport: Transport) -> Result<String> {
    let collector = lab.collector()?;
    let script = pitviper_tests::service::apps().join("sdk_spans.py");
    let mut command = Command::new(lab.python().receiver()?.script("python"));
    command.arg(script).args(["200"]).envs(collector.environment(transport));
    let output = command.output().context("failed to run the SDK")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let spans = collector.wait_for(400)?;
    let replies: Vec<_> = (0..200)
        .map(|n| pitviper_tests::load::Reply {
            n,
            path: format!("/work/{n}"),
            status: 200,
            headers: Vec::new(),
            body: format!(r#"{{"ops": ["pg:{n}:0"]}}"#).into_bytes(),
            from: 0,
        })
        .collect();
    let score = oracle::score(&replies, &spans)?;
    ensure!(score.uncaptured.is_empty() && score.missing.is_empty(), "{score}");
    ensure!((score.correct, score.wrong.len(), score.orphans.len()) == (160, 20, 20), "{score}");
    ensure!(spans.iter().all(|span| span.resource.get("service.name").is_some_and(|name| name == "sdk")));
    Ok(format!("{} spans", spans.len()))
}

fn environments(_lab: &Lab) -> Result<String> {
    let pythons = python::all();
    for python in &pythons {
        let imports = "import fastapi, uvloop, asyncpg, psycopg_pool, redis, httpx, flask, gevent, django, aiohttp, requests";
        let output = Command::new(python.services()?.script("python")).args(["-c", imports]).output()?;
        ensure!(output.status.success(), "{}: {}", python.label, String::from_utf8_lossy(&output.stderr));
    }
    Ok(pythons.iter().map(|python| python.label.as_str()).collect::<Vec<_>>().join(" "))
}

/// Every route of it that is a plain GET; the suites of the protocols use the others.
fn protocol_service(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "protocol_app", UVICORN)?;
    let mut connection = Connection::new(service.port());
    let postgres =
        ["error", "several", "pipeline", "copy", "prepared"].map(|name| format!("/postgres/{name}"));
    let redis = ["pipeline", "multi", "error", "select"].map(|name| format!("/redis/{name}"));
    let paths =
        [["/plain", "/large/100000", "/chunked"].map(str::to_owned).as_slice(), &postgres, &redis].concat();
    for path in &paths {
        let reply = connection.get(path, "")?;
        ensure!(reply.status == 200, "{path}: {}\n{}", reply.status, service.log());
    }
    Ok(format!("{} routes", paths.len()))
}

fn answers(lab: &Lab, app: &str, server: Server, routes: &[&str]) -> Result<String> {
    let service = Service::start(lab, lab.python(), app, server)?;
    let load = Load::new(service.port());
    let mut operations = 0;
    for route in routes {
        let replies = load.run(route, 0..200).with_context(|| service.log())?;
        for reply in &replies {
            operations += reply.operations()?.len();
        }
        ensure!(replies.len() == 200, "{} replies", replies.len());
    }
    Ok(format!("{operations} operations"))
}
