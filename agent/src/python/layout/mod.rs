//! Where each CPython version keeps what pitviper reads, one file per version.
//!
//! Offsets are in bytes and hold for 64-bit builds with a GIL, whatever the build options: the structures are part of
//! no ABI, but within one minor version they do not change. Each cell is checked by a test against real interpreters.

mod v3_10;
mod v3_11;
mod v3_12;
mod v3_13;
mod v3_14;
mod v3_8;
mod v3_9;

#[cfg(test)]
mod tests;

/// Offsets into the structures of one CPython version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `_PyRuntimeState.gilstate.autoTSSkey`, a `Py_tss_t`: the key of the slot with each thread's `PyThreadState`.
    pub auto_tss_key: u64,
    /// `PyThreadState.context`, the current `contextvars.Context` or NULL.
    pub tstate_context: u32,
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
        _ => return None,
    })
}

/// The oldest version with a layout.
pub const OLDEST: (u8, u8) = (3, 8);
