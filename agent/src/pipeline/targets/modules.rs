//! Which modules of a traced process have their probes: the queue of its thread pools, and greenlet.

use pitviper_ebpf::abi::{Target, TlsKind};

use super::{State, Targets, Traced};
use crate::kernel::probes::sets::{ProbeSet, Subject};
use crate::kernel::programs::Programs;
use crate::process::tree;
use crate::python::{self, Greenlets, QueueFunctions};

/// The probes on one module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Probes<T> {
    /// The module is not there yet.
    #[default]
    Awaited,
    /// They are there.
    There(T),
    /// They cannot be had.
    Never,
}

/// The modules of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Modules {
    queue: Probes<QueueFunctions>,
    greenlet: Probes<()>,
}

impl Modules {
    /// What is known of a process in which nothing can be told by contexts.
    pub(super) const NONE: Self = Self { queue: Probes::Never, greenlet: Probes::Never };

    /// Those of a child, as far as it has inherited them.
    pub(super) fn passed_on(&self, parent: u32, child: u32, forked_ns: u64, programs: &mut Programs) -> Self {
        Self {
            queue: self.queue.passed_on(Subject::Queue, parent, child, forked_ns, programs),
            greenlet: self.greenlet.passed_on(Subject::Greenlets, parent, child, forked_ns, programs),
        }
    }

    /// Whether there are no probes on something that `other` has probes on.
    pub(super) fn lack(&self, other: &Self) -> bool {
        (self.queue == Probes::Awaited && other.queue != Probes::Awaited)
            || (self.greenlet == Probes::Awaited && other.greenlet != Probes::Awaited)
    }
}

impl<T: Clone> Probes<T> {
    fn passed_on(
        &self,
        subject: Subject,
        parent: u32,
        child: u32,
        forked_ns: u64,
        programs: &mut Programs,
    ) -> Self {
        match self {
            Self::There(found) if programs.pass_on_probes(parent, child, forked_ns, subject) => {
                Self::There(found.clone())
            }
            Self::There(_) | Self::Awaited => Self::Awaited,
            Self::Never => Self::Never,
        }
    }
}

impl Targets {
    /// Puts probes on the modules that a process has loaded by now. It is after the process has become a target, so that a
    /// module that is loaded meanwhile is reported.
    pub(super) fn attach_modules(&mut self, pid: u32, programs: &mut Programs) {
        let Some(State::Traced(traced)) = self.states.get_mut(&pid) else { return };
        attach_queue(pid, traced, programs);
        attach_greenlets(pid, traced, programs);
    }
}

fn attach_queue(pid: u32, traced: &mut Traced, programs: &mut Programs) {
    let Traced { instance, modules: Modules { queue, .. }, .. } = traced;
    if *queue == Probes::Never || matches!(queue, Probes::There(QueueFunctions { loaded: true, .. })) {
        return;
    }
    let Some(found) = python::thread_pool::find(pid, instance.version, &instance.interpreter) else { return };
    if let Probes::There(known) = queue
        && known.file == found.file
    {
        known.loaded = found.loaded;
        return;
    }
    match programs.attach_probes(pid, &ProbeSet::queue(&found)) {
        Ok(()) => {
            log::debug!("process {pid}: thread pools are traced, by {}", found.path.display());
            *queue = Probes::There(found);
        }
        Err(error) => {
            if tree::lives(pid) {
                log::warn!("what the thread pools of process {pid} do has no parent: {error:#}");
            }
            *queue = Probes::Never;
        }
    }
}

fn attach_greenlets(pid: u32, traced: &mut Traced, programs: &mut Programs) {
    let Traced { instance, modules: Modules { greenlet, .. }, .. } = traced;
    // The kernel side knows glibc's way to a module's thread-local storage.
    if *greenlet != Probes::Awaited || instance.target.tls_kind != TlsKind::GlibcFirstBlock as u32 {
        return;
    }
    let found = python::greenlets::find(pid);
    let known = instance.target.greenlet_type != 0;
    let Some(found) = found else {
        // A child that has not inherited the probes and is gone, or nearly so.
        if known {
            tell_apart(pid, traced, Target::WITHOUT_CONTEXT, programs);
        }
        return;
    };
    let Greenlets { path, kind, module, offset, init: _, dealloc: _ } = &found;
    let target = Target {
        greenlet_type: *kind,
        greenlet_module: *module,
        greenlet_offset: *offset,
        ..Target::WITHOUT_CONTEXT
    };
    // The probe comes first: a greenlet that runs and was not seen to be made has no lineage, and may be at the
    // address of one that was.
    match programs.attach_probes(pid, &ProbeSet::greenlets(&found)) {
        Ok(()) => {
            log::debug!("process {pid}: greenlets are traced, by {}", path.display());
            *greenlet = Probes::There(());
            tell_apart(pid, traced, target, programs);
        }
        Err(error) => {
            if tree::lives(pid) {
                log::warn!("the greenlets of process {pid} are not told apart: {error:#}");
            }
            *greenlet = Probes::Never;
            if known {
                tell_apart(pid, traced, Target::WITHOUT_CONTEXT, programs);
            }
        }
    }
}

/// Makes the kernel side tell greenlets apart as `how` says.
fn tell_apart(pid: u32, traced: &mut Traced, how: Target, programs: &mut Programs) {
    let target = &mut traced.instance.target;
    target.greenlet_type = how.greenlet_type;
    target.greenlet_module = how.greenlet_module;
    target.greenlet_offset = how.greenlet_offset;
    // It may have ended.
    programs.update_target(pid, *target);
}
