//! `--publish-context`: what is in `traces_ctx_v1` while a thread serves a request is what is exported afterwards.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::{self, Agent};
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load};
use pitviper_tests::observation::{answered, lines};
use pitviper_tests::packages;
use pitviper_tests::process::wait_until;
use pitviper_tests::runner::{Suite, skip};
use pitviper_tests::service::{Server, Service, UVICORN};
use serde_json::Value;

const BPF: &str = "/sys/fs/bpf";
const MAP: &str = "/sys/fs/bpf/otel/traces_ctx_v1";
const OPTION: &str = "--publish-context";
const THREADS: Server = Server::Gunicorn { class: "gthread", workers: 1, threads: 4 };

fn main() -> ExitCode {
    Suite::new()
        .case("no BPF file system", not_mounted)
        .case("threads", threads)
        .case("event loops are not published", event_loops)
        .case("a map that is there", shared)
        .main()
}

/// The BPF file system, unmounted on drop if it was not there.
struct Mounted(bool);

impl Mounted {
    fn ensure() -> Result<Self> {
        packages::ensure_debian(&["bpftool"], || Path::new("/usr/sbin/bpftool").exists())?;
        if is_mounted()? {
            return Ok(Self(false));
        }
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf", BPF]).status()?.success();
        if mounted { Ok(Self(true)) } else { Err(skip("no BPF file system can be mounted")) }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.0 {
            let _ = Command::new("umount").arg(BPF).status();
        }
    }
}

fn is_mounted() -> Result<bool> {
    Ok(std::fs::read_to_string("/proc/self/mounts")?
        .lines()
        .any(|line| line.starts_with(&format!("bpf {BPF} "))))
}

fn bpftool(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("/usr/sbin/bpftool").args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "bpftool {arguments:?}: {said}");
    Ok(output.stdout)
}

/// An entry: process, thread, trace id and span id.
type Entry = (u32, u32, String, String);

/// What the map holds, read by another program than ours.
fn entries() -> Result<Vec<Entry>> {
    let dump: Value = serde_json::from_slice(&bpftool(&["-j", "map", "dump", "pinned", MAP])?)?;
    let bytes = |value: &Value| -> Vec<u8> {
        let digits = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        digits.filter_map(|digits| u8::from_str_radix(digits.trim_start_matches("0x"), 16).ok()).collect()
    };
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    dump.as_array()
        .context("not a list")?
        .iter()
        .map(|entry| {
            let (key, value) = (bytes(&entry["key"]), bytes(&entry["value"]));
            ensure!(key.len() == 8 && value.len() == 24, "{entry}");
            let half = |at: usize| u32::from_ne_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
            Ok((half(4), half(0), hexadecimal(&value[..16]), hexadecimal(&value[16..])))
        })
        .collect()
}

fn not_mounted(lab: &Lab) -> Result<String> {
    if is_mounted()? {
        return Err(skip("there is one"));
    }
    let service = Service::start(lab, lab.python(), "pausing_app", THREADS)?;
    let finished = agent::run_to_end(&["run", OPTION, "--pid", &service.pid().to_string()])?;
    ensure!(finished.status.code() == Some(2), "{}: {}", finished.status, finished.stderr);
    ensure!(finished.stderr.contains("mount -t bpf bpf /sys/fs/bpf"), "{}", finished.stderr);
    Ok(finished.stderr.trim().to_owned())
}

