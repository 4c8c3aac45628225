//! Probes on extension modules that a process has loaded: the queue of its thread pools, and greenlet. Like the lineage probes
//! they are inherited where that is possible, and go with them.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope};

use super::families::{Families, Member, Point};
use super::programs::{Programs, program};

/// Program that reports work items of thread pools on their way into a queue.
const QUEUE_PUT: &str = "py_queue_put";
/// Programs that report work items on their way out of it: on the call, and on the return.
const QUEUE_GET: &str = "py_queue_get";
/// See [`QUEUE_GET`].
const QUEUE_GOT: &str = "py_queue_got";
/// Program that reports new greenlets.
const GREENLET_INIT: &str = "py_greenlet_init";
/// Program that reports greenlets that are gone.
const GREENLET_DEALLOC: &str = "py_greenlet_dealloc";
/// All of them.
pub(super) const PROGRAMS: [&str; 5] = [QUEUE_PUT, QUEUE_GET, QUEUE_GOT, GREENLET_INIT, GREENLET_DEALLOC];

/// A module that there are probes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    /// `_queue`, with the queue of thread pools.
    Queue,
    /// `greenlet._greenlet`
    Greenlet,
}

impl Module {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Queue, Self::Greenlet];
}

/// The probes on one module in one process.
#[derive(Debug)]
pub(super) enum ModuleProbes {
    /// Its own, which its children will not have.
    Own(Vec<(&'static str, UProbeLinkId)>),
    /// Its family's.
    Inheritable(Member),
}

/// Those of all processes.
pub(super) type AllModuleProbes = HashMap<(u32, Module), ModuleProbes>;

/// A program, an offset in the file, and whether it is wanted on the return from there.
type Probe = (&'static str, u64, bool);

impl Programs {
    /// Puts the probes on the queue of thread pools in one process: `put` and `get` are offsets in `file`.
    pub fn attach_queue_probes(&mut self, pid: u32, file: &Path, put: u64, get: &[u64]) -> Result<()> {
        // In this order nothing is seen half: what is taken before `put` has its probe is of unknown origin.
        let mut probes: Vec<Probe> = Vec::new();
        for offset in get {
            probes.extend([(QUEUE_GET, *offset, false), (QUEUE_GOT, *offset, true)]);
        }
        probes.push((QUEUE_PUT, put, false));
        self.attach_module_probes(pid, Module::Queue, file, &probes)
    }

    /// Puts the probes on the functions that initialise and deallocate greenlets in one process: offsets in `file`.
    pub fn attach_greenlet_probes(&mut self, pid: u32, file: &Path, init: u64, dealloc: u64) -> Result<()> {
        let probes = [(GREENLET_DEALLOC, dealloc, false), (GREENLET_INIT, init, false)];
        self.attach_module_probes(pid, Module::Greenlet, file, &probes)
    }

    fn attach_module_probes(
        &mut self,
        pid: u32,
        module: Module,
        file: &Path,
        probes: &[Probe],
    ) -> Result<()> {
        self.detach_module_probes(pid, module);
        if let Some(families) = &mut self.families {
            match found(families, &self.ebpf, pid, file, probes) {
                Ok(member) => {
                    self.module_probes.insert((pid, module), ModuleProbes::Inheritable(member));
                    return Ok(());
                }
                Err(error) => log::debug!("no inheritable probes on {module:?} for process {pid}: {error:#}"),
            }
        }
        let scope = UProbeScope::OneProcess(NonZeroU32::new(pid).context("process 0 cannot be traced")?);
        let cookie = aya::features().bpf_cookie().then_some(u64::from(pid));
        let mut links = Vec::new();
        let mut attach = |&(name, offset, _): &Probe| -> Result<()> {
            let location = UProbeAttachLocation::AbsoluteOffset(offset);
            let probe: &mut UProbe = program(&mut self.ebpf, name)?.try_into()?;
            let link = probe
                .attach(UProbeAttachPoint { location, cookie }, file, scope)
                .with_context(|| format!("failed to attach {name} to process {pid}"))?;
            links.push((name, link));
            Ok(())
        };
        let attached = probes.iter().try_for_each(&mut attach);
        self.module_probes.insert((pid, module), ModuleProbes::Own(links));
        attached.inspect_err(|_| self.detach_module_probes(pid, module))
    }

    /// Takes note that a child has inherited its parent's probes on a module. False if it has not: then it needs its own.
    pub fn pass_on_module_probes(&mut self, parent: u32, child: u32, module: Module) -> bool {
        let Some(ModuleProbes::Inheritable(member)) = self.module_probes.get(&(parent, module)) else {
            return false;
        };
        match member.child(child) {
            Ok(member) => {
                self.module_probes.insert((child, module), ModuleProbes::Inheritable(member));
                true
            }
            Err(error) => {
                log::debug!("process {child} gets probes of its own on {module:?}: {error}");
                false
            }
        }
    }

    /// Takes the probes on a module off a process.
    pub(super) fn detach_module_probes(&mut self, pid: u32, module: Module) {
        // Those of a family are gone with the value.
        if let Some(ModuleProbes::Own(links)) = self.module_probes.remove(&(pid, module)) {
            self.dispose(pid, links);
        }
    }
}

/// Begins a family at a process.
fn found(families: &mut Families, ebpf: &Ebpf, pid: u32, file: &Path, probes: &[Probe]) -> Result<Member> {
    let point = |&(name, offset, on_return): &Probe| -> Result<_> {
        let program = ebpf.program(name).with_context(|| format!("no program {name}"))?.fd()?.as_fd();
        Ok(Point { program, offset, on_return })
    };
    let points = probes.iter().map(point).collect::<Result<Vec<_>>>()?;
    Ok(families.found(pid, file, &points)?)
}
