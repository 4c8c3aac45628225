//! `cargo xtask lint`, `test` and `fuzz`: what must be green before a change is merged.

use anyhow::Result;

use crate::{build, command, progress::Step, workspace};

/// Formatting and clippy, of the daemon's side and of the eBPF crate.
pub(crate) fn lint() -> Result<()> {
    let step = Step::loud("formatting");
    command::loud(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    step.done("");

    // Clippy compiles the daemon, which embeds the object.
    let toolchain = build::ebpf()?;
    let step = Step::loud("clippy");
    command::loud(workspace::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    step.done("");

    let step = Step::loud("clippy for the eBPF crate");
    match toolchain.find_or_install_clippy()? {
        Some(command) => step.done(&format!("skipped, the toolchain has none; to get it: {command}")),
        None => {
            command::loud(toolchain.cargo("clippy").args(["--quiet", "--", "-D", "warnings"]))?;
            step.done("");
        }
    }
    Ok(())
}

/// The release build, the unit tests, and the system tests with real services.
pub(crate) fn test() -> Result<()> {
    build::build(true)?;

    let step = Step::loud("unit tests");
    command::loud(workspace::cargo().args(["test", "--locked", "--quiet"]).args(UNIT_TESTED))?;
    step.done("passed");

    let step = Step::loud("system tests");
    command::loud(workspace::cargo().env("PITVIPER_BIN", workspace::daemon(true)).args([
        "test",
        "--locked",
        "--package",
        "pitviper-tests",
        "--",
        "--nocapture",
    ]))?;
    step.done("passed");
    eprintln!("\nall tests passed");
    Ok(())
}

const UNIT_TESTED: [&str; 6] = ["--package", "pitviper", "--package", "pitviper-ebpf", "--package", "xtask"];

/// Type-checks the fuzz targets; running them is `cargo fuzz run <target>` in `agent/`.
pub(crate) fn fuzz_check() -> Result<()> {
    build::ebpf()?;
    let step = Step::loud("check the fuzz targets");
    command::loud(workspace::cargo().args(["check", "--manifest-path", "agent/fuzz/Cargo.toml"]))?;
    step.done("");
    Ok(())
}
