//! Small observations for tests of the protocols' corners: some requests to `apps/protocol_app.py`, and the spans that they made.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agent::Agent;
use crate::lab::Lab;
use crate::load::{Connection, Reply};
use crate::service::{Server, Service, UVICORN};
use crate::spans::Span;

/// Runs `requests` against the protocol service while it is observed, and gives the spans.
pub fn observe(
    lab: &Lab,
    server: Server,
    before: impl FnOnce(&mut Connection) -> Result<()>,
    requests: impl FnOnce(&mut Connection) -> Result<()>,
) -> Result<Vec<Span>> {
    let service = Service::start(lab, lab.python(), "protocol_app", server)?;
    let mut connection = Connection::new(service.port());
    before(&mut connection)?;
    let collector = lab.collector()?;
    let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
    requests(&mut connection).with_context(|| service.log())?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(agent.finish(collector)?.1)
}

/// Requests one path and gives the spans of its trace: the server span, and the client spans below it.
pub fn trace_of(lab: &Lab, path: &str) -> Result<(Span, Vec<Span>)> {
    let spans = observe(lab, UVICORN, |_| Ok(()), |connection| answered(&connection.get(path, "")?))?;
    let server = only(&spans, path)?.clone();
    let below =
        spans.into_iter().filter(|span| span.is_client() && span.parent_id == server.span_id).collect();
    Ok((server, below))
}

/// Fails unless the status is 200.
pub fn answered(reply: &Reply) -> Result<()> {
    ensure!(reply.status == 200, "{}: {} {}", reply.path, reply.status, String::from_utf8_lossy(&reply.body));
    Ok(())
}

/// The server spans of a path.
pub fn servers<'a>(spans: &'a [Span], path: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.is_server() && span.attribute("url.path") == path).collect()
}

/// The one server span of a path.
pub fn only<'a>(spans: &'a [Span], path: &str) -> Result<&'a Span> {
    let found = servers(spans, path);
    ensure!(found.len() == 1, "{} server spans for {path}: {:#?}", found.len(), lines(spans));
    Ok(found[0])
}

/// The spans in short, for messages.
pub fn lines(spans: &[Span]) -> Vec<String> {
    spans.iter().map(Span::line).collect()
}

/// Fails unless the span has these attributes.
pub fn expect(span: &Span, attributes: &[(&str, &str)]) -> Result<()> {
    for (key, value) in attributes {
        ensure!(span.attribute(key) == *value, "{key} is not {value:?} in {:#?}", span.attributes);
    }
    Ok(())
}

/// The one span whose statement or command contains `part`.
pub fn with_text<'a>(spans: &'a [Span], part: &str) -> Result<&'a Span> {
    let found: Vec<_> = spans.iter().filter(|span| span.attribute("db.query.text").contains(part)).collect();
    ensure!(found.len() == 1, "{} spans with {part:?} in {:#?}", found.len(), lines(spans));
    Ok(found[0])
}
