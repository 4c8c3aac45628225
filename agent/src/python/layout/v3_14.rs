//! CPython 3.14. Written by `cargo xtask layouts` from the headers of a build; not to be edited.

use super::{
    Code, CurrentFrame, Frames, Instruction, Layout, Lines, Objects, Owner, Stated, Strings, Threads,
};

pub(super) const LAYOUT: Layout = Layout {
    auto_tss_key: Some(2336),
    tstate_context: 208,
    threads: Threads { thread_id: 152, native_thread_id: Some(160), datastack_chunk: Some(232) },
    frames: Frames {
        current: CurrentFrame::Direct(72),
        previous: 8,
        code: 0,
        code_tag: 3,
        instruction: Instruction::Pointer(56),
        owner: Some(Owner { owner: 74, skip_from: Some(3), is_entry: None }),
    },
    code: Code {
        size: 208,
        argcount: 52,
        posonlyargcount: 56,
        kwonlyargcount: 60,
        flags: 48,
        firstlineno: 68,
        filename: 112,
        name: 120,
        qualname: Some(128),
        lines: Lines::Locations(136),
        bytecode: Some(208),
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
    stated: Some(Stated { current_frame: 208, thread_id: 216, native_thread_id: 224, datastack_chunk: 232 }),
};
