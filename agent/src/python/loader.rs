//! Recognises an ELF file as a CPython and learns what holds for every process that maps it.
//!
//! Takes an opened file and its name; gives a [`FileKind`], kept per file so that a host full of workers of one
//! interpreter costs one look at it. Knows no process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, LazyLock};

use super::elf::{Elf, ElfError};
use super::gilstate::{self, Variable};
use super::known_files::KnownFiles;
use super::version::Version;

/// `_PyRuntimeState _PyRuntime`: everything global to the interpreter. Exported since 3.7.
const RUNTIME: &str = "_PyRuntime";
/// `PyObject *PyContext_CopyCurrent(void)`. Exported since 3.7.
const COPY_CURRENT: &str = "PyContext_CopyCurrent";
/// `int PyContext_Enter(PyObject *)`. Exported since 3.7.
const ENTER: &str = "PyContext_Enter";
/// `PyTypeObject PyContext_Type`. Exported since 3.7.
const CONTEXT_TYPE: &str = "PyContext_Type";
/// `const unsigned long Py_Version`: `PY_VERSION_HEX`. Exported since 3.11.
const VERSION: &str = "Py_Version";
/// `PyThreadState *PyGILState_GetThisThreadState(void)`: the thread's own, whether or not it holds the GIL. Exported.
const THIS_THREAD_STATE: &str = "PyGILState_GetThisThreadState";
/// `void Py_Initialize(void)`: exported by every CPython, and by no program that only loads one.
const INITIALIZE: &str = "Py_Initialize";

/// `_Py_Debug_Cookie`: since 3.13 `_PyRuntime` begins with a `_Py_DebugOffsets`, and that with this.
const DEBUG_COOKIE: [u8; 8] = *b"xdebugpy";
/// As much of `_Py_DebugOffsets` as is of use, in bytes.
const STATES: usize = 512;
/// More read-only data than this is not searched for a version, in bytes.
const MAX_RODATA: u64 = 64 << 20;
/// Files remembered; beyond it the memory starts anew.
const MAX_FILES: usize = 1024;

/// A file with a CPython in it that pitviper may know how to read.
#[derive(Debug)]
pub struct Interpreter {
    /// Which CPython.
    pub version: Version,
    /// A build without the GIL.
    pub free_threaded: bool,
    /// Address of `_PyRuntime`, before the load bias is added.
    pub runtime: u64,
    /// Size of `_PyRuntime` in bytes, 0 if that is not known.
    pub runtime_size: u64,
    /// File offset of `PyContext_CopyCurrent`'s first instruction.
    pub copy_current: u64,
    /// File offset of `PyContext_Enter`'s first instruction.
    pub enter: Option<u64>,
    /// Address of `PyContext_Type`, before the load bias is added.
    pub context_type: u64,
    /// Where each thread keeps its `PyThreadState` since 3.15, if that could be found out.
    pub gilstate: Option<Variable>,
    /// The first bytes of `_PyRuntime`, where that states offsets: since 3.13.
    pub states: Option<[u8; STATES]>,
    /// For the load bias.
    pub elf: Elf,
}

/// What a file is, as far as CPython goes.
#[derive(Clone, Debug)]
pub enum FileKind {
    /// A CPython.
    Interpreter(Arc<Interpreter>),
    /// A CPython of a time before `_PyRuntime` and context variables: 3.6 or older.
    Ancient(Version),
    /// A CPython whose version could not be found out.
    UnknownVersion,
    /// A 32-bit file, perhaps with a CPython.
    ThirtyTwoBit,
    /// Something else. `needs_libpython`: once it has started it will have loaded a CPython.
    Other {
        /// One of the libraries that it is linked with is a libpython.
        needs_libpython: bool,
    },
}

/// Looks at a file, or remembers having done so. `name` is the last component of its path.
pub fn recognise(file: &File, name: &str) -> io::Result<FileKind> {
    static KNOWN: LazyLock<KnownFiles<FileKind>> = LazyLock::new(|| KnownFiles::new(MAX_FILES));

    Ok(KNOWN.get(file, |file| look(file, name))?.1)
}

fn look(file: &File, name: &str) -> io::Result<FileKind> {
    let wanted = [RUNTIME, COPY_CURRENT, ENTER, CONTEXT_TYPE, VERSION, THIS_THREAD_STATE, INITIALIZE];
    let elf = match Elf::read(file, &wanted) {
        Ok(elf) => elf,
        Err(ElfError::ThirtyTwoBit) => return Ok(FileKind::ThirtyTwoBit),
        Err(ElfError::NotElf | ElfError::TooLarge | ElfError::Malformed(_)) => {
            return Ok(FileKind::Other { needs_libpython: false });
        }
        Err(ElfError::Io(error)) => return Err(error),
    };
    let named =
        elf.soname.as_deref().and_then(Version::from_file_name).or_else(|| Version::from_file_name(name));
    let symbol = |name| elf.symbols.get(name).copied();
    let (Some(runtime), Some(copy_current), Some(context_type)) =
        (symbol(RUNTIME), symbol(COPY_CURRENT), symbol(CONTEXT_TYPE))
    else {
        return Ok(match (named, elf.symbols.contains_key(INITIALIZE)) {
            (Some(version), true) => FileKind::Ancient(version),
            (None, true) => FileKind::UnknownVersion,
            (_, false) => FileKind::Other {
                needs_libpython: elf.needed.iter().any(|name| name.starts_with("libpython")),
            },
        });
    };
    let Some(copy_current) = elf.file_offset(copy_current) else {
        return Ok(FileKind::Other { needs_libpython: false });
    };

    let debug = debug_offsets(file, &elf, runtime);
    let version = exported_version(file, &elf)
        .or_else(|| debug.and_then(|debug| Version::from_hex(debug.version)))
        .or_else(|| written_version(file, elf.rodata?, named))
        .or(named);
    let Some(version) = version else { return Ok(FileKind::UnknownVersion) };
    let free_threaded = match debug {
        Some(debug) => debug.free_threaded,
        None => elf
            .soname
            .as_deref()
            .unwrap_or(name)
            .split(".so")
            .next()
            .is_some_and(|name| Version::from_file_name(name).is_some() && name.ends_with('t')),
    };
    Ok(FileKind::Interpreter(Arc::new(Interpreter {
        version,
        free_threaded,
        runtime,
        runtime_size: elf.sizes.get(RUNTIME).copied().unwrap_or(0),
        copy_current,
        enter: symbol(ENTER).and_then(|address| elf.file_offset(address)),
        context_type,
        gilstate: gilstate_variable(file, &elf),
        states: debug.map(|debug| debug.bytes),
        elf,
    })))
}

