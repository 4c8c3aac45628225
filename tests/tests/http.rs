//! The corners of HTTP, as real servers turn them: bodies, pipelining, streams, upgrades.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pitviper_tests::lab::Lab;
use pitviper_tests::load::Reply;
use pitviper_tests::observation::{answered, expect, lines, observe, only, servers};
use pitviper_tests::runner::Suite;
use pitviper_tests::service::Server;
use pitviper_tests::spans::Span;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for http in ["h11", "httptools"] {
        let server = Server::Uvicorn { event_loop: "asyncio", http };
        suite = suite
            .case(format!("attributes, {http}"), move |lab| attributes(lab, server))
            .case(format!("bodies, {http}"), move |lab| bodies(lab, server))
            .case(format!("pipelining, {http}"), move |lab| pipelining(lab, server))
            .case(format!("streaming, {http}"), move |lab| streaming(lab, server))
            .case(format!("websocket, {http}"), move |lab| websocket(lab, server));
    }
    suite.main()
}

fn attributes(lab: &Lab, server: Server) -> Result<String> {
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

fn bodies(lab: &Lab, server: Server) -> Result<String> {
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

fn pipelining(lab: &Lab, server: Server) -> Result<String> {
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

fn streaming(lab: &Lab, server: Server) -> Result<String> {
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
