//! `cargo xtask kernels`: does pitviper work on other kernels than this machine's? Boots each of them under emulation.
//!
//! Kernels and the guest's Python come from Debian's archive; nothing of it is installed here.

mod archive;
mod guest;
mod trees;

use std::{env, fs};

use anyhow::{Result, bail};

use crate::{build, command, packages, progress::Step, workspace};
use archive::Archive;
use guest::Guest;

/// The series that are tried, each of a Debian release. 5.8, the oldest that pitviper supports, is in none.
const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", "7.2"];

/// Suites that have these kernels, and whether in the archive for security updates.
const SUITES: [(&str, bool); 5] = [
    ("bullseye-security", true),
    ("bookworm", false),
    ("bookworm-security", true),
    ("bookworm-backports", false),
    ("trixie-backports", false),
];

/// What the guest consists of, beside pitviper.
const GUEST_PACKAGES: [&str; 2] = ["python3", "busybox-static"];

/// Tries every series, or only some; an error unless all of them pass.
pub(crate) fn kernels(only: &[String]) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!("the kernels and the emulator's options are those of x86-64");
    }
    for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("cpio", "cpio")] {
        if command::which(program).is_none() {
            packages::install(&[package], "emulation")?;
        }
    }
    build::build(false)?;
    let folder = workspace::target().join("kernels");
    fs::create_dir_all(&folder)?;
    let step = Step::begin("read Debian's indexes");
    let kernels = Archive::open(&step, folder.join("apt"), &SUITES)?;
    let release = archive::release()?;
    let own = Archive::open(&step, folder.join("apt-guest"), &[(&release, false)])?;
    step.done("");
    let guest = Guest::prepare(&folder, &own)?;

    let series: Vec<&str> =
        if only.is_empty() { SERIES.to_vec() } else { only.iter().map(String::as_str).collect() };
    let mut failed = 0;
    for series in &series {
        let step = Step::begin(format!("boot Linux {series}"));
        match kernels.kernel(&step, series).and_then(|image| guest.boot(&step, series, &image)) {
            Ok(report) => {
                step.done("");
                println!("{report}");
            }
            Err(error) => {
                drop(step);
                crate::interrupt::check()?;
                failed += 1;
                println!("{series}: FAILED: {error:#}");
            }
        }
    }
    println!("{} passed, {failed} failed", series.len() - failed);
    if failed > 0 {
        bail!("the logs are in {}", folder.display());
    }
    Ok(())
}
