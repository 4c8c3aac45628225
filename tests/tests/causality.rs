//! Is every statement, command and call below the request that caused it? Every kind of server on Python 3.11, with 64
//! requests at once, attached before the first connection and after a warm-up.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load};
use pitviper_tests::oracle::{self, operation_key};
use pitviper_tests::runner::Suite;
use pitviper_tests::scenario::{Attach, Scenario};
use pitviper_tests::service::{Server, Service, UVICORN};

const ASYNC: &[&str] = &["work", "sync", "to_thread", "background", "later", "sse", "orm", "groups"];

fn main() -> ExitCode {
    let uvicorn = |event_loop, http| Server::Uvicorn { event_loop, http };
    let gunicorn = |class, workers, threads| Server::Gunicorn { class, workers, threads };
    let matrix: &[(&str, &'static str, Server, &'static [&'static str])] = &[
        ("fastapi uvloop httptools", "fastapi_app", UVICORN, ASYNC),
        ("fastapi uvloop h11", "fastapi_app", uvicorn("uvloop", "h11"), &["work", "sync"]),
        ("fastapi asyncio h11", "fastapi_app", uvicorn("asyncio", "h11"), ASYNC),
        ("fastapi asyncio httptools", "fastapi_app", uvicorn("asyncio", "httptools"), &["work", "sync"]),
        (
            "fastapi fresh contexts",
            "fastapi_app",
            Server::UvicornFreshContexts,
            &["work", "sync", "background"],
        ),
        ("fastapi gunicorn", "fastapi_app", gunicorn("uvicorn_worker.UvicornWorker", 2, 1), &["work"]),
        (
            "fastapi hypercorn asyncio",
            "fastapi_app",
            Server::Hypercorn { class: "asyncio" },
            &["work", "sync"],
        ),
        ("fastapi hypercorn uvloop", "fastapi_app", Server::Hypercorn { class: "uvloop" }, &["work"]),
        ("middleware", "middleware_app", UVICORN, &["work", "sync", "background"]),
        ("flask sync", "flask_app", gunicorn("sync", 2, 1), &["work"]),
        ("flask gthread", "flask_app", gunicorn("gthread", 1, 16), &["work"]),
        ("flask gevent", "flask_app", gunicorn("gevent", 1, 1), &["work"]),
        ("django gthread", "django_app", gunicorn("gthread", 1, 8), &["work"]),
        ("django asgi", "django_app:asgi", UVICORN, &["work", "awork"]),
        ("aiohttp", "aiohttp_app", Server::Script, &["work"]),
    ];
    let mut suite = Suite::new();
    for &(name, app, server, routes) in matrix {
        for (when, attach) in [("early", Attach::Early), ("late", Attach::Late)] {
            let scenario = Scenario { app, server, routes, requests: 300 };
            suite = suite.case(format!("{name}, {when}"), move |lab| {
                scenario.assert_perfect(lab, lab.python(), attach)
            });
        }
    }
    suite
        .case("a worker task that an old request created", worker_task)
        .case("two services are joined", joined)
        .case("incoming traceparent is the remote parent", remote_parent)
        .case("an unsampled parent is not exported", unsampled_parent)
        .main()
}

/// A task of the first request works for all later ones. What it does was caused by none of the requests in its lineage
/// but, for a while, the first: anybody's work under that one is a wrong parent, long after its end at the latest.
fn worker_task(lab: &Lab) -> Result<String> {
    let scenario = Scenario { app: "fastapi_app", server: UVICORN, routes: &["queue"], requests: 300 };
    scenario.assert_honest(lab, lab.python(), Attach::Late)
}

/// The first service calls the second: same trace, and the second's server span is a child of the first's client span.
fn joined(lab: &Lab) -> Result<String> {
    let back = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let upstream = format!("http://127.0.0.1:{}", back.port());
    let front = Service::start_with(
        lab,
        lab.python(),
        "fastapi_app",
        UVICORN,
        &[("TEST_UPSTREAM", &upstream), ("OTEL_SERVICE_NAME", "front")],
    )?;
    let collector = lab.collector()?;
    let pids = [front.pid().to_string(), back.pid().to_string()];
    let agent = Agent::start(&["--pid", &pids[0], "--pid", &pids[1]], collector)?;
    let replies = Load::new(front.port()).run("chain", 0..300)?;
    let (_, spans) = agent.finish(collector)?;
    oracle::score(&replies, &spans)?.assert_perfect()?;
    let mut joined = 0;
    for served in
        spans.iter().filter(|span| span.is_server() && span.attribute("url.path").starts_with("/up/"))
    {
        let caller =
            spans.iter().find(|span| span.span_id == served.parent_id && span.trace_id == served.trace_id);
        let right = caller.is_some_and(|caller| {
            caller.is_client()
                && caller.attribute("url.full").ends_with(served.attribute("url.path"))
                && caller.resource.get("service.name").is_some_and(|name| name == "front")
        });
        ensure!(right, "not joined: {}\n  with: {:?}", served.line(), caller.map(|span| span.line()));
        joined += 1;
    }
    ensure!(joined == 900, "{joined} of 900 calls were served");
    for command in
        spans.iter().filter(|span| operation_key(span).is_some_and(|key| key.starts_with("redis:")))
    {
        let parent = spans.iter().find(|span| span.span_id == command.parent_id);
        ensure!(parent.is_some_and(|parent| parent.is_server()), "no server span above {}", command.line());
    }
    Ok(format!("{joined} calls"))
}

fn remote_parent(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let mut connection = Connection::new(service.port());
    for n in 1..=20 {
        let headers = format!("traceparent: 00-{n:032x}-{n:016x}-01\r\ntracestate: shop=t{n}\r\n");
        connection.get(&format!("/work/{n}"), &headers)?;
    }
    let (_, spans) = agent.finish(collector)?;
    for n in 1..=20 {
        let path = format!("/work/{n}");
        let served = spans.iter().find(|span| span.is_server() && span.attribute("url.path") == path);
        let right = served.is_some_and(|span| {
            span.trace_id == format!("{n:032x}")
                && span.parent_id == format!("{n:016x}")
                && span.trace_state == format!("shop=t{n}")
        });
        ensure!(right, "{path}: {served:?}");
        let below = spans.iter().filter(|span| span.is_client() && span.trace_id == format!("{n:032x}"));
        ensure!(below.count() >= 8, "{path}: the operations are not in the remote trace");
    }
    Ok("20 requests".to_owned())
}

fn unsampled_parent(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let mut connection = Connection::new(service.port());
    for n in 1..=40 {
        let flags = n % 2;
        connection.get(&format!("/work/{n}"), &format!("traceparent: 00-{n:032x}-{n:016x}-0{flags}\r\n"))?;
    }
    let (_, spans) = agent.finish(collector)?;
    let numbers: Vec<u64> =
        spans.iter().filter_map(|span| u64::from_str_radix(&span.trace_id, 16).ok()).collect();
    ensure!(numbers.iter().all(|n| n % 2 == 1), "spans of unsampled traces were exported");
    for n in (1..=40).step_by(2) {
        ensure!(numbers.contains(&n), "the sampled trace {n} was not exported");
    }
    Ok(format!("{} spans", spans.len()))
}
