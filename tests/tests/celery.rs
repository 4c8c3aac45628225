//! Celery with Redis for broker: each task under the request that sent it, its work under the task, 64 requests at once.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use pitviper_tests::agent::Agent;
use pitviper_tests::celery::Shop;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Load, Reply};
use pitviper_tests::observation::{expect, lines};
use pitviper_tests::oracle::{self, Score, operation_key};
use pitviper_tests::runner::Suite;
use pitviper_tests::scenario::Attach;
use pitviper_tests::spans::Span;
use serde_json::Value;

/// Tasks of each load.
const TASKS: u64 = 300;
const PREFORK: &[&str] = &["--pool", "prefork", "--concurrency", "4"];
/// A process of the pool is replaced after five tasks.
const SHORT_LIVED: &[&str] = &["--pool", "prefork", "--concurrency", "4", "--max-tasks-per-child", "5"];

fn main() -> ExitCode {
    Suite::new()
        .case("prefork, early", |lab| perfect(lab, 1, PREFORK, "work", Attach::Early))
        .case("prefork, late", |lab| perfect(lab, 2, PREFORK, "work", Attach::Late))
        .case("prefork, pool processes replaced", |lab| perfect(lab, 3, SHORT_LIVED, "work", Attach::Early))
        .case("a task that sends a task", |lab| perfect(lab, 4, PREFORK, "parent", Attach::Early))
        .case("a task that runs an event loop", |lab| perfect(lab, 5, PREFORK, "loop", Attach::Late))
        .case("retries", retries)
        .case("attributes, failures, traceparent, own queues", attributes)
        .case("a message that is too long to be captured", large)
        .case("solo pool", |lab| honest(lab, 8, &["--pool", "solo"]))
        .case("threads pool", |lab| honest(lab, 9, &["--pool", "threads", "--concurrency", "4"]))
        .case("gevent pool", |lab| honest(lab, 10, &["--pool", "gevent", "--concurrency", "20"]))
        .main()
}

/// A shop under load, and what was seen of it.
fn observe(
    lab: &Lab,
    database: u8,
    pool: &[&str],
    route: &str,
    attach: Attach,
) -> Result<(Vec<Reply>, Vec<Span>)> {
    let shop = Shop::start(lab, database, pool, &[])?;
    let load = Load::new(shop.service().port());
    let mut before = 0;
    if attach == Attach::Late {
        before = 100;
        load.run(route, 1_000_000..1_000_000 + before).with_context(|| shop.service().log())?;
        shop.wait_for(before)?;
    }
    let collector = lab.collector()?;
    let agent = Agent::start(&shop.pids().each_ref().map(String::as_str), collector)?;
    let replies = load.run(route, 2_000_000..2_000_000 + TASKS).with_context(|| shop.service().log())?;
    shop.wait_for(before + TASKS)?;
    let (_, spans) = agent.finish(collector)?;
    Ok((replies, spans))
}

/// Every operation is under its own task, every task under its own request, and there is nothing else.
fn perfect(lab: &Lab, database: u8, pool: &[&str], route: &str, attach: Attach) -> Result<String> {
    let (replies, spans) = observe(lab, database, pool, route, attach)?;
    let score = oracle::score(&replies, &spans)?;
    score.assert_perfect()?;
    let tasks = joined(&replies, &spans)?;
    let noise: Vec<_> = spans.iter().filter(|span| span.is_client() && span.parent_id.is_empty()).collect();
    ensure!(
        noise.is_empty(),
        "commands of Celery\'s own: {:#?}",
        noise.iter().map(|span| span.line()).collect::<Vec<_>>()
    );
    Ok(format!("{}, {tasks} tasks", summary(&score)))
}

/// No operation is under another request; there may be orphans.
fn honest(lab: &Lab, database: u8, pool: &[&str]) -> Result<String> {
    let (replies, spans) = observe(lab, database, pool, "work", Attach::Early)?;
    let score = oracle::score(&replies, &spans)?;
    score.assert_honest()?;
    // The service's own half is whole.
    let sent = of_kind(&spans, SpanKind::Producer).count();
    ensure!(sent as u64 == TASKS, "{sent} of {TASKS} sendings");
    Ok(summary(&score))
}

fn summary(score: &Score) -> String {
    let Score { operations, correct, orphans, .. } = score;
    format!("{correct} of {operations} operations right, {} orphans", orphans.len())
}

