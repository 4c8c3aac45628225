//! Processes come and go under load: forks, execs, restarts, reloads, recycled pids. Whatever a process does from its first
//! request on is below its own request; and thousands of processes leave nothing behind in the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{Agent, Finished};
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Load, Reply};
use pitviper_tests::oracle;
use pitviper_tests::process::{descendants, send_signal, wait_until};
use pitviper_tests::python;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::service::Service;
use pitviper_tests::spans::Span;
use pitviper_tests::steady::Steady;

fn main() -> ExitCode {
    let prefork = |mode: &'static str, life: &'static str| move |lab: &Lab| prefork(lab, mode, life);
    Suite::new()
        .case("workers that accept at once, each for 200 ms", prefork("fork", "200"))
        .case("workers with a thread pool, each for 200 ms", prefork("fork-pool", "200"))
        .case("multiprocessing fork", prefork("mp-fork", "700"))
        .case("multiprocessing spawn", prefork("mp-spawn", "1500"))
        .case("multiprocessing forkserver", prefork("mp-forkserver", "1000"))
        .case("a process for each connection", fork_per_connection)
        .case("gunicorn, SIGHUP", |lab| gunicorn(lab, WORK, &[], hang_up))
        .case("gunicorn, killed workers", |lab| gunicorn(lab, WORK, &[], kill_workers))
        .case("gunicorn --preload, killed workers", |lab| gunicorn(lab, WORK, &["--preload"], kill_workers))
        .case("gunicorn --max-requests", |lab| gunicorn(lab, WORK, &["--max-requests", "50"], wait_only))
        .case("gunicorn's pools, killed workers", |lab| gunicorn(lab, POOLS, &[], kill_workers))
        .case("gunicorn's greenlets, killed workers", |lab| gunicorn(lab, GREENLETS, &[], kill_workers))
        .case("uvicorn --workers, a killed worker", uvicorn_workers)
        .case("uvicorn --reload", uvicorn_reload)
        .case("exec of another Python", |lab| successor(lab, "exec"))
        .case("exec of another Python from a thread", |lab| successor(lab, "exec-thread"))
        .case("another Python as a child", |lab| successor(lab, "child"))
        .case("a recycled pid is a new process", recycled)
        .case("thousands of short processes", swarm)
        .case("more forks than the ring buffer holds", overrun)
        .main()
}

fn script(lab: &Lab, app: &str, arguments: &[&str]) -> Result<Service> {
    let python = lab.python().services()?.script("python");
    Service::start_command(lab, app, |port| {
        let mut command = Command::new(&python);
        command.arg(format!("{app}.py")).arg(port).args(arguments);
        command
    })
}

/// How many processes answered.
fn pids(replies: &[Reply]) -> Result<BTreeSet<u64>> {
    let pid = |reply: &Reply| -> Result<u64> {
        let body: serde_json::Value = serde_json::from_slice(&reply.body)?;
        body["pid"].as_u64().context("no pid in the answer")
    };
    replies.iter().map(pid).collect()
}

/// Every operation right, and every span from a process that answered.
fn perfect(replies: &[Reply], spans: &[Span]) -> Result<String> {
    let score = oracle::score(replies, spans)?;
    score.assert_perfect()?;
    Ok(format!("{} requests, {} operations right", score.requests, score.correct))
}

/// The same where work is handed over and workers are killed: whether a piece of work ended with its request cannot be known
/// when its process was killed in between. Workers are killed four times, and each may have been done with one request, of up
/// to four operations, but for that.
fn nearly_perfect(replies: &[Reply], spans: &[Span]) -> Result<String> {
    let score = oracle::score(replies, spans)?;
    score.assert_honest()?;
    ensure!(score.orphans.len() <= 4 * 4, "orphans\n{score}");
    Ok(format!(
        "{} requests, {} operations right, {} orphans",
        score.requests,
        score.correct,
        score.orphans.len()
    ))
}

fn prefork(lab: &Lab, mode: &str, life: &str) -> Result<String> {
    let service = script(lab, "prefork_app", &[mode, life])?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    // Long enough for workers to come after the first ones, however fast the machine is.
    let mut replies = Vec::new();
    for round in 0..12 {
        let numbers = round * 1000..(round + 1) * 1000;
        replies.extend(Load::new(service.port()).run("work", numbers).with_context(|| service.log())?);
        if round >= 2 && pids(&replies)?.len() > 4 {
            break;
        }
    }
    let (_, spans) = agent.finish(collector)?;
    let pids = pids(&replies)?;
    ensure!(pids.len() > 4, "only {} processes answered", pids.len());
    Ok(format!("{}, in {} processes", perfect(&replies, &spans)?, pids.len()))
}

