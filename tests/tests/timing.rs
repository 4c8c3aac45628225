//! Do spans say where their time went, and who held the event loop?

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, number_of};
use pitviper_tests::python::{self, Python};
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::service::{Server, Service, UVICORN};
use pitviper_tests::spans::Span;

/// `TIME` in `timed_fastapi.py`, seconds.
const TIME: f64 = 0.12;
/// All parts of a split.
const PARTS: [&str; 5] = ["on_cpu", "run_queue", "gil_wait", "socket_wait", "other"];
const ASYNCIO: Server = Server::Uvicorn { event_loop: "asyncio", http: "h11" };
const BLOCKED: &str = "pitviper.event_loop.blocked";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for label in ["3.8", "3.10", "3.13"] {
        let python =
            move || python::find(label).ok_or_else(|| skip(format!("no Python {label} on this machine")));
        suite = suite.case(format!("{label} the split"), move |lab| split(lab, &python()?, UVICORN, false));
    }
    suite
        .case("the split, asyncio", |lab| split(lab, lab.python(), ASYNCIO, false))
        .case("the split over TLS", |lab| split(lab, lab.python(), UVICORN, true))
        .case("the split over TLS, asyncio", |lab| split(lab, lab.python(), ASYNCIO, true))
        .case("many at once", |lab| concurrent(lab, UVICORN))
        .case("many at once, asyncio", |lab| concurrent(lab, ASYNCIO))
        .case("who sleeps holds the loop, uvloop", |lab| held(lab, UVICORN, "hold", "hold_the_loop"))
        .case("who sleeps holds the loop, asyncio", |lab| held(lab, ASYNCIO, "hold", "hold_the_loop"))
        .case("who computes holds the loop, uvloop", |lab| held(lab, UVICORN, "hold_burning", "burn"))
        .case("who computes holds the loop, asyncio", |lab| held(lab, ASYNCIO, "hold_burning", "burn"))
        .case("nobody holds the loop", innocent)
        .case("turned off", turned_off)
        .main()
}

/// What a span says of its time.
#[derive(Debug)]
struct Split {
    on_cpu: f64,
    run_queue: f64,
    gil_wait: f64,
    socket_wait: f64,
    other: f64,
    wall: f64,
}

fn split_of(span: &Span) -> Result<Split> {
    let part = |name: &str| -> Result<f64> {
        let value = span.attribute(&format!("pitviper.time.{name}"));
        value.parse().with_context(|| format!("{name}: `{value}` of {}: {:?}", span.line(), span.attributes))
    };
    let wall = span.duration() as f64 / 1e9;
    let sum = PARTS.iter().map(|name| part(name)).sum::<Result<f64>>()?;
    ensure!((sum - wall).abs() < 0.001, "the parts of {} make {sum}, not {wall}", span.line());
    Ok(Split {
        on_cpu: part("on_cpu")?,
        run_queue: part("run_queue")?,
        gil_wait: part("gil_wait")?,
        socket_wait: part("socket_wait")?,
        other: part("other")?,
        wall,
    })
}

/// Sends requests one after the other, and gives the spans of the service.
fn one_by_one(
    lab: &Lab,
    service: &Service,
    mut connection: Connection,
    paths: &[String],
    arguments: &[&str],
) -> Result<Vec<Span>> {
    let collector = lab.collector()?;
    let pid = service.pid().to_string();
    let agent = Agent::start(&[&["--pid", &pid], arguments].concat(), collector)?;
    for path in paths {
        let reply = connection.get(path, "")?;
        ensure!(reply.status == 200, "{path}: {}", reply.status);
    }
    thread::sleep(Duration::from_millis(500));
    Ok(agent.finish(collector)?.1)
}

fn server<'a>(spans: &'a [Span], path: &str) -> Result<&'a Span> {
    spans
        .iter()
        .find(|span| span.is_server() && span.attribute("url.path") == path)
        .with_context(|| format!("no span of {path}"))
}

