//! Finds the function inside OpenSSL that `SSL_read` and `SSL_read_ex` call, and that of the writing two: `ssl_read_internal` and
//! `ssl_write_internal` in ssl/ssl_lib.c, which no symbol names.
//!
//! A probe there costs a fraction: both forms are caught by one, and the kernel emulates a `push`, with which these functions begin,
//! while the `sub` of the exported ones has to be executed out of line, one instruction at a time (a second trap, and in a virtual machine an
//! expensive one). The exported forms do nothing but call it, so that a few instructions are all that has to be understood; what is
//! not understood is no evidence, and the exported functions are probed.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)
)]

/// As much code as is looked at, in bytes.
pub(super) const LONGEST: usize = 64;
/// Jumps that are followed: `SSL_write_ex` to `SSL_write_ex2`, since 3.3.
const MOST_JUMPS: usize = 2;

/// The function inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Internal {
    /// Its address, before the load bias is added.
    pub(super) address: u64,
    /// It takes flags before the pointer to the count: `ssl_write_internal` since 3.3.
    pub(super) takes_flags: bool,
}

/// What the function at `address` (an `_ex` form) calls with the very arguments that it was called with; `code` reads code.
pub(super) fn called(address: u64, code: impl Fn(u64) -> Option<[u8; LONGEST]>) -> Option<Internal> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    let mut takes_flags = false;
    let mut at = address;
    for _ in 0..=MOST_JUMPS {
        let bytes = code(at)?;
        let mut rest = bytes.as_slice();
        let target = loop {
            let offset = u64::try_from(bytes.len().checked_sub(rest.len())?).ok()?;
            rest = match rest {
                // endbr64
                [0xf3, 0x0f, 0x1e, 0xfa, rest @ ..] => rest,
                // sub $imm8,%rsp
                [0x48, 0x83, 0xec, _, rest @ ..] => rest,
                // mov %rcx,%r8 and xor %ecx,%ecx: flags of 0 are put before the pointer to the count.
                [0x49, 0x89, 0xc8, 0x31, 0xc9, rest @ ..] if !takes_flags => {
                    takes_flags = true;
                    rest
                }
                // call rel32, jmp rel32
                [opcode @ (0xe8 | 0xe9), a, b, c, d, ..] => {
                    let distance = i32::from_le_bytes([*a, *b, *c, *d]);
                    let next = at.checked_add(offset)?.checked_add(5)?;
                    break (*opcode == 0xe8, next.checked_add_signed(i64::from(distance))?);
                }
                _ => return None,
            };
        };
        at = target.1;
        if target.0 {
            // push %rbx and others, or push %r12 and others
            let begins = matches!(code(at)?, [0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..]);
            return begins.then_some(Internal { address: at, takes_flags });
        }
    }
    None
}

/// Whether the function at `address`, whose code this is, calls `internal`: the form that is not `_ex`.
pub(super) fn calls(address: u64, code: &[u8; LONGEST], internal: u64) -> bool {
    (0_u64..).zip(code.windows(5)).any(|(offset, window)| match window {
        [0xe8, a, b, c, d] => {
            let next = address.wrapping_add(offset).wrapping_add(5);
            next.wrapping_add_signed(i64::from(i32::from_le_bytes([*a, *b, *c, *d]))) == internal
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[(u64, &[u8])], expected: Option<(u64, bool)>) {
        let code = |address| {
            let (_, bytes) = pieces.iter().find(|(at, _)| *at == address)?;
            let mut code = [0xcc; LONGEST];
            code[..bytes.len()].copy_from_slice(bytes);
            Some(code)
        };
        let expected = expected.map(|(address, takes_flags)| Internal { address, takes_flags });
        assert_eq!(called(0x1000, code), expected);
    }

    const PUSH: &[u8] = b"\x41\x57\x41\x56";

    #[test]
    fn the_forms_that_compilers_made() {
        // 3.0: sub, call
        check(&[(0x1000, b"\x48\x83\xec\x08\xe8\xf7\x00\x00\x00"), (0x1100, PUSH)], Some((0x1100, false)));
        // 3.6: endbr64, and the internal function is before it
        check(
            &[(0x1000, b"\xf3\x0f\x1e\xfa\x48\x83\xec\x08\xe8\xf3\xfe\xff\xff"), (0xf00, PUSH)],
            Some((0xf00, false)),
        );
        // 3.5: SSL_write_ex jumps to SSL_write_ex2
        check(
            &[
                (0x1000, b"\x49\x89\xc8\x31\xc9\xe9\xf6\x00\x00\x00"),
                (0x1100, b"\x48\x83\xec\x08\xe8\xf7\x00\x00\x00"),
                (0x1200, PUSH),
            ],
            Some((0x1200, true)),
        );
    }

    #[test]
    fn what_is_not_understood_is_no_evidence() {
        // Another argument is changed: mov %rsi,%rdi
        check(&[(0x1000, b"\x48\x89\xf7\xe8\xf8\x00\x00\x00"), (0x1100, PUSH)], None);
        // What is called does not begin with a push.
        check(&[(0x1000, b"\x48\x83\xec\x08\xe8\xf7\x00\x00\x00"), (0x1100, b"\x48\x83\xec\x08")], None);
        check(&[(0x1000, b"\xe9\xfb\xff\xff\xff")], None);
        check(&[], None);
    }
}
