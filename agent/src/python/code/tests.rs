//! Code objects of live interpreters, read from outside, against what Python itself says of them.

use super::*;
use crate::python::inspect;
use crate::python::layout;
use crate::python::testing::{PYENV, Python};

/// One line per code object: address, first line, whether resumable, qualified name, file, and `position:line` pairs
/// ("-" where there is no line); fields are separated by tabs and objects by "\x1e".
const PROGRAM: &str = r##"
import sys, asyncio, argparse, typing, dis, collections, types
codes = []
def walk(code, prefix):
    codes.append(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            walk(constant, prefix)
for module in (argparse, typing, dis, collections, asyncio.base_events):
    with open(module.__file__, encoding="utf-8") as source:
        walk(compile(source.read(), module.__file__, "exec"), "")
source = "# comment\n\n\n\ndef größe(): return [x for x in 'ß']\ndef 数(): \n" + "\n" * 700 + "    return lambda: (yield\n\n)\nclass Ж:\n    async def 関数(self):\n        async for x in self: await x\n"
walk(compile(source, "naïve/файл.py", "exec"), "")
walk(compile("lambda: 0", "<string>", "eval"), "")
def lines(code):
    if sys.version_info >= (3, 10):
        found = []
        for start, end, line in code.co_lines():
            found += [(position, line) for position in range(start, end, 2)]
        return found
    starts = sorted(dis.findlinestarts(code))
    return [(position, [line for start, line in starts if start <= position][-1])
            for position in range(0, len(code.co_code), 2) if starts and starts[0][0] <= position]
def describe(code):
    pairs = " ".join("%d:%s" % (position, "-" if line is None else line) for position, line in lines(code))
    name = getattr(code, "co_qualname", code.co_name)
    resumable = int(bool(code.co_flags & (0x20 | 0x80 | 0x200)))
    return "\t".join((str(id(code)), str(code.co_firstlineno), str(resumable), name, code.co_filename, pairs))
sys.stdout.reconfigure(encoding="utf-8")
print("\x1e".join(describe(code) for code in codes))
sys.stdout.flush()
sys.stdin.read()
"##;

fn check(interpreter: &str) {
    let Some(python) = Python::start(interpreter, PROGRAM) else { return };
    let instance = inspect(python.pid()).unwrap();
    let layout = layout::of(instance.version.series()).unwrap();
    let mut reader = CodeReader::open(python.pid(), layout).unwrap();
    let (mut objects, mut instructions) = (0, 0);
    for object in python.answer.split('\x1e') {
        let [address, first_line, resumable, name, file, pairs] =
            object.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let address: u64 = address.parse().unwrap();
        let expected = reader.fingerprint(address, 0).unwrap();
        let code = reader.read(address, expected).unwrap().unwrap();
        assert_eq!(code.name, name, "{interpreter}");
        assert_eq!(code.file, file, "{interpreter}: {name}");
        assert_eq!(code.first_line.to_string(), first_line, "{interpreter}: {name}");
        assert_eq!(u8::from(code.resumable).to_string(), resumable, "{interpreter}: {name}");
        for pair in pairs.split(' ').filter(|pair| !pair.is_empty()) {
            let (position, line) = pair.split_once(':').unwrap();
            if line != "-" {
                let read = code.lines.line(position.parse().unwrap());
                assert_eq!(read.to_string(), line, "{interpreter}: {name} at {position}");
                instructions += 1;
            }
        }
        objects += 1;
    }
    assert!(objects > 300 && instructions > 10_000, "{objects} objects, {instructions} instructions");
    refuses_others(&mut reader, &python);
}

/// What is not that code object, or none at all, is not read.
fn refuses_others(reader: &mut CodeReader, python: &Python) {
    let address: u64 = python.answer.split('\t').next().unwrap().parse().unwrap();
    let fingerprint = reader.fingerprint(address, 0).unwrap();
    assert_eq!(reader.read(address, fingerprint ^ 0x100).unwrap(), None);
    assert_eq!(reader.read(address, fingerprint | 0xf).unwrap(), None);
    // Without a part it is another fingerprint of the same object.
    let partial = reader.fingerprint(address, fingerprint::NAME).unwrap();
    assert!(reader.read(address, partial).unwrap().is_some());
    // The object's type is no code object.
    let of_type = reader.pointer(address, 8).unwrap();
    if let Ok(fingerprint) = reader.fingerprint(of_type, 0) {
        assert_eq!(reader.read(of_type, fingerprint).unwrap(), None);
    }
    // Any address, and whatever lies there.
    for anywhere in [0, 8, u64::MAX, u64::MAX - 100, 1 << 63, address + 8, address ^ (1 << 40)] {
        assert_eq!(reader.read(anywhere, fingerprint).unwrap_or(None), None);
    }
    for step in 0..512 {
        let anywhere = address - 2048 + step * 8;
        if anywhere != address {
            assert_eq!(reader.read(anywhere, fingerprint).unwrap_or(None), None);
        }
    }
}

macro_rules! checks {
    ($($name:ident: $interpreter:expr;)*) => {
        $(#[test] fn $name() { check($interpreter); })*
    };
}

checks! {
    cpython_3_8: &format!("{PYENV}/3.8.18/bin/python");
    cpython_3_9: &format!("{PYENV}/3.9.18/bin/python");
    cpython_3_10: &format!("{PYENV}/3.10.13/bin/python");
    cpython_3_11: &format!("{PYENV}/3.11.7/bin/python");
    cpython_3_11_of_debian: "/usr/bin/python3.11";
    cpython_3_12: &format!("{PYENV}/3.12.1/bin/python");
    cpython_3_13: &format!("{PYENV}/3.13.0/bin/python");
    cpython_3_14: "/usr/bin/python3.14";
}
