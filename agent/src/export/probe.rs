//! What a receiver speaks, found out by speaking to it: HTTP/2's preface on one connection, an HTTP/1.1 request on
//! another. Asked only after a failure, to name its cause; sends no span, no header of ours and no credential.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::failure::{Cause, Failure};
use crate::config::OtlpConfig;

/// How long connecting, and an answer, may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The client connection preface and an empty SETTINGS frame (RFC 9113, sections 3.4 and 6.5).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What a receiver was found to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Speaks {
    /// HTTP/1.1 in plain text.
    pub(super) http1: bool,
    /// HTTP/2 in plain text: gRPC.
    pub(super) http2: bool,
    /// TLS: it answers plain text with an alert.
    pub(super) tls: bool,
}

/// What a failure means, with a look at how the receiver answers where that may tell more.
pub(super) async fn diagnose(failure: &Failure, otlp: &OtlpConfig) -> Cause {
    let endpoint = &otlp.endpoint;
    let speaks = match (endpoint.host_str(), endpoint.port_or_known_default()) {
        (Some(host), Some(port)) if failure.worth_a_probe() => probe(host, port).await.ok(),
        _ => None,
    };
    Cause::of(failure, speaks, otlp)
}

/// Speaks to `host`:`port`; `Err` if nobody can be reached there.
pub(super) async fn probe(host: &str, port: u16) -> io::Result<Speaks> {
    let address = (host.trim_start_matches('[').trim_end_matches(']'), port);
    let http1 = format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    let answers = [ask(address, HTTP2).await?, ask(address, http1.as_bytes()).await?];
    let [to_http2, to_http1] = &answers;
    Ok(Speaks {
        http1: to_http1.starts_with(b"HTTP/1."),
        http2: is_settings(to_http2),
        tls: answers.iter().any(|answer| answer.starts_with(&[0x15, 0x03])),
    })
}

/// The first bytes of the answer; none if there is none.
async fn ask(address: (&str, u16), question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
    let mut answer = Vec::new();
    let conversation = async {
        stream.write_all(question).await?;
        while answer.len() < 9 && stream.read_buf(&mut answer).await? > 0 {}
        io::Result::Ok(())
    };
    // Whoever closes, resets or stays silent has answered nothing more than what there is.
    let _ = timeout(PATIENCE, conversation).await;
    Ok(answer)
}

/// Whether this is the SETTINGS frame that a server's side of HTTP/2 begins with: length, type 4, no ACK, stream 0.
fn is_settings(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, _, 4, 0, 0, 0, 0, 0, ..])
}

#[cfg(test)]
mod tests {
    use super::super::test_receiver::{Kind, Receiver};
    use super::*;

    #[tokio::test]
    async fn it_tells_http1_from_http2() {
        let check = async |kind, expected| {
            let receiver = Receiver::start(kind).await;
            assert_eq!(probe("127.0.0.1", receiver.port()).await.unwrap(), expected, "{kind:?}");
        };
        check(Kind::Http, Speaks { http1: true, ..Speaks::default() }).await;
        check(Kind::Grpc, Speaks { http2: true, ..Speaks::default() }).await;
        check(Kind::HttpTls, Speaks { tls: true, ..Speaks::default() }).await;
    }

    #[tokio::test]
    async fn nobody_is_an_error() {
        let port = Receiver::start(Kind::Http).await.stop().await;
        assert!(probe("127.0.0.1", port).await.is_err());
    }
}
