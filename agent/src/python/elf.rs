//! A small reader of 64-bit ELF files: some symbols, the loaded segments, and who the file says it is.
//!
//! Takes an open file and the names of the symbols that are wanted; reads only the tables that hold them. Knows
//! nothing of Python or of processes. The files are anybody's: no content may cause a panic or much memory to be taken.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)
)]

pub mod functions;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object::Endianness;
use object::elf::{
    DT_NEEDED, DT_SONAME, FileHeader64, PF_W, PF_X, PT_LOAD, SHT_DYNAMIC, SHT_DYNSYM, SHT_STRTAB, SHT_SYMTAB,
    SectionHeader64,
};
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable, Sym as _};

/// First bytes of every ELF file.
const MAGIC: [u8; 4] = *b"\x7fELF";
/// `e_ident[EI_CLASS]` of a 32-bit file.
const CLASS_32: u8 = 1;
/// No real program has a larger symbol or string table, in bytes.
const MAX_TABLE: u64 = 256 << 20;
/// No real program has more sections.
const MAX_SECTIONS: u32 = 1 << 16;

/// Why a file could not be read as ELF.
#[derive(Debug)]
pub enum ElfError {
    /// It is something else.
    NotElf,
    /// It is for a 32-bit machine.
    ThirtyTwoBit,
    /// It has tables of unreasonable size.
    TooLarge,
    /// It is damaged.
    Malformed(object::read::Error),
    /// It could not be read.
    Io(io::Error),
}

impl From<io::Error> for ElfError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<object::read::Error> for ElfError {
    fn from(error: object::read::Error) -> Self {
        Self::Malformed(error)
    }
}

/// A `PT_LOAD` program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file.
    pub offset: u64,
    /// Where it starts in memory, before the load bias is added.
    pub address: u64,
    /// How much of it the file holds, in bytes.
    pub file_size: u64,
    /// Whether it holds code.
    pub executable: bool,
    /// Whether it is written to.
    pub writable: bool,
}

/// What is worth knowing of an ELF file.
#[derive(Clone, Debug, Default)]
pub struct Elf {
    /// Addresses of the wanted symbols that the file defines, before the load bias is added.
    pub symbols: HashMap<&'static str, u64>,
    /// Their sizes in bytes.
    pub sizes: HashMap<&'static str, u64>,
    /// `PT_LOAD` segments in the file's order.
    pub segments: Vec<Segment>,
    /// `DT_SONAME`
    pub soname: Option<String>,
    /// `DT_NEEDED`
    pub needed: Vec<String>,
    /// Where in the file `.rodata` is, with the constants: offset and size in bytes.
    pub rodata: Option<(u64, u64)>,
}

