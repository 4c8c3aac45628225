//! A Python interpreter of this machine, and virtual environments made of it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{command, packages, progress::Step, workspace};

/// The samples need 3.11; pitviper knows interpreters up to 3.15.
const VERSIONS: std::ops::RangeInclusive<(u32, u32)> = (3, 11)..=(3, 14);

/// An interpreter that can make virtual environments.
pub(crate) struct Interpreter {
    program: PathBuf,
    /// For example `3.11.2`.
    pub(crate) version: String,
}

impl Interpreter {
    /// The newest suitable one; Debian's is installed if there is none.
    pub(crate) fn find_or_install() -> Result<Self> {
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        packages::install(&["python3", "python3-venv"], "the sample services")?;
        Self::find().context("no Python 3.11 to 3.14 with the venv module was found; please install one")
    }

    fn find() -> Option<Self> {
        let pyenv =
            env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".pyenv")));
        let built =
            pyenv.and_then(|root| fs::read_dir(root.join("versions")).ok()).into_iter().flatten().flatten();
        let minors = VERSIONS.start().1..=VERSIONS.end().1;
        let system = minors.map(|minor| format!("python3.{minor}")).chain(["python3".to_owned()]);
        let folders = ["/usr/local/bin", "/usr/bin"].map(Path::new);
        built
            .map(|entry| entry.path().join("bin/python3"))
            .chain(system.flat_map(|name| folders.map(|folder| folder.join(&name))))
            .filter(|program| program.is_file())
            .filter_map(Self::examine)
            .max_by_key(|(version, _)| *version)
            .map(|(_, interpreter)| interpreter)
    }

    fn examine(program: PathBuf) -> Option<((u32, u32), Self)> {
        // A free-threaded build is one that pitviper refuses; Debian's has no ensurepip without python3-venv.
        const QUESTION: &str = "import sys, sysconfig, venv, ensurepip\n\
            assert not sysconfig.get_config_var('Py_GIL_DISABLED')\n\
            print(*sys.version_info[:3], sep='.')";
        let version = command::output(command::new(&program).args(["-c", QUESTION]))?;
        let mut parts = version.split('.').map(str::parse::<u32>);
        let number = (parts.next()?.ok()?, parts.next()?.ok()?);
        VERSIONS.contains(&number).then_some((number, Self { program, version }))
    }
}

/// A virtual environment under `target/`, kept between runs.
pub(crate) struct Environment(PathBuf);

impl Environment {
    /// Makes `target/<name>` hold exactly these requirements, if it does not yet.
    pub(crate) fn prepare(
        step: &Step,
        interpreter: &Interpreter,
        name: &str,
        requirements: &[&Path],
    ) -> Result<Self> {
        let Interpreter { program, version } = interpreter;
        let folder = workspace::target().join(name);
        let mut wanted = format!("{} {version}\n", program.display());
        for file in requirements {
            wanted +=
                &fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
        }
        let marker = folder.join("requirements-installed.txt");
        if fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
            return Ok(Self(folder));
        }
        command::quiet(step, command::new(program).args(["-m", "venv", "--clear"]).arg(&folder))?;
        let environment = Self(folder);
        let mut pip = environment.command("python");
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]);
        for file in requirements {
            pip.arg("--requirement").arg(file);
        }
        command::quiet(step, &mut pip)?;
        fs::write(&marker, wanted).with_context(|| format!("failed to write {}", marker.display()))?;
        Ok(environment)
    }

    /// One of the environment's programs, which finds the others too and writes no `__pycache__`.
    pub(crate) fn command(&self, program: &str) -> Command {
        let folder = self.0.join("bin");
        let mut command = command::new(folder.join(program));
        let paths = env::var_os("PATH").unwrap_or_default();
        let paths = env::join_paths(std::iter::once(folder).chain(env::split_paths(&paths))).unwrap_or(paths);
        command.env("PATH", paths).env("PYTHONDONTWRITEBYTECODE", "1").env_remove("PYTHONPATH");
        command
    }
}
