//! CPython 3.11: `_PyRuntimeState` in `Include/internal/pycore_runtime.h`, `PyThreadState` in `Include/cpython/pystate.h`.

use super::Layout;

pub(super) const LAYOUT: Layout = Layout { auto_tss_key: 592, tstate_context: 224 };
