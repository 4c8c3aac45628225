//! Where the time of a thread goes, and what holds its event loop: what the scheduler's tracepoints keep and report.

use core::mem::size_of;

use super::{Header, Task};

/// What was done with a thread's time, since it was first seen. Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Times {
    /// It had a CPU: from the scheduler's switch to it to the one from it, by the monotonic clock. What interrupts and a
    /// hypervisor take of that is in it, which `sum_exec_runtime` leaves out (`update_rq_clock_task` in kernel/sched/core.c):
    /// that clock is only brought up to date at ticks and switches, and a record comes in between.
    pub cpu: u64,
    /// It could have run, but waited for a CPU.
    pub queued: u64,
    /// It slept until it was given the interpreter's lock.
    pub gil: u64,
}

/// A thread's [`Times`] now, and when it last began something new. All 0 while no clocks are kept.
///
/// The versions are the low half of `PyThreadState.context_ver`, which CPython counts up whenever a context is entered or
/// left (`PyContext_Enter` and `PyContext_Exit` in Python/context.c, 3.7 to 3.14), and greenlet whenever it switches; 0: not
/// known. So equal versions mean that nothing else has run in between, and those that differ by one that one context was
/// entered, or left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Clocks {
    /// Now.
    pub now: Times,
    /// When it last went to sleep for want of events, or came back from `epoll_wait` without; where it runs no event loop, when
    /// it last went to sleep, but for the interpreter's lock, as a worker does that waits for its next job. All 0: it has not.
    pub turn: Times,
    /// Version now.
    pub now_version: u32,
    /// Version at the time of `turn`.
    pub turn_version: u32,
}

impl Clocks {
    /// No clocks are kept.
    pub const NONE: Self = Self {
        now: Times { cpu: 0, queued: 0, gil: 0 },
        turn: Times { cpu: 0, queued: 0, gil: 0 },
        now_version: 0,
        turn_version: 0,
    };
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ThreadState {
    /// It is on a CPU.
    Running = 0,
    /// It was taken from its CPU while it could go on, or is new.
    Queued = 1,
    /// It waits for something.
    Asleep = 2,
    /// It waits for the interpreter's lock.
    AsleepForLock = 3,
    /// It is an event loop, and waits for events.
    Idle = 4,
}

/// What the kernel side keeps of a thread. Value of the `THREADS` map, keyed by what `bpf_get_current_pid_tgid` gives. The
/// daemon makes an entry of each thread that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    /// Event-loop turns.
    pub turn: u32,
    /// A [`ThreadState`] as a number.
    pub state: u32,
    /// When that state began. This and what follows: `bpf_ktime_get_ns`.
    pub since: u64,
    /// When it was last woken up.
    pub woken: u64,
    /// When the turn began; 0: it has ended, or there was none.
    pub turn_began: u64,
    /// When the turn's longest sleep began that was not for the lock.
    pub slept_since: u64,
    /// How long that was.
    pub slept: u64,
    /// When a stack was last taken of it going to sleep.
    pub stack_taken: u64,
    /// Its clocks; those of now are as they were at `since`.
    pub clocks: Clocks,
}

impl Thread {
    /// A thread of which nothing is known of the time before.
    ///
    /// One that was found, asleep or not, is [`ThreadState::Asleep`]: when it leaves a CPU it has run since then, whatever its
    /// state, and when it comes to one it has slept.
    pub const fn since(since: u64, state: ThreadState) -> Self {
        Self {
            turn: 0,
            state: state as u32,
            since,
            woken: 0,
            turn_began: 0,
            slept_since: 0,
            slept: 0,
            stack_taken: 0,
            clocks: Clocks::NONE,
        }
    }
}

/// A turn of an event loop took longer than [`super::Globals::longest_turn_ms`]; sent at its end, after all that was done in it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LoopBlocked {
    /// `flags` is 0; `ktime_ns` is the turn's end: the loop waits for events again.
    pub header: Header,
    /// The thread.
    pub tid: u32,
    /// Number of the turn, as in [`super::Task::turn`].
    pub turn: u32,
    /// The turn's beginning, as in [`Header::ktime_ns`].
    pub began_ns: u64,
    /// When the longest sleep of the turn began that was not for the interpreter's lock; 0: there was none. A
    /// [`super::StackSample`] with [`super::SAMPLE_ASLEEP`] has the same time.
    pub slept_ns: u64,
    /// How long that was, the wait for a CPU after it included.
    pub slept: u64,
}

/// A thread is about to enter a context: what it does from now on is that one's, until it leaves it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ContextEntered {
    /// `flags` are the epoch.
    pub header: Header,
    /// The thread, and the context that it is in still.
    pub task: Task,
    /// The thread's clocks, with the version of before.
    pub clocks: Clocks,
    /// Address of the context.
    pub context: u64,
}

/// The addresses of a process's `_PyRuntime`, which holds the interpreter's lock: a thread that sleeps in `futex` on one
/// of them waits for that lock. Value of the `RUNTIMES` map, keyed by tgid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Runtime {
    /// The first address.
    pub start: u64,
    /// The first one behind.
    pub end: u64,
}

const _: () = {
    assert!(size_of::<Clocks>() == 56);
    assert!(size_of::<ContextEntered>() == 40 + 56);
    assert!(size_of::<LoopBlocked>() == 48);
    assert!(size_of::<Runtime>() == 16);
    assert!(size_of::<Thread>() == 56 + 56);
};

#[cfg(feature = "user")]
// SAFETY: a `repr(C)` struct of integers without padding (asserted above); every bit pattern is valid.
unsafe impl aya::Pod for Runtime {}
#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Thread {}
