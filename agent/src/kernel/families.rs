//! Lineage probes that are inherited: a process and all that it forks, from their first instruction.
//!
//! A perf event on a uprobe that is *defined* (see [`super::tracefs`]) can be inherited, and the kernel provides for it:
//! the breakpoints are in the memory that a fork copies, and `uprobe_perf_filter` lets through whoever has an event
//! (kernel/trace/trace_uprobe.c: "event->parent != NULL means copy_process(), [...] we can rely on dup_mmap()"). So it
//! is across an exec of the same interpreter file. The events of the uprobe PMU, without a definition, are inherited
//! without their program and cannot be used so.
//!
//! The program is attached once, by an event on the daemon itself (the *anchor*): all events of a definition share the
//! programs, and from Linux 6.10 on an inherited event that ends would take its own program away from all of them
//! (`perf_event_free_bpf_prog`, since f11f10bfa1ca). Every process gets events of its own too, which are not inherited: the kernel swaps the
//! inherited ones of two tasks when it switches between them (`context_equiv` in kernel/events/core.c), and one that
//! ends would then take the other's away. It does not swap where an event was added later.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::disposal::Disposal;
use super::perf;
use super::tracefs::{self, Tracefs};

/// A definition that nobody uses is kept for so long: a service may be restarting.
const UNUSED_NS: u64 = 60_000_000_000;
/// A process that goes on making threads is not waited for longer.
const MOST_ROUNDS: usize = 16;

/// The call of a function in a file, or the return from it: device, inode, offset, whether it is the return.
type Place = (u64, u64, u64, bool);

/// A definition with its program.
#[derive(Debug)]
struct Probe {
    tracefs: Arc<Tracefs>,
    group: String,
    name: String,
    id: u64,
    /// Taken when the probe is dropped.
    anchor: Option<OwnedFd>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        drop(self.anchor.take());
        if let Err(error) = self.tracefs.remove(&self.group, &self.name) {
            log::debug!("failed to take away the probe {}/{}: {error}", self.group, self.name);
        }
    }
}

/// Events that descendants inherit. Whoever may have inherited one keeps them all open.
#[derive(Debug)]
struct Inherited {
    /// Closed before the probes are given up.
    _events: Vec<OwnedFd>,
    probes: Vec<Arc<Probe>>,
}

/// The probes of one process.
#[derive(Debug)]
pub(super) struct Member {
    _own: Vec<OwnedFd>,
    inherited: Arc<Inherited>,
}

/// All definitions of this daemon.
#[derive(Debug)]
pub(super) struct Families {
    tracefs: Arc<Tracefs>,
    /// Each with the last time that it was seen in use, 0 if it was not yet.
    probes: HashMap<Place, (Arc<Probe>, u64)>,
    defined: u64,
}

/// Where a program is wanted.
#[derive(Clone, Copy)]
pub(super) struct Point<'a> {
    pub(super) program: BorrowedFd<'a>,
    pub(super) offset: u64,
    /// On the return from the function, not on the call.
    pub(super) on_return: bool,
}

impl Families {
    /// Finds out whether this machine can do it, and takes away what daemons left that are gone.
    pub(super) fn new() -> io::Result<Self> {
        let tracefs = Tracefs::open()?;
        // The kernel may not have let go of the events of one that has just been killed; then its helper is at it.
        if let Err(error) = sweep(&tracefs, |pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            log::debug!("failed to take away the probes of a pitviper that is gone: {error}");
        }
        allow_descriptors();
        Ok(Self { tracefs: Arc::new(tracefs), probes: HashMap::new(), defined: 0 })
    }

