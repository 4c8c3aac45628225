//! A minimal HTTP/1.1 server that keeps what is posted to it: the far end of the real collector, and a witness of raw
//! export requests (headers, compression). Answers 200 to all that it understands.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use anyhow::{Context as _, Result};
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::metrics::{self, Point};
use crate::spans::{Span, flatten};
use crate::tls::Certificates;

/// One request that arrived.
#[derive(Clone, Debug)]
pub struct Posted {
    /// `POST /v1/traces HTTP/1.1`.
    pub request_line: String,
    /// Header names in lower case, values.
    pub headers: Vec<(String, String)>,
    /// The body, unpacked if it was compressed.
    pub body: Vec<u8>,
}

impl Posted {
    /// Whether it went to the path for metrics.
    pub fn is_metrics(&self) -> bool {
        self.request_line.contains("/v1/metrics ")
    }

    /// Whether it went to the path for profiles; all other paths are taken for traces.
    pub fn is_profiles(&self) -> bool {
        self.request_line.contains("/v1development/profiles ")
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A running sink. Its threads end with the process.
#[derive(Clone)]
pub struct Sink {
    port: u16,
    posted: Arc<Mutex<Vec<Posted>>>,
}

impl Sink {
    /// Listens on a free port of 127.0.0.1.
    pub fn start() -> Result<Self> {
        Self::start_on(0)
    }

    /// Listens on a free port of 127.0.0.1, for TLS.
    pub fn start_encrypted(certificates: &Certificates) -> Result<Self> {
        Self::listen(0, Some(certificates.server()?))
    }

    /// Listens on this port.
    pub fn start_on(port: u16) -> Result<Self> {
        Self::listen(port, None)
    }

    fn listen(port: u16, tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).context("failed to listen")?;
        let port = listener.local_addr()?.port();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&posted);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                thread::spawn(move || match tls.map(ServerConnection::new) {
                    None => serve(stream, &shared),
                    Some(Ok(connection)) => serve(StreamOwned::new(connection, stream), &shared),
                    Some(Err(_)) => {}
                });
            }
        });
        Ok(Self { port, posted })
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// All that has arrived.
    pub fn posted(&self) -> Vec<Posted> {
        locked(&self.posted).clone()
    }

    /// Forgets what has arrived.
    pub fn clear(&self) {
        locked(&self.posted).clear();
    }

    /// The spans of all requests so far.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for posted in
            locked(&self.posted).iter().filter(|posted| !posted.is_metrics() && !posted.is_profiles())
        {
            let request = ExportTraceServiceRequest::decode(posted.body.as_slice())
                .with_context(|| format!("not an OTLP trace request: {}", posted.request_line))?;
            spans.extend(flatten(&request));
        }
        Ok(spans)
    }

    /// The data points of all requests so far, in their order.
    pub fn points(&self) -> Result<Vec<Point>> {
        let mut points = Vec::new();
        for posted in locked(&self.posted).iter().filter(|posted| posted.is_metrics()) {
            let request = ExportMetricsServiceRequest::decode(posted.body.as_slice())
                .with_context(|| format!("not an OTLP metrics request: {}", posted.request_line))?;
            points.extend(metrics::flatten(&request));
        }
        Ok(points)
    }
}

fn locked(posted: &Mutex<Vec<Posted>>) -> MutexGuard<'_, Vec<Posted>> {
    posted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn serve(stream: impl Read + Write, shared: &Mutex<Vec<Posted>>) {
    let mut requests = BufReader::new(stream);
    loop {
        let posted = match read_request(&mut requests) {
            Ok(Some(posted)) => posted,
            Ok(None) => return,
            Err(_) => {
                // What a server of HTTP/1 says to the preface of HTTP/2.
                let _ = requests
                    .get_mut()
                    .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                return;
            }
        };
        locked(shared).push(posted);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        let answers = requests.get_mut();
        if answers.write_all(head.as_bytes()).and_then(|()| answers.flush()).is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut BufReader<impl Read>) -> Result<Option<Posted>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let request_line = line.trim_end().to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut posted = Posted { request_line, headers, body: Vec::new() };
    let length =
        posted.header("content-length").context("a request without content-length")?.parse::<u64>()?;
    stream.take(length).read_to_end(&mut posted.body)?;
    if posted.header("content-encoding") == Some("gzip") {
        let mut unpacked = Vec::new();
        GzDecoder::new(posted.body.as_slice()).read_to_end(&mut unpacked)?;
        posted.body = unpacked;
    }
    Ok(Some(posted))
}
