//! The same on every CPython from 3.8 on: pyenv's shared builds, as they are and stripped; Debian's, which is one static
//! stripped file; newer ones in a chroot, which is another mount namespace; and one inside another program.

use std::process::ExitCode;

use anyhow::Result;
use pitviper_tests::python::Python;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::scenario::{Attach, Scenario};
use pitviper_tests::service::{Server, UVICORN};
use pitviper_tests::{chroot, python, variants};

/// A missing interpreter is a skip, a missing library is a failure.
const LABELS: &[&str] = &["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "debian"];
/// With nothing but their dynamic symbols: one of each way to keep frames.
const STRIPPED: &[&str] = &["3.8", "3.11", "3.12", "3.13"];

const GTHREAD: Server = Server::Gunicorn { class: "gthread", workers: 1, threads: 8 };
const ASYNCIO: Server = Server::Uvicorn { event_loop: "asyncio", http: "h11" };
const FASTAPI_UVLOOP: Scenario =
    Scenario { app: "fastapi_app", server: UVICORN, routes: &["work", "sync"], requests: 200 };
const FASTAPI_ASYNCIO: Scenario =
    Scenario { app: "fastapi_app", server: ASYNCIO, routes: &["work"], requests: 200 };
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
    suite.main()
}

fn installed(label: &str) -> Result<Python> {
    let found = match python::find(label) {
        Some(python) => Some(python),
        None => chroot::find(label)?,
    };
    found.ok_or_else(|| skip(format!("no Python {label} on this machine")))
}
