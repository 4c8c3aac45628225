//! The greenlets of a process with gevent: what tells the one that runs, and where new ones are made.
//!
//! A greenlet that was given no context shows none, or a base one that the interpreter made for it, and so do all others.
//! The greenlet itself is what gevent switches: it stands for itself.

use std::path::PathBuf;

use object::Endianness;
use object::elf::{FileHeader64, PT_TLS, R_X86_64_DTPMOD64, SHT_RELA};
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};

use super::elf::Elf;
use super::maps::{self, MappedFile};
use super::memory::Memory;

/// `PyTypeObject PyGreenlet_Type`: what greenlet exports beside its `PyInit__greenlet`.
const TYPE: &str = "PyGreenlet_Type";
/// `offsetof(PyTypeObject, tp_dealloc)`
const TP_DEALLOC: u64 = 48;
/// `offsetof(PyTypeObject, tp_init)`
const TP_INIT: u64 = 296;
/// Thread-local storage of greenlet 2 and later: a guard and a pointer.
const STORAGE: u64 = 16;
/// Where in it the pointer is.
const POINTER: u32 = 8;
/// A process has no more modules with thread-local storage.
const MOST_MODULES: u64 = 4096;

/// greenlet in one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greenlets {
    /// The file, as the agent reaches it while the process lives.
    pub path: PathBuf,
    /// File offset of `green_init`.
    pub init: u64,
    /// File offset of `green_dealloc`.
    pub dealloc: u64,
    /// Address of `PyGreenlet_Type`.
    pub kind: u64,
    /// Number of the module in the dynamic thread vector.
    pub module: u32,
    /// Where in its thread-local storage the pointer to the thread's state is.
    pub offset: u32,
}

/// Finds greenlet in a process that uses gevent. `None` in others, although they may have it: SQLAlchemy's greenlets run
/// in the context of the task that they are part of.
pub fn find(pid: u32) -> Option<Greenlets> {
    let mappings = maps::file_mappings(pid).ok()?;
    let code = || mappings.iter().filter(|mapping| mapping.executable);
    // gevent is loaded after greenlet, which is complete by then.
    code().find(|mapping| {
        let folder = mapping.path.parent().and_then(|folder| folder.file_name());
        folder.is_some_and(|folder| folder == "gevent")
    })?;
    let mapping = code().find(|mapping| {
        mapping.file_name().starts_with("_greenlet.") && mapping.file_name().ends_with(".so")
    })?;
    let opened = maps::open(pid, mapping).ok()?;
    let elf = Elf::read(&opened.file, &[TYPE]).ok()?;
    let bias = elf.load_bias(mapping.start, mapping.offset)?;
    let memory = Memory::open(pid).ok()?;
    let kind = elf.symbols.get(TYPE)?.wrapping_add(bias);
    let slot = |offset| {
        let function = memory.read_u64(kind.wrapping_add(offset)).ok()?;
        elf.file_offset(function.wrapping_sub(bias))
    };
    let (init, dealloc) = (slot(TP_INIT)?, slot(TP_DEALLOC)?);
    let module = memory.read_u64(module_slot(&opened)?.wrapping_add(bias)).ok()?;
    let module = (1..=MOST_MODULES).contains(&module).then(|| u32::try_from(module).ok())??;
    Some(Greenlets { path: opened.path, init, dealloc, kind, module, offset: POINTER })
}

/// Where the dynamic loader writes the module's number, before the load bias is added; `None` if the thread-local storage
/// is not as it is known.
fn module_slot(opened: &MappedFile) -> Option<u64> {
    let cache = ReadCache::new(&opened.file);
    let header = FileHeader64::<Endianness>::parse(&cache).ok()?;
    let endian = header.endian().ok()?;
    let storage =
        header.program_headers(endian, &cache).ok()?.iter().find(|header| header.p_type(endian) == PT_TLS)?;
    if storage.p_memsz(endian) != STORAGE {
        return None;
    }
    let mut slots = Vec::new();
    for section in header.sections(endian, &cache).ok()?.iter().filter(|it| it.sh_type(endian) == SHT_RELA) {
        let Some((entries, _)) = section.rela(endian, &cache).ok()? else { continue };
        let own = entries.iter().filter(|entry| entry.r_type(endian, false) == R_X86_64_DTPMOD64);
        slots.extend(own.map(|entry| entry.r_offset.get(endian)));
    }
    match slots.as_slice() {
        [slot] => Some(*slot),
        _ => None,
    }
}
