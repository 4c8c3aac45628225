//! Probes on functions of single processes: put on when the functions are found, passed on to forked children, taken off when the
//! process ends.
//!
//! Inheritable where the machine allows it; else, or where that fails, a process has its own, and each child needs its own in
//! turn. What is probed is data, see [`sets`]; this knows neither what the programs do nor who has the functions.

pub mod sets;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope};

use self::sets::{Place, ProbeSet, Subject};
use super::disposal::Disposal;
use super::families::{Families, Member, Point};
use super::programs::program;
use crate::clock;

/// The probes of one set in one process.
enum Attached {
    /// Its own, which its children will not have.
    Own(Vec<(&'static str, UProbeLinkId)>),
    /// Its family's.
    Inheritable {
        member: Member,
        /// Since when children inherit, CLOCK_MONOTONIC; never: `u64::MAX`.
        since_ns: u64,
    },
}

/// The probes of all processes.
pub(super) struct Probes {
    /// `None` where probes cannot be inherited.
    families: Option<Families>,
    by_pid: HashMap<u32, HashMap<Subject, Attached>>,
    /// It was said why some process's probes cannot be inherited.
    told_late: bool,
    disposal: Disposal,
}

impl Probes {
    pub(super) fn new() -> Self {
        let families = Families::new().inspect_err(|error| {
            log::warn!("forked processes are traced a little late: the kernel's tracing files cannot be used: {error}");
        });
        let (by_pid, disposal) = (HashMap::new(), Disposal::default());
        Self { families: families.ok(), by_pid, told_late: false, disposal }
    }

    /// How many processes have probes on this.
    pub(super) fn count(&self, subject: Subject) -> usize {
        self.by_pid.values().filter(|sets| sets.contains_key(&subject)).count()
    }

    /// On what a process has probes.
    pub(super) fn subjects(&self, pid: u32) -> impl Iterator<Item = Subject> {
        self.by_pid.get(&pid).into_iter().flatten().map(|(subject, _)| *subject)
    }

    /// Puts a set on one process, in place of what it has on the same subject: all its threads, and what it forks from now on, if that
    /// is possible on this machine; see [`Probes::pass_on`]. All of it or, with an error, nothing.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, pid: u32, set: &ProbeSet<'_>) -> Result<()> {
        let subject = set.subject;
        let old = self.by_pid.get_mut(&pid).and_then(|sets| sets.remove(&subject));
        self.dispose(ebpf, pid, old);
        let mut refused = None;
        if let Some(families) = &mut self.families {
            match found(families, ebpf, pid, set) {
                Ok(member) => {
                    let since_ns = if set.inherited { clock::ktime_ns() } else { u64::MAX };
                    let attached = Attached::Inheritable { member, since_ns };
                    self.by_pid.entry(pid).or_default().insert(subject, attached);
                    return Ok(());
                }
                Err(error) => refused = Some(error),
            }
        }
        let mut links = Vec::new();
        let attached = attach_own(ebpf, pid, set, &mut links);
        let own = Attached::Own(links);
        if let Err(error) = attached {
            self.dispose(ebpf, pid, Some(own));
            return Err(error);
        }
        self.by_pid.entry(pid).or_default().insert(subject, own);
        if let Some(error) = refused.filter(|_| set.inherited) {
            let level = if self.told_late { log::Level::Debug } else { log::Level::Warn };
            self.told_late = true;
            log::log!(level, "what process {pid} forks is traced a little late: {error:#}");
        }
        Ok(())
    }

    /// Takes note that a child that was forked at `ktime_ns` has inherited its parent's probes on this. False if it has not: then it
    /// needs its own.
    pub(super) fn pass_on(&mut self, parent: u32, child: u32, ktime_ns: u64, subject: Subject) -> bool {
        let attached = self.by_pid.get(&parent).and_then(|sets| sets.get(&subject));
        let Some(Attached::Inheritable { member, since_ns }) = attached else { return false };
        if ktime_ns <= *since_ns {
            return false;
        }
        match member.child(child) {
            Ok(member) => {
                let attached = Attached::Inheritable { member, since_ns: ktime_ns };
                self.by_pid.entry(child).or_default().insert(subject, attached);
                true
            }
            Err(error) => {
                log::debug!("process {child} gets probes of its own on {subject:?}: {error}");
                false
            }
        }
    }

    /// Takes all probes off a process.
    pub(super) fn detach(&mut self, ebpf: &mut Ebpf, pid: u32) {
        let sets = self.by_pid.remove(&pid).into_iter().flatten();
        self.dispose(ebpf, pid, sets.map(|(_, attached)| attached));
    }

    /// Takes those on one subject off a process.
    pub(super) fn detach_from(&mut self, ebpf: &mut Ebpf, pid: u32, subject: Subject) {
        let attached = self.by_pid.get_mut(&pid).and_then(|sets| sets.remove(&subject));
        self.dispose(ebpf, pid, attached);
    }

    /// From time to time: gives up what is not used any more.
    pub(super) fn tidy(&mut self, now_ns: u64) {
        if let Some(families) = &mut self.families {
            families.tidy(now_ns, &mut self.disposal);
        }
    }

    fn dispose(&mut self, ebpf: &mut Ebpf, pid: u32, sets: impl IntoIterator<Item = Attached>) {
        for attached in sets {
            // Those of a family are gone with the value.
            let Attached::Own(links) = attached else { continue };
            for (name, link) in links {
                let Some(Ok(probe)) = ebpf.program_mut(name).map(<&mut UProbe>::try_from) else { continue };
                match probe.take_link(link) {
                    Ok(link) => self.disposal.take(link),
                    Err(error) => log::debug!("failed to detach {name} from process {pid}: {error}"),
                }
            }
        }
    }
}

/// Begins a family at a process, or has it alone.
fn found(families: &mut Families, ebpf: &Ebpf, pid: u32, set: &ProbeSet<'_>) -> Result<Member> {
    let point = |&Place { program, offset, on_return }: &Place| -> Result<_> {
        let program = ebpf.program(program).with_context(|| format!("no program {program}"))?.fd()?.as_fd();
        Ok(Point { program, offset, on_return })
    };
    let points = set.places.iter().map(point).collect::<Result<Vec<_>>>()?;
    if set.inherited {
        Ok(families.found(pid, set.file, &points)?)
    } else {
        Ok(families.single(pid, set.file, &points)?)
    }
}

/// Puts probes on one process only; those that it has got are in `links`, also when another one fails.
fn attach_own(
    ebpf: &mut Ebpf,
    pid: u32,
    set: &ProbeSet<'_>,
    links: &mut Vec<(&'static str, UProbeLinkId)>,
) -> Result<()> {
    let scope = UProbeScope::OneProcess(NonZeroU32::new(pid).context("process 0 cannot be traced")?);
    let cookie = aya::features().bpf_cookie().then_some(u64::from(pid));
    // Whether it is on the return is a property of the program.
    for &Place { program: name, offset, on_return: _ } in &set.places {
        let location = UProbeAttachLocation::AbsoluteOffset(offset);
        let probe: &mut UProbe = program(ebpf, name)?.try_into()?;
        let link = probe
            .attach(UProbeAttachPoint { location, cookie }, set.file, scope)
            .with_context(|| format!("failed to attach {name} to process {pid}"))?;
        links.push((name, link));
    }
    Ok(())
}
