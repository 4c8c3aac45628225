//! CPython 3.9. Written by `cargo xtask layouts` from the headers of a build; not to be edited.

use super::{Code, CurrentFrame, Frames, Instruction, Layout, Lines, Objects, Strings, Threads};

pub(super) const LAYOUT: Layout = Layout {
    auto_tss_key: Some(584),
    tstate_context: 240,
    threads: Threads { thread_id: 176, native_thread_id: None, datastack_chunk: None },
    frames: Frames {
        current: CurrentFrame::Direct(24),
        previous: 24,
        code: 32,
        code_tag: 0,
        instruction: Instruction::Index { lasti: 104, unit: 1 },
        owner: None,
    },
    code: Code {
        size: 176,
        argcount: 16,
        posonlyargcount: 20,
        kwonlyargcount: 24,
        flags: 36,
        firstlineno: 40,
        filename: 104,
        name: 112,
        qualname: None,
        lines: Lines::Lnotab(120),
        bytecode: None,
    },
    objects: Objects { ob_type: 8, ob_size: 16, tp_name: 24, tp_basicsize: 32 },
    strings: Strings {
        length: 16,
        state: 32,
        kind_bit: 2,
        compact_bit: 5,
        ascii_bit: 6,
        ascii_data: 48,
        compact_data: 72,
        bytes_data: 32,
    },
    stated: None,
};