fn fork_per_connection(lab: &Lab) -> Result<String> {
    let service = script(lab, "forking_app", &[])?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let replies = Load::new(service.port()).run("work", 0..600).with_context(|| service.log())?;
    let (_, spans) = agent.finish(collector)?;
    let pids = pids(&replies)?;
    let told: BTreeSet<u64> = spans
        .iter()
        .filter(|span| span.is_server())
        .filter_map(|span| span.resource.get("process.pid")?.parse().ok())
        .collect();
    ensure!(pids == told, "the spans are of {} processes, {} answered", told.len(), pids.len());
    let names: BTreeSet<_> = spans.iter().filter_map(|span| span.resource.get("service.name")).collect();
    ensure!(names.len() == 1, "a child has another name than its parent: {names:?}");
    Ok(format!("{}, in {} processes", perfect(&replies, &spans)?, pids.len()))
}

fn hang_up(service: &Service) -> Result<()> {
    for _ in 0..2 {
        let old = descendants(service.pid());
        send_signal(service.pid(), libc::SIGHUP);
        renewed(service, &old)?;
    }
    Ok(())
}

fn kill_workers(service: &Service) -> Result<()> {
    for _ in 0..4 {
        let old = descendants(service.pid());
        send_signal(*old.first().context("no worker")?, libc::SIGKILL);
        renewed(service, &old[..1])?;
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// The load alone is enough.
fn wait_only(service: &Service) -> Result<()> {
    let old = descendants(service.pid());
    renewed(service, &old)?;
    std::thread::sleep(Duration::from_secs(2));
    Ok(())
}

/// Waits until none of the old workers is left, and there are new ones.
fn renewed(service: &Service, old: &[u32]) -> Result<()> {
    wait_until("new workers", Duration::from_secs(30), || {
        let now = descendants(service.pid());
        (now.len() >= 2 && !now.iter().any(|pid| old.contains(pid))).then_some(())
    })
}

/// Applications, worker classes and routes.
type Servers = &'static [(&'static str, &'static str, &'static str)];
const WORK: Servers =
    &[("flask_app:app", "sync", "work"), ("fastapi_app:app", "uvicorn_worker.UvicornWorker", "work")];
const POOLS: Servers =
    &[("pool_flask_app:app", "sync", "shared"), ("pool_app:app", "uvicorn_worker.UvicornWorker", "executor")];
const GREENLETS: Servers = &[("flask_app:app", "gevent", "spawn")];

fn gunicorn(
    lab: &Lab,
    servers: Servers,
    options: &[&str],
    happens: fn(&Service) -> Result<()>,
) -> Result<String> {
    let mut notes = Vec::new();
    for &(app, class, route) in servers {
        let program = lab.python().services()?.script("gunicorn");
        let service = Service::start_command(lab, class, |port| {
            let mut command = Command::new(&program);
            command.args(["--bind", &format!("127.0.0.1:{port}"), "--worker-class", class, "--workers", "2"]);
            command.args(["--graceful-timeout", "5", "--log-level", "warning"]).args(options).arg(app);
            command
        })?;
        let collector = lab.collector()?;
        let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
        let before = descendants(service.pid());
        let outcome = Steady::new(service.port(), route, 0)
            .during(|| happens(&service))
            .with_context(|| service.log())?;
        let after = descendants(service.pid());
        ensure!(before.iter().any(|pid| !after.contains(pid)), "no worker was replaced");
        let (_, spans) = agent.finish(collector)?;
        let judge = if servers == WORK { perfect } else { nearly_perfect };
        let score = judge(&outcome.replies, &spans).with_context(|| class.to_owned())?;
        notes.push(format!("{class}: {score}, {} refused", outcome.failures));
    }
    Ok(notes.join("; "))
}

fn uvicorn(lab: &Lab, directory: Option<&Path>, options: &[&str], app: &str) -> Result<Service> {
    let program = lab.python().services()?.script("uvicorn");
    Service::start_command(lab, "uvicorn", |port| {
        let mut command = Command::new(&program);
        command.args(["--port", port, "--no-access-log"]).args(options).arg(app);
        if let Some(directory) = directory {
            command.arg("--app-dir").arg(directory).arg("--reload-dir").arg(directory);
            command.env("PYTHONPATH", pitviper_tests::service::apps());
        }
        command
    })
}

