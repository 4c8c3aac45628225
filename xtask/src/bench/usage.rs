//! What a process used, from /proc: CPU time of all its threads, and the most memory it had.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};

/// CPU time of the process's present threads, in the kernel and outside of it, to the nanosecond.
///
/// Time that eBPF programs take on behalf of the process is part of it. Source: proc_pid_schedstat(5).
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let threads =
        fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?;
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(nanoseconds.sum()))
}

/// The peak of resident memory, in megabytes.
pub(crate) fn peak_memory_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.context("/proc/PID/status has no VmHWM")? * 1024.0 / 1e6)
}

/// The share of all cores' time that is used now, by anything; measured over `duration`.
pub(crate) fn busy_share(duration: Duration) -> Result<f64> {
    let before = idle_and_total()?;
    thread::sleep(duration);
    let after = idle_and_total()?;
    Ok(1.0 - (after.0 - before.0) / (after.1 - before.1).max(1.0))
}

/// Ticks since boot, of all cores. Source: proc_stat(5).
fn idle_and_total() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("failed to read /proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    // Guests' time, after the first eight fields, is part of the users' already.
    let fields: Vec<f64> =
        line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
    let idle = fields.get(3).context("/proc/stat has no idle time")? + fields.get(4).copied().unwrap_or(0.0);
    Ok((idle, fields.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        let before = cpu(pid).unwrap();
        let busy = (0..20_000_000_u64).fold(0, |sum: u64, n| sum.wrapping_add(std::hint::black_box(n)));
        assert!(cpu(pid).unwrap() > before, "{busy}");
        assert!((0.0..=1.0).contains(&busy_share(Duration::from_millis(50)).unwrap()));
        assert!(peak_memory_mb(pid).unwrap() > 1.0);
    }
}
