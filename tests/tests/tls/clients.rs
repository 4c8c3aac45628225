//! One process with several OpenSSLs that come one by one, connections that end in every way, and what else is special about clients.

use std::fs;
use std::ops::Range;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::collector::Collector;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load, Reply};
use pitviper_tests::oracle::{self, operation_key};
use pitviper_tests::packages;
use pitviper_tests::process::wait_until;
use pitviper_tests::python::run;
use pitviper_tests::service::{Service, apps};
use pitviper_tests::sink::Sink;
use pitviper_tests::spans::Span;

use super::judge_peers;

/// `tls_clients`, and a daemon that tells what it finds.
struct Clients<'a> {
    collector: &'a Collector,
    service: Service,
    agent: Agent,
    connection: Connection,
}

impl<'a> Clients<'a> {
    fn start(lab: &'a Lab, argument: Option<&str>) -> Result<Self> {
        let environment = lab.encrypted()?.environment();
        let python = lab.python().frameworks()?.script("python");
        let service = Service::start_command(lab, "tls_clients", |port| {
            let mut command = Command::new(python);
            command.arg(apps().join("tls_clients.py")).arg(port).args(argument).envs(environment);
            command
        })?;
        let collector = lab.collector()?;
        let agent = Agent::start(&["--pid", &service.pid().to_string(), "-v"], collector)?;
        let connection = Connection::new(service.port());
        Ok(Self { collector, service, agent, connection })
    }

    fn get(&mut self, route: &str, n: u64) -> Result<Reply> {
        let reply = self.connection.get(&format!("/{route}/{n}"), "")?;
        ensure!(reply.status == 200, "{} {}", reply.status, self.service.log());
        Ok(reply)
    }

    /// Waits until the daemon has found libraries with these words in their paths. It finds a library a moment after the
    /// process has loaded it.
    fn wait_for(&self, libraries: &[&str]) -> Result<()> {
        let found = |stderr: &str, library: &str| {
            stderr.lines().any(|line| line.contains(library) && line.ends_with("encrypts is traced"))
        };
        wait_until("the libraries are found", Duration::from_secs(60), || {
            let stderr = self.agent.stderr();
            libraries.iter().all(|library| found(&stderr, library)).then_some(())
        })
        .with_context(|| self.agent.stderr())
    }

    /// Gives what the daemon said, and the spans.
    fn finish(self) -> Result<(String, Vec<Span>)> {
        let (finished, spans) = self.agent.finish(self.collector)?;
        Ok((finished.stderr, spans))
    }
}

/// Four OpenSSLs in one process, one of them known by its symbol table alone; servers that are called by a number, and by a name that only the handshake tells.
pub(super) fn wheels(lab: &Lab) -> Result<String> {
    let mut clients = Clients::start(lab, None)?;
    // The second one makes the thread one that has run an event loop.
    clients.get("wheels", 1_000_000)?;
    clients.get("named", 1_000_001)?;
    clients.wait_for(&[
        "/libssl.so",
        "/psycopg2_binary.libs/libssl",
        "/psycopg_binary.libs/libssl",
        "/cryptography/hazmat/bindings/_rust",
    ])?;
    let numbered = (0..10).map(|n| clients.get("wheels", n)).collect::<Result<Vec<_>>>()?;
    let named = (100..110).map(|n| clients.get("named", n)).collect::<Result<Vec<_>>>()?;
    let port = clients.service.port();
    let (_, spans) = clients.finish()?;
    let score = oracle::score(&[numbered, named].concat(), &spans)?;
    score.assert_perfect()?;
    let of = |range: Range<u64>| -> Vec<Span> {
        spans.iter().filter(|span| number(span).is_some_and(|n| range.contains(&n))).cloned().collect()
    };
    let (by_number, by_name) = (of(0..10), of(100..110));
    judge_peers(&by_number, port, lab.encrypted()?, false)?;
    let mut unknown = 0;
    for (spans, expected) in [(&by_name, "localhost"), (&by_number, "127.0.0.1")] {
        for span in spans {
            let (address, peer) = (span.attribute("server.address"), span.attribute("network.peer.address"));
            unknown += usize::from(peer.is_empty());
            let right = address == expected && peer == "127.0.0.1";
            ensure!(right || peer.is_empty(), "{address} at {peer}: {} {:?}", span.line(), span.attributes);
        }
    }
    ensure!(unknown * 100 <= score.operations, "{unknown} of {} without a peer", score.operations);
    Ok(format!("{} operations, {} of them by name", score.operations, by_name.len()))
}

/// The request that a client span is tagged with.
fn number(span: &Span) -> Option<u64> {
    operation_key(span)?.split(':').nth(1)?.parse().ok()
}

