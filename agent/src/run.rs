//! `pitviper run`: checks what can be checked, starts the pipeline and the exporters, and ends them in order.

mod samples;

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result};
use pitviper_ebpf::abi::Counter;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Run;
use crate::config::OtelConfig;
use crate::export::console::{Console, Style};
use crate::export::profiles::{ProfileExport, ProfileStats};
use crate::export::{ExportHandle, ExportStats};
use crate::kernel::capabilities;
use crate::kernel::programs::{Options, Programs};
use crate::kernel::publish::{self, Pin};
use crate::kernel::sweeper::Sweeper;
use crate::pipeline::{Choices, Output, Pipeline, Stats, Tables, TimingSettings, Tracked};
use crate::process::resource::{self, Defaults};
use crate::process::select::Selector;
use crate::profile;
use crate::telemetry::push::Pusher;
use crate::telemetry::{inquiry, socket};
use crate::trace::FinishedSpan;
use crate::trace::http::KnownMethods;

use samples::Samples;

/// What is left of the five seconds in which an interrupted agent has to be gone, once the pipeline has stopped.
const FLUSH: Duration = Duration::from_millis(3500);
/// The least time for the last metrics.
const LAST_WORD: Duration = Duration::from_millis(300);
/// Spans that may wait for a slow terminal; more are dropped and counted.
const CONSOLE_QUEUE: usize = 8192;
/// How often the console looks for traces that are complete.
const CONSOLE_TICK: Duration = Duration::from_millis(100);

/// The kernel programs, built by `cargo xtask build`.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PITVIPER_EBPF_OBJECT"));

/// Something that the user has to change before pitviper can work: exit code 2.
#[derive(Debug)]
pub struct Unusable(String);

