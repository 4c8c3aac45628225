//! The C function that a thread was in when a sample was taken, by the symbols of the file that its code is from.
//!
//! Only the innermost one: the functions between it and the Python function cannot be walked for certain, since most code is
//! built without frame pointers. A function that no symbol covers is called by its file alone, never by its neighbour.

use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::{Frame, FrameKind};
use crate::python::elf::ElfError;
use crate::python::elf::functions::Functions;
use crate::python::known_files::KnownFiles;
use crate::python::maps::{self, Mapping};

/// Files whose functions are remembered.
const MOST_FILES: usize = 256;
/// The mappings of a process are not read more often than this.
const READ_AGAIN: Duration = Duration::from_millis(100);
/// The interpreter's loop: being in it says nothing that the Python function does not say.
const EVAL_LOOP: &str = "_PyEval_EvalFrameDefault";

/// The native code of processes.
#[derive(Debug, Default)]
pub struct NativeCode {
    processes: FxHashMap<u32, Code>,
}

/// The mapped code of one process.
#[derive(Debug)]
struct Code {
    read: Instant,
    /// By address.
    mappings: Vec<MappedCode>,
}

#[derive(Debug)]
struct MappedCode {
    mapping: Mapping,
    /// `None` before it was needed.
    functions: Option<Arc<Functions>>,
}

impl NativeCode {
    /// The function at an address of a process's code; `None` in the interpreter's own loop, and where no file is mapped.
    pub fn frame(&mut self, pid: u32, address: u64, interpreter: &Path) -> Option<Frame> {
        let code = self.processes.entry(pid).or_insert_with(|| Code::of(pid));
        let index = code.find(address).or_else(|| {
            // A library may have been loaded since.
            if code.read.elapsed() < READ_AGAIN {
                return None;
            }
            *code = Code::of(pid);
            code.find(address)
        })?;
        let MappedCode { mapping, functions } = code.mappings.get_mut(index)?;
        let functions = functions.get_or_insert_with(|| functions_of(pid, mapping));
        let name = functions.at(address.wrapping_sub(mapping.start).wrapping_add(mapping.offset));
        // `.cold` and the like: parts that the compiler has moved elsewhere.
        let in_loop = |name: &String| name.split('.').next() == Some(EVAL_LOOP);
        if name.as_ref().is_some_and(in_loop) || name.is_none() && mapping.path == interpreter {
            return None;
        }
        let file = mapping.file_name();
        let (function, file) = match name {
            Some(name) => (demangled(&name), file),
            None => (format!("[{file}]"), ""),
        };
        let (function, file) = (function.into(), file.into());
        Some(Frame { kind: FrameKind::Native, function, file, first_line: 0, line: 0 })
    }

    /// A process has ended, or runs another program.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }
}

impl Code {
    fn of(pid: u32) -> Self {
        let mappings = maps::file_mappings(pid).unwrap_or_default();
        let code = mappings.into_iter().filter(|mapping| mapping.executable);
        let mappings = code.map(|mapping| MappedCode { mapping, functions: None }).collect();
        Self { read: Instant::now(), mappings }
    }

    fn find(&self, address: u64) -> Option<usize> {
        self.mappings.iter().position(|code| (code.mapping.start..code.mapping.end).contains(&address))
    }
}

/// The functions of a mapped file; none where it cannot be read.
fn functions_of(pid: u32, mapping: &Mapping) -> Arc<Functions> {
    static KNOWN: LazyLock<KnownFiles<Arc<Functions>>> = LazyLock::new(|| KnownFiles::new(MOST_FILES));
    let read = || -> io::Result<Arc<Functions>> {
        let opened = maps::open(pid, mapping)?;
        let (_, functions) = KNOWN.get(&opened.file, |file| match Functions::read(file) {
            Ok(functions) => Ok(Arc::new(functions)),
            Err(ElfError::Io(error)) => Err(error),
            Err(_) => Ok(Arc::default()),
        })?;
        Ok(functions)
    };
    read().unwrap_or_default()
}

/// As it stands in the source, for C++ and Rust.
fn demangled(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    let cpp = name.starts_with("_Z").then(|| cpp_demangle::Symbol::new(name).ok()).flatten();
    cpp.and_then(|symbol| symbol.demangle().ok()).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_function_of_a_library_and_demangles() {
        let pid = std::process::id();
        let mut native = NativeCode::default();
        let frame = native.frame(pid, libc::getpid as *const () as u64, Path::new("")).unwrap();
        assert_eq!(frame.kind, FrameKind::Native);
        assert!(frame.function.ends_with("getpid"), "{frame:?}");
        assert_eq!(&*frame.file, "libc.so.6");
        assert_eq!(native.frame(pid, 8, Path::new("")), None);
        native.forget(pid);

        assert_eq!(demangled("_ZN5torch3addEi"), "torch::add(int)");
        assert_eq!(demangled("_ZN5tokio3run17h0123456789abcdefE"), "tokio::run");
        assert_eq!(demangled("crc32_z"), "crc32_z");
    }
}
