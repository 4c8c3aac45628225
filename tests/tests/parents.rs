//! Never a wrong parent: frameworks, servers and habits that the agent was not made for, one after the other.
//!
//! Each case tells its figures. Some routes have no proof of whose work it is (see README, Limits): then orphans are right,
//! and wrong parents are not.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use pitviper_tests::agent::Agent;
use pitviper_tests::collector::Transport;
use pitviper_tests::lab::Lab;
use pitviper_tests::mix::Mix;
use pitviper_tests::oracle;
use pitviper_tests::process::Tree;
use pitviper_tests::python;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::scenario::{Attach, Scenario, summary};
use pitviper_tests::service::{Server, Service, UVICORN};

/// What is asked of a route.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Every operation is below its request.
    Perfect,
    /// Every operation has its span, and none is below another request.
    Honest,
}
use Expect::{Honest, Perfect};

struct Case {
    name: &'static str,
    app: &'static str,
    server: Server,
    attach: Attach,
    python: &'static str,
    environment: &'static [(&'static str, &'static str)],
    routes: &'static [(&'static str, Expect)],
}

const TASKS: &[(&str, Expect)] =
    &[("queue", Honest), ("work", Perfect), ("thread", Perfect), ("later", Perfect), ("timeout", Perfect)];
const TASKS_LATE: &[(&str, Expect)] =
    &[("work", Perfect), ("thread", Perfect), ("later", Perfect), ("timeout", Perfect), ("queue", Honest)];
const LAZY: &[(&str, &str)] = &[("TEST_LAZY", "1")];

fn main() -> ExitCode {
    use Attach::{Early, Late};
    let script = Server::ScriptWith;
    let asgi = Server::UvicornFrameworks { event_loop: "asyncio" };
    let uvloop = Server::UvicornFrameworks { event_loop: "uvloop" };
    let case = |name, app, server, attach, routes| Case {
        name,
        app,
        server,
        attach,
        python: "3.11",
        environment: &[],
        routes,
    };
    let matrix = vec![
        case("tornado", "tornado_app", script(""), Early, TASKS),
        case(
            "tornado, its client and leftovers",
            "tornado_app",
            script(""),
            Late,
            &[("fetch", Honest), ("leftover", Honest)],
        ),
        case("raw streams", "raw_streams", script(""), Early, TASKS),
        case(
            "raw streams, leftovers",
            "raw_streams",
            script(""),
            Early,
            &[("work", Perfect), ("leftover", Honest)],
        ),
        case("raw streams uvloop", "raw_streams", script("uvloop"), Late, TASKS_LATE),
        case(
            "raw protocol",
            "raw_protocol",
            script(""),
            Early,
            &[
                ("blocking", Perfect),
                ("mixed", Honest),
                ("work", Perfect),
                ("queue", Honest),
                ("later", Honest),
            ],
        ),
        case(
            "raw protocol uvloop",
            "raw_protocol",
            script("uvloop"),
            Late,
            &[("blocking", Honest), ("mixed", Honest), ("work", Honest)],
        ),
        case(
            "http.server",
            "http_server",
            script(""),
            Early,
            &[("work", Perfect), ("leftover", Honest), ("nested", Honest)],
        ),
        case(
            "http.server threads",
            "http_server",
            script("threads"),
            Early,
            &[("work", Perfect), ("leftover", Honest), ("nested", Perfect)],
        ),
        case("sanic", "sanic_app", script(""), Early, TASKS),
        case("quart", "quart_app", asgi, Early, TASKS),
        case(
            "litestar",
            "litestar_app",
            uvloop,
            Early,
            &[("work", Perfect), ("sync", Perfect), ("queue", Honest)],
        ),
        case("blacksheep", "blacksheep_app", uvloop, Early, TASKS),
        case("hypercorn trio", "trio_app", Server::Hypercorn { class: "trio" }, Early, &[("work", Perfect)]),
        case(
            "waitress",
            "serve_wsgi",
            script("waitress"),
            Early,
            &[("work", Honest), ("loop", Honest), ("view", Honest)],
        ),
        case(
            "cheroot",
            "serve_wsgi",
            script("cheroot"),
            Early,
            &[("work", Perfect), ("loop", Perfect), ("view", Honest)],
        ),
        case(
            "a2wsgi",
            "a2wsgi_app",
            uvloop,
            Early,
            &[("work", Perfect), ("loop", Perfect), ("view", Honest)],
        ),
        case(
            "uvicorn, the first request makes the sender",
            "fastapi_app",
            UVICORN,
            Early,
            &[("queue", Honest), ("later", Perfect)],
        ),
    ];
    let mut suite = Suite::new();
    for case in matrix {
        suite = suite.case(case.name, move |lab| case.run(lab));
    }
    suite
        .case("everything at once", |lab| mixed(lab, &[], &["--ring-size", "8192"]).map(|(line, _)| line))
        .case("everything at once, clients made in requests", |lab| {
            mixed(lab, LAZY, &["--ring-size", "8192"]).map(|(line, _)| line)
        })
        .case("everything at once, on starved CPUs", |lab| {
            let burners = (0..BURNERS).map(|n| {
                let mut command = Command::new("sh");
                command.args(["-c", "while :; do :; done"]);
                Tree::spawn("burner", command, &lab.directory().join(format!("burner-{n}.log")))
            });
            let _burners = burners.collect::<Result<Vec<_>>>()?;
            mixed(lab, &[], &[]).map(|(line, _)| line)
        })
        .case("everything at once, and losses", |lab| {
            let (line, stderr) = mixed(lab, &[], &["--ring-size", "64"])?;
            let loss = stderr.lines().find(|line| line.contains("lost"));
            Ok(format!("{line}; {}", loss.context("nothing was lost, so nothing was tested")?))
        })
        .main()
}