impl Unusable {
    pub(crate) fn error(reason: impl fmt::Display) -> Error {
        Error::new(Self(reason.to_string()))
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Runs until told to stop, or until the processes that were asked for by pid have ended.
pub fn run(options: &Run) -> Result<()> {
    let config = OtelConfig::from_env(&|name| std::env::var(name).ok()).map_err(Unusable::error)?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    if let Some(methods) = &config.http_known_methods {
        KnownMethods::from_list(&methods.join(",")).install();
    }
    let selector = Selector::try_from(options.selection()).map_err(Unusable::error)?;
    capabilities::check().map_err(Unusable::error)?;

    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("failed to start tokio")?;
    let export = ExportHandle::start(&config, runtime.handle())
        .map_err(|error| Unusable::error(format!("{error:#}")))?;
    let with_console = options.console || config.exports_console();
    let period = profile::period(options.profile_frequency);
    let profiles = (!options.no_profiles).then_some((config.profiles.as_ref(), config.pyroscope.as_ref()));
    let (over_otlp, to_pyroscope) = profiles.unwrap_or_default();
    let profile_export = ProfileExport::start(over_otlp, to_pyroscope, period, runtime.handle())
        .map_err(|error| Unusable::error(format!("{error:#}")))?;
    let kept = with_console || options.samples.is_some();
    let profiling = match profile_export.wanted() {
        // When the last receiver turns out to take no profiles nobody does.
        Some(wanted) if !kept && !options.no_profiles => wanted,
        receivers => Arc::new(AtomicBool::new(!options.no_profiles && (receivers.is_some() || kept))),
    };
    let timing =
        (!options.no_timing).then(|| TimingSettings { period, locks: capabilities::has_task_registers() });
    let publish = options.publish_context.then(|| Pin::prepare(Path::new(publish::BPF_FILES)));
    let publish = publish.transpose().map_err(Unusable::error)?;
    let sweeper = Sweeper::start().context("failed to start the helper that cleans up after a kill")?;
    let programs = Programs::load(
        OBJECT,
        Options {
            capture_limit: options.capture_limit,
            ring_bytes: options.ring_size * 1024,
            report_exec: !selector.is_only_pids(),
            report_listen: !selector.ports.is_empty(),
            sample_hz: if profiling.load(Ordering::Relaxed) || timing.is_some() {
                options.profile_frequency
            } else {
                0
            },
            clocks: timing.map(|_| options.loop_threshold),
            log: options.verbose > 1,
            publish,
        },
    )?;
    let defaults = Defaults {
        service_name: config.service_name.clone(),
        attributes: config.resource_attributes.clone(),
    };
    let (inquirer, questions) = inquiry::channel();
    let own = resource::of_agent(&defaults);
    let pusher = Pusher::start(&config, own, inquirer.clone(), export.clone(), runtime.handle())
        .map_err(|error| Unusable::error(format!("{error:#}")))?;
    let mut pipeline = Pipeline::start(
        programs,
        selector,
        defaults,
        config.sampler,
        Choices {
            parent_evidence: options.parent_evidence,
            sdks: options.sdk_processes,
            timing,
            profiling: Arc::clone(&profiling),
            native: options.native,
        },
    )
    .map_err(Unusable::error)?;

    let answering = socket::serve(inquirer, runtime.handle())
        .map_err(|error| log::warn!("`pitviper ps` will not show this daemon's work: no socket: {error}"));
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&runtime, &stop)?;
    let console = with_console.then(ConsoleThread::start);
    announce(&pipeline.tracked(), pipeline.left(), &config, console.is_some());
    let mut samples = Samples::new(profile_export.clone(), with_console, options.samples.clone());
    let (stats, report) = pipeline.run(&stop, &questions, |output| match output {
        Output::Span(span) => {
            samples.span(&span.data);
            if let Some(console) = &console {
                console.push(span.clone());
            }
            export.push(span);
        }
        Output::Sample(sample) => samples.sample(sample),
    });
    drop(questions);

    drop(sweeper);
    if let Ok(answering) = answering {
        answering.abort();
    }
    let unprinted = console.map_or(0, ConsoleThread::finish);
    if let Some(summary) = samples.finish(period)? {
        print(&[summary]);
    }
    let (exported, profiles) = runtime.block_on(async {
        let deadline = Instant::now() + FLUSH;
        let (exported, profiles) =
            tokio::join!(export.flush_and_shutdown(FLUSH), profile_export.flush_and_shutdown(FLUSH));
        if let Some(pusher) = pusher {
            // After the spans, so that they are in it; a moment is left for it even if they took all the time.
            pusher.finish(report, deadline.saturating_duration_since(Instant::now()).max(LAST_WORD)).await;
        }
        (exported, profiles)
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    farewell(&stats, exported, profiles, config.exports_otlp(), unprinted);
    Ok(())
}

/// The first signal ends the work in order, the second one at once.
pub(crate) fn stop_on_signals(runtime: &Runtime, stop: &Arc<AtomicBool>) -> Result<()> {
    let _entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let stop = Arc::clone(stop);
    runtime.spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    });
    Ok(())
}

fn announce(tracked: &[Tracked], left: usize, config: &OtelConfig, console: bool) {
    const SHOWN: usize = 8;
    for Tracked { pid, service, version, limit } in tracked.iter().take(SHOWN) {
        let tier = if limit.is_some() { ", by thread only" } else { "" };
        log::info!("tracing {service} (pid {pid}, CPython {version}{tier})");
    }
    if tracked.len() > SHOWN {
        log::info!("and {} more", tracked.len() - SHOWN);
    }
    if tracked.is_empty() && left == 0 {
        log::info!("no Python process is running yet; waiting for one");
    }
    if config.exports_otlp() {
        log::info!("exporting to {}", config.otlp.display_url());
    } else if !console {
        log::info!("nothing is exported, as OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER says");
    }
    log::info!("ready");
}

/// The closing words: what was done, and everything that was lost on the way.
fn farewell(stats: &Stats, exported: ExportStats, profiles: ProfileStats, otlp: bool, unprinted: u64) {
    let losses = [
        (
            stats.kernel(Counter::RingFullData),
            "socket calls were lost because the ring buffer was full (try a larger --ring-size)",
        ),
        (
            stats.kernel(Counter::RingFullContext),
            "context copies were lost because the ring buffer was full (try a larger --ring-size)",
        ),
        (
            stats.kernel(Counter::RingFullLifecycle),
            "process or socket events were lost because the ring buffer was full",
        ),
        (stats.kernel(Counter::UserReadFailed), "buffers could not be read and count as not captured"),
        (stats.kernel(Counter::MapUpdateFailed), "updates of the kernel side's tables failed"),
        (
            stats.kernel(Counter::RingFullSample),
            "profile samples were lost because the ring buffer was full (try a larger --ring-size)",
        ),
        (stats.unknown_records, "records were not understood"),
        (stats.connections.evicted, "connections were forgotten because there were too many"),
        (unprinted, "spans were not printed because the terminal was too slow"),
        (
            exported.dropped_queue_full,
            "spans were dropped because the export queue was full (OTEL_BSP_MAX_QUEUE_SIZE)",
        ),
        (exported.dropped_failed + exported.dropped_shutdown, "spans could not be delivered"),
        (exported.dropped_rejected, "spans were refused by the receiver"),
        (profiles.dropped, "profile samples could not be delivered"),
    ];
    for (count, what) in losses {
        if count > 0 {
            log::warn!("{count} {what}");
        }
    }
    if stats.left_spans > 0 {
        log::info!("{} spans were left to SDKs that were found at work", stats.left_spans);
    }
    let causality = stats.causality;
    log::debug!(
        "{} calls captured, {} contexts; connections: {:?}; parents: {causality:?}; traces: {:?}; profile: {:?}; \
         {} commands of Celery's own to its broker left out",
        stats.kernel(Counter::DataRecords),
        stats.kernel(Counter::ContextRecords),
        stats.connections,
        stats.assembly,
        stats.profiler,
        stats.broker_housekeeping
    );
    let Tables { processes, probed, targets, lineages, connections } = stats.tables;
    log::debug!(
        "tables at the end: {processes} processes, {probed} probed, {targets} targets, {lineages} with lineage, {connections} connections"
    );
    if otlp {
        log::info!("exported {} spans, dropped {}", exported.exported, exported.dropped());
        log::debug!("exported {} profile samples", profiles.exported);
    } else {
        log::info!("saw {} spans", stats.spans);
    }
}

/// The console on a thread of its own, so that a slow terminal does not hold up the pipeline.
struct ConsoleThread {
    spans: SyncSender<FinishedSpan>,
    thread: JoinHandle<u64>,
    dropped: std::cell::Cell<u64>,
}

impl ConsoleThread {
    fn start() -> Self {
        let (spans, receiver) = sync_channel(CONSOLE_QUEUE);
        let thread = std::thread::spawn(move || print_traces(&receiver));
        Self { spans, thread, dropped: std::cell::Cell::new(0) }
    }

