//! A real Redis server with its own directory and port: an open default user, and a user `canary` with a password.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::packages;
use crate::process::{Tree, free_port};
use crate::tls::Certificates;

/// Password of the user `canary`.
pub const ACL_PASSWORD: &str = "canary-acl-93d1e7";

/// A running server.
pub struct Redis {
    tree: Tree,
    port: u16,
    encrypted: bool,
}

impl Redis {
    /// Starts one below `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_with(directory, None)
    }

    /// The same; with certificates it speaks TLS only.
    pub fn start_with(directory: &Path, tls: Option<&Certificates>) -> Result<Self> {
        packages::ensure_debian(&["redis-server"], || Path::new("/usr/bin/redis-server").exists())?;
        let port = free_port()?;
        let mut server = Command::new("/usr/bin/redis-server");
        let configuration = directory.join("redis.conf");
        let listen = match tls {
            None => format!("port {port}"),
            Some(Certificates { certificate, key, .. }) => format!(
                "port 0\ntls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-auth-clients no\ntls-ca-cert-file {}",
                certificate.display(),
                key.display(),
                certificate.display()
            ),
        };
        let lines = [
            format!("bind 127.0.0.1\n{listen}\ndir {}", directory.display()),
            "save \"\"\nappendonly no".to_owned(),
            format!("user canary on >{ACL_PASSWORD} ~* +@all\n"),
        ];
        fs::write(&configuration, lines.join("\n"))?;
        server.arg(configuration);
        let mut tree = Tree::spawn("redis-server", server, &directory.join("redis.log"))?;
        tree.wait_for_port(port)?;
        Ok(Self { tree, port, encrypted: tls.is_some() })
    }

    /// Connection URL for the services.
    pub fn url(&self) -> String {
        let scheme = if self.encrypted { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}/0", self.port)
    }

    /// Its pid: a process that is no Python.
    pub fn pid(&self) -> u32 {
        self.tree.pid()
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}
