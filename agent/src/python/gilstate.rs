//! Where each thread keeps its `PyThreadState` since CPython 3.15: in the thread-local variable `_Py_tss_gilstate`
//! (gh-131185, Python/pystate.c), which took the place of `_PyRuntime.autoTSSkey`.
//!
//! No symbol names it in a stripped build, but the exported `PyGILState_GetThisThreadState` does nothing but return it.
//! Takes the machine code of that function; gives the way to the variable that the compiler chose, by the models of "ELF Handling
//! For Thread-Local Storage". x86-64 only. Anything unexpected is no way at all.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used))]

/// The function is not longer than this, in bytes.
pub(super) const LONGEST: usize = 64;

/// The way to the variable of the current thread. Addresses are before the load bias is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// In an executable: at the thread pointer plus this.
    LocalExec(i32),
    /// In a library that is loaded at the start: at the thread pointer plus the number at this address.
    InitialExec(u64),
    /// In any other library: in the module's block of thread-local variables.
    Dynamic {
        /// Address of a `tls_index`: the module, and an offset in its block.
        index: u64,
        /// More bytes into the block.
        offset: i32,
    },
}

/// Reads the function's code, which is at `address` in the file's terms.
pub(super) fn decode(code: &[u8], address: u64) -> Option<Variable> {
    let mut rest = Code { code, address };
    rest.skip(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64
    // mov %fs:offset, %rax
    if rest.skip(&[0x64, 0x48, 0x8b, 0x04, 0x25]) {
        let offset = rest.number()?;
        return rest.returns().then_some(Variable::LocalExec(offset));
    }
    // mov offset(%rip), %rax; mov %fs:(%rax), %rax
    if rest.skip(&[0x48, 0x8b, 0x05]) {
        let at = rest.relative()?;
        return (rest.skip(&[0x64, 0x48, 0x8b, 0x00]) && rest.returns()).then_some(Variable::InitialExec(at));
    }
    let pushed = rest.skip(&[0x55]); // push %rbp
    let framed = pushed && rest.skip(&[0x48, 0x89, 0xe5]); // mov %rsp, %rbp
    let aligned = !pushed && rest.skip(&[0x48, 0x83, 0xec, 0x08]); // sub $8, %rsp
    rest.skip(&[0x66]); // data16, padding of the general dynamic model
    // lea index(%rip), %rdi; call __tls_get_addr
    if !rest.skip(&[0x48, 0x8d, 0x3d]) {
        return None;
    }
    let index = rest.relative()?;
    let called = rest.skip(&[0xe8]) // call __tls_get_addr@PLT
        || rest.skip(&[0x66, 0x66, 0x48, 0xe8]) // the same, padded
        || rest.skip(&[0x66, 0x48, 0xff, 0x15]) // call *__tls_get_addr@GOT(%rip), padded
        || rest.skip(&[0xff, 0x15]);
    rest.number().filter(|_| called)?;
    // The frame may be left before or after the variable is read.
    let leave = |rest: &mut Code<'_>| {
        rest.skip(if pushed { &[0x5d] } else { &[0x48, 0x83, 0xc4, 0x08] }) || (framed && rest.skip(&[0xc9]))
    };
    let needs_leave = pushed || aligned;
    let left = needs_leave && leave(&mut rest);
    let offset = if rest.skip(&[0x48, 0x8b, 0x80]) {
        rest.number()? // mov offset(%rax), %rax
    } else if rest.skip(&[0x48, 0x8b, 0x40]) {
        i32::from(rest.byte()?.cast_signed())
    } else if rest.skip(&[0x48, 0x8b, 0x00]) {
        0
    } else {
        return None;
    };
    let left = left || !needs_leave || leave(&mut rest);
    (left && rest.returns()).then_some(Variable::Dynamic { index, offset })
}

/// Instructions, and the address of the first one.
struct Code<'a> {
    code: &'a [u8],
    address: u64,
}

impl Code<'_> {
    /// Steps over these bytes, if they are next.
    fn skip(&mut self, bytes: &[u8]) -> bool {
        let Some(rest) = self.code.strip_prefix(bytes) else { return false };
        self.address = self.address.wrapping_add(bytes.len() as u64);
        self.code = rest;
        true
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.code.first()?;
        self.skip(&[byte]).then_some(byte)
    }

    fn number(&mut self) -> Option<i32> {
        let bytes = *self.code.first_chunk()?;
        self.skip(&bytes).then_some(i32::from_le_bytes(bytes))
    }

    /// The address that a number relative to the next instruction stands for.
    fn relative(&mut self) -> Option<u64> {
        let distance = self.number()?;
        Some(self.address.wrapping_add_signed(i64::from(distance)))
    }

    fn returns(&mut self) -> bool {
        self.skip(&[0xc3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &str, expected: Option<Variable>) {
        let code: Vec<u8> =
            code.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert_eq!(decode(&code, 0x1000), expected);
        for length in 0..code.len() {
            assert_eq!(decode(&code[..length], 0x1000), None, "the first {length} bytes");
        }
    }

    #[test]
    fn in_an_executable() {
        let variable = Some(Variable::LocalExec(-0x28));
        check("f3 0f 1e fa 64 48 8b 04 25 d8 ff ff ff c3", variable);
        check("64 48 8b 04 25 d8 ff ff ff c3", variable);
    }

    #[test]
    fn in_a_library() {
        let variable = Some(Variable::InitialExec(0x1007 + 0x20));
        check("48 8b 05 20 00 00 00 64 48 8b 00 c3", variable);
        let variable = |index, offset| Some(Variable::Dynamic { index, offset });
        // As gcc makes it for Debian's libpython3.15.
        let framed = "55 48 89 e5 48 8d 3d 31 52 00 00 e8 0c e9 cf ff 5d 48 8b 80 28 00 00 00 c3";
        check(framed, variable(0x100b + 0x5231, 0x28));
        let padded = "48 83 ec 08 66 48 8d 3d 10 00 00 00 66 66 48 e8 00 00 00 00 48 8b 00 48 83 c4 08 c3";
        check(padded, variable(0x100c + 0x10, 0));
        let short = "55 66 48 8d 3d 10 00 00 00 66 48 ff 15 00 00 00 00 48 8b 40 f8 5d c3";
        check(short, variable(0x1009 + 0x10, -8));
    }

    #[test]
    fn other_code_is_no_way() {
        check("31 c0 c3", None);
        check("48 8b 05 20 00 00 00 48 8b 00 c3", None);
        check("64 48 8b 04 25 d8 ff ff ff 90 c3", None);
        check("55 48 8d 3d 31 52 00 00 e8 0c e9 cf ff 48 8b 00 c3", None);
    }
}