    fn push(&self, span: FinishedSpan) {
        if let Err(TrySendError::Full(_)) = self.spans.try_send(span) {
            self.dropped.set(self.dropped.get() + 1);
        }
    }

    /// Prints what is left; gives the number of spans that were dropped.
    fn finish(self) -> u64 {
        let Self { spans, thread, dropped } = self;
        drop(spans);
        // A console that panicked has said so itself.
        dropped.get() + thread.join().unwrap_or(0)
    }
}

/// Prints traces as they become complete; gives the number of spans that there was no room for.
fn print_traces(spans: &Receiver<FinishedSpan>) -> u64 {
    let mut console = Console::new(Style::from_environment());
    let mut last_tick = Instant::now();
    let mut ended = false;
    while !ended {
        match spans.recv_timeout(CONSOLE_TICK) {
            Ok(span) => console.push(span, Instant::now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => ended = true,
        }
        if last_tick.elapsed() >= CONSOLE_TICK {
            last_tick = Instant::now();
            print(&console.tick(last_tick));
        }
    }
    print(&console.flush());
    console.dropped()
}

fn print(traces: &[String]) {
    let mut stdout = std::io::stdout().lock();
    for trace in traces {
        // A reader that has gone away does not end the tracing.
        let _ = writeln!(stdout, "{trace}");
    }
    let _ = stdout.flush();
}
