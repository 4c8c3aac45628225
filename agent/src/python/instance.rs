//! One CPython in one process: what the kernel side needs to know to read the logical task of its threads.
//!
//! Takes a pid; gives an [`Instance`] or the reason why there is none. Reads `/proc/PID/maps` and a few bytes of
//! memory; the process does not notice.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use pitviper_ebpf::abi::{CAPTURE_SOCKETS, Runtime, Target, TlsKind};

use super::contexts::{self, ContextFunctions};
use super::gilstate::Variable;
use super::layout::{self, Layout, TSS_KEY};
use super::loader::{self, FileKind, Interpreter};
use super::maps::{self, MappedFile, Mapping};
use super::memory::Memory;
use super::untraceable::Untraceable;
use super::version::Version;

/// `offsetof(struct pthread, specific_1stblock)` in glibc on x86-64, unchanged since 2.3: `nptl/descr.h`.
const GLIBC_FIRST_BLOCK: u32 = 0x310;
/// `sizeof(struct pthread_key_data)`, whose second word is the value.
const GLIBC_KEY_DATA: u32 = 16;
/// `PTHREAD_KEY_2NDLEVEL_SIZE`: keys from here on live in blocks of their own.
const GLIBC_FIRST_BLOCK_KEYS: u32 = 32;
/// `PTHREAD_KEYS_MAX` of musl, less than glibc's 1024.
const MUSL_KEYS: u32 = 128;
/// `PTHREAD_KEYS_MAX` of glibc. A greater key means that the layout is wrong.
const MAX_KEYS: u32 = 1024;
/// Size of an entry of glibc's `dtv_t`, and of musl's: a thread's table of its blocks of thread-local variables.
const GLIBC_DTV_ENTRY: u32 = 16;
const MUSL_DTV_ENTRY: u32 = 8;
/// No process has more modules with thread-local variables.
const MAX_MODULES: u64 = 1 << 16;

/// An interpreter in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The process.
    pub pid: u32,
    /// Which CPython.
    pub version: Version,
    /// The file with the interpreter, as the process sees it.
    pub interpreter: PathBuf,
    /// What the kernel side needs.
    pub target: Target,
    /// Where `_PyRuntime` is, and so the interpreter's lock, as far as that is known.
    pub runtime: Option<Runtime>,
    /// Where new contexts are made; `None` when contexts cannot be read here, see `limit`.
    pub contexts: Option<ContextFunctions>,
    /// Why this process can be traced by thread only, if so.
    pub limit: Option<Limit>,
    /// The interpreter's key for thread states, where it has one and thread states are found by it.
    key: Option<Key>,
}

/// `_PyRuntime.gilstate.autoTSSkey`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    /// Its address in the process.
    address: u64,
    /// What the thread-specific data is kept by.
    libc: LibC,
}

/// Why the logical task cannot be read, only the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A CPython that is newer than the newest layout.
    TooNew,
    /// A build without the GIL: its structures are laid out in another way.
    FreeThreaded,
    /// The interpreter is not laid out as its version says.
    Layout,
    /// The C library is neither glibc nor musl, or linked statically.
    CLibrary,
    /// Not x86-64: where thread-specific data lies is not known.
    Architecture,
    /// The interpreter's key for thread-specific data is beyond the first block.
    Key(u32),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooNew => {
                let (major, minor) = layout::NEWEST;
                write!(f, "CPython {major}.{minor} is the newest whose asyncio tasks can be told apart")
            }
            Self::FreeThreaded => {
                f.write_str("asyncio tasks of a free-threaded build cannot be told apart yet")
            }
            Self::Layout => {
                f.write_str("its interpreter is laid out in an unexpected way: is it a modified CPython?")
            }
            Self::CLibrary => f.write_str("its C library is neither a shared glibc nor a shared musl"),
            Self::Architecture => f.write_str("asyncio tasks can be read on x86-64 only"),
            Self::Key(key) => write!(f, "its thread-specific data key, {key}, is not among the first 32"),
        }
    }
}

