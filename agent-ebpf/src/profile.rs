//! One profile sample: the Python stack of the current thread, walked from its `PyThreadState`.
//!
//! Runs in the interrupt of a perf event's timer, so it may interrupt any other program of its CPU: it has an area of its
//! own, and does not wait. What is not resident in memory cannot be read there, and ends the walk. The walk needs no
//! native program counter and no GIL; the thread does not run meanwhile, so its frames stand still.
//!
//! Everything that the walk knows lies in that area instead of registers: then the verifier does not follow its values
//! from frame to frame, and every turn of the loop looks the same to it.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::generated::{bpf_get_stack, bpf_probe_read_user};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use pitviper_ebpf::abi::{
    CONTEXT_IS_BASE, Counter, Header, MAX_FRAMES, NO_CELL, RecordKind, SAMPLE_CUT, SAMPLE_DEEP, SampledFrame,
    StackLayout, StackSample, Target, Task, fingerprint,
};

use crate::context::{context_in, thread_state};
use crate::greenlet;
use crate::maps::{count, epoch, send_bytes};
use crate::thread::{clocks_if_known, turn};

/// Frames looked at, with those that are skipped.
const MAX_STEPS: u64 = 160;
/// The most that is read of a frame or a code object at a time, a power of two.
const WINDOW: usize = 128;

/// The area of a sample.
#[repr(C)]
struct Walk {
    record: StackSample,
    frames: [SampledFrame; MAX_FRAMES],
    layout: StackLayout,
    /// The next frame.
    frame: u64,
    /// How many there are in `frames`.
    count: u64,
    /// What was read last.
    window: [u64; WINDOW / 8],
    /// The code object that was looked at last, and what its fingerprint is made of. It is the same again in a recursion.
    code: u64,
    hash: u64,
    unread: u64,
    /// The string that was hashed last and what came of it: neighbouring frames often share their file name.
    string: u64,
    string_hash: u64,
    words: [u64; 4],
}

#[map]
static PROFILED: HashMap<u32, StackLayout> = HashMap::with_max_entries(16_384, 0);
#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// The child of a process that is profiled is profiled.
#[inline(always)]
pub(crate) fn inherit(parent: u32, child: u32) {
    if let Some(layout) = PROFILED.get_ptr(parent) {
        // SAFETY: the pointer is to a map value; the daemon replaces values whole.
        let layout: &StackLayout = unsafe { &*layout };
        if PROFILED.insert(child, layout, 0).is_err() {
            count(Counter::MapUpdateFailed);
        }
    }
}

/// The process is no longer the one that was to be profiled.
#[inline(always)]
pub(crate) fn forget(pid: u32) {
    let _ = PROFILED.remove(pid);
}

/// Takes a sample of the current thread. Nothing may interrupt it that takes samples too: it is in the interrupt of the
/// timer's event `sampled`, or, without, in the scheduler, which has interrupts disabled.
#[inline(always)]
pub(crate) fn sample(
    sampled: Option<*mut c_void>,
    pid_tgid: u64,
    target: &Target,
    flags: u16,
    ktime_ns: u64,
) {
    let pid = (pid_tgid >> 32) as u32;
    let Some(layout) = PROFILED.get_ptr(pid) else { return };
    let Some(walk) = WALK.get_ptr_mut(0) else { return };
    let state = thread_state::<true>(target).unwrap_or(0);
    let (mut context, version) = if state == 0 { (0, 0) } else { context_in::<true>(state, target) };
    if target.greenlet_type != 0 && (context == 0 || context & CONTEXT_IS_BASE != 0) {
        context = greenlet::current(target).unwrap_or(context);
    }
    // SAFETY: the pointers are to map values; the walk is this CPU's, and nothing interrupts its interrupt but the same
    // of no other program that uses it.
    unsafe {
        (*walk).layout = *layout;
        (*walk).record = StackSample {
            header: Header { kind: RecordKind::StackSample as u16, flags: epoch() | flags, pid, ktime_ns },
            task: Task { tid: pid_tgid as u32, turn: turn(pid_tgid), context },
            clocks: clocks_if_known(pid_tgid, ktime_ns, version),
            frames: 0,
            reserved: 0,
            instruction: 0,
        };
        if let Some(sampled) = sampled {
            let instruction = (&raw mut (*walk).record.instruction).cast();
            bpf_get_stack(sampled, instruction, size_of::<u64>() as u32, u64::from(BPF_F_USER_STACK));
        }
        (*walk).count = 0;
        (*walk).code = 0;
        (*walk).string = 0;
        (*walk).frame = if state == 0 { 0 } else { innermost(walk, state) };
    }
    let mut step = 0;
    while step < MAX_STEPS {
        if !next(walk) {
            break;
        }
        step += 1;
    }
    if step == MAX_STEPS {
        mark(walk, SAMPLE_DEEP);
    }
    if send(walk) {
        count(Counter::SampleRecords);
    }
}

