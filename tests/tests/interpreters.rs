//! The same on every CPython of the machine, 3.8 to 3.14: shared builds with symbols (pyenv's) and Debian's stripped static one.

use std::process::ExitCode;

use pitviper_tests::python;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::scenario::{Attach, Scenario};
use pitviper_tests::service::{Server, UVICORN};

/// Where the issue wants FastAPI at least: a missing interpreter is a skip, a missing library is a failure.
const LABELS: &[&str] = &["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "debian"];

fn main() -> ExitCode {
    let gthread = Server::Gunicorn { class: "gthread", workers: 1, threads: 8 };
    let asyncio = Server::Uvicorn { event_loop: "asyncio", http: "h11" };
    let mut suite = Suite::new();
    for &label in LABELS {
        let scenarios = [
            (
                "fastapi uvloop",
                Scenario { app: "fastapi_app", server: UVICORN, routes: &["work", "sync"], requests: 200 },
            ),
            (
                "fastapi asyncio",
                Scenario { app: "fastapi_app", server: asyncio, routes: &["work"], requests: 200 },
            ),
            (
                "flask gthread",
                Scenario { app: "flask_app", server: gthread, routes: &["work"], requests: 200 },
            ),
        ];
        for (what, scenario) in scenarios {
            suite = suite.case(format!("{label} {what}"), move |lab| {
                let python =
                    python::find(label).ok_or_else(|| skip(format!("no Python {label} on this machine")))?;
                scenario.assert_perfect(lab, &python, Attach::Late)
            });
        }
    }
    suite.main()
}