/// Finds the interpreter of a process.
///
/// [`Untraceable::NotInitialised`] calls for another look a little later. After a fork the child needs a look of its
/// own: CPython makes a new thread-specific key there, which may have another number.
pub fn inspect(pid: u32) -> Result<Instance, Untraceable> {
    let mappings = maps::file_mappings(pid)?;
    let (mapping, opened, file) = find_interpreter(pid, &mappings)?;
    let version = file.version;
    if version.series() < layout::OLDEST {
        return Err(Untraceable::TooOld { version });
    }
    let bias = file.elf.load_bias(mapping.start, mapping.offset).ok_or_else(|| {
        Untraceable::Unreadable(format!("the mapping of {} matches no code in it", mapping.path.display()))
    })?;
    let memory = Memory::open(pid)?;
    let found = match layout::of(version.series()) {
        None => Err(Limit::TooNew),
        Some(_) if file.free_threaded => Err(Limit::FreeThreaded),
        Some(layout) => thread_states(&memory, &file, bias, layout, || match LibC::of(&mappings) {
            // The interpreter was starting, and the library was mapped after the look at the mappings.
            LibC::Unknown => Ok(LibC::of(&maps::file_mappings(pid)?)),
            known => Ok(known),
        })?,
    };
    let (target, key, limit) = match found {
        Ok((target, key)) => (target, key, None),
        Err(limit) => (Target::WITHOUT_CONTEXT, None, Some(limit)),
    };
    let contexts = limit.is_none().then(|| ContextFunctions {
        path: opened.path,
        copy_current: file.copy_current,
        unrelated: contexts::unrelated(&memory, &file, bias),
        dealloc: contexts::dealloc(&memory, &file, bias),
        enter: contexts::enter(&memory, &file, bias),
    });
    let interpreter = mapping.path.clone();
    let start = file.runtime.wrapping_add(bias);
    let runtime =
        (file.runtime_size > 0).then(|| Runtime { start, end: start.wrapping_add(file.runtime_size) });
    Ok(Instance { pid, version, interpreter, target, runtime, contexts, limit, key })
}

/// What the kernel side needs to know of a process whose interpreter is starting, once a file with one is mapped: where to
/// see that it has. `_PyRuntime.gilstate.autoTSSkey._is_initialized` becomes 1; where there is no such key, the type of
/// contexts becomes ready.
pub fn awaited(pid: u32) -> Option<Target> {
    let mappings = maps::file_mappings(pid).ok()?;
    let (mapping, _, file) = find_interpreter(pid, &mappings).ok()?;
    let layout = layout::of(file.version.series())?;
    let bias = file.elf.load_bias(mapping.start, mapping.offset)?;
    let (address, awaited_bits) = match layout.auto_tss_key {
        Some(auto_tss_key) => (file.runtime.wrapping_add(auto_tss_key), 1),
        None => contexts::readiness(&file),
    };
    Some(Target { awaited: address.wrapping_add(bias), awaited_bits, ..Target::FOLLOWED })
}

impl Instance {
    /// The same interpreter in a child that this process has forked: a copy of it, but for the key, which it makes anew.
    pub fn in_child(&self, pid: u32) -> Self {
        let slot = self.key.and_then(|Key { address, libc }| {
            let memory = Memory::open(pid).ok()?;
            slot(libc, read_tss_key(&memory, address).ok()??).ok()
        });
        let target = match slot {
            Some((kind, slot_offset)) => Target { tls_kind: kind as u32, slot_offset, ..self.target },
            // There is none, or it is gone, or just about to make it, as a rule with the same number.
            None => self.target,
        };
        Self { pid, target, ..self.clone() }
    }
}

/// The executable if it has an interpreter built in (its symbols come first in the process), else a libpython.
fn find_interpreter(
    pid: u32,
    mappings: &[Mapping],
) -> Result<(&Mapping, MappedFile, Arc<Interpreter>), Untraceable> {
    // A kernel thread has no executable, and a container's may be hidden from the agent.
    let exe = maps::executable_inode(pid);
    let is_exe = |mapping: &&Mapping| Some(mapping.inode) == exe;
    let is_library = |mapping: &&Mapping| mapping.file_name().starts_with("libpython");
    let code = || mappings.iter().filter(|mapping| mapping.executable);

    let mut starting = false;
    let mut failure = Untraceable::NotPython;
    for mapping in code().find(is_exe).into_iter().chain(code().filter(is_library)) {
        let looked = maps::open(pid, mapping).and_then(|opened| {
            let kind = loader::recognise(&opened.file, mapping.file_name())?;
            Ok((opened, kind))
        });
        let (opened, kind) = match looked {
            Ok(looked) => looked,
            Err(error) if mapping.file_name().contains("python") => {
                failure = Untraceable::of_file(&error, &mapping.path);
                continue;
            }
            // Of no interest: whatever it is, its name is not that of an interpreter.
            Err(_) => continue,
        };
        match kind {
            FileKind::Interpreter(file) => return Ok((mapping, opened, file)),
            FileKind::Ancient(version) => failure = Untraceable::TooOld { version },
            FileKind::UnknownVersion => failure = Untraceable::UnknownVersion,
            FileKind::ThirtyTwoBit if mapping.file_name().contains("python") => {
                failure = Untraceable::ThirtyTwoBit;
            }
            FileKind::ThirtyTwoBit => {}
            FileKind::Other { needs_libpython } => starting |= needs_libpython,
        }
    }
    // The dynamic loader has not mapped the library yet.
    if starting && failure == Untraceable::NotPython {
        failure = Untraceable::NotInitialised;
    }
    Err(failure)
}

