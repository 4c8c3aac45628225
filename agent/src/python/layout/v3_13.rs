//! CPython 3.13: `_PyRuntimeState` in `Include/internal/pycore_runtime.h`, `PyThreadState` in `Include/cpython/pystate.h`.

use super::Layout;

pub(super) const LAYOUT: Layout = Layout { auto_tss_key: 2160, tstate_context: 208 };