fn of_kind(spans: &[Span], kind: SpanKind) -> impl Iterator<Item = &Span> {
    spans.iter().filter(move |span| span.kind == kind)
}

fn by_id(spans: &[Span]) -> HashMap<&str, &Span> {
    spans.iter().map(|span| (span.span_id.as_str(), span)).collect()
}

/// Every consumer is the child of the producer of its own message, and linked to it; every operation of a task is right
/// below a consumer, and all those below one consumer are of one request. Gives the number of consumers.
fn joined(replies: &[Reply], spans: &[Span]) -> Result<usize> {
    let by_id = by_id(spans);
    let mut numbers: HashMap<&str, u64> = HashMap::new();
    for span in spans.iter().filter(|span| span.is_client()) {
        let (Some(key), Some(parent)) = (operation_key(span), by_id.get(span.parent_id.as_str())) else {
            continue;
        };
        let n = key.split(':').nth(1).and_then(|n| n.parse().ok()).context("no number")?;
        if parent.kind == SpanKind::Consumer {
            let other = numbers.insert(&parent.span_id, n);
            ensure!(other.is_none_or(|other| other == n), "{n} and {other:?} are below {}", parent.line());
        }
    }
    let mut tasks = 0;
    for consumer in of_kind(spans, SpanKind::Consumer) {
        let producer = by_id
            .get(consumer.parent_id.as_str())
            .with_context(|| format!("no parent: {}", consumer.line()))?;
        ensure!(producer.kind == SpanKind::Producer, "{} is below {}", consumer.line(), producer.line());
        let id = consumer.attribute("messaging.message.id");
        ensure!(
            producer.attribute("messaging.message.id") == id,
            "{} is below {}",
            consumer.line(),
            producer.line()
        );
        let link = (producer.trace_id.clone(), producer.span_id.clone());
        ensure!(consumer.links == [link], "{:?} of {}", consumer.links, consumer.line());
        ensure!(numbers.contains_key(consumer.span_id.as_str()), "nothing below {}", consumer.line());
        tasks += 1;
    }
    for reply in replies {
        let id = field(reply, "id")?;
        let of =
            |kind| of_kind(spans, kind).filter(|span| span.attribute("messaging.message.id") == id).count();
        ensure!(
            of(SpanKind::Producer) >= 1 && of(SpanKind::Consumer) >= 1,
            "{} has no task {id}",
            reply.path
        );
    }
    Ok(tasks)
}

fn field(reply: &Reply, name: &str) -> Result<String> {
    let body: Value = serde_json::from_slice(&reply.body)?;
    let field = body.get(name).and_then(Value::as_str).with_context(|| format!("no {name} in {body}"))?;
    Ok(field.to_owned())
}

/// Some requests one after the other, and what was seen.
fn single(
    lab: &Lab,
    database: u8,
    environment: &[(&str, &str)],
    paths: &[&str],
    tasks: u64,
) -> Result<(Vec<Reply>, Vec<Span>)> {
    let shop = Shop::start(lab, database, PREFORK, environment)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&shop.pids().each_ref().map(String::as_str), collector)?;
    let mut connection = Connection::new(shop.service().port());
    let replies: Result<Vec<_>> = paths.iter().map(|path| connection.get(path, "")).collect();
    shop.wait_for(tasks)?;
    Ok((replies?, agent.finish(collector)?.1))
}

/// A task that is tried three times is three messages with one id: each try is below the one that asked for it.
fn retries(lab: &Lab) -> Result<String> {
    let (replies, spans) = single(lab, 6, &[], &["/again/1", "/again/2"], 2)?;
    oracle::score(&replies, &spans)?.assert_perfect()?;
    ensure!(joined(&replies, &spans)? == 6, "{:#?}", lines(&spans));
    let by_id = by_id(&spans);
    for reply in &replies {
        let id = field(reply, "id")?;
        let mut tries: Vec<_> = of_kind(&spans, SpanKind::Consumer)
            .filter(|span| span.attribute("messaging.message.id") == id)
            .collect();
        tries.sort_by_key(|span| span.start);
        for (nth, (span, state)) in tries.iter().zip(["RETRY", "RETRY", "SUCCESS"]).enumerate() {
            let retries = if nth == 0 { String::new() } else { nth.to_string() };
            expect(span, &[("celery.state", state), ("celery.retries", &retries)])?;
            ensure!(span.status != 2, "an error: {}", span.line());
            if let Some(before) = nth.checked_sub(1).and_then(|before| tries.get(before)) {
                let sent_by = by_id.get(span.parent_id.as_str()).map(|producer| &producer.parent_id);
                ensure!(sent_by == Some(&before.span_id), "not below the try before: {}", span.line());
            }
        }
    }
    Ok("2 tasks, 3 tries each".to_owned())
}

