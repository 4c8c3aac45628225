//! The processes that are traced: chosen, attached to, followed through forks and execs, and let go.
//!
//! Decides nothing about who is wanted (that is the [`Selector`]'s) nor what an interpreter looks like (that is
//! [`python::inspect`]'s); keeps the kernel side's table of targets in step with both.
//!
//! Everything is told by the kernel side, in order with the rest of its records, and nothing is polled. A forked child is a
//! target with its parent's data and inherited probes before its first instruction. A process that runs a new program is
//! looked at after the exec, then whenever it maps a file with code, and when its interpreter starts, which is some
//! milliseconds before it can serve anything. Where probes cannot be inherited (see the kernel module `families`), those of
//! a child are on it about a millisecond after the fork: the contexts that it copies before have no lineage, so that what
//! is done in them has its parent by proof or is an orphan.

mod attach;
mod libraries;
mod life;
mod modules;
mod rescan;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use libraries::Libraries;
use modules::Modules;
use steps::Steps;

use crate::kernel::programs::Programs;
use crate::process::resource::{Defaults, Service};
use crate::process::sdk::SdkProcesses;
use crate::process::select::Selector;
use crate::process::tree;
use crate::profile::profiler;
use crate::python::{self, Instance, Untraceable, Version, layout};

/// Processes that fork while the first ones are being chosen are looked for again, so many times.
const MOST_SCANS: usize = 8;

/// Something happened to a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A target forked.
    Forked { parent: u32, child: u32, ktime_ns: u64 },
    /// A process runs a new program.
    Executed { pid: u32, target: bool },
    /// A target that may become traceable, or has loaded a module, is worth a look.
    Stirred { pid: u32 },
    /// A target ended.
    Exited { pid: u32, ktime_ns: u64 },
    /// A process listens on a new port.
    Listening { pid: u32, port: u16 },
}

/// Why there is nothing to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A process that was asked for by pid cannot be traced, nor any of its descendants.
    Pid {
        /// Which.
        pid: u32,
        /// Why not.
        reason: Untraceable,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Pid { pid, reason } = self;
        write!(f, "--pid {pid}: {reason}")
    }
}

impl std::error::Error for Refusal {}

/// A process that is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Which.
    pub pid: u32,
    /// Its service name.
    pub service: String,
    /// Its CPython.
    pub version: Version,
    /// Why only threads, not tasks, can be told apart, if so.
    pub limit: Option<String>,
}

enum State {
    /// Its interpreter has not started.
    Starting { since_ns: u64 },
    /// It is traced.
    Traced(Traced),
    /// An SDK in it traces it. Its children, which have that too, are followed: they may run another program.
    Left,
    /// It cannot be traced, but its children may.
    Followed,
}

struct Traced {
    instance: Box<Instance>,
    /// Since when its children inherit.
    since_ns: u64,
    /// Who it is, once somebody has asked.
    service: Option<Arc<Service>>,
    /// Who the process was that it was forked from, and when.
    parent: Option<(Arc<Service>, u64)>,
    /// Why only threads, not tasks, can be told apart, if so.
    limit: Option<String>,
    modules: Modules,
    libraries: Libraries,
}

/// The processes that are traced.
pub(super) struct Targets {
    selector: Selector,
    defaults: Defaults,
    sdks: SdkProcesses,
    states: BTreeMap<u32, State>,
    /// Services of ended processes, by pid and time of their end.
    ended: BTreeMap<(u32, u64), Arc<Service>>,
    /// Traced processes that may have loaded a TLS library.
    loading: BTreeSet<u32>,
    next_rescan_ns: u64,
    steps: Steps,
    /// Losses that were made up for.
    losses: u64,
}

impl Targets {
    /// Attaches to the wanted processes that there are.
    pub(super) fn start(
        selector: Selector,
        defaults: Defaults,
        sdks: SdkProcesses,
        programs: &mut Programs,
    ) -> Result<Self, Refusal> {
        let mut targets = Self {
            selector,
            defaults,
            sdks,
            states: BTreeMap::new(),
            ended: BTreeMap::new(),
            loading: BTreeSet::new(),
            next_rescan_ns: 0,
            steps: Steps::default(),
            losses: 0,
        };
        let mut refused = BTreeMap::new();
        for _ in 0..MOST_SCANS {
            // Before anything that takes time they are made targets: then what they fork is.
            let known = |pid: &u32| targets.states.contains_key(pid) || refused.contains_key(pid);
            let new: Vec<u32> = targets.selector.present().into_iter().filter(|pid| !known(pid)).collect();
            if new.is_empty() {
                break;
            }
            for &pid in &new {
                targets.watch(pid, programs);
            }
            for pid in new {
                if let Err(reason) = targets.add(pid, programs) {
                    refused.insert(pid, reason);
                }
            }
        }
        for pid in targets.selector.pids.clone() {
            let family = |other: &u32| tree::lineage(*other).any(|ancestor| ancestor == pid);
            let hopeful = |state: &State| !matches!(state, State::Followed);
            if !targets.states.iter().any(|(other, state)| hopeful(state) && family(other))
                && let Some(reason) = refused.remove(&pid)
            {
                return Err(Refusal::Pid { pid, reason });
            }
        }
        Ok(targets)
    }