fn threads(lab: &Lab) -> Result<String> {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let _mounted = Mounted::ensure()?;
    let service = Service::start(lab, lab.python(), "pausing_app", THREADS)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&[OPTION, "--pid", &service.pid().to_string()], collector)?;
    let port = service.port();
    let get = move |path: &str, headers: &str| -> Result<(u32, u32)> {
        let reply = Connection::new(port).get(path, headers)?;
        answered(&reply)?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let (pid, tid) = text.split_once(' ').with_context(|| text.clone())?;
        Ok((pid.parse()?, tid.parse()?))
    };
    // The process has to show that it answers by the threads that read.
    for n in 0..4 {
        get(&format!("/warm/{n}"), "")?;
    }
    thread::sleep(Duration::from_millis(200));
    ensure!(entries()?.is_empty(), "{:?}", entries()?);

    let header = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\n");
    let mut published = Vec::new();
    for (path, headers) in [("/pause/1500", ""), ("/pause/1501", header.as_str())] {
        let headers = headers.to_owned();
        let request = thread::spawn(move || get(path, &headers));
        let found = wait_until("an entry", Duration::from_secs(1), || {
            entries().ok().and_then(|entries| entries.into_iter().next())
        })?;
        ensure!(!request.is_finished(), "too late");
        let thread = request.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        // The kernel side took it away before the answer was out.
        let rest = entries()?;
        ensure!(rest.is_empty(), "still there after the answer: {rest:?}");
        ensure!((found.0, found.1) == thread, "{found:?} is not thread {thread:?}");
        published.push((path, found));
    }
    // Two at once are two.
    let both: Vec<_> = [2500, 2501]
        .map(|time| thread::spawn(move || get(&format!("/pause/{time}"), "")))
        .into_iter()
        .collect();
    wait_until("two entries", Duration::from_secs(2), || entries().ok().filter(|all| all.len() == 2))?;
    for request in both {
        request.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    ensure!(entries()?.is_empty());

    let (_, spans) = agent.finish(collector)?;
    for (path, (_, _, trace, span)) in &published {
        let exported = spans.iter().find(|it| it.is_server() && it.attribute("url.path") == *path);
        let exported = exported.with_context(|| format!("no span of {path} in {:#?}", lines(&spans)))?;
        ensure!(
            (&exported.trace_id, &exported.span_id) == (trace, span),
            "{published:?}: {}",
            exported.line()
        );
    }
    ensure!(published[1].1.2 == TRACE, "{published:?}");
    ensure!(!Path::new(MAP).exists() && !Path::new("/sys/fs/bpf/otel").exists(), "the map was left behind");
    Ok("the ids of the exported spans".to_owned())
}

fn event_loops(lab: &Lab) -> Result<String> {
    let _mounted = Mounted::ensure()?;
    let service = Service::start(lab, lab.python(), "fastapi_app", UVICORN)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&[OPTION, "--pid", &service.pid().to_string()], collector)?;
    let load = Load::new(service.port());
    let looks = thread::scope(|scope| -> Result<usize> {
        let requests = scope.spawn(|| load.run("sse", 0..200));
        let mut looks = 0;
        while !requests.is_finished() {
            let found = entries()?;
            ensure!(found.is_empty(), "{found:?}");
            looks += 1;
        }
        requests.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        Ok(looks)
    })?;
    ensure!(looks > 2, "only {looks} looks");
    agent.finish(collector)?;
    Ok(format!("nothing in {looks} looks"))
}

fn shared(lab: &Lab) -> Result<String> {
    let _mounted = Mounted::ensure()?;
    let create = |value: &str| -> Result<()> {
        std::fs::create_dir_all("/sys/fs/bpf/otel")?;
        let arguments = [
            "map", "create", MAP, "type", "lru_hash", "key", "8", "value", value, "entries", "64", "name",
            "x",
        ];
        bpftool(&arguments).map(drop)
    };
    let service = Service::start(lab, lab.python(), "pausing_app", THREADS)?;
    let pid = service.pid().to_string();
    create("8")?;
    let finished = agent::run_to_end(&["run", OPTION, "--pid", &pid])?;
    std::fs::remove_file(MAP)?;
    ensure!(finished.status.code() == Some(2) && finished.stderr.contains(MAP), "{}", finished.stderr);

    create("24")?;
    let collector = lab.collector()?;
    let agent = Agent::start(&[OPTION, "--pid", &pid], collector)?;
    let mut connection = Connection::new(service.port());
    for n in 0..4 {
        answered(&connection.get(&format!("/warm/{n}"), "")?)?;
    }
    let port = service.port();
    let request = thread::spawn(move || Connection::new(port).get("/pause/1000", ""));
    let found =
        wait_until("an entry", Duration::from_secs(1), || entries().ok().filter(|all| all.len() == 1));
    request.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    agent.finish(collector)?;
    let left = Path::new(MAP).exists();
    std::fs::remove_file(MAP)?;
    std::fs::remove_dir("/sys/fs/bpf/otel")?;
    found?;
    ensure!(left, "a map of somebody else's was removed");
    Ok("used, and left there".to_owned())
}
