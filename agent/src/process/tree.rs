//! Which processes there are, and whose children they are.

use std::time::Duration;

use procfs::process::{Process, StatFlags};

/// A chain of parents longer than this is cut; pid namespaces nest at most 32 deep, shells a little more.
const MAX_ANCESTORS: usize = 256;

/// All processes, in no order.
pub fn all() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The threads of a process, in no order.
pub fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether there is a process with this pid that has not ended: one that its parent has yet to ask after has, and so has
/// one that is on its way out (`PF_EXITING`), from when on the kernel refuses to trace it.
pub fn lives(pid: u32) -> bool {
    let stat = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.stat().ok());
    stat.is_some_and(|stat| {
        let ending = StatFlags::from_bits_truncate(stat.flags).contains(StatFlags::PF_EXITING);
        !ending && !matches!(stat.state, 'Z' | 'X')
    })
}

/// CPU time that a process has used.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    let ticks = Duration::from_secs(1).checked_div(u32::try_from(procfs::ticks_per_second()).ok()?)?;
    Some(ticks.saturating_mul(u32::try_from(stat.utime + stat.stime).ok()?))
}

/// The parent of a process; `None` for the first one, and for one that is gone.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    u32::try_from(stat.ppid).ok().filter(|&parent| parent != 0)
}

/// A process, its parent, that one's parent, and so on.
pub fn lineage(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(pid), |&pid| parent(pid)).take(MAX_ANCESTORS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_there_and_descends_from_the_first() {
        let own = std::process::id();
        assert!(all().contains(&own));
        assert!(threads(own).contains(&own) && threads(u32::MAX).is_empty());
        let lineage: Vec<u32> = lineage(own).collect();
        assert_eq!(lineage.first(), Some(&own));
        assert_eq!(lineage.get(1).copied(), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent(u32::MAX), None);
        assert!(lives(own) && !lives(u32::MAX));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while lives(child.id()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
