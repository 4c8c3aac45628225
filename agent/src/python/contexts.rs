//! The functions of an interpreter that make `contextvars.Context` objects, and that enter them.
//!
//! Copies of the current context come from the exported `PyContext_CopyCurrent`. The others are static functions, which a
//! stripped build does not name; but the exported `PyContext_Type` holds their addresses in its slots, and the slots'
//! offsets in `PyTypeObject` have been the same since 3.8 (Include/cpython/object.h).

use std::io;
use std::path::PathBuf;

use super::loader::Interpreter;
use super::memory::Memory;

/// `offsetof(PyTypeObject, tp_dealloc)`
const TP_DEALLOC: u64 = 48;
/// `offsetof(PyTypeObject, tp_methods)`
const TP_METHODS: u64 = 232;
/// `offsetof(PyTypeObject, tp_new)`
const TP_NEW: u64 = 312;
/// `offsetof(PyTypeObject, tp_flags)`
const TP_FLAGS: u64 = 168;
/// `Py_TPFLAGS_READY`: the type has been initialised, which is part of the interpreter's start.
const READY: u32 = 1 << 12;
/// `sizeof(PyMethodDef)`: `{const char *ml_name; PyCFunction ml_meth; int ml_flags; const char *ml_doc;}`
const METHOD_DEF: u64 = 32;
/// `Context` has eight methods; a longer table is not one.
const MOST_METHODS: u64 = 32;

/// Where a process makes contexts: functions by their offsets in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextFunctions {
    /// The file, as the agent reaches it while the process lives: a path below `/proc/PID`.
    pub path: PathBuf,
    /// `PyContext_CopyCurrent`: returns a copy of the current context.
    pub copy_current: u64,
    /// Functions that return a context that is no copy of the current one: an empty one, or a copy of any other.
    pub unrelated: Vec<u64>,
    /// Function that deallocates a context, its first argument.
    pub dealloc: Option<u64>,
    /// Functions that enter a context, their first argument: `PyContext_Enter`, and the `run` method, which does not call it.
    pub enter: Vec<u64>,
}

/// `context_tp_dealloc`. Where it cannot be found a context seems to live until its address is used again.
pub(super) fn dealloc(memory: &Memory, file: &Interpreter, bias: u64) -> Option<u64> {
    let slot = file.context_type.wrapping_add(bias).wrapping_add(TP_DEALLOC);
    file.elf.file_offset(memory.read_u64(slot).ok()?.wrapping_sub(bias))
}

/// `context_tp_new` and the `copy` method. One that cannot be found is left out: then contexts that it makes may pass for
/// older ones at the same address for as long as those would have been remembered.
pub(super) fn unrelated(memory: &Memory, file: &Interpreter, bias: u64) -> Vec<u64> {
    let context_type = file.context_type.wrapping_add(bias);
    let new = memory.read_u64(context_type.wrapping_add(TP_NEW)).ok();
    [new, method(memory, context_type, b"copy")]
        .into_iter()
        .flatten()
        .filter_map(|address| file.elf.file_offset(address.wrapping_sub(bias)))
        .collect()
}

/// `PyContext_Enter` and the `run` method, which since 3.9 has an inner function in common with it; in 3.8 it calls it
/// (Python/context.c).
pub(super) fn enter(memory: &Memory, file: &Interpreter, bias: u64) -> Vec<u64> {
    let context_type = file.context_type.wrapping_add(bias);
    let run = (file.version.series() >= (3, 9)).then(|| method(memory, context_type, b"run")).flatten();
    let run = run.and_then(|address| file.elf.file_offset(address.wrapping_sub(bias)));
    file.enter.into_iter().chain(run).collect()
}

/// Where a file's interpreter shows that it has come so far as to initialise its types: an address before the load bias is
/// added, and the bits of the word there of which one is set then.
pub(super) fn readiness(file: &Interpreter) -> (u64, u32) {
    (file.context_type.wrapping_add(TP_FLAGS), READY)
}

/// Whether the interpreter has come so far as to initialise its types.
pub(super) fn type_is_ready(memory: &Memory, file: &Interpreter, bias: u64) -> io::Result<bool> {
    let (flags, ready) = readiness(file);
    Ok(memory.read_u32(flags.wrapping_add(bias))? & ready != 0)
}

/// `ml_meth` of the method of this name.
fn method(memory: &Memory, context_type: u64, wanted: &[u8]) -> Option<u64> {
    let methods = memory.read_u64(context_type.wrapping_add(TP_METHODS)).ok()?;
    (0..MOST_METHODS).map(|index| methods.wrapping_add(index * METHOD_DEF)).find_map(|method| {
        let name = memory.read_u64(method).ok()?;
        let found = name != 0 && memory.read_c_string(name, 8).ok()? == wanted;
        found.then(|| memory.read_u64(method.wrapping_add(8)).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::super::inspect;
    use super::super::testing::{PYENV, Python};

    #[test]
    fn finds_the_static_functions_of_every_interpreter() {
        for version in ["3.8.18", "3.9.18", "3.10.13", "3.11.7", "3.12.1", "3.13.0", "debian"] {
            let interpreter = match version {
                "debian" => "/usr/bin/python3.11".to_owned(),
                _ => format!("{PYENV}/{version}/bin/python"),
            };
            if !std::path::Path::new(&interpreter).exists() {
                eprintln!("skipped {interpreter}: it is not installed");
                continue;
            }
            let python =
                Python::start(&interpreter, "print(1, flush=True); import sys; sys.stdin.read()").unwrap();
            let functions = inspect(python.pid()).unwrap().contexts.unwrap();
            assert_eq!(functions.unrelated.len(), 2, "{interpreter}");
            assert!(!functions.unrelated.contains(&functions.copy_current), "{interpreter}");
            assert!(functions.dealloc.is_some_and(|dealloc| !functions.unrelated.contains(&dealloc)));
        }
    }
}
