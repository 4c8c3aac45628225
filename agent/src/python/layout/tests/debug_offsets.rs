//! Since 3.13 `_PyRuntime` begins with a `_Py_DebugOffsets`, in which the running interpreter states many cells itself:
//! `Include/internal/pycore_runtime.h`, since 3.14 `pycore_debug_offsets.h`.

use crate::python::instance::inspect;
use crate::python::layout::{self, CurrentFrame, Instruction, Layout, Lines};
use crate::python::loader::{self, FileKind};
use crate::python::maps;
use crate::python::memory::Memory;
use crate::python::testing::Python;

/// Positions in `_Py_DebugOffsets`, in words of eight bytes: of two fields, and of structs, whose first field is their size.
struct Positions {
    current_frame: u64,
    thread_id: u64,
    interpreter_frame: u64,
    code_object: u64,
    pyobject: u64,
    type_object: u64,
    bytes_object: u64,
    unicode_object: u64,
}

const V3_13: Positions = Positions {
    current_frame: 23,
    thread_id: 24,
    interpreter_frame: 28,
    code_object: 34,
    pyobject: 44,
    type_object: 46,
    bytes_object: 64,
    unicode_object: 67,
};

const V3_14: Positions = Positions {
    current_frame: 26,
    thread_id: 27,
    interpreter_frame: 31,
    code_object: 39,
    pyobject: 50,
    type_object: 52,
    bytes_object: 74,
    unicode_object: 77,
};

const V3_15: Positions = Positions {
    current_frame: 26,
    thread_id: 30,
    interpreter_frame: 39,
    code_object: 47,
    pyobject: 58,
    type_object: 60,
    bytes_object: 86,
    unicode_object: 89,
};

pub(super) fn check(interpreter: &str) {
    let python = Python::start(interpreter, "").unwrap();
    let instance = inspect(python.pid()).unwrap();
    let positions = match instance.version.series() {
        (3, 13) => V3_13,
        (3, 14) => V3_14,
        (3, 15) => V3_15,
        _ => return,
    };
    let layout = layout::of(instance.version.series()).unwrap();
    let stated =
        Stated { memory: Memory::open(python.pid()).unwrap(), at: runtime(&python, &instance.interpreter) };
    assert_eq!(stated.memory.read(stated.at).unwrap(), *b"xdebugpy");
    compare(layout, &positions, &stated);
}

fn compare(layout: &Layout, positions: &Positions, stated: &Stated) {
    let Layout { auto_tss_key: _, tstate_context: _, stated: _, threads, frames, code, objects, strings } =
        *layout;
    let same = |cell: u32, structure: u64, field: u64| {
        assert_eq!(u64::from(cell), stated.word(structure + field), "word {structure} + {field}");
    };
    let CurrentFrame::Direct(current) = frames.current else { panic!() };
    same(current, positions.current_frame, 0);
    same(threads.thread_id, positions.thread_id, 0);
    same(threads.native_thread_id.unwrap(), positions.thread_id, 1);
    same(threads.datastack_chunk.unwrap(), positions.thread_id, 2);
    let Instruction::Pointer(instruction) = frames.instruction else { panic!() };
    same(frames.previous, positions.interpreter_frame, 1);
    same(frames.code, positions.interpreter_frame, 2);
    same(instruction, positions.interpreter_frame, 3);
    same(frames.owner.unwrap().owner, positions.interpreter_frame, 5);
    let Lines::Locations(lines) = code.lines else { panic!() };
    for (field, cell) in [
        (1, code.filename),
        (2, code.name),
        (3, code.qualname.unwrap()),
        (4, lines),
        (5, code.firstlineno),
        (6, code.argcount),
        (9, code.bytecode.unwrap()),
    ] {
        same(cell, positions.code_object, field);
    }
    same(objects.ob_type, positions.pyobject, 1);
    same(objects.tp_name, positions.type_object, 1);
    same(objects.ob_size, positions.bytes_object, 1);
    same(strings.bytes_data, positions.bytes_object, 2);
    same(strings.state, positions.unicode_object, 1);
    same(strings.length, positions.unicode_object, 2);
    same(strings.ascii_data, positions.unicode_object, 3);
}

/// The offsets that a process states.
struct Stated {
    memory: Memory,
    at: u64,
}

impl Stated {
    fn word(&self, index: u64) -> u64 {
        self.memory.read_u64(self.at + 8 * index).unwrap()
    }
}

/// Address of `_PyRuntime`.
fn runtime(python: &Python, interpreter: &std::path::Path) -> u64 {
    let mappings = maps::file_mappings(python.pid()).unwrap();
    let code = mappings.iter().find(|mapping| mapping.executable && mapping.path == interpreter).unwrap();
    let file = maps::open(python.pid(), code).unwrap().file;
    let FileKind::Interpreter(file) = loader::recognise(&file, code.file_name()).unwrap() else { panic!() };
    file.runtime.wrapping_add(file.elf.load_bias(code.start, code.offset).unwrap())
}
