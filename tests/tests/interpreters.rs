//! The same on every CPython from 3.8 on: pyenv's shared builds, as they are and stripped; Debian's, which is one static
//! stripped file; newer ones in a chroot, which is another mount namespace; and one inside another program.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{self, Agent};
use pitviper_tests::lab::Lab;
use pitviper_tests::python::Python;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::scenario::{Attach, Scenario};
use pitviper_tests::service::{Server, Service, UVICORN};
use pitviper_tests::variants::Disguise;
use pitviper_tests::{chroot, python, variants};

/// A missing interpreter is a skip, a missing library is a failure.
const LABELS: &[&str] = &["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "debian"];
/// With nothing but their dynamic symbols: one of each way to keep frames.
const STRIPPED: &[&str] = &["3.8", "3.11", "3.12", "3.13"];

const GTHREAD: Server = Server::Gunicorn { class: "gthread", workers: 1, threads: 8 };
const ASYNCIO: Server = Server::Uvicorn { event_loop: "asyncio", http: "h11" };
const FASTAPI_UVLOOP: Scenario =
    Scenario { app: "fastapi_app", server: UVICORN, routes: &["work", "sync"], requests: 200 };
const FASTAPI_ASYNCIO: Scenario =
    Scenario { app: "fastapi_app", server: ASYNCIO, routes: &["work"], requests: 200 };
const FASTAPI_SELECT: Scenario = Scenario {
    app: "fastapi_app",
    server: Server::Uvicorn { event_loop: "select_loop:new_event_loop", http: "h11" },
    routes: &["work"],
    requests: 200,
};
const FLASK_GTHREAD: Scenario =
    Scenario { app: "flask_app", server: GTHREAD, routes: &["work"], requests: 200 };

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let mut case = |name: String, scenario: &'static Scenario, python: fn(&str) -> Result<Python>, label| {
        suite = std::mem::take(&mut suite)
            .case(name, move |lab| scenario.assert_perfect(lab, &python(label)?, Attach::Late));
    };
    for &label in LABELS {
        case(format!("{label} fastapi uvloop"), &FASTAPI_UVLOOP, installed, label);
        case(format!("{label} fastapi asyncio"), &FASTAPI_ASYNCIO, installed, label);
        case(format!("{label} flask gthread"), &FLASK_GTHREAD, installed, label);
    }
    for &label in STRIPPED {
        case(format!("{label} stripped, fastapi uvloop"), &FASTAPI_UVLOOP, variants::stripped, label);
        case(format!("{label} stripped, fastapi asyncio"), &FASTAPI_ASYNCIO, variants::stripped, label);
    }
    case("embedded, fastapi uvloop".to_owned(), &FASTAPI_UVLOOP, |_| variants::embedded(), "");
    case("3.15 as a library, fastapi uvloop".to_owned(), &FASTAPI_UVLOOP, |_| chroot::shared(), "");
    for (name, disguise, why) in [
        ("free-threaded", Disguise::FreeThreaded, "asyncio tasks of a free-threaded build"),
        ("too new", Disguise::TooNew, "is the newest whose asyncio tasks can be told apart"),
    ] {
        suite = suite
            .case(format!("{name}, flask gthread, by thread"), move |lab| {
                FLASK_GTHREAD.assert_perfect(lab, &variants::disguised(disguise)?, Attach::Late)
            })
            .case(format!("{name}, fastapi asyncio, orphans"), move |lab| {
                only_orphans(lab, &FASTAPI_ASYNCIO, disguise)
            })
            .case(format!("{name}, fastapi uvloop, orphans"), move |lab| {
                only_orphans(lab, &FASTAPI_UVLOOP, disguise)
            })
            .case(format!("{name}, fastapi on select, honest"), move |lab| {
                FASTAPI_SELECT.assert_honest(lab, &variants::disguised(disguise)?, Attach::Late)
            })
            .case(format!("{name}, the reason is told"), move |lab| the_reason_is_told(lab, disguise, why));
    }
    suite.main()
}

/// Where tasks cannot be told apart every operation on an event loop is an orphan, and none has a wrong parent.
fn only_orphans(lab: &Lab, scenario: &Scenario, disguise: Disguise) -> Result<String> {
    let scores = scenario.run(lab, &variants::disguised(disguise)?, Attach::Late)?;
    for (route, score) in &scores {
        score.assert_honest().with_context(|| format!("/{route}"))?;
        ensure!(score.correct == 0, "/{route}: {} operations have a parent by luck", score.correct);
        ensure!(score.orphans.len() == score.operations, "/{route}: {} orphans", score.orphans.len());
    }
    Ok(scores.iter().map(|(route, score)| format!("/{route}: {} orphans ", score.orphans.len())).collect())
}

/// `pitviper ps` and `pitviper run` both say how the process is traced, and why no better.
fn the_reason_is_told(lab: &Lab, disguise: Disguise, why: &str) -> Result<String> {
    let service = Service::start(lab, &variants::disguised(disguise)?, "flask_app", GTHREAD)?;
    let pid = service.pid().to_string();
    let listed = agent::run_to_end(&["ps"])?.stdout;
    let mut lines = listed.lines().skip_while(|line| line.split_whitespace().next() != Some(&pid));
    let (row, reason) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    ensure!(row.contains(" thread ") && reason.contains(why), "{row}\n{reason}\n{listed}");
    let agent = Agent::start_with(&["--pid", &pid, "--console"], &[])?;
    let said = agent.stderr();
    ensure!(said.contains(", by thread only)") && said.contains(why), "{said}");
    Ok(reason.trim().to_owned())
}

fn installed(label: &str) -> Result<Python> {
    let found = match python::find(label) {
        Some(python) => Some(python),
        None => chroot::find(label)?,
    };
    found.ok_or_else(|| skip(format!("no Python {label} on this machine")))
}
