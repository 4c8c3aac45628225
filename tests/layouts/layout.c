/* Prints the layout file of the CPython whose headers it is compiled with: agent/src/python/layout/v3_*.rs.
 * `cargo xtask layouts` writes those files with it, and tests/tests/layouts.rs compares them. */
#define Py_BUILD_CORE 1
#include <Python.h>

#if PY_VERSION_HEX >= 0x030e0000
#include <internal/pycore_interpframe.h>
#elif PY_VERSION_HEX >= 0x030b0000
#include <internal/pycore_frame.h>
#else
#include <frameobject.h>
#endif
#include <internal/pycore_context.h>
#include <internal/pycore_pystate.h>
#if PY_VERSION_HEX >= 0x03090000
#include <internal/pycore_runtime.h>
#endif
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#if PY_VERSION_HEX >= 0x030b0000
typedef _PyInterpreterFrame Frame;
#else
typedef PyFrameObject Frame;
#endif
typedef PyThreadState Thread;
typedef PyCodeObject Code;

#define CELL(name, type, field) printf("%s: %zu,", name, offsetof(type, field))
#define SOME(name, type, field) printf("%s: Some(%zu),", name, offsetof(type, field))
#define NONE(name) printf("%s: None,", name)

/* What the agent takes for the same in all versions: python/contexts.rs, python/layout/mod.rs, and the kernel side's abi.rs. */
_Static_assert(offsetof(PyTypeObject, tp_dealloc) == 48, "TP_DEALLOC");
_Static_assert(offsetof(PyTypeObject, tp_flags) == 168, "TP_FLAGS");
_Static_assert(Py_TPFLAGS_READY == 1 << 12, "READY");
_Static_assert(offsetof(PyTypeObject, tp_methods) == 232, "TP_METHODS");
_Static_assert(offsetof(PyTypeObject, tp_new) == 312, "TP_NEW");
_Static_assert(sizeof(PyMethodDef) == 32 && offsetof(PyMethodDef, ml_meth) == 8, "METHOD_DEF");
_Static_assert(offsetof(struct _pycontextobject, ctx_entered) == 40, "CONTEXT_ENTERED");
_Static_assert(offsetof(Py_tss_t, _is_initialized) == 0 && offsetof(Py_tss_t, _key) == 4, "TSS_KEY");

/* The lowest bit of `PyASCIIObject.state`, read as a number, that a bit field occupies. */
#define BIT(name, field)                                                                                     \
    do {                                                                                                     \
        PyASCIIObject string;                                                                                \
        unsigned int state;                                                                                  \
        memset(&string, 0, sizeof string);                                                                   \
        string.state.field = 1;                                                                              \
        memcpy(&state, &string.state, sizeof state);                                                         \
        printf("%s: %d,", name, __builtin_ctz(state));                                                       \
    } while (0)

