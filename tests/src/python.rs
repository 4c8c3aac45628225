//! The Python interpreters of this machine, and a virtual environment for each with the libraries of `apps/`.
//!
//! Environments live in `target/test-venvs` and are made once, under a lock, from one list of requirements.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::packages;

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

/// Further frameworks and servers, for those cases that run on few interpreters: the services' libraries, and these.
const FRAMEWORKS: &[&str] = &[
    "a2wsgi",
    "blacksheep",
    "cheroot",
    "flask[async]",
    "litestar",
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

/// An interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Python {
    /// How tests call it: `3.8` to `3.13` for pyenv's builds, `debian` for the distribution's stripped static one.
    pub label: String,
    /// Its file.
    pub executable: PathBuf,
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
        found.extend(newest.map(|executable| Python { label: format!("3.{minor}"), executable }));
    }
    let debian = Path::new("/usr/bin/python3");
    if let Ok(executable) = fs::canonicalize(debian) {
        found.push(Python { label: "debian".to_owned(), executable });
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

    /// The environment with further frameworks as well.
    pub fn frameworks(&self) -> Result<Venv> {
        self.venv("frameworks", &[SERVICES, FRAMEWORKS].concat())
    }

    /// The environment with the OTLP receiver.
    pub fn receiver(&self) -> Result<Venv> {
        self.venv("receiver", RECEIVER)
    }

    fn venv(&self, purpose: &str, requirements: &[&str]) -> Result<Venv> {
        let name = format!("{}-{purpose}", self.label);
        let path = packages::target_directory().join("test-venvs").join(&name);
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

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(())
}
