//! Conversations as real clients and servers have them, and what a walker must make of each.

/// One write of one side.
pub(super) enum Step {
    Request(Vec<u8>),
    Response(Vec<u8>),
    EndOfResponses,
}

impl Step {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Request(bytes) | Self::Response(bytes) => bytes.len(),
            Self::EndOfResponses => 0,
        }
    }
}

pub(super) struct Conversation {
    pub(super) name: &'static str,
    pub(super) steps: Vec<Step>,
}

/// `> ` starts what the client writes at once, `< ` what the server does, `.` is the end of the server's stream. Lines of
/// this text end with CRLF unless they end with `\`.
fn conversation(name: &'static str, text: &str) -> Conversation {
    let mut steps = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        let (tag, bytes) = line.split_at(line.len().min(2));
        let mut bytes = bytes.as_bytes().to_vec();
        match bytes.strip_suffix(b"\\") {
            Some(rest) => bytes = rest.to_vec(),
            None => bytes.extend_from_slice(b"\r\n"),
        }
        match (tag, steps.last_mut()) {
            ("> " | ">", _) => steps.push(Step::Request(bytes)),
            ("< " | "<", _) => steps.push(Step::Response(bytes)),
            (".", _) => steps.push(Step::EndOfResponses),
            ("| " | "|", Some(Step::Request(step) | Step::Response(step))) => step.extend_from_slice(&bytes),
            _ => panic!("{name}: {line:?}"),
        }
    }
    Conversation { name, steps }
}

pub(super) fn all() -> Vec<(Conversation, Vec<&'static str>)> {
    TEXTS.iter().map(|(name, text, expected)| (conversation(name, text.trim()), expected.to_vec())).collect()
}

/// One conversation by its name.
pub(super) fn named(name: &str) -> (Conversation, Vec<&'static str>) {
    all().into_iter().find(|(conversation, _)| conversation.name == name).unwrap()
}

type Text = (&'static str, &'static str, &'static [&'static str]);