    /// What is traced now.
    pub(super) fn tracked(&mut self) -> Vec<Tracked> {
        let pids: Vec<u32> = self.states.keys().copied().collect();
        let tracked = |pid| {
            let service = self.service(pid, u64::MAX);
            let Some(State::Traced(Traced { instance, limit, .. })) = self.states.get(&pid) else {
                return None;
            };
            Some(Tracked {
                pid,
                service: service.map(|service| service.name.clone()).unwrap_or_default(),
                version: instance.version,
                limit: limit.clone(),
            })
        };
        pids.into_iter().filter_map(tracked).collect()
    }

    /// How many processes are traced or followed.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether a process is traced or followed.
    pub(super) fn knows(&self, pid: u32) -> bool {
        self.states.contains_key(&pid)
    }

    /// What has ended, as long as its last spans may come.
    pub(super) fn ended(&self) -> BTreeMap<u32, &Service> {
        // In the order of time: of several with the same pid it is the last one.
        self.ended.iter().map(|((pid, _), service)| (*pid, service.as_ref())).collect()
    }

    /// How many processes are left to the SDK in them.
    pub(super) fn left(&self) -> usize {
        self.states.values().filter(|state| matches!(state, State::Left)).count()
    }

    /// Whether all processes that were asked for by pid, and their descendants, have ended.
    pub(super) fn all_gone(&self) -> bool {
        self.selector.is_only_pids() && self.states.is_empty()
    }

    /// The service of the process that had this pid at a time; for a while after its end too.
    pub(super) fn service(&mut self, pid: u32, at_ns: u64) -> Option<Arc<Service>> {
        if let Some((_, service)) = self.ended.range((pid, at_ns)..=(pid, u64::MAX)).next() {
            return Some(Arc::clone(service));
        }
        let Some(State::Traced(traced)) = self.states.get_mut(&pid) else { return None };
        let Traced { instance, service, parent, .. } = traced;
        if service.is_none() {
            let described = describe(pid, instance.version, &self.defaults);
            *service = described.or_else(|| {
                let (parent, forked_ns) = parent.as_ref()?;
                Some(Arc::new(parent.of_child(pid, *forked_ns)))
            });
        }
        service.clone()
    }

    /// A context was entered in a process.
    pub(super) fn context_entered(&mut self, pid: u32) {
        self.steps.entered(pid);
    }

    /// From time to time: follows the steps of processes where that is cheap.
    pub(super) fn follow_steps(&mut self, now_ns: u64, programs: &mut Programs) {
        let traced = self.states.iter().filter_map(|(pid, state)| match state {
            State::Traced(traced) => Some((*pid, traced.instance.contexts.as_ref()?)),
            State::Starting { .. } | State::Left | State::Followed => None,
        });
        self.steps.look(now_ns, traced, programs);
    }

    /// What the profiler needs to know of a process that has not ended.
    pub(super) fn profiled(&mut self, pid: u32) -> Option<profiler::Process> {
        let Some(State::Traced(Traced { instance, .. })) = self.states.get(&pid) else { return None };
        let layout = layout::of(instance.version.series())?;
        let interpreter = instance.interpreter.clone();
        Some(profiler::Process { service: self.service(pid, u64::MAX)?, layout, interpreter })
    }

    /// Begins to trace a process, or to follow it while it may become traceable.
    fn add(&mut self, pid: u32, programs: &mut Programs) -> Result<(), Untraceable> {
        self.watch(pid, programs);
        match python::inspect(pid) {
            Ok(instance) => {
                self.attach(pid, instance, None, programs);
                Ok(())
            }
            Err(Untraceable::NotInitialised) => {
                self.look_at(pid, programs);
                Ok(())
            }
            Err(reason) => {
                self.give_up(pid, &reason, programs);
                Err(reason)
            }
        }
    }

    fn forget(&mut self, pid: u32, programs: &mut Programs) {
        programs.remove_target(pid);
        self.states.remove(&pid);
    }
}

fn describe(pid: u32, version: Version, defaults: &Defaults) -> Option<Arc<Service>> {
    // A process that is gone already has nothing more to tell.
    Service::of_process(pid, Some(version), defaults).ok().map(Arc::new)
}