    /// Puts probes on a process and all its threads.
    pub(super) fn single(&mut self, pid: u32, file: &Path, points: &[Point<'_>]) -> io::Result<Member> {
        let probes = self.probes(file, points)?;
        Ok(Member {
            _own: own_events(pid, &probes)?,
            inherited: Arc::new(Inherited { _events: Vec::new(), probes }),
        })
    }

    /// Puts probes on a process, all its threads, and all that they will create.
    pub(super) fn found(&mut self, pid: u32, file: &Path, points: &[Point<'_>]) -> io::Result<Member> {
        let probes = self.probes(file, points)?;
        // What forks between this and the next step inherits nothing and is told by its time.
        let own = own_events(pid, &probes)?;
        let mut events = Vec::new();
        let mut seen = BTreeSet::new();
        for _ in 0..MOST_ROUNDS {
            let new: Vec<u32> = threads(pid).into_iter().filter(|tid| seen.insert(*tid)).collect();
            if new.is_empty() {
                break;
            }
            for (tid, probe) in new.iter().flat_map(|tid| probes.iter().map(move |probe| (*tid, probe))) {
                events.extend(unless_gone(perf::open_tracepoint(probe.id, tid, true))?);
            }
        }
        Ok(Member { _own: own, inherited: Arc::new(Inherited { _events: events, probes }) })
    }

    /// Gives definitions that have not been used for a while to `disposal`; `now_ns` is CLOCK_MONOTONIC.
    pub(super) fn tidy(&mut self, now_ns: u64, disposal: &mut Disposal) {
        let unused = self.probes.extract_if(|_, (probe, used_ns)| {
            if *used_ns == 0 || Arc::strong_count(probe) > 1 {
                *used_ns = now_ns;
            }
            now_ns.saturating_sub(*used_ns) >= UNUSED_NS
        });
        for (_, (probe, _)) in unused {
            disposal.take(probe);
        }
    }

    fn probes(&mut self, file: &Path, points: &[Point<'_>]) -> io::Result<Vec<Arc<Probe>>> {
        let metadata = fs::metadata(file)?;
        let place = |point: &Point<'_>| (metadata.dev(), metadata.ino(), point.offset, point.on_return);
        points.iter().map(|point| self.probe(place(point), file, point)).collect()
    }

    fn probe(&mut self, place: Place, file: &Path, point: &Point<'_>) -> io::Result<Arc<Probe>> {
        if let Some((probe, _)) = self.probes.get(&place) {
            return Ok(Arc::clone(probe));
        }
        self.defined += 1;
        let (group, name) = (tracefs::group_of(std::process::id()), format!("made_{}", self.defined));
        let id = self.tracefs.define(&group, &name, file, point.offset, point.on_return)?;
        let mut probe = Probe { tracefs: Arc::clone(&self.tracefs), group, name, id, anchor: None };
        let anchor = perf::open_tracepoint(id, 0, false)?;
        perf::set_program(std::os::fd::AsFd::as_fd(&anchor), point.program)?;
        probe.anchor = Some(anchor);
        let probe = Arc::new(probe);
        self.probes.insert(place, (Arc::clone(&probe), 0));
        Ok(probe)
    }
}

impl Member {
    /// A child that was forked after its parent had become a member.
    pub(super) fn child(&self, pid: u32) -> io::Result<Self> {
        let inherited = Arc::clone(&self.inherited);
        Ok(Self { _own: own_events(pid, &inherited.probes)?, inherited })
    }
}

/// Each process takes some descriptors, and 1024 are the usual limit of those who do not ask for more.
fn allow_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        log::debug!("failed to raise the limit of open files: {error}");
    }
}

/// Takes away the definitions of the daemons that `gone` is true of.
pub(super) fn sweep(tracefs: &Tracefs, gone: impl Fn(u32) -> bool) -> io::Result<()> {
    for (pid, name) in tracefs.defined()?.into_iter().filter(|(pid, _)| gone(*pid)) {
        tracefs.remove(&tracefs::group_of(pid), &name)?;
    }
    Ok(())
}

/// On the first thread, which may have ended before the others.
fn own_events(pid: u32, probes: &[Arc<Probe>]) -> io::Result<Vec<OwnedFd>> {
    let events = probes.iter().map(|probe| unless_gone(perf::open_tracepoint(probe.id, pid, false)));
    Ok(events.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn unless_gone(opened: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        opened => opened.map(Some),
    }
}

fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}
