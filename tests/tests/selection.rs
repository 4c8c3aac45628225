//! Which processes are observed: `--pid` with present and future children, `--port`, `--exe`, `--cgroup`; and no others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Load, Reply};
use pitviper_tests::oracle;
use pitviper_tests::process::{descendants, send_signal, wait_until};
use pitviper_tests::python;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::service::{Server, Service, UVICORN};
use pitviper_tests::spans::Span;

const PREFORK: Server = Server::Gunicorn { class: "sync", workers: 2, threads: 1 };

fn main() -> ExitCode {
    Suite::new()
        .case("--pid includes workers of the future", future_workers)
        .case("--pid ends with the last process", ends_with_the_last)
        .case("--port", port)
        .case("--exe", exe)
        .case("--cgroup", cgroup)
        .main()
}

/// Fails if any of these requests was seen.
fn unseen(replies: &[Reply], spans: &[Span]) -> Result<()> {
    let seen = spans.iter().find(|span| replies.iter().any(|reply| span.attribute("url.path") == reply.path));
    ensure!(seen.is_none(), "a process that was not selected: {:?}", seen.map(Span::line));
    Ok(())
}

fn future_workers(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "flask_app", PREFORK)?;
    let load = Load::new(service.port());
    load.run("work", 0..50)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let mut replies = load.run("work", 100..200)?;
    let old = descendants(service.pid());
    ensure!(old.len() == 2, "gunicorn has {} workers", old.len());
    for pid in &old {
        send_signal(*pid, libc::SIGTERM);
    }
    wait_until("two new workers", Duration::from_secs(30), || {
        let workers = descendants(service.pid());
        (workers.len() == 2 && workers.iter().all(|pid| !old.contains(pid))).then_some(())
    })?;
    // The first requests make the new workers import the application's clients; they count as well.
    replies.extend(load.run("work", 200..300)?);
    let (_, spans) = agent.finish(collector)?;
    oracle::score(&replies, &spans)?.assert_perfect()?;
    Ok(format!("{} spans", spans.len()))
}

fn ends_with_the_last(lab: &Lab) -> Result<String> {
    let first = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let second = Service::start(lab, lab.python(), "flask_app", PREFORK)?;
    let collector = lab.collector()?;
    let pids = [first.pid().to_string(), second.pid().to_string()];
    let mut agent = Agent::start(&["--pid", &pids[0], "--pid", &pids[1]], collector)?;
    let mut replies = Load::new(first.port()).run("work", 0..50)?;
    replies.extend(Load::new(second.port()).run("work", 100..150)?);
    drop(first);
    std::thread::sleep(Duration::from_secs(2));
    ensure!(agent.ended().is_none(), "ended while a target was running");
    drop(second);
    let finished = agent.wait(Duration::from_secs(20))?;
    ensure!(finished.status.success(), "{}: {}", finished.status, finished.stderr);
    let spans = collector.wait_for(finished.counts()?.0)?;
    oracle::score(&replies, &spans)?.assert_perfect()?;
    Ok("ended by itself".to_owned())
}

fn port(lab: &Lab) -> Result<String> {
    let wanted = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let other = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--port", &wanted.port().to_string()], collector)?;
    let seen = Load::new(wanted.port()).run("work", 0..100)?;
    let not = Load::new(other.port()).run("work", 500..600)?;
    let (_, spans) = agent.finish(collector)?;
    oracle::score(&seen, &spans)?.assert_perfect()?;
    unseen(&not, &spans)?;
    Ok(format!("{} spans", spans.len()))
}

/// An interpreter of our own, so that no other process of the machine matches; one service runs before the daemon, and
/// one starts after it.
fn exe(lab: &Lab) -> Result<String> {
    let Some(debian) = python::find("debian") else { return Err(skip("no /usr/bin/python3")) };
    let venv = debian.services()?;
    let home = lab.directory().join("viper");
    fs::create_dir_all(home.join("bin"))?;
    let interpreter = home.join("bin/viper-python");
    fs::copy(&debian.executable, &interpreter)?;
    fs::copy(venv.script("../pyvenv.cfg"), home.join("pyvenv.cfg"))?;
    symlink(venv.script("../lib"), home.join("lib"))?;
    let start = || {
        Service::start_command(lab, "viper", |port| {
            let mut command = Command::new(&interpreter);
            command.args(["-m", "uvicorn", "--log-level", "warning", "--port", port, "fastapi_app:app"]);
            command
        })
    };
    let before = start()?;
    let other = Service::start(lab, &debian, "fastapi_app", UVICORN)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--exe", "*/viper-python"], collector)?;
    let after = start()?;
    let mut seen = Load::new(before.port()).run("work", 0..100)?;
    seen.extend(Load::new(after.port()).run("work", 100..200)?);
    let not = Load::new(other.port()).run("work", 500..550)?;
    let (_, spans) = agent.finish(collector)?;
    oracle::score(&seen, &spans)?.assert_perfect()?;
    unseen(&not, &spans)?;
    Ok(format!("{} spans", spans.len()))
}

/// A cgroup of the test, removed on drop.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn cgroup(lab: &Lab) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    let Some(mount) = mount else { return Err(skip("cgroup v2 is not mounted")) };
    let group = Cgroup(mount.join(format!("pitviper-test-{}", std::process::id())));
    fs::create_dir_all(group.0.join("inner")).context("failed to make a cgroup")?;
    let inner = Cgroup(group.0.join("inner"));
    let moved = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    fs::write(inner.0.join("cgroup.procs"), moved.pid().to_string())?;
    let outside = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let collector = lab.collector()?;
    let path = group.0.display().to_string();
    let agent = Agent::start(&["--cgroup", &path], collector)?;
    let uvicorn = lab.python().services()?.script("uvicorn");
    let later = Service::start_command(lab, "later", |port| {
        let mut command = Command::new("sh");
        let script =
            r#"echo $$ > "$1/cgroup.procs"; exec "$2" --log-level warning --port "$3" fastapi_app:app"#;
        command.args(["-c", script, "sh", &path]).arg(&uvicorn).arg(port);
        command
    })?;
    let mut seen = Load::new(moved.port()).run("work", 0..100)?;
    seen.extend(Load::new(later.port()).run("work", 100..200)?);
    let not = Load::new(outside.port()).run("work", 500..600)?;
    let (_, spans) = agent.finish(collector)?;
    drop((moved, later));
    oracle::score(&seen, &spans)?.assert_perfect()?;
    unseen(&not, &spans)?;
    Ok(format!("{} spans", spans.len()))
}
