//! Exchanges in, spans out.

use super::*;
use crate::protocol::http::HttpWalker;
use crate::protocol::{Direction, Outcome, Segment, Walker};

fn inet(address: &str) -> Endpoint {
    Endpoint::Inet(address.parse().unwrap())
}

/// The exchange of a request and a response, after which the connection is closed.
fn exchange(role: Role, request: &str, response: &str) -> Box<Exchange> {
    let mut walker = HttpWalker::new(role);
    let mut events = Vec::new();
    let direction = role.request_direction();
    let request = request.replace('\n', "\r\n");
    let response = response.replace('\n', "\r\n");
    walker.feed(direction, Segment::Bytes(request.as_bytes()), (), &mut events);
    walker.feed(direction.opposite(), Segment::Bytes(response.as_bytes()), (), &mut events);
    walker.end(Direction::Recv, (), &mut events);
    walker.close((), &mut events);
    match events.pop() {
        Some(crate::protocol::Event::Closed { outcome: Outcome::Http(exchange), .. }) => exchange,
        other => panic!("{other:?}"),
    }
}

fn show(parts: &SpanParts) -> Vec<String> {
    let mut shown: Vec<_> =
        parts.attributes.iter().map(|attribute| format!("{}={}", attribute.key, attribute.value)).collect();
    shown.sort();
    shown.insert(0, format!("{} {:?} {:?}", parts.name, parts.kind, parts.status));
    shown
}

fn check(role: Role, peer: Endpoint, request: &str, response: &str, expected: &str) {
    let endpoints = Endpoints { local: inet("10.0.0.1:8000"), peer, encrypted: false, server_name: None };
    let parts =
        span_parts_knowing(&exchange(role, request, response), role, &endpoints, &KnownMethods::default());
    let expected: Vec<_> = expected.trim().lines().map(str::trim).collect();
    assert_eq!(show(&parts), expected);
}

#[test]
fn server() {
    check(
        Role::Server,
        inet("10.0.0.2:4711"),
        "POST /orders?a=1&token=x HTTP/1.1\nHost: shop.example:8000\nUser-Agent: curl/8\nContent-Length: 2\n\n{}",
        "HTTP/1.1 404 Not Found\nContent-Length: 3\n\nabc",
        "POST Server Unset
         client.address=10.0.0.2
         http.request.body.size=2
         http.request.method=POST
         http.response.body.size=3
         http.response.status_code=404
         network.peer.address=10.0.0.2
         network.peer.port=4711
         network.protocol.version=1.1
         server.address=shop.example
         server.port=8000
         url.path=/orders
         url.query=a=1&token=REDACTED
         url.scheme=http
         user_agent.original=curl/8",
    );
}

#[test]
fn server_behind_a_proxy_on_a_unix_socket() {
    check(
        Role::Server,
        Endpoint::Unix(Some("/run/app.sock".into())),
        "BREW /pot HTTP/1.0\nHost: shop.example\nX-Forwarded-For: 203.0.113.7, 10.0.0.9\nX-Forwarded-Proto: https\n\n",
        "HTTP/1.0 503 Busy\nContent-Length: 0\n\n",
        "HTTP Server Error { description: \"\" }
         client.address=203.0.113.7
         error.type=503
         http.request.method=_OTHER
         http.request.method_original=BREW
         http.response.body.size=0
         http.response.status_code=503
         network.peer.address=/run/app.sock
         network.protocol.version=1.0
         network.transport=unix
         server.address=shop.example
         server.port=443
         url.path=/pot
         url.scheme=https",
    );
}

#[test]
fn client() {
    check(
        Role::Client,
        inet("[2001:db8::1]:9000"),
        "GET /items/1?sig=abc HTTP/1.1\nHost: stock:9000\nUser-Agent: python-httpx/0.28\n\n",
        "HTTP/1.1 404 Not Found\nContent-Length: 0\n\n",
        "GET Client Error { description: \"\" }
         error.type=404
         http.request.method=GET
         http.response.body.size=0
         http.response.status_code=404
         network.peer.address=2001:db8::1
         network.peer.port=9000
         network.protocol.version=1.1
         server.address=stock
         server.port=9000
         url.full=http://stock:9000/items/1?sig=REDACTED",
    );
}

#[test]
fn client_without_a_host_or_a_response() {
    check(
        Role::Client,
        inet("[::1]:9000"),
        "GET / HTTP/1.0\n\n",
        "",
        "GET Client Error { description: \"\" }
         error.type=connection_closed
         http.request.method=GET
         network.peer.address=::1
         network.peer.port=9000
         network.protocol.version=1.0
         server.address=::1
         server.port=9000
         url.full=http://[::1]:9000/",
    );
}

#[test]
fn error_types() {
    let error = |role, response| error_type(&exchange(role, "GET / HTTP/1.1\n\n", response), role);
    let half = "HTTP/1.1 200 OK\nContent-Length: 9\n\nhalf";
    assert_eq!(error(Role::Client, half).as_deref(), Some(RESPONSE_TRUNCATED));
    assert_eq!(error(Role::Server, half), None);
    assert_eq!(error(Role::Server, "HTTP/1.1 499 X\n\n"), None);
    assert_eq!(error(Role::Server, "").as_deref(), Some(CONNECTION_CLOSED));
    let mut lost = exchange(Role::Client, "GET / HTTP/1.1\n\n", "");
    lost.ending = Ending::BytesLost;
    assert_eq!(error_type(&lost, Role::Client), None);
}

#[test]
fn known_methods_can_be_replaced() {
    let endpoints = Endpoints {
        local: inet("10.0.0.1:80"),
        peer: inet("10.0.0.2:1"),
        encrypted: false,
        server_name: None,
    };
    let get = exchange(Role::Server, "GET / HTTP/1.1\n\n", "HTTP/1.1 204 X\n\n");
    let name = |list| span_parts_knowing(&get, Role::Server, &endpoints, &KnownMethods::from_list(list)).name;
    assert_eq!((name("GET, BREW"), name("get,BREW"), name("")), ("GET".into(), "HTTP".into(), "HTTP".into()));
}
