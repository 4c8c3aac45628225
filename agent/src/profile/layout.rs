//! From the layout of a CPython version to the few numbers by which the kernel side walks stacks.

use pitviper_ebpf::abi::{NO_CELL, StackLayout};

use crate::python::layout::{CurrentFrame, Instruction, Layout, Lines};

/// What the kernel side needs of a layout.
pub fn stack_layout(layout: &Layout) -> StackLayout {
    let Layout { frames, code, strings, .. } = layout;
    let (tstate_frame, cframe_frame) = match frames.current {
        CurrentFrame::Direct(frame) => (frame, NO_CELL),
        CurrentFrame::CFrame { cframe, current_frame } => (cframe, current_frame),
    };
    let (instruction, instruction_unit, instruction_end) = match frames.instruction {
        Instruction::Index { lasti, unit } => (lasti, unit, lasti + 4),
        Instruction::Pointer(pointer) => (pointer, 1, pointer + 8),
    };
    // Where `owner` is but means nothing yet, in 3.11, there is no frame to skip.
    let skip = frames.owner.and_then(|owner| Some((owner.owner, owner.skip_from?)));
    let owner_end = skip.map_or(0, |(owner, _)| owner + 1);
    let frame_end = [frames.previous + 8, frames.code + 8, instruction_end, owner_end].into_iter().max();
    let (Lines::Lnotab(lines) | Lines::LineTable(lines) | Lines::Locations(lines)) = code.lines;
    let pointers = [Some(code.filename), Some(code.name), code.qualname, Some(lines)];
    let begin = pointers.iter().flatten().copied().fold(code.firstlineno, u32::min) / 8 * 8;
    let end = pointers.iter().flatten().copied().fold(code.firstlineno, u32::max) + 8;
    StackLayout {
        tstate_frame,
        cframe_frame,
        frame_size: frame_end.unwrap_or(0).next_multiple_of(8),
        previous: frames.previous,
        code: frames.code,
        instruction,
        instruction_unit,
        bytecode: match frames.instruction {
            Instruction::Pointer(_) => code.bytecode.unwrap_or(NO_CELL),
            Instruction::Index { .. } => NO_CELL,
        },
        owner: skip.map_or(NO_CELL, |(owner, _)| owner),
        skip_from: skip.map_or(0, |(_, from)| u32::from(from)),
        code_from: begin,
        code_size: end - begin,
        firstlineno: code.firstlineno - begin,
        filename: code.filename - begin,
        name: code.name - begin,
        qualname: code.qualname.map_or(NO_CELL, |qualname| qualname - begin),
        lines: lines - begin,
        str_data: strings.ascii_data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::layout;

    /// The kernel side reads no more than it has room for, and every cell is inside of what it reads.
    #[test]
    fn every_version_fits() {
        const ROOM: u32 = 128;
        for minor in 8..=14 {
            let read = stack_layout(layout::of((3, minor)).unwrap());
            assert!(read.frame_size <= ROOM && read.code_size <= ROOM, "3.{minor}: {read:?}");
            for cell in [read.filename, read.name, read.lines] {
                assert!(cell + 8 <= read.code_size && cell % 8 == 0, "3.{minor}: {read:?}");
            }
            assert!(read.firstlineno + 4 <= read.code_size);
            assert!(read.qualname == NO_CELL || read.qualname + 8 <= read.code_size);
            assert!(read.instruction + 4 <= read.frame_size && read.previous + 8 <= read.frame_size);
            assert_eq!(read.code_from % 8, 0);
            assert_eq!(read.owner == NO_CELL, minor < 12, "3.{minor}: shims on the C stack");
            assert_eq!(read.bytecode == NO_CELL, minor < 11, "3.{minor}");
        }
    }
}
