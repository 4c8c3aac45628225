//! Which TLS libraries of a traced process have their probes.

use pitviper_ebpf::abi::CAPTURE_TLS;

use super::{State, Targets, Traced};
use crate::kernel::probes::sets::{ProbeSet, Subject};
use crate::kernel::programs::Programs;
use crate::process::tree;
use crate::python::known_files::FileKey;
use crate::tls;

/// The TLS libraries of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Libraries {
    /// Those that can have no probes. It is said once.
    refused: Vec<FileKey>,
}

impl Libraries {
    /// Puts probes on those that have none; gives whether there are any probes. One that fails costs what goes through it.
    pub(super) fn attach(&mut self, pid: u32, programs: &mut Programs) -> bool {
        let has = programs.probed_subjects(pid);
        let mut attached = false;
        for library in tls::libraries(pid) {
            let probes = ProbeSet::tls(&library);
            if has.contains(&probes.subject) {
                attached = true;
                continue;
            }
            if self.refused.contains(&library.file) {
                continue;
            }
            match programs.attach_probes(pid, &probes) {
                Ok(()) => {
                    log::debug!("process {pid}: what {} encrypts is traced", library.name.display());
                    attached = true;
                }
                Err(_) if !tree::lives(pid) => {}
                Err(error) => {
                    log::warn!(
                        "what process {pid} encrypts with {} is not seen: {error:#}",
                        library.name.display()
                    );
                    self.refused.push(library.file);
                }
            }
        }
        attached
    }
}

/// Takes note of the probes on TLS libraries that a child has inherited. False if there are some that it has not.
pub(super) fn pass_on(parent: u32, child: u32, ktime_ns: u64, programs: &mut Programs) -> bool {
    let mut whole = true;
    for subject in programs.probed_subjects(parent).into_iter().filter(Subject::is_tls) {
        whole &= programs.pass_on_probes(parent, child, ktime_ns, subject);
    }
    whole
}

impl Targets {
    /// Looks for TLS libraries in the processes that have loaded something, once for all that they have loaded meanwhile.
    pub(in crate::pipeline) fn look_for_libraries(&mut self, programs: &mut Programs) {
        for pid in std::mem::take(&mut self.loading) {
            let Some(State::Traced(Traced { instance, libraries, .. })) = self.states.get_mut(&pid) else {
                continue;
            };
            if libraries.attach(pid, programs) && instance.target.capture & CAPTURE_TLS == 0 {
                instance.target.capture |= CAPTURE_TLS;
                programs.update_target(pid, instance.target);
            }
        }
    }
}
