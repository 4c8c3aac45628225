//! Which processes the user wants traced.
//!
//! Raw options become a validated [`Selector`] once; it then answers for one process at a time, so that new processes
//! are judged by the same rule as those that were there first. Several options widen the choice. Whether a process
//! runs Python at all is [`crate::python::inspect`]'s to say.

use std::fmt;
use std::path::PathBuf;

use glob::Pattern;
use procfs::process::Process;

use super::command::base_name;
use super::{cgroup, ports, tree};
use crate::python::maps::without_deleted;

/// The options as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `--pid N`
    pub pids: Vec<u32>,
    /// `--cgroup PATH`
    pub cgroups: Vec<PathBuf>,
    /// `--exe GLOB`
    pub exes: Vec<String>,
    /// `--port N`
    pub ports: Vec<u16>,
}

/// What is wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectError {
    /// No process has this pid.
    NoSuchProcess(u32),
    /// A thread has this id.
    Thread {
        /// The id that was given.
        tid: u32,
        /// The process that the thread belongs to.
        pid: u32,
    },
    /// The machine has no unified hierarchy.
    NoCgroups,
    /// No group has this path.
    NoSuchCgroup {
        /// The path that was given.
        path: PathBuf,
        /// Where groups are.
        mount: PathBuf,
    },
    /// The glob has a mistake.
    Glob {
        /// The glob that was given.
        glob: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No process can listen on port 0.
    PortZero,
}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchProcess(pid) => write!(f, "--pid {pid}: there is no such process"),
            Self::Thread { tid, pid } => write!(f, "--pid {tid}: that is a thread; its process is {pid}"),
            Self::NoCgroups => f.write_str("--cgroup: no cgroup v2 hierarchy is mounted on this machine"),
            Self::NoSuchCgroup { path, mount } => {
                write!(f, "--cgroup {}: there is no such cgroup below {}", path.display(), mount.display())
            }
            Self::Glob { glob, reason } => write!(f, "--exe {glob}: not a valid glob: {reason}"),
            Self::PortZero => f.write_str("--port 0: a port is a number from 1 to 65535"),
        }
    }
}

impl std::error::Error for SelectError {}

/// Which processes are wanted. All lists empty: every process but the agent's own children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// These processes and their descendants.
    pub pids: Vec<u32>,
    /// Processes in these groups and the groups below; paths from the root of the hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// Processes whose executable matches; a pattern without `/` is matched against its file name.
    pub exes: Vec<Pattern>,
    /// Processes that listen on one of these TCP ports.
    pub ports: Vec<u16>,
}

impl TryFrom<Options> for Selector {
    type Error = SelectError;

    fn try_from(options: Options) -> Result<Self, SelectError> {
        let Options { pids, cgroups, exes, ports } = options;
        for &pid in &pids {
            check_pid(pid)?;
        }
        if ports.contains(&0) {
            return Err(SelectError::PortZero);
        }
        let exes = exes
            .into_iter()
            .map(|glob| {
                Pattern::new(&glob).map_err(|error| SelectError::Glob { glob, reason: error.msg.to_owned() })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { pids, cgroups: resolve_cgroups(cgroups)?, exes, ports })
    }
}

impl Selector {
    /// Whether nothing was selected in particular.
    pub fn is_everything(&self) -> bool {
        let Self { pids, cgroups, exes, ports } = self;
        pids.is_empty() && cgroups.is_empty() && exes.is_empty() && ports.is_empty()
    }

    /// Whether no process can become wanted once those selected and their descendants have ended.
    pub fn is_only_pids(&self) -> bool {
        let Self { pids, cgroups, exes, ports } = self;
        !pids.is_empty() && cgroups.is_empty() && exes.is_empty() && ports.is_empty()
    }

    /// Whether a process is wanted. One that is gone is not.
    pub fn matches(&self, pid: u32) -> bool {
        if self.is_everything() {
            let own = std::process::id();
            return tree::lineage(pid).all(|ancestor| ancestor != own);
        }
        self.matches_pid(pid)
            || self.matches_cgroup(pid)
            || self.matches_exe(pid)
            || (!self.ports.is_empty() && ports::listens_on(pid, &self.ports))
    }

    /// The wanted processes that there are now, in the order of their pids.
    pub fn present(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = tree::all().into_iter().filter(|&pid| self.matches(pid)).collect();
        pids.sort_unstable();
        pids
    }

    fn matches_pid(&self, pid: u32) -> bool {
        !self.pids.is_empty() && tree::lineage(pid).any(|ancestor| self.pids.contains(&ancestor))
    }

    fn matches_cgroup(&self, pid: u32) -> bool {
        !self.cgroups.is_empty()
            && cgroup::of_process(pid)
                .is_some_and(|own| self.cgroups.iter().any(|group| own.starts_with(group)))
    }

    fn matches_exe(&self, pid: u32) -> bool {
        if self.exes.is_empty() {
            return false;
        }
        let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) else { return false };
        let exe = without_deleted(exe);
        let path = exe.to_string_lossy();
        let name = base_name(&path);
        self.exes.iter().any(|glob| glob.matches(if glob.as_str().contains('/') { &path } else { name }))
    }
}

fn check_pid(pid: u32) -> Result<(), SelectError> {
    let status = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.status().ok());
    let tgid = status.and_then(|status| u32::try_from(status.tgid).ok());
    match tgid {
        None => Err(SelectError::NoSuchProcess(pid)),
        Some(tgid) if tgid != pid => Err(SelectError::Thread { tid: pid, pid: tgid }),
        Some(_) => Ok(()),
    }
}

fn resolve_cgroups(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, SelectError> {
    if paths.is_empty() {
        return Ok(paths);
    }
    let mount = cgroup::mount_point().ok_or(SelectError::NoCgroups)?;
    paths
        .into_iter()
        .map(|path| {
            cgroup::resolve(&path, &mount)
                .ok_or_else(|| SelectError::NoSuchCgroup { path, mount: mount.clone() })
        })
        .collect()
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
