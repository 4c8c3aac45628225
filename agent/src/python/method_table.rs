//! The method table of an extension type, found in the file that holds it: stripped or not, in an extension module of its
//! own or linked into the interpreter.
//!
//! The functions of a `PyMethodDef` array are static, and only the array knows them. It is known by its methods' names.
//! What its pointers will be is in the file: in relocations of a position-independent file, else in place.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use object::Endianness;
use object::elf::{FileHeader64, R_AARCH64_RELATIVE, R_X86_64_RELATIVE, SHT_RELA};
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, SectionHeader as _};

use super::elf::{Elf, ElfError, Segment};

/// `sizeof(PyMethodDef)`: `{const char *ml_name; PyCFunction ml_meth; int ml_flags; const char *ml_doc;}`
const METHOD_DEF: u64 = 32;
/// A table reaches no further than this many entries to either side of the method that it is known by.
const FURTHEST: u64 = 16;
/// No method has a longer name.
const LONGEST_NAME: usize = 32;
/// A larger segment is not searched, in bytes.
const MAX_SEGMENT: u64 = 64 << 20;
/// More relocations are not read, in bytes.
const MAX_RELOCATIONS: u64 = 64 << 20;

/// A method as its table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// `ml_name`
    pub name: String,
    /// `ml_meth`, before the load bias is added.
    pub function: u64,
    /// `ml_flags`: the calling convention.
    pub flags: u32,
}

/// The methods of the tables that have one called `known_by`, a name that is rare enough.
pub fn methods(file: &File, known_by: &str) -> Result<Vec<Method>, ElfError> {
    let mut text = known_by.as_bytes().to_vec();
    text.push(0);
    let elf = Elf::read(file, &[])?;
    let names = occurrences(file, &elf, &text)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let image = Image { file, elf: &elf, relocations: relocations(file)? };
    let mut found = Vec::new();
    for entry in image.pointers_to(&names)? {
        // From the entry that it is known by back to the first one, then forward to the end.
        let before = (1..=FURTHEST).map(|index| entry.wrapping_sub(index.wrapping_mul(METHOD_DEF)));
        let after = (0..=FURTHEST).map(|index| entry.wrapping_add(index.wrapping_mul(METHOD_DEF)));
        found.extend(before.map_while(|entry| image.method(entry)));
        found.extend(after.map_while(|entry| image.method(entry)));
    }
    Ok(found)
}

/// Addresses at which `text` lies in data that is not written to.
fn occurrences(file: &File, elf: &Elf, text: &[u8]) -> Result<Vec<u64>, ElfError> {
    let mut found = Vec::new();
    let constant = |segment: &&Segment| !segment.writable && segment.file_size <= MAX_SEGMENT;
    for segment in elf.segments.iter().filter(constant) {
        let bytes = content(file, segment)?;
        let first = text.first().copied().unwrap_or_default();
        for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == first) {
            if bytes.get(at..).is_some_and(|rest| rest.starts_with(text)) {
                found.push(segment.address.wrapping_add(at as u64));
            }
        }
    }
    Ok(found)
}

fn content(file: &File, segment: &Segment) -> Result<Vec<u8>, ElfError> {
    let size = usize::try_from(segment.file_size.min(MAX_SEGMENT)).unwrap_or_default();
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, segment.offset)?;
    Ok(bytes)
}

/// Where the dynamic loader will write, and what, before the load bias is added; in the order of the addresses.
fn relocations(file: &File) -> Result<Vec<(u64, u64)>, ElfError> {
    let cache = ReadCache::new(file);
    let header = FileHeader64::<Endianness>::parse(&cache)?;
    let endian = header.endian()?;
    let mut found = Vec::new();
    for section in header.sections(endian, &cache)?.iter() {
        if section.sh_type(endian) != SHT_RELA || section.sh_size(endian) > MAX_RELOCATIONS {
            continue;
        }
        let Some((entries, _)) = section.rela(endian, &cache)? else { continue };
        found.extend(
            entries
                .iter()
                .filter(|entry| matches!(entry.r_type(endian, false), R_X86_64_RELATIVE | R_AARCH64_RELATIVE))
                .map(|entry| (entry.r_offset.get(endian), entry.r_addend.get(endian).cast_unsigned())),
        );
    }
    found.sort_unstable();
    Ok(found)
}

/// A file as it will be in memory, with a load bias of 0.
struct Image<'a> {
    file: &'a File,
    elf: &'a Elf,
    relocations: Vec<(u64, u64)>,
}

impl Image<'_> {
    /// Addresses of the pointers to any of `targets`.
    fn pointers_to(&self, targets: &[u64]) -> Result<Vec<u64>, ElfError> {
        let mut found: Vec<u64> = self
            .relocations
            .iter()
            .filter(|(_, value)| targets.contains(value))
            .map(|(address, _)| *address)
            .collect();
        if found.is_empty() {
            let written = |segment: &&Segment| segment.writable && segment.file_size <= MAX_SEGMENT;
            for segment in self.elf.segments.iter().filter(written) {
                for (index, word) in content(self.file, segment)?.as_chunks::<8>().0.iter().enumerate() {
                    if targets.contains(&u64::from_le_bytes(*word)) {
                        found.push(segment.address.wrapping_add((index as u64).wrapping_mul(8)));
                    }
                }
            }
        }
        Ok(found)
    }

    /// The table entry at an address; `None` at the end of the table, or if that is no entry.
    fn method(&self, entry: u64) -> Option<Method> {
        let name = self.name(self.word(entry)?)?;
        let function = self.word(entry.wrapping_add(8))?;
        let flags = self.bytes::<4>(entry.wrapping_add(16)).map(u32::from_le_bytes)?;
        Some(Method { name, function, flags })
    }

    fn word(&self, address: u64) -> Option<u64> {
        match self.relocations.binary_search_by_key(&address, |(at, _)| *at) {
            Ok(index) => self.relocations.get(index).map(|(_, value)| *value),
            Err(_) => self.bytes(address).map(u64::from_le_bytes),
        }
    }

    fn name(&self, address: u64) -> Option<String> {
        let bytes = self.bytes::<LONGEST_NAME>(address)?;
        let name = bytes.split(|&byte| byte == 0).next().filter(|name| !name.is_empty())?;
        let is_name = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        (is_name && name.len() < LONGEST_NAME).then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// What the file has at an address; what lies behind its end reads as 0.
    fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let read = self.file.read_at(&mut bytes, self.elf.file_offset(address)?).ok()?;
        (read > 0).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_the_table() {
        let own = File::open("/proc/self/exe").unwrap();
        let absent: String = ["no_", "such_", "method"].concat();
        assert_eq!(methods(&own, &absent).unwrap(), []);
        let text = File::open("/proc/self/status").unwrap();
        assert!(matches!(methods(&text, "put_nowait"), Err(ElfError::NotElf)));
    }
}
