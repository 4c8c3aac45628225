//! Finds the eBPF object that `cargo xtask build` has left, and hands its path to the crate.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=PITVIPER_EBPF_OBJECT");
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = std::env::var_os("PITVIPER_EBPF_OBJECT")
        .map_or_else(|| manifest.join("../target/pitviper.bpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=PITVIPER_EBPF_OBJECT={}", object.display()),
        Err(_) => println!("cargo::error=the eBPF object is missing: run `cargo xtask build`"),
    }
}
