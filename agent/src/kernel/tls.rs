//! Probes on the TLS libraries of processes: several for a process, each put on when it is found and taken off when the
//! process ends.
//!
//! Inheritable where the machine allows it, as the lineage probes are; knows neither what the functions do nor who has them.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope};

use super::disposal::Disposal;
use super::families::{Families, Member, Point};
use crate::clock;
use crate::tls::{FileKey, Functions, WriteInternal};

/// The program on returns from the four that move bytes.
const RETURNED: &str = "tls_returned";
/// All programs, to be loaded.
pub(super) const PROGRAMS: [&str; 8] = [
    "tls_read",
    "tls_read_ex",
    "tls_write",
    "tls_write_ex",
    "tls_write_ex2",
    RETURNED,
    "tls_handshake",
    "tls_free",
];

/// Where a program is wanted in a file.
#[derive(Clone, Copy)]
struct Place {
    name: &'static str,
    offset: u64,
    on_return: bool,
}

/// Returns come first: a call that is seen to begin must be seen to end.
fn places(functions: &Functions) -> Vec<Place> {
    let Functions { read, read_ex, write, write_ex, handshake, free, read_internal, write_internal } =
        *functions;
    let mut moving = Vec::new();
    match read_internal {
        Some(offset) => moving.push(("tls_read_ex", Some(offset))),
        None => moving.extend([("tls_read", read), ("tls_read_ex", read_ex)]),
    }
    match write_internal {
        Some(WriteInternal { offset, takes_flags: false }) => moving.push(("tls_write_ex", Some(offset))),
        Some(WriteInternal { offset, takes_flags: true }) => moving.push(("tls_write_ex2", Some(offset))),
        None => moving.extend([("tls_write", write), ("tls_write_ex", write_ex)]),
    }
    let returns = moving.iter().map(|(_, offset)| (RETURNED, *offset, true));
    let calls = moving.iter().copied().chain([("tls_handshake", handshake), ("tls_free", free)]);
    returns
        .chain(calls.map(|(name, offset)| (name, offset, false)))
        .filter_map(|(name, offset, on_return)| Some(Place { name, offset: offset?, on_return }))
        .collect()
}

/// The probes on one library of one process.
enum Attached {
    /// Its own, which its children will not have.
    Own(Vec<(&'static str, UProbeLinkId)>),
    /// Its family's.
    Inheritable {
        member: Member,
        /// Since when children inherit, CLOCK_MONOTONIC.
        since_ns: u64,
    },
}

/// The probes on all libraries of all processes.
#[derive(Default)]
pub(super) struct TlsProbes {
    by_pid: HashMap<u32, HashMap<FileKey, Attached>>,
}

impl TlsProbes {
    /// Whether a process has the probes of a library.
    pub(super) fn has(&self, pid: u32, file: &FileKey) -> bool {
        self.by_pid.get(&pid).is_some_and(|libraries| libraries.contains_key(file))
    }

    /// Puts probes on a library of a process.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        families: Option<&mut Families>,
        pid: u32,
        file: FileKey,
        path: &Path,
        functions: &Functions,
    ) -> Result<()> {
        let places = places(functions);
        if let Some(families) = families {
            match found(ebpf, families, pid, path, &places) {
                Ok(member) => {
                    let attached = Attached::Inheritable { member, since_ns: clock::ktime_ns() };
                    self.by_pid.entry(pid).or_default().insert(file, attached);
                    return Ok(());
                }
                Err(error) => log::debug!("no inheritable TLS probes for process {pid}: {error:#}"),
            }
        }
        let scope = UProbeScope::OneProcess(NonZeroU32::new(pid).context("process 0 cannot be traced")?);
        let mut links = Vec::new();
        for Place { name, offset, on_return: _ } in places {
            let location = UProbeAttachLocation::AbsoluteOffset(offset);
            let probe: &mut UProbe =
                ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
            let link = probe
                .attach(UProbeAttachPoint { location, cookie: None }, path, scope)
                .with_context(|| format!("failed to attach {name} to process {pid}"))?;
            links.push((name, link));
        }
        self.by_pid.entry(pid).or_default().insert(file, Attached::Own(links));
        Ok(())
    }

    /// Takes note that a child that was forked at `ktime_ns` has inherited its parent's probes. False if it has not inherited
    /// all: then it needs the rest itself.
    pub(super) fn pass_on(&mut self, parent: u32, child: u32, ktime_ns: u64) -> bool {
        let Some(libraries) = self.by_pid.get(&parent) else { return true };
        let of_child = |attached: &Attached| match attached {
            Attached::Inheritable { member, since_ns } if ktime_ns > *since_ns => {
                let member = member.child(child).ok()?;
                Some(Attached::Inheritable { member, since_ns: ktime_ns })
            }
            Attached::Inheritable { .. } | Attached::Own(_) => None,
        };
        let inherited: HashMap<_, _> =
            libraries.iter().filter_map(|(file, attached)| Some((*file, of_child(attached)?))).collect();
        let whole = inherited.len() == libraries.len();
        if !inherited.is_empty() {
            self.by_pid.insert(child, inherited);
        }
        whole
    }

    /// Takes all probes off a process.
    pub(super) fn detach(&mut self, ebpf: &mut Ebpf, disposal: &mut Disposal, pid: u32) {
        for (_, attached) in self.by_pid.remove(&pid).into_iter().flatten() {
            // Those of a family are gone with the value.
            let Attached::Own(links) = attached else { continue };
            for (name, link) in links {
                let Some(Ok(probe)) = ebpf.program_mut(name).map(<&mut UProbe>::try_from) else { continue };
                match probe.take_link(link) {
                    Ok(link) => disposal.take(link),
                    Err(error) => log::debug!("failed to detach {name} from process {pid}: {error}"),
                }
            }
        }
    }
}

fn found(ebpf: &Ebpf, families: &mut Families, pid: u32, path: &Path, places: &[Place]) -> Result<Member> {
    let points = places
        .iter()
        .map(|&Place { name, offset, on_return }| {
            let program = ebpf.program(name).with_context(|| format!("no program {name}"))?.fd()?.as_fd();
            Ok(Point { program, offset, on_return })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(families.found(pid, path, &points)?)
}
