//! A real OTLP receiver: PyPI's `rotel`, over gRPC and HTTP. It decodes what it is sent, and passes it on to a [`Sink`].
//!
//! What the sink holds has therefore been understood by an implementation of OTLP that is not ours.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::metrics::Point;
use crate::process::{Tree, free_port, wait_until};
use crate::python::Python;
use crate::sink::Sink;
use crate::spans::Span;

/// How spans travel to the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf bodies.
    Http,
}

/// A running collector.
pub struct Collector {
    _tree: Tree,
    grpc: u16,
    http: u16,
    sink: Sink,
}

impl Collector {
    /// Starts one on free ports.
    pub fn start(python: &Python, directory: &Path) -> Result<Self> {
        let (grpc, http) = (free_port()?, free_port()?);
        Self::start_on(python, directory, grpc, http)
    }

    /// Starts one on these ports.
    pub fn start_on(python: &Python, directory: &Path, grpc: u16, http: u16) -> Result<Self> {
        let sink = Sink::start()?;
        let rotel = python.receiver()?.package_file("rotel/rotel-agent")?;
        let mut command = Command::new(rotel);
        command.arg("start");
        for (option, value) in [
            ("--pid-file", directory.join(format!("rotel-{grpc}.pid")).display().to_string()),
            ("--log-file", directory.join(format!("rotel-{grpc}.log")).display().to_string()),
            ("--otlp-grpc-endpoint", format!("127.0.0.1:{grpc}")),
            ("--otlp-http-endpoint", format!("127.0.0.1:{http}")),
            ("--otlp-grpc-max-recv-msg-size-mib", "64".to_owned()),
            ("--exporter", "otlp".to_owned()),
            ("--otlp-exporter-endpoint", format!("http://127.0.0.1:{}", sink.port())),
            ("--otlp-exporter-protocol", "http".to_owned()),
            ("--otlp-exporter-compression", "none".to_owned()),
        ] {
            command.arg(option).arg(value);
        }
        let mut tree = Tree::spawn("rotel", command, &directory.join(format!("rotel-{grpc}.out")))?;
        tree.wait_for_port(grpc)?;
        tree.wait_for_port(http)?;
        Ok(Self { _tree: tree, grpc, http, sink })
    }

    /// The environment that makes an exporter send here.
    pub fn environment(&self, transport: Transport) -> Vec<(&'static str, String)> {
        let (protocol, port) = match transport {
            Transport::Grpc => ("grpc", self.grpc),
            Transport::Http => ("http/protobuf", self.http),
        };
        vec![
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ]
    }

    /// Forgets what was received.
    pub fn clear(&self) {
        self.sink.clear();
    }

    /// Waits until `count` spans have arrived, and gives all.
    pub fn wait_for(&self, count: usize) -> Result<Vec<Span>> {
        let arrived = || self.sink.spans().map_or(0, |spans| spans.len());
        wait_until("the collector has the spans", Duration::from_secs(15), || {
            (arrived() >= count).then_some(())
        })
        .with_context(|| format!("{} of {count} spans arrived", arrived()))?;
        self.sink.spans()
    }

    /// The data points that have arrived.
    pub fn points(&self) -> Result<Vec<Point>> {
        self.sink.points()
    }

    /// Every byte that was received, as the receiver passed it on.
    pub fn bytes(&self) -> Vec<u8> {
        self.sink.posted().into_iter().flat_map(|posted| posted.body).collect()
    }
}