impl Elf {
    /// Reads an ELF file; of its symbols only those named in `wanted`.
    ///
    /// `.dynsym` is used where there is one; a file without (wholly static) is looked up in `.symtab`.
    pub fn read(file: &File, wanted: &[&'static str]) -> Result<Self, ElfError> {
        Self::read_tables(file, wanted, false)
    }

    /// The same, but symbols that are not in `.dynsym` are looked up in `.symtab`, which has local ones too.
    pub fn read_with_locals(file: &File, wanted: &[&'static str]) -> Result<Self, ElfError> {
        Self::read_tables(file, wanted, true)
    }

    fn read_tables(file: &File, wanted: &[&'static str], locals: bool) -> Result<Self, ElfError> {
        with_tables(file, |tables| Self::from_tables(tables, wanted, locals))
    }

    fn from_tables(tables: &Tables<'_>, wanted: &[&'static str], locals: bool) -> Result<Self, ElfError> {
        let Tables { data, endian, ref sections, .. } = *tables;
        let mut elf = Self { segments: tables.segments()?, ..Self::default() };
        let dynamic = sections.dynamic_table(endian, data)?;
        for entry in &dynamic {
            let text =
                || Ok::<_, ElfError>(String::from_utf8_lossy(entry.string(dynamic.strings())?).into_owned());
            match entry.tag {
                DT_SONAME => elf.soname = Some(text()?),
                DT_NEEDED => elf.needed.push(text()?),
                _ => {}
            }
        }
        for kind in [SHT_DYNSYM, SHT_SYMTAB] {
            let table = sections.symbols(endian, data, kind)?;
            if table.is_empty() {
                continue;
            }
            // The names are read in one piece: asking the crate for each would be a read of the file each.
            let names = sections.section(table.string_section())?.data(endian, data)?;
            for symbol in table.iter().filter(|symbol| !symbol.is_undefined(endian)) {
                let name = usize::try_from(symbol.st_name(endian)).ok().and_then(|at| names.get(at..));
                let is_named = |wanted: &&&str| name.is_some_and(|name| is_c_string(name, wanted.as_bytes()));
                if let Some(found) = wanted.iter().find(is_named) {
                    elf.symbols.entry(found).or_insert(symbol.st_value(endian));
                    elf.sizes.entry(found).or_insert(symbol.st_size(endian));
                }
            }
            if !locals || elf.symbols.len() == wanted.len() {
                break;
            }
        }
        if let Some((_, section)) = sections.section_by_name(endian, b".rodata") {
            elf.rodata = section.file_range(endian);
        }
        Ok(elf)
    }

    /// Where in the file the byte at a virtual address is; `None` when the file does not hold it (`.bss`).
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let into = address.checked_sub(segment.address)?;
            (into < segment.file_size).then(|| segment.offset.checked_add(into))?
        })
    }

    /// What must be added to the file's addresses, given that the mapping of its code starts at memory address
    /// `start` and file offset `offset`. Wraps, as the addition does.
    pub fn load_bias(&self, start: u64, offset: u64) -> Option<u64> {
        const PAGE_MASK: u64 = 4095;
        let segment = self.segments.iter().find(|segment| {
            let first = segment.offset & !PAGE_MASK;
            segment.executable && offset >= first && offset < segment.offset.saturating_add(segment.file_size)
        })?;
        let address_of_mapping = offset.wrapping_sub(segment.offset).wrapping_add(segment.address);
        Some(start.wrapping_sub(address_of_mapping))
    }
}

/// The tables of an opened file.
struct Tables<'d> {
    data: &'d ReadCache<&'d File>,
    endian: Endianness,
    header: &'d FileHeader64<Endianness>,
    sections: SectionTable<'d, FileHeader64<Endianness>, &'d ReadCache<&'d File>>,
}

impl Tables<'_> {
    fn segments(&self) -> Result<Vec<Segment>, ElfError> {
        let Self { data, endian, header, .. } = *self;
        let headers = header.program_headers(endian, data)?;
        let loaded = headers.iter().filter(|header| header.p_type(endian) == PT_LOAD);
        Ok(loaded
            .map(|header| Segment {
                offset: header.p_offset(endian),
                address: header.p_vaddr(endian),
                file_size: header.p_filesz(endian),
                executable: header.p_flags(endian).0 & PF_X.0 != 0,
                writable: header.p_flags(endian).0 & PF_W.0 != 0,
            })
            .collect())
    }
}

/// Opens the tables of a file that is a 64-bit ELF file, and whose tables have reasonable sizes.
fn with_tables<T>(file: &File, read: impl FnOnce(&Tables<'_>) -> Result<T, ElfError>) -> Result<T, ElfError> {
    let mut ident = [0; 5];
    match file.read_exact_at(&mut ident, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ElfError::NotElf),
        other => other?,
    }
    match ident {
        [a, b, c, d, class] if [a, b, c, d] == MAGIC => {
            if class == CLASS_32 {
                return Err(ElfError::ThirtyTwoBit);
            }
        }
        _ => return Err(ElfError::NotElf),
    }

    let cache = ReadCache::new(file);
    let data = &cache;
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    // Whoever runs a program chooses its file; the tables are read whole, so their sizes are checked first.
    if header.shnum(endian, data)? > MAX_SECTIONS {
        return Err(ElfError::TooLarge);
    }
    let sections = header.sections(endian, data)?;
    let is_too_large = |section: &SectionHeader64<_>| {
        let kind = section.sh_type(endian);
        matches!(kind, SHT_DYNAMIC | SHT_DYNSYM | SHT_SYMTAB | SHT_STRTAB)
            && section.sh_size(endian) > MAX_TABLE
    };
    if sections.iter().any(is_too_large) {
        return Err(ElfError::TooLarge);
    }
    read(&Tables { data, endian, header, sections })
}

