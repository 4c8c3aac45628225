//! Where each CPython version keeps what pitviper reads, one file per version.
//!
//! Offsets are in bytes and hold for 64-bit builds with a GIL, whatever the build options: the structures are part of
//! no ABI, but within one minor version they do not change. The files are written by `cargo xtask layouts` from the headers of
//! real builds, which the system tests compare again; the tests here read live interpreters by them.

mod v3_10;
mod v3_11;
mod v3_12;
mod v3_13;
mod v3_14;
mod v3_15;
mod v3_8;
mod v3_9;

#[cfg(test)]
mod tests;

/// Offsets into the structures of one CPython version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `_PyRuntimeState.gilstate.autoTSSkey`, a `Py_tss_t`: the key of the slot with each thread's `PyThreadState`. Since 3.15
    /// a thread-local variable takes its place, see [`super::gilstate`].
    pub auto_tss_key: Option<u64>,
    /// `PyThreadState.context`, the current `contextvars.Context` or NULL.
    pub tstate_context: u32,
    /// Which thread a `PyThreadState` belongs to, and where its stack is.
    pub threads: Threads,
    /// The stack of Python frames.
    pub frames: Frames,
    /// What a frame runs.
    pub code: Code,
    /// The heads of objects and types.
    pub objects: Objects,
    /// `str` and `bytes`.
    pub strings: Strings,
    /// Where the interpreter states some of these cells itself. Since 3.13.
    pub stated: Option<Stated>,
}

/// Cells of `PyThreadState` (`Include/cpython/pystate.h`) that tell whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// `thread_id`: `pthread_self()`, which is the thread pointer with glibc and musl on x86-64.
    pub thread_id: u32,
    /// `native_thread_id`, an `unsigned long`: the kernel's thread id as the thread's own pid namespace counts. Since 3.11.
    pub native_thread_id: Option<u32>,
    /// `datastack_chunk`: the newest chunk of memory for frames; each greenlet has chunks of its own. Since 3.11.
    pub datastack_chunk: Option<u32>,
}

/// A `PyFrameObject` before 3.11, since then an `_PyInterpreterFrame`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// How the innermost frame is found.
    pub current: CurrentFrame,
    /// The frame that called this one, or NULL: `f_back`, `previous`.
    pub previous: u32,
    /// The code object: `f_code`, since 3.13 `f_executable`, which may be another object in a frame that is to be skipped.
    pub code: u32,
    /// Bits of the pointer to the code object that are no part of the address: `Py_TAG_BITS` since 3.14, else 0.
    pub code_tag: u64,
    /// Where in the code it is.
    pub instruction: Instruction,
    /// Which frames are no Python function. Before 3.11 there are none.
    pub owner: Option<Owner>,
}

/// From `PyThreadState` to the innermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentFrame {
    /// `PyThreadState.frame`, since 3.13 `current_frame`.
    Direct(u32),
    /// `PyThreadState.cframe->current_frame` of 3.11 and 3.12.
    CFrame {
        /// `PyThreadState.cframe`, a pointer into the C stack.
        cframe: u32,
        /// `_PyCFrame.current_frame`.
        current_frame: u32,
    },
}

/// The instruction that a frame is at. `co_linetable` and `co_lnotab` count bytes from the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `f_lasti`, an `int`: it times `unit` is the position in bytes; negative before the first instruction.
    Index {
        /// Offset of `f_lasti`.
        lasti: u32,
        /// Bytes that it counts as one.
        unit: u32,
    },
    /// `prev_instr`, since 3.13 `instr_ptr`: an address in the code object; less [`Code::bytecode`] it is the position in
    /// bytes. In a frame that has not begun `prev_instr` lies before the bytecode.
    Pointer(u32),
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `owner`, a `char`: an `enum _frameowner` (`Include/internal/pycore_frame.h`).
    pub owner: u32,
    /// Frames whose owner is this or more stand for C code that called Python, and are to be skipped:
    /// `FRAME_OWNED_BY_CSTACK` in 3.12 and 3.13, `FRAME_OWNED_BY_INTERPRETER` since 3.14.
    pub skip_from: Option<u8>,
    /// `is_entry`, a `bool`: C code called this frame. 3.11 only; later versions have a frame of its own for it.
    pub is_entry: Option<u32>,
}

/// `PyCodeObject`: `Include/cpython/code.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Size of the fixed part in bytes, which is `PyCode_Type.tp_basicsize`.
    pub size: u32,
    /// `co_argcount`, an `int`.
    pub argcount: u32,
    /// `co_posonlyargcount`, an `int`.
    pub posonlyargcount: u32,
    /// `co_kwonlyargcount`, an `int`.
    pub kwonlyargcount: u32,
    /// `co_flags`, an `int`.
    pub flags: u32,
    /// `co_firstlineno`, an `int`: of a decorated function the line of its first decorator (since 3.8).
    pub firstlineno: u32,
    /// `co_filename`, a `str`.
    pub filename: u32,
    /// `co_name`, a `str`.
    pub name: u32,
    /// `co_qualname`, a `str`. Since 3.11.
    pub qualname: Option<u32>,
    /// From instructions to lines, a `bytes`.
    pub lines: Lines,
    /// `co_code_adaptive`: the instructions. Since 3.11; before they are in an object of their own.
    pub bytecode: Option<u32>,
}

