//! Debian packages that the tests need: installed once, under a lock, when root; else a sentence that says what is missing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The workspace's target directory.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

/// Holds an exclusive lock named `name` across all test processes until the returned file is dropped.
pub fn lock(name: &str) -> Result<File> {
    let directory = target_directory();
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("failed to create {}", path.display()))?;
    file.lock().with_context(|| format!("failed to lock {}", path.display()))?;
    Ok(file)
}

/// Installs Debian packages unless `present` says that there is no need.
pub fn ensure_debian(packages: &[&str], present: impl Fn() -> bool) -> Result<()> {
    if present() {
        return Ok(());
    }
    let _lock = lock("test-apt")?;
    if present() {
        return Ok(());
    }
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let list = packages.join(" ");
    ensure!(root, "missing Debian packages, and not root: run `apt-get install {list}`");
    eprintln!("  installing Debian packages: {list}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-y"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command.output().context("failed to run apt-get")
    };
    let mut output = apt(&[&["install", "--no-install-recommends"], packages].concat())?;
    if !output.status.success() {
        apt(&["update"])?;
        output = apt(&[&["install", "--no-install-recommends"], packages].concat())?;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && present(), "`apt-get install {list}` did not help: {said}");
    Ok(())
}
