//! `cargo xtask bench`: the same service bare, under pitviper, and under the OpenTelemetry SDK, in interleaved rounds.
//!
//! Everything shares two cores: the service, its database and cache, the load generator and the agent. The agent runs
//! only in its own turn of a round, so that its hooks cost the others nothing.

mod load;
mod profilers;
mod report;
mod sink;
mod usage;

use std::{path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

use self::{
    load::{Load, Pace},
    report::{Round, Sample},
    sink::Sink,
};
use crate::{
    agent::{Agent, Show},
    build, http, interrupt, packages,
    progress::Step,
    services::{
        Service, free_port,
        postgres::Postgres,
        python::{Environment, Interpreter},
        redis::Redis,
        scratch::Scratch,
        tls::Certificates,
    },
    workspace,
};

const CONNECTIONS: u32 = 32;
const CORES: usize = 2;
/// The part of the bare service's throughput that every setup can serve.
const STEADY_SHARE: f64 = 0.25;
/// Longer than the batch processors wait (see [`exporter`]).
const FLUSH: Duration = Duration::from_millis(1500);

/// What the command line chose.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) rounds: u32,
    /// Of each of the two loads.
    pub(crate) seconds: u64,
    /// Compare with profilers instead of the SDK.
    pub(crate) profiles: bool,
    /// Everything over TLS: the service, and what it calls.
    pub(crate) tls: bool,
}

/// The services' common surroundings. Fields drop in order.
struct Bench {
    plain: Server,
    sdk: Server,
    around: Surroundings,
}

/// What every service needs. Fields drop in order.
struct Surroundings {
    sink: Sink,
    peer: String,
    database: String,
    cache: String,
    certificates: Option<Certificates>,
    _redis: Redis,
    _postgres: Postgres,
    scratch: Scratch,
}

struct Server {
    service: Service,
    port: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    Bare,
    Pitviper,
    Sdk,
}

/// Measures, and prints the table to standard output.
pub(crate) fn bench(options: Options) -> Result<()> {
    if !packages::is_root() {
        bail!("eBPF needs root; please run: sudo -E env \"PATH=$PATH\" cargo xtask bench");
    }
    build::build(true)?;
    let cores = use_two_cores()?;
    let interpreter = Interpreter::find_or_install()?;
    if options.profiles {
        return profilers::bench(options, &interpreter, cores);
    }
    let mut bench = Bench::start(&interpreter, options.tls)?;

    let busy = usage::busy_share(Duration::from_secs(2))?;
    if busy > 0.1 {
        eprintln!("  ! other programs use {:.0} % of the cores: expect noise", busy * 100.0);
    }

    let step = Step::begin("warm up, and find a rate that every setup can serve");
    let duration = Duration::from_secs(options.seconds);
    bench.load(bench.sdk.port, Pace::Saturate, duration / 2)?.run()?;
    let rate =
        (bench.load(bench.plain.port, Pace::Saturate, duration)?.run()?.per_second() * STEADY_SHARE).round();
    step.done(&format!("{rate} requests/s"));

    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let step = Step::begin(format!("round {number} of {}", options.rounds));
        let mut turn = |name: &str, setup| {
            step.say(name);
            bench.measure(setup, rate, duration)
        };
        // Every other round goes backwards, so that a machine that gets slower favours nobody.
        rounds.push(if number % 2 == 1 {
            let bare = turn("bare", Setup::Bare)?;
            let pitviper = turn("pitviper", Setup::Pitviper)?;
            Round { bare, pitviper, sdk: turn("SDK", Setup::Sdk)? }
        } else {
            let sdk = turn("SDK", Setup::Sdk)?;
            let pitviper = turn("pitviper", Setup::Pitviper)?;
            Round { bare: turn("bare", Setup::Bare)?, pitviper, sdk }
        });
        step.done("");
    }
    introduce(options, &interpreter, cores, rate);
    print!("{}", report::table(&rounds));
    Ok(())
}