/// The table of lines of a code object, by its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// `co_lnotab` of 3.8 and 3.9: `Objects/lnotab_notes.txt`.
    Lnotab(u32),
    /// `co_linetable` of 3.10, PEP 626: `Objects/lnotab_notes.txt`.
    LineTable(u32),
    /// `co_linetable` since 3.11, PEP 657: `Objects/locations.md` (since 3.13 `InternalDocs/code_objects.md`).
    Locations(u32),
}

/// `PyObject`, `PyVarObject` and `PyTypeObject`: `Include/object.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objects {
    /// `PyObject.ob_type`
    pub ob_type: u32,
    /// `PyVarObject.ob_size`, a `Py_ssize_t`.
    pub ob_size: u32,
    /// `PyTypeObject.tp_name`, a C string.
    pub tp_name: u32,
    /// `PyTypeObject.tp_basicsize`, a `Py_ssize_t`.
    pub tp_basicsize: u32,
}

/// `PyASCIIObject`, `PyCompactUnicodeObject` (`Include/cpython/unicodeobject.h`) and `PyBytesObject`. Names in code objects
/// are compact strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strings {
    /// `PyASCIIObject.length`, a `Py_ssize_t`: the number of characters.
    pub length: u32,
    /// `PyASCIIObject.state`, read as an `unsigned int`.
    pub state: u32,
    /// First of the three bits `state.kind`: 1, 2 or 4 bytes a character.
    pub kind_bit: u32,
    /// The bit `state.compact`: the characters follow the object's head.
    pub compact_bit: u32,
    /// The bit `state.ascii`.
    pub ascii_bit: u32,
    /// Where the characters of a compact ASCII string are: `sizeof(PyASCIIObject)`.
    pub ascii_data: u32,
    /// Where those of another compact string are: `sizeof(PyCompactUnicodeObject)`.
    pub compact_data: u32,
    /// `PyBytesObject.ob_sval`: the bytes; [`Objects::ob_size`] of them.
    pub bytes_data: u32,
}

/// Positions in `_Py_DebugOffsets` (`Include/internal/pycore_debug_offsets.h`), with which `_PyRuntime` begins: where the
/// offsets of cells of `PyThreadState` on both sides of `context` are stated, each a `uint64_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stated {
    /// `thread_state.current_frame`
    pub current_frame: usize,
    /// `thread_state.thread_id`
    pub thread_id: usize,
    /// `thread_state.native_thread_id`
    pub native_thread_id: usize,
    /// `thread_state.datastack_chunk`
    pub datastack_chunk: usize,
}

impl Layout {
    /// Whether an interpreter whose `_PyRuntime` begins with these bytes is laid out like this, as far as it says.
    pub fn agrees_with(&self, runtime: &[u8]) -> bool {
        let Some(stated) = self.stated else { return true };
        let Stated { current_frame, thread_id, native_thread_id, datastack_chunk } = stated;
        let says = |at: usize, cell: Option<u32>| {
            let word = runtime.get(at..).and_then(|rest| rest.first_chunk());
            word.is_some_and(|word| cell.is_some_and(|cell| u64::from_ne_bytes(*word) == u64::from(cell)))
        };
        let frame = match self.frames.current {
            CurrentFrame::Direct(frame) => Some(frame),
            CurrentFrame::CFrame { .. } => None,
        };
        says(current_frame, frame)
            && says(thread_id, Some(self.threads.thread_id))
            && says(native_thread_id, self.threads.native_thread_id)
            && says(datastack_chunk, self.threads.datastack_chunk)
    }
}

/// `Py_tss_t._key`; `Py_tss_t._is_initialized` is at 0. The same in all versions: `Include/cpython/pythread.h`.
pub const TSS_KEY: u64 = 4;

/// The layout of a CPython version, or `None` when it is not known.
pub const fn of(series: (u8, u8)) -> Option<&'static Layout> {
    Some(match series {
        (3, 8) => &v3_8::LAYOUT,
        (3, 9) => &v3_9::LAYOUT,
        (3, 10) => &v3_10::LAYOUT,
        (3, 11) => &v3_11::LAYOUT,
        (3, 12) => &v3_12::LAYOUT,
        (3, 13) => &v3_13::LAYOUT,
        (3, 14) => &v3_14::LAYOUT,
        (3, 15) => &v3_15::LAYOUT,
        _ => return None,
    })
}

/// The oldest version with a layout.
pub const OLDEST: (u8, u8) = (3, 8);
/// The newest.
pub const NEWEST: (u8, u8) = (3, 15);