/// `PyThreadState.frame`, `PyThreadState.cframe->current_frame`, or `PyThreadState.current_frame`.
#[inline(always)]
fn innermost(walk: *mut Walk, state: u64) -> u64 {
    // SAFETY: the pointer is to this CPU's map value.
    let (frame, in_cframe) = unsafe {
        let layout = &raw const (*walk).layout;
        (
            (&raw const (*layout).tstate_frame).read_volatile(),
            (&raw const (*layout).cframe_frame).read_volatile(),
        )
    };
    if !read(walk, Into::Words, state + u64::from(frame), 8) {
        return 0;
    }
    if in_cframe != NO_CELL && !read(walk, Into::Words, word(walk, 0) + u64::from(in_cframe), 8) {
        return 0;
    }
    word(walk, 0)
}

/// Takes the next frame; tells whether there may be another one.
#[inline(never)]
fn next(walk: *mut Walk) -> bool {
    // SAFETY: the pointer is to this CPU's map value.
    let (frame, layout) = unsafe { ((&raw const (*walk).frame).read_volatile(), &raw const (*walk).layout) };
    if frame == 0 {
        return false;
    }
    // SAFETY: as above.
    let size = unsafe { (&raw const (*layout).frame_size).read_volatile() };
    if !read(walk, Into::Window, frame, size) {
        count(Counter::StackReadFailed);
        mark(walk, SAMPLE_CUT);
        return false;
    }
    // SAFETY: as above.
    unsafe {
        (*walk).frame = cell(walk, (&raw const (*layout).previous).read_volatile());
        let owner = (&raw const (*layout).owner).read_volatile();
        let skip_from = u64::from((&raw const (*layout).skip_from).read_volatile());
        if owner != NO_CELL && cell(walk, owner) & 0xff >= skip_from {
            return true;
        }
    }
    // SAFETY: as above.
    if unsafe { (&raw const (*walk).count).read_volatile() } >= MAX_FRAMES as u64 {
        mark(walk, SAMPLE_DEEP);
        return false;
    }
    // SAFETY: as above.
    let (code, instruction) = unsafe {
        let code = cell(walk, (&raw const (*layout).code).read_volatile()) & !7;
        let instruction = cell(walk, (&raw const (*layout).instruction).read_volatile());
        let bytecode = (&raw const (*layout).bytecode).read_volatile();
        let unit = (&raw const (*layout).instruction_unit).read_volatile();
        if bytecode == NO_CELL {
            (code, (instruction as u32).wrapping_mul(unit))
        } else {
            (code, clamp(instruction.wrapping_sub(code + u64::from(bytecode))))
        }
    };
    // SAFETY: as above.
    if unsafe { (&raw const (*walk).code).read_volatile() } != code {
        print(walk, code);
    }
    push(walk, code, instruction)
}

/// A difference of addresses as an `i32`; one that is none, as the least one.
#[inline(always)]
fn clamp(difference: u64) -> u32 {
    let sign = difference >> 31;
    if sign == 0 || sign == (1 << 33) - 1 { difference as u32 } else { 1 << 31 }
}

/// Adds a frame.
#[inline(never)]
fn push(walk: *mut Walk, code: u64, instruction: u32) -> bool {
    // SAFETY: the pointer is to this CPU's map value, and the index is bounded.
    unsafe {
        let index = (&raw const (*walk).count).read_volatile();
        if index >= MAX_FRAMES as u64 {
            return false;
        }
        let fingerprint = fingerprint::finish(
            (&raw const (*walk).hash).read_volatile(),
            (&raw const (*walk).unread).read_volatile(),
        );
        let frames = (&raw mut (*walk).frames).cast::<SampledFrame>();
        frames.add(index as usize).write_volatile(SampledFrame { code, instruction, fingerprint });
        (&raw mut (*walk).count).write_volatile(index + 1);
    }
    true
}

/// Puts the fingerprint of a code object together; see [`fingerprint`].
#[inline(always)]
fn print(walk: *mut Walk, code: u64) {
    // SAFETY: the pointer is to this CPU's map value.
    let layout = unsafe {
        (*walk).code = code;
        (*walk).hash = 0;
        (*walk).unread = 0;
        &raw const (*walk).layout
    };
    // SAFETY: as above.
    let (from, size) = unsafe {
        ((&raw const (*layout).code_from).read_volatile(), (&raw const (*layout).code_size).read_volatile())
    };
    if !read(walk, Into::Window, code + u64::from(from), size) {
        missing(walk, fingerprint::CODE);
        return;
    }
    // SAFETY: as above.
    let (file, name, qualified, lines) = unsafe {
        mix(walk, cell(walk, (&raw const (*layout).firstlineno).read_volatile()) & 0xffff_ffff);
        let qualname = (&raw const (*layout).qualname).read_volatile();
        let name = cell(walk, (&raw const (*layout).name).read_volatile());
        (
            cell(walk, (&raw const (*layout).filename).read_volatile()),
            name,
            if qualname == NO_CELL { name } else { cell(walk, qualname) },
            cell(walk, (&raw const (*layout).lines).read_volatile()),
        )
    };
    string(walk, name, fingerprint::NAME);
    if qualified != name {
        string(walk, qualified, fingerprint::QUALNAME);
    }
    line_table(walk, lines);
    string(walk, file, fingerprint::FILENAME);
}

