//! The TLS libraries of a process: which mapped files have OpenSSL in them, and where its functions are.
//!
//! Found by symbols, not by names: the system's, those that wheels bring along (`libssl-<hash>.so.3`), several at once, and
//! OpenSSL that is linked into something else and has kept its symbol table. A look-up like [`crate::python`]: takes a pid,
//! reads `/proc` and files.

mod internal;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use crate::python::elf::{Elf, ElfError};
use crate::python::known_files::{FileKey, KnownFiles};
use crate::python::maps::{self, Mapping};

/// `int SSL_read(SSL *, void *, int)` and its kin: exported by OpenSSL, and by BoringSSL but for the `_ex` ones.
const READ: &str = "SSL_read";
const READ_EX: &str = "SSL_read_ex";
const WRITE: &str = "SSL_write";
const WRITE_EX: &str = "SSL_write_ex";
const HANDSHAKE: &str = "SSL_do_handshake";
const FREE: &str = "SSL_free";

/// Read-only data beyond this is not searched for signs of a TLS library, in bytes.
const MAX_RODATA: u64 = 64 << 20;
/// Files remembered; beyond it the memory starts anew.
const MAX_FILES: usize = 4096;

/// File offsets of OpenSSL's functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// `SSL_read`
    pub read: Option<u64>,
    /// `SSL_read_ex`
    pub read_ex: Option<u64>,
    /// `SSL_write`
    pub write: Option<u64>,
    /// `SSL_write_ex`
    pub write_ex: Option<u64>,
    /// `SSL_do_handshake`
    pub handshake: Option<u64>,
    /// `SSL_free`
    pub free: Option<u64>,
    /// What both reading functions call with the arguments of `SSL_read_ex`: to be probed in place of them.
    pub read_internal: Option<u64>,
    /// What both writing functions call.
    pub write_internal: Option<WriteInternal>,
}

/// A function inside OpenSSL, to be probed in place of `SSL_write` and `SSL_write_ex`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteInternal {
    /// Its file offset.
    pub offset: u64,
    /// Its arguments are those of `SSL_write_ex2` (flags, then the pointer to the count) and not those of `SSL_write_ex`.
    pub takes_flags: bool,
}

/// A file of a process with OpenSSL in it.
#[derive(Clone, Debug)]
pub struct Library {
    /// Which file.
    pub file: FileKey,
    /// Path as the process sees it.
    pub name: PathBuf,
    /// Path by which this process reaches it, for as long as the other one lives.
    pub path: PathBuf,
    /// Where its functions are.
    pub functions: Functions,
}

/// A file of a process that encrypts, and cannot be looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Path as the process sees it.
    pub name: PathBuf,
    /// What is in it: `OpenSSL`, `BoringSSL` or `rustls`.
    pub what: &'static str,
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, what } = self;
        write!(f, "what is encrypted by the {what} in {} is not seen: ", name.display())?;
        f.write_str(match *what {
            "rustls" => "it is not OpenSSL",
            _ => "it is linked in and has no symbols",
        })
    }
}

/// The libraries of a process whose functions are known.
pub fn libraries(pid: u32) -> Vec<Library> {
    each_file(pid, |mapping, path, file| {
        let (key, functions) = functions(file).ok()?;
        Some(Library { file: key, name: mapping.path.clone(), path, functions: functions? })
    })
}

/// The files of a process that have a TLS library in them, but not its symbols.
pub fn hidden(pid: u32) -> Vec<Hidden> {
    each_file(pid, |mapping, _, file| {
        let what = hidden_in(file).ok()??;
        Some(Hidden { name: mapping.path.clone(), what })
    })
}

fn each_file<T>(pid: u32, mut each: impl FnMut(&Mapping, PathBuf, &File) -> Option<T>) -> Vec<T> {
    let mut seen = HashSet::new();
    let mappings = maps::file_mappings(pid).unwrap_or_default();
    let code = mappings.iter().filter(|mapping| mapping.executable && seen.insert(mapping.inode));
    code.filter_map(|mapping| {
        let maps::MappedFile { path, file } = maps::open(pid, mapping).ok()?;
        each(mapping, path, &file)
    })
    .collect()
}

