//! `pitviper record`: a CPU profile of some processes, for some time, into files.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use pitviper_ebpf::abi::Counter;
use tokio::runtime::Builder;

use crate::cli::Record;
use crate::kernel::capabilities;
use crate::kernel::programs::{Options, Programs};
use crate::pipeline::{Output, Pipeline, Stats};
use crate::process::resource::Defaults;
use crate::process::select::{self, Selector};
use crate::profile::collapsed::Collapsed;
use crate::run::{OBJECT, Unusable, stop_on_signals};
use crate::trace::sampler::Sampler;

/// Samples per second of each CPU: not a divisor of anything that programs do by the clock.
pub const SAMPLE_HZ: u32 = 97;

/// The collapsed stacks, in the folder that was asked for.
const COLLAPSED: &str = "profile.collapsed";

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
    let programs = Programs::load(
        OBJECT,
        Options { sample_hz: SAMPLE_HZ, log: options.verbose > 1, ..Options::default() },
    )?;
    let pipeline = Pipeline::start(programs, selector, Defaults::default(), Sampler::default())
        .map_err(Unusable::error)?;
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&runtime, &stop)?;
    log::info!("recording for {} s", options.duration.as_secs_f64());

    let over = Arc::clone(&stop);
    let duration = options.duration;
    runtime.spawn(async move {
        tokio::time::sleep(duration).await;
        over.store(true, Ordering::Relaxed);
    });
    let mut collapsed = Collapsed::default();
    let stats = pipeline.run(&stop, |output| match output {
        Output::Sample(sample) => collapsed.add(&sample),
        Output::Span(_) => {}
    });
    runtime.shutdown_background();

    let path = options.output.join(COLLAPSED);
    write(&path, &collapsed)?;
    report(&stats);
    log::info!("wrote {} samples to {}", collapsed.samples(), path.display());
    Ok(())
}

/// Writes collapsed stacks into a file.
pub fn write(path: &Path, collapsed: &Collapsed) -> Result<()> {
    let written = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        collapsed.write(&mut file)?;
        file.flush()
    };
    written().with_context(|| format!("failed to write {}", path.display()))
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
