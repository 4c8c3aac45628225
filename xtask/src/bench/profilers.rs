//! `cargo xtask bench --profiles`: what a CPU profile costs the service, by whom it is taken. All at 97 Hz, in interleaved rounds.
//!
//! Pitviper has two turns: with traces alone, and with all that it does by itself, so that the difference is the price of
//! profiles and of where the time went. It traces in both; the others only profile.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::Result;

use super::{
    CONNECTIONS, FLUSH, Options, STEADY_SHARE, Server, Surroundings, exporter, folder, introduce,
    load::{Load, Pace},
    probe,
    report::median,
    usage,
};
use crate::{
    agent::{Agent, Show},
    interrupt,
    progress::Step,
    services::{
        Service,
        python::{Environment, Interpreter},
    },
};

/// Samples per second: pitviper's default.
const HERTZ: &str = "97";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    Bare,
    Traces,
    Pitviper,
    PySpy,
    Pyroscope,
}

const SETUPS: [(Setup, &str); 5] = [
    (Setup::Bare, "bare"),
    (Setup::Traces, "pitviper, traces"),
    (Setup::Pitviper, "pitviper, all"),
    (Setup::PySpy, "py-spy"),
    (Setup::Pyroscope, "pyroscope-io"),
];

/// What one round measured of one setup.
#[derive(Clone, Copy, Default)]
struct Sample {
    requests_per_second: f64,
    saturated_cpu_us: f64,
    steady_cpu_us: f64,
    p99_ms: f64,
    /// Of the profiler's own process, in per cent of a core, while saturated.
    profiler_cores: f64,
}

type Round = [Sample; SETUPS.len()];

