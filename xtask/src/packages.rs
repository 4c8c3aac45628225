//! Debian packages: which are missing, and installing them when this runs as root.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use crate::{command, progress::Step};

/// Whether this machine installs software with apt.
pub(crate) fn is_debian_like() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| {
        text.lines()
            .any(|line| (line.starts_with("ID=") || line.starts_with("ID_LIKE=")) && line.contains("debian"))
    }) && command::which("apt-get").is_some()
}

/// Whether this process may install packages and load eBPF programs.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Installs `packages`, which something found missing; `purpose` completes "… is needed for".
pub(crate) fn install(packages: &[&str], purpose: &str) -> Result<()> {
    let list = packages.join(" ");
    if !is_debian_like() {
        bail!("{purpose} needs what Debian calls {list}; please install your distribution's packages of it");
    }
    if !is_root() {
        bail!("{purpose} needs Debian packages; please run: sudo apt-get install {list}");
    }
    let step = Step::begin(format!("install {list} for {purpose}"));
    // An index that is out of date names versions that the mirror no longer has.
    command::quiet(&step, apt_get().arg("update"))?;
    command::quiet(&step, apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))?;
    step.done("");
    Ok(())
}

/// Whether apt knows a package of this name.
pub(crate) fn exists(package: &str) -> bool {
    command::output(command::new("apt-cache").args(["show", "--no-all-versions", package])).is_some()
}

fn apt_get() -> Command {
    let mut apt_get = command::new("apt-get");
    apt_get.env("DEBIAN_FRONTEND", "noninteractive").args(["--quiet", "-o", "DPkg::Lock::Timeout=120"]);
    apt_get
}
