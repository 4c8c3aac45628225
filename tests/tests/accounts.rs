//! Is the time that spans claim for a request on a CPU what the application itself has counted for it?

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::Connection;
use pitviper_tests::python::{self, Python};
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::service::{Server, Service, UVICORN};
use pitviper_tests::spans::Span;

/// More rounds than a quick look takes.
const ROUNDS: &str = "PITVIPER_ACCOUNTS_ROUNDS";
const CLIENTS: usize = 8;
const ASYNCIO: Server = Server::Uvicorn { event_loop: "asyncio", http: "h11" };
/// What `accounts_app.py` serves; the last part of the path is the time that is burnt.
const STEPS: &[&str] = &["burn", "steps", "waits", "pool", "bare", "gather", "both", "pgs", "event"];
/// The same for `accounts_flask.py`.
const BURSTS: &[&str] = &["burn", "waits", "yields"];
/// What burns nothing.
const IDLE: &[&str] = &["sleep", "nothing"];
/// What the server does for a request outside of the application, which cannot count it: seconds, and a part of the whole.
const UNSEEN: (f64, f64) = (0.008, 0.02);

#[derive(Clone, Copy)]
struct Case {
    app: &'static str,
    server: Server,
    routes: &'static [&'static str],
    /// So much of the time that a route burns must be told. When greenlets take turns is not seen.
    told: f64,
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let steps = |server| Case { app: "accounts_app", server, routes: STEPS, told: 0.9 };
    let bursts = |class, threads, told| {
        let server = Server::Gunicorn { class, workers: 1, threads };
        Case { app: "accounts_flask", server, routes: BURSTS, told }
    };
    for (label, name, case) in [
        ("3.8", "uvloop", steps(UVICORN)),
        ("3.10", "uvloop", steps(UVICORN)),
        ("3.13", "uvloop", steps(UVICORN)),
        ("3.13", "asyncio", steps(ASYNCIO)),
        ("3.13", "threads", bursts("gthread", 8, 0.9)),
        ("3.13", "gevent", bursts("gevent", 1, 0.0)),
    ] {
        let python =
            move || python::find(label).ok_or_else(|| skip(format!("no Python {label} on this machine")));
        suite = suite.case(format!("{label} {name}"), move |lab| accounts(lab, &python()?, case));
    }
    suite.main()
}

/// The parts of a split, which must be the whole.
fn check_sum(span: &Span) -> Result<()> {
    let part = |name: &str| span.attribute(&format!("pitviper.time.{name}")).parse().unwrap_or(0.0);
    let sum: f64 = ["on_cpu", "run_queue", "gil_wait", "socket_wait", "other"].into_iter().map(part).sum();
    let wall = span.duration() as f64 / 1e9;
    ensure!((sum - wall).abs() < 1e-6, "the parts of {} make {sum}, not {wall}", span.line());
    ensure!(part("unsure") <= part("other"), "{}: {:?}", span.line(), span.attributes);
    Ok(())
}

fn accounts(lab: &Lab, python: &Python, case: Case) -> Result<String> {
    let Case { app, server, routes, told: least } = case;
    let routes = &[routes, IDLE].concat();
    let rounds = std::env::var(ROUNDS).map_or(Ok(3), |rounds| rounds.parse())?;
    let service = Service::start(lab, python, app, server)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let port = service.port();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || -> Result<()> {
                    let mut connection = Connection::new(port);
                    for round in 0..rounds {
                        for step in 0..routes.len() {
                            let route = routes[(step * (1 + client % 3) + client) % routes.len()];
                            let burns = 0.001 * ((client * 7 + round * 5 + step * 3) % 20 + 1) as f64;
                            let n = (round * routes.len() + step) * CLIENTS + client;
                            connection.get(&format!("/{route}/{n}/{burns:.3}"), "")?;
                            if client < 2 {
                                // Some requests have the service for themselves, and idle turns between them.
                                thread::sleep(Duration::from_millis(3));
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| {
            client.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked")))
        })
    })?;
    let reply = Connection::new(port).get("/accounts", "")?;
    let accounts: Vec<(String, f64, f64)> = serde_json::from_slice(&reply.body)?;
    let accounts: BTreeMap<String, (f64, f64)> =
        accounts.into_iter().map(|(path, cpu, wall)| (path, (cpu, wall))).collect();
    thread::sleep(Duration::from_millis(500));
    let (_, spans) = agent.finish(collector)?;
    let mut lies = Vec::new();
    let mut told: BTreeMap<&str, (usize, f64, f64)> = BTreeMap::new();
    let mut most = 0.0_f64;
    for span in spans.iter().filter(|span| span.is_server()) {
        let path = span.attribute("url.path");
        let on_cpu = span.attribute("pitviper.time.on_cpu");
        if path == "/accounts" || on_cpu.is_empty() {
            continue;
        }
        check_sum(span)?;
        let on_cpu: f64 = on_cpu.parse()?;
        let (cpu, wall) = *accounts.get(path).with_context(|| format!("no account of {path}"))?;
        most = most.max(on_cpu - wall);
        if on_cpu > wall * (1.0 + UNSEEN.1) + UNSEEN.0 {
            lies.push(format!("{path}: {on_cpu:.4} of {cpu:.4} to {wall:.4}: {:?}", span.attributes));
        }
        let of_route = told.entry(path.split('/').nth(1).unwrap_or_default()).or_default();
        *of_route = (of_route.0 + 1, of_route.1 + on_cpu, of_route.2 + cpu);
    }
    ensure!(lies.is_empty(), "{} requests have more time than they used:\n{}", lies.len(), lies.join("\n"));
    let requests = CLIENTS * rounds * routes.len();
    let all: usize = told.values().map(|(requests, ..)| requests).sum();
    ensure!(all * 10 > requests * 9, "only {all} of {requests} requests say where their time went");
    let shares: Vec<_> = told
        .iter()
        .filter(|(route, _)| !IDLE.contains(route))
        .map(|(route, (_, on_cpu, cpu))| format!("{route} {:.0}", 100.0 * on_cpu / cpu))
        .collect();
    for (route, (_, on_cpu, cpu)) in told.iter().filter(|(route, _)| !IDLE.contains(route)) {
        ensure!(*on_cpu > least * cpu, "of the {cpu:.3} s of /{route} only {on_cpu:.3} s are told");
    }
    Ok(format!("{all} of {requests}, at most {:.2} ms too much; % told: {}", most * 1e3, shares.join(", ")))
}
