//! Finds a toolchain for the eBPF crate, or installs one: a nightly rustc of rustup, or Debian's rustc-web, each with a
//! bpf-linker that reads the bitcode it writes.
//!
//! A bpf-linker is bound to an LLVM release, so whether it suits a rustc is not asked but tried, on an empty crate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, packages, progress::Step, workspace};

/// The only eBPF target; big-endian machines are not supported.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// LLVM's major version, and the newest bpf-linker release that has a feature for it.
const BPF_LINKERS: [(u32, &str); 5] =
    [(19, "0.9.15"), (20, "0.10.3"), (21, "0.13.0"), (22, "0.13.0"), (23, "0.13.0")];

/// Where the compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    RustupNightly,
    Debian,
}

/// A cargo, its rustc, and the linker for it.
#[derive(Debug)]
pub(crate) struct Toolchain {
    route: Route,
    linker: PathBuf,
}

impl Toolchain {
    /// Installs what [`Toolchain::find`] found missing, when this runs as root on Debian; else says how to.
    pub(crate) fn install() -> Result<Self> {
        if !packages::is_debian_like() {
            bail!(
                "no eBPF toolchain was found; please run: rustup toolchain install nightly --component rust-src \
                 && cargo install bpf-linker"
            );
        }
        if !Route::Debian.is_present() {
            let names = if packages::exists("rustc-web") {
                ["rustc-web", "cargo-web", "rust-web-src"]
            } else {
                ["rustc", "cargo", "rust-src"]
            };
            packages::install(&names, "the eBPF compiler")?;
        }
        let linker = install_linker(Route::Debian.llvm_version()?)?;
        let toolchain = Self { route: Route::Debian, linker };
        if !toolchain.links()? {
            bail!(
                "{} cannot link what {DEBIAN_RUSTC} compiles: are their LLVM versions the same?",
                toolchain.linker.display()
            );
        }
        Ok(toolchain)
    }

    /// A toolchain that is complete already.
    pub(crate) fn find() -> Option<Self> {
        [Route::RustupNightly, Route::Debian].into_iter().filter(|route| route.is_present()).find_map(
            |route| {
                let installed =
                    route.llvm_version().ok().map(linker_folder).map(|folder| folder.join("bin/bpf-linker"));
                let candidates =
                    installed.into_iter().chain(command::which("bpf-linker")).filter(|path| path.is_file());
                candidates
                    .map(|linker| Self { route, linker })
                    .find(|toolchain| toolchain.links().unwrap_or(false))
            },
        )
    }

    /// What a user is told of the choice.
    pub(crate) fn describe(&self) -> String {
        let version = command::output(self.route.rustc().arg("--version")).unwrap_or_default();
        let route = match self.route {
            Route::RustupNightly => "rustup nightly",
            Route::Debian => "Debian's packages",
        };
        format!("{route} ({version}), {}", self.linker.display())
    }

    /// cargo of this toolchain in the repository's root, set up for the eBPF target with `subcommand`.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let Self { route, linker } = self;
        let mut cargo = match route {
            Route::RustupNightly => rustup_nightly("cargo"),
            Route::Debian => {
                // By the name `clippy`, cargo would find rustup's, which is another compiler's.
                let program = if subcommand == "clippy" { DEBIAN_CLIPPY } else { DEBIAN_CARGO };
                let mut cargo = command::new(program);
                cargo.env("CARGO", DEBIAN_CARGO).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        // The flags are aya-build's: debug information for BTF, and the machine whose registers the programs read.
        let architecture = std::env::consts::ARCH;
        let flags =
            [&format!("--cfg=bpf_target_arch=\"{architecture}\""), "-Cdebuginfo=2", "-Clink-arg=--btf"]
                .join("\x1f");
        cargo
            .current_dir(workspace::root())
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            .env("CARGO_TARGET_DIR", workspace::target().join("ebpf"))
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .args([
                subcommand,
                "--package",
                "pitviper-ebpf",
                "--features",
                "kernel",
                "--bin",
                "pitviper-ebpf",
            ])
            .args(["--release", "--locked", "--target", TARGET, "-Z", "build-std=core"]);
        cargo
    }

    /// Makes clippy of this toolchain available; if that is not possible, why.
    pub(crate) fn find_or_install_clippy(&self) -> Result<Option<&'static str>> {
        Ok(match self.route {
            Route::RustupNightly => command::output(rustup_nightly("cargo-clippy").arg("--version"))
                .is_none()
                .then_some("rustup component add clippy --toolchain nightly"),
            Route::Debian if Path::new(DEBIAN_CLIPPY).is_file() => None,
            Route::Debian if !packages::is_root() => Some("sudo apt-get install rust-web-clippy"),
            Route::Debian => {
                let name =
                    if packages::exists("rust-web-clippy") { "rust-web-clippy" } else { "rust-clippy" };
                packages::install(&[name], "the eBPF crate's lints")?;
                None
            }
        })
    }

