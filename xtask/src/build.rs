//! `cargo xtask build`: the eBPF object first, then the daemon that embeds it.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    command,
    progress::Step,
    toolchain::{TARGET, Toolchain},
    workspace,
};

/// Builds both; cargo decides what is up to date.
pub(crate) fn build(release: bool) -> Result<()> {
    ebpf()?;
    let step = Step::loud("build the daemon");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "pitviper", "--bin", "pitviper", "--locked"]);
    if release {
        cargo.arg("--release");
    }
    command::loud(&mut cargo)?;
    let daemon = workspace::daemon(release);
    let size = fs::metadata(&daemon).with_context(|| format!("cargo left no {}", daemon.display()))?.len();
    let shown = daemon.strip_prefix(workspace::root()).unwrap_or(&daemon);
    step.done(&format!("{}, {:.1} MB", shown.display(), size as f64 / 1e6));
    Ok(())
}

/// Builds the eBPF object and puts it where `agent/build.rs` looks for it.
pub(crate) fn ebpf() -> Result<Toolchain> {
    let step = Step::begin("find an eBPF toolchain");
    let toolchain = if let Some(toolchain) = Toolchain::find() {
        step.done(&toolchain.describe());
        toolchain
    } else {
        step.done("none yet");
        let step = Step::loud("install an eBPF toolchain");
        let toolchain = Toolchain::install()?;
        step.done(&toolchain.describe());
        toolchain
    };
    compile(&toolchain)?;
    Ok(toolchain)
}

fn compile(toolchain: &Toolchain) -> Result<()> {
    let step = Step::loud("build the eBPF object");
    command::loud(&mut toolchain.cargo("build"))?;
    let built = workspace::target().join("ebpf").join(TARGET).join("release/pitviper-ebpf");
    let object = workspace::ebpf_object();
    let bytes = fs::read(&built).with_context(|| format!("the eBPF build left no {}", built.display()))?;
    // A new modification time would make cargo build the daemon again.
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::write(&object, &bytes).with_context(|| format!("failed to write {}", object.display()))?;
    }
    step.done(&format!("target/pitviper.bpf.o, {} kB", bytes.len() / 1000));
    Ok(())
}
