//! In which processes the entering of contexts is followed, and for how long.
//!
//! A probe takes some two microseconds of the process's time, whatever is done in the step. Where steps are long that is nothing,
//! and each request can be told its CPU time to the step; where they are short it would cost more than that is worth, and then what
//! two requests may have done between two records is nobody's. So it is seen how much CPU time a process uses for each entering: if
//! it is too little, the probes are taken off, and put on again after a while, as services have their hours.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::kernel::probes::sets::{ProbeSet, Subject};
use crate::kernel::programs::Programs;
use crate::process::tree;
use crate::python::ContextFunctions;

/// How often it is looked at.
const PERIOD_NS: u64 = 1_000_000_000;
/// So few enterings in a period are affordable at any rate: a thousandth of a core.
const FEW: u32 = 500;
/// CPU time of a process for each entering, at least: then a probe's two microseconds are one percent.
const LEAST_CPU: Duration = Duration::from_micros(200);
/// So many enterings are looked at before the period is over: nothing is to be flooded with them.
const MANY: u32 = 2000;
/// The probes come back after so long at first, then after twice as long each time.
const FIRST_PAUSE_NS: u64 = 30_000_000_000;
/// And after this at last.
const LONGEST_PAUSE_NS: u64 = 600_000_000_000;

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    /// Enterings since it was last looked at.
    entered: u32,
    /// CPU time until then.
    cpu: Duration,
    /// Not before this it is looked at, CLOCK_MONOTONIC.
    next_ns: u64,
    pause_ns: u64,
    followed: bool,
}

/// What is to be done with a process's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Follow,
    LetBe,
    Nothing,
}

impl Pace {
    const NEW: Self =
        Self { entered: 0, cpu: Duration::ZERO, next_ns: 0, pause_ns: FIRST_PAUSE_NS, followed: false };

    /// It is time to look at it: so much CPU time it has used in all.
    fn judge(&mut self, now_ns: u64, cpu: Duration) -> Order {
        let used = cpu.saturating_sub(self.cpu);
        let entered = std::mem::take(&mut self.entered);
        self.cpu = cpu;
        self.next_ns = now_ns + PERIOD_NS;
        if !self.followed {
            self.followed = true;
            return Order::Follow;
        }
        if entered > FEW && used < LEAST_CPU * entered {
            self.followed = false;
            self.next_ns = now_ns + self.pause_ns;
            self.pause_ns = LONGEST_PAUSE_NS.min(2 * self.pause_ns);
            return Order::LetBe;
        }
        Order::Nothing
    }
}

/// All processes whose enterings are followed, or were.
#[derive(Debug, Default)]
pub(super) struct Steps {
    paces: BTreeMap<u32, Pace>,
    next_ns: u64,
    /// Some process has entered many contexts.
    hasty: bool,
}

impl Steps {
    /// A context was entered in a process.
    pub(super) fn entered(&mut self, pid: u32) {
        if let Some(pace) = self.paces.get_mut(&pid) {
            pace.entered += 1;
            self.hasty |= pace.entered >= MANY;
        }
    }

    /// Follows what can be afforded. `traced` are all processes that are traced, by pid.
    pub(super) fn look<'a>(
        &mut self,
        now_ns: u64,
        traced: impl Iterator<Item = (u32, &'a ContextFunctions)>,
        programs: &mut Programs,
    ) {
        if !programs.keeps_clocks() || (now_ns < self.next_ns && !self.hasty) {
            return;
        }
        self.hasty = false;
        self.next_ns = now_ns + PERIOD_NS;
        let mut before = std::mem::take(&mut self.paces);
        for (pid, functions) in traced {
            let mut pace = before.remove(&pid).unwrap_or(Pace::NEW);
            if (now_ns >= pace.next_ns || pace.entered >= MANY)
                && let Some(cpu) = tree::cpu_time(pid)
            {
                match pace.judge(now_ns, cpu) {
                    Order::Follow => {
                        if let Err(error) = programs.attach_probes(pid, &ProbeSet::steps(functions)) {
                            log::debug!(
                                "process {pid}: contexts are not seen when they are entered: {error:#}"
                            );
                        }
                    }
                    Order::LetBe => {
                        log::debug!("process {pid}: its steps are too short to be followed one by one");
                        programs.detach_probes_from(pid, Subject::Steps);
                    }
                    Order::Nothing => {}
                }
            }
            self.paces.insert(pid, pace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = PERIOD_NS;

    /// What is ordered in each period: enterings, and milliseconds of CPU.
    fn orders(periods: &[(u64, u32, u64)]) -> Vec<Order> {
        let mut pace = Pace::NEW;
        let mut cpu = Duration::ZERO;
        let order = |&(at, entered, milliseconds): &(u64, u32, u64)| {
            assert!(at * SECOND >= pace.next_ns, "{at}");
            pace.entered = entered;
            cpu += Duration::from_millis(milliseconds);
            pace.judge(at * SECOND, cpu)
        };
        periods.iter().map(order).collect()
    }

    #[test]
    fn long_steps_are_followed() {
        let periods = [(0, 0, 900), (1, 2000, 900), (2, 400, 1), (3, 0, 0), (4, 4500, 1000)];
        use Order::{Follow, Nothing};
        assert_eq!(orders(&periods), [Follow, Nothing, Nothing, Nothing, Nothing]);
    }

    #[test]
    fn short_ones_are_let_be_for_a_while() {
        let mut at = 0;
        let mut pauses = Vec::new();
        let mut pace = Pace::NEW;
        for _ in 0..7 {
            assert_eq!(pace.judge(at, Duration::ZERO), Order::Follow);
            pace.entered = 20_000;
            at = pace.next_ns;
            assert_eq!(pace.judge(at, Duration::ZERO), Order::LetBe);
            pauses.push((pace.next_ns - at) / SECOND);
            at = pace.next_ns;
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
    }
}
