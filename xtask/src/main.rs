//! Development tasks of pitviper: `cargo xtask build`, `demo`, `lint`, `test`, `bench`, `kernels`,
//! `layouts`, `fuzz`.
//!
//! Everything here runs other programs; nothing of it is part of the daemon.
#![forbid(unsafe_code)]

mod agent;
mod bench;
mod build;
mod check;
mod command;
mod demo;
#[cfg(test)]
mod deploy;
mod http;
mod interrupt;
mod kernels;
mod layouts;
mod packages;
mod progress;
mod services;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, demonstrates, tests and measures pitviper.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF object, then the daemon with the object inside.
    Build {
        /// Optimise, into target/release/pitviper.
        #[arg(long)]
        release: bool,
    },
    /// Show the traces of two sample services with real PostgreSQL and Redis.
    Demo {
        /// Leave everything running until Ctrl-C, for your own requests.
        #[arg(long)]
        keep: bool,
    },
    /// Measure the cost for a service, beside the OpenTelemetry SDK's.
    Bench {
        /// How often each setup has its turn.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Length of each load; a turn has two.
        #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
        /// Beside py-spy and Pyroscope's profiler instead of the SDK, all at 97 Hz.
        #[arg(long)]
        profiles: bool,
        /// Over TLS: the service, and the database, the cache and the service that it calls.
        #[arg(long)]
        tls: bool,
    },
    /// Check formatting and run clippy, for the eBPF crate too.
    Lint,
    /// Build, then run every unit and system test.
    Test,
    /// Boot other kernels under emulation, and see whether pitviper works on them.
    Kernels {
        /// Only this series, such as 6.1; may be given several times.
        #[arg(long)]
        only: Vec<String>,
    },
    /// Write the tables of CPython's structures from the headers of this machine's interpreters.
    Layouts,
    /// Type-check the fuzz targets.
    Fuzz {
        /// Only check that they compile, which needs no cargo-fuzz.
        #[arg(long, required = true)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match interrupt::install().and_then(|()| run(&Cli::parse().task)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    match task {
        &Task::Build { release } => build::build(release),
        &Task::Demo { keep } => demo::demo(keep),
        &Task::Bench { rounds, seconds, profiles, tls } => {
            bench::bench(bench::Options { rounds, seconds, profiles, tls })
        }
        Task::Lint => check::lint(),
        Task::Test => check::test(),
        Task::Kernels { only } => kernels::kernels(only),
        Task::Layouts => layouts::layouts(),
        Task::Fuzz { check: _ } => check::fuzz_check(),
    }
}
