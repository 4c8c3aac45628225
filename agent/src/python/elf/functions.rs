//! The functions of an ELF file, to be found by an address inside.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

use std::fs::File;

use object::elf::{SHT_DYNSYM, SHT_SYMTAB, STT_FUNC};
use object::read::elf::{SectionHeader as _, Sym as _};

use super::{ElfError, Segment, Tables, with_tables};

/// A name longer than this is cut off: C++ has some of a megabyte.
const MAX_NAME: usize = 512;

/// A function with a symbol that says how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Function {
    start: u64,
    end: u64,
    /// Where in `names` its name is.
    name: (u32, u32),
}

/// The functions of a file.
#[derive(Debug, Default)]
pub struct Functions {
    segments: Vec<Segment>,
    /// By their starts; none overlaps the next one.
    functions: Vec<Function>,
    names: Vec<u8>,
}

impl Functions {
    /// Reads the symbols: those that the file exports, and the others where it has not been stripped.
    pub fn read(file: &File) -> Result<Self, ElfError> {
        with_tables(file, Self::from_tables)
    }

    fn from_tables(tables: &Tables<'_>) -> Result<Self, ElfError> {
        let Tables { data, endian, ref sections, .. } = *tables;
        let mut this = Self { segments: tables.segments()?, ..Self::default() };
        for kind in [SHT_DYNSYM, SHT_SYMTAB] {
            let table = sections.symbols(endian, data, kind)?;
            if table.is_empty() {
                continue;
            }
            let names = sections.section(table.string_section())?.data(endian, data)?;
            for symbol in table.iter().filter(|symbol| !symbol.is_undefined(endian)) {
                if symbol.st_type() != STT_FUNC || symbol.st_size(endian) == 0 {
                    continue;
                }
                let Some(name) = usize::try_from(symbol.st_name(endian)).ok().and_then(|at| names.get(at..))
                else {
                    continue;
                };
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = name.get(..MAX_NAME).unwrap_or(name);
                let (Ok(at), Ok(length)) = (u32::try_from(this.names.len()), u32::try_from(name.len()))
                else {
                    break;
                };
                let start = symbol.st_value(endian);
                let end = start.saturating_add(symbol.st_size(endian));
                this.names.extend_from_slice(name);
                this.functions.push(Function { start, end, name: (at, length) });
            }
        }
        // Of aliases the first one stays: an exported name.
        this.functions.sort_by_key(|function| function.start);
        this.functions.dedup_by_key(|function| function.start);
        Ok(this)
    }

    /// The name of the function that holds the byte at this file offset; `None` where no symbol covers it, as in a function
    /// that is not exported from a stripped file.
    pub fn at(&self, offset: u64) -> Option<String> {
        let address = self.segments.iter().find_map(|segment| {
            let into = offset.checked_sub(segment.offset)?;
            (segment.executable && into < segment.file_size).then(|| segment.address.checked_add(into))?
        })?;
        let after = self.functions.partition_point(|function| function.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let (at, length) = function.name;
        let name = self.names.get(at as usize..)?.get(..length as usize)?;
        (address < function.end).then(|| String::from_utf8_lossy(name).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::elf::Elf;

    #[inline(never)]
    extern "C" fn pitviper_here() -> u64 {
        std::process::id().into()
    }

    #[test]
    fn finds_a_function_of_this_test_by_an_address_inside() {
        let address = pitviper_here as *const () as u64;
        assert!(pitviper_here() > 0);
        let pid = std::process::id();
        let mappings = crate::python::maps::file_mappings(pid).unwrap();
        let mapping = mappings.iter().find(|m| (m.start..m.end).contains(&address)).unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        let functions = Functions::read(&file).unwrap();
        let offset = address.wrapping_sub(mapping.start).wrapping_add(mapping.offset);
        for into in 0..2 {
            let name = functions.at(offset.wrapping_add(into)).unwrap();
            assert!(name.contains("pitviper_here"), "{name}");
        }
        assert_eq!(functions.at(0), None, "no code");
        assert_eq!(functions.at(u64::MAX), None);
        assert!(!Elf::read(&file, &[]).unwrap().segments.is_empty());
    }
}