const TEXTS: &[Text] = &[
    (
        "uvicorn and httpx, keep-alive",
        r#"
        > GET /orders/1?expand=items HTTP/1.1
        | Host: 127.0.0.1:8000
        | Accept: */*
        | Accept-Encoding: gzip, deflate
        | Connection: keep-alive
        | User-Agent: python-httpx/0.28.1
        | traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
        |
        < HTTP/1.1 200 OK
        | date: Thu, 20 Nov 2025 10:00:00 GMT
        | server: uvicorn
        | content-length: 15
        | content-type: application/json
        |
        < {"order_id": 1}\
        > POST /orders HTTP/1.1
        | Host: 127.0.0.1:8000
        | Content-Length: 14
        | Content-Type: application/json
        |
        > {"item": "ab"}\
        < HTTP/1.1 201 Created
        | content-length: 2
        |
        | {}\
        > GET /missing HTTP/1.1
        | Host: 127.0.0.1:8000
        |
        < HTTP/1.1 404 Not Found
        | content-length: 9
        |
        | Not Found\
        "#,
        &[
            "GET /orders/1?expand=items 200 Complete -/15",
            "POST /orders 201 Complete 14/2",
            "GET /missing 404 Complete -/9",
        ],
    ),
    (
        "gunicorn and requests, chunked with extension and trailers",
        r#"
        > PUT /upload HTTP/1.1
        | Host: shop.example
        | User-Agent: python-requests/2.32.5
        | Transfer-Encoding: chunked
        |
        > 5;x="y"
        | hello
        > A
        | 0123456789
        | 0
        | X-Sum: 1
        |
        < HTTP/1.1 202 ACCEPTED
        | Server: gunicorn
        | Connection: keep-alive
        | Transfer-Encoding: chunked
        |
        < 10
        | <html>body</html\
        < 
        | 1
        | >
        < 0
        |
        > GET /after HTTP/1.1
        | Host: shop.example
        |
        < HTTP/1.1 203 OK
        | Content-Length: 0
        |
        "#,
        &["PUT /upload 202 Complete 15/17", "GET /after 203 Complete -/0"],
    ),
    (
        "curl, continue, HEAD, 204, 304",
        r#"
        > POST /big HTTP/1.1
        | Host: h
        | User-Agent: curl/8.5.0
        | Expect: 100-continue
        | Content-Length: 4
        |
        < HTTP/1.1 100 Continue
        |
        > body\
        < HTTP/1.1 102 Processing
        |
        | HTTP/1.1 200 OK
        | Content-Length: 2
        |
        | ok\
        > HEAD /big HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 206 OK
        | Content-Length: 1234
        |
        > DELETE /big HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 204 No Content
        |
        > GET /cached HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 304 Not Modified
        | Content-Length: 99
        |
        "#,
        &[
            "POST /big 200 Complete 4/2",
            "HEAD /big 206 Complete -/0",
            "DELETE /big 204 Complete -/0",
            "GET /cached 304 Complete -/0",
        ],
    ),
    (
        "ab, HTTP/1.0",
        r#"
        > GET /old HTTP/1.0
        | Host: h
        | User-Agent: ApacheBench/2.3
        |
        < HTTP/1.0 200 OK
        | Server: BaseHTTP/0.6 Python/3.11.2
        | Content-type: text/html
        |
        < all of this\
        <  is body\
        .
        "#,
        &["GET /old 200 Complete -/19"],
    ),
    (
        "Connection: close, without end of stream",
        r#"
        > GET /old HTTP/1.1
        | Host: h
        | Connection: close
        |
        < HTTP/1.1 200 OK
        | Connection: close
        |
        | body\
        "#,
        &["GET /old 200 Complete -/4"],
    ),
    (
        "websocket, aiohttp",
        r#"
        > GET /ws HTTP/1.1
        | Host: h
        | Upgrade: websocket
        | Connection: Upgrade
        | Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
        |
        < HTTP/1.1 101 Switching Protocols
        | Upgrade: websocket
        |
        > GET /not-http HTTP/1.1
        |
        < HTTP/1.1 200 OK
        |
        "#,
        &["GET /ws 101 Upgraded -/-"],
    ),
    (
        "CONNECT",
        r#"
        > CONNECT db.example:443 HTTP/1.1
        | Host: db.example:443
        |
        < HTTP/1.1 200 Connection established
        |
        > GET /tunnel HTTP/1.1
        |
        "#,
        &["CONNECT db.example:443 200 Upgraded -/-"],
    ),
    (
        "CONNECT refused",
        r#"
        > CONNECT db.example:443 HTTP/1.1
        |
        < HTTP/1.1 407 Proxy Authentication Required
        | Content-Length: 1
        |
        | x\
        > CONNECT db.example:443 HTTP/1.1
        |
        < HTTP/1.1 200 OK
        |
        "#,
        &["CONNECT db.example:443 407 Complete -/1", "CONNECT db.example:443 200 Upgraded -/-"],
    ),
    (
        "server-sent events",
        r#"
        > GET /events HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 200 OK
        | content-type: text/event-stream; charset=utf-8
        | transfer-encoding: chunked
        |
        < d
        | data: one
        |
        |
        < d
        | data: two
        |
        |
        < 0
        |
        "#,
        &["GET /events 200 Complete -/26"],
    ),
    (
        "error before the body is complete",
        r#"
        > POST /limit HTTP/1.1
        | Host: h
        | Content-Length: 10
        |
        | 01234\
        < HTTP/1.1 413 Too Large
        | Content-Length: 0
        |
        > 56789\
        > GET /next HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 200 OK
        | Content-Length: 0
        |
        "#,
        &["POST /limit 413 Complete 5/0", "GET /next 200 Complete -/0"],
    ),
    (
        "pipelining",
        r#"
        > GET /1 HTTP/1.1
        | Host: h
        |
        | POST /2 HTTP/1.1
        | Host: h
        | Content-Length: 3
        |
        | abcGET /3 HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 201 OK
        | Content-Length: 1
        |
        | xHTTP/1.1 202 OK
        | Content-Length: 0
        |
        < HTTP/1.1 203 OK
        | Transfer-Encoding: chunked
        |
        | 1
        | y
        | 0
        |
        "#,
        &["GET /1 201 Complete -/1", "POST /2 202 Complete 3/0", "GET /3 203 Complete -/1"],
    ),
    (
        "late attach: a response to what was not seen",
        r#"
        < HTTP/1.1 299 OK
        | Content-Length: 3
        |
        | abc\
        > GET /seen HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 200 OK
        | Content-Length: 0
        |
        "#,
        &["GET /seen 200 Complete -/0"],
    ),
    (
        "late attach: in the body of a request",
        r#"
        > 7,"note":"the rest of an upload"}\
        < HTTP/1.1 299 OK
        | Content-Length: 3
        |
        | abc\
        > GET /seen HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 200 OK
        | Content-Length: 0
        |
        "#,
        &["GET /seen 200 Complete -/0"],
    ),
    (
        "no response",
        r#"
        > GET /void HTTP/1.1
        | Host: h
        |
        "#,
        &["GET /void - ConnectionClosed -/-"],
    ),
    (
        "peer goes away inside a response",
        r#"
        > GET /half HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 200 OK
        | Content-Length: 10
        |
        | half\
        .
        "#,
        &["GET /half 200 PeerEnded -/4"],
    ),
    (
        "peer goes away inside a head",
        r#"
        > GET /half HTTP/1.1
        | Host: h
        |
        < HTTP/1.1 502 Bad
        | X: y\
        .
        "#,
        &["GET /half 502 PeerEnded -/-"],
    ),
    (
        "a head that is answered before it ends",
        r#"
        > GET /slow HTTP/1.1
        | Host: h
        | X-Long: aaaaaaaaa\
        < HTTP/1.1 431 Request Header Fields Too Large
        | Content-Length: 0
        |
        .
        "#,
        &["GET /slow 431 Complete -/0"],
    ),
    (
        "no HTTP at all",
        r#"
        > *1
        | $4
        | PING
        < +PONG
        "#,
        &[],
    ),
];
