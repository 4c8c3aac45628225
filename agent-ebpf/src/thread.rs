//! What is kept of each thread of a target: the turns of its event loop, and where its time goes.
//!
//! An entry is made when the thread first does something that is reported; on the scheduler's paths entries are only
//! looked up and changed in place, as a map update could wait for a lock there.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use pitviper_ebpf::abi::{Clocks, Counter, Header, LoopBlocked, RecordKind, Runtime, SyscallKind, Times};

use crate::capture::Registers;
use crate::maps::{count, global, send, syscall_kind};

/// What a thread is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// It is on a CPU.
    Running = 0,
    /// It was taken from its CPU while it could go on.
    Queued = 1,
    /// It waits for something.
    Asleep = 2,
    /// It waits for the interpreter's lock.
    AsleepForLock = 3,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Thread {
    /// Event-loop turns.
    turn: u32,
    /// A [`State`] as a number.
    state: u32,
    /// When that state began.
    since: u64,
    /// When it was last woken up.
    woken: u64,
    /// When the turn began.
    turn_began: u64,
    /// When it first went to sleep for want of events; 0: not in this turn.
    idle_since: u64,
    clocks: Clocks,
}

#[map]
static THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(32_768, 0);
#[map]
static RUNTIMES: HashMap<u32, Runtime> = HashMap::with_max_entries(16_384, 0);

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Event-loop turns of a thread. May be called in any context.
#[inline(always)]
pub(crate) fn turn(pid_tgid: u64) -> u32 {
    // SAFETY: the value is copied at once.
    match THREADS.get_ptr(pid_tgid) {
        // SAFETY: the pointer is to a map value.
        Some(thread) => unsafe { (*thread).turn },
        None => 0,
    }
}

/// The times of the current thread, which is known from now on.
#[inline(always)]
pub(crate) fn clocks(pid_tgid: u64, now: u64) -> Clocks {
    let Some(thread) = known(pid_tgid, now) else { return Clocks::default() };
    // SAFETY: the pointer is to a map value, and the thread itself is running.
    unsafe {
        let mut clocks = (*thread).clocks;
        clocks.now.cpu += now.saturating_sub((*thread).since);
        clocks
    }
}

#[inline(always)]
fn known(pid_tgid: u64, now: u64) -> Option<*mut Thread> {
    if let Some(thread) = THREADS.get_ptr_mut(pid_tgid) {
        return Some(thread);
    }
    let thread = Thread {
        turn: 0,
        state: State::Running as u32,
        since: now,
        woken: 0,
        turn_began: 0,
        idle_since: 0,
        clocks: Clocks {
            now: Times { cpu: 0, queued: 0, gil: 0 },
            turn: Times { cpu: 0, queued: 0, gil: 0 },
        },
    };
    if THREADS.insert(pid_tgid, thread, 0).is_err() {
        count(Counter::MapUpdateFailed);
    }
    THREADS.get_ptr_mut(pid_tgid)
}

/// The current thread's event loop begins its next turn.
#[inline(always)]
pub(crate) fn next_turn(pid_tgid: u64) {
    let now = now();
    let Some(thread) = known(pid_tgid, now) else { return };
    // SAFETY: the pointer is to a map value, and only its own thread, which is running, writes these fields.
    let (began, ended, turn) = unsafe {
        let began = (*thread).turn_began;
        let ended = if (*thread).idle_since == 0 { now } else { (*thread).idle_since };
        let turn = (*thread).turn;
        (*thread).turn = turn.wrapping_add(1);
        (*thread).turn_began = now;
        (*thread).idle_since = 0;
        (*thread).clocks.turn = (*thread).clocks.now;
        (*thread).clocks.turn.cpu += now.saturating_sub((*thread).since);
        (began, ended, turn)
    };
    let longest = u64::from(global!(longest_turn_ms)) * 1_000_000;
    if longest != 0 && began != 0 && ended.saturating_sub(began) > longest {
        let record = LoopBlocked {
            header: Header {
                kind: RecordKind::LoopBlocked as u16,
                flags: 0,
                pid: (pid_tgid >> 32) as u32,
                ktime_ns: ended,
            },
            tid: pid_tgid as u32,
            turn,
            began_ns: began,
        };
        send(&record, Counter::RingFullLifecycle);
    }
}

