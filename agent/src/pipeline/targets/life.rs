//! What happens to processes: they fork, run other programs, load their interpreter, and end.

use std::sync::Arc;

use pitviper_ebpf::abi::Target;

use super::libraries::pass_on;
use super::{Change, State, Targets, Traced};
use crate::clock;
use crate::kernel::probes::sets::Subject;
use crate::kernel::programs::Programs;
use crate::process::tree;
use crate::python::{self, Untraceable};

/// An interpreter that has not started after this time is let go.
const PATIENCE_NS: u64 = 30_000_000_000;
/// A process that cannot be read is looked at again for so long after its exec: its loader is still mapping it.
const LOADING_NS: u64 = 2_000_000_000;
/// Ended processes that are remembered.
const MOST_ENDED: usize = 1024;

impl Targets {
    /// Takes note of what happened to a process.
    pub(in crate::pipeline) fn apply(&mut self, change: Change, programs: &mut Programs) {
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

    /// Follows a process until its interpreter has started. Only here does the daemon make a target: everywhere else it
    /// updates those that there are, because one that has ended would never be taken away.
    pub(super) fn watch(&mut self, pid: u32, programs: &mut Programs) {
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

    pub(super) fn stirred(&mut self, pid: u32, programs: &mut Programs) {
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

    pub(super) fn look_at(&mut self, pid: u32, programs: &mut Programs) {
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
    pub(super) fn give_up(&mut self, pid: u32, reason: &Untraceable, programs: &mut Programs) {
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

    pub(super) fn forked(&mut self, parent: u32, child: u32, ktime_ns: u64, programs: &mut Programs) {
        match self.states.get(&parent) {
            Some(State::Traced(traced)) => {
                let heir = ktime_ns > traced.since_ns;
                let (instance, known) = (traced.instance.in_child(child), traced.instance.target);
                let (limit, modules) = (traced.limit.clone(), traced.modules.clone());
                let libraries = traced.libraries.clone();
                let parent_service = self.service(parent, u64::MAX).map(|service| (service, ktime_ns));
                let unprobed = instance.contexts.is_none();
                if heir && (unprobed || programs.pass_on_probes(parent, child, ktime_ns, Subject::Contexts)) {
                    if instance.target != known {
                        programs.update_target(child, instance.target);
                    }
                    let whole = pass_on(parent, child, ktime_ns, programs);
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
                        libraries,
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

    pub(super) fn exited(&mut self, pid: u32, ktime_ns: u64, programs: &mut Programs) {
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
}
