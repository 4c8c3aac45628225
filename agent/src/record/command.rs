//! `pitviper record`: a CPU profile of some processes, for some time, into files.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pitviper_ebpf::abi::Counter;
use tokio::runtime::Builder;

use super::files::Files;

use crate::cli::Record;
use crate::kernel::capabilities;
use crate::kernel::programs::{Options, Programs};
use crate::kernel::sweeper::Sweeper;
use crate::pipeline::{Choices, Output, Pipeline, Stats};
use crate::process::resource::Defaults;
use crate::process::sdk::SdkProcesses;
use crate::process::select::{self, Selector};
use crate::profile::by_route::ByRoute;
use crate::profile::period;
use crate::profile::pprof::Recorded;
use crate::run::{OBJECT, Unusable, stop_on_signals};
use crate::telemetry::inquiry;
use crate::trace::sampler::Sampler;

/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Records until the time is over, until told to stop, or until the processes have ended.
pub fn record(options: &Record) -> Result<()> {
    let selection = select::Options { pids: options.pids.clone(), ..select::Options::default() };
    let selector = Selector::try_from(selection).map_err(Unusable::error)?;
    capabilities::check().map_err(Unusable::error)?;
    fs::create_dir_all(&options.output)
        .with_context(|| format!("failed to make the folder {}", options.output.display()))?;

    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("failed to start tokio")?;
    let sweeper = Sweeper::start().context("failed to start the helper that cleans up after a kill")?;
    let programs = Programs::load(
        OBJECT,
        Options { sample_hz: options.frequency, log: options.verbose > 1, ..Options::default() },
    )?;
    let mut pipeline = Pipeline::start(
        programs,
        selector,
        Defaults::default(),
        Sampler::default(),
        Choices {
            parent_evidence: false,
            sdks: SdkProcesses::Trace,
            timing: None,
            profiling: Arc::new(AtomicBool::new(true)),
            native: options.native,
        },
    )
    .map_err(Unusable::error)?;
    let names: Vec<String> = pipeline.tracked().into_iter().map(|tracked| tracked.service).collect();
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&runtime, &stop)?;

    let seen = Arc::new(AtomicU64::new(0));
    let bar = progress_bar(options.duration);
    if bar.is_hidden() {
        log::info!("recording for {} s", options.duration.as_secs_f64());
    }
    runtime.spawn(watch(bar.clone(), options.duration, Arc::clone(&stop), Arc::clone(&seen)));

    let start = SystemTime::now();
    let mut routes = ByRoute::default();
    let (_inquirer, questions) = inquiry::channel();
    let (stats, _) = pipeline.run(&stop, &questions, |output| match output {
        Output::Sample(sample) => {
            seen.fetch_add(1, Ordering::Relaxed);
            routes.sample(sample);
        }
        Output::Span(span) => routes.span(&span.data),
    });
    drop(sweeper);
    bar.finish_and_clear();
    runtime.shutdown_background();

    let duration = start.elapsed().unwrap_or(options.duration);
    let recorded = Recorded { start, duration, period: period(options.frequency) };
    let stacks = routes.finish();
    report(&stats);
    if stacks.is_empty() {
        log::warn!("no sample was taken: the processes did not use a CPU in this time; nothing is written");
        return Ok(());
    }
    let files = Files { folder: &options.output, title: &title(names), recorded };
    let written = files.write(&stacks)?;
    log::info!("{} samples in {:.1} s", stacks.total(), duration.as_secs_f64());
    for (path, what) in written {
        log::info!("wrote {} ({what})", path.display());
    }
    Ok(())
}

fn progress_bar(duration: Duration) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("  recording {bar:32} {msg}") {
        bar.set_style(style.progress_chars("━╸·"));
    }
    bar
}

/// Moves the bar, and stops when the time is over.
async fn watch(bar: ProgressBar, duration: Duration, stop: Arc<AtomicBool>, seen: Arc<AtomicU64>) {
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let passed = start.elapsed().min(duration);
        bar.set_position(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
        let samples = seen.load(Ordering::Relaxed);
        bar.set_message(format!(
            "{:.1} of {} s, {samples} samples",
            passed.as_secs_f64(),
            duration.as_secs_f64()
        ));
        if passed >= duration {
            stop.store(true, Ordering::Relaxed);
        }
        tokio::time::sleep(TICK.min(duration.saturating_sub(passed))).await;
    }
}

/// The services, for the headings.
fn title(mut names: Vec<String>) -> String {
    names.sort();
    names.dedup();
    let names = if names.is_empty() { "Python".to_owned() } else { names.join(", ") };
    format!("{names}: CPU")
}

/// What the profile lacks.
fn report(stats: &Stats) {
    let profiler = stats.profiler;
    let losses = [
        (stats.kernel(Counter::RingFullSample), "samples were lost because the ring buffer was full"),
        (profiler.strays, "samples were dropped because their process was not known any more"),
        (profiler.unknown_frames, "frames have no name because their code was gone"),
        (profiler.deep, "stacks were deeper than 128 frames and are cut"),
        (profiler.cut, "stacks could not be read to their end"),
    ];
    for (count, what) in losses {
        if count > 0 {
            log::warn!("{count} {what}");
        }
    }
    log::debug!("{profiler:?}");
}
