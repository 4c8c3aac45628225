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

mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use modules::Modules;
use pitviper_ebpf::abi::{CAPTURE_PIPES, CAPTURE_TLS, Counter, Target};

use crate::clock;
use crate::kernel::programs::Programs;
use crate::process::environ::Environ;
use crate::process::identity::Server;
use crate::process::naming;
use crate::process::resource::{Defaults, Service};
use crate::process::sdk::{self, OtherTracer, SdkProcesses, Sign};
use crate::process::select::Selector;
use crate::process::tree;
use crate::profile::layout::stack_layout;
use crate::profile::profiler;
use crate::python::{self, ContextFunctions, Instance, Untraceable, Version, layout};
use crate::tls;

/// An interpreter that has not started after this time is let go.
const PATIENCE_NS: u64 = 30_000_000_000;
/// A process that cannot be read is looked at again for so long after its exec: its loader is still mapping it.
const LOADING_NS: u64 = 2_000_000_000;
/// How long the service of an ended process is remembered for its last spans.
const MOURNING_NS: u64 = 30_000_000_000;
/// Ended processes that are remembered.
const MOST_ENDED: usize = 1024;
/// How often it is made sure that nothing was missed.
const RESCAN_NS: u64 = 5_000_000_000;
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

    /// A traced process showed that an SDK in it traces it too. Gives whether it is left to that from now on.
    pub(super) fn leave(&mut self, pid: u32, sign: Sign, programs: &mut Programs) -> bool {
        if !matches!(self.states.get(&pid), Some(State::Traced(_))) {
            return false;
        }
        if sign == Sign::Propagates {
            // It makes spans. Whether they go where pitviper's go is another question.
            let environ = Environ::read(pid).unwrap_or_default();
            let other = sdk::other_tracer(pid, &environ);
            // One that has ended says nothing of that any more.
            if other.is_some() || !sdk::may_export(&environ) || !tree::lives(pid) {
                log::debug!("process {pid} is traced although {sign}: {other:?}");
                return false;
            }
        }
        let service = self.service(pid, u64::MAX);
        if self.set_left(pid, programs) {
            tell_left(pid, service.as_ref().map(|service| service.name.as_str()).unwrap_or_default(), sign);
        }
        true
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

    /// What the profiler needs to know of a process that has not ended.
    pub(super) fn profiled(&mut self, pid: u32) -> Option<profiler::Process> {
        let Some(State::Traced(Traced { instance, .. })) = self.states.get(&pid) else { return None };
        let layout = layout::of(instance.version.series())?;
        Some(profiler::Process { service: self.service(pid, u64::MAX)?, layout })
    }

    /// Takes note of what happened to a process.
    pub(super) fn apply(&mut self, change: Change, programs: &mut Programs) {
        match change {
            Change::Forked { parent, child, ktime_ns } => self.forked(parent, child, ktime_ns, programs),
            // Its end is among the next records.
            Change::Executed { pid, target: true } if programs.target(pid).is_none() => {
                programs.detach_probes(pid);
                self.states.remove(&pid);
            }
            Change::Executed { pid, target } => {
                if target || self.states.contains_key(&pid) || self.selector.matches(pid) {
                    programs.detach_probes(pid);
                    self.states.remove(&pid);
                    self.watch(pid, programs);
                    self.look_at(pid, programs);
                }
            }
            Change::Stirred { pid } => self.stirred(pid, programs),
            Change::Exited { pid, ktime_ns } => self.exited(pid, ktime_ns, programs),
            Change::Listening { pid, port } => {
                if self.selector.ports.contains(&port) && !self.states.contains_key(&pid) {
                    self.watch(pid, programs);
                    self.look_at(pid, programs);
                }
            }
        }
    }

    /// Whether it is time for [`Targets::rescan`].
    pub(super) fn rescan_is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_rescan_ns
    }

    /// Makes sure that nothing was missed. Gives the processes that have ended unseen.
    pub(super) fn rescan(&mut self, now_ns: u64, programs: &mut Programs) -> Vec<u32> {
        self.next_rescan_ns = now_ns + RESCAN_NS;
        self.ended.retain(|(_, ended_ns), _| now_ns.saturating_sub(*ended_ns) < MOURNING_NS);
        programs.tidy(now_ns);
        let starting = |(pid, state): (&u32, &State)| matches!(state, State::Starting { .. }).then_some(*pid);
        for pid in self.states.iter().filter_map(starting).collect::<Vec<_>>() {
            self.look_at(pid, programs);
        }
        if !self.selector.cgroups.is_empty() {
            // A process that moved into a wanted cgroup says nothing.
            for pid in self.selector.present() {
                if !self.states.contains_key(&pid) {
                    // Not Python, or gone: then it is not traced, and looked at again next time.
                    let _ = self.add(pid, programs);
                }
            }
        }
        // One that was made a target in the moment of its end.
        for pid in programs.target_pids() {
            if !self.states.contains_key(&pid) && !tree::lives(pid) {
                programs.remove_target(pid);
            }
        }
        let losses =
            programs.counter(Counter::RingFullLifecycle) + programs.counter(Counter::MapUpdateFailed);
        if losses == self.losses {
            return Vec::new();
        }
        self.losses = losses;
        self.reconcile(programs)
    }

    /// Records about processes were lost: compares what is known with what there is. Gives those that have ended.
    fn reconcile(&mut self, programs: &mut Programs) -> Vec<u32> {
        let gone: Vec<u32> = self.states.keys().copied().filter(|pid| !tree::lives(*pid)).collect();
        for pid in programs.target_pids() {
            let changed = match self.states.get(&pid) {
                None => true,
                Some(State::Traced(_)) => programs.target(pid).is_some_and(|target| target.capture == 0),
                Some(State::Starting { .. } | State::Left | State::Followed) => false,
            };
            if changed && !gone.contains(&pid) {
                self.states.remove(&pid);
                let _ = self.add(pid, programs);
            }
        }
        for pid in self.selector.present() {
            if !self.states.contains_key(&pid) {
                let _ = self.add(pid, programs);
            }
        }
        gone
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

    fn attach(
        &mut self,
        pid: u32,
        mut instance: Instance,
        parent: Option<(Arc<Service>, u64)>,
        programs: &mut Programs,
    ) {
        let environ = Environ::read(pid).unwrap_or_default();
        if let Some(sign) = sdk::sign(&environ).filter(|_| self.sdks == SdkProcesses::Leave) {
            if self.set_left(pid, programs) {
                tell_left(pid, &naming::name(pid, &environ).name, sign);
            }
            return;
        }
        // The probe comes first: a context that is copied before its process is a target is not reported, one that is
        // used but was never seen to be copied has no lineage.
        let mut limit = instance.limit.map(|limit| limit.to_string());
        if let Some(ContextFunctions { path, copy_current, unrelated, dealloc }) = &instance.contexts
            && let Err(error) = programs.attach_context_probes(pid, path, *copy_current, unrelated, *dealloc)
        {
            if !tree::lives(pid) {
                self.forget(pid, programs);
                return;
            }
            log::warn!(
                "process {pid} is traced by thread only, its asyncio tasks are not told apart: {error:#}"
            );
            limit = Some(format!("its asyncio tasks are not told apart: {error:#}"));
        }
        // The processes of a Celery worker's pool get their jobs through pipes.
        if naming::name(pid, &environ).server == Some(Server::Celery) {
            instance.target.capture |= CAPTURE_PIPES;
        }
        if attach_tls(pid, programs) {
            instance.target.capture |= CAPTURE_TLS;
        }
        if !programs.update_target(pid, instance.target) {
            // It has ended.
            self.forget(pid, programs);
            return;
        }
        if let Some(layout) = layout::of(instance.version.series())
            && let Err(error) = programs.set_profiled(pid, stack_layout(layout))
        {
            log::warn!("process {pid} is not profiled: {error:#}");
        }
        programs.keep_clocks(pid, tree::threads(pid));
        if let Some(runtime) = instance.runtime
            && let Err(error) = programs.set_runtime(pid, runtime)
        {
            log::warn!("waits for the interpreter's lock are not told in process {pid}: {error:#}");
        }
        if programs.target(pid).is_none() {
            // It ended meanwhile, and would be profiled for ever.
            self.forget(pid, programs);
            return;
        }
        if let Some(other) = sdk::other_tracer(pid, &environ) {
            tell_other(pid, &naming::name(pid, &environ).name, &other);
        }
        if let Some(limit) = instance.limit {
            log::warn!("process {pid} is traced by thread only: {limit}");
        }
        log::debug!(
            "tracing process {pid}: CPython {} in {}",
            instance.version,
            instance.interpreter.display()
        );
        let modules = if instance.contexts.is_none() { Modules::NONE } else { Modules::default() };
        let (instance, since_ns) = (Box::new(instance), clock::ktime_ns());
        let traced = Traced { instance, since_ns, service: None, parent, limit, modules };
        self.states.insert(pid, State::Traced(traced));
        self.attach_modules(pid, programs);
    }

    /// Follows a process that is left to its SDK: nothing that it sends or receives is looked at. What others have of its
    /// family's probes they keep; in this process they have no effect. False if it has ended.
    fn set_left(&mut self, pid: u32, programs: &mut Programs) -> bool {
        if !programs.update_target(pid, Target::FOLLOWED) {
            self.forget(pid, programs);
            return false;
        }
        programs.detach_probes(pid);
        programs.unset_profiled(pid);
        self.states.insert(pid, State::Left);
        true
    }

    /// Follows a process until its interpreter has started. Only here does the daemon make a target: everywhere else it
    /// updates those that there are, because one that has ended would never be taken away.
    fn watch(&mut self, pid: u32, programs: &mut Programs) {
        if programs.target(pid).is_none() {
            if let Err(error) = programs.set_target(pid, Target::FOLLOWED) {
                log::warn!("process {pid} is not followed: {error:#}");
                return;
            }
            if !tree::lives(pid) {
                self.forget(pid, programs);
                return;
            }
        }
        self.states.insert(pid, State::Starting { since_ns: clock::ktime_ns() });
    }

    fn stirred(&mut self, pid: u32, programs: &mut Programs) {
        match self.states.get(&pid) {
            Some(State::Starting { .. }) => self.look_at(pid, programs),
            // It has loaded something: an interpreter, perhaps.
            Some(State::Followed) => {
                if let Ok(instance) = python::inspect(pid) {
                    self.attach(pid, instance, None, programs);
                } else if let Some(target) = python::instance::awaited(pid) {
                    programs.update_target(pid, target);
                }
            }
            Some(State::Traced(_)) => {
                self.loading.insert(pid);
                self.attach_modules(pid, programs);
            }
            Some(State::Left) | None => {}
        }
    }

    /// Looks for TLS libraries in the processes that have loaded something, once for all that they have loaded meanwhile.
    pub(super) fn look_for_libraries(&mut self, programs: &mut Programs) {
        for pid in std::mem::take(&mut self.loading) {
            let Some(State::Traced(Traced { instance, .. })) = self.states.get_mut(&pid) else { continue };
            if attach_tls(pid, programs) && instance.target.capture & CAPTURE_TLS == 0 {
                instance.target.capture |= CAPTURE_TLS;
                programs.update_target(pid, instance.target);
            }
        }
    }

    fn look_at(&mut self, pid: u32, programs: &mut Programs) {
        let Some(State::Starting { since_ns }) = self.states.get(&pid) else { return };
        let waited_ns = clock::ktime_ns().saturating_sub(*since_ns);
        match python::inspect(pid) {
            Ok(instance) => self.attach(pid, instance, None, programs),
            Err(Untraceable::NotInitialised) if waited_ns < PATIENCE_NS => {
                // If it starts before the kernel side knows where to look, that sees it at its next system call.
                if let Some(target) = python::instance::awaited(pid) {
                    programs.update_target(pid, target);
                }
            }
            Err(Untraceable::Unreadable(_)) if waited_ns < LOADING_NS => {}
            Err(reason) => self.give_up(pid, &reason, programs),
        }
    }

    /// A process cannot be traced. It is still followed if it was asked for by pid: its children may be Python.
    fn give_up(&mut self, pid: u32, reason: &Untraceable, programs: &mut Programs) {
        match reason {
            Untraceable::NotPython | Untraceable::NoSuchProcess => {}
            // It is linked with a libpython that it does not use.
            Untraceable::NotInitialised => log::debug!("process {pid} is not traced: {reason}"),
            _ => log::warn!("process {pid} is not traced: {reason}"),
        }
        let gone = matches!(reason, Untraceable::NoSuchProcess);
        if !gone
            && self.selector.matches(pid)
            && !self.selector.is_everything()
            && programs.update_target(pid, Target::FOLLOWED)
        {
            programs.detach_probes(pid);
            self.states.insert(pid, State::Followed);
        } else {
            self.forget(pid, programs);
        }
    }

    fn forked(&mut self, parent: u32, child: u32, ktime_ns: u64, programs: &mut Programs) {
        match self.states.get(&parent) {
            Some(State::Traced(traced)) => {
                let heir = ktime_ns > traced.since_ns;
                let (instance, known) = (traced.instance.in_child(child), traced.instance.target);
                let (limit, modules) = (traced.limit.clone(), traced.modules.clone());
                let parent_service = self.service(parent, u64::MAX).map(|service| (service, ktime_ns));
                let unprobed = instance.contexts.is_none();
                if heir && (unprobed || programs.pass_on_context_probes(parent, child)) {
                    if instance.target != known {
                        programs.update_target(child, instance.target);
                    }
                    let whole = programs.pass_on_tls_probes(parent, child, ktime_ns);
                    // What the parent has loaded just now its child has too.
                    if !whole || self.loading.contains(&parent) {
                        self.loading.insert(child);
                    }
                    let passed_on = modules.passed_on(parent, child, ktime_ns, programs);
                    let lacking = passed_on.lack(&modules);
                    let traced = Traced {
                        instance: Box::new(instance),
                        since_ns: ktime_ns,
                        service: None,
                        parent: parent_service,
                        limit,
                        modules: passed_on,
                    };
                    self.states.insert(child, State::Traced(traced));
                    if lacking {
                        self.attach_modules(child, programs);
                    }
                    return;
                }
                match python::inspect(child) {
                    Ok(instance) => self.attach(child, instance, parent_service, programs),
                    Err(Untraceable::NoSuchProcess) => self.forget(child, programs),
                    Err(_) => self.attach(child, instance, parent_service, programs),
                }
            }
            // The SDK was forked with it.
            Some(State::Left) => {
                self.set_left(child, programs);
            }
            Some(State::Starting { .. }) => {
                self.watch(child, programs);
                self.look_at(child, programs);
            }
            Some(State::Followed) => {
                self.states.insert(child, State::Followed);
            }
            None => self.forget(child, programs),
        }
    }

    fn exited(&mut self, pid: u32, ktime_ns: u64, programs: &mut Programs) {
        if let Some(State::Traced(Traced { service: Some(service), .. })) = self.states.get(&pid) {
            self.ended.insert((pid, ktime_ns), Arc::clone(service));
            if self.ended.len() > MOST_ENDED
                && let Some(oldest) = self.ended.keys().min_by_key(|(_, ended_ns)| *ended_ns).copied()
            {
                self.ended.remove(&oldest);
            }
        }
        // The kernel side has removed the target itself, and by now perhaps made one of the next process with this pid.
        programs.detach_probes(pid);
        self.states.remove(&pid);
    }

    fn forget(&mut self, pid: u32, programs: &mut Programs) {
        programs.remove_target(pid);
        self.states.remove(&pid);
    }
}

/// Puts probes on the TLS libraries of a process; gives whether it has any. One that fails costs what goes through it.
fn attach_tls(pid: u32, programs: &mut Programs) -> bool {
    let mut attached = false;
    for library in tls::libraries(pid) {
        match programs.attach_tls_probes(pid, &library) {
            Ok(()) => attached = true,
            Err(_) if !tree::lives(pid) => {}
            Err(error) => log::warn!(
                "what process {pid} encrypts with {} is not seen: {error:#}",
                library.name.display()
            ),
        }
    }
    attached
}

fn describe(pid: u32, version: Version, defaults: &Defaults) -> Option<Arc<Service>> {
    // A process that is gone already has nothing more to tell.
    Service::of_process(pid, Some(version), defaults).ok().map(Arc::new)
}

fn tell_left(pid: u32, service: &str, sign: Sign) {
    log::info!(
        "process {pid} ({service}) is left to the OpenTelemetry SDK in it: {sign}; --sdk-processes=trace traces it all the same"
    );
}

fn tell_other(pid: u32, service: &str, other: &OtherTracer) {
    log::info!("process {pid} ({service}) is traced by {other} too");
}
