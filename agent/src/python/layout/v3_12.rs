//! CPython 3.12. Written by `cargo xtask layouts` from the headers of a build; not to be edited.

use super::{Code, CurrentFrame, Frames, Instruction, Layout, Lines, Objects, Owner, Strings, Threads};

pub(super) const LAYOUT: Layout = Layout {
    auto_tss_key: Some(1544),
    tstate_context: 208,
    threads: Threads { thread_id: 136, native_thread_id: Some(144), datastack_chunk: Some(232) },
    frames: Frames {
        current: CurrentFrame::CFrame { cframe: 56, current_frame: 0 },
        previous: 8,
        code: 0,
        code_tag: 0,
        instruction: Instruction::Pointer(56),
        owner: Some(Owner { owner: 70, skip_from: Some(3), is_entry: None }),
    },
    code: Code {
        size: 192,
        argcount: 52,
        posonlyargcount: 56,
        kwonlyargcount: 60,
        flags: 48,
        firstlineno: 68,
        filename: 112,
        name: 120,
        qualname: Some(128),
        lines: Lines::Locations(136),
        bytecode: Some(192),
    },
    objects: Objects { ob_type: 8, ob_size: 16, tp_name: 24, tp_basicsize: 32 },
    strings: Strings {
        length: 16,
        state: 32,
        kind_bit: 2,
        compact_bit: 5,
        ascii_bit: 6,
        ascii_data: 40,
        compact_data: 56,
        bytes_data: 32,
    },
    stated: None,
};
