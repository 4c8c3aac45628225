//! A small reader of 64-bit ELF files: some symbols, the loaded segments, and who the file says it is.
//!
//! Takes an open file and the names of the symbols that are wanted; reads only the tables that hold them. Knows
//! nothing of Python or of processes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object::Endianness;
use object::elf::{DT_NEEDED, DT_SONAME, PF_X, PT_LOAD};
use object::read::ReadCache;
use object::read::elf::{
    ElfFile64, FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _, SymbolTable,
};

/// First bytes of every ELF file.
const MAGIC: [u8; 4] = *b"\x7fELF";
/// `e_ident[EI_CLASS]` of a 32-bit file.
const CLASS_32: u8 = 1;
/// Symbol and dynamic string tables beyond this are not worth reading, in bytes.
const MAX_TABLE: usize = 256 << 20;

/// Why a file could not be read as ELF.
#[derive(Debug)]
pub enum ElfError {
    /// It is something else.
    NotElf,
    /// It is for a 32-bit machine.
    ThirtyTwoBit,
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

/// A defined symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Virtual address as the file has it: before the load bias is added.
    pub address: u64,
    /// Size in bytes, 0 when unknown.
    pub size: u64,
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
}

/// What is worth knowing of an ELF file.
#[derive(Clone, Debug, Default)]
pub struct Elf {
    /// The wanted symbols that the file defines.
    pub symbols: HashMap<&'static str, Symbol>,
    /// `PT_LOAD` segments in the file's order.
    pub segments: Vec<Segment>,
    /// `DT_SONAME`
    pub soname: Option<String>,
    /// `DT_NEEDED`
    pub needed: Vec<String>,
    /// The file's read-only data, in memory addresses: `.rodata`.
    pub rodata: Option<Segment>,
}

impl Elf {
    /// Reads an ELF file; of its symbols only those named in `wanted`.
    ///
    /// `.dynsym` is used where there is one; a file without (wholly static) is looked up in `.symtab`.
    pub fn read(file: &File, wanted: &[&'static str]) -> Result<Self, ElfError> {
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
        let parsed: ElfFile64<'_, Endianness, _> = ElfFile64::parse(&cache)?;
        let endian = parsed.endian();
        let mut elf = Self::default();

        for header in parsed.elf_header().program_headers(endian, &cache)? {
            if header.p_type(endian) == PT_LOAD {
                elf.segments.push(Segment {
                    offset: header.p_offset(endian),
                    address: header.p_vaddr(endian),
                    file_size: header.p_filesz(endian),
                    executable: header.p_flags(endian).0 & PF_X.0 != 0,
                });
            }
        }

        let dynamic = parsed.elf_dynamic_table()?;
        for entry in &dynamic {
            let text =
                || Ok::<_, ElfError>(String::from_utf8_lossy(entry.string(dynamic.strings())?).into_owned());
            match entry.tag {
                DT_SONAME => elf.soname = Some(text()?),
                DT_NEEDED => elf.needed.push(text()?),
                _ => {}
            }
        }

        let mut table: &SymbolTable<'_, _, _> = parsed.elf_dynamic_symbol_table();
        if table.is_empty() {
            table = parsed.elf_symbol_table();
        }
        if !table.is_empty() {
            // The table is read in one piece: asking the crate for each name would be a read of the file each.
            let section = parsed.elf_section_table().section(table.string_section())?;
            let names = section.data(endian, &cache)?;
            if names.len() <= MAX_TABLE {
                for symbol in table.iter() {
                    let name = usize::try_from(symbol.st_name(endian)).ok().and_then(|at| names.get(at..));
                    let found = name
                        .and_then(|name| wanted.iter().find(|wanted| is_c_string(name, wanted.as_bytes())));
                    if let (Some(found), false) = (found, symbol.is_undefined(endian)) {
                        let address = symbol.st_value(endian);
                        elf.symbols.insert(found, Symbol { address, size: symbol.st_size(endian) });
                    }
                }
            }
        }

        if let Some((_, section)) = parsed.elf_section_table().section_by_name(endian, b".rodata") {
            elf.rodata = section.file_range(endian).map(|(offset, file_size)| Segment {
                offset,
                address: section.sh_addr(endian),
                file_size,
                executable: false,
            });
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
        const PAGE: u64 = 4096;
        let segment = self.segments.iter().find(|segment| {
            let first = segment.offset - segment.offset % PAGE;
            segment.executable && offset >= first && offset < segment.offset.saturating_add(segment.file_size)
        })?;
        let address_of_mapping = offset.wrapping_sub(segment.offset).wrapping_add(segment.address);
        Some(start.wrapping_sub(address_of_mapping))
    }
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
        std::fs::remove_file(&path).unwrap();
    }
}
