//! Real interpreters for the tests: started as children, asked questions, ended.

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where pyenv keeps its versions, for use in formats.
pub(crate) const PYENV: Pyenv = Pyenv;

pub(crate) struct Pyenv;

impl fmt::Display for Pyenv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = std::env::var("PYENV_ROOT")
            .unwrap_or_else(|_| format!("{}/.pyenv", std::env::var("HOME").unwrap_or_default()));
        write!(f, "{root}/versions")
    }
}

/// A command that runs an interpreter; one in a chroot of the system tests, inside it.
pub(crate) fn command(interpreter: &str) -> Command {
    let Some((before, inside)) = interpreter.split_once("/test-chroots/") else {
        return Command::new(interpreter);
    };
    let (name, path) = inside.split_once('/').unwrap();
    let mut command = Command::new("chroot");
    command.args([format!("{before}/test-chroots/{name}"), format!("/{path}")]);
    command
}

/// The interpreter of this name that the system tests have in a chroot, or that would be Debian's own.
pub(crate) fn in_chroot(name: &str) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let chroots = std::fs::read_dir(target.join("test-chroots")).into_iter().flatten().flatten();
    let mut found = chroots.map(|chroot| chroot.path().join("usr/bin").join(name));
    let found = found.find(|path| path.exists()).and_then(|path| path.into_os_string().into_string().ok());
    found.unwrap_or_else(|| format!("/usr/bin/{name}"))
}

/// A running interpreter; killed when dropped.
pub(crate) struct Python {
    child: Child,
    /// What the program printed, one line.
    pub(crate) answer: String,
}

impl Python {
    /// Runs a program that prints one line and waits for the end of its standard input; with an empty program just the
    /// line. `None`, and a word why, when the interpreter is not installed.
    pub(crate) fn start(interpreter: &str, program: &str) -> Option<Self> {
        let program = match program {
            "" => "import sys; print('ready'); sys.stdout.flush(); sys.stdin.read()",
            program => program,
        };
        Self::start_command(command(interpreter).args(["-c", program]))
    }

    /// The same, with a command that is spelled out.
    pub(crate) fn start_command(command: &mut Command) -> Option<Self> {
        let interpreter = Path::new(command.get_program()).to_owned();
        if interpreter.is_absolute() && !interpreter.exists() {
            eprintln!("skipped: {} is not installed", interpreter.display());
            return None;
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n'), "{} ended without an answer", interpreter.display());
        Some(Self { child, answer: answer.trim_end().to_owned() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The numbers in the answer.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.answer.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        if let Some(stdin) = &mut self.child.stdin {
            stdin.flush().ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
