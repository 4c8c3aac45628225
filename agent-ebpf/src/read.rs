//! Reading kernel and user memory: every failure is counted, none is fatal.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::helpers::{self, bpf_probe_read_user};
use pitviper_ebpf::abi::Counter;

use crate::maps::count;

/// The `T` at `base + offset` in kernel memory.
#[inline(always)]
pub(crate) fn kernel<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    match unsafe { helpers::bpf_probe_read_kernel((base + u64::from(offset)) as *const T) } {
        Ok(value) => Some(value),
        Err(_) => {
            count(Counter::KernelReadFailed);
            None
        }
    }
}

/// Two fields behind `base` in kernel memory, by their offsets: in one read if both are in the first `WORDS` times eight
/// bytes, else in two. The offsets are constants for the verifier, which removes the other way.
#[inline(always)]
pub(crate) fn kernel_pair<A, B, const WORDS: usize>(base: u64, first: u32, second: u32) -> Option<(A, B)> {
    if first as usize > WORDS * 8 - size_of::<A>() || second as usize > WORDS * 8 - size_of::<B>() {
        return Some((kernel(base, first)?, kernel(base, second)?));
    }
    let mut words = MaybeUninit::<[u64; WORDS]>::uninit();
    let into = words.as_mut_ptr().cast::<u8>();
    // SAFETY: there is room for so many bytes; the helper checks the address.
    if unsafe { bpf_probe_read_kernel(into.cast(), WORDS as u32 * 8, base as *const _) } != 0 {
        count(Counter::KernelReadFailed);
        return None;
    }
    // SAFETY: the words have been written, and both fields are in them, aligned as they are in the structure.
    unsafe {
        Some((
            into.add(first as usize).cast::<A>().read_volatile(),
            into.add(second as usize).cast::<B>().read_volatile(),
        ))
    }
}

/// The `T` at `address` in the memory of the current process.
#[inline(always)]
pub(crate) fn user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(address as *const T) } {
        Ok(value) => Some(value),
        Err(_) => {
            count(Counter::UserReadFailed);
            None
        }
    }
}

/// The same where there may be nothing yet: a page that the process has not touched.
#[inline(always)]
pub(crate) fn user_if_there<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}
