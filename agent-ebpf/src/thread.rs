//! What is kept of each thread of a target: the turns of its event loop, and where its time goes.
//!
//! An entry is made when the thread first does something that is reported; on the scheduler's paths entries are only
//! looked up and changed in place, as a map update could wait for a lock there. What the tracepoints of the scheduler do for
//! all other threads is that one look-up.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use pitviper_ebpf::abi::{
    Clocks, Counter, Header, LoopBlocked, RecordKind, Runtime, SAMPLE_ASLEEP, SyscallKind, Target, Thread,
    ThreadState as State, Times,
};

use crate::capture::Registers;
use crate::context::version;
use crate::maps::{count, global, send, syscall_kind, target};
use crate::profile;
use crate::task::typed;

/// At most one stack is taken in so many nanoseconds of a thread that sleeps in the midst of a turn.
const BETWEEN_STACKS: u64 = 10_000_000;

#[map]
static THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(32_768, 0);
#[map]
static RUNTIMES: HashMap<u32, Runtime> = HashMap::with_max_entries(16_384, 0);

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The child of a process has its interpreter where that has it.
#[inline(always)]
pub(crate) fn inherit(parent: u32, child: u32) {
    if global!(clocks) == 0 {
        return;
    }
    if let Some(runtime) = RUNTIMES.get_ptr(parent) {
        // SAFETY: the pointer is to a map value; the daemon replaces values whole.
        let runtime = unsafe { *runtime };
        if RUNTIMES.insert(child, runtime, 0).is_err() {
            count(Counter::MapUpdateFailed);
        }
    }
}

/// The process has ended, or runs another program.
#[inline(always)]
pub(crate) fn forget_process(pid: u32) {
    if global!(clocks) != 0 {
        let _ = RUNTIMES.remove(pid);
    }
}

/// The current thread ends.
#[inline(always)]
pub(crate) fn forget(pid_tgid: u64) {
    let _ = THREADS.remove(pid_tgid);
}

/// Event-loop turns of a thread. May be called in any context.
#[inline(always)]
pub(crate) fn turn(pid_tgid: u64) -> u32 {
    match THREADS.get_ptr(pid_tgid) {
        // SAFETY: the pointer is to a map value; the number is copied at once.
        Some(thread) => unsafe { (*thread).turn },
        None => 0,
    }
}

/// The clocks of the current thread, which is known from now on.
#[inline(always)]
pub(crate) fn clocks(pid_tgid: u64, now: u64, version: u32) -> Clocks {
    if global!(clocks) == 0 {
        return Clocks::NONE;
    }
    match known(pid_tgid) {
        Some(thread) => read_clocks(thread, now, version),
        None => Clocks::NONE,
    }
}

/// Writes the clocks of the current thread, which is known from now on, into a record that has none.
#[inline(never)]
pub(crate) fn store_clocks(out: *mut Clocks, pid_tgid: u64, now: u64, version: u32) {
    if global!(clocks) == 0 {
        return;
    }
    if let Some(thread) = known(pid_tgid) {
        // SAFETY: the pointers are to map values, and the thread itself is running.
        unsafe {
            *out = (*thread).clocks;
            advance(&raw mut (*out).now, thread, now);
            (*out).now_version = version;
        }
    }
}

/// The same without making it known: changes no map.
#[inline(always)]
pub(crate) fn clocks_if_known(pid_tgid: u64, now: u64, version: u32) -> Clocks {
    if global!(clocks) == 0 {
        return Clocks::NONE;
    }
    match THREADS.get_ptr_mut(pid_tgid) {
        Some(thread) => read_clocks(thread, now, version),
        None => Clocks::NONE,
    }
}

#[inline(always)]
fn read_clocks(thread: *mut Thread, now: u64, version: u32) -> Clocks {
    // SAFETY: the pointer is to a map value, and the thread itself is running.
    unsafe {
        let mut clocks = (*thread).clocks;
        advance(&raw mut clocks.now, thread, now);
        clocks.now_version = version;
        clocks
    }
}