/// TLS ends before its socket and the socket goes on in the clear; bodies that end with the connection; one direction that ends
/// before the other.
pub(super) fn ends(lab: &Lab) -> Result<String> {
    let mut clients = Clients::start(lab, None)?;
    clients.get("late", 1_000_000)?;
    clients.wait_for(&["/libssl.so"])?;
    let replies = (0..20).map(|n| clients.get("ends", n)).collect::<Result<Vec<_>>>()?;
    let (_, spans) = clients.finish()?;
    let score = oracle::score(&replies, &spans)?;
    score.assert_perfect()?;
    for span in spans.iter().filter(|span| number(span).is_some_and(|n| n < 20)) {
        let in_the_clear = ["/2", "/3"].iter().any(|end| span.attribute("url.full").ends_with(end));
        let scheme = if in_the_clear { "http://" } else { "https://" };
        let right = span.attribute("url.full").starts_with(scheme)
            && !span.attribute("network.peer.port").is_empty()
            && span.attribute("error.type").is_empty();
        ensure!(right, "{} {:?}", span.line(), span.attributes);
    }
    Ok(format!("{} operations", score.operations))
}

/// Exports OpenSSL's functions, and nobody can put a probe on them: they begin with a breakpoint instruction, which the kernel
/// refuses (`is_trap_insn` in kernel/events/uprobes.c). They are never called.
const ODD: &str = r#"
#define ODD(name) __asm__(".text\n.globl " #name "\n.type " #name ",@function\n" #name ":\n" \
    "int3\nret\n.size " #name ",.-" #name "\n");
ODD(SSL_read) ODD(SSL_write) ODD(SSL_do_handshake) ODD(SSL_free)
"#;

/// A process that is traced loads OpenSSL, and what it does with it from then on is seen. One library that takes no probes costs one
/// message and nothing else.
pub(super) fn loaded_later(lab: &Lab) -> Result<String> {
    packages::ensure_debian(&["gcc", "libc6-dev"], || fs::exists("/usr/bin/cc").unwrap_or(false))?;
    let source = lab.directory().join("odd.c");
    fs::write(&source, ODD)?;
    let library = lab.directory().join("libodd.so");
    run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source))?;
    let mut clients = Clients::start(lab, library.to_str())?;
    for n in 0..20 {
        clients.get("odd", n)?;
    }
    let port = clients.service.port();
    let (stderr, spans) = clients.finish()?;
    let told: Vec<_> = stderr.lines().filter(|line| line.contains(" is not seen: ")).collect();
    ensure!(told.len() == 1 && told[0].contains("libodd.so"), "not once: {stderr}");
    let calls = spans.iter().filter(|span| operation_key(span).is_some_and(|key| key.starts_with("http:")));
    let numbers: Vec<_> = calls.filter_map(operation_key).collect();
    // The first one may have begun before its library was found.
    ensure!(numbers.len() >= 19, "{} of 20 calls: {numbers:?}", numbers.len());
    judge_peers(&spans, port, lab.encrypted()?, false)?;
    Ok(format!("{} of 20 calls, {}", numbers.len(), told[0]))
}

/// An SDK that exports by HTTP over TLS is found by its exports as one that does so in the clear.
pub(super) fn exporter(lab: &Lab) -> Result<String> {
    const LEFT: &str = "is left to the OpenTelemetry SDK in it: it exports spans of its own";
    let certificates = &lab.encrypted()?.certificates;
    let sink = Sink::start_encrypted(certificates)?;
    let venv = lab.python().instrumented()?;
    let service = Service::start_command(lab, "relay", |port| {
        let mut command = Command::new(venv.script("uvicorn"));
        command.args(["--port", port, "--log-level", "warning", "relay_app:app"]);
        command.env("TEST_SDK", "http").env("OTEL_BSP_SCHEDULE_DELAY", "300");
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://localhost:{}", sink.port()));
        command.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &certificates.authority);
        command.env("REQUESTS_CA_BUNDLE", &certificates.authority);
        command
    })?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    let load = Load::new(service.port());
    load.run("inner", 0..20)?;
    wait_until("pitviper finds the SDK", Duration::from_secs(30), || {
        agent.stderr().contains(LEFT).then_some(())
    })
    .with_context(|| format!("{}{}", agent.stderr(), service.log()))?;
    load.run("inner", 100..140)?;
    let (_, spans) = agent.finish(collector)?;
    let after =
        spans.iter().filter(|span| span.attribute("url.path").starts_with("/inner/1")).filter(|span| {
            span.is_server() && pitviper_tests::load::number_of(span.attribute("url.path")) >= 100
        });
    ensure!(after.count() == 0, "requests doubled after the SDK was found");
    ensure!(!sink.posted().is_empty(), "the SDK has exported nothing");
    Ok(format!("{} spans before the first export", spans.len()))
}