/// By setup: throughput, CPU of the service, latency, CPU of the profiler.
type Row = (&'static str, fn(&Sample) -> f64, usize);

const ROWS: [Row; 5] = [
    ("throughput at saturation, requests/s", |sample| sample.requests_per_second, 0),
    ("service CPU per request, saturated, us", |sample| sample.saturated_cpu_us, 0),
    ("service CPU per request, fixed rate, us", |sample| sample.steady_cpu_us, 0),
    ("latency p99, fixed rate, ms", |sample| sample.p99_ms, 2),
    ("profiler CPU, saturated, % of a core", |sample| sample.profiler_cores, 1),
];

struct Profilers {
    plain: Server,
    pyroscope: Server,
    environment: Environment,
    around: Surroundings,
}

/// The process that profiles from outside, ended when dropped.
enum Outside {
    Pitviper(Agent),
    PySpy(Service),
}

impl Outside {
    fn pid(&self) -> u32 {
        match self {
            Self::Pitviper(agent) => agent.pid(),
            Self::PySpy(service) => service.pid(),
        }
    }
}

/// Measures, and prints the table to standard output.
pub(super) fn bench(options: Options, interpreter: &Interpreter, cores: usize) -> Result<()> {
    let profilers = Profilers::start(interpreter)?;
    let step = Step::begin("warm up, and find a rate that every setup can serve");
    let duration = Duration::from_secs(options.seconds);
    let saturate =
        |port, duration| Load { port, tls: None, connections: CONNECTIONS, pace: Pace::Saturate, duration };
    saturate(profilers.pyroscope.port, duration / 2).run()?;
    let bare = saturate(profilers.plain.port, duration).run()?;
    let rate = (bare.per_second() * STEADY_SHARE).round();
    step.done(&format!("{rate} requests/s"));

    let mut rounds: Vec<Round> = Vec::new();
    for number in 1..=options.rounds {
        let step = Step::begin(format!("round {number} of {}", options.rounds));
        let mut round = Round::default();
        let mut order: Vec<usize> = (0..SETUPS.len()).collect();
        if number % 2 == 0 {
            order.reverse();
        }
        for index in order {
            let (setup, name) = SETUPS[index];
            step.say(name);
            round[index] = profilers.measure(setup, rate, duration)?;
        }
        rounds.push(round);
        step.done("");
    }
    introduce(options, interpreter, cores, rate);
    print!("{}", table(&rounds));
    Ok(())
}

fn table(rounds: &[Round]) -> String {
    let mut text = format!("{:40}", "median of the rounds, ratio to bare");
    for (_, name) in SETUPS {
        text += &format!(" {name:>18}");
    }
    text.push('\n');
    for (name, of, decimals) in ROWS {
        text += &format!("{name:40}");
        for index in 0..SETUPS.len() {
            let value = median(rounds.iter().map(|round| of(&round[index])));
            let ratio = median(rounds.iter().map(|round| of(&round[index]) / of(&round[0])));
            let ratio = if ratio.is_finite() && index > 0 { format!("{ratio:7.3}") } else { String::new() };
            text += &format!(" {value:10.decimals$} {ratio:>7}");
        }
        text.push('\n');
    }
    text
}

impl Profilers {
    fn start(interpreter: &Interpreter) -> Result<Self> {
        let step =
            Step::begin(format!("prepare Python {} with py-spy and pyroscope-io", interpreter.version));
        let [libraries, profilers] =
            ["requirements.txt", "requirements-profilers.txt"].map(|name| folder().join(name));
        let environment =
            Environment::prepare(&step, interpreter, "bench/profilers", &[&libraries, &profilers])?;
        step.done("");
        let step = Step::begin("start PostgreSQL, Redis, the service with and without pyroscope-io");
        let around = Surroundings::start(&step, false)?;
        let plain = around.serve("plain", "app:app", environment.command("uvicorn"))?;
        let pyroscope = around.serve("pyroscope", "pyroscope_app:app", environment.command("uvicorn"))?;
        step.done("");
        Ok(Self { plain, pyroscope, environment, around })
    }

    /// One setup's turn: saturation, then the fixed rate.
    fn measure(&self, setup: Setup, rate: f64, duration: Duration) -> Result<Sample> {
        let server = if setup == Setup::Pyroscope { &self.pyroscope } else { &self.plain };
        let (pid, port) = (server.service.pid(), server.port);
        let outside = self.attach(setup)?;
        let profiler_cpu =
            || outside.as_ref().map_or(Ok(Duration::ZERO), |profiler| usage::cpu(profiler.pid()));
        let run = |pace| {
            let (before, profiler_before) = (usage::cpu(pid)?, profiler_cpu()?);
            let outcome = Load { port, tls: None, connections: CONNECTIONS, pace, duration }.run()?;
            let profiler = profiler_cpu()?.saturating_sub(profiler_before);
            interrupt::sleep(FLUSH)?;
            let used = usage::cpu(pid)?.saturating_sub(before);
            anyhow::Ok((used.as_secs_f64() * 1e6 / outcome.requests(), outcome, profiler))
        };
        let (saturated_cpu_us, saturated, profiler) = run(Pace::Saturate)?;
        let (steady_cpu_us, steady, _) = run(Pace::PerSecond(rate))?;
        if let Some(Outside::Pitviper(agent)) = outside {
            agent.stop()?;
        }
        Ok(Sample {
            requests_per_second: saturated.per_second(),
            saturated_cpu_us,
            steady_cpu_us,
            p99_ms: steady.quantile_ms(0.99),
            profiler_cores: profiler.as_secs_f64() / saturated.elapsed.as_secs_f64() * 100.0,
        })
    }

    fn attach(&self, setup: Setup) -> Result<Option<Outside>> {
        let Self { plain, environment, around, .. } = self;
        let pid = plain.service.pid();
        match setup {
            Setup::Bare | Setup::Pyroscope => Ok(None),
            Setup::Traces | Setup::Pitviper => {
                let [traces, profiles] = ["traces", "v1development/profiles"]
                    .map(|signal| format!("http://127.0.0.1:{}/v1/{signal}", around.sink.port));
                let mut environment = exporter(&traces).to_vec();
                environment.push(("OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT", &profiles));
                let arguments: &[&str] =
                    if setup == Setup::Traces { &["--no-timing", "--no-profiles"] } else { &[] };
                let agent = Agent::start(&[pid], arguments, &environment, Show::Nothing)?;
                probe(plain.port, None)?;
                Ok(Some(Outside::Pitviper(agent)))
            }
            Setup::PySpy => {
                let output = around.scratch.path().join("py-spy.txt");
                let mut command = environment.command("py-spy");
                py_spy(&mut command, pid, &output);
                let mut service = Service::start("py-spy", &mut command, around.scratch.path())?;
                // It says when it has begun only to a terminal.
                thread::sleep(FLUSH);
                service.check_alive()?;
                Ok(Some(Outside::PySpy(service)))
            }
        }
    }
}

/// Until it is ended.
fn py_spy(command: &mut Command, pid: u32, output: &Path) {
    command.args(["record", "--rate", HERTZ, "--format", "raw", "--pid", &pid.to_string(), "--output"]);
    command.arg(output);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let sample = |requests_per_second| Sample { requests_per_second, ..Sample::default() };
        let round = |bare: f64, share: f64| {
            let mut round = [sample(bare * share); SETUPS.len()];
            round[0] = sample(bare);
            round
        };
        let text = table(&[round(1000.0, 0.9), round(2000.0, 0.8), round(1500.0, 0.85)]);
        assert_eq!(text.lines().nth(1).unwrap().matches(" 0.850").count(), SETUPS.len() - 1, "{text}");
    }
}