/// How many processes have started the application.
fn startups(service: &Service) -> usize {
    service.log().matches("Application startup complete").count()
}

fn uvicorn_workers(lab: &Lab) -> Result<String> {
    let service = uvicorn(lab, None, &["--workers", "2"], "fastapi_app:app")?;
    let load = Load::new(service.port());
    load.run("work", 0..20)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let outcome = Steady::new(service.port(), "work", 1000).during(|| {
        std::thread::sleep(Duration::from_secs(1));
        let old = descendants(service.pid());
        // The first child is multiprocessing's resource tracker.
        let worker = *old.last().context("no worker")?;
        let started = startups(&service);
        send_signal(worker, libc::SIGKILL);
        wait_until("a new worker", Duration::from_secs(60), || (startups(&service) > started).then_some(()))?;
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    let (_, spans) = agent.finish(collector)?;
    let servers = spans.iter().filter(|span| span.is_server());
    let pids: BTreeSet<_> = servers.filter_map(|span| span.resource.get("process.pid")).collect();
    ensure!(pids.len() == 3, "{} workers were traced, not two and a new one", pids.len());
    Ok(format!("{}, {} refused", perfect(&outcome.replies, &spans)?, outcome.failures))
}

/// The reloader starts a process for the application anew when a file changes.
fn uvicorn_reload(lab: &Lab) -> Result<String> {
    let directory = lab.directory().join("reloaded");
    fs::create_dir_all(&directory)?;
    let app = directory.join("reloaded_app.py");
    fs::write(&app, "from fastapi_app import app\n")?;
    let service = uvicorn(lab, Some(&directory), &["--reload"], "reloaded_app:app")?;
    Load::new(service.port()).run("work", 0..20)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let outcome = Steady::new(service.port(), "work", 1000).during(|| {
        std::thread::sleep(Duration::from_secs(1));
        let started = startups(&service);
        fs::write(&app, "from fastapi_app import app\n# Changed.\n")?;
        wait_until("the reloaded process", Duration::from_secs(60), || {
            (startups(&service) > started).then_some(())
        })?;
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    let (_, spans) = agent.finish(collector)?;
    let servers = spans.iter().filter(|span| span.is_server());
    let pids: BTreeSet<_> = servers.filter_map(|span| span.resource.get("process.pid")).collect();
    ensure!(pids.len() == 2, "{} processes were traced, not the old and the new one", pids.len());
    Ok(format!("{}, {} refused", perfect(&outcome.replies, &spans)?, outcome.failures))
}

/// A process on one interpreter becomes, or starts, one on another.
fn successor(lab: &Lab, how: &str) -> Result<String> {
    let Some(other) = python::find("3.13") else { return Err(skip("no Python 3.13")) };
    let program = other.services()?.script("python").display().to_string();
    let first = lab.python().services()?.script("python");
    let collector = lab.collector()?;
    let gate = lab.directory().join(format!("gate-{how}"));
    let service = Service::start_command(lab, how, |port| {
        let mut command = Command::new(&first);
        command.args(["successor_app.py", port, how, &program]).env("GATE", &gate);
        command
    })?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    fs::write(&gate, "")?;
    let replies = Load::new(service.port()).run("work", 0..300).with_context(|| service.log())?;
    let (_, spans) = agent.finish(collector)?;
    let version = spans.first().and_then(|span| span.resource.get("process.runtime.version"));
    ensure!(version.is_some_and(|version| version.starts_with("3.13")), "traced as {version:?}");
    perfect(&replies, &spans)
}

/// Generations of processes with one pid, forked and executed in turn; each has the name that it says it has.
fn recycled(lab: &Lab) -> Result<String> {
    let service = script(lab, "successor_app", &["recycle"])?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let outcome = Steady::new(service.port(), "work", 0).during(|| {
        std::thread::sleep(Duration::from_secs(8));
        Ok(())
    })?;
    let (_, spans) = agent.finish(collector).with_context(|| service.log())?;
    let Some(pids) = Some(pids(&outcome.replies)?).filter(|pids| !pids.is_empty()) else {
        return Err(skip("this kernel gives no process a wanted pid (clone3 with set_tid)"));
    };
    ensure!(pids.len() == 1, "the pid was not recycled: {pids:?}\n{}", service.log());
    let score = perfect(&outcome.replies, &spans)?;
    let mut generations = BTreeSet::new();
    for reply in &outcome.replies {
        let body: serde_json::Value = serde_json::from_slice(&reply.body)?;
        let who = body["who"].as_str().unwrap_or_default();
        let wanted = if who.is_empty() { "successor_app" } else { who };
        generations.insert(who.to_owned());
        let server = spans.iter().find(|span| span.is_server() && span.attribute("url.path") == reply.path);
        let name = server.and_then(|span| span.resource.get("service.name")).map(String::as_str);
        ensure!(name == Some(wanted), "{} was answered by {wanted}, and is of {name:?}", reply.path);
    }
    ensure!(generations.len() >= 4, "only {generations:?} answered");
    Ok(format!("{score}, {} names, {} refused", generations.len(), outcome.failures))
}

/// A program that starts processes when it is told to.
struct Swarm {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Swarm {
    fn start(lab: &Lab) -> Result<Self> {
        let python = lab.python().services()?.script("python");
        let mut command = Command::new(python);
        command.arg(pitviper_tests::service::apps().join("swarm.py"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, said })
    }

    fn run(&mut self, kind: &str, count: u32) -> Result<()> {
        writeln!(self.child.stdin.as_mut().context("no input")?, "{kind} {count}")?;
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        ensure!(line.trim() == "done", "the swarm said {line:?}");
        Ok(())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of a process: resident memory in KiB, and open descriptors.
fn usage(pid: u32) -> Result<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
    Ok((kib.context("no VmRSS")?, fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
}

/// The sizes of the daemon's tables at its end, by its `-v` line.
fn tables(finished: &Finished) -> Result<String> {
    let line = finished.stderr.lines().find_map(|line| line.split_once("tables at the end: "));
    Ok(line.with_context(|| format!("no line about tables in:\n{}", finished.stderr))?.1.to_owned())
}

fn swarm(lab: &Lab) -> Result<String> {
    let mut swarm = Swarm::start(lab)?;
    let agent = Agent::start_with(
        &["--pid", &swarm.child.id().to_string(), "-v"],
        &[("OTEL_TRACES_EXPORTER", "none".to_owned())],
    )?;
    let kinds = [("fork", 3000), ("sh", 1500), ("loop", 800), ("python", 150), ("tls", 150), ("https", 20)];
    for (kind, count) in kinds {
        swarm.run(kind, count.min(100))?;
    }
    let settle = || std::thread::sleep(Duration::from_secs(1));
    settle();
    let before = usage(agent.pid())?;
    for (kind, count) in kinds {
        swarm.run(kind, count)?;
    }
    settle();
    let after = usage(agent.pid())?;
    ensure!(after.1 <= before.1, "{} descriptors became {}", before.1, after.1);
    ensure!(after.0 < before.0 + 4096, "{} KiB became {}", before.0, after.0);
    let finished = agent.stop()?;
    let tables = tables(&finished)?;
    // The swarm itself is left, and may have a lineage.
    let left = tables.starts_with("1 processes, 1 probed, 1 targets, ") && tables.ends_with(" 0 connections");
    ensure!(left && (tables.contains(" 0 with lineage") || tables.contains(" 1 with lineage")), "{tables}");
    ensure!(!finished.stderr.contains("warning"), "{}", finished.stderr);
    Ok(format!("5620 processes: {} to {} KiB, {} descriptors; {tables}", before.0, after.0, after.1))
}

/// Records of forks and exits are lost; afterwards everything is as if they had not been.
fn overrun(lab: &Lab) -> Result<String> {
    let mut swarm = Swarm::start(lab)?;
    let agent = Agent::start_with(
        &["--pid", &swarm.child.id().to_string(), "-v", "--ring-size", "64"],
        &[("OTEL_TRACES_EXPORTER", "none".to_owned())],
    )?;
    // A daemon that does not get the processor cannot empty the buffer: about 2000 records fill it.
    send_signal(agent.pid(), libc::SIGSTOP);
    swarm.run("fork", 1500)?;
    send_signal(agent.pid(), libc::SIGCONT);
    swarm.run("fork", 100)?;
    // The next look at what there is.
    std::thread::sleep(Duration::from_secs(7));
    let finished = agent.stop()?;
    ensure!(
        finished.stderr.contains("process or socket events were lost"),
        "nothing was lost: {}",
        finished.stderr
    );
    let tables = tables(&finished)?;
    ensure!(tables.starts_with("1 processes, 1 probed, 1 targets"), "{tables}");
    Ok(tables)
}