/// Mixes a `str` into the fingerprint.
#[inline(never)]
fn string(walk: *mut Walk, address: u64, part: u64) {
    // SAFETY: the pointer is to this CPU's map value.
    unsafe {
        if (&raw const (*walk).string).read_volatile() == address {
            mix(walk, (&raw const (*walk).string_hash).read_volatile());
            return;
        }
    }
    if !read(walk, Into::Words, address + fingerprint::STR_LENGTH, 16) {
        missing(walk, part);
        return;
    }
    let (length, mut hash) = (word(walk, 0), word(walk, 1));
    if hash == fingerprint::NOT_HASHED {
        // SAFETY: as above.
        let data = unsafe { (&raw const (*walk).layout.str_data).read_volatile() };
        if !read(walk, Into::Words, address + fingerprint::tail(u64::from(data), length), 16) {
            missing(walk, part);
            return;
        }
        hash = fingerprint::text(length, word(walk, 0), word(walk, 1));
    }
    // SAFETY: as above.
    unsafe {
        (*walk).string = address;
        (*walk).string_hash = hash;
    }
    mix(walk, hash);
}

/// Mixes the table of lines, a `bytes`, into the fingerprint.
#[inline(never)]
fn line_table(walk: *mut Walk, address: u64) {
    if !read(walk, Into::Words, address + fingerprint::BYTES_SIZE, 32) {
        missing(walk, fingerprint::LINES);
        return;
    }
    mix(walk, fingerprint::text(word(walk, 0), word(walk, 2), word(walk, 3)));
}

#[inline(always)]
fn mix(walk: *mut Walk, word: u64) {
    // SAFETY: the pointer is to this CPU's map value.
    unsafe {
        let hash = &raw mut (*walk).hash;
        hash.write_volatile(fingerprint::mix(hash.read_volatile(), word));
    }
}

#[inline(always)]
fn missing(walk: *mut Walk, part: u64) {
    // SAFETY: the pointer is to this CPU's map value.
    unsafe {
        let unread = &raw mut (*walk).unread;
        unread.write_volatile(unread.read_volatile() | part);
    }
}

#[inline(always)]
fn mark(walk: *mut Walk, flag: u16) {
    // SAFETY: the pointer is to this CPU's map value.
    unsafe {
        let flags = &raw mut (*walk).record.header.flags;
        flags.write_volatile(flags.read_volatile() | flag);
    }
}

/// The cell at an offset of what was read into the window: as many of eight bytes as there are to the next eight.
#[inline(never)]
fn cell(walk: *mut Walk, offset: u32) -> u64 {
    let index = (offset as usize / 8) & (WINDOW / 8 - 1);
    // SAFETY: the pointer is to this CPU's map value, and the index is inside the window.
    let word = unsafe { (&raw const (*walk).window).cast::<u64>().add(index).read_volatile() };
    word >> (offset % 8 * 8)
}

#[inline(always)]
fn word(walk: *mut Walk, index: usize) -> u64 {
    // SAFETY: the pointer is to this CPU's map value; the index is one of four.
    unsafe { (&raw const (*walk).words).cast::<u64>().add(index & 3).read_volatile() }
}

/// Where [`read`] puts what it reads.
#[derive(Clone, Copy)]
enum Into {
    Window,
    Words,
}

/// Reads memory of the current process; false if it is not resident.
#[inline(always)]
fn read(walk: *mut Walk, into: Into, address: u64, size: u32) -> bool {
    // SAFETY: the pointer is to this CPU's map value; the size is bounded by what there is room for.
    unsafe {
        match into {
            Into::Window => {
                if size > WINDOW as u32 {
                    return false;
                }
                bpf_probe_read_user((&raw mut (*walk).window).cast(), size, address as *const _) == 0
            }
            Into::Words => {
                bpf_probe_read_user((&raw mut (*walk).words).cast(), size, address as *const _) == 0
            }
        }
    }
}

/// Sends the sample with its frames.
#[inline(never)]
fn send(walk: *mut Walk) -> bool {
    // SAFETY: the pointer is to this CPU's map value, and the count is bounded by the room for frames behind the record.
    unsafe {
        let count = (&raw const (*walk).count).read_volatile();
        if count > MAX_FRAMES as u64 {
            return false;
        }
        (*walk).record.frames = count as u32;
        let size = (size_of::<StackSample>() + size_of::<SampledFrame>() * count as usize) as u64;
        send_bytes(walk.cast_const().cast(), size, Counter::RingFullSample)
    }
}
