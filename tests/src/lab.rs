//! The shared surroundings of a test binary's cases: a scratch directory, the back ends, and the collector.
//!
//! Back ends start when a case first needs them, and end when the lab is dropped.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::collector::Collector;
use crate::postgres::Postgres;
use crate::process::{Tree, free_port};
use crate::python::{self, Python};
use crate::redis::Redis;
use crate::service;
use crate::tls::Encrypted;

/// See the module.
pub struct Lab {
    collector: OnceCell<Collector>,
    encrypted: OnceCell<Encrypted>,
    back_ends: BackEnds,
    python: Python,
    directory: Scratch,
}

/// Removed last, after those who write into it are gone: fields are dropped in order.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct BackEnds {
    postgres: Postgres,
    redis: Redis,
    _upstream: Tree,
    upstream_port: u16,
}

impl Lab {
    /// Starts the back ends.
    pub fn start() -> Result<Self> {
        let python = python::usual()?;
        let directory = std::env::temp_dir().join(format!("pitviper-tests-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let scratch = Scratch(directory.clone());
        let upstream_port = free_port()?;
        let mut command = std::process::Command::new(&python.executable);
        command.arg(service::apps().join("upstream.py")).arg(upstream_port.to_string());
        let mut upstream = Tree::spawn("upstream", command, &directory.join("upstream.log"))?;
        let postgres = Postgres::start(&directory)?;
        let redis = Redis::start(&directory)?;
        upstream.wait_for_port(upstream_port)?;
        let back_ends = BackEnds { postgres, redis, _upstream: upstream, upstream_port };
        Ok(Self {
            collector: OnceCell::new(),
            encrypted: OnceCell::new(),
            back_ends,
            python,
            directory: scratch,
        })
    }

    /// The interpreter for what is not about interpreters.
    pub fn python(&self) -> &Python {
        &self.python
    }

    /// Scratch directory; removed at the end.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// The PostgreSQL server.
    pub fn postgres(&self) -> &Postgres {
        &self.back_ends.postgres
    }

    /// The Redis server.
    pub fn redis(&self) -> &Redis {
        &self.back_ends.redis
    }

    /// Port of the upstream HTTP service, which no test observes.
    pub fn upstream_port(&self) -> u16 {
        self.back_ends.upstream_port
    }

    /// The environment variables that tell a service where its back ends are.
    pub fn back_ends(&self) -> [(&'static str, String); 3] {
        let upstream = format!("http://127.0.0.1:{}", self.back_ends.upstream_port);
        [
            ("TEST_POSTGRES", self.back_ends.postgres.url()),
            ("TEST_REDIS", self.back_ends.redis.url()),
            ("TEST_UPSTREAM", upstream),
        ]
    }

    /// The back ends that speak TLS.
    pub fn encrypted(&self) -> Result<&Encrypted> {
        if self.encrypted.get().is_none() {
            let _ = self.encrypted.set(Encrypted::start(self)?);
        }
        self.encrypted.get().ok_or_else(|| anyhow::anyhow!("they were just set"))
    }

    /// The OTLP receiver, with nothing in it from earlier cases.
    pub fn collector(&self) -> Result<&Collector> {
        if self.collector.get().is_none() {
            let _ = self.collector.set(Collector::start(&self.python, &self.directory.0)?);
        }
        let collector = self.collector.get().ok_or_else(|| anyhow::anyhow!("the collector was just set"))?;
        collector.clear();
        Ok(collector)
    }
}
