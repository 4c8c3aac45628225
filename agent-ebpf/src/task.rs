//! The current task: its thread pointer and its open files.
//!
//! Where the kernel hands out a typed pointer to it, the verifier knows what is behind, and programs follow pointers by plain
//! loads, each many times cheaper than a call of `bpf_probe_read_kernel`. What they load from a NULL or stale
//! pointer is 0. An array is the end of that: what is at an index has no type.

use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;

use crate::maps::global;
use crate::read;

/// The thread pointer of the current thread: `fsbase` on x86-64.
#[inline(always)]
pub(crate) fn thread_pointer() -> Option<u64> {
    let offset = global!(task_thread_pointer);
    if global!(typed_task) != 0 {
        // SAFETY: where the helper is missing the branch is dead, and the verifier, which knows the constants, removes it.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: the verifier knows the type.
        return Some(unsafe { typed(task.cast(), offset) });
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    read::kernel(task, offset)
}

/// The `struct file` behind a descriptor of the current process: `current->files->fdt->fd[fd]`.
#[inline(always)]
pub(crate) fn file(fd: u32) -> Option<u64> {
    let (files, table) = (global!(task_files), global!(files_fdt));
    let (size, array) = (global!(fdt_max_fds), global!(fdt_fd));
    let (size, array): (u32, u64) = if global!(typed_task) != 0 {
        // SAFETY: as above, of all types on the way.
        unsafe {
            let table = typed(typed(bpf_get_current_task_btf().cast(), files), table);
            (typed(table, size), typed(table, array))
        }
    } else {
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        let files = read::kernel(task, files)?;
        read::kernel_pair::<_, _, 2>(read::kernel(files, table)?, size, array)?
    };
    if fd >= size {
        return None;
    }
    let file: u64 = read::kernel(array + u64::from(fd) * 8, 0)?;
    if file == 0 { None } else { Some(file) }
}

/// The `T` at `base + offset`, where the verifier knows the type behind `base`, and the offset as a constant.
///
/// # Safety
/// The pointer must be one that the verifier allows to be followed.
#[inline(always)]
pub(crate) unsafe fn typed<T>(base: *const u8, offset: u32) -> T {
    // SAFETY: the caller's promise.
    unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
}
