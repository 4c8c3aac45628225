//! A PostgreSQL server of its own: data folder, socket folder and port are temporary.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::{Service, free_port, scratch::Scratch, tls::Certificates};
use crate::{command, packages, progress::Step};

/// The database user and name of everything here.
const USER: &str = "shop";

/// A running server; its folder belongs to the [`Scratch`].
pub(crate) struct Postgres {
    server: Service,
    folder: PathBuf,
    port: u16,
}

impl Postgres {
    /// Initialises and starts a server, and runs the statements of `seed` in it.
    pub(crate) fn start(step: &Step, scratch: &Scratch, seed: &Path) -> Result<Self> {
        Self::start_with(step, scratch, seed, None)
    }

    /// The same; with certificates it speaks TLS to who asks for it.
    pub(crate) fn start_with(
        step: &Step,
        scratch: &Scratch,
        seed: &Path,
        tls: Option<&Certificates>,
    ) -> Result<Self> {
        let programs = programs()?;
        let folder = scratch.path().join("postgres");
        fs::create_dir(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
        let owner = packages::is_root().then(unprivileged_user).transpose()?;
        if let Some((uid, gid)) = owner {
            chown(&folder, Some(uid), Some(gid)).context("failed to give PostgreSQL its folder")?;
        }
        let program = |name: &str| {
            let mut command = command::new(programs.join(name));
            command.current_dir(&folder);
            if let Some((uid, gid)) = owner {
                command.uid(uid).gid(gid);
            }
            command
        };
        let data = folder.join("data");
        command::quiet(
            step,
            program("initdb")
                .args(["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-U", USER, "-D"])
                .arg(&data),
        )?;
        let port = free_port()?;
        let settings = [
            "listen_addresses=127.0.0.1".into(),
            format!("unix_socket_directories={}", folder.display()),
            "fsync=off".into(),
        ];
        let mut postgres = program("postgres");
        postgres.arg("-D").arg(&data).arg("-p").arg(port.to_string());
        for setting in settings {
            postgres.args(["-c", &setting]);
        }
        if let Some(Certificates { certificate, key, .. }) = tls {
            for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
                let to = data.join(name);
                fs::copy(from, &to).context("failed to give PostgreSQL its certificate")?;
                // It insists that nobody else can read its key.
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
                if let Some((uid, gid)) = owner {
                    chown(&to, Some(uid), Some(gid))?;
                }
            }
            postgres.args(["-c", "ssl=on"]);
        }
        let mut server = Service::start("postgres", &mut postgres, scratch.path())?;
        // SIGTERM would wait for its clients; a server that is killed leaves shared memory behind.
        server.set_stop_signal(Signal::INT);
        server.wait_until(Duration::from_secs(30), || {
            command::output(program("pg_isready").arg("-h").arg(&folder).arg("-p").arg(port.to_string()))
                .is_some()
        })?;
        command::quiet(
            step,
            command::new(programs.join("psql"))
                .args(["--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-U", USER, "-h"])
                .arg(&folder)
                .args(["-p", &port.to_string(), "-f"])
                .arg(seed),
        )?;
        Ok(Self { server, folder, port })
    }

    /// A connection address over TCP.
    pub(crate) fn tcp_url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// A connection string over the Unix socket.
    pub(crate) fn socket_dsn(&self) -> String {
        format!("host={} port={} user={USER} dbname=postgres", self.folder.display(), self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }
}

/// The folder of the newest server's programs; installs one if there is none.
fn programs() -> Result<PathBuf> {
    if let Some(found) = find_programs() {
        return Ok(found);
    }
    packages::install(&["postgresql"], "the sample's database")?;
    find_programs().context("the package postgresql left no initdb in /usr/lib/postgresql")
}

fn find_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter(|entry| {
            entry.path().join("bin/initdb").is_file() && entry.path().join("bin/postgres").is_file()
        })
        .max_by_key(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    newest.map(|entry| entry.path().join("bin")).or_else(|| {
        command::which("initdb").and_then(|path| Some(path.canonicalize().ok()?.parent()?.to_owned()))
    })
}

/// A user that PostgreSQL accepts to run as, when this is root: user and group id.
fn unprivileged_user() -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").context("failed to read /etc/passwd")?;
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| find_user(&users, name))
        .context("PostgreSQL cannot run as root, and there is no user `postgres` or `nobody`")
}

fn find_user(users: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields =
        users.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(name))?.skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:x:/:/bin/false\n";
        assert_eq!(find_user(users, "nobody"), Some((65534, 65533)));
        assert_eq!(find_user(users, "postgres"), None);
    }
}
