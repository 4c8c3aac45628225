//! The Python interpreters of this machine, and a virtual environment for each with the libraries of `apps/`.
//!
//! Environments live in `target/test-venvs` and are made once, under a lock, from one list of requirements.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{chroot, packages};

/// Libraries of the services. Versions are the newest that the interpreter can run: services in the field are not pinned either.
const SERVICES: &[&str] = &[
    "aiohttp>=3.10",
    "asyncpg>=0.29",
    "django>=4.2",
    "fastapi>=0.110",
    "flask>=3.0",
    "gevent>=23.9",
    "gunicorn>=22",
    "h11",
    "httptools",
    "httpx>=0.27",
    "hypercorn>=0.16",
    "packaging",
    "psycopg[binary,pool]>=3.1",
    "redis>=5",
    "requests>=2.31",
    "sqlalchemy[asyncio]>=2.0",
    "uvicorn>=0.29",
    "uvicorn-worker; python_version >= '3.9'",
    "uvloop>=0.19",
    "websockets>=12",
];

/// Celery, and what its tasks and the service that sends them use.
const CELERY: &[&str] = &[
    "celery[redis]>=5.3",
    "flask>=3.0",
    "gevent>=23.9",
    "gunicorn>=22",
    "psycopg[binary,pool]>=3.1",
    "requests>=2.31",
];

/// Further frameworks, servers and clients, for those cases that run on few interpreters: the services' libraries, and these.
const FRAMEWORKS: &[&str] = &[
    "a2wsgi",
    "blacksheep",
    "cheroot",
    "flask[async]",
    "litestar",
    "psycopg2-binary",
    "pyopenssl",
    "quart",
    "sanic",
    "tornado",
    "trio",
    "waitress",
];

/// The OTLP receiver, and an SDK to check it with.
const RECEIVER: &[&str] = &[
    "rotel>=0.0.1a10",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
];

/// What `apps/relay_app.py` uses, and OpenTelemetry's SDK and instrumentation of all of it.
const INSTRUMENTED: &[&str] = &[
    "asyncpg>=0.29",
    "fastapi>=0.110",
    "httpx>=0.27",
    "redis>=5",
    "uvicorn>=0.29",
    "opentelemetry-distro",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-instrumentation-asyncpg",
    "opentelemetry-instrumentation-fastapi",
    "opentelemetry-instrumentation-httpx",
    "opentelemetry-instrumentation-redis",
];
/// Programs of the environments that tests run.
const PROGRAMS: &[&str] = &["gunicorn", "hypercorn", "uvicorn"];

/// An interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Python {
    /// How tests call it: `3.8` to `3.13` for pyenv's builds, `debian` for the distribution's stripped static one.
    pub label: String,
    /// Its file.
    pub executable: PathBuf,
    /// Where it is at home.
    pub home: Home,
}

/// Where an interpreter is at home, and so how it is run and gets its libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// On this machine, where it can make virtual environments.
    Machine,
    /// In a chroot with this root.
    Chroot(PathBuf),
    /// Nowhere: another build of the interpreter here, run with these shell words in front, and with its libraries.
    Guest {
        /// Assignments of environment variables.
        with: String,
        /// Whose libraries it uses.
        of: Box<Python>,
    },
}

/// All interpreters that can be found: pyenv's by version, then Debian's.
pub fn all() -> Vec<Python> {
    let mut found = Vec::new();
    let roots = [
        std::env::var_os("PYENV_ROOT").map(PathBuf::from),
        std::env::home_dir().map(|home| home.join(".pyenv")),
    ];
    let versions = roots.into_iter().flatten().map(|root| root.join("versions")).find(|path| path.is_dir());
    for minor in 8..=14 {
        let prefix = format!("3.{minor}.");
        let builds = versions.iter().filter_map(|path| fs::read_dir(path).ok()).flatten().flatten();
        let newest = builds
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path().join("bin/python3"))
            .filter(|path| path.exists())
            .max();
        let label = format!("3.{minor}");
        found.extend(newest.map(|executable| Python { label, executable, home: Home::Machine }));
    }
    let debian = Path::new("/usr/bin/python3");
    if let Ok(executable) = fs::canonicalize(debian) {
        found.push(Python { label: "debian".to_owned(), executable, home: Home::Machine });
    }
    found
}

/// The interpreter with this label, if the machine has it.
pub fn find(label: &str) -> Option<Python> {
    all().into_iter().find(|python| python.label == label)
}

/// The interpreter for what is not about interpreters: 3.11, or else any.
pub fn usual() -> Result<Python> {
    let usual = find("3.11").or_else(|| all().pop());
    usual.context(
        "no Python 3.8 or newer, neither pyenv's nor /usr/bin/python3: install python3 and python3-venv",
    )
}

impl Python {
    /// The environment with the services' libraries.
    pub fn services(&self) -> Result<Venv> {
        self.venv("services", SERVICES)
    }

