//! Starts the services of `apps/` under the servers of the field, and waits until they listen.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::lab::Lab;
use crate::process::{Tree, free_port, wait_until_idle};
use crate::python::Python;
use crate::tls::{Certificates, Encrypted};

/// What serves an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// `uvicorn --loop LOOP --http PARSER`.
    Uvicorn {
        /// `asyncio` or `uvloop`.
        event_loop: &'static str,
        /// `h11` or `httptools`.
        http: &'static str,
    },
    /// uvicorn with `--reset-contextvars`, and `--loop asyncio --http h11`: each request runs in a `contextvars.Context()`
    /// that is no copy of another one. uvicorn 0.39 did this without being asked.
    UvicornFreshContexts,
    /// `gunicorn --worker-class CLASS --workers N --threads N`.
    Gunicorn {
        /// `sync`, `gthread`, `gevent`, or `uvicorn_worker.UvicornWorker`.
        class: &'static str,
        /// Worker processes.
        workers: u8,
        /// Threads of each; only for `gthread`.
        threads: u8,
    },
    /// `hypercorn --worker-class CLASS`.
    Hypercorn {
        /// `asyncio`, `uvloop` or `trio`.
        class: &'static str,
    },
    /// `python APP.py PORT`: the application serves itself.
    Script,
    /// The same with another argument, in the environment with further frameworks.
    ScriptWith(&'static str),
    /// uvicorn in the environment with further frameworks; with the selected loop.
    UvicornFrameworks {
        /// `asyncio` or `uvloop`.
        event_loop: &'static str,
    },
}

/// uvicorn as most people run it.
pub const UVICORN: Server = Server::Uvicorn { event_loop: "uvloop", http: "httptools" };

/// A running service.
pub struct Service {
    tree: Tree,
    port: u16,
}

/// The directory with the services' code.
pub fn apps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apps")
}

impl Service {
    /// Starts `app` (`module` or `module:callable`) with the lab's back ends.
    pub fn start(lab: &Lab, python: &Python, app: &str, server: Server) -> Result<Self> {
        Self::start_with(lab, python, app, server, &[])
    }

    /// The same with further environment variables, which win.
    pub fn start_with(
        lab: &Lab,
        python: &Python,
        app: &str,
        server: Server,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let port = free_port()?;
        let mut command = server.command(python, app, port)?;
        command.envs(environment.iter().copied());
        Self::spawn(lab, &app.replace(':', "-"), command, port)
    }

    /// The same over TLS, unless the application serves itself, with back ends that are.
    pub fn start_encrypted(
        lab: &Lab,
        python: &Python,
        app: &str,
        server: Server,
        encrypted: &Encrypted,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let port = free_port()?;
        let mut command = server.command(python, app, port)?;
        let Certificates { certificate, key, .. } = &encrypted.certificates;
        let [certfile, keyfile] = match server {
            Server::Gunicorn { .. } | Server::Hypercorn { .. } => ["--certfile", "--keyfile"],
            _ => ["--ssl-certfile", "--ssl-keyfile"],
        };
        if server != Server::Script {
            command.arg(certfile).arg(certificate).arg(keyfile).arg(key);
        }
        command.envs(encrypted.environment()).envs(environment.iter().copied());
        Self::spawn(lab, &app.replace(':', "-"), command, port)
    }

    /// Starts what `command` makes for a port.
    pub fn start_command(lab: &Lab, name: &str, command: impl FnOnce(&str) -> Command) -> Result<Self> {
        let port = free_port()?;
        Self::spawn(lab, name, command(&port.to_string()), port)
    }

    fn spawn(lab: &Lab, name: &str, mut command: Command, port: u16) -> Result<Self> {
        let explicit: HashSet<OsString> =
            command.get_envs().map(|(variable, _)| variable.to_owned()).collect();
        command.current_dir(apps()).env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
        for (variable, value) in lab.back_ends() {
            if !explicit.contains(OsStr::new(variable)) {
                command.env(variable, value);
            }
        }
        let mut tree = Tree::spawn(name, command, &lab.directory().join(format!("{name}-{port}.log")))?;
        tree.wait_for_port(port)?;
        Ok(Self { tree, port })
    }

    /// Pid of the first process: the master of a pre-fork server.
    pub fn pid(&self) -> u32 {
        self.tree.pid()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until it is through with what it does after its responses.
    pub fn settle(&self) {
        wait_until_idle(self.pid());
    }

    /// What the service wrote so far.
    pub fn log(&self) -> String {
        self.tree.log()
    }
}

/// With a starved client five seconds pass between two requests of a connection. Over TLS uvicorn then reads a request of a
/// connection that it is closing, does not serve it, and the client sends it once more.
const UVICORN_OPTIONS: [&str; 4] = ["--log-level", "warning", "--timeout-keep-alive", "60"];

impl Server {
    fn command(self, python: &Python, app: &str, port: u16) -> Result<Command> {
        let venv = match self {
            Self::Hypercorn { class: "trio" } | Self::ScriptWith(_) | Self::UvicornFrameworks { .. } => {
                python.frameworks()?
            }
            _ => python.services()?,
        };
        let target = if app.contains(':') { app.to_owned() } else { format!("{app}:app") };
        let bind = format!("127.0.0.1:{port}");
        let port = port.to_string();
        Ok(match self {
            Self::Uvicorn { event_loop, http } => {
                let mut command = Command::new(venv.script("uvicorn"));
                command.args(["--port", &port, "--loop", event_loop, "--http", http]);
                command.args(UVICORN_OPTIONS).arg(target);
                command
            }
            Self::UvicornFreshContexts => {
                let mut command = Command::new(venv.script("uvicorn"));
                command.args(["--port", &port, "--loop", "asyncio", "--http", "h11"]);
                command.args(UVICORN_OPTIONS).arg("--reset-contextvars").arg(target);
                command
            }
            Self::Gunicorn { class, workers, threads } => {
                let mut command = Command::new(venv.script("gunicorn"));
                command.args(["--bind", &bind, "--worker-class", class, "--log-level", "warning"]);
                command.args(["--workers", &workers.to_string(), "--threads", &threads.to_string()]);
                command.args(["--timeout", "120", "--graceful-timeout", "2", "--keep-alive", "30"]);
                command.arg(target);
                command
            }
            Self::Hypercorn { class } => {
                let mut command = Command::new(venv.script("hypercorn"));
                command.args(["--bind", &bind, "--worker-class", class, "--log-level", "warning", &target]);
                command
            }
            Self::Script => {
                let mut command = Command::new(venv.script("python"));
                command.args([&format!("{app}.py"), &port]);
                command
            }
            Self::ScriptWith(argument) => {
                let mut command = Command::new(venv.script("python"));
                command.args([&format!("{app}.py"), &port, argument]);
                command
            }
            Self::UvicornFrameworks { event_loop } => {
                let mut command = Command::new(venv.script("uvicorn"));
                command.args(["--port", &port, "--loop", event_loop]).args(UVICORN_OPTIONS).arg(target);
                command
            }
        })
    }
}
