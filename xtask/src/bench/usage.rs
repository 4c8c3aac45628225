//! What a process used, from /proc: CPU time of all its threads, and the most memory it had.

use std::{fs, time::Duration};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        let before = cpu(pid).unwrap();
        let busy = (0..20_000_000_u64).fold(0, |sum: u64, n| sum.wrapping_add(std::hint::black_box(n)));
        assert!(cpu(pid).unwrap() > before, "{busy}");
        assert!(peak_memory_mb(pid).unwrap() > 1.0);
    }
}
