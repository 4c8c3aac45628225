//! From the code objects of one process to names, files and lines.
//!
//! A code object is read when it is first seen, which is at most a batch of records after the sample; what was read is
//! kept. A sample says what the code object was like at that moment, in its fingerprint: only what has the same one is
//! taken for it. So an address that another code object has got since never gives a false name; nor does an old reading
//! of it. What cannot be read any more is `[unknown]`.

use std::sync::{Arc, LazyLock};

use pitviper_ebpf::abi::SampledFrame;
use rustc_hash::FxHashMap;

use super::{Frame, FrameKind, Stack};
use crate::python::code::{CodeObject, CodeReader};
use crate::python::layout::Layout;
use crate::python::lines::LineTable;

/// Code objects that are remembered of one process; beyond it all are forgotten, and read again.
const MOST_CODES: usize = 65_536;

/// Stands for a frame whose code object is gone.
static UNKNOWN: LazyLock<Frame> = LazyLock::new(|| Frame {
    kind: FrameKind::Python,
    function: "[unknown]".into(),
    file: "".into(),
    first_line: 0,
    line: 0,
});

/// A code object that was read.
struct Known {
    fingerprint: u32,
    function: Arc<str>,
    file: Arc<str>,
    first_line: u32,
    resumable: bool,
    internal: bool,
    lines: LineTable,
}

impl Known {
    fn frame(&self, position: i32) -> Frame {
        let Self { function, file, first_line, lines, .. } = self;
        let (function, file) = (Arc::clone(function), Arc::clone(file));
        Frame { kind: FrameKind::Python, function, file, first_line: *first_line, line: lines.line(position) }
    }
}

/// The code objects of one process.
pub struct Symbols {
    /// `None` once the process cannot be read.
    reader: Option<CodeReader>,
    codes: FxHashMap<u64, Arc<Known>>,
}

impl Symbols {
    /// Opens a process. One that has ended already gives only unknown frames.
    pub fn open(pid: u32, layout: &'static Layout) -> Self {
        Self { reader: CodeReader::open(pid, layout).ok(), codes: FxHashMap::default() }
    }

    /// The same for a child that has just been forked: it has the same code objects at the same places.
    pub fn of_child(&self, pid: u32, layout: &'static Layout) -> Self {
        Self { codes: self.codes.clone(), ..Self::open(pid, layout) }
    }

    /// A stack as it is shown.
    pub fn stack(&mut self, frames: impl Iterator<Item = SampledFrame>, truncated: bool) -> Named {
        let mut named = Named { stack: Stack { frames: Vec::new(), truncated }, unknown: 0 };
        let mut outermost_is_resumable = false;
        for frame in frames {
            let SampledFrame { code, instruction, fingerprint } = frame;
            let Some(known) = self.known(code, fingerprint) else {
                named.stack.frames.push(UNKNOWN.clone());
                named.unknown += 1;
                outermost_is_resumable = false;
                continue;
            };
            if known.internal {
                continue;
            }
            named.stack.frames.push(known.frame(instruction.cast_signed()));
            outermost_is_resumable = known.resumable;
        }
        // A generator is linked with its caller only while it runs; the sample was taken as it came or went.
        named.stack.truncated |= outermost_is_resumable;
        named
    }

    fn known(&mut self, code: u64, fingerprint: u32) -> Option<&Known> {
        let known = self.codes.get(&code).is_some_and(|known| known.fingerprint == fingerprint);
        if !known {
            let read = self.reader.as_mut()?.read(code, fingerprint).ok().flatten();
            let CodeObject { name, file, first_line, resumable, internal, lines } = read?;
            if self.codes.len() >= MOST_CODES {
                self.codes.clear();
            }
            let (function, file) = (name.into(), file.into());
            let known = Known { fingerprint, function, file, first_line, resumable, internal, lines };
            self.codes.insert(code, Arc::new(known));
        }
        self.codes.get(&code).map(|known| &**known)
    }
}

/// A stack with names.
#[derive(Debug)]
pub struct Named {
    /// The stack.
    pub stack: Stack,
    /// How many of its frames are `[unknown]`.
    pub unknown: u64,
}
