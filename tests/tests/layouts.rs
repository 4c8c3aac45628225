//! The agent's layout of each CPython version, compared with the headers that builds of it ship, cell by cell.
//!
//! With `PITVIPER_WRITE_LAYOUTS` set, as `cargo xtask layouts` does, the layouts are written instead.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pitviper_tests::{chroot, python};

/// Directories of headers of a CPython.
struct Headers {
    /// With `Python.h`.
    include: PathBuf,
    /// Searched after the system's, for what Debian keeps in a directory of the architecture.
    after: Option<PathBuf>,
}

/// All headers of this version on this machine; those of a version that it does not have come from the chroot.
fn headers(minor: u8) -> Vec<Headers> {
    let label = format!("3.{minor}");
    let machine = python::all().into_iter().map(|python| (python, false));
    let foreign = chroot::find(&label).unwrap_or_else(|error| {
        eprintln!("no CPython {label} in a chroot: {error:#}");
        None
    });
    let candidates = machine.chain(foreign.map(|python| (python, true))).filter_map(|(python, foreign)| {
        let prefix = python.executable.parent()?.parent()?.join("include");
        Some(Headers { include: prefix.join(format!("python{label}")), after: foreign.then_some(prefix) })
    });
    candidates.filter(|headers| headers.include.join("internal/pycore_pystate.h").exists()).collect()
}

/// The layout file that these headers make.
fn made(headers: &Headers, minor: u8) -> Result<String> {
    let program = std::env::temp_dir().join(format!("pitviper-layout-{}-{minor}", std::process::id()));
    let mut compiler = Command::new("cc");
    // The headers of Debian's packages include `<x86_64-linux-gnu/python3.X/pyconfig.h>`.
    compiler.args(["-std=gnu11", "-w", "-I"]).arg(&headers.include);
    if let Some(after) = &headers.after {
        compiler.arg("-idirafter").arg(after);
    }
    compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("layouts/layout.c")).arg("-o").arg(&program);
    let compiled = compiler.output().context("failed to run cc")?;
    let said = String::from_utf8_lossy(&compiled.stderr);
    ensure!(compiled.status.success(), "{} does not compile: {said}", headers.include.display());
    let printed = Command::new(&program).output()?;
    fs::remove_file(&program)?;
    ensure!(printed.status.success(), "{}: {}", headers.include.display(), printed.status);
    Ok(String::from_utf8(printed.stdout)?)
}

/// Without what formatting adds.
fn bare(text: &str) -> String {
    let bare: String = text.split_whitespace().collect();
    bare.replace(",}", "}")
}

fn check(minor: u8) {
    let layouts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src/python/layout");
    let file = layouts.join(format!("v3_{minor}.rs"));
    let all = headers(minor);
    if all.is_empty() {
        eprintln!("skipped: no internal headers of CPython 3.{minor} on this machine");
    }
    for headers in all {
        let made = made(&headers, minor).unwrap();
        if std::env::var_os("PITVIPER_WRITE_LAYOUTS").is_some() {
            fs::write(&file, &made).unwrap();
        }
        let written = fs::read_to_string(&file).unwrap();
        let include = headers.include.display();
        assert_eq!(bare(&written), bare(&made), "{} is not what {include} says: {made}", file.display());
        println!("3.{minor} is as {include} says");
    }
}

macro_rules! checks {
    ($($name:ident: $minor:expr;)*) => {
        $(#[test] fn $name() { check($minor); })*
    };
}

checks! {
    cpython_3_8: 8;
    cpython_3_9: 9;
    cpython_3_10: 10;
    cpython_3_11: 11;
    cpython_3_12: 12;
    cpython_3_13: 13;
    cpython_3_14: 14;
    cpython_3_15: 15;
}
