//! From the kernel's monotonic clock to wall-clock time. The only place where the two meet.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC: the clock of `bpf_ktime_get_ns`.
pub fn ktime_ns() -> u64 {
    nanos(ClockId::Monotonic)
}

/// Turns monotonic nanoseconds into Unix time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Unix nanoseconds at monotonic zero.
    boot_unix_nanos: u64,
}

impl Clock {
    /// Compares the two clocks now. Do so again from time to time: the wall clock is steered, and may jump.
    pub fn now() -> Self {
        // The reading with the least time between its two sides is the best one.
        let best = (0..3)
            .map(|_| {
                let before = ktime_ns();
                let wall = nanos(ClockId::Realtime);
                let after = ktime_ns();
                let took = after.saturating_sub(before);
                (took, wall.saturating_sub(before.saturating_add(took / 2)))
            })
            .min();
        Self { boot_unix_nanos: best.map_or(0, |(_, boot)| boot) }
    }

    /// Wall-clock time of a monotonic reading.
    pub fn wall(self, ktime_ns: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.boot_unix_nanos.saturating_add(ktime_ns))
    }
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_wall_clock() {
        let wall = Clock::now().wall(ktime_ns());
        let difference = wall.duration_since(SystemTime::now()).unwrap_or_else(|error| error.duration());
        assert!(difference < Duration::from_secs(1), "{difference:?}");
    }
}