    /// Whether the linker makes an object of an empty crate that the compiler compiled.
    fn links(&self) -> Result<bool> {
        let folder = workspace::target().join("ebpf/probe");
        fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
        let (source, bitcode) = (folder.join("probe.rs"), folder.join("probe.bc"));
        fs::write(&source, "#![feature(no_core)]\n#![no_core]\n")
            .context("failed to write the linker probe")?;
        let compiled = command::output(
            self.route
                .rustc()
                .args([
                    "--edition",
                    "2024",
                    "--crate-type",
                    "lib",
                    "--target",
                    TARGET,
                    "--emit",
                    "llvm-bc",
                    "-o",
                ])
                .args([&bitcode, &source]),
        );
        let object = folder.join("probe.o");
        let linked =
            command::output(command::new(&self.linker).arg("--emit=obj").arg("-o").args([&object, &bitcode]));
        Ok(compiled.is_some() && linked.is_some())
    }
}

impl Route {
    fn rustc(self) -> Command {
        match self {
            Self::RustupNightly => rustup_nightly("rustc"),
            Self::Debian => {
                let mut rustc = command::new(DEBIAN_RUSTC);
                rustc.env("RUSTC_BOOTSTRAP", "1");
                rustc
            }
        }
    }

    /// Whether compiler, cargo and the source of `core` are there.
    fn is_present(self) -> bool {
        if self == Self::Debian && !(Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_CARGO).is_file()) {
            return false;
        }
        command::output(self.rustc().args(["--print", "sysroot"])).is_some_and(|sysroot| {
            Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
        })
    }

    fn llvm_version(self) -> Result<u32> {
        let version = command::output(self.rustc().arg("-vV")).context("failed to run the eBPF compiler")?;
        parse_llvm_version(&version).context("`rustc -vV` names no LLVM version")
    }
}

/// A program of the nightly toolchain; never installs one, unlike the `cargo +nightly` proxies may.
fn rustup_nightly(program: &str) -> Command {
    let mut rustup = command::new("rustup");
    rustup.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env("RUSTUP_AUTO_INSTALL", "0");
    rustup.args(["run", "nightly", program]);
    rustup
}

fn parse_llvm_version(verbose_version: &str) -> Option<u32> {
    let line = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version:"))?;
    line.trim().split('.').next()?.parse().ok()
}

fn linker_folder(llvm: u32) -> PathBuf {
    workspace::target().join(format!("tools/bpf-linker-llvm-{llvm}"))
}

/// Builds the bpf-linker for an LLVM version from crates.io, into `target/tools`.
fn install_linker(llvm: u32) -> Result<PathBuf> {
    let Some((_, version)) = BPF_LINKERS.into_iter().find(|&(major, _)| major == llvm) else {
        let known = BPF_LINKERS.map(|(major, _)| major.to_string()).join(", ");
        bail!(
            "no bpf-linker release is known for LLVM {llvm} of {DEBIAN_RUSTC} (known: {known}); please use rustup's nightly"
        );
    };
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("bin/llvm-config").exists() {
        packages::install(&[&format!("llvm-{llvm}-dev"), "g++"], "bpf-linker")?;
    }
    let folder = linker_folder(llvm);
    let step = Step::begin(format!("build bpf-linker {version} for LLVM {llvm} (about a minute)"));
    let mut cargo = workspace::cargo();
    cargo
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_TARGET_DIR", workspace::target().join("tools/build"))
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            version,
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(&folder);
    command::quiet(&step, &mut cargo)?;
    step.done("");
    Ok(folder.join("bin/bpf-linker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_rustc() {
        assert_eq!(parse_llvm_version("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8"), Some(22));
        assert_eq!(parse_llvm_version("rustc 1.96.0\nrelease: 1.96.0"), None);
    }
}
