//! Work that goes from thread to thread without a context: thread pools and threads, on builds of every kind. Attached
//! early, every operation is below its own request; attached late, the items that the waiting workers take first may be orphans.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use pitviper_tests::chroot;
use pitviper_tests::python::{self, Python};
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::scenario::{Attach, Scenario};
use pitviper_tests::service::{Server, UVICORN};

const LABELS: &[&str] = &["3.8", "3.11", "3.13", "3.14", "3.15", "debian"];
const GTHREAD: Server = Server::Gunicorn { class: "gthread", workers: 1, threads: 16 };

/// Pools under an event loop.
static POOLS: Scenario = Scenario {
    app: "pool_app",
    server: UVICORN,
    routes: &["executor", "backlog", "nested", "inside", "mapped", "copied", "forgotten", "loops"],
    requests: 200,
};
/// Pools under threads, which are a pool's as well.
static THREADS: Scenario = Scenario {
    app: "pool_flask_app",
    server: GTHREAD,
    routes: &["shared", "mapped", "own", "thread", "below"],
    requests: 200,
};

fn find(label: &str) -> Result<Python> {
    let found = match python::find(label) {
        Some(python) => Some(python),
        None => chroot::find(label)?,
    };
    found.ok_or_else(|| skip(format!("no Python {label} on this machine")))
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for &label in LABELS {
        for (what, scenario) in [("pools", &POOLS), ("threads", &THREADS)] {
            suite = suite
                .case(format!("{label} {what}, early"), move |lab| {
                    scenario.assert_perfect(lab, &find(label)?, Attach::Early)
                })
                .case(format!("{label} {what}, late"), move |lab| {
                    mostly_right(&scenario.run(lab, &find(label)?, Attach::Late)?)
                });
        }
    }
    suite
        .case("a thread for each call of a synchronous handler", |lab| {
            let scenario = Scenario { routes: &["thread"], ..POOLS.clone() };
            scenario.assert_perfect(lab, lab.python(), Attach::Early)
        })
        .case("threads and items that work for everybody", |lab| {
            let scenario = Scenario { routes: &["flusher_thread", "flusher_item"], ..POOLS.clone() };
            scenario.assert_honest(lab, lab.python(), Attach::Early)
        })
        .case("asynchronous views of a synchronous server", |lab| {
            let scenario = Scenario { routes: &["view"], ..THREADS.clone() };
            scenario.assert_perfect(lab, lab.python(), Attach::Early)
        })
        .case("threads that are handed tuples", |lab| {
            let scenario = Scenario { routes: &["workers"], ..THREADS.clone() };
            scenario.assert_honest(lab, lab.python(), Attach::Early)
        })
        .case("items that a handler takes out to cancel them", |lab| {
            let scenario = Scenario { routes: &["cancelled", "shared"], ..THREADS.clone() };
            let python = python::find("3.13").unwrap_or_else(|| lab.python().clone());
            scenario.assert_honest(lab, &python, Attach::Early)
        })
        .main()
}

/// Nothing wrong, and few orphans: at most what each worker that waited at the attach took first.
fn mostly_right(scores: &[(&str, pitviper_tests::oracle::Score)]) -> Result<String> {
    let (mut operations, mut orphans) = (0, 0);
    for (route, score) in scores {
        score.assert_honest().map_err(|error| error.context(format!("/{route}")))?;
        operations += score.operations;
        orphans += score.orphans.len();
    }
    ensure!(orphans * 20 <= operations, "{orphans} of {operations} operations are orphans");
    Ok(format!("{operations} operations, {orphans} orphans"))
}
