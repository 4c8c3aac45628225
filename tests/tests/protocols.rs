//! The corners of HTTP, PostgreSQL and Redis, as real servers and clients turn them.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::agent::Agent;
use pitviper_tests::lab::Lab;
use pitviper_tests::load::{Connection, Reply};
use pitviper_tests::runner::Suite;
use pitviper_tests::service::{Server, Service, UVICORN};
use pitviper_tests::spans::Span;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for http in ["h11", "httptools"] {
        let server = Server::Uvicorn { event_loop: "asyncio", http };
        suite = suite
            .case(format!("http attributes, {http}"), move |lab| http_attributes(lab, server))
            .case(format!("http bodies, {http}"), move |lab| http_bodies(lab, server))
            .case(format!("http pipelining, {http}"), move |lab| http_pipelining(lab, server))
            .case(format!("http streaming, {http}"), move |lab| http_streaming(lab, server))
            .case(format!("websocket, {http}"), move |lab| websocket(lab, server));
    }
    suite
        .case("postgres error", postgres_error)
        .case("postgres several statements", postgres_several)
        .case("postgres pipeline", postgres_pipeline)
        .case("postgres copy", postgres_copy)
        .case("postgres statement older than the daemon", postgres_prepared)
        .case("redis", redis)
        .main()
}

/// Runs `requests` against the protocol service while it is observed, and gives the spans.
fn observe(
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
fn trace_of(lab: &Lab, path: &str) -> Result<(Span, Vec<Span>)> {
    let spans = observe(lab, UVICORN, |_| Ok(()), |connection| answered(&connection.get(path, "")?))?;
    let server = only(&spans, path)?.clone();
    let below =
        spans.into_iter().filter(|span| span.is_client() && span.parent_id == server.span_id).collect();
    Ok((server, below))
}

fn answered(reply: &Reply) -> Result<()> {
    ensure!(reply.status == 200, "{}: {} {}", reply.path, reply.status, String::from_utf8_lossy(&reply.body));
    Ok(())
}

fn servers<'a>(spans: &'a [Span], path: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.is_server() && span.attribute("url.path") == path).collect()
}

fn only<'a>(spans: &'a [Span], path: &str) -> Result<&'a Span> {
    let found = servers(spans, path);
    ensure!(found.len() == 1, "{} server spans for {path}: {:#?}", found.len(), lines(spans));
    Ok(found[0])
}

fn lines(spans: &[Span]) -> Vec<String> {
    spans.iter().map(Span::line).collect()
}

fn expect(span: &Span, attributes: &[(&str, &str)]) -> Result<()> {
    for (key, value) in attributes {
        ensure!(span.attribute(key) == *value, "{key} is not {value:?} in {:#?}", span.attributes);
    }
    Ok(())
}

fn with_text<'a>(spans: &'a [Span], part: &str) -> Result<&'a Span> {
    let found: Vec<_> = spans.iter().filter(|span| span.attribute("db.query.text").contains(part)).collect();
    ensure!(found.len() == 1, "{} spans with {part:?} in {:#?}", found.len(), lines(spans));
    Ok(found[0])
}