/// Adds to the times of a thread, which is running, those since it came to its CPU.
#[inline(always)]
unsafe fn advance(times: *mut Times, thread: *const Thread, now: u64) {
    // SAFETY: the caller's pointers are to map values, or to its own.
    unsafe { (*times).cpu += now.saturating_sub((*thread).since) };
}

#[inline(always)]
fn known(pid_tgid: u64) -> Option<*mut Thread> {
    if let Some(thread) = THREADS.get_ptr_mut(pid_tgid) {
        return Some(thread);
    }
    make_known(pid_tgid, State::Running as u32);
    THREADS.get_ptr_mut(pid_tgid)
}

/// A new entry: too large for the stack, of which the verifier allows little before Linux 6.3.
static NEW: Thread = Thread::since(0, State::Running);

/// Makes a thread known, as it is since now.
#[inline(never)]
#[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be on the stack")]
fn make_known(pid_tgid: u64, state: u32) {
    if THREADS.insert(pid_tgid, &NEW, 0).is_err() {
        count(Counter::MapUpdateFailed);
        return;
    }
    if let Some(thread) = THREADS.get_ptr_mut(pid_tgid) {
        // SAFETY: the pointer is to a map value. Until `since` is set the scheduler's paths leave it alone.
        unsafe {
            (*thread).state = state;
            (*thread).since = now();
        }
    }
}

/// A thread of this process was made, and has not run yet.
#[inline(always)]
pub(crate) fn born(pid_tgid: u64) {
    if global!(clocks) != 0 {
        make_known(pid_tgid, State::Queued as u32);
    }
}

/// The current thread's event loop begins its next turn.
#[inline(never)]
pub(crate) fn next_turn(pid_tgid: u64, target: &Target) {
    let now = now();
    let Some(thread) = known(pid_tgid) else { return };
    if global!(clocks) == 0 {
        // SAFETY: the pointer is to a map value, and only its own thread writes it.
        unsafe { (*thread).turn = (*thread).turn.wrapping_add(1) };
        return;
    }
    let version = version(target);
    // SAFETY: the pointer is to a map value, and only its own thread, which is running, writes these fields.
    unsafe {
        // No context was entered or left since the turn before ended.
        (*thread).clocks.turn_version = version;
        if (*thread).turn_began != 0 {
            // It did not have to wait for events.
            turn_ended(thread, pid_tgid, now);
            (*thread).clocks.turn = (*thread).clocks.now;
            advance(&raw mut (*thread).clocks.turn, thread, now);
        }
        (*thread).turn = (*thread).turn.wrapping_add(1);
        (*thread).turn_began = now;
        (*thread).slept_since = 0;
        (*thread).slept = 0;
    }
}

/// The turn of an event loop is over, if it is in one.
#[inline(always)]
fn turn_ended(thread: *mut Thread, pid_tgid: u64, now: u64) {
    // SAFETY: the pointer is to a map value of the current thread.
    let (began_ns, turn, slept_ns, slept) = unsafe {
        let began = (*thread).turn_began;
        (*thread).turn_began = 0;
        (began, (*thread).turn, (*thread).slept_since, (*thread).slept)
    };
    let longest = u64::from(global!(longest_turn_ms)) * 1_000_000;
    if longest == 0 || began_ns == 0 || now.saturating_sub(began_ns) <= longest {
        return;
    }
    let record = LoopBlocked {
        header: Header {
            kind: RecordKind::LoopBlocked as u16,
            flags: 0,
            pid: (pid_tgid >> 32) as u32,
            ktime_ns: now,
        },
        tid: pid_tgid as u32,
        turn,
        began_ns,
        slept_ns,
        slept,
    };
    send(&record, Counter::RingFullLifecycle);
}

