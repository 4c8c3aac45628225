//! How the daemon starts, ends and refuses: bad input, signals, what a kill leaves behind, and `pitviper ps`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{self, Agent};
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load};
use pitviper_tests::process::{send_signal, wait_until};
use pitviper_tests::runner::Suite;
use pitviper_tests::service::{Service, UVICORN};

fn main() -> ExitCode {
    Suite::new()
        .case("no such pid", |_| refused(&["run", "--pid", "4194303"], "4194303"))
        .case("not Python", |lab| refused(&["run", "--pid", &lab.redis().pid().to_string()], "Python"))
        .case("no such cgroup", |_| {
            refused(&["run", "--cgroup", "/sys/fs/cgroup/no-such-group"], "no-such-group")
        })
        .case("bad option values", bad_values)
        .case("not root", not_root)
        .case("SIGTERM under load", |lab| signal_under_load(lab, libc::SIGTERM))
        .case("SIGINT under load", |lab| signal_under_load(lab, libc::SIGINT))
        .case("SIGKILL leaves nothing behind", killed)
        .case("two daemons at once", two_at_once)
        .case("read-only tracing files", read_only_tracing)
        .case("ps", ps)
        .main()
}

/// Exit code 2, and one sentence that names the culprit.
fn refused(arguments: &[&str], culprit: &str) -> Result<String> {
    let finished = agent::run_to_end(arguments)?;
    ensure!(finished.status.code() == Some(2), "{}: {}", finished.status, finished.stderr);
    let lines: Vec<_> = finished.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(
        lines.len() == 1 && lines[0].contains(culprit),
        "not one sentence about {culprit}:\n{}",
        finished.stderr
    );
    Ok(lines[0].to_owned())
}

fn bad_values(_lab: &Lab) -> Result<String> {
    for arguments in
        [["run", "--pid", "many"], ["run", "--port", "70000"], ["run", "--exe", "[a"], ["run", "--pid", "0"]]
    {
        let finished = agent::run_to_end(&arguments)?;
        ensure!(finished.status.code() == Some(2), "{arguments:?}: {}: {}", finished.status, finished.stderr);
        ensure!(finished.stderr.contains(arguments[2]), "{arguments:?} is not named: {}", finished.stderr);
    }
    Ok("4 values".to_owned())
}

fn not_root(lab: &Lab) -> Result<String> {
    let copy = lab.directory().join("pitviper");
    fs::copy(agent::binary()?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy).arg("run");
    let output = command.output().context("failed to run setpriv")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "{}: {said}", output.status);
    ensure!(
        said.trim_end().lines().count() == 1 && said.contains("root"),
        "not one sentence about root: {said}"
    );
    Ok(said.trim_end().to_owned())
}

fn signal_under_load(lab: &Lab, signal: i32) -> Result<String> {
    let service = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let collector = lab.collector()?;
    let mut agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let load = Load::new(service.port());
    let stop = AtomicBool::new(false);
    let finished = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| -> Result<u64> {
            let mut next = 0;
            while !stop.load(Ordering::Relaxed) {
                load.run("work", next..next + 64)?;
                next += 64;
            }
            Ok(next)
        });
        std::thread::sleep(Duration::from_secs(2));
        send_signal(agent.pid(), signal);
        let finished = agent.wait(Duration::from_secs(5));
        stop.store(true, Ordering::Relaxed);
        traffic.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        finished
    })?;
    ensure!(finished.status.code() == Some(0), "{}: {}", finished.status, finished.stderr);
    let (exported, _) = finished.counts()?;
    ensure!(exported > 0, "{}", finished.stderr);
    collector.wait_for(exported)?;
    Ok(format!("{exported} spans, {:?}", finished.took))
}