/// What was measured, above the table.
fn introduce(options: Options, interpreter: &Interpreter, cores: usize, rate: f64) {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "\nFastAPI on uvicorn+uvloop{}, Python {}, Linux {}, {} of {cores} cores; one request makes five calls;\n\
         {} rounds, {CONNECTIONS} connections, {} s saturated and {} s at {rate} requests/s each.\n",
        if options.tls { ", everything over TLS" } else { "" },
        interpreter.version,
        kernel.trim(),
        cores.min(CORES),
        options.rounds,
        options.seconds,
        options.seconds,
    );
}

/// Confines this process, and so what it starts, to two cores; how many there are.
fn use_two_cores() -> Result<usize> {
    let cores = thread::available_parallelism().context("failed to count the cores")?.get();
    if cores > CORES {
        let mut set = CpuSet::new();
        (0..CORES).for_each(|core| set.set(core));
        sched_setaffinity(None, &set).context("failed to choose two cores")?;
    }
    Ok(cores)
}

fn folder() -> PathBuf {
    workspace::root().join("xtask/bench")
}

/// The same export settings for the agent and the SDK: traces, and nothing else.
fn exporter(endpoint: &str) -> [(&'static str, &str); 6] {
    [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_METRICS_EXPORTER", "none"),
        ("OTEL_LOGS_EXPORTER", "none"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1000"),
    ]
}

impl Bench {
    fn start(interpreter: &Interpreter, tls: bool) -> Result<Self> {
        let step = Step::begin(format!("prepare Python {} with and without the SDK", interpreter.version));
        let [libraries, sdk] = ["requirements.txt", "requirements-sdk.txt"].map(|name| folder().join(name));
        let plain_python = Environment::prepare(&step, interpreter, "bench/plain", &[&libraries])?;
        let sdk_python = Environment::prepare(&step, interpreter, "bench/sdk", &[&libraries, &sdk])?;
        step.done("");

        let step = Step::begin("start PostgreSQL, Redis, the service with and without the SDK");
        let around = Surroundings::start(&step, tls)?;
        let endpoint = format!("http://127.0.0.1:{}/v1/traces", around.sink.port);
        let plain = around.serve("plain", "app:app", plain_python.command("uvicorn"))?;
        let mut instrumented = sdk_python.command("opentelemetry-instrument");
        instrumented.arg("uvicorn").envs(exporter(&endpoint)).env("OTEL_SERVICE_NAME", "bench");
        let sdk = around.serve("sdk", "app:app", instrumented)?;
        step.done("");
        Ok(Self { plain, sdk, around })
    }

    fn load(&self, port: u16, pace: Pace, duration: Duration) -> Result<Load> {
        let tls = self.around.certificates.as_ref().map(Certificates::client).transpose()?;
        Ok(Load { port, tls, connections: CONNECTIONS, pace, duration })
    }

    /// One setup's turn: saturation, then the fixed rate.
    fn measure(&mut self, setup: Setup, rate: f64, duration: Duration) -> Result<Sample> {
        let server = if setup == Setup::Sdk { &self.sdk } else { &self.plain };
        let (pid, port) = (server.service.pid(), server.port);
        let agent = (setup == Setup::Pitviper).then(|| self.attach()).transpose()?;
        let agent_cpu = || agent.as_ref().map_or(Ok(Duration::ZERO), |agent| usage::cpu(agent.pid()));

        let (spans_before, agent_before) = (self.around.sink.spans(), agent_cpu()?);
        let run = |pace| {
            let before = usage::cpu(pid)?;
            let outcome = self.load(port, pace, duration)?.run()?;
            // What the SDK still has to export belongs to these requests.
            interrupt::sleep(FLUSH)?;
            let used = usage::cpu(pid)?.saturating_sub(before);
            let per_request = used.as_secs_f64() * 1e6 / outcome.requests();
            anyhow::Ok((outcome, per_request))
        };
        let (saturated, saturated_cpu_us) = run(Pace::Saturate)?;
        let (steady, steady_cpu_us) = run(Pace::PerSecond(rate))?;

        let spans = (self.around.sink.spans() - spans_before) as f64;
        let agent_used = agent_cpu()?.saturating_sub(agent_before);
        let agent_memory_mb = agent.as_ref().map_or(Ok(0.0), |agent| usage::peak_memory_mb(agent.pid()))?;
        if let Some(agent) = agent {
            agent.stop()?;
        }
        Ok(Sample {
            requests_per_second: saturated.per_second(),
            saturated_cpu_us,
            steady_cpu_us,
            p50_ms: steady.quantile_ms(0.5),
            p99_ms: steady.quantile_ms(0.99),
            spans_per_request: spans / (saturated.requests() + steady.requests()),
            agent_us_per_span: agent_used.as_secs_f64() * 1e6 / spans,
            agent_memory_mb,
        })
    }

    /// Starts pitviper on the plain service, and lets it see some requests before they are counted.
    fn attach(&self) -> Result<Agent> {
        let Self { plain, around, .. } = self;
        let endpoint = format!("http://127.0.0.1:{}/v1/traces", around.sink.port);
        let agent = Agent::start(&[plain.service.pid()], &[], &exporter(&endpoint), Show::Nothing)?;
        probe(plain.port, around.certificates.as_ref())?;
        Ok(agent)
    }
}

/// Lets a new agent see some requests.
fn probe(port: u16, certificates: Option<&Certificates>) -> Result<()> {
    let tls = certificates.map(Certificates::client).transpose()?;
    let mut probe = http::Client::connect_with(port, tls.as_ref())?;
    for number in 1..=20 {
        probe.request("GET", &format!("/work/{number}"), "pitviper-bench/probe", "")?;
    }
    // Their spans are not to be counted with the load's.
    interrupt::sleep(FLUSH)
}

impl Surroundings {
    fn start(step: &Step, tls: bool) -> Result<Self> {
        let scratch = Scratch::create("bench")?;
        let made = tls.then(|| Certificates::make(step, &scratch)).transpose()?;
        let certificates = made.as_ref();
        let seed = workspace::root().join("xtask/demo/seed.sql");
        let postgres = Postgres::start_with(step, &scratch, &seed, certificates)?;
        let redis = Redis::start_with(&scratch, certificates)?;
        let sink = Sink::start()?;
        let peer_tls = certificates.map(Certificates::server).transpose()?;
        let peer_port = http::serve_with(peer_tls, |_| b"42")?;
        let (database, cache, peer) = match certificates {
            None => (postgres.tcp_url(), redis.url(), format!("http://127.0.0.1:{peer_port}")),
            Some(Certificates { authority, .. }) => (
                format!("{}?sslmode=require", postgres.tcp_url()),
                format!("{}?ssl_ca_certs={}", redis.url().replace("redis:", "rediss:"), authority.display()),
                format!("https://localhost:{peer_port}"),
            ),
        };
        Ok(Self {
            sink,
            peer,
            database,
            cache,
            certificates: made,
            _redis: redis,
            _postgres: postgres,
            scratch,
        })
    }

    /// Serves `app` by `command`, which is uvicorn.
    fn serve(&self, name: &'static str, app: &str, mut command: Command) -> Result<Server> {
        let port = free_port()?;
        command
            .args([app, "--loop", "uvloop", "--http", "httptools", "--no-access-log"])
            .args(["--log-level", "warning", "--port", &port.to_string()])
            .current_dir(folder())
            .env("BENCH_DATABASE", &self.database)
            .env("BENCH_CACHE", &self.cache)
            .env("BENCH_PEER", &self.peer)
            .env("BENCH_PYROSCOPE", format!("http://127.0.0.1:{}", self.sink.port));
        if let Some(Certificates { authority, certificate, key }) = &self.certificates {
            command.arg("--ssl-certfile").arg(certificate).arg("--ssl-keyfile").arg(key);
            command.env("BENCH_AUTHORITY", authority);
        }
        let mut service = Service::start(name, &mut command, self.scratch.path())?;
        service.wait_for_port(port)?;
        Ok(Server { service, port })
    }
}