/// Whether `bytes` start with `text` and a NUL.
fn is_c_string(bytes: &[u8], text: &[u8]) -> bool {
    bytes.strip_prefix(text).is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_segments(segments: &[(u64, u64, u64, bool)]) -> Elf {
        let segments = segments
            .iter()
            .map(|&(offset, address, file_size, executable)| Segment {
                offset,
                address,
                file_size,
                executable,
                writable: !executable,
            })
            .collect();
        Elf { segments, ..Elf::default() }
    }

    #[test]
    fn addresses_translate_to_file_offsets() {
        let elf = with_segments(&[(0, 0x40_0000, 0x1000, false), (0x1000, 0x40_2000, 0x500, true)]);
        assert_eq!(elf.file_offset(0x40_2010), Some(0x1010));
        assert_eq!(elf.file_offset(0x40_2500), None, "beyond what the file holds");
        assert_eq!(elf.file_offset(0), None);
        assert_eq!(elf.file_offset(u64::MAX), None);
    }

    #[test]
    fn bias_of_a_pie_and_of_a_fixed_executable() {
        let pie = with_segments(&[(0, 0, 0x1000, false), (0x1000, 0x1000, 0x9000, true)]);
        assert_eq!(pie.load_bias(0x7f00_0000_1000, 0x1000), Some(0x7f00_0000_0000));
        assert_eq!(
            pie.load_bias(0x7f00_0000_4000, 0x4000),
            Some(0x7f00_0000_0000),
            "second half of a split mapping"
        );
        let fixed = with_segments(&[(0, 0x40_0000, 0x1000, false), (0x1000, 0x40_1000, 0x9000, true)]);
        assert_eq!(fixed.load_bias(0x40_1000, 0x1000), Some(0));
        let unaligned = with_segments(&[(0x1234, 0x2234, 0x9000, true)]);
        assert_eq!(unaligned.load_bias(0x5000_2000, 0x1000), Some(0x5000_0000));
        assert_eq!(unaligned.load_bias(0x5000_2000, 0x10_0000), None);
    }

    #[test]
    fn reads_this_test_and_refuses_what_is_not_elf() {
        let file = File::open("/proc/self/exe").unwrap();
        let elf = Elf::read(&file, &["main"]).unwrap();
        assert!(elf.needed.iter().any(|name| name.starts_with("libc.so")), "{:?}", elf.needed);
        assert!(elf.segments.iter().any(|segment| segment.executable));
        assert!(elf.rodata.is_some());
        let text = File::open("/proc/self/status").unwrap();
        assert!(matches!(Elf::read(&text, &[]), Err(ElfError::NotElf)));
    }

    #[test]
    fn every_truncation_is_an_error_or_less_knowledge() {
        let whole = std::fs::read("/bin/true").unwrap();
        let path = std::env::temp_dir().join(format!("pitviper-elf-{}", std::process::id()));
        for length in (0..128).chain((128..whole.len()).step_by(509)) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let read = Elf::read(&File::open(&path).unwrap(), &["main"]);
            assert!(length > 64 || read.is_err(), "{length}");
        }
        let mut narrow = whole;
        narrow[4] = CLASS_32;
        std::fs::write(&path, &narrow).unwrap();
        assert!(matches!(Elf::read(&File::open(&path).unwrap(), &[]), Err(ElfError::ThirtyTwoBit)));
        // A sparse file can be as large as its tables claim to be.
        let sections_at =
            usize::try_from(u64::from_le_bytes(narrow[0x28..0x30].try_into().unwrap())).unwrap();
        let second_size = sections_at + 64 + 32;
        narrow[4] = 2;
        narrow[sections_at + 64 + 4] = SHT_SYMTAB.0 as u8;
        narrow[second_size..second_size + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        std::fs::write(&path, &narrow).unwrap();
        assert!(matches!(Elf::read(&File::open(&path).unwrap(), &[]), Err(ElfError::TooLarge)));
        std::fs::remove_file(&path).unwrap();
    }
}
