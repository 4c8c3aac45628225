//! A Redis server of its own, which keeps nothing on disk.

use anyhow::Result;

use super::{Service, free_port, scratch::Scratch};
use crate::{command, packages};

/// A running server.
pub(crate) struct Redis {
    server: Service,
    port: u16,
}

impl Redis {
    pub(crate) fn start(scratch: &Scratch) -> Result<Self> {
        if command::which("redis-server").is_none() {
            packages::install(&["redis-server"], "the sample's cache")?;
        }
        let port = free_port()?;
        let mut redis = command::new("redis-server");
        redis.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--port",
            &port.to_string(),
            "--dir",
        ]);
        let mut server = Service::start("redis", redis.arg(scratch.path()), scratch.path())?;
        server.wait_for_port(port)?;
        Ok(Self { server, port })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }
}