fn functions(file: &File) -> io::Result<(FileKey, Option<Functions>)> {
    static KNOWN: LazyLock<KnownFiles<Option<Functions>>> = LazyLock::new(|| KnownFiles::new(MAX_FILES));
    KNOWN.get(file, look)
}

fn look(file: &File) -> io::Result<Option<Functions>> {
    let elf = match Elf::read_with_locals(file, &[READ, READ_EX, WRITE, WRITE_EX, HANDSHAKE, FREE]) {
        Ok(elf) => elf,
        Err(ElfError::Io(error)) => return Err(error),
        Err(_) => return Ok(None),
    };
    let at = |name| elf.symbols.get(name).and_then(|address| elf.file_offset(*address));
    let functions = Functions {
        read: at(READ),
        read_ex: at(READ_EX),
        write: at(WRITE),
        write_ex: at(WRITE_EX),
        handshake: at(HANDSHAKE),
        free: at(FREE),
        read_internal: internal_of(file, &elf, READ_EX, READ)
            .filter(|(_, takes_flags)| !takes_flags)
            .map(|(offset, _)| offset),
        write_internal: internal_of(file, &elf, WRITE_EX, WRITE)
            .map(|(offset, takes_flags)| WriteInternal { offset, takes_flags }),
    };
    // Without its end a connection would live for ever, and its address be taken for it.
    let whole = functions.free.is_some()
        && (functions.read.is_some() || functions.read_ex.is_some())
        && (functions.write.is_some() || functions.write_ex.is_some());
    Ok(whole.then_some(functions))
}

/// The file offset of the function that both forms call, and whether it takes flags.
fn internal_of(file: &File, elf: &Elf, ex: &str, plain: &str) -> Option<(u64, bool)> {
    let code = |address| {
        let mut code = [0; internal::LONGEST];
        file.read_exact_at(&mut code, elf.file_offset(address)?).ok()?;
        Some(code)
    };
    let (ex, plain) = (*elf.symbols.get(ex)?, *elf.symbols.get(plain)?);
    let internal::Internal { address, takes_flags } = internal::called(ex, code)?;
    let both = internal::calls(plain, &code(plain)?, address);
    Some((elf.file_offset(address).filter(|_| both)?, takes_flags))
}

fn hidden_in(file: &File) -> io::Result<Option<&'static str>> {
    static KNOWN: LazyLock<KnownFiles<Option<&str>>> = LazyLock::new(|| KnownFiles::new(MAX_FILES));
    if functions(file)?.1.is_some() {
        return Ok(None);
    }
    Ok(KNOWN.get(file, signs)?.1)
}

/// Looks for the names of source files that TLS libraries mention when they report errors.
fn signs(file: &File) -> io::Result<Option<&'static str>> {
    let Ok(elf) = Elf::read(file, &[]) else { return Ok(None) };
    let Some((offset, size)) = elf.rodata else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(size.min(MAX_RODATA)).unwrap_or(0)];
    let read = file.read_at(&mut bytes, offset)?;
    bytes.truncate(read);
    let signs = [
        (memchr::memmem::find(&bytes, b"ssl/ssl_lib.cc"), "BoringSSL"),
        (memchr::memmem::find(&bytes, b"ssl/ssl_lib.c\0"), "OpenSSL"),
        (memchr::memmem::find(&bytes, b"/rustls-0."), "rustls"),
    ];
    Ok(signs.into_iter().find_map(|(found, what)| found.map(|_| what)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_openssl_has_no_functions() {
        let file = File::open("/proc/self/exe").unwrap();
        assert_eq!(look(&file).unwrap(), None);
        assert!(libraries(std::process::id()).is_empty());
    }

    #[test]
    fn the_systems_library_has_all() {
        let path = format!("/usr/lib/{}-linux-gnu/libssl.so.3", std::env::consts::ARCH);
        let Ok(file) = File::open(path) else { return };
        let functions = look(&file).unwrap().unwrap();
        let Functions { read, read_ex, write, write_ex, handshake, free, read_internal, write_internal } =
            functions;
        let all: HashSet<_> =
            [read, read_ex, write, write_ex, handshake, free].into_iter().flatten().collect();
        assert_eq!(all.len(), 6, "{functions:?}");
        if cfg!(target_arch = "x86_64") {
            assert!(read_internal.is_some() && write_internal.is_some(), "{functions:?}");
        }
    }
}