/// The head of a `_Py_DebugOffsets`.
#[derive(Clone, Copy)]
struct DebugOffsets {
    version: u64,
    free_threaded: bool,
    bytes: [u8; STATES],
}

/// `_Py_DebugOffsets { char cookie[8]; uint64_t version; uint64_t free_threaded; ... }`, as initialised in the file.
fn debug_offsets(file: &File, elf: &Elf, runtime: u64) -> Option<DebugOffsets> {
    let mut bytes = [0; STATES];
    file.read_exact_at(&mut bytes, elf.file_offset(runtime)?).ok()?;
    let ([cookie, version, free_threaded, ..], _) = bytes.as_chunks::<8>() else { return None };
    (*cookie == DEBUG_COOKIE).then(|| DebugOffsets {
        version: u64::from_ne_bytes(*version),
        free_threaded: u64::from_ne_bytes(*free_threaded) != 0,
        bytes,
    })
}

/// What `PyGILState_GetThisThreadState` reads. Before 3.15 it calls others, and this is `None`.
fn gilstate_variable(file: &File, elf: &Elf) -> Option<Variable> {
    let address = *elf.symbols.get(THIS_THREAD_STATE)?;
    let mut code = [0; gilstate::LONGEST];
    let read = file.read_at(&mut code, elf.file_offset(address)?).ok()?;
    gilstate::decode(code.get(..read)?, address)
}

/// The value of `Py_Version`.
fn exported_version(file: &File, elf: &Elf) -> Option<Version> {
    let mut hex = [0; 8];
    file.read_exact_at(&mut hex, elf.file_offset(*elf.symbols.get(VERSION)?)?).ok()?;
    Version::from_hex(u64::from_ne_bytes(hex))
}

/// `PY_VERSION` among the string constants: what `Py_GetVersion` begins with. Needed before 3.11 only. `named` is what
/// the file's name says; without a name every 3.8, 3.9 or 3.10 will do, but not two different ones. The linker may have
/// merged the constant into the end of a longer one, such as an install prefix `/opt/python/3.9.18`.
fn written_version(file: &File, (offset, size): (u64, u64), named: Option<Version>) -> Option<Version> {
    let mut bytes = vec![0; usize::try_from(size.min(MAX_RODATA)).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    let wanted = |version: &Version| match named {
        Some(named) => named.series() == version.series(),
        None => matches!(version.series(), (3, 8..=10)),
    };
    let mut found = bytes
        .split(|&byte| byte == 0)
        .filter_map(|text| text.rsplit(|&byte| byte == b'/').next())
        .filter(|text| text.len() < 16 && text.starts_with(b"3."))
        .filter_map(|text| Version::from_text(std::str::from_utf8(text).ok()?))
        .filter(wanted);
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::testing;

    fn library(version: &str, series: &str) -> Option<File> {
        File::open(format!("{}/{version}/lib/libpython{series}.so.1.0", testing::PYENV)).ok()
    }

    #[test]
    fn knows_each_version_by_its_own_word() {
        for (version, series) in [
            ("3.8.18", "3.8"),
            ("3.9.18", "3.9"),
            ("3.10.13", "3.10"),
            ("3.11.7", "3.11"),
            ("3.12.1", "3.12"),
            ("3.13.0", "3.13"),
            ("3.7.16", "3.7m"),
        ] {
            let Some(file) = library(version, series) else {
                eprintln!("skipped: no CPython {version} in {}", testing::PYENV);
                continue;
            };
            // The name given is a wrong one on purpose: the file's own word counts.
            let FileKind::Interpreter(interpreter) = recognise(&file, "renamed").unwrap() else {
                panic!("{version} was not recognised");
            };
            assert_eq!(interpreter.version.to_string(), version);
            assert!(!interpreter.free_threaded);
        }
    }

    #[test]
    fn ancient_versions_and_other_files() {
        if let Some(file) = library("3.6.15", "3.6m") {
            assert!(matches!(recognise(&file, "libpython3.6m.so.1.0").unwrap(), FileKind::Ancient(version)
                if version.series() == (3, 6)));
        }
        let own = File::open("/proc/self/exe").unwrap();
        assert!(matches!(recognise(&own, "pitviper").unwrap(), FileKind::Other { needs_libpython: false }));
        if let Ok(stub) = File::open(format!("{}/3.12.1/bin/python3.12", testing::PYENV)) {
            assert!(matches!(
                recognise(&stub, "python3.12").unwrap(),
                FileKind::Other { needs_libpython: true }
            ));
        }
    }
}
