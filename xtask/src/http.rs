//! The little HTTP/1.1 that the load generator and the bench's own services need, over std and perhaps TLS.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

const TIMEOUT: Duration = Duration::from_secs(20);

/// What bytes go over.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// A keep-alive connection to a local service.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Stream>>,
    port: u16,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Result<Self> {
        Self::connect_with(port, None)
    }

    /// The same, over TLS if it says how.
    pub(crate) fn connect_with(port: u16, tls: Option<&Arc<ClientConfig>>) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .and_then(|stream| {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Ok(stream)
            })
            .with_context(|| format!("failed to connect to port {port}"))?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => {
                let connection = ClientConnection::new(Arc::clone(tls), ServerName::try_from("localhost")?)?;
                Box::new(StreamOwned::new(connection, stream))
            }
        };
        Ok(Self { stream: BufReader::new(stream), port })
    }

    /// Sends one request, reads its response to the end, and returns the status.
    pub(crate) fn request(&mut self, method: &str, path: &str, agent: &str, body: &str) -> Result<u16> {
        let Self { stream, port } = self;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: {agent}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let context = || format!("{method} {path} on port {port} got no answer");
        stream.get_mut().write_all(request.as_bytes()).with_context(context)?;
        stream.get_mut().flush().with_context(context)?;
        let head = read_head(stream).with_context(context)?.with_context(context)?;
        let status =
            head.first_line.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(context)?;
        let mut body = vec![0; head.content_length];
        stream.read_exact(&mut body).with_context(context)?;
        Ok(status)
    }
}

/// A request or response up to its empty line.
struct Head {
    first_line: String,
    content_length: usize,
}

/// Reads a head; nothing if the peer closed the connection instead.
fn read_head(stream: &mut impl BufRead) -> Result<Option<Head>> {
    let mut head = Head { first_line: String::new(), content_length: 0 };
    if stream.read_line(&mut head.first_line)? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            bail!("the connection ended inside a header");
        }
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            head.content_length = value.trim().parse().context("a bad content-length")?;
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("chunked messages are not supported here");
        }
    }
    Ok(Some(head))
}

/// Serves every request on a free local port with status 200 and what `handler` makes of the body; the port.
///
/// The server lives as long as this process.
pub(crate) fn serve(handler: impl Fn(&[u8]) -> &'static [u8] + Send + Sync + 'static) -> Result<u16> {
    serve_with(None, handler)
}

/// The same, over TLS if it says how.
pub(crate) fn serve_with(
    tls: Option<Arc<ServerConfig>>,
    handler: impl Fn(&[u8]) -> &'static [u8] + Send + Sync + 'static,
) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to listen")?;
    let port = listener.local_addr().context("failed to listen")?.port();
    let handler = Arc::new(handler);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (handler, tls) = (Arc::clone(&handler), tls.clone());
            thread::spawn(move || {
                // A peer that goes away ends its connection's thread.
                let _ = answer(stream, tls, &*handler);
            });
        }
    });
    Ok(port)
}

fn answer(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    handler: &(dyn Fn(&[u8]) -> &'static [u8] + Send + Sync),
) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => Box::new(StreamOwned::new(ServerConnection::new(tls)?, stream)),
    };
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream)? {
        let mut body = vec![0; head.content_length];
        stream.read_exact(&mut body)?;
        let answer = handler(&body);
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len()).into_bytes();
        response.extend_from_slice(answer);
        stream.get_mut().write_all(&response)?;
        stream.get_mut().flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_and_server_understand_each_other() {
        let port = serve(|body| if body == b"question" { b"answer" } else { b"" }).unwrap();
        let mut client = Client::connect(port).unwrap();
        for body in ["question", "", "question"] {
            assert_eq!(client.request("POST", "/", "test", body).unwrap(), 200);
        }
    }
}
