//! Concurrent, numbered HTTP/1.1 requests over plain sockets or TLS, and what the service says it did for each of them.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

/// Requests at once.
pub const CONCURRENCY: usize = 64;

/// The answer to request `n`.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The request's number.
    pub n: u64,
    /// Path that was asked for.
    pub path: String,
    /// Status code.
    pub status: u16,
    /// Header names in lower case, values.
    pub headers: Vec<(String, String)>,
    /// The body, with its chunks joined.
    pub body: Vec<u8>,
    /// The client's own port.
    pub from: u16,
}

impl Reply {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Keys of the operations that the service ran for this request: its JSON body (or the last event of a stream), and
    /// the header that the middleware adds.
    pub fn operations(&self) -> Result<Vec<String>> {
        let text = String::from_utf8_lossy(&self.body);
        let json = text.trim_end().rsplit("data: ").next().unwrap_or_default();
        let body: Value = serde_json::from_str(json).with_context(|| format!("{}: {text}", self.path))?;
        let listed =
            body.get("ops").and_then(Value::as_array).with_context(|| format!("no ops in {text}"))?;
        let mut operations: Vec<_> =
            listed.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect();
        operations
            .extend(self.header("x-ops").into_iter().flat_map(str::split_whitespace).map(str::to_owned));
        Ok(operations)
    }
}

/// A client connection. Opens itself when it has to.
pub struct Connection {
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    stream: Option<BufReader<Stream>>,
}

/// What the bytes go over.
pub enum Stream {
    /// TCP.
    Plain(TcpStream),
    /// TLS.
    Encrypted(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// This end's port.
    fn port(&self) -> io::Result<u16> {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Encrypted(stream) => stream.get_ref(),
        };
        Ok(stream.local_addr()?.port())
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(into),
            Self::Encrypted(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Encrypted(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Encrypted(stream) => stream.flush(),
        }
    }
}

impl Connection {
    /// To 127.0.0.1.
    pub fn new(port: u16) -> Self {
        Self { port, tls: None, stream: None }
    }

    /// The same over TLS.
    pub fn encrypted(port: u16, tls: Arc<ClientConfig>) -> Self {
        Self { tls: Some(tls), ..Self::new(port) }
    }

    /// The port of 127.0.0.1 that it goes to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends `GET path` and reads the answer. A keep-alive connection that the server has closed is opened again.
    pub fn get(&mut self, path: &str, headers: &str) -> Result<Reply> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n{headers}\r\n", self.port);
        let reused = self.stream.is_some();
        match self.exchange(path, request.as_bytes()) {
            Err(_) if reused => self.exchange(path, request.as_bytes()),
            outcome => outcome,
        }
        .with_context(|| format!("GET {path}"))
    }

    /// Sends these bytes and reads the answer, which has no body if the request is a HEAD.
    pub fn exchange(&mut self, path: &str, request: &[u8]) -> Result<Reply> {
        let outcome = self.send(request).and_then(|()| self.reply(path, request.starts_with(b"HEAD ")));
        let closing = outcome.as_ref().is_ok_and(|reply| reply.header("connection") == Some("close"));
        if outcome.is_err() || closing {
            self.stream = None;
        }
        outcome
    }

    /// Sends bytes only.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).context("failed to connect")?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.set_nodelay(true)?;
            let stream = match &self.tls {
                None => Stream::Plain(stream),
                Some(tls) => {
                    let name = ServerName::try_from("localhost")?;
                    let connection = ClientConnection::new(Arc::clone(tls), name)?;
                    Stream::Encrypted(Box::new(StreamOwned::new(connection, stream)))
                }
            };
            self.stream = Some(BufReader::new(stream));
        }
        let stream = self.stream.as_mut().context("not connected")?.get_mut();
        stream.write_all(bytes)?;
        Ok(stream.flush()?)
    }

    /// Reads one answer; interim ones (1xx but 101) are skipped.
    pub fn reply(&mut self, path: &str, head_only: bool) -> Result<Reply> {
        let stream = self.stream.as_mut().context("not connected")?;
        loop {
            let (status, headers) = read_head(stream)?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let from = stream.get_ref().port()?;
            let (n, path, body) = (number_of(path), path.to_owned(), Vec::new());
            let mut reply = Reply { n, path, status, headers, body, from };
            if !head_only && !matches!(status, 101 | 204 | 304) {
                reply.body = read_body(stream, &reply)?;
            }
            return Ok(reply);
        }
    }

    /// The stream after an upgrade.
    pub fn stream(&mut self) -> Result<&mut BufReader<Stream>> {
        self.stream.as_mut().context("not connected")
    }

    /// Closes it; the next request opens it anew.
    pub fn close(&mut self) {
        self.stream = None;
    }
}

/// The number at the end of a path, as in `/work/17`.
pub fn number_of(path: &str) -> u64 {
    path.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or_default()
}

/// A crowd of clients of one service, whose connections stay open between runs.
pub struct Load {
    connections: Vec<Mutex<Connection>>,
}

impl Load {
    /// [`CONCURRENCY`] clients.
    pub fn new(port: u16) -> Self {
        Self { connections: (0..CONCURRENCY).map(|_| Mutex::new(Connection::new(port))).collect() }
    }

    /// So many clients, over TLS.
    pub fn encrypted(port: u16, clients: usize, tls: &Arc<ClientConfig>) -> Self {
        let client = |_| Mutex::new(Connection::encrypted(port, Arc::clone(tls)));
        Self { connections: (0..clients).map(client).collect() }
    }

    /// Requests `/ROUTE/N` for every N in `numbers`. Every fourth client opens a connection for each request.
    pub fn run(&self, route: &str, numbers: Range<u64>) -> Result<Vec<Reply>> {
        let next = AtomicU64::new(numbers.start);
        let replies = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let clients: Vec<_> = self
                .connections
                .iter()
                .enumerate()
                .map(|(client, connection)| {
                    let (next, replies, end) = (&next, &replies, numbers.end);
                    scope.spawn(move || -> Result<()> {
                        let mut connection =
                            connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        loop {
                            let n = next.fetch_add(1, Ordering::Relaxed);
                            if n >= end {
                                return Ok(());
                            }
                            let reply = connection.get(&format!("/{route}/{n}"), "")?;
                            ensure!(
                                reply.status == 200,
                                "{}: {} {}",
                                reply.path,
                                reply.status,
                                text(&reply.body)
                            );
                            replies.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(reply);
                            if client % 4 == 3 {
                                connection.close();
                            }
                        }
                    })
                })
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
        })?;
        Ok(replies.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

type Head = (u16, Vec<(String, String)>);

fn read_head(stream: &mut BufReader<Stream>) -> Result<Head> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "the server closed the connection");
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not a status line: {line}"))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok((status, headers)) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_body(stream: &mut BufReader<Stream>, reply: &Reply) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if reply.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let size =
                u64::from_str_radix(line.trim_end(), 16).with_context(|| format!("chunk size {line:?}"))?;
            stream.take(size).read_to_end(&mut body)?;
            stream.read_line(&mut line)?;
            if size == 0 {
                return Ok(body);
            }
        }
    } else if let Some(length) = reply.header("content-length") {
        stream.take(length.parse()?).read_to_end(&mut body)?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok(body)
}
