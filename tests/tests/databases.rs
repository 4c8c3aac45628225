//! The corners of PostgreSQL and Redis, as real clients turn them: errors, pipelines, COPY, transactions, databases.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use pitviper_tests::lab::Lab;
use pitviper_tests::observation::{answered, expect, lines, observe, only, servers, trace_of, with_text};
use pitviper_tests::runner::Suite;
use pitviper_tests::service::UVICORN;
use pitviper_tests::spans::Span;

fn main() -> ExitCode {
    Suite::new()
        .case("postgres error", postgres_error)
        .case("postgres several statements", postgres_several)
        .case("postgres pipeline", postgres_pipeline)
        .case("postgres copy", postgres_copy)
        .case("postgres statement older than the daemon", postgres_prepared)
        .case("redis", redis)
        .main()
}

fn postgres_error(lab: &Lab) -> Result<String> {
    let (_, below) = trace_of(lab, "/postgres/error")?;
    let span = with_text(&below, "tag_error")?;
    expect(
        span,
        &[("db.system.name", "postgresql"), ("db.response.status_code", "42703"), ("error.type", "42703")],
    )?;
    ensure!(span.status == 2, "not an error: {}", span.line());
    expect(span, &[("server.port", &lab.postgres().port().to_string()), ("server.address", "127.0.0.1")])?;
    Ok(span.name.clone())
}

fn postgres_several(lab: &Lab) -> Result<String> {
    let (_, below) = trace_of(lab, "/postgres/several")?;
    with_text(&below, "tag_first")?;
    let span = with_text(&below, "tag_second")?;
    Ok(span.name.clone())
}

fn postgres_pipeline(lab: &Lab) -> Result<String> {
    let (server, below) = trace_of(lab, "/postgres/pipeline")?;
    for i in 0..5 {
        let span = with_text(&below, &format!("tag_pipe_{i}"))?;
        expect(span, &[("db.namespace", "postgres")])?;
        ensure!(span.status != 2, "{}", span.line());
        ensure!(span.start >= server.start && span.end <= server.end, "outside its request: {}", span.line());
    }
    Ok("5 statements".to_owned())
}

fn postgres_copy(lab: &Lab) -> Result<String> {
    let (_, below) = trace_of(lab, "/postgres/copy")?;
    for text in ["COPY copied FROM STDIN", "COPY copied TO STDOUT", "tag_after_copy"] {
        ensure!(with_text(&below, text)?.status != 2, "{text} failed");
    }
    Ok(format!("{} statements", below.len()))
}

fn postgres_prepared(lab: &Lab) -> Result<String> {
    let path = "/postgres/prepared";
    let spans = observe(
        lab,
        UVICORN,
        |connection| answered(&connection.get(path, "")?),
        |connection| (0..3).try_for_each(|_| answered(&connection.get(path, "")?)),
    )?;
    ensure!(servers(&spans, path).len() == 3, "{:#?}", lines(&spans));
    for server in servers(&spans, path) {
        let below = spans.iter().filter(|span| span.is_client() && span.parent_id == server.span_id);
        let statements = below.filter(|span| span.attribute("db.system.name") == "postgresql").count();
        ensure!(statements == 1, "{statements} statements, not 1, in {:#?}", lines(&spans));
    }
    Ok("3 requests".to_owned())
}

fn redis(lab: &Lab) -> Result<String> {
    let paths = ["/redis/pipeline", "/redis/multi", "/redis/error", "/redis/select"];
    let spans = observe(
        lab,
        UVICORN,
        |_| Ok(()),
        |connection| paths.iter().try_for_each(|path| answered(&connection.get(path, "")?)),
    )?;
    let below = |path: &str| -> Result<Vec<Span>> {
        let server = only(&spans, path)?;
        let children = spans.iter().filter(|span| span.is_client() && span.parent_id == server.span_id);
        Ok(children.cloned().collect())
    };
    let pipeline = below("/redis/pipeline")?;
    for i in 0..3 {
        let span = with_text(&pipeline, &format!("pipe:{i}"))?;
        expect(span, &[("db.system.name", "redis"), ("server.port", &lab.redis().port().to_string())])?;
    }
    let multi = below("/redis/multi")?;
    ensure!(
        multi.iter().any(|span| span.attribute("db.query.text").contains("multi:counter")),
        "{:?}",
        lines(&multi)
    );
    let error = below("/redis/error")?;
    let failed: Vec<_> = error.iter().filter(|span| span.status == 2).collect();
    ensure!(failed.len() == 1, "{:#?}", lines(&error));
    expect(failed[0], &[("error.type", "ERR"), ("db.response.status_code", "ERR")])?;
    let select = below("/redis/select")?;
    expect(with_text(&select, "selected:key")?, &[("db.namespace", "3")])?;
    Ok(format!("{} commands", pipeline.len() + multi.len() + error.len() + select.len()))
}
