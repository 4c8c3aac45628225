//! Code objects: what they are called, where they are defined, and the lines of their instructions.
//!
//! Reads one code object of a live process, which goes on running meanwhile: [`CodeReader::fingerprint`] tells whether
//! what was read is what a sample had seen.

use std::io;

use pitviper_ebpf::abi::fingerprint;

use super::layout::{Layout, Lines};
use super::lines::LineTable;
use super::memory::Memory;

/// `CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR`: `Include/cpython/code.h`.
const CO_RESUMABLE: u32 = 0x20 | 0x80 | 0x200;

/// Longest name that is read, in characters; a longer one is cut.
const LONGEST_NAME: usize = 512;
/// Longest path that is read, in characters: PATH_MAX.
const LONGEST_PATH: usize = 4096;
/// Longest table of lines that is read; the rest of the code then has the last line of it.
const LONGEST_LINES: usize = 256 * 1024;

/// A code object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeObject {
    /// `co_qualname`; before 3.11 `co_name`.
    pub name: String,
    /// `co_filename`
    pub file: String,
    /// `co_firstlineno`
    pub first_line: u32,
    /// It is a generator, a coroutine or an asynchronous generator: it never runs but called by another frame.
    pub resumable: bool,
    /// It is the interpreter's own, like `_Py_InitCleanup` below every `__init__` in 3.13: nobody wrote it.
    pub internal: bool,
    /// The lines of its instructions.
    pub lines: LineTable,
}

/// Reads the code objects of one process.
#[derive(Debug)]
pub struct CodeReader {
    memory: Memory,
    layout: &'static Layout,
    /// Address of `PyCode_Type`, once it has been seen.
    code_type: Option<u64>,
}

impl CodeReader {
    /// A reader of the memory of a process.
    pub fn open(pid: u32, layout: &'static Layout) -> io::Result<Self> {
        Ok(Self { memory: Memory::open(pid)?, layout, code_type: None })
    }

    /// Reads the code object at an address, if it still is the one of that fingerprint.
    pub fn read(&mut self, address: u64, expected: u32) -> io::Result<Option<CodeObject>> {
        let missing = u64::from(expected) & fingerprint::CODE;
        // One that lacks all parts says nothing.
        if missing == fingerprint::CODE
            || self.fingerprint(address, missing)? != expected
            || !self.is_code(address)?
        {
            return Ok(None);
        }
        let code = self.code(address)?;
        // It may have gone while it was read.
        Ok((self.fingerprint(address, missing)? == expected).then_some(code))
    }

    fn code(&self, address: u64) -> io::Result<CodeObject> {
        let layout = &self.layout.code;
        let first_line = self.memory.read_u32(address.wrapping_add(u64::from(layout.firstlineno)))?;
        let name = self.pointer(address, layout.qualname.unwrap_or(layout.name))?;
        let file = self.pointer(address, layout.filename)?;
        let (Lines::Lnotab(lines) | Lines::LineTable(lines) | Lines::Locations(lines)) = layout.lines;
        let table = self.bytes(self.pointer(address, lines)?, LONGEST_LINES)?;
        let lines = match layout.lines {
            Lines::Lnotab(_) => LineTable::from_lnotab(&table, first_line),
            Lines::LineTable(_) => LineTable::from_pep_626(&table, first_line),
            Lines::Locations(_) => LineTable::from_locations(&table, first_line),
        };
        Ok(CodeObject {
            name: self.string(name, LONGEST_NAME)?,
            file: self.string(file, LONGEST_PATH)?,
            // Python/specialize.c: name and file are the same static string, and there is no line.
            internal: name == file && first_line == 0,
            first_line,
            resumable: self.memory.read_u32(address.wrapping_add(u64::from(layout.flags)))? & CO_RESUMABLE
                != 0,
            lines,
        })
    }

