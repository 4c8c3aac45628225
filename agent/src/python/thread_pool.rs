//! How the work items of `concurrent.futures.ThreadPoolExecutor` go from one thread to another: through the methods of
//! `_queue.SimpleQueue`, a static extension type in a module of its own, or linked into the interpreter.
//!
//! `submit` calls `put(item)`; a worker calls `get(block=True)`, since 3.12 after a `get_nowait()` that found nothing
//! (Lib/concurrent/futures/thread.py). Older versions call `get_nowait` only to cancel what is left in a queue.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::elf::Elf;
use super::known_files::{FileKey, KnownFiles};
use super::maps::{self, Mapping};
use super::method_table::{self, Method};
use super::version::Version;

/// First version whose workers call `get_nowait`.
const WITH_GET_NOWAIT: (u8, u8) = (3, 12);
/// `METH_FASTCALL | METH_KEYWORDS`: `(self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)`. So since 3.7; the
/// kernel side reads the item out of `args`.
const FASTCALL_KEYWORDS: u32 = 0x80 | 0x02;
/// The folder of the standard library's extension modules.
const FOLDER: &str = "lib-dynload";
/// The method that only this table has.
const RARE: &str = "put_nowait";

/// The queue's methods in one process: functions by their offsets in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueFunctions {
    /// The file, as the agent reaches it while the process lives.
    pub path: PathBuf,
    /// Which file it is.
    pub file: FileKey,
    /// `put`
    pub put: u64,
    /// What a worker takes items with.
    pub get: Vec<u64>,
    /// The process has it in memory. Else it is the one that it will load, by all appearances.
    pub loaded: bool,
}

/// File offsets of `put`, `get` and `get_nowait`.
type Offsets = (u64, u64, u64);

/// Finds the queue in a process, or that which it will load. The latter is for the probes to be there before the first item
/// is: between the loading of the module and that there may be less than a millisecond.
pub fn find(pid: u32, version: Version, interpreter: &Path) -> Option<QueueFunctions> {
    let mappings = maps::file_mappings(pid).ok()?;
    let code = || mappings.iter().filter(|mapping| mapping.executable);
    let in_file = |path: PathBuf, file: &File, loaded| {
        let (file, offsets) = offsets(file).ok()?;
        let (put, get, get_nowait) = offsets?;
        let mut get = vec![get];
        if version.series() >= WITH_GET_NOWAIT {
            get.push(get_nowait);
        }
        Some(QueueFunctions { path, file, put, get, loaded })
    };
    let is_module = |mapping: &&Mapping| is_module(mapping.file_name());
    let is_interpreter = |mapping: &&Mapping| mapping.path == interpreter;
    let mapped = code().find(is_module).into_iter().chain(code().find(is_interpreter)).find_map(|mapping| {
        let opened = maps::open(pid, mapping).ok()?;
        in_file(opened.path, &opened.file, true)
    });
    mapped.or_else(|| {
        let loaded = code().filter_map(|mapping| mapping.path.parent());
        let folders = loaded.filter(|folder| folder.ends_with(FOLDER)).map(Path::to_owned);
        let path = folders.chain(usual_folders(interpreter, version)).find_map(|folder| {
            module_in(&Path::new(&format!("/proc/{pid}/root")).join(folder.strip_prefix("/").ok()?), version)
        })?;
        in_file(path.clone(), &File::open(&path).ok()?, false)
    })
}

fn is_module(name: &str) -> bool {
    name.starts_with("_queue.") && name.ends_with(".so")
}

/// Where an interpreter, or its library, has its extension modules: below the prefix that its own folder is in.
fn usual_folders(interpreter: &Path, version: Version) -> impl Iterator<Item = PathBuf> {
    let (major, minor) = version.series();
    let library = PathBuf::from(format!("lib/python{major}.{minor}")).join(FOLDER);
    interpreter.ancestors().skip(2).take(2).map(move |prefix| prefix.join(&library))
}