fn http_attributes(lab: &Lab, server: Server) -> Result<String> {
    let mut port = 0;
    let spans = observe(
        lab,
        server,
        |_| Ok(()),
        |connection| {
            port = connection.port();
            answered(&connection.get("/plain?page=2&sort=up", "user-agent: viper/1\r\n")?)?;
            connection.get("/status/404", "")?;
            connection.get("/status/503", "")?;
            connection.get("/status/204", "")?;
            let head =
                connection.exchange("/plain", b"HEAD /plain?head HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
            ensure!(head.header("content-length") == Some("1234"), "{head:?}");
            // Only if the walker knows that this answer has no body is the next one understood.
            answered(&connection.get("/large/10", "")?)?;
            connection.close();
            answered(&connection.exchange("/large/11", b"GET /large/11 HTTP/1.0\r\n\r\n")?)
        },
    )?;
    let (port, plain) = (port.to_string(), servers(&spans, "/plain"));
    ensure!(plain.len() == 2 && spans.len() == 7, "{:#?}", lines(&spans));
    let (get, head): (Vec<&Span>, Vec<&Span>) =
        plain.into_iter().partition(|span| span.attribute("http.request.method") == "GET");
    ensure!(get.len() == 1 && head.len() == 1, "{:#?}", lines(&spans));
    expect(
        get[0],
        &[
            ("url.query", "page=2&sort=up"),
            ("url.scheme", "http"),
            ("http.response.status_code", "200"),
            ("network.protocol.version", "1.1"),
            ("user_agent.original", "viper/1"),
            ("server.address", "127.0.0.1"),
            ("server.port", &port),
            ("client.address", "127.0.0.1"),
        ],
    )?;
    ensure!(get[0].name.starts_with("GET") && get[0].status == 0, "{}", get[0].line());
    expect(head[0], &[("http.request.method", "HEAD"), ("http.response.status_code", "200")])?;
    expect(only(&spans, "/status/204")?, &[("http.response.status_code", "204")])?;
    let not_found = only(&spans, "/status/404")?;
    ensure!(not_found.status == 0, "a 404 is no error of the server");
    let unavailable = only(&spans, "/status/503")?;
    expect(unavailable, &[("http.response.status_code", "503"), ("error.type", "503")])?;
    ensure!(unavailable.status == 2, "a 503 is an error of the server");
    expect(only(&spans, "/large/11")?, &[("network.protocol.version", "1.0")])?;
    Ok(format!("{} spans", spans.len()))
}

fn http_bodies(lab: &Lab, server: Server) -> Result<String> {
    const SIZE: usize = 3_000_000;
    let head = |extra: &str| format!("POST /echo HTTP/1.1\r\nhost: localhost\r\n{extra}\r\n");
    let echoed = |reply: Reply, length: usize| {
        let wanted = format!("{{\"length\":{length}}}");
        ensure!(String::from_utf8_lossy(&reply.body) == wanted, "not {wanted}: {reply:?}");
        Ok(())
    };
    let spans = observe(
        lab,
        server,
        |_| Ok(()),
        |connection| {
            for round in 0..3 {
                let reply = connection.get(&format!("/large/{SIZE}"), "")?;
                ensure!(reply.body.len() == SIZE, "round {round}");
                let mut request = head(&format!("content-length: {SIZE}\r\n")).into_bytes();
                request.resize(request.len() + SIZE, b'b');
                echoed(connection.exchange("/echo", &request)?, SIZE)?;
                let mut request = head("transfer-encoding: chunked\r\n").into_bytes();
                for _ in 0..50 {
                    request.extend_from_slice(b"3e8\r\n");
                    request.resize(request.len() + 1000, b'c');
                    request.extend_from_slice(b"\r\n");
                }
                request.extend_from_slice(b"0\r\n\r\n");
                echoed(connection.exchange("/echo", &request)?, 50_000)?;
                connection.send(head("content-length: 4\r\nexpect: 100-continue\r\n").as_bytes())?;
                std::thread::sleep(Duration::from_millis(50));
                connection.send(b"body")?;
                echoed(connection.reply("/echo", false)?, 4)?;
            }
            Ok(())
        },
    )?;
    let large = servers(&spans, &format!("/large/{SIZE}"));
    let echo = servers(&spans, "/echo");
    ensure!((large.len(), echo.len(), spans.len()) == (3, 9, 12), "{:#?}", lines(&spans));
    for span in large.iter().chain(&echo) {
        expect(span, &[("http.response.status_code", "200")])?;
    }
    for span in large {
        let size = span.attribute("http.response.body.size");
        ensure!(size.is_empty() || size == SIZE.to_string(), "body size {size}");
    }
    Ok(format!("{} spans", spans.len()))
}

fn http_pipelining(lab: &Lab, server: Server) -> Result<String> {
    let spans = observe(
        lab,
        server,
        |_| Ok(()),
        |connection| {
            let paths: Vec<_> = (1..=5).map(|n| format!("/large/{n}")).collect();
            let one = |path: &String| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            connection.send(paths.iter().map(one).collect::<String>().as_bytes())?;
            for path in &paths {
                let reply = connection.reply(path, false)?;
                ensure!(reply.body.len() as u64 == reply.n, "{reply:?}");
            }
            Ok(())
        },
    )?;
    for n in 1..=5 {
        expect(only(&spans, &format!("/large/{n}"))?, &[("http.response.status_code", "200")])?;
    }
    ensure!(spans.len() == 5, "{:#?}", lines(&spans));
    Ok("5 spans".to_owned())
}

fn http_streaming(lab: &Lab, server: Server) -> Result<String> {
    let mut measured = Duration::ZERO;
    let spans = observe(
        lab,
        server,
        |_| Ok(()),
        |connection| {
            let start = Instant::now();
            let reply = connection.get("/chunked", "")?;
            measured = start.elapsed();
            ensure!(reply.body.len() == 10_000, "{} bytes", reply.body.len());
            answered(&connection.get("/plain", "")?)
        },
    )?;
    let span = only(&spans, "/chunked")?;
    // Ten pieces with a pause of 20 ms after each but, for the client, the last.
    let took = Duration::from_nanos(span.duration());
    ensure!(took >= Duration::from_millis(170), "the span ends before the stream: {took:?}");
    ensure!(took <= measured, "the span ({took:?}) outlasts what the client saw ({measured:?})");
    only(&spans, "/plain")?;
    Ok(format!("{took:?}"))
}

fn websocket(lab: &Lab, server: Server) -> Result<String> {
    let mut lasted = Duration::ZERO;
    let spans = observe(
        lab,
        server,
        |_| Ok(()),
        |connection| {
            let request = "GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            connection.send(request.as_bytes())?;
            let reply = connection.reply("/ws", false)?;
            ensure!(reply.status == 101, "{reply:?}");
            let start = Instant::now();
            let stream = connection.stream()?;
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(300));
                // FIN and text; masked with zeros, so that the payload is itself.
                stream.get_mut().write_all(b"\x81\x84\0\0\0\0GET ")?;
                let mut echo = [0; 6];
                stream.read_exact(&mut echo)?;
                ensure!(&echo == b"\x81\x04GET ", "{echo:?}");
            }
            lasted = start.elapsed();
            connection.close();
            answered(&connection.get("/plain", "")?)
        },
    )?;
    let span = only(&spans, "/ws")?;
    expect(span, &[("http.response.status_code", "101")])?;
    let took = Duration::from_nanos(span.duration());
    ensure!(took < lasted, "the span ({took:?}) did not end at the upgrade (the session took {lasted:?})");
    ensure!(spans.iter().filter(|span| span.is_server()).count() == 2, "{:#?}", lines(&spans));
    Ok(format!("{took:?} of {lasted:?}"))
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
