//! Canaries: what a service handles in confidence is in nothing that the collector receives, and not on the console.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::celery::Shop;
use pitviper_tests::collector::Transport;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::Connection;
use pitviper_tests::postgres::{CLEARTEXT_PASSWORD, PASSWORD};
use pitviper_tests::redis::ACL_PASSWORD;
use pitviper_tests::runner::Suite;
use pitviper_tests::service::{Server, Service};
use pitviper_tests::spans::Span;
use serde_json::json;

/// Secrets by the place where the service uses them.
const SECRETS: &[(&str, &str)] = &[
    ("literal", "canary-literal-51fa"),
    ("parameter", "canary-parameter-0e77"),
    ("error", "canary-error-b9d2"),
    ("cleartext", CLEARTEXT_PASSWORD),
    ("redis", "canary-value-66c1"),
    ("acl", ACL_PASSWORD),
    ("bearer", "canary-bearer-a204"),
    ("cookie", "canary-cookie-3d9e"),
    ("signature", "canary-signature-f118"),
    ("userinfo", "canary-userinfo-7a60"),
    ("answer", "canary-answer-c4c3"),
];

fn main() -> ExitCode {
    let asyncio = Server::Uvicorn { event_loop: "asyncio", http: "h11" };
    let uvloop = Server::Uvicorn { event_loop: "uvloop", http: "httptools" };
    Suite::new()
        .case("asyncio", move |lab| nothing_leaks(lab, asyncio, false))
        .case("uvloop", move |lab| nothing_leaks(lab, uvloop, false))
        .case("asyncio, encrypted", move |lab| nothing_leaks(lab, asyncio, true))
        .case("uvloop, encrypted", move |lab| nothing_leaks(lab, uvloop, true))
        .case("celery", no_task_leaks)
        .main()
}

/// `encrypted`: the service and its back ends speak TLS.
fn nothing_leaks(lab: &Lab, server: Server, encrypted: bool) -> Result<String> {
    let app = "protocol_app";
    let (service, mut connection) = if encrypted {
        let back_ends = lab.encrypted()?;
        let service = Service::start_encrypted(lab, lab.python(), app, server, back_ends, &[])?;
        let connection = Connection::encrypted(service.port(), back_ends.certificates.client()?);
        (service, connection)
    } else {
        let service = Service::start(lab, lab.python(), app, server)?;
        let connection = Connection::new(service.port());
        (service, connection)
    };
    let collector = lab.collector()?;
    let pid = service.pid().to_string();
    let agent = Agent::start_with(&["--pid", &pid, "--console"], &collector.environment(Transport::Grpc))?;
    let secrets: serde_json::Map<_, _> =
        SECRETS.iter().map(|(place, secret)| (place.to_string(), json!(secret))).collect();
    let body = serde_json::to_string(&secrets)?;
    let request = format!(
        "POST /canary?X-Goog-Signature=canary-query-signature-9b1f HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         authorization: Basic canary-basic-5e5e\r\ncookie: id=canary-incoming-cookie-8c8c\r\n\
         content-type: application/json\r\n\r\n{body}",
        body.len()
    );
    for _ in 0..5 {
        let reply = connection.exchange("/canary", request.as_bytes())?;
        ensure!(reply.status == 200, "{} {}", reply.status, service.log());
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (finished, spans) = agent.finish(collector)?;
    // The test is worth nothing unless all of it was seen.
    for text in ["canary_literal", "canary_parameter", "canary_error", "canary_plain", "canary:key"] {
        let seen = spans.iter().filter(|span| span.attribute("db.query.text").contains(text)).count();
        ensure!(seen >= 5, "{seen} spans with {text}");
    }
    let calls = spans.iter().filter(|span| span.attribute("url.full").contains("/up/canary")).count();
    ensure!(calls == 10, "{calls} of 10 calls");
    ensure!(finished.stdout.contains("canary_literal"), "nothing on the console: {}", finished.stdout);
    let further =
        ["canary-basic-5e5e", "canary-incoming-cookie-8c8c", "canary-query-signature-9b1f", PASSWORD];
    for secret in SECRETS.iter().map(|(_, secret)| *secret).chain(further) {
        ensure!(!contains(&collector.bytes(), secret), "exported: {secret}");
        ensure!(!finished.stdout.contains(secret), "on the console: {secret}");
        ensure!(!finished.stderr.contains(secret), "on stderr: {secret}");
    }
    Ok(format!("{} spans", spans.len()))
}

/// What a task gets, gives back and raises goes through a queue, a pipe and a result back end.
fn no_task_leaks(lab: &Lab) -> Result<String> {
    const ROUNDS: u64 = 5;
    let pool = ["--pool", "prefork", "--concurrency", "2", "-E"];
    let shop = Shop::start(lab, 12, &pool, &[("TEST_RESULTS", "BROKER")])?;
    let collector = lab.collector()?;
    let mut arguments = vec!["--console"];
    let pids = shop.pids();
    arguments.extend(pids.iter().map(String::as_str));
    let agent = Agent::start_with(&arguments, &collector.environment(Transport::Grpc))?;
    let mut connection = Connection::new(shop.service().port());
    for n in 0..ROUNDS {
        for path in [format!("/secret/{n}"), format!("/again/{n}")] {
            let reply = connection.get(&path, "")?;
            ensure!(reply.status == 200, "{} {}", reply.status, shop.service().log());
        }
    }
    shop.wait_for(ROUNDS * 4)?;
    let (finished, spans) = agent.finish(collector)?;
    // The test is worth nothing unless all of it was seen.
    let runs = |task: &str, state: &str| {
        let of = |span: &&Span| {
            span.attribute("celery.task_name") == task && span.attribute("celery.state") == state
        };
        spans.iter().filter(of).count() as u64
    };
    ensure!(runs("shop.secret", "SUCCESS") == 2 * ROUNDS, "{} runs", runs("shop.secret", "SUCCESS"));
    ensure!(runs("shop.fail", "FAILURE") == ROUNDS, "{} failures", runs("shop.fail", "FAILURE"));
    ensure!(runs("shop.again", "RETRY") == 2 * ROUNDS, "{} retries", runs("shop.again", "RETRY"));
    let stored = spans.iter().filter(|span| span.attribute("db.query.text").contains("celery-task-meta-"));
    ensure!(stored.count() as u64 >= 3 * ROUNDS, "the results were not seen");
    ensure!(finished.stdout.contains("process celery"), "nothing on the console: {}", finished.stdout);
    for secret in [
        "canary-task-argument-60e2",
        "canary-task-large-b3a1",
        "canary-raised-77f0",
        "canary-retry-19ab",
        "password",
    ] {
        ensure!(!contains(&collector.bytes(), secret), "exported: {secret}");
        ensure!(!finished.stdout.contains(secret), "on the console: {secret}");
        ensure!(!finished.stderr.contains(secret), "on stderr: {secret}");
    }
    Ok(format!("{} spans", spans.len()))
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