/// The greatest part of each request's time is what its route is for.
fn split(lab: &Lab, python: &Python, uvicorn: Server, tls: bool) -> Result<String> {
    let (service, connection) = if tls {
        let back_ends = lab.encrypted()?;
        let service = Service::start_encrypted(lab, python, "timed_fastapi", uvicorn, back_ends, &[])?;
        let connection = Connection::encrypted(service.port(), back_ends.certificates.client()?);
        (service, connection)
    } else {
        let service = Service::start(lab, python, "timed_fastapi", uvicorn)?;
        let connection = Connection::new(service.port());
        (service, connection)
    };
    let routes = ["burn", "pool", "sleep", "pg", "both", "gil"];
    let paths: Vec<String> =
        (1..=4).flat_map(|n| routes.iter().map(move |route| format!("/{route}/{n}"))).collect();
    let spans = one_by_one(lab, &service, connection, &paths, &[])?;
    let mut shown = String::new();
    for route in routes {
        // The first one may have come before everything was warm.
        for n in 2..=4 {
            let span = server(&spans, &format!("/{route}/{n}"))?;
            let split = split_of(span)?;
            let Split { on_cpu, run_queue, gil_wait, socket_wait, other, wall } = split;
            // The service burns CPU time until it has used so much, whatever else the machine does. A hypervisor may take the CPU
            // from it meanwhile, which the service does not count.
            let whole = |value: f64, whole: f64| value > 0.9 * whole;
            let right = match route {
                "burn" | "pool" => whole(on_cpu, TIME) && socket_wait == 0.0 && other < 0.2 * wall,
                "sleep" => other > 0.8 * TIME && on_cpu < 0.2 * TIME && socket_wait == 0.0,
                "pg" => socket_wait > 0.8 * TIME && on_cpu < 0.2 * TIME,
                "both" => whole(on_cpu, TIME) && socket_wait > 0.8 * TIME && other < 0.2 * wall,
                // Four threads want the lock. Who waits for it looks every 5 ms whether it is free, for which it needs a CPU:
                // on a busy machine that takes a part of the wait.
                _ => {
                    whole(on_cpu, TIME / 2.0)
                        && gil_wait > 0.0
                        && gil_wait + run_queue > 0.7 * (wall - on_cpu)
                }
            };
            ensure!(right, "/{route}: {split:?}");
            let peers = span.attribute("pitviper.time.peer.names");
            ensure!(peers.is_empty() != ["pg", "both"].contains(&route), "/{route}: peers `{peers}`");
            if n == 2 {
                shown += &format!("{route} {on_cpu:.3} {gil_wait:.3} {socket_wait:.3} {other:.3}; ");
            }
        }
    }
    Ok(shown)
}