#[inline(always)]
pub(crate) fn forget(pid_tgid: u64) {
    let _ = THREADS.remove(pid_tgid);
}

/// A field of a `struct task_struct` that a tracepoint has given.
#[inline(always)]
fn field(task: *const u8, offset: u32) -> u32 {
    // SAFETY: the verifier knows the type behind the pointer, and the offset as a constant.
    unsafe { task.add(offset as usize).cast::<u32>().read_volatile() }
}

/// What `bpf_get_current_pid_tgid` gives where this task is the current one.
#[inline(always)]
fn id(task: *const u8) -> u64 {
    u64::from(field(task, global!(task_tgid))) << 32 | u64::from(field(task, global!(task_pid)))
}

/// The current thread, `previous`, leaves its CPU to `next`.
#[inline(always)]
pub(crate) fn switched(pid_tgid: u64, preempted: bool, previous: *const u8, next: *const u8) {
    if let Some(thread) = THREADS.get_ptr_mut(pid_tgid) {
        left(thread, pid_tgid, preempted, previous);
    }
    if let Some(thread) = THREADS.get_ptr_mut(id(next)) {
        came(thread);
    }
}

#[inline(always)]
fn left(thread: *mut Thread, pid_tgid: u64, preempted: bool, task: *const u8) {
    let now = now();
    let runnable = preempted || field(task, global!(task_state)) == 0;
    let state = if runnable { State::Queued } else { asleep(thread, pid_tgid, task, now) };
    // SAFETY: the pointer is to a map value, and the thread is running on this CPU.
    unsafe {
        (*thread).clocks.now.cpu += now.saturating_sub((*thread).since);
        (*thread).since = now;
        (*thread).state = state as u32;
    }
}

/// Why the current thread goes to sleep.
#[inline(always)]
fn asleep(thread: *mut Thread, pid_tgid: u64, task: *const u8, now: u64) -> State {
    // Where the helper is missing the rest is dead, and the verifier, which knows the constants, removes it.
    if global!(has_task_regs) == 0 {
        return State::Asleep;
    }
    // SAFETY: the task is the current one.
    let registers = Registers::of(unsafe { bpf_task_pt_regs(task.cast_mut().cast()) } as *const u8);
    let number = registers.system_call();
    if number == u64::from(global!(futex)) {
        let Some(runtime) = RUNTIMES.get_ptr((pid_tgid >> 32) as u32) else { return State::Asleep };
        let address = registers.argument(global!(regs_args[0]));
        // SAFETY: the pointer is to a map value, which the daemon replaces whole.
        let Runtime { start, end } = unsafe { *runtime };
        return if address >= start && address < end { State::AsleepForLock } else { State::Asleep };
    }
    if syscall_kind(number) == SyscallKind::EpollWait as u8 {
        // SAFETY: as for the caller.
        unsafe {
            if (*thread).idle_since == 0 {
                (*thread).idle_since = now;
            }
        }
    }
    State::Asleep
}

#[inline(always)]
fn came(thread: *mut Thread) {
    let now = now();
    // SAFETY: the pointer is to a map value; the thread is not running yet.
    unsafe {
        let (since, woken, state) = ((*thread).since, (*thread).woken, (*thread).state);
        let times = &raw mut (*thread).clocks.now;
        // Without a wake-up seen, all of it was sleep.
        let up = if woken > since { woken } else { now };
        if state == State::Queued as u32 {
            (*times).queued += now.saturating_sub(since);
        } else if state != State::Running as u32 {
            (*times).queued += now.saturating_sub(up);
            if state == State::AsleepForLock as u32 {
                (*times).gil += up.saturating_sub(since);
            }
        }
        (*thread).since = now;
        (*thread).state = State::Running as u32;
    }
}

/// A thread that slept can go on.
#[inline(always)]
pub(crate) fn woken(task: *const u8) {
    if let Some(thread) = THREADS.get_ptr_mut(id(task)) {
        // SAFETY: the pointer is to a map value, and a thread is woken up by one other at a time.
        unsafe { (*thread).woken = now() };
    }
}
