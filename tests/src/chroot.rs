//! Interpreters that the machine does not have: those of Debian's testing distribution, in a chroot.
//!
//! The chroot lives in `target/test-chroots` and is made once, under a lock, in about a minute. Its programs run in a mount
//! namespace of their own, so that their paths mean nothing outside, as in a container.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::python::{Home, Python, run};
use crate::{packages, variants};

/// Debian 14, by its name: unlike `testing` this stays the same distribution.
const SUITE: &str = "forky";
/// The interpreters, their headers for the layouts, and one as a library.
const PACKAGES: &str = "python3.14,libpython3.14-dev,python3.15,libpython3.15-dev,libpython3.15";
/// What the chroot has.
const MINORS: [u8; 2] = [14, 15];

/// Run by a new mount namespace: makes the directory `$1` visible in the chroot, and runs the rest there.
const ENTER: &str = r#"#!/bin/sh
root=${0%/*} here=$1
shift
mkdir -p "$root$here" &&
    mount -t proc proc "$root/proc" &&
    mount --bind /dev "$root/dev" &&
    mount --bind "$here" "$root$here" || exit
exec chroot "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$here" "$@"
"#;

/// The interpreter with this label, such as `3.14`; `None` when the chroot has none of this name.
pub fn find(label: &str) -> Result<Option<Python>> {
    let minor = MINORS.into_iter().find(|minor| label == format!("3.{minor}"));
    let Some(minor) = minor else { return Ok(None) };
    let root = made()?;
    let executable = root.join(format!("usr/bin/python3.{minor}"));
    Ok(Some(Python { label: label.to_owned(), executable, home: Home::Chroot(root) }))
}

/// The chroot's newest interpreter as a shared library, in a program of another name.
pub fn shared() -> Result<Python> {
    let root = made()?;
    let version = "3.15";
    let (source, executable) = (root.join("opt/shopd.c"), root.join("opt/shopd"));
    if !executable.exists() {
        let library = format!("usr/lib/{}-linux-gnu/libpython{version}.so.1.0", std::env::consts::ARCH);
        fs::create_dir_all(root.join("opt"))?;
        fs::write(&source, variants::PROGRAM)?;
        let mut compiler = Command::new("cc");
        compiler.arg(&source).arg(root.join(library)).arg("-o").arg(&executable);
        // The chroot's C library is newer than this machine's.
        run(compiler.arg("-Wl,--allow-shlib-undefined"))?;
    }
    Ok(Python { label: format!("{version}-shared"), executable, home: Home::Chroot(root) })
}

/// Where libraries for an interpreter of the chroot go, as the chroot sees it.
pub fn libraries(label: &str) -> String {
    format!("/opt/services-{label}")
}

/// Shell words that run what follows them inside.
pub fn enter(root: &Path) -> String {
    format!("unshare --mount sh '{}' \"$PWD\"", root.join("enter").display())
}

/// The chroot's root, on the way there making it.
fn made() -> Result<PathBuf> {
    packages::ensure_debian(&["debootstrap"], || Path::new("/usr/sbin/debootstrap").exists())?;
    let chroots = packages::target_directory().join("test-chroots");
    let root = chroots.join(SUITE);
    let marker = root.join("complete");
    let _lock = packages::lock("test-chroot")?;
    if fs::read_to_string(&marker).is_ok_and(|made| made == PACKAGES) {
        return Ok(fs::canonicalize(root)?);
    }
    eprintln!("  making a chroot of Debian {SUITE}: about a minute, once");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&chroots)?;
    let root = fs::canonicalize(chroots)?.join(SUITE);
    let mut command = Command::new("debootstrap");
    // Unpacked, not configured, which takes most of the time and matters to no interpreter. An older debootstrap does not
    // know the suite's name, but knows how its kin is put together.
    command.args(["--foreign", "--variant=minbase", &format!("--include={PACKAGES}"), SUITE]);
    command.arg(&root).arg(mirror()?).arg("/usr/share/debootstrap/scripts/sid");
    run(&mut command)?;
    for entry in fs::read_dir(root.join("var/cache/apt/archives"))? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root))?;
            fs::remove_file(package)?;
        }
    }
    let enter = root.join("enter");
    fs::write(&enter, ENTER)?;
    fs::set_permissions(enter, Permissions::from_mode(0o755))?;
    for minor in MINORS {
        let imports = "import asyncio, ctypes, sqlite3, ssl, zlib";
        run(Command::new("chroot").arg(&root).args([&format!("/usr/bin/python3.{minor}"), "-c", imports]))?;
    }
    fs::write(marker, PACKAGES)?;
    Ok(root)
}

/// The Debian mirror that this machine's apt uses.
pub(crate) fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("failed to run apt-get")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let mirror = listed.lines().find_map(|line| line.strip_prefix("Debian "));
    ensure!(mirror.is_some(), "apt has no mirror of Debian: {}", String::from_utf8_lossy(&output.stderr));
    Ok(mirror.unwrap_or_default().to_owned())
}

/// Installs libraries for an interpreter of the chroot with the pip of another one, from wheels alone.
pub fn install(root: &Path, label: &str, pip: &Path, requirements: &[&str]) -> Result<()> {
    let mut command = Command::new(pip);
    command.args(["-m", "pip", "install", "--quiet", "--retries", "5", "--only-binary=:all:"]);
    command.args(["--python-version", label, "--implementation", "cp"]);
    for platform in ["manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1"] {
        command.arg(format!("--platform={platform}_{}", std::env::consts::ARCH));
    }
    let directory = root.join(libraries(label).trim_start_matches('/'));
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    run(command.arg("--target").arg(directory).args(requirements))
}