/// Where each thread keeps its `PyThreadState`, and by which key if by one; or why that is not known.
fn thread_states(
    memory: &Memory,
    file: &Interpreter,
    bias: u64,
    layout: &Layout,
    libc: impl FnOnce() -> Result<LibC, Untraceable>,
) -> Result<Result<(Target, Option<Key>), Limit>, Untraceable> {
    if !file.states.is_none_or(|states| layout.agrees_with(&states)) {
        return Ok(Err(Limit::Layout));
    }
    let slot = if let Some(auto_tss_key) = layout.auto_tss_key {
        let address = file.runtime.wrapping_add(bias).wrapping_add(auto_tss_key);
        match read_tss_key(memory, address)? {
            Some(number) => {
                let key = Key { address, libc: libc()? };
                slot(key.libc, number).map(|(kind, slot_offset)| (kind, slot_offset, 0, Some(key)))
            }
            None => Err(Limit::Layout),
        }
    } else if contexts::type_is_ready(memory, file, bias)? {
        variable(memory, file.gilstate, bias, libc()?)?
            .map(|(kind, offset, entry)| (kind, offset, entry, None))
    } else {
        return Err(Untraceable::NotInitialised);
    };
    let target = |(kind, slot_offset, dtv_entry, key)| {
        let target = Target {
            tls_kind: kind as u32,
            slot_offset,
            dtv_entry,
            context_offset: layout.tstate_context,
            capture: CAPTURE_SOCKETS,
            ..Target::WITHOUT_CONTEXT
        };
        (target, key)
    };
    Ok(slot.map(target))
}

/// `_PyRuntime.gilstate.autoTSSkey._key`; `None` when there is something else in its place.
fn read_tss_key(memory: &Memory, auto_tss_key: u64) -> Result<Option<u32>, Untraceable> {
    match memory.read_i32(auto_tss_key)? {
        0 => return Err(Untraceable::NotInitialised),
        1 => {}
        _ => return Ok(None),
    }
    let key = memory.read_u32(auto_tss_key.wrapping_add(TSS_KEY))?;
    Ok((key < MAX_KEYS).then_some(key))
}

/// Where the thread-local variable with a thread's `PyThreadState` is: the kind, the offset, and the module's entry.
fn variable(
    memory: &Memory,
    variable: Option<Variable>,
    bias: u64,
    libc: LibC,
) -> Result<Result<(TlsKind, u32, u32), Limit>, Untraceable> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Err(Limit::Architecture));
    }
    Ok(match variable {
        None => Err(Limit::Layout),
        Some(Variable::LocalExec(offset)) => Ok((TlsKind::Static, offset.cast_unsigned(), 0)),
        Some(Variable::InitialExec(at)) => {
            let offset = memory.read_u64(at.wrapping_add(bias))?.cast_signed();
            let offset = i32::try_from(offset).ok().filter(|offset| *offset < 0).ok_or(Limit::Layout);
            offset.map(|offset| (TlsKind::Static, offset.cast_unsigned(), 0))
        }
        Some(Variable::Dynamic { index, offset }) => {
            // `tls_index { unsigned long ti_module; unsigned long ti_offset; }`
            let index = index.wrapping_add(bias);
            let (module, base) = (memory.read_u64(index)?, memory.read_u64(index.wrapping_add(8))?);
            let entry = match libc {
                LibC::Glibc => GLIBC_DTV_ENTRY,
                LibC::Musl => MUSL_DTV_ENTRY,
                LibC::Unknown => return Ok(Err(Limit::CLibrary)),
            };
            let offset = i32::try_from(base.wrapping_add_signed(i64::from(offset)).cast_signed());
            match (u32::try_from(module), offset) {
                (Ok(number), Ok(offset)) if (1..MAX_MODULES).contains(&module) => {
                    Ok((TlsKind::Dynamic, offset.cast_unsigned(), entry * number))
                }
                _ => Err(Limit::Layout),
            }
        }
    })
}