int main(void)
{
    printf("//! CPython %d.%d. Written by `cargo xtask layouts` from the headers of a build; not to be edited.\n\n",
           PY_MAJOR_VERSION, PY_MINOR_VERSION);
    printf("use super::{Code, CurrentFrame, Frames, Instruction, Layout, Lines, Objects, %s%sStrings, Threads};\n\n",
           PY_VERSION_HEX >= 0x030b0000 ? "Owner, " : "", PY_VERSION_HEX >= 0x030d0000 ? "Stated, " : "");
    printf("pub(super) const LAYOUT: Layout = Layout {");
#if PY_VERSION_HEX >= 0x030f0000
    NONE("auto_tss_key");
#elif PY_VERSION_HEX >= 0x030c0000
    SOME("auto_tss_key", _PyRuntimeState, autoTSSkey);
#else
    SOME("auto_tss_key", _PyRuntimeState, gilstate.autoTSSkey);
#endif
    CELL("tstate_context", Thread, context);

    printf("threads: Threads {");
    CELL("thread_id", Thread, thread_id);
#if PY_VERSION_HEX >= 0x030b0000
    SOME("native_thread_id", Thread, native_thread_id);
    SOME("datastack_chunk", Thread, datastack_chunk);
#else
    NONE("native_thread_id");
    NONE("datastack_chunk");
#endif
    printf("},");

    printf("frames: Frames {");
#if PY_VERSION_HEX >= 0x030d0000
    printf("current: CurrentFrame::Direct(%zu),", offsetof(Thread, current_frame));
#elif PY_VERSION_HEX >= 0x030b0000
    printf("current: CurrentFrame::CFrame { cframe: %zu, current_frame: %zu },", offsetof(Thread, cframe),
           offsetof(_PyCFrame, current_frame));
#else
    printf("current: CurrentFrame::Direct(%zu),", offsetof(Thread, frame));
#endif
#if PY_VERSION_HEX >= 0x030b0000
    CELL("previous", Frame, previous);
#else
    CELL("previous", Frame, f_back);
#endif
#if PY_VERSION_HEX >= 0x030d0000
    CELL("code", Frame, f_executable);
#else
    CELL("code", Frame, f_code);
#endif
#if PY_VERSION_HEX >= 0x030e0000
    printf("code_tag: %lu,", (unsigned long)Py_TAG_BITS);
#else
    printf("code_tag: 0,");
#endif
#if PY_VERSION_HEX >= 0x030d0000
    printf("instruction: Instruction::Pointer(%zu),", offsetof(Frame, instr_ptr));
#elif PY_VERSION_HEX >= 0x030b0000
    printf("instruction: Instruction::Pointer(%zu),", offsetof(Frame, prev_instr));
#else
    /* Since 3.10 it counts instructions: `PyFrame_GetLineNumber` multiplies it by their size. */
    printf("instruction: Instruction::Index { lasti: %zu, unit: %zu },", offsetof(Frame, f_lasti),
           PY_VERSION_HEX >= 0x030a0000 ? sizeof(uint16_t) : 1);
#endif
#if PY_VERSION_HEX >= 0x030b0000
    printf("owner: Some(Owner {");
    CELL("owner", Frame, owner);
#if PY_VERSION_HEX >= 0x030e0000
    _Static_assert(FRAME_OWNED_BY_INTERPRETER > FRAME_OWNED_BY_FRAME_OBJECT, "skip_from");
#if PY_VERSION_HEX < 0x030f0000
    _Static_assert(FRAME_OWNED_BY_CSTACK > FRAME_OWNED_BY_INTERPRETER, "skip_from");
#endif
    printf("skip_from: Some(%d),", FRAME_OWNED_BY_INTERPRETER);
#elif PY_VERSION_HEX >= 0x030c0000
    printf("skip_from: Some(%d),", FRAME_OWNED_BY_CSTACK);
#else
    NONE("skip_from");
#endif
#if PY_VERSION_HEX >= 0x030c0000
    NONE("is_entry");
#else
    SOME("is_entry", Frame, is_entry);
#endif
    printf("}),");
#else
    NONE("owner");
#endif
    printf("},");

    printf("code: Code {");
#if PY_VERSION_HEX >= 0x030b0000
    printf("size: %zu,", offsetof(Code, co_code_adaptive));
#else
    printf("size: %zu,", sizeof(Code));
#endif
    CELL("argcount", Code, co_argcount);
    CELL("posonlyargcount", Code, co_posonlyargcount);
    CELL("kwonlyargcount", Code, co_kwonlyargcount);
    CELL("flags", Code, co_flags);
    CELL("firstlineno", Code, co_firstlineno);
    CELL("filename", Code, co_filename);
    CELL("name", Code, co_name);
#if PY_VERSION_HEX >= 0x030b0000
    SOME("qualname", Code, co_qualname);
    printf("lines: Lines::Locations(%zu),", offsetof(Code, co_linetable));
    SOME("bytecode", Code, co_code_adaptive);
#elif PY_VERSION_HEX >= 0x030a0000
    NONE("qualname");
    printf("lines: Lines::LineTable(%zu),", offsetof(Code, co_linetable));
    NONE("bytecode");
#else
    NONE("qualname");
    printf("lines: Lines::Lnotab(%zu),", offsetof(Code, co_lnotab));
    NONE("bytecode");
#endif
    printf("},");

    printf("objects: Objects {");
    CELL("ob_type", PyObject, ob_type);
    CELL("ob_size", PyVarObject, ob_size);
    CELL("tp_name", PyTypeObject, tp_name);
    CELL("tp_basicsize", PyTypeObject, tp_basicsize);
    printf("},");

    printf("strings: Strings {");
    CELL("length", PyASCIIObject, length);
    CELL("state", PyASCIIObject, state);
    BIT("kind_bit", kind);
    BIT("compact_bit", compact);
    BIT("ascii_bit", ascii);
    printf("ascii_data: %zu,", sizeof(PyASCIIObject));
    printf("compact_data: %zu,", sizeof(PyCompactUnicodeObject));
    CELL("bytes_data", PyBytesObject, ob_sval);
    printf("},");

#if PY_VERSION_HEX >= 0x030d0000
    _Static_assert(offsetof(_PyRuntimeState, debug_offsets) == 0, "stated");
    printf("stated: Some(Stated {");
    CELL("current_frame", _Py_DebugOffsets, thread_state.current_frame);
    CELL("thread_id", _Py_DebugOffsets, thread_state.thread_id);
    CELL("native_thread_id", _Py_DebugOffsets, thread_state.native_thread_id);
    CELL("datastack_chunk", _Py_DebugOffsets, thread_state.datastack_chunk);
    printf("}),");
#else
    NONE("stated");
#endif

    printf("};\n");
    return 0;
}
