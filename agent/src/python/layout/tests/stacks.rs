//! A stack, walked by the layout, is the one that the interpreter itself sees.

use std::process::Command;

use crate::python::instance::inspect;
use crate::python::layout::{self, CurrentFrame, Instruction, Layout, Lines};
use crate::python::memory::Memory;
use crate::python::testing::Python;

/// Prints the thread's ids, the type of code objects, and a word for each frame; waits in the innermost one, whose
/// instruction is not told for that. The names have one, two and four bytes a character, and C code is among the callers.
const DEEP: &str = r"
import sys, threading
def word(frame, first):
    code = frame.f_code
    name = getattr(code, 'co_qualname', '-')
    lines = getattr(code, 'co_linetable', None) or code.co_lnotab
    lasti = '-' if first else frame.f_lasti
    numbers = [id(code), lasti, code.co_firstlineno, code.co_argcount, code.co_posonlyargcount,
               code.co_kwonlyargcount, code.co_flags]
    return ','.join(map(str, numbers + [code.co_name, name, code.co_filename, lines.hex()])).replace(' ', '')
def λ(unused):
    frame, words = sys._getframe(), []
    while frame:
        words.append(word(frame, not words))
        frame = frame.f_back
    code = type(λ.__code__)
    ids = [threading.get_ident(), getattr(threading, 'get_native_id')(), id(code), code.__basicsize__]
    sys.stdout.buffer.write((' '.join(map(str, ids + words)) + '\n').encode())
    sys.stdout.flush()
    sys.stdin.read()
def größe(a, b, /, c, *, d):
    list(map(λ, [0]))
def 𝔊():
    yield größe(1, 2, 3, d=4)
class Ordinary:
    def method(self):
        if next(𝔊()):
            return
if 'thread' in sys.argv:
    threading.Thread(target=Ordinary().method).start()
else:
    Ordinary().method()
";

