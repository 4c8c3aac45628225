//! Reading kernel and user memory: every failure is counted, none is fatal.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user};
use pitviper_ebpf::abi::Counter;

use crate::maps::count;

/// The `T` at `base + offset` in kernel memory.
#[inline(always)]
pub(crate) fn kernel<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) } {
        Ok(value) => Some(value),
        Err(_) => {
            count(Counter::KernelReadFailed);
            None
        }
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
