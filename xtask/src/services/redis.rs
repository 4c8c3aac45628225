//! A Redis server of its own, which keeps nothing on disk.

use anyhow::Result;

use super::{Service, free_port, scratch::Scratch, tls::Certificates};
use crate::{command, packages};

/// A running server.
pub(crate) struct Redis {
    server: Service,
    port: u16,
}

impl Redis {
    pub(crate) fn start(scratch: &Scratch) -> Result<Self> {
        Self::start_with(scratch, None)
    }

    /// The same; with certificates it speaks TLS only.
    pub(crate) fn start_with(scratch: &Scratch, tls: Option<&Certificates>) -> Result<Self> {
        if command::which("redis-server").is_none() {
            packages::install(&["redis-server"], "the sample's cache")?;
        }
        let port = free_port()?;
        let mut redis = command::new("redis-server");
        redis.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
        redis.arg(scratch.path());
        match tls {
            None => drop(redis.args(["--port", &port.to_string()])),
            Some(Certificates { authority, certificate, key }) => {
                redis.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no"]);
                redis.arg("--tls-cert-file").arg(certificate).arg("--tls-key-file").arg(key);
                redis.arg("--tls-ca-cert-file").arg(authority);
            }
        }
        let mut server = Service::start("redis", &mut redis, scratch.path())?;
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
