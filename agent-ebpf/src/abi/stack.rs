//! Profile samples: the stack of Python frames of one thread, and what the kernel side has to know to walk it.

use core::mem::size_of;

use super::{Clocks, Header, Task};

/// Frames of a sample, from the innermost one outwards; what is further out is left out.
pub const MAX_FRAMES: usize = 128;

/// In a [`StackLayout`]: there is no such cell in this version.
pub const NO_CELL: u32 = u32::MAX;

/// Where the frames and the code objects of a process keep what is read at a sample, in bytes. Value of the `PROFILED` map,
/// keyed by tgid. Frames and code objects are read in one piece each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StackLayout {
    /// From `PyThreadState` to the pointer to the innermost frame, or to the `_PyCFrame` with that pointer.
    pub tstate_frame: u32,
    /// `_PyCFrame.current_frame`, or [`NO_CELL`].
    pub cframe_frame: u32,
    /// How much of a frame is read: all cells that follow are inside. At most 128.
    pub frame_size: u32,
    /// Pointer to the frame that called.
    pub previous: u32,
    /// Pointer to the code object; its lowest three bits are not part of it.
    pub code: u32,
    /// The instruction: an `int`, or since 3.11 a pointer.
    pub instruction: u32,
    /// Bytes that an `int` instruction counts as one.
    pub instruction_unit: u32,
    /// From the code object to its bytecode, if the instruction is a pointer; else [`NO_CELL`].
    pub bytecode: u32,
    /// One byte, or [`NO_CELL`].
    pub owner: u32,
    /// Frames whose owner is this or more are no Python function.
    pub skip_from: u32,
    /// What is read of a code object begins here, a multiple of eight. The cells that follow are relative to it.
    pub code_from: u32,
    /// How much of a code object is read. At most 128.
    pub code_size: u32,
    /// `co_firstlineno`, an `int`.
    pub firstlineno: u32,
    /// Pointer to a `str`.
    pub filename: u32,
    /// Pointer to a `str`.
    pub name: u32,
    /// Pointer to a `str`, or [`NO_CELL`].
    pub qualname: u32,
    /// Pointer to a `bytes`, the table of lines.
    pub lines: u32,
    /// From an ASCII `str` to its characters.
    pub str_data: u32,
}

/// Flag of [`StackSample`]: there were more frames, further out.
pub const SAMPLE_DEEP: u16 = 1;
/// Flag of [`StackSample`]: a frame was not resident in memory; those further out are missing.
pub const SAMPLE_CUT: u16 = 2;
/// Flag of [`StackSample`]: the thread was not running but about to sleep in the midst of a turn of its event loop, for which
/// the loop waits.
pub const SAMPLE_ASLEEP: u16 = 4;

/// A thread of a target was on a CPU when the sampling timer went off; or see [`SAMPLE_ASLEEP`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackSample {
    /// `flags`: [`SAMPLE_DEEP`], [`SAMPLE_CUT`], [`SAMPLE_ASLEEP`], and the epoch.
    pub header: Header,
    /// The thread and its logical task.
    pub task: Task,
    /// The thread's clocks.
    pub clocks: Clocks,
    /// How many [`SampledFrame`]s follow, innermost first. 0: the thread runs no Python.
    pub frames: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
    /// Address of the user-space instruction that the thread was at. 0: not known.
    pub instruction: u64,
}

/// A Python frame of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SampledFrame {
    /// Address of the code object.
    pub code: u64,
    /// Position in its bytecode, an `i32` in bytes: negative before the first instruction, the least `i32` if unknown.
    pub instruction: u32,
    /// What the code object was when the sample was taken; see [`super::fingerprint`].
    pub fingerprint: u32,
}

const _: () = {
    assert!(size_of::<StackLayout>() == 18 * 4);
    assert!(size_of::<StackSample>() == 48 + 56);
    assert!(size_of::<SampledFrame>() == 16);
};

#[cfg(feature = "user")]
// SAFETY: a `repr(C)` struct of integers without padding (asserted above); every bit pattern is valid.
unsafe impl aya::Pod for StackLayout {}
