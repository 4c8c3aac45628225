//! Tells the daemon where the eBPF object is that `cargo xtask build` made, so that it can be embedded.
//!
//! Cargo cannot build one crate for two toolchains in one go; this script only finds the result and never builds it.

use std::{env, path::PathBuf};

/// Names the object in the environment, and for `include_bytes!` in the daemon.
const VARIABLE: &str = "PITVIPER_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = env::var_os(VARIABLE).map_or_else(default_object, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env={VARIABLE}={}", object.display()),
        Err(_) => {
            println!(
                "cargo::error=the eBPF object is missing ({}): run `cargo xtask build`",
                object.display()
            );
        }
    }
}

fn default_object() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/pitviper.bpf.o")
}