/// A field of a `struct task_struct` that a tracepoint has given.
#[inline(always)]
fn field(task: *const u8, offset: u32) -> u32 {
    // SAFETY: the verifier knows the type behind the pointer, and the offset as a constant.
    unsafe { typed(task, offset) }
}

/// What `bpf_get_current_pid_tgid` gives where this task is the current one.
#[inline(always)]
fn id(task: *const u8) -> u64 {
    u64::from(field(task, global!(task_tgid))) << 32 | u64::from(field(task, global!(task_pid)))
}

/// The current thread, `previous`, leaves its CPU to `next`.
#[inline(always)]
pub(crate) fn switched(pid_tgid: u64, preempted: bool, previous: *const u8, next: *const u8) {
    if let Some(thread) = THREADS.get_ptr_mut(id(next)) {
        came(thread);
    }
    if let Some(thread) = THREADS.get_ptr_mut(pid_tgid) {
        left(thread, pid_tgid, preempted, previous);
    }
}

#[inline(always)]
fn left(thread: *mut Thread, pid_tgid: u64, preempted: bool, task: *const u8) {
    let now = now();
    let runnable = preempted || field(task, global!(task_state)) == 0;
    let state = if runnable { State::Queued } else { asleep(pid_tgid, task) };
    // SAFETY: the pointer is to a map value, and only its own thread writes this.
    let has_loop = unsafe { (*thread).turn != 0 };
    // A loop's is read at the beginning of its turn.
    let version = if state == State::Asleep && !has_loop { version_of(pid_tgid) } else { 0 };
    // SAFETY: the pointer is to a map value, and the thread is running on this CPU.
    let in_turn = unsafe {
        if (*thread).since == 0 {
            return;
        }
        advance(&raw mut (*thread).clocks.now, thread, now);
        (*thread).since = now;
        (*thread).state = state as u32;
        // What begins with the next event or job begins here: the wait for a CPU after the sleep is for that.
        if state == State::Idle || (state == State::Asleep && !has_loop) {
            (*thread).clocks.turn = (*thread).clocks.now;
            (*thread).clocks.turn_version = version;
        }
        (*thread).turn_began != 0
    };
    if !in_turn {
        return;
    }
    if state == State::Idle {
        turn_ended(thread, pid_tgid, now);
    } else if global!(longest_turn_ms) != 0 && state == State::Asleep {
        // SAFETY: as above.
        let taken = unsafe { (*thread).stack_taken };
        if now.saturating_sub(taken) > BETWEEN_STACKS {
            // SAFETY: as above.
            unsafe { (*thread).stack_taken = now };
            take_stack(pid_tgid, now);
        }
    }
}

/// Takes the stack of the current thread, which holds its loop up.
#[inline(never)]
fn take_stack(pid_tgid: u64, now: u64) {
    if let Some(target) = target((pid_tgid >> 32) as u32) {
        profile::sample(None, pid_tgid, &target, SAMPLE_ASLEEP, now);
    }
}

#[inline(never)]
fn version_of(pid_tgid: u64) -> u32 {
    match target((pid_tgid >> 32) as u32) {
        Some(target) => version(&target),
        None => 0,
    }
}

/// Why the current thread goes to sleep.
#[inline(always)]
fn asleep(pid_tgid: u64, task: *const u8) -> State {
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
    // As for a turn's beginning: room for a single event is a library that waits for its own socket.
    if syscall_kind(number) == SyscallKind::EpollWait as u8 && registers.argument(global!(regs_args[2])) > 1 {
        return State::Idle;
    }
    State::Asleep
}

#[inline(always)]
fn came(thread: *mut Thread) {
    let now = now();
    // SAFETY: the pointer is to a map value; the thread is not running yet.
    unsafe {
        let (since, woken, state) = ((*thread).since, (*thread).woken, (*thread).state);
        if since == 0 {
            return;
        }
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
            let slept = now.saturating_sub(since);
            if state == State::Asleep as u32 && slept > (*thread).slept {
                (*thread).slept = slept;
                (*thread).slept_since = since;
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
