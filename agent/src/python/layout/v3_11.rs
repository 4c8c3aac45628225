//! CPython 3.11. Written by `cargo xtask layouts` from the headers of a build; not to be edited.

use super::{Code, CurrentFrame, Frames, Instruction, Layout, Lines, Objects, Owner, Strings, Threads};

pub(super) const LAYOUT: Layout = Layout {
    auto_tss_key: Some(592),
    tstate_context: 224,
    threads: Threads { thread_id: 152, native_thread_id: Some(160), datastack_chunk: Some(296) },
    frames: Frames {
        current: CurrentFrame::CFrame { cframe: 56, current_frame: 8 },
        previous: 48,
        code: 32,
        code_tag: 0,
        instruction: Instruction::Pointer(56),
        owner: Some(Owner { owner: 69, skip_from: None, is_entry: Some(68) }),
    },
    code: Code {
        size: 184,
        argcount: 56,
        posonlyargcount: 60,
        kwonlyargcount: 64,
        flags: 48,
        firstlineno: 72,
        filename: 112,
        name: 120,
        qualname: Some(128),
        lines: Lines::Locations(136),
        bytecode: Some(184),
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