    /// The fingerprint of what is at an address now, without the parts that are `missing`.
    pub fn fingerprint(&self, address: u64, missing: u64) -> io::Result<u32> {
        let layout = &self.layout.code;
        let has = |part| missing & part == 0;
        let mut hash = 0;
        let mut mix = |word| hash = fingerprint::mix(hash, word);
        mix(u64::from(self.memory.read_u32(address.wrapping_add(u64::from(layout.firstlineno)))?));
        let name = self.pointer(address, layout.name)?;
        if has(fingerprint::NAME) {
            mix(self.string_hash(name)?);
        }
        let qualname = layout.qualname.map(|cell| self.pointer(address, cell)).transpose()?;
        if let Some(qualname) = qualname.filter(|qualname| *qualname != name && has(fingerprint::QUALNAME)) {
            mix(self.string_hash(qualname)?);
        }
        if has(fingerprint::LINES) {
            let (Lines::Lnotab(cell) | Lines::LineTable(cell) | Lines::Locations(cell)) = layout.lines;
            let table = self.pointer(address, cell)?.wrapping_add(fingerprint::BYTES_SIZE);
            let [size, first, second] =
                [0, 16, 24].map(|offset| self.memory.read_u64(table.wrapping_add(offset)));
            mix(fingerprint::text(size?, first?, second?));
        }
        if has(fingerprint::FILENAME) {
            mix(self.string_hash(self.pointer(address, layout.filename)?)?);
        }
        Ok(fingerprint::finish(hash, missing))
    }

    fn string_hash(&self, address: u64) -> io::Result<u64> {
        let head = address.wrapping_add(fingerprint::STR_LENGTH);
        let (length, hash) = (self.memory.read_u64(head)?, self.memory.read_u64(head.wrapping_add(8))?);
        if hash != fingerprint::NOT_HASHED {
            return Ok(hash);
        }
        let data = u64::from(self.layout.strings.ascii_data);
        let tail = address.wrapping_add(fingerprint::tail(data, length));
        Ok(fingerprint::text(
            length,
            self.memory.read_u64(tail)?,
            self.memory.read_u64(tail.wrapping_add(8))?,
        ))
    }

    /// Whether the object's type is `code`.
    fn is_code(&mut self, address: u64) -> io::Result<bool> {
        let objects = &self.layout.objects;
        let of_type = self.pointer(address, objects.ob_type)?;
        if self.code_type.is_none() {
            let name = self.pointer(of_type, objects.tp_name)?;
            if self.memory.read_c_string(name, 8)? == b"code" {
                self.code_type = Some(of_type);
            }
        }
        Ok(self.code_type == Some(of_type))
    }

    fn pointer(&self, address: u64, offset: u32) -> io::Result<u64> {
        self.memory.read_u64(address.wrapping_add(u64::from(offset)))
    }

    /// A `bytes`, cut at `limit`.
    fn bytes(&self, address: u64, limit: usize) -> io::Result<Vec<u8>> {
        let size = self.pointer(address, self.layout.objects.ob_size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(limit).min(limit)];
        self.memory.read_into(address.wrapping_add(u64::from(self.layout.strings.bytes_data)), &mut bytes)?;
        Ok(bytes)
    }

    /// A compact `str`, cut at `limit` characters. Surrogates, as of file names that are not UTF-8, become U+FFFD.
    fn string(&self, address: u64, limit: usize) -> io::Result<String> {
        let layout = &self.layout.strings;
        let length = self.pointer(address, layout.length)?;
        let length = usize::try_from(length).unwrap_or(limit).min(limit);
        let state = self.memory.read_u32(address.wrapping_add(u64::from(layout.state)))?;
        let bit = |bit: u32| state >> bit & 1 == 1;
        if !bit(layout.compact_bit) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a compact string"));
        }
        let data = if bit(layout.ascii_bit) { layout.ascii_data } else { layout.compact_data };
        let data = address.wrapping_add(u64::from(data));
        let width = match state >> layout.kind_bit & 7 {
            width @ (1 | 2 | 4) => width as usize,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a string")),
        };
        let mut bytes = vec![0; length * width];
        self.memory.read_into(data, &mut bytes)?;
        let character = |bytes: &[u8]| {
            let number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
            char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
        Ok(bytes.chunks_exact(width).map(character).collect())
    }
}

#[cfg(test)]
mod tests;
