//! From time to time it is made sure that nothing was missed.

use pitviper_ebpf::abi::Counter;

use super::{State, Targets};
use crate::kernel::programs::Programs;
use crate::process::tree;

/// How often it is made sure that nothing was missed.
const RESCAN_NS: u64 = 5_000_000_000;
/// How long the service of an ended process is remembered for its last spans.
const MOURNING_NS: u64 = 30_000_000_000;

impl Targets {
    /// Whether it is time for [`Targets::rescan`].
    pub(in crate::pipeline) fn rescan_is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_rescan_ns
    }

    /// Makes sure that nothing was missed. Gives the processes that have ended unseen.
    pub(in crate::pipeline) fn rescan(&mut self, now_ns: u64, programs: &mut Programs) -> Vec<u32> {
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
    pub(super) fn reconcile(&mut self, programs: &mut Programs) -> Vec<u32> {
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
}
