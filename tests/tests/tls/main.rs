//! The same spans when everything is encrypted: servers, databases and the upstream, with 64 requests at once and more, attached
//! before the first connection and after a warm-up. Every span has the right parent and the right peer, and there is one of each.

mod clients;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{Agent, binary};
use pitviper_tests::debian11;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{CONCURRENCY, Load};
use pitviper_tests::oracle;
use pitviper_tests::process::{Tree, wait_until};
use pitviper_tests::python::{self, Home};
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::scenario::{Attach, Scenario, summary};
use pitviper_tests::service::{Server, Service, UVICORN};
use pitviper_tests::spans::Span;
use pitviper_tests::tls::Encrypted;

fn main() -> ExitCode {
    let uvicorn = |event_loop, http| Server::Uvicorn { event_loop, http };
    let gunicorn = |class, workers, threads| Server::Gunicorn { class, workers, threads };
    let matrix: &[(&str, &'static str, Server, &'static [&'static str])] = &[
        (
            "fastapi asyncio",
            "fastapi_app",
            uvicorn("asyncio", "h11"),
            &["work", "sync", "background", "to_thread"],
        ),
        ("fastapi uvloop", "fastapi_app", UVICORN, &["work", "sync", "to_thread"]),
        ("fastapi gunicorn", "fastapi_app", gunicorn("uvicorn_worker.UvicornWorker", 2, 1), &["work"]),
        ("fastapi hypercorn", "fastapi_app", Server::Hypercorn { class: "asyncio" }, &["work"]),
        ("flask sync", "flask_app", gunicorn("sync", 2, 1), &["work"]),
        ("flask gthread", "flask_app", gunicorn("gthread", 1, 16), &["work"]),
        ("flask gevent", "flask_app", gunicorn("gevent", 1, 1), &["work"]),
        ("django gthread", "django_app", gunicorn("gthread", 1, 8), &["work"]),
        ("aiohttp", "aiohttp_app", Server::Script, &["work"]),
    ];
    let mut suite = Suite::new();
    for &(name, app, server, routes) in matrix {
        for (when, attach) in [("early", Attach::Early), ("late", Attach::Late)] {
            let scenario = Scenario { app, server, routes, requests: 300 };
            suite = suite.case(format!("{name}, {when}"), move |lab| {
                encrypted(lab, "3.11", &scenario, attach, CONCURRENCY)
            });
        }
    }
    // 3.8 calls SSL_read and SSL_write, 3.10 and later call the functions that end in `_ex`; Debian's forky has OpenSSL 3.5 or later, Debian 11 has 1.1.1.
    for label in ["3.8", "3.10", "3.12", "3.13", "debian", "3.14", debian11::LABEL] {
        let scenario = Scenario {
            app: "fastapi_app",
            server: uvicorn("asyncio", "h11"),
            routes: &["work", "sync"],
            requests: 200,
        };
        suite = suite.case(format!("python {label}"), move |lab| {
            encrypted(lab, label, &scenario, Attach::Late, CONCURRENCY)
        });
    }
    for (name, app, server) in [
        ("asyncio", "fastapi_app", uvicorn("asyncio", "h11")),
        ("uvloop", "fastapi_app", UVICORN),
        ("gevent", "flask_app", gunicorn("gevent", 1, 1)),
    ] {
        let scenario = Scenario { app, server, routes: &["work"], requests: 1500 };
        suite = suite.case(format!("a crowd of 150, {name}"), move |lab| {
            encrypted(lab, "3.11", &scenario, Attach::Late, 150)
        });
    }
    suite
        .case("two services are joined", joined)
        .case("wheels that bring an OpenSSL each", clients::wheels)
        .case("connections that end in every way", clients::ends)
        .case("libraries that are loaded later, one of them odd", clients::loaded_later)
        .case("an SDK that exports over TLS", clients::exporter)
        .case("what is not seen is said", hidden)
        .main()
}

/// Everything is there, once, under the right request, and hardly anything without the right peer.
fn encrypted(lab: &Lab, label: &str, scenario: &Scenario, attach: Attach, clients: usize) -> Result<String> {
    let Some(python) = interpreter(lab, label)? else { return Err(skip(format!("no Python {label}"))) };
    let back_ends = lab.encrypted()?;
    let Scenario { app, server, .. } = scenario;
    let _copied = match &python.home {
        Home::Chroot(root) => Some(Removed(back_ends.certificates.copy_below(root)?)),
        Home::Machine | Home::Guest { .. } => None,
    };
    let service = Service::start_encrypted(lab, &python, app, *server, back_ends, &[])?;
    let load = match server {
        // It serves itself, in the clear: what is encrypted is what it calls.
        Server::Script => Load::new(service.port()),
        _ => Load::encrypted(service.port(), clients, &back_ends.certificates.client()?),
    };
    let (scores, replies, spans) = scenario.measure(lab, &service, &load, attach)?;
    for (route, score) in &scores {
        score.assert_perfect().with_context(|| format!("/{route}"))?;
    }
    let unknown = judge_peers(&spans, service.port(), back_ends, *server != Server::Script)?;
    for reply in &replies {
        let served = spans.iter().find(|span| span.is_server() && span.attribute("url.path") == reply.path);
        let peer = served.map(|span| span.attribute("network.peer.port")).unwrap_or_default();
        let right = peer.is_empty() || peer == reply.from.to_string();
        ensure!(right, "{}: not from {} but from {peer:?}", reply.path, reply.from);
    }
    Ok(format!(
        "{}, {} spans with the right peer, {unknown} without",
        summary(&scores),
        spans.len() - unknown
    ))
}

/// A directory that is removed when this is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn interpreter(lab: &Lab, label: &str) -> Result<Option<python::Python>> {
    if label == "3.11" {
        return Ok(Some(lab.python().clone()));
    }
    if label == debian11::LABEL {
        return debian11::python().map(Some);
    }
    match python::find(label) {
        Some(found) => Ok(Some(found)),
        None => pitviper_tests::chroot::find(label),
    }
}

/// No span has a wrong peer, and hardly any has none; gives how many. A connection's socket is found by its ciphertext, and
/// where that is not seen in time, it is unknown until the next bytes.
fn judge_peers(spans: &[Span], port: u16, back_ends: &Encrypted, serves_tls: bool) -> Result<usize> {
    let [postgres, redis, upstream] = back_ends.ports();
    let mut unknown = Vec::new();
    for span in spans {
        let peer = span.attribute("network.peer.port");
        if peer.is_empty() {
            unknown.push(span.line());
        }
        if span.is_server() {
            let scheme = if serves_tls { "https" } else { "http" };
            ensure!(span.attribute("url.scheme") == scheme, "{}", span.line());
            ensure!(span.attribute("server.port") == port.to_string(), "{}", span.line());
            continue;
        }
        let right = match span.attribute("db.system.name") {
            "postgresql" => postgres,
            "redis" => redis,
            _ => {
                let url = span.attribute("url.full");
                ensure!(url.starts_with(&format!("https://127.0.0.1:{upstream}/")), "{}", span.line());
                upstream
            }
        };
        let known = !peer.is_empty();
        ensure!(!known || peer == right.to_string(), "wrong peer: {} {:?}", span.line(), span.attributes);
    }
    ensure!(
        unknown.len() * 100 <= spans.len(),
        "{} of {} spans without a peer: {unknown:?}",
        unknown.len(),
        spans.len()
    );
    Ok(unknown.len())
}

/// The first service calls the second, both over TLS: the second's server span is a child of the first's client span.
fn joined(lab: &Lab) -> Result<String> {
    let back_ends = lab.encrypted()?;
    let mut sums = Vec::new();
    for (front_server, back_server) in [
        (UVICORN, Server::Uvicorn { event_loop: "asyncio", http: "h11" }),
        (Server::Uvicorn { event_loop: "asyncio", http: "h11" }, UVICORN),
    ] {
        let back = Service::start_encrypted(lab, lab.python(), "fastapi_app", back_server, back_ends, &[])?;
        let upstream = format!("https://localhost:{}", back.port());
        let environment = [("TEST_UPSTREAM", upstream.as_str()), ("OTEL_SERVICE_NAME", "front")];
        let front = Service::start_encrypted(
            lab,
            lab.python(),
            "fastapi_app",
            front_server,
            back_ends,
            &environment,
        )?;
        let collector = lab.collector()?;
        let pids = [front.pid().to_string(), back.pid().to_string()];
        let agent = Agent::start(&["--pid", &pids[0], "--pid", &pids[1]], collector)?;
        let load = Load::encrypted(front.port(), CONCURRENCY, &back_ends.certificates.client()?);
        let replies = load.run("chain", 0..300)?;
        let (_, spans) = agent.finish(collector)?;
        oracle::score(&replies, &spans)?.assert_perfect()?;
        let (mut joined, mut roots) = (0, 0);
        for served in
            spans.iter().filter(|span| span.is_server() && span.attribute("url.path").starts_with("/up/"))
        {
            if served.parent_id.is_empty() {
                roots += 1;
                continue;
            }
            let caller = spans
                .iter()
                .find(|span| span.span_id == served.parent_id && span.trace_id == served.trace_id);
            let right = caller.is_some_and(|caller| {
                caller.is_client()
                    && caller.attribute("url.full").ends_with(served.attribute("url.path"))
                    && caller.resource.get("service.name").is_some_and(|name| name == "front")
            });
            ensure!(right, "wrongly joined: {}\n  with: {:?}", served.line(), caller.map(|span| span.line()));
            joined += 1;
        }
        // Both ends have to be known, which they are but for the first bytes of a connection now and then.
        ensure!(joined + roots == 900 && roots <= 9, "{joined} of 900 calls are joined, {roots} are roots");
        sums.push(format!("{joined} calls"));
    }
    Ok(sums.join(", "))
}

/// `pitviper ps` names the TLS libraries that it cannot look into, and none that it can.
fn hidden(lab: &Lab) -> Result<String> {
    let mut command = Command::new(lab.python().receiver()?.script("python"));
    command.args(["-c", "import grpc, ssl, time; print('up', flush=True); time.sleep(600)"]);
    let mut process = Tree::spawn("grpc", command, &lab.directory().join("grpc.log"))?;
    wait_until("grpc is imported", Duration::from_secs(60), || process.log().contains("up").then_some(()))?;
    let listing = Command::new(binary()?).args(["ps", "--json"]).output()?;
    let listing: serde_json::Value = serde_json::from_slice(&listing.stdout)?;
    let rows = listing["processes"].as_array().context("no processes")?;
    let row = rows.iter().find(|row| row["pid"] == process.pid()).context("it is not listed")?;
    let notes = row["notes"].to_string();
    process.stop(libc::SIGKILL, Duration::from_secs(10));
    ensure!(notes.contains("BoringSSL") && notes.contains("cygrpc"), "{notes}");
    ensure!(!notes.contains("libssl"), "{notes}");
    Ok(notes)
}
