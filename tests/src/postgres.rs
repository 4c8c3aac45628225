//! A real PostgreSQL server with its own data directory, port and two roles; passwords are real (SCRAM and cleartext).
//!
//! The server refuses to run as root, so it runs as the `postgres` user when the tests are root.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::packages;
use crate::process::{Tree, free_port, wait_until};
use crate::tls::Certificates;

/// Role of the services; its connections authenticate with SCRAM.
pub const USER: &str = "shop";
/// Its password.
pub const PASSWORD: &str = "canary-scram-7f31c0";
/// Password of the role `plain`, which is sent over the wire in clear.
pub const CLEARTEXT_PASSWORD: &str = "canary-cleartext-5b82aa";

/// A running server.
pub struct Postgres {
    tree: Tree,
    port: u16,
}

impl Postgres {
    /// Starts one below `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_with(directory, None)
    }

    /// The same; with certificates it speaks TLS to who asks for it.
    pub fn start_with(directory: &Path, tls: Option<&Certificates>) -> Result<Self> {
        packages::ensure_debian(&["postgresql"], || binaries().is_some())?;
        let binaries = binaries().context("no /usr/lib/postgresql/*/bin/initdb")?;
        let home = directory.join("postgres");
        fs::create_dir(&home)?;
        let password_file = home.join("password");
        fs::write(&password_file, PASSWORD)?;
        let user = unprivileged_user()?;
        if let Some((uid, gid)) = user {
            chown(&home, Some(uid), Some(gid))?;
            chown(&password_file, Some(uid), Some(gid))?;
        }
        let command = |program: &str| {
            let mut command = Command::new(binaries.join(program));
            command.current_dir(&home).env("LC_ALL", "C");
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let data = home.join("data");
        let mut initdb = command("initdb");
        initdb.args(["--no-sync", "--encoding=UTF8", "--auth=scram-sha-256", "--username", USER]);
        initdb.arg("--pwfile").arg(&password_file).arg("--pgdata").arg(&data);
        let made = initdb.output().context("failed to run initdb")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        let rules = "host all plain 127.0.0.1/32 password\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rules)?;

        let port = free_port()?;
        let mut server = command("postgres");
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k", ""]);
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=300"] {
            server.args(["-c", setting]);
        }
        if let Some(Certificates { certificate, key, .. }) = tls {
            // It insists that nobody else can read its key.
            for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
                let to = data.join(name);
                fs::copy(from, &to)?;
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
                if let Some((uid, gid)) = user {
                    chown(&to, Some(uid), Some(gid))?;
                }
            }
            server.args(["-c", "ssl=on"]);
        }
        let mut tree = Tree::spawn("postgres", server, &directory.join("postgres.log"))?;
        tree.wait_for_port(port)?;
        let postgres = Self { tree, port };
        postgres.prepare(&binaries)?;
        Ok(postgres)
    }

    fn prepare(&self, binaries: &Path) -> Result<()> {
        let script = format!("CREATE ROLE plain LOGIN PASSWORD '{CLEARTEXT_PASSWORD}'");
        wait_until("PostgreSQL is ready", Duration::from_secs(30), || {
            let mut psql = Command::new(binaries.join("psql"));
            psql.args(["--quiet", "--no-psqlrc", "--dbname", &self.url(), "--command", &script]);
            psql.output().ok().filter(|output| output.status.success())
        })
        .with_context(|| self.tree.log())?;
        Ok(())
    }

    /// Connection URL for the services.
    pub fn url(&self) -> String {
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.tree.stop(libc::SIGINT, Duration::from_secs(10));
    }
}

fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    versions.map(|entry| entry.path().join("bin")).filter(|path| path.join("initdb").exists()).max()
}

/// Uid and gid to drop to; nothing if the tests are not root.
fn unprivileged_user() -> Result<Option<(u32, u32)>> {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.context("no user postgres in /etc/passwd")?.split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok()).context("odd /etc/passwd");
    Ok(Some((number()?, number()?)))
}