/// Which C library a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LibC {
    Glibc,
    Musl,
    Unknown,
}

impl LibC {
    fn of(mappings: &[Mapping]) -> Self {
        for mapping in mappings {
            let name = mapping.file_name();
            if name.starts_with("ld-musl-") || name.starts_with("libc.musl-") {
                return Self::Musl;
            }
            // Before 2.34 the file was named after the version.
            if name == "libc.so.6" || (name.starts_with("libc-2.") && name.ends_with(".so")) {
                return Self::Glibc;
            }
        }
        Self::Unknown
    }
}

/// Where the slot of a thread-specific key is, from the thread pointer; see [`TlsKind`].
fn slot(libc: LibC, key: u32) -> Result<(TlsKind, u32), Limit> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Limit::Architecture);
    }
    match libc {
        LibC::Glibc if key < GLIBC_FIRST_BLOCK_KEYS => {
            Ok((TlsKind::GlibcFirstBlock, GLIBC_FIRST_BLOCK + GLIBC_KEY_DATA * key + 8))
        }
        LibC::Musl if key < MUSL_KEYS => Ok((TlsKind::Musl, 8 * key)),
        LibC::Glibc | LibC::Musl => Err(Limit::Key(key)),
        LibC::Unknown => Err(Limit::CLibrary),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::testing;

    #[test]
    fn slots() {
        assert_eq!(slot(LibC::Glibc, 0), Ok((TlsKind::GlibcFirstBlock, 0x318)));
        assert_eq!(slot(LibC::Glibc, 31), Ok((TlsKind::GlibcFirstBlock, 0x310 + 31 * 16 + 8)));
        assert_eq!(slot(LibC::Glibc, 32), Err(Limit::Key(32)));
        assert_eq!(slot(LibC::Musl, 3), Ok((TlsKind::Musl, 24)));
        assert_eq!(slot(LibC::Unknown, 0), Err(Limit::CLibrary));
    }

    #[test]
    fn c_libraries_by_name() {
        let of = |path: &str| {
            let path = PathBuf::from(path);
            LibC::of(&[Mapping { start: 0, end: 1, offset: 0, executable: true, inode: 1, path }])
        };
        assert_eq!(of("/usr/lib/x86_64-linux-gnu/libc.so.6"), LibC::Glibc);
        assert_eq!(of("/lib/x86_64-linux-gnu/libc-2.31.so"), LibC::Glibc);
        assert_eq!(of("/lib/ld-musl-x86_64.so.1"), LibC::Musl);
        assert_eq!(of("/usr/lib/libcrypto.so.3"), LibC::Unknown);
    }

    #[test]
    fn what_is_not_python_and_what_is_gone() {
        assert_eq!(inspect(std::process::id()), Err(Untraceable::NotPython));
        assert_eq!(inspect(u32::MAX), Err(Untraceable::NoSuchProcess));
        assert_eq!(inspect(0), Err(Untraceable::NoSuchProcess));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(inspect(pid), Err(Untraceable::NoSuchProcess));
    }

    #[test]
    fn too_old_versions_are_named() {
        for (installed, series) in [("2.7.18", (2, 7)), ("3.6.15", (3, 6)), ("3.7.16", (3, 7))] {
            let path = format!("{}/{installed}/bin/python", testing::PYENV);
            let Some(child) = testing::Python::start(&path, "") else { continue };
            match inspect(child.pid()) {
                Err(Untraceable::TooOld { version }) => assert_eq!(version.series(), series),
                other => panic!("{installed}: {other:?}"),
            }
        }
    }

    /// A copy of the 3.13 library, changed, in the place of the real one.
    fn with_changed_library(symbol: &'static str, offset: u64, value: u64) -> Option<Instance> {
        use std::os::unix::fs::FileExt as _;
        let home = format!("{}/3.13.0", testing::PYENV);
        let copy =
            std::env::temp_dir().join(format!("libpython-pitviper-{symbol}-{}.so", std::process::id()));
        if let Err(error) = std::fs::copy(format!("{home}/lib/libpython3.13.so.1.0"), &copy) {
            eprintln!("skipped: no CPython 3.13 to change: {error}");
            return None;
        }
        let file = std::fs::File::options().read(true).write(true).open(&copy).unwrap();
        let elf = crate::python::elf::Elf::read(&file, &[symbol]).unwrap();
        let at = elf.file_offset(elf.symbols[symbol] + offset).unwrap();
        file.write_all_at(&value.to_ne_bytes(), at).unwrap();
        let mut command = std::process::Command::new(format!("{home}/bin/python"));
        command.args(["-c", "import sys; print('ready'); sys.stdout.flush(); sys.stdin.read()"]);
        let python = testing::Python::start_command(command.env("LD_PRELOAD", &copy)).unwrap();
        std::fs::remove_file(&copy).unwrap();
        Some(inspect(python.pid()).unwrap())
    }

    /// What is not known is not guessed: such a process is traced by thread.
    #[test]
    fn free_threaded_future_and_modified_interpreters_are_limited() {
        let check = |instance: Option<Instance>, version: &str, limit, message: &str| {
            let Some(instance) = instance else { return };
            assert_eq!(instance.version.to_string(), version);
            assert_eq!((instance.limit, instance.contexts), (Some(limit), None));
            assert_eq!(instance.target, Target::WITHOUT_CONTEXT);
            assert_eq!(limit.to_string(), message);
        };
        // `_Py_DebugOffsets.free_threaded`
        let changed = with_changed_library("_PyRuntime", 16, 1);
        let message = "asyncio tasks of a free-threaded build cannot be told apart yet";
        check(changed, "3.13.0", Limit::FreeThreaded, message);
        let changed = with_changed_library("Py_Version", 0, 0x0310_00a1);
        let message = "CPython 3.15 is the newest whose asyncio tasks can be told apart";
        check(changed, "3.16.0a1", Limit::TooNew, message);
        // `_Py_DebugOffsets.thread_state.native_thread_id`
        let changed = with_changed_library("_PyRuntime", 25 * 8, 168);
        let message = "its interpreter is laid out in an unexpected way: is it a modified CPython?";
        check(changed, "3.13.0", Limit::Layout, message);
    }

    #[test]
    fn an_interpreter_that_has_not_started_yet() {
        let library = format!("{}/3.12.1/lib/libpython3.12.so.1.0", testing::PYENV);
        if !std::path::Path::new(&library).exists() {
            eprintln!("skipped: no {library}");
            return;
        }
        let mut command = std::process::Command::new("sh");
        let process = testing::Python::start_command(
            command.args(["-c", "echo ready; read x"]).env("LD_PRELOAD", library),
        );
        assert_eq!(inspect(process.unwrap().pid()), Err(Untraceable::NotInitialised));
    }

    /// The interpreter is on a file system that only the process's own mount namespace has, as in a container.
    #[test]
    fn another_mount_namespace() {
        let source = "/usr/bin/python3.11";
        let folder = std::env::temp_dir().join(format!("pitviper-mount-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let script = format!(
            "mount -t tmpfs none {0} && cp {source} {0}/python && exec {0}/python -c \
             \"import sys; print('ready'); sys.stdout.flush(); sys.stdin.read()\" || echo skip",
            folder.display()
        );
        let mut command = std::process::Command::new("unshare");
        let python = testing::Python::start_command(command.args(["-m", "sh", "-c", &script])).unwrap();
        if python.answer == "skip" {
            eprintln!("skipped: no mount namespace can be made, or no {source}");
        } else {
            let instance = inspect(python.pid()).unwrap();
            assert_eq!(instance.interpreter, folder.join("python"));
            assert!(!instance.interpreter.exists(), "the path means nothing here");
            assert!(std::fs::metadata(instance.contexts.unwrap().path).is_ok());
        }
        drop(python);
        std::fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn a_deleted_interpreter_is_still_readable() {
        let source = "/usr/bin/python3.11";
        if !std::path::Path::new(source).exists() {
            eprintln!("skipped: no {source}");
            return;
        }
        let copy = std::env::temp_dir().join(format!("pitviper-deleted-{}", std::process::id()));
        std::fs::copy(source, &copy).unwrap();
        let child = testing::Python::start(copy.to_str().unwrap(), "").unwrap();
        std::fs::remove_file(&copy).unwrap();
        let instance = inspect(child.pid()).unwrap();
        assert_eq!(instance.interpreter, copy);
        assert!(std::fs::metadata(instance.contexts.unwrap().path).is_ok());
    }
}
