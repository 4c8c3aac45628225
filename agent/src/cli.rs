//! The command line: raw options, and what they say when asked for help. Validation is in what they become.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::process::sdk::SdkProcesses;
use crate::process::select;
use crate::profile::SAMPLE_HZ;

/// Traces of unmodified Python services, from outside their processes.
///
/// Pitviper sees the HTTP, PostgreSQL and Redis traffic of Python processes through eBPF and exports it as
/// OpenTelemetry traces. Nothing is added to the services, and nothing is restarted.
#[derive(Debug, Parser)]
#[command(name = "pitviper", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace Python processes until they end or you stop it.
    Run(Run),
    /// Record a CPU profile of Python processes into files.
    Record(Record),
    /// List the Python processes of this machine, how well each can be traced, and what running daemons trace of it.
    Ps(Ps),
    /// What pitvipers start for themselves; see the kernel module `sweeper`.
    #[command(hide = true)]
    Sweep {
        /// The daemon to clean up after.
        daemon: u32,
    },
}

/// Options of `pitviper ps`.
#[derive(Args, Debug)]
pub struct Ps {
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `pitviper record`.
#[derive(Args, Debug)]
pub struct Record {
    /// Profile this process and its descendants, present and future; ends when the last of them has ended. Repeatable.
    #[arg(long = "pid", value_name = "N", required = true)]
    pub pids: Vec<u32>,

    /// Samples per second of each CPU.
    #[arg(long, value_name = "HZ", default_value_t = SAMPLE_HZ, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub frequency: u32,

    /// Show the C function too that a Python function was in, by the symbols of the library that it is from; where there
    /// are none, the library.
    #[arg(long)]
    pub native: bool,

    /// How long, such as 10s, 500ms or 2m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,

    /// Folder for the files; made if it does not exist.
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    pub output: PathBuf,

    /// Say more on standard error; twice: also what the kernel programs say.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Options of `pitviper run`.
///
/// Without any of --pid, --cgroup, --exe and --port every Python process of the machine is traced, but pitviper's own
/// children.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Run {
    /// Trace this process and its descendants, present and future; ends when the last of them has ended. Repeatable.
    #[arg(long = "pid", value_name = "N")]
    pub pids: Vec<u32>,

    /// Trace the processes in this cgroup (v2) and the groups below it: a path on disk, or one from the root of the
    /// hierarchy. Repeatable.
    #[arg(long = "cgroup", value_name = "PATH")]
    pub cgroups: Vec<PathBuf>,

    /// Trace processes whose executable matches: a file name, or with a slash a whole path. Repeatable.
    #[arg(long = "exe", value_name = "GLOB")]
    pub exes: Vec<String>,

    /// Trace the processes that listen on this TCP port. Repeatable.
    #[arg(long = "port", value_name = "N")]
    pub ports: Vec<u16>,

    /// Print trace trees on standard output. This is the default when no OTLP endpoint is set.
    #[arg(long)]
    pub console: bool,

    /// Let each span say why it has its parent, in the attribute `pitviper.parent.evidence`, or why it has none, in
    /// `pitviper.orphan.reason`. The README explains the values.
    #[arg(long)]
    pub parent_evidence: bool,

    /// What to do with processes that are traced by an OpenTelemetry SDK in them.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub sdk_processes: SdkProcesses,

    /// Publish which span each thread is at work on, for profilers to read, in the map /sys/fs/bpf/otel/traces_ctx_v1. Only
    /// of threads that run no event loop. A pitviper that is killed leaves the map there.
    #[arg(long)]
    pub publish_context: bool,

    /// First bytes that are captured of each socket call, at most 16384.
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(256..=16_384))]
    pub capture_limit: u32,

    /// Size of the buffer between kernel and agent in KiB, a power of two.
    #[arg(long, value_name = "KIB", default_value_t = 8192, value_parser = parse_ring_size)]
    pub ring_size: u32,

    /// CPU profile samples per second of each CPU; they are exported as OTLP profiles and to Pyroscope.
    #[arg(long, value_name = "HZ", default_value_t = SAMPLE_HZ, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub profile_frequency: u32,

    /// In CPU profiles show the C function too that a Python function was in, by the symbols of the library that it is from; where there
    /// are none, the library.
    #[arg(long)]
    pub native: bool,

    /// Export no CPU profiles.
    #[arg(long)]
    pub no_profiles: bool,

    /// Do not tell where the time of requests went, nor who held an event loop: no program is attached to the scheduler.
    #[arg(long)]
    pub no_timing: bool,

    /// A turn of an event loop that takes longer than this is told on the span of the request that held the loop.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    pub loop_threshold: Duration,

    /// Take CPU profile samples, and write them at the end: collapsed stacks with the ids of trace and span.
    #[arg(long, value_name = "FILE", hide = true)]
    pub samples: Option<PathBuf>,

    /// Say more on standard error; twice: also what the kernel programs say.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

const AFTER_HELP: &str = "\
Environment:
  OTEL_EXPORTER_OTLP_ENDPOINT       where to send traces, such as http://localhost:4318
  OTEL_EXPORTER_OTLP_PROTOCOL       http/protobuf (the default) or grpc
  OTEL_EXPORTER_OTLP_HEADERS        such as Authorization=Bearer%20TOKEN
  PYROSCOPE_SERVER_ADDRESS          where to push profiles, with PYROSCOPE_AUTH_TOKEN or PYROSCOPE_BASIC_AUTH_USER
  OTEL_TRACES_SAMPLER               such as parentbased_traceidratio, with OTEL_TRACES_SAMPLER_ARG=0.1
  OTEL_METRICS_EXPORTER             otlp (the default) or none: metrics of pitviper's own work
  All other OTEL_EXPORTER_OTLP_*, OTEL_BSP_*, OTEL_METRIC_EXPORT_*, OTEL_TRACES_EXPORTER, OTEL_RESOURCE_ATTRIBUTES and
  OTEL_SDK_DISABLED mean what OpenTelemetry's specification says; only OTEL_BSP_MAX_QUEUE_SIZE is 16384 where unset, as one
  queue serves all processes. A service keeps its own OTEL_SERVICE_NAME and resource attributes.

Exit codes: 0 done or stopped; 1 failed; 2 something about the options or this machine has to be changed first.";

impl Run {
    /// The options that select processes.
    pub fn selection(&self) -> select::Options {
        select::Options {
            pids: self.pids.clone(),
            cgroups: self.cgroups.clone(),
            exes: self.exes.clone(),
            ports: self.ports.clone(),
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let milliseconds = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60 * 1000),
        "h" => Some(60 * 60 * 1000),
        _ => None,
    };
    let duration =
        number.parse::<u64>().ok().zip(milliseconds).and_then(|(number, unit)| number.checked_mul(unit));
    match duration {
        Some(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds)),
        _ => Err("a time such as 10s, 500ms or 2m is wanted".to_owned()),
    }
}

fn parse_ring_size(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (64..=1 << 20).contains(&kib) => Ok(kib),
        _ => Err("a power of two from 64 to 1048576 is wanted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn reads_durations() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "0s", "-1s", "1.5s", "10x", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn checks_the_ring_size() {
        assert_eq!(parse_ring_size("8192"), Ok(8192));
        assert!(parse_ring_size("5000").is_err());
        assert!(parse_ring_size("32").is_err());
    }
}
