//! The processes that are traced: chosen, attached to, followed through forks and execs, and let go.
//!
//! Decides nothing about who is wanted (that is the [`Selector`]'s) nor what an interpreter looks like (that is
//! [`python::inspect`]'s); keeps the kernel side's table of targets in step with both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pitviper_ebpf::abi::{CAPTURE_PIPES, Target, TlsKind};

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
use crate::python::{
    self, ContextFunctions, Greenlets, Instance, QueueFunctions, Untraceable, Version, layout,
};

/// Times after which a starting interpreter is looked at again; the last one repeats until [`PATIENCE_NS`] is over.
const LOOKS_MS: [u64; 8] = [1, 2, 4, 8, 15, 30, 60, 100];
/// An interpreter that has not started after this time is let go.
const PATIENCE_NS: u64 = 30_000_000_000;
/// How long the service of an ended process is remembered for its last spans.
const MOURNING_NS: u64 = 30_000_000_000;
/// How often processes that moved into a wanted cgroup are looked for.
const RESCAN_NS: u64 = 5_000_000_000;

/// Something happened to a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A target forked.
    Forked { parent: u32, child: u32 },
    /// A process runs a new program.
    Executed { pid: u32, target: bool },
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
    /// Its interpreter has not started; `looks` were taken.
    Starting { since_ns: u64, next_ns: u64, looks: usize },
    /// It is traced.
    Traced {
        instance: Box<Instance>,
        service: Option<Arc<Service>>,
        limit: Option<String>,
        /// The queue of thread pools has its probes, or cannot have them.
        queue: bool,
        /// The same for gevent's greenlets.
        greenlets: bool,
    },
    /// An SDK in it traces it. Its children are followed: they may run another program.
    Left { instance: Box<Instance>, sign: Sign },
    /// It cannot be traced, but its children may.
    Followed,
}

/// A process that has ended.
struct Ended {
    ktime_ns: u64,
    service: Arc<Service>,
    version: Version,
}