    /// The environment with Celery.
    pub fn celery(&self) -> Result<Venv> {
        self.venv("celery", CELERY)
    }

    /// The environment with further frameworks as well.
    pub fn frameworks(&self) -> Result<Venv> {
        self.venv("frameworks", &[SERVICES, FRAMEWORKS].concat())
    }

    /// The environment with the OTLP receiver.
    pub fn receiver(&self) -> Result<Venv> {
        self.venv("receiver", RECEIVER)
    }

    /// The environment with OpenTelemetry's SDK and instrumentation.
    pub fn instrumented(&self) -> Result<Venv> {
        self.venv("instrumented", INSTRUMENTED)
    }

    /// The environment with another profiler, to compare with.
    pub fn profiler(&self) -> Result<Venv> {
        self.venv("profiler", &["py-spy>=0.4"])
    }

    fn venv(&self, purpose: &str, requirements: &[&str]) -> Result<Venv> {
        let name = format!("{}-{purpose}", self.label);
        let path = match &self.home {
            // They go with the chroot.
            Home::Chroot(root) => root.join("opt").join(&name),
            Home::Machine | Home::Guest { .. } => packages::target_directory().join("test-venvs").join(&name),
        };
        let wanted = format!("{}\n{}\n", self.executable.display(), requirements.join("\n"));
        let marker = path.join("complete");
        let _lock = packages::lock(&format!("test-venv-{name}"))?;
        if fs::read_to_string(&marker).is_ok_and(|made| made == wanted) {
            return Ok(Venv { path: fs::canonicalize(path)? });
        }
        eprintln!("  making the Python environment {name}: a minute at most, once");
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        let start = match &self.home {
            Home::Machine => None,
            Home::Chroot(root) => {
                // Another program with the interpreter of that version uses its libraries.
                let version = self.label.split('-').next().unwrap_or_default();
                match chroot::find(version)? {
                    Some(python) if python != *self => drop(python.venv(purpose, requirements)?),
                    _ => {
                        let pip = usual()?.venv(purpose, requirements)?.script("python");
                        chroot::install(root, version, &pip, requirements)?;
                    }
                }
                let (libraries, enter) = (chroot::libraries(version), chroot::enter(root));
                let executable = self.executable.strip_prefix(root)?.display();
                Some(format!("PYTHONPATH={libraries} exec {enter} /{executable}"))
            }
            Home::Guest { with, of } => {
                let pip = of.venv(purpose, requirements)?.package_file("pip")?;
                let libraries = pip.parent().unwrap_or(&pip).display();
                Some(format!("{with} PYTHONPATH='{libraries}' exec '{}'", self.executable.display()))
            }
        };
        if let Some(start) = start {
            write_scripts(&path, &start)?;
            fs::write(marker, wanted)?;
            return Ok(Venv { path: fs::canonicalize(path)? });
        }
        if self.label == "debian" {
            let ensurepip =
                || run(Command::new(&self.executable).args(["-c", "import ensurepip, venv"])).is_ok();
            packages::ensure_debian(&["python3-venv"], ensurepip)?;
        }
        run(Command::new(&self.executable).args(["-m", "venv"]).arg(&path))?;
        let pip = |arguments: &[&str]| {
            let mut command = Command::new(path.join("bin/python"));
            run(command
                .args(["-m", "pip", "install", "--quiet", "--prefer-binary", "--retries", "5"])
                .args(arguments))
        };
        pip(&["--upgrade", "pip"])?;
        pip(requirements)?;
        fs::write(marker, wanted)?;
        Ok(Venv { path: fs::canonicalize(path)? })
    }
}

/// What a virtual environment's `bin` has, for an interpreter that is run by the shell words `start`.
fn write_scripts(path: &Path, start: &str) -> Result<()> {
    let bin = path.join("bin");
    fs::create_dir_all(&bin)?;
    let modules = PROGRAMS.iter().map(|name| (*name, format!("-m {name} ")));
    for (name, module) in modules.chain([("python", String::new())]) {
        let script = bin.join(name);
        fs::write(&script, format!("#!/bin/sh\n{start} {module}\"$@\"\n"))?;
        fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A virtual environment.
#[derive(Clone, Debug)]
pub struct Venv {
    path: PathBuf,
}

impl Venv {
    /// A console script of the environment.
    pub fn script(&self, name: &str) -> PathBuf {
        self.path.join("bin").join(name)
    }

    /// The newest file below the environment's `site-packages` with this relative path.
    pub fn package_file(&self, relative: &str) -> Result<PathBuf> {
        let libraries = fs::read_dir(self.path.join("lib"))?.flatten();
        let mut files = libraries.map(|entry| entry.path().join("site-packages").join(relative));
        files.find(|file| file.exists()).with_context(|| format!("no {relative} in {}", self.path.display()))
    }
}

/// Runs a command to its end; what it wrote to standard error is part of the failure.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(())
}
