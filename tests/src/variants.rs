//! Other builds of this machine's interpreters: without their symbol table, inside another program, or passing for what they
//! are not.
//!
//! They live in `target/test-variants`, are made anew when the interpreter is, and use the libraries of the original.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::packages;
use crate::python::{self, Home, Python, run};
use crate::runner::skip;

/// Copies of an interpreter and its library with nothing but their dynamic symbols, as most containers have them.
pub fn stripped(label: &str) -> Result<Python> {
    copy(label, "stripped", |file| run(Command::new("strip").arg("--strip-all").arg(file)))
}

/// What an interpreter can pass for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disguise {
    /// A build without the GIL.
    FreeThreaded,
    /// CPython 3.16.
    TooNew,
}

/// Python 3.13 that says it is something else: what an interpreter runs does not depend on what it says.
pub fn disguised(disguise: Disguise) -> Result<Python> {
    let name = match disguise {
        Disguise::FreeThreaded => "free-threaded",
        Disguise::TooNew => "too-new",
    };
    copy("3.13", name, |file| {
        let mut bytes = fs::read(file)?;
        // `_Py_DebugOffsets { char cookie[8]; uint64_t version; uint64_t free_threaded; ... }`, version 3.13.x.
        let is_offsets =
            |window: &[u8]| window.starts_with(b"xdebugpy") && window[10..] == [13, 3, 0, 0, 0, 0];
        // The executable has no interpreter in it.
        let Some(offsets) = bytes.windows(16).position(is_offsets) else { return Ok(()) };
        let (at, value) = match disguise {
            Disguise::FreeThreaded => (offsets + 16, 1_u64),
            Disguise::TooNew => (version(file, &bytes[offsets + 8..offsets + 16], &bytes)?, 0x0310_00f0),
        };
        bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        Ok(fs::write(file, bytes)?)
    })
}

/// Where in a library the value of `Py_Version` is, which is `expected`. Constants are at the same place in the file as in memory.
fn version(library: &Path, expected: &[u8], bytes: &[u8]) -> Result<usize> {
    let symbols = Command::new("nm").args(["--dynamic", "--defined-only"]).arg(library).output()?;
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let line = symbols.lines().find(|line| line.ends_with(" Py_Version")).context("it has no Py_Version")?;
    let at = usize::from_str_radix(line.split(' ').next().unwrap_or_default(), 16)?;
    ensure!(bytes.get(at..at + 8) == Some(expected), "Py_Version is not at {at:#x}");
    Ok(at)
}

/// Copies of a shared interpreter's executable and library, changed by `change`.
fn copy(label: &str, name: &str, change: impl Fn(&Path) -> Result<()>) -> Result<Python> {
    let python = python::find(label).ok_or_else(|| skip(format!("no Python {label} on this machine")))?;
    let (_lock, prefix) = prefix(&format!("{label}-{name}"))?;
    let original = python.executable.parent().and_then(Path::parent).context("it is in no bin/")?;
    let (bin, lib) = (format!("bin/python{label}"), format!("lib/libpython{label}.so.1.0"));
    for file in [&bin, &lib] {
        let (from, to) = (original.join(file), prefix.join(file));
        if !is_newer(&to, &from) {
            fs::create_dir_all(to.parent().unwrap_or(&prefix))?;
            let made = to.with_extension("new");
            fs::copy(&from, &made).with_context(|| format!("failed to copy {}", from.display()))?;
            change(&made)?;
            fs::rename(made, to)?;
        }
    }
    let modules = format!("lib/python{label}");
    if !prefix.join(&modules).exists() {
        symlink(original.join(&modules), prefix.join(modules))?;
    }
    let executable = prefix.join(bin);
    // The executable's own run path leads to the original library.
    let with = format!("LD_LIBRARY_PATH='{}'", prefix.join("lib").display());
    let maps = "import os; print(open('/proc/self/maps').read())";
    let mut command = Command::new(&executable);
    let mapped = command.env("LD_LIBRARY_PATH", prefix.join("lib")).args(["-c", maps]).output()?;
    let mapped = String::from_utf8_lossy(&mapped.stdout).into_owned();
    let used = |library: &Path| mapped.contains(&library.display().to_string());
    ensure!(used(&prefix.join(&lib)) && !used(&original.join(&lib)), "the copy is not used: {mapped}");
    let of = Box::new(python);
    Ok(Python { label: format!("{label}-{name}"), executable, home: Home::Guest { with, of } })
}

/// A program that is no Python by its name, and has an interpreter inside.
pub(crate) const PROGRAM: &str = r#"
int Py_BytesMain(int argc, char **argv);
int main(int argc, char **argv) { return Py_BytesMain(argc, argv); }
"#;

/// A program with Debian's interpreter linked into it, stripped. Like all such programs it exports the interpreter's symbols,
/// for the modules that it loads.
pub fn embedded() -> Result<Python> {
    let Some(python) = python::find("debian") else { return Err(skip("no /usr/bin/python3")) };
    let version = python.executable.file_name().and_then(|name| name.to_str()).context("it has no name")?;
    let archive = PathBuf::from(format!(
        "/usr/lib/{version}/config-{}-{}-linux-gnu/lib{version}.a",
        version.trim_start_matches("python"),
        std::env::consts::ARCH
    ));
    packages::ensure_debian(&["gcc", "libc6-dev", &format!("lib{version}-dev")], || archive.exists())?;
    let (_lock, prefix) = prefix("embedded")?;
    let (source, executable) = (prefix.join("shopd.c"), prefix.join("shopd"));
    fs::write(&source, PROGRAM)?;
    let mut compiler = Command::new("cc");
    compiler.arg(&source).arg("-o").arg(&executable).args([
        "-s",
        "-no-pie",
        "-rdynamic",
        "-Wl,--whole-archive",
    ]);
    compiler.arg(archive).arg("-Wl,--no-whole-archive").args([
        "-lexpat",
        "-lz",
        "-lm",
        "-ldl",
        "-lpthread",
        "-lutil",
    ]);
    run(&mut compiler)?;
    // Its own path says nothing about where the standard library is.
    let home = Home::Guest { with: "PYTHONHOME=/usr".to_owned(), of: Box::new(python) };
    Ok(Python { label: "embedded".to_owned(), executable, home })
}

/// Whether `made` was made after `from` was.
fn is_newer(made: &Path, from: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    modified(made).zip(modified(from)).is_some_and(|(made, from)| made > from)
}

/// The directory of a variant, and the lock under which it is made.
pub(crate) fn prefix(name: &str) -> Result<(fs::File, PathBuf)> {
    let lock = packages::lock(&format!("test-variant-{name}"))?;
    let prefix = packages::target_directory().join("test-variants").join(name);
    fs::create_dir_all(&prefix)?;
    Ok((lock, fs::canonicalize(prefix)?))
}
