//! Every cell, checked against every interpreter of this machine: from the thread pointer to the current context.

use pitviper_ebpf::abi::TlsKind;

use crate::python::instance::inspect;
use crate::python::memory::Memory;
use crate::python::testing::{PYENV, Python, command, in_chroot};

mod debug_offsets;
mod stacks;

/// Prints the thread pointer of a thread (glibc's `pthread_self`, which `get_ident` is), and the current context's
/// address, its type's address; all while in it, then waits there.
const IN_A_CONTEXT: &str = r"
import contextvars, sys, threading
variable = contextvars.ContextVar('variable')
variable.set(1)
context = contextvars.copy_context()
def inside():
    variable.set(2)
    print(threading.get_ident(), id(context), id(contextvars.Context))
    sys.stdout.flush()
    sys.stdin.read()
def run():
    context.run(inside)
if 'thread' in sys.argv:
    threading.Thread(target=run).start()
else:
    run()
";

fn check(interpreter: &str, series: (u8, u8)) {
    for whose in ["main", "thread"] {
        let command = || command(interpreter);
        let Some(python) = Python::start_command(command().args(["-c", IN_A_CONTEXT, whose])) else { return };
        let [thread_pointer, context, context_type] = python.numbers()[..] else {
            panic!("{}", python.answer)
        };

        let instance = inspect(python.pid()).unwrap();
        assert_eq!(instance.version.series(), series);
        assert!(instance.version.release.is_some());
        assert_eq!(instance.limit, None);
        let target = instance.target;
        let kind = if series < (3, 15) { TlsKind::GlibcFirstBlock } else { TlsKind::Static };
        assert_eq!(target.tls_kind, kind as u32);

        let memory = Memory::open(python.pid()).unwrap();
        let slot = thread_pointer.wrapping_add_signed(i64::from(target.slot_offset.cast_signed()));
        let tstate = memory.read_u64(slot).unwrap();
        let read = memory.read_u64(tstate + u64::from(target.context_offset)).unwrap();
        assert_eq!(read, context, "{interpreter}, {whose}: the current context");
        // `PyObject.ob_type`
        assert_eq!(memory.read_u64(read + 8).unwrap(), context_type, "{interpreter}, {whose}: its type");
        stacks::check(&mut command(), whose);
    }
    check_site(interpreter);
    debug_offsets::check(interpreter);
}

/// The probe's site holds the very bytes that the running function has at the address that `ctypes` knows.
fn check_site(interpreter: &str) {
    const ADDRESS: &str = r"
import sys
try:
    import ctypes
    print(ctypes.cast(ctypes.pythonapi.PyContext_CopyCurrent, ctypes.c_void_p).value)
except ImportError:
    print(0)
sys.stdout.flush()
sys.stdin.read()
";
    use std::os::unix::fs::FileExt as _;
    let python = Python::start(interpreter, ADDRESS).unwrap();
    let [address] = python.numbers()[..] else { panic!("{}", python.answer) };
    if address == 0 {
        eprintln!("skipped the probe site of {interpreter}: it was built without ctypes");
        return;
    }
    let site = inspect(python.pid()).unwrap().contexts.unwrap();
    let mut in_file = [0; 32];
    std::fs::File::open(&site.path).unwrap().read_exact_at(&mut in_file, site.copy_current).unwrap();
    let in_memory: [u8; 32] = Memory::open(python.pid()).unwrap().read(address).unwrap();
    assert_eq!(in_file, in_memory, "{interpreter}: PyContext_CopyCurrent");
}

macro_rules! checks {
    ($($name:ident: $interpreter:expr, $series:expr;)*) => {
        $(#[test] fn $name() { check($interpreter, $series); })*
    };
}

checks! {
    cpython_3_8: &format!("{PYENV}/3.8.18/bin/python"), (3, 8);
    cpython_3_9: &format!("{PYENV}/3.9.18/bin/python"), (3, 9);
    cpython_3_10: &format!("{PYENV}/3.10.13/bin/python"), (3, 10);
    cpython_3_11: &format!("{PYENV}/3.11.7/bin/python"), (3, 11);
    cpython_3_11_of_debian: "/usr/bin/python3.11", (3, 11);
    cpython_3_12: &format!("{PYENV}/3.12.1/bin/python"), (3, 12);
    cpython_3_13: &format!("{PYENV}/3.13.0/bin/python"), (3, 13);
    cpython_3_14: &in_chroot("python3.14"), (3, 14);
    cpython_3_15: &in_chroot("python3.15"), (3, 15);
}