fn killed(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let load = Load::new(service.port());
    load.run("work", 0..64)?;
    let pinned = || fs::read_dir("/sys/fs/bpf").map_or(0, Iterator::count);
    let pinned_before = pinned();
    // Nothing of this daemon's may reach the collector late, among what the next one sends.
    let mut agent = Agent::start_with(
        &["--pid", &service.pid().to_string()],
        &[("OTEL_TRACES_EXPORTER", "none".to_owned())],
    )?;
    load.run("work", 100..200)?;
    let programs = programs_of(agent.pid())?;
    ensure!(!programs.is_empty(), "the daemon holds no BPF programs");
    let probes = format!("pitviper_{}/", agent.pid());
    ensure!(uprobes()?.contains(&probes), "the daemon has defined no probes");
    send_signal(agent.pid(), libc::SIGKILL);
    wait_until("the killed daemon ends", Duration::from_secs(10), || agent.ended())?;
    ensure!(pinned() == pinned_before, "files were left in /sys/fs/bpf");
    let loaded = |id: &u32| {
        let output = Command::new("bpftool").args(["prog", "show", "id", &id.to_string()]).output();
        output.is_ok_and(|output| output.status.success())
    };
    wait_until("the kernel has freed the programs", Duration::from_secs(20), || {
        (!programs.iter().any(loaded)).then_some(())
    })?;
    wait_until("the probes are gone", Duration::from_secs(20), || {
        uprobes().is_ok_and(|defined| !defined.contains(&probes)).then_some(())
    })?;
    load.run("work", 300..400).context("the service does not answer any more")?;
    let collector = lab.collector()?;
    let again = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let replies = load.run("work", 500..600)?;
    let (_, spans) = again.finish(collector)?;
    pitviper_tests::oracle::score(&replies, &spans)?.assert_perfect()?;
    Ok(format!("{} programs were freed", programs.len()))
}

/// The definitions of uprobes in the kernel, by a mount of its tracing files that only the one command sees.
fn uprobes() -> Result<String> {
    let script = "mount -t tracefs none /sys/kernel/tracing && cat /sys/kernel/tracing/uprobe_events";
    let output = Command::new("unshare").args(["--mount", "sh", "-c", script]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Ids of the BPF programs that a process holds, through links or directly.
fn programs_of(pid: u32) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

/// Two daemons on two services of one interpreter file do not disturb each other.
fn two_at_once(lab: &Lab) -> Result<String> {
    let collector = lab.collector()?;
    let services = [0, 1].map(|_| Service::start(lab, lab.python(), "fastapi_app", UVICORN));
    let [first, second] = services;
    let (first, second) = (first?, second?);
    let agents = [
        Agent::start(&["--pid", &first.pid().to_string()], collector)?,
        Agent::start(&["--pid", &second.pid().to_string()], collector)?,
    ];
    let mut replies = Load::new(first.port()).run("work", 0..100)?;
    replies.extend(Load::new(second.port()).run("work", 200..300)?);
    let mut exported = 0;
    for agent in agents {
        exported += agent.stop()?.counts()?.0;
    }
    let spans = collector.wait_for(exported)?;
    pitviper_tests::oracle::score(&replies, &spans)?.assert_perfect()?;
    Ok(format!("{exported} spans"))
}

/// In a container the kernel's tracing files may be there and not to be written; forks are traced from their start all the same.
fn read_only_tracing(lab: &Lab) -> Result<&'static str> {
    let service = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let script = "mount -t tracefs -o ro none /sys/kernel/tracing && exec \"$0\" run --pid \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(agent::binary()?).arg(service.pid().to_string());
    let mut daemon = command.stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(daemon.stderr.take().context("no stderr")?).lines();
    let (mut said, mut inheritable) = (Vec::new(), false);
    while let Some(line) = lines.next().transpose()? {
        let ready = line.contains("pitviper: ready");
        said.push(line);
        if ready {
            inheritable = uprobes()?.contains(&format!("pitviper_{}/", daemon.id()));
            send_signal(daemon.id(), libc::SIGTERM);
        }
    }
    let status = daemon.wait()?;
    ensure!(inheritable, "no probes that a fork inherits: {said:?}");
    ensure!(status.success(), "{status}: {said:?}");
    ensure!(!said.iter().any(|line| line.contains("warning")), "{said:?}");
    Ok("no warning")
}

fn ps(lab: &Lab) -> Result<String> {
    let service = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    Connection::new(service.port()).get("/work/1", "")?;
    let finished = agent::run_to_end(&["ps"])?;
    ensure!(finished.status.success(), "{}: {}", finished.status, finished.stderr);
    let pid = service.pid().to_string();
    let line = finished.stdout.lines().find(|line| line.split_whitespace().any(|word| word == pid));
    let line = line.with_context(|| format!("no line with pid {pid}:\n{}", finished.stdout))?;
    for part in ["3.11", "uvicorn", "fastapi_app"] {
        ensure!(line.contains(part), "no {part} in {line}");
    }
    ensure!(
        !finished.stdout.contains(&lab.redis().pid().to_string()),
        "Redis is no Python:\n{}",
        finished.stdout
    );
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}
