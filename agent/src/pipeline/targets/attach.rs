//! Begins to trace a process, or leaves it to the SDK in it.

use std::sync::Arc;

use pitviper_ebpf::abi::{CAPTURE_PIPES, CAPTURE_TLS, Target};

use super::libraries::Libraries;
use super::modules::Modules;
use super::{State, Targets, Traced};
use crate::clock;
use crate::kernel::probes::sets::ProbeSet;
use crate::kernel::programs::Programs;
use crate::process::environ::Environ;
use crate::process::identity::Server;
use crate::process::naming;
use crate::process::resource::Service;
use crate::process::sdk::{self, OtherTracer, SdkProcesses, Sign};
use crate::process::tree;
use crate::profile::layout::stack_layout;
use crate::python::{Instance, layout};

impl Targets {
    /// A traced process showed that an SDK in it traces it too. Gives whether it is left to that from now on.
    pub(in crate::pipeline) fn leave(&mut self, pid: u32, sign: Sign, programs: &mut Programs) -> bool {
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

    pub(super) fn attach(
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
        if let Some(functions) = &instance.contexts
            && let Err(error) = programs.attach_probes(pid, &ProbeSet::contexts(functions))
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
        let mut libraries = Libraries::default();
        if libraries.attach(pid, programs) {
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
        let traced = Traced { instance, since_ns, service: None, parent, limit, modules, libraries };
        self.states.insert(pid, State::Traced(traced));
        self.attach_modules(pid, programs);
    }

    /// Follows a process that is left to its SDK: nothing that it sends or receives is looked at. What others have of its
    /// family's probes they keep; in this process they have no effect. False if it has ended.
    pub(super) fn set_left(&mut self, pid: u32, programs: &mut Programs) -> bool {
        if !programs.update_target(pid, Target::FOLLOWED) {
            self.forget(pid, programs);
            return false;
        }
        programs.detach_probes(pid);
        programs.unset_profiled(pid);
        self.states.insert(pid, State::Left);
        true
    }
}

fn tell_left(pid: u32, service: &str, sign: Sign) {
    log::info!(
        "process {pid} ({service}) is left to the OpenTelemetry SDK in it: {sign}; --sdk-processes=trace traces it all the same"
    );
}

fn tell_other(pid: u32, service: &str, other: &OtherTracer) {
    log::info!("process {pid} ({service}) is traced by {other} too");
}