pub(super) fn check(command: &mut Command, whose: &str) {
    let command = command.env("PYTHONIOENCODING", "utf-8").env("PYTHONUTF8", "1");
    let Some(python) = Python::start_command(command.args(["-c", DEEP, whose])) else { return };
    let mut words = python.answer.split(' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let [thread_id, native_thread_id, code_type, basicsize] = std::array::from_fn(|_| number());
    let expected: Vec<&str> = words.collect();

    let instance = inspect(python.pid()).unwrap();
    let layout = layout::of(instance.version.series()).unwrap();
    let memory = Memory::open(python.pid()).unwrap();
    let walker = Walker { layout, memory };
    let slot_offset = i64::from(instance.target.slot_offset.cast_signed());
    let tstate = walker.pointer(thread_id.wrapping_add_signed(slot_offset), 0);

    let threads = layout.threads;
    assert_eq!(walker.pointer(tstate, threads.thread_id), thread_id);
    if let Some(cell) = threads.native_thread_id {
        assert_eq!(walker.pointer(tstate, cell), native_thread_id);
    }
    let frames = walker.frames(tstate);
    assert_eq!(frames.iter().map(|frame| walker.word(*frame)).collect::<Vec<_>>(), expected);
    if let Some(cell) = threads.datastack_chunk {
        // `_PyStackChunk { struct _stack_chunk *previous; size_t size; ... }`
        let chunk = walker.pointer(tstate, cell);
        let size = walker.pointer(chunk, 8);
        assert!((chunk..chunk + size).contains(&frames[0].address), "the frame is in the newest chunk");
    }

    let objects = layout.objects;
    assert_eq!(walker.pointer(frames[0].code, objects.ob_type), code_type);
    let name = walker.pointer(code_type, objects.tp_name);
    assert_eq!(walker.memory.read_c_string(name, 8).unwrap(), b"code");
    assert_eq!(walker.pointer(code_type, objects.tp_basicsize), basicsize);
    assert_eq!(u64::from(layout.code.size), basicsize);
}

#[derive(Clone, Copy)]
struct Frame {
    address: u64,
    code: u64,
    /// `None` in the innermost frame.
    lasti: Option<i64>,
}

struct Walker {
    layout: &'static Layout,
    memory: Memory,
}

impl Walker {
    fn pointer(&self, base: u64, offset: u32) -> u64 {
        self.memory.read_u64(base + u64::from(offset)).unwrap()
    }

    fn int(&self, base: u64, offset: u32) -> i32 {
        self.memory.read_i32(base + u64::from(offset)).unwrap()
    }

    /// The stack, innermost first.
    fn frames(&self, tstate: u64) -> Vec<Frame> {
        let cells = self.layout.frames;
        let mut next = match cells.current {
            CurrentFrame::Direct(frame) => self.pointer(tstate, frame),
            CurrentFrame::CFrame { cframe, current_frame } => {
                self.pointer(self.pointer(tstate, cframe), current_frame)
            }
        };
        let mut frames = Vec::new();
        let mut entries = 0;
        while next != 0 {
            let address = next;
            next = self.pointer(address, cells.previous);
            if let Some(owner) = cells.owner {
                let [value] = self.memory.read(address + u64::from(owner.owner)).unwrap();
                if owner.skip_from.is_some_and(|from| value >= from) {
                    entries += 1;
                    continue;
                }
                if let Some(cell) = owner.is_entry {
                    let [value] = self.memory.read::<1>(address + u64::from(cell)).unwrap();
                    assert!(value < 2);
                    entries += u32::from(value);
                }
            }
            let code = self.pointer(address, cells.code) & !cells.code_tag;
            let lasti = match cells.instruction {
                Instruction::Index { lasti, unit } => i64::from(self.int(address, lasti)) * i64::from(unit),
                Instruction::Pointer(pointer) => {
                    let bytecode = code + u64::from(self.layout.code.bytecode.unwrap());
                    self.pointer(address, pointer).wrapping_sub(bytecode).cast_signed()
                }
            };
            assert!((-2..4096).contains(&lasti), "{lasti}");
            frames.push(Frame { address, code, lasti: (!frames.is_empty()).then_some(lasti) });
        }
        // `map` and `next` called functions from C, and so did what began the thread.
        assert!(cells.owner.is_none() || entries >= 2, "{entries}");
        frames
    }

    /// What the program says of a frame.
    fn word(&self, frame: Frame) -> String {
        let cells = self.layout.code;
        let code = frame.code;
        let int = |cell| self.int(code, cell);
        let text = |cell| self.text(self.pointer(code, cell)).replace(' ', "");
        let (Lines::Lnotab(lines) | Lines::LineTable(lines) | Lines::Locations(lines)) = cells.lines;
        let lines = self.bytes(self.pointer(code, lines));
        [
            code.to_string(),
            frame.lasti.map_or_else(|| "-".to_owned(), |lasti| lasti.to_string()),
            int(cells.firstlineno).to_string(),
            int(cells.argcount).to_string(),
            int(cells.posonlyargcount).to_string(),
            int(cells.kwonlyargcount).to_string(),
            int(cells.flags).to_string(),
            text(cells.name),
            cells.qualname.map_or_else(|| "-".to_owned(), text),
            text(cells.filename),
            lines.iter().map(|byte| format!("{byte:02x}")).collect(),
        ]
        .join(",")
    }

    fn bytes(&self, object: u64) -> Vec<u8> {
        let length = self.pointer(object, self.layout.objects.ob_size);
        self.many(object + u64::from(self.layout.strings.bytes_data), length)
    }

    fn text(&self, object: u64) -> String {
        let cells = self.layout.strings;
        let state = self.int(object, cells.state).cast_unsigned();
        let bit = |bit: u32| state >> bit & 1 == 1;
        assert!(bit(cells.compact_bit));
        let data = if bit(cells.ascii_bit) { cells.ascii_data } else { cells.compact_data };
        let width = u64::from(state >> cells.kind_bit & 7);
        let length = self.pointer(object, cells.length);
        let bytes = self.many(object + u64::from(data), length * width);
        let character = |bytes: &[u8]| {
            let mut number = [0; 4];
            number[..bytes.len()].copy_from_slice(bytes);
            char::from_u32(u32::from_le_bytes(number)).unwrap()
        };
        bytes.chunks(usize::try_from(width).unwrap()).map(character).collect()
    }

    fn many(&self, address: u64, length: u64) -> Vec<u8> {
        (0..length).map(|index| self.memory.read::<1>(address + index).unwrap()[0]).collect()
    }
}