/// Busy processes beside the service, its databases, the daemon and the load: two for each of two CPUs.
const BURNERS: usize = 4;

/// Routes mixed at random with failures, pipelining and clients that go away; the daemon with these options. Gives the
/// figures, and what the daemon said.
fn mixed(lab: &Lab, environment: &[(&str, &str)], options: &[&str]) -> Result<(String, String)> {
    let mix = Mix {
        routes: &[
            "work",
            "sync",
            "to_thread",
            "background",
            "later",
            "sse",
            "orm",
            "groups",
            "queue",
            "boom",
            "slow",
        ],
        pipelining: true,
        given_up: 60,
    };
    let service = Service::start_with(lab, lab.python(), "fastapi_app", UVICORN, environment)?;
    let collector = lab.collector()?;
    let variables = collector.environment(Transport::Grpc);
    let pid = service.pid().to_string();
    let agent = Agent::start_with(&[&["--pid", &pid], options].concat(), &variables)?;
    let replies = mix.run(service.port(), 1_000_000..1_001_000).with_context(|| service.log())?;
    service.settle();
    let (finished, spans) = agent.finish(collector)?;
    let mut score = oracle::score(&replies, &spans)?;
    score.judge_others(&spans);
    score.assert_never_wrong()?;
    Ok((format!("{} spans with a parent; {}", score.others, score.figures()), finished.stderr))
}

impl Case {
    fn run(&self, lab: &Lab) -> Result<String> {
        let python = python::find(self.python).ok_or_else(|| skip(format!("no Python {}", self.python)))?;
        let routes: Vec<&'static str> = self.routes.iter().map(|(route, _)| *route).collect();
        let scenario =
            Scenario { app: self.app, server: self.server, routes: Vec::leak(routes), requests: 120 };
        let scores = scenario.run_with(lab, &python, self.attach, self.environment)?;
        if std::env::var_os("PITVIPER_ORACLE_ONLY_TELL").is_none() {
            for ((route, score), (_, expect)) in scores.iter().zip(self.routes) {
                match expect {
                    Perfect => score.assert_perfect(),
                    Honest => score.assert_honest(),
                }
                .with_context(|| format!("/{route}"))?;
            }
        }
        Ok(summary(&scores))
    }
}