/// The processes that are traced.
pub(super) struct Targets {
    selector: Selector,
    defaults: Defaults,
    sdks: SdkProcesses,
    states: BTreeMap<u32, State>,
    ended: HashMap<u32, Ended>,
    next_rescan_ns: u64,
    /// Processes that may have loaded the module with the queue of thread pools.
    loading: BTreeSet<u32>,
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
            ended: HashMap::new(),
            next_rescan_ns: 0,
            loading: BTreeSet::new(),
        };
        let mut refused = HashMap::new();
        for pid in targets.selector.present() {
            if let Err(reason) = targets.add(pid, programs) {
                refused.insert(pid, reason);
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
    pub(super) fn tracked(&self) -> Vec<Tracked> {
        let tracked = |(pid, state): (&u32, &State)| match state {
            State::Traced { instance, service, limit, .. } => Some(Tracked {
                pid: *pid,
                service: service.as_ref().map(|service| service.name.clone()).unwrap_or_default(),
                version: instance.version,
                limit: limit.clone(),
            }),
            State::Starting { .. } | State::Left { .. } | State::Followed => None,
        };
        self.states.iter().filter_map(tracked).collect()
    }

    /// What has ended, as long as its last spans may come.
    pub(super) fn ended(&self) -> impl Iterator<Item = (u32, &Service)> {
        self.ended.iter().map(|(pid, ended)| (*pid, ended.service.as_ref()))
    }

    /// How many processes are left to the SDK in them.
    pub(super) fn left(&self) -> usize {
        self.states.values().filter(|state| matches!(state, State::Left { .. })).count()
    }

    /// A traced process showed that an SDK in it traces it too. Gives whether it is left to that from now on.
    pub(super) fn leave(&mut self, pid: u32, sign: Sign, programs: &mut Programs) -> bool {
        let Some(State::Traced { instance, service, .. }) = self.states.get(&pid) else { return false };
        if sign == Sign::Propagates {
            // It makes spans. Whether they go where pitviper's go is another question.
            let environ = Environ::read(pid).unwrap_or_default();
            let other = sdk::other_tracer(pid, &environ);
            if other.is_some() || !sdk::may_export(&environ) {
                log::debug!("process {pid} is traced although {sign}: {other:?}");
                return false;
            }
        }
        let (instance, service) = (instance.clone(), service.clone());
        programs.detach_probes(pid);
        if let Err(error) = programs.set_target(pid, Target::FOLLOWED) {
            log::debug!("process {pid} is still captured: {error:#}");
        }
        tell_left(pid, service.map(|service| service.name.clone()), sign);
        self.states.insert(pid, State::Left { instance, sign });
        true
    }

    /// Whether all processes that were asked for by pid, and their descendants, have ended.
    pub(super) fn all_gone(&self) -> bool {
        self.selector.is_only_pids() && self.states.is_empty()
    }

    /// The service of a process, for some time after its end too.
    pub(super) fn service(&mut self, pid: u32) -> Option<Arc<Service>> {
        if let Some(State::Traced { instance, service, .. }) = self.states.get_mut(&pid) {
            if service.is_none() {
                *service = describe(pid, instance.version, &self.defaults);
            }
            return service.clone();
        }
        self.ended.get(&pid).map(|ended| Arc::clone(&ended.service))
    }

    /// What the profiler needs to know of a process, for some time after its end too.
    pub(super) fn profiled(&mut self, pid: u32) -> Option<profiler::Process> {
        let version = match self.states.get(&pid) {
            Some(State::Traced { instance, .. }) => instance.version,
            _ => self.ended.get(&pid)?.version,
        };
        Some(profiler::Process { service: self.service(pid)?, layout: layout::of(version.series())? })
    }

    /// Takes note of what happened to a process.
    pub(super) fn apply(&mut self, change: Change, programs: &mut Programs) {
        match change {
            Change::Forked { parent, child } => self.forked(parent, child, programs),
            Change::Executed { pid, target } => {
                if target || self.states.contains_key(&pid) || self.selector.matches(pid) {
                    programs.detach_probes(pid);
                    self.watch(pid, programs);
                }
            }
            Change::Exited { pid, ktime_ns } => self.exited(pid, ktime_ns, programs),
            Change::Listening { pid, port } => {
                if self.selector.ports.contains(&port) && !self.states.contains_key(&pid) {
                    self.watch(pid, programs);
                }
            }
        }
    }

    /// How long until the next starting interpreter is due for a look.
    pub(super) fn next_look_in(&self) -> Duration {
        let next = self.states.values().filter_map(|state| match state {
            State::Starting { next_ns, .. } => Some(*next_ns),
            State::Traced { .. } | State::Left { .. } | State::Followed => None,
        });
        next.min().map_or(Duration::MAX, |next| Duration::from_nanos(next.saturating_sub(clock::ktime_ns())))
    }

    /// Looks at the starting interpreters that are due, and for processes that became wanted unseen.
    pub(super) fn look(&mut self, now_ns: u64, programs: &mut Programs) {
        let due = |state: &State| matches!(state, State::Starting { next_ns, .. } if *next_ns <= now_ns);
        let due: Vec<u32> = self.states.iter().filter(|(_, state)| due(state)).map(|(pid, _)| *pid).collect();
        for pid in due {
            self.look_at(pid, now_ns, programs);
        }
        for pid in std::mem::take(&mut self.loading) {
            self.attach_queue(pid, programs);
            self.attach_greenlets(pid, programs);
        }
        self.ended.retain(|_, ended| now_ns.saturating_sub(ended.ktime_ns) < MOURNING_NS);
        if !self.selector.cgroups.is_empty() && now_ns >= self.next_rescan_ns {
            self.next_rescan_ns = now_ns + RESCAN_NS;
            for pid in self.selector.present() {
                if !self.states.contains_key(&pid) {
                    // Not Python, or gone: then it is not traced, and looked at again next time.
                    let _ = self.add(pid, programs);
                }
            }
        }
    }

    /// Begins to trace a process, or to follow it while it may become traceable.
    fn add(&mut self, pid: u32, programs: &mut Programs) -> Result<(), Untraceable> {
        match python::inspect(pid) {
            Ok(instance) => {
                self.attach(pid, instance, programs);
                Ok(())
            }
            Err(Untraceable::NotInitialised) => {
                self.watch(pid, programs);
                Ok(())
            }
            Err(reason) => {
                self.give_up(pid, &reason, programs);
                Err(reason)
            }
        }
    }

    fn attach(&mut self, pid: u32, instance: Instance, programs: &mut Programs) {
        let environ = Environ::read(pid).unwrap_or_default();
        if let Some(sign) = sdk::sign(&environ).filter(|_| self.sdks == SdkProcesses::Leave) {
            tell_left(pid, Some(naming::name(pid, &environ).name), sign);
            return self.set_left(pid, instance, sign, programs);
        }
        // The probe comes first: a context that is copied before its process is a target is not reported, one that is
        // used but was never seen to be copied has no lineage.
        let mut limit = instance.limit.map(|limit| limit.to_string());
        if let Some(ContextFunctions { path, copy_current, unrelated }) = &instance.contexts
            && let Err(error) = programs.attach_context_probes(pid, path, *copy_current, unrelated)
        {
            if !tree::exists(pid) {
                programs.remove_target(pid);
                return;
            }
            log::warn!(
                "process {pid} is traced by thread only, its asyncio tasks are not told apart: {error:#}"
            );
            limit = Some(format!("its asyncio tasks are not told apart: {error:#}"));
        }
        let service = describe(pid, instance.version, &self.defaults);
        let mut target = instance.target;
        // The processes of a Celery worker's pool get their jobs through pipes.
        if service.as_ref().is_some_and(|service| service.server == Some(Server::Celery)) {
            target.capture |= CAPTURE_PIPES;
        }
        if let Err(error) = programs.set_target(pid, target) {
            log::warn!("process {pid} is not traced: {error:#}");
            return;
        }
        if let Some(layout) = layout::of(instance.version.series())
            && let Err(error) = programs.set_profiled(pid, stack_layout(layout))
        {
            log::warn!("process {pid} is not profiled: {error:#}");
        }
        if let Some(other) = sdk::other_tracer(pid, &environ) {
            tell_other(pid, service.as_deref(), &other);
        }
        if let Some(limit) = instance.limit {
            log::warn!("process {pid} is traced by thread only: {limit}");
        }
        log::debug!(
            "tracing process {pid}: CPython {} in {}",
            instance.version,
            instance.interpreter.display()
        );
        let done = instance.contexts.is_none();
        let instance = Box::new(instance);
        self.states.insert(pid, State::Traced { instance, service, limit, queue: done, greenlets: done });
        self.attach_queue(pid, programs);
        self.attach_greenlets(pid, programs);
    }

    /// Puts the probes on the queue of thread pools, if its module is loaded by now. It is after the process has become
    /// a target, so that a module that is loaded meanwhile is reported.
    fn attach_queue(&mut self, pid: u32, programs: &mut Programs) {
        let Some(State::Traced { instance, queue, .. }) = self.states.get_mut(&pid) else { return };
        if *queue {
            return;
        }
        let Some(QueueFunctions { path, put, get }) =
            python::thread_pool::find(pid, instance.version, &instance.interpreter)
        else {
            return;
        };
        *queue = true;
        match programs.attach_queue_probes(pid, &path, put, &get) {
            Ok(()) => log::debug!("process {pid}: thread pools are traced, by {}", path.display()),
            Err(error) if tree::exists(pid) => {
                log::warn!("what the thread pools of process {pid} do has no parent: {error:#}");
            }
            Err(_) => {}
        }
    }

    /// Tells greenlets apart, if gevent is loaded by now.
    fn attach_greenlets(&mut self, pid: u32, programs: &mut Programs) {
        let Some(State::Traced { instance, greenlets, .. }) = self.states.get_mut(&pid) else { return };
        // The kernel side knows glibc's way to a module's thread-local storage.
        if *greenlets || instance.target.tls_kind != TlsKind::GlibcFirstBlock as u32 {
            return;
        }
        let Some(own) = programs.target(pid) else { return };
        let Some(Greenlets { path, init, dealloc, kind, module, offset }) = python::greenlets::find(pid)
        else {
            return;
        };
        *greenlets = true;
        // The probe comes first: a greenlet that runs and was not seen to be made has no lineage, and may be at the
        // address of one that was.
        let target = Target { greenlet_type: kind, greenlet_module: module, greenlet_offset: offset, ..own };
        let attached = programs
            .attach_greenlet_probes(pid, &path, init, dealloc)
            .and_then(|()| programs.set_target(pid, target));
        match attached {
            Ok(()) => log::debug!("process {pid}: greenlets are traced, by {}", path.display()),
            Err(error) if tree::exists(pid) => {
                log::warn!("the greenlets of process {pid} are not told apart: {error:#}");
            }
            Err(_) => {}
        }
    }

    /// A process has loaded a module: one look soon for all that it loads at once.
    pub(super) fn code_mapped(&mut self, pid: u32) {
        self.loading.insert(pid);
    }

    /// Follows a process that is left to its SDK: nothing that it sends or receives is looked at.
    fn set_left(&mut self, pid: u32, instance: Instance, sign: Sign, programs: &mut Programs) {
        if let Err(error) = programs.set_target(pid, Target::FOLLOWED) {
            log::warn!("process {pid} is not followed: {error:#}");
            return;
        }
        self.states.insert(pid, State::Left { instance: Box::new(instance), sign });
    }

    /// Follows a process until its interpreter has started.
    fn watch(&mut self, pid: u32, programs: &mut Programs) {
        if programs.target(pid).is_none()
            && let Err(error) = programs.set_target(pid, Target::FOLLOWED)
        {
            log::warn!("process {pid} is not followed: {error:#}");
            return;
        }
        let since_ns = clock::ktime_ns();
        self.states.insert(pid, State::Starting { since_ns, next_ns: since_ns, looks: 0 });
    }

    fn look_at(&mut self, pid: u32, now_ns: u64, programs: &mut Programs) {
        let Some(State::Starting { since_ns, looks, .. }) = self.states.get(&pid) else { return };
        let (since_ns, looks) = (*since_ns, *looks);
        match python::inspect(pid) {
            Ok(instance) => self.attach(pid, instance, programs),
            Err(Untraceable::NotInitialised) if now_ns.saturating_sub(since_ns) < PATIENCE_NS => {
                let wait_ms = LOOKS_MS.get(looks).or(LOOKS_MS.last()).copied().unwrap_or(100);
                let next_ns = now_ns + wait_ms * 1_000_000;
                self.states.insert(pid, State::Starting { since_ns, next_ns, looks: looks + 1 });
            }
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
        if !gone && self.selector.matches(pid) && !self.selector.is_everything() {
            if programs.set_target(pid, Target::FOLLOWED).is_ok() {
                self.states.insert(pid, State::Followed);
            }
        } else {
            programs.remove_target(pid);
            self.states.remove(&pid);
        }
    }

    fn forked(&mut self, parent: u32, child: u32, programs: &mut Programs) {
        match self.states.get(&parent) {
            Some(State::Traced { instance, service, .. }) => {
                let parents = service.clone().map(|service| (service, instance.version));
                // The child runs the same interpreter already; what differs is found out by a look of its own.
                let inherited = Instance { pid: child, ..instance.as_ref().clone() };
                match python::inspect(child) {
                    Ok(instance) => self.attach(child, instance, programs),
                    Err(Untraceable::NoSuchProcess) => programs.remove_target(child),
                    Err(_) => self.attach(child, inherited, programs),
                }
                self.remember_brief(child, parents);
            }
            Some(State::Left { instance, sign }) => {
                // The SDK was forked with it.
                let (inherited, sign) = (Instance { pid: child, ..instance.as_ref().clone() }, *sign);
                if tree::exists(child) {
                    self.set_left(child, inherited, sign, programs);
                } else {
                    programs.remove_target(child);
                }
            }
            Some(State::Starting { .. }) => self.watch(child, programs),
            Some(State::Followed) => {
                self.states.insert(child, State::Followed);
            }
            None => programs.remove_target(child),
        }
    }

    /// A child that is gone already has a name all the same, its parent's: what it did is in the ring buffer.
    fn remember_brief(&mut self, child: u32, parents: Option<(Arc<Service>, Version)>) {
        let Some((parents, version)) = parents else { return };
        let brief = || Arc::new(parents.of_brief_child(child));
        match self.states.get_mut(&child) {
            Some(State::Traced { service, .. }) => drop(service.get_or_insert_with(brief)),
            Some(State::Starting { .. } | State::Left { .. } | State::Followed) => {}
            None => {
                let ended = Ended { ktime_ns: clock::ktime_ns(), service: brief(), version };
                self.ended.insert(child, ended);
            }
        }
    }

    fn exited(&mut self, pid: u32, ktime_ns: u64, programs: &mut Programs) {
        programs.remove_target(pid);
        if let Some(State::Traced { instance, service: Some(service), .. }) = self.states.remove(&pid) {
            self.ended.insert(pid, Ended { ktime_ns, service, version: instance.version });
        }
    }
}

fn describe(pid: u32, version: Version, defaults: &Defaults) -> Option<Arc<Service>> {
    // A process that is gone already has nothing more to tell.
    Service::of_process(pid, Some(version), defaults).ok().map(Arc::new)
}

fn tell_left(pid: u32, service: Option<String>, sign: Sign) {
    let service = service.unwrap_or_default();
    log::info!(
        "process {pid} ({service}) is left to the OpenTelemetry SDK in it: {sign}; --sdk-processes=trace traces it all the same"
    );
}

fn tell_other(pid: u32, service: Option<&Service>, other: &OtherTracer) {
    let service = service.map(|service| service.name.as_str()).unwrap_or_default();
    log::info!("process {pid} ({service}) is traced by {other} too");
}
