//! Where things are: the repository, its build results, and the cargo that started this program.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::command;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    // The manifest folder is `<root>/xtask`, so it has a parent.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The folder of everything that is built; always inside the repository, as `agent/build.rs` expects.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The eBPF object that the daemon embeds.
pub(crate) fn ebpf_object() -> PathBuf {
    target().join("pitviper.bpf.o")
}

/// The daemon, as `cargo xtask build [--release]` leaves it.
pub(crate) fn daemon(release: bool) -> PathBuf {
    target().join(if release { "release" } else { "debug" }).join("pitviper")
}

/// The stable cargo that runs this program, in the repository's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).env("CARGO_TARGET_DIR", target());
    cargo
}
