//! gevent: work in greenlets that were given no context is below the request whose greenlet spawned them.

use std::process::ExitCode;

use pitviper_tests::python;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::scenario::{Attach, Scenario};
use pitviper_tests::service::Server;

fn main() -> ExitCode {
    let gunicorn = Server::Gunicorn { class: "gevent", workers: 1, threads: 1 };
    let mut suite = Suite::new();
    for label in ["3.8", "3.11", "3.13", "debian"] {
        for (when, attach) in [("early", Attach::Early), ("late", Attach::Late)] {
            for (name, app, server, routes) in [
                ("gunicorn", "flask_app", gunicorn, ["work", "spawn"].as_slice()),
                ("pywsgi", "gevent_app", Server::Script, &["work", "bare", "spawn", "pool", "nested"]),
            ] {
                suite = suite.case(format!("{label} {name}, {when}"), move |lab| {
                    let python = python::find(label)
                        .ok_or_else(|| skip(format!("no Python {label} on this machine")))?;
                    let scenario = Scenario { app, server, routes, requests: 200 };
                    scenario.assert_perfect(lab, &python, attach)
                });
            }
        }
    }
    suite
        .case("a greenlet that works for everybody", |lab| {
            let scenario =
                Scenario { app: "gevent_app", server: Server::Script, routes: &["flusher"], requests: 200 };
            scenario.assert_honest(lab, lab.python(), Attach::Early)
        })
        .main()
}
