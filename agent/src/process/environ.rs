//! The environment that a process was started with.
//!
//! `/proc/PID/environ` is the memory where the kernel put it, and programs that set their title (gunicorn and Celery
//! with `setproctitle`) overwrite just that. Then the C library's `environ` is followed in the process's memory.

use std::collections::HashMap;
use std::io;

use crate::python::elf::Elf;
use crate::python::maps::{self, Mapping};
use crate::python::memory::Memory;

/// More variables than this are not read from memory.
const MAX_VARIABLES: u64 = 1024;
/// Longer variables are cut, in bytes.
const MAX_VARIABLE: usize = 4096;
/// Names of one and the same variable, `char **environ`.
const SYMBOLS: [&str; 3] = ["environ", "__environ", "_environ"];

/// Environment variables.
#[derive(Clone, Debug, Default)]
pub struct Environ(HashMap<String, String>);

impl Environ {
    /// Reads a process's environment.
    pub fn read(pid: u32) -> io::Result<Self> {
        let bytes = std::fs::read(format!("/proc/{pid}/environ"))?;
        // Variables stand side by side. Two NULs in a row are the padding after a title, and the variables have moved.
        let overwritten = bytes.windows(2).any(|pair| pair == [0, 0]);
        let moved = overwritten.then(|| Self::from_memory(pid)).flatten();
        Ok(moved.unwrap_or_else(|| Self::parse(&bytes)))
    }

    /// Takes NUL-separated `KEY=value`s; whatever is not of this form is left out.
    pub fn parse(bytes: &[u8]) -> Self {
        Self(bytes.split(|&byte| byte == 0).filter_map(variable).collect())
    }

    /// The value of a variable, unless it is empty: OpenTelemetry treats that as unset, and so do the servers.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn from_memory(pid: u32) -> Option<Self> {
        let memory = Memory::open(pid).ok()?;
        let array = memory.read_u64(find_symbol(pid)?).ok()?;
        let strings = (0..MAX_VARIABLES)
            .map_while(|at| memory.read_u64(array.checked_add(at * 8)?).ok().filter(|&pointer| pointer != 0));
        Some(Self(
            strings
                .filter_map(|pointer| memory.read_c_string(pointer, MAX_VARIABLE).ok())
                .filter_map(|string| variable(&string))
                .collect(),
        ))
    }
}

fn variable(bytes: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    let (name, value) = text.split_once('=')?;
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

/// The address of `environ`. An executable that refers to it without position-independent code has its own copy, which
/// is then everybody's.
fn find_symbol(pid: u32) -> Option<u64> {
    let mappings = maps::file_mappings(pid).ok()?;
    let exe = maps::executable_inode(pid);
    let is_libc = |mapping: &&Mapping| {
        let name = mapping.file_name();
        ["libc.so", "libc-2.", "libc.musl-", "ld-musl-"].iter().any(|prefix| name.starts_with(prefix))
    };
    let code = || mappings.iter().filter(|mapping| mapping.executable);
    code().filter(|mapping| Some(mapping.inode) == exe).chain(code().filter(is_libc)).find_map(|mapping| {
        let elf = Elf::read(&maps::open(pid, mapping).ok()?.file, &SYMBOLS).ok()?;
        let address = *SYMBOLS.iter().find_map(|name| elf.symbols.get(name))?;
        Some(elf.load_bias(mapping.start, mapping.offset)?.wrapping_add(address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::testing::{PYENV, Python};
    use std::process::Command;

    #[test]
    fn parses_what_there_is() {
        let environ = Environ::parse(b"A=1\0B=\0C=x=y\0junk\0=z\0\xff=\xff\0");
        assert_eq!(environ.get("A"), Some("1"));
        assert_eq!(environ.get("B"), None);
        assert_eq!(environ.get("C"), Some("x=y"));
        assert_eq!(environ.get("junk"), None);
    }

    /// What `setproctitle` does: the strings live on elsewhere, and where the kernel put them is overwritten.
    #[test]
    fn an_overwritten_environment_is_found_in_memory() {
        const OVERWRITE: &str = r"
import ctypes, os, sys
os.environ['PITVIPER_TEST'] = 'moved'
with open('/proc/self/stat') as stat:
    fields = stat.read().rsplit(')', 1)[1].split()
start, end = int(fields[47]), int(fields[48])
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
libc = ctypes.CDLL(None)
for name, value in list(os.environ.items()):
    libc.setenv(name.encode(), (value + ' ').encode(), 1)
ctypes.memset(start, 0, end - start)
ctypes.memmove(start, b' --app=title)', 13)
print('done')
sys.stdout.flush()
sys.stdin.read()
";
        for interpreter in [format!("{PYENV}/3.12.1/bin/python"), "/usr/bin/python3.11".to_owned()] {
            let mut command = Command::new(&interpreter);
            command.args(["-c", OVERWRITE]).env("OTEL_SERVICE_NAME", "hidden");
            let Some(python) = Python::start_command(&mut command) else { continue };
            let environ = Environ::read(python.pid()).unwrap();
            assert_eq!(environ.get("OTEL_SERVICE_NAME"), Some("hidden "), "{interpreter}");
            assert_eq!(environ.get("PITVIPER_TEST"), Some("moved "), "{interpreter}");
        }
    }
}