fn attributes(lab: &Lab) -> Result<String> {
    let paths = ["/work/1", "/fail/2", "/remote/3", "/plain/4"];
    let results = [("TEST_RESULTS", "BROKER")];
    let (replies, spans) = single(lab, 7, &results, &paths, 3)?;
    oracle::score(&replies, &spans)?.assert_perfect()?;
    let of = |kind, n: usize| -> Result<&Span> {
        let id = field(&replies[n], "id")?;
        let found: Vec<_> =
            of_kind(&spans, kind).filter(|span| span.attribute("messaging.message.id") == id).collect();
        ensure!(found.len() == 1, "{} spans of {}: {:#?}", found.len(), paths[n], lines(&spans));
        Ok(found[0])
    };
    let common = [
        ("messaging.system", "celery"),
        ("messaging.destination.name", "celery"),
        ("celery.task_name", "shop.work"),
    ];
    let (sent, run) = (of(SpanKind::Producer, 0)?, of(SpanKind::Consumer, 0)?);
    expect(sent, &common)?;
    expect(run, &common)?;
    let port = lab.redis().port().to_string();
    expect(
        sent,
        &[("messaging.operation.name", "send"), ("celery.action", "apply_async"), ("server.port", &port)],
    )?;
    expect(
        run,
        &[("messaging.operation.name", "process"), ("celery.action", "run"), ("celery.state", "SUCCESS")],
    )?;
    ensure!(
        (sent.name.as_str(), run.name.as_str()) == ("send celery", "process celery"),
        "{:#?}",
        lines(&spans)
    );
    ensure!(run.attribute("celery.hostname").starts_with("celery@"), "{:?}", run.attributes);
    ensure!(sent.resource.get("process.pid") != run.resource.get("process.pid"), "{:?}", run.resource);
    // The result is part of the task's run.
    let stored = spans.iter().filter(|span| span.parent_id == run.span_id);
    ensure!(
        stored.clone().any(|span| span.attribute("db.query.text").contains("celery-task-meta-")),
        "no result: {:#?}",
        stored.map(Span::line).collect::<Vec<_>>()
    );
    let failed = of(SpanKind::Consumer, 1)?;
    expect(failed, &[("celery.state", "FAILURE"), ("error.type", "KeyError")])?;
    ensure!(failed.status == 2, "not an error: {}", failed.line());
    let remote = of(SpanKind::Consumer, 2)?;
    ensure!(
        (&remote.trace_id, &remote.parent_id) == (&format!("{:032x}", 3), &format!("{:016x}", 3)),
        "{}",
        remote.line()
    );
    ensure!(remote.links == [(remote.trace_id.clone(), remote.parent_id.clone())], "{:?}", remote.links);
    let plain: Vec<_> =
        spans.iter().filter(|span| span.attribute("db.query.text").contains("k:4:")).collect();
    ensure!(plain.len() == 2 && plain.iter().all(|span| span.is_client()), "{:#?}", lines(&spans));
    Ok(format!("{} spans", spans.len()))
}

/// Name and id come first where a pool process reads its job, and last where the message is sent: such a task has no
/// sender that can be told, and what it does is its own all the same.
fn large(lab: &Lab) -> Result<String> {
    let (replies, spans) = single(lab, 11, &[], &["/large/1"], 1)?;
    let id = field(&replies[0], "id")?;
    let consumers: Vec<_> = of_kind(&spans, SpanKind::Consumer).collect();
    ensure!(
        consumers.len() == 1 && consumers[0].attribute("messaging.message.id") == id,
        "{:#?}",
        lines(&spans)
    );
    ensure!(consumers[0].parent_id.is_empty(), "{}", consumers[0].line());
    let work = spans.iter().find(|span| operation_key(span).as_deref() == Some("redis:1:0"));
    ensure!(work.is_some_and(|span| span.parent_id == consumers[0].span_id), "{:#?}", lines(&spans));
    Ok("a trace of its own".to_owned())
}