/// With requests that compute and requests that wait on one loop, what the former do is not the latter's.
fn concurrent(lab: &Lab, uvicorn: Server) -> Result<String> {
    let service = Service::start(lab, lab.python(), "timed_fastapi", uvicorn)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let port = service.port();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|client| {
                scope.spawn(move || -> Result<()> {
                    let mut connection = Connection::new(port);
                    for round in 0..4 {
                        let route = ["burn", "sleep", "pg", "wait"][client % 4];
                        connection.get(&format!("/{route}/{}", client * 100 + round), "")?;
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| {
            client.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked")))
        })
    })?;
    thread::sleep(Duration::from_millis(500));
    let (_, spans) = agent.finish(collector)?;
    let mut all = 0;
    for span in spans.iter().filter(|span| span.is_server()) {
        all += 1;
        let split = split_of(span)?;
        let path = span.attribute("url.path");
        let right =
            if path.starts_with("/burn") { split.on_cpu > 0.9 * TIME } else { split.on_cpu < 0.2 * TIME };
        ensure!(right, "{path}: {split:?}");
        ensure!(split.wall > 0.8 * TIME, "{path}: {split:?}");
    }
    ensure!(all == 64, "{all} server spans");
    Ok(String::new())
}

/// A request that holds the loop is told so, with the stack, and those that waited are linked to it.
fn held(lab: &Lab, uvicorn: Server, route: &str, function: &str) -> Result<String> {
    let service = Service::start(lab, lab.python(), "timed_fastapi", uvicorn)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let port = service.port();
    // Warm, so that the victims have begun when the culprit comes.
    Connection::new(port).get("/wait/999", "")?;
    let (victims, rounds) = (6, 3);
    for round in 0..rounds {
        thread::scope(|scope| -> Result<()> {
            let waiting: Vec<_> = (0..victims)
                .map(|victim| {
                    scope.spawn(move || {
                        Connection::new(port).get(&format!("/wait/{}", round * 100 + victim), "")
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(40));
            Connection::new(port).get(&format!("/{route}/{}", round * 100 + 50), "")?;
            for victim in waiting {
                victim.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            Ok(())
        })?;
    }
    thread::sleep(Duration::from_millis(500));
    let (_, spans) = agent.finish(collector)?;
    let mut linked = 0;
    for round in 0..rounds {
        let culprit = server(&spans, &format!("/{route}/{}", round * 100 + 50))?;
        let [(name, attributes)] = culprit.events.as_slice() else {
            anyhow::bail!("{} has the events {:?}", culprit.line(), culprit.events);
        };
        ensure!(name == BLOCKED, "an event {name}");
        let duration: f64 =
            attributes.get("pitviper.event_loop.blocked.duration").context("no duration")?.parse()?;
        ensure!(duration > 2.0 * TIME, "it held the loop for {duration} s");
        let stack = attributes.get("code.stacktrace").map_or("", String::as_str);
        ensure!(stack.contains(&format!("in {function}\n")), "not in {function}: {stack}");
        ensure!(culprit.links.is_empty(), "the culprit is linked: {:?}", culprit.links);
        for victim in 0..victims {
            let span = server(&spans, &format!("/wait/{}", round * 100 + victim))?;
            ensure!(span.events.is_empty(), "{} is blamed: {:?}", span.line(), span.events);
            for (_, id) in &span.links {
                ensure!(*id == culprit.span_id, "{} is linked to {id}, not {}", span.line(), culprit.line());
            }
            linked += usize::from(!span.links.is_empty());
        }
    }
    let waited = usize::try_from(victims * rounds)?;
    ensure!(linked * 2 > waited, "only {linked} of {waited} that waited are linked");
    let free = server(&spans, "/wait/999")?;
    ensure!(free.links.is_empty(), "it waited for nobody: {:?}", free.links);
    Ok(format!("{linked} of {waited} that waited are linked"))
}

/// Long requests that leave the loop alone are not blamed, however long they take.
fn innocent(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "timed_fastapi", UVICORN)?;
    let paths: Vec<_> = ["sleep", "pg", "wait"]
        .iter()
        .flat_map(|route| (0..5).map(move |n| format!("/{route}/{n}")))
        .collect();
    let spans = one_by_one(lab, &service, Connection::new(service.port()), &paths, &[])?;
    let servers: Vec<_> = spans.iter().filter(|span| span.is_server()).collect();
    ensure!(servers.len() == paths.len(), "{} server spans", servers.len());
    for span in servers {
        ensure!(span.events.is_empty(), "{} is blamed: {:?}", span.line(), span.events);
        ensure!(span.links.is_empty(), "{} has links: {:?}", span.line(), span.links);
        ensure!(number_of(span.attribute("url.path")) < 5, "{}", span.line());
    }
    Ok(String::new())
}

fn turned_off(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "timed_fastapi", UVICORN)?;
    let paths = ["/burn/1".to_owned(), "/hold/2".to_owned()];
    let spans = one_by_one(lab, &service, Connection::new(service.port()), &paths, &["--no-timing"])?;
    for path in &paths {
        let span = server(&spans, path)?;
        let told = span.attributes.keys().any(|key| key.starts_with("pitviper.time."));
        ensure!(!told && span.events.is_empty(), "{}: {:?}", span.line(), span.attributes);
    }
    Ok(String::new())
}