/// The module of this version in a folder, if there is one; the names of others differ (Lib/importlib, `EXTENSION_SUFFIXES`).
fn module_in(folder: &Path, version: Version) -> Option<PathBuf> {
    let (major, minor) = version.series();
    let names =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let tag = format!("_queue.cpython-{major}{minor}-");
    names.into_iter().find(|name| name.starts_with(&tag) && is_module(name)).map(|name| folder.join(name))
}

/// Looks into a file, or remembers having done so.
fn offsets(file: &File) -> io::Result<(FileKey, Option<Offsets>)> {
    const MOST: usize = 1024;
    static KNOWN: LazyLock<KnownFiles<Option<Offsets>>> = LazyLock::new(|| KnownFiles::new(MOST));

    KNOWN.get(file, |file| Ok(look(file)))
}

fn look(file: &File) -> Option<Offsets> {
    let methods = method_table::methods(file, RARE).ok()?;
    let named = |name: &str| methods.iter().find(|method| method.name == name);
    // What else this table has in every version.
    named("qsize").and(named("empty"))?;
    let elf = Elf::read(file, &[]).ok()?;
    let offset = |method: &Method| elf.file_offset(method.function);
    let put = named("put").filter(|method| method.flags == FASTCALL_KEYWORDS)?;
    Some((offset(put)?, offset(named("get")?)?, offset(named("get_nowait")?)?))
}

#[cfg(test)]
mod tests {
    use super::super::inspect;
    use super::super::testing::{PYENV, Python};
    use super::*;

    #[test]
    fn finds_the_queue_of_every_interpreter() {
        for version in ["3.8.18", "3.9.18", "3.10.13", "3.11.7", "3.12.1", "3.13.0", "debian"] {
            let interpreter = match version {
                "debian" => "/usr/bin/python3.11".to_owned(),
                _ => format!("{PYENV}/{version}/bin/python"),
            };
            if !Path::new(&interpreter).exists() {
                eprintln!("skipped {interpreter}: it is not installed");
                continue;
            }
            let look = |code: &str| {
                let python = Python::start(&interpreter, code).unwrap();
                let instance = inspect(python.pid()).unwrap();
                find(python.pid(), instance.version, &instance.interpreter)
                    .map(|found| (found, instance.version))
            };
            let ready = "print(1, flush=True); import sys; sys.stdin.read()";
            let (foreseen, _) = look(ready).unwrap();
            let (found, version) = look(&format!("import queue; {ready}")).unwrap();
            assert!(found.loaded, "{interpreter}");
            assert_eq!(
                QueueFunctions { path: found.path.clone(), loaded: true, ..foreseen },
                found,
                "{interpreter}: the file that it will load"
            );
            let expected = if version.series() >= WITH_GET_NOWAIT { 2 } else { 1 };
            assert_eq!(found.get.len(), expected, "{interpreter}");
            assert!(!found.get.contains(&found.put), "{interpreter}");
            check_symbols(version, &found);
        }
    }

    /// Where the file has a symbol table it says the same.
    fn check_symbols(version: Version, found: &QueueFunctions) {
        let (major, minor) = version.series();
        let path = format!(
            "{PYENV}/{version}/lib/python{major}.{minor}/lib-dynload/_queue.cpython-{major}{minor}-x86_64-linux-gnu.so"
        );
        let Ok(output) = std::process::Command::new("nm").arg(path).output() else { return };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let address = || u64::from_str_radix(line.split(' ').next().unwrap_or_default(), 16).unwrap();
            match line.split(' ').next_back() {
                Some("_queue_SimpleQueue_put") => assert_eq!(address(), found.put),
                Some("_queue_SimpleQueue_get") => assert_eq!(address(), found.get[0]),
                Some("_queue_SimpleQueue_get_nowait") if found.get.len() > 1 => {
                    assert_eq!(address(), found.get[1]);
                }
                _ => {}
            }
        }
    }
}
