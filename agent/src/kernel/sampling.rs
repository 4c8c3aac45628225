//! The sampling timer: the CPU clock of every CPU, which needs no hardware counters and so works in virtual machines.

use anyhow::{Context as _, Result};
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::programs::{PerfEvent, Program};
use aya::util::online_cpus;

/// The program that takes a sample.
pub(super) const PROGRAM: &str = "cpu_sample";

/// Loads the program and starts the timers, `hz` times a second on each CPU that is online now.
pub(super) fn attach(program: &mut Program, hz: u32) -> Result<()> {
    let program: &mut PerfEvent = program.try_into()?;
    program.load().with_context(|| format!("the kernel refused the program {PROGRAM}"))?;
    let cpus =
        online_cpus().map_err(|(_, error)| error).context("failed to find out which CPUs are online")?;
    for cpu in cpus {
        program
            .attach(
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Frequency(u64::from(hz)),
                false,
            )
            .with_context(|| format!("failed to start the sampling timer of CPU {cpu}"))?;
    }
    Ok(())
}

/// Ends the timers, and gives the program up.
pub(super) fn detach(program: &mut Program) -> Result<()> {
    let program: &mut PerfEvent = program.try_into()?;
    program.unload().context("failed to unload the program")
}
