//! Pitviper's kernel programs. Each is passive: it reads, counts and reports; it changes nothing of the observed process.
//!
//! The tracepoints are BTF ones (`tp_btf`), so that neither kprobes nor a mounted tracefs is needed; only from Linux 7.0
//! on one of them is perf's, which needs tracefs. Every program checks first whether the process is a target: nothing of
//! any other process is copied.
#![no_std]
#![no_main]
#![allow(
    clippy::needless_pass_by_value,
    reason = "the macros of the programs hand their contexts over by value"
)]

mod capture;
mod context;
mod greenlet;
mod maps;
mod process;
mod profile;
mod publish;
mod read;
mod socket;
mod task;
mod thread;
mod tls;
mod work;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, perf_event, tracepoint, uprobe, uretprobe};
use aya_ebpf::programs::{
    BtfTracePointContext, PerfEventContext, ProbeContext, RetProbeContext, TracePointContext,
};
use aya_log_ebpf::debug;
use pitviper_ebpf::abi::{SyscallKind, Target};

use crate::maps::global;

/// `void sys_exit(struct pt_regs *regs, long ret)`, on return from every system call. The arguments of the call are
/// still in `regs`, so that one program sees what was asked, what was done, and the buffer with the bytes in it.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    system_call_returned(ctx.arg(0), ctx.arg(1));
    0
}

/// The same through perf's `raw_syscalls:sys_exit`, which disables preemption, for kernels where BTF tracepoints no longer
/// do: a program that is preempted is skipped, silently, for every other thread of its CPU until it goes on.
#[tracepoint]
fn sys_exit_unpreempted(ctx: TracePointContext) -> u32 {
    /// `/sys/kernel/tracing/events/raw_syscalls/sys_exit/format`: 8 bytes common to all events, `long id`, `long ret`.
    const RESULT: usize = 16;
    // SAFETY: the context is as large as the format says.
    let Ok(result) = (unsafe { ctx.read_at::<i64>(RESULT) }) else { return 0 };
    // SAFETY: the helpers have no preconditions.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) };
    system_call_returned(regs as *const u8, result);
    0
}

#[inline(always)]
fn system_call_returned(regs: *const u8, result: i64) {
    // The number comes before the target check because it is the cheaper one: a plain load and an array, on every
    // system call of the machine.
    let regs = capture::Registers::of(regs);
    let kind = maps::syscall_kind(regs.system_call());
    if kind == 0 {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(target) = maps::target((pid_tgid >> 32) as u32) else { return };
    let Some(scratch) = maps::scratch() else { return };
    // SAFETY: the pointer is to this CPU's map value, and no other program of this CPU uses it meanwhile: the tracepoint runs
    // with preemption disabled.
    let target = unsafe {
        (*scratch).transfer.target = target;
        &(*scratch).transfer.target
    };
    if target.capture != 0 && kind != SyscallKind::Map as u8 {
        capture::system_call(pid_tgid, scratch, kind, regs, result);
    } else {
        process::stirred((pid_tgid >> 32) as u32, target, kind, regs, result);
    }
}

/// `void inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    let new_state: u32 = ctx.arg(2);
    socket::state_changed(sock, new_state);
    0
}

/// `void sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, ...)`, in the context of `prev`, with
/// interrupts disabled. Attached only while clocks are kept.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    thread::switched(bpf_get_current_pid_tgid(), preempted & 1 != 0, ctx.arg(1), ctx.arg(2));
    0
}

/// `void sched_wakeup(struct task_struct *p)`
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    thread::woken(ctx.arg(0));
    0
}

/// `void sched_process_fork(struct task_struct *parent, struct task_struct *child)`
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let child: *const u8 = ctx.arg(1);
    if let Some(child) = process::forked(child) {
        debug!(&ctx, "target forked process {}", child);
    }
    0
}

/// `void sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    if process::executed() {
        debug!(&ctx, "target runs a new program");
    }
    0
}

/// `void sched_process_exit(struct task_struct *p, ...)`, once for every thread, in its own context.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    if process::exited(task) {
        debug!(&ctx, "target ended");
    }
    0
}

/// `PyObject *PyContext_CopyCurrent(void)`: a new `contextvars.Context`, child of the current one. The function is a
/// leaf that never switches stacks, which makes a return probe safe under greenlets.
///
/// One probe serves all processes of a file where it can be inherited; it has no cookie. Where each process has its own,
/// there is this: before Linux 6.13 a process's hit runs the probes of all processes on the same file, entry probes
/// aside: the kernel forgets to look whose they are. Cookies tell them apart. Without cookies, before 5.15, there are
/// several records of one copy, which changes nothing but the cost: nothing of the thread can come between them.
#[uretprobe]
fn py_context_copy_current(ctx: RetProbeContext) -> u32 {
    context_made(&ctx, false);
    0
}

/// `context_tp_new` and the `copy` method of `contextvars.Context`: a new context that is no copy of the current one, and
/// has nothing to do with what was at its address before.
#[uretprobe]
fn py_context_created(ctx: RetProbeContext) -> u32 {
    context_made(&ctx, true);
    0
}

/// `tp_dealloc` of `contextvars.Context`: `static void context_tp_dealloc(PyContext *self)`. An entry probe needs no cookie.
#[uprobe]
fn py_context_gone(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if maps::target((pid_tgid >> 32) as u32).is_some()
        && let Some(context) = ctx.arg::<u64>(0)
    {
        context::gone(pid_tgid, context);
    }
    0
}

/// `int PyContext_Enter(PyObject *octx)`, and `run` of `contextvars.Context`, whose first argument is it too. Attached only
/// while clocks are kept. An entry probe needs no cookie.
#[uprobe]
fn py_context_entered(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if let Some(target) = maps::target((pid_tgid >> 32) as u32)
        && target.capture != 0
        && let Some(context) = ctx.arg::<u64>(0)
    {
        context::entered(pid_tgid, &target, context);
    }
    0
}

#[inline(always)]
fn context_made(ctx: &RetProbeContext, unrelated: bool) {
    if let Some((pid_tgid, target)) = probed(ctx) {
        context::made(pid_tgid, target, ctx.ret(), unrelated);
    }
}

/// The current thread and its process, if that is a target that this probe is meant for.
#[inline(always)]
pub(crate) fn probed(ctx: &impl EbpfContext) -> Option<(u64, Target)> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    if global!(has_cookies) != 0 {
        // SAFETY: the context is the program's own. Where the helper is missing the branch is dead, and the verifier,
        // which knows the constants, removes it.
        let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
        if cookie != 0 && cookie != u64::from(pid) {
            return None;
        }
    }
    let target = maps::target(pid)?;
    // An interpreter that is only just starting may inherit its probe from before the exec.
    if target.capture == 0 { None } else { Some((pid_tgid, target)) }
}

/// The sampling timer of a CPU went off: `PERF_COUNT_SW_CPU_CLOCK`, in the interrupt of an hrtimer.
#[perf_event]
fn cpu_sample(ctx: PerfEventContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if let Some(target) = maps::target((pid_tgid >> 32) as u32) {
        // SAFETY: the helper has no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        profile::sample(Some(ctx.as_ptr()), pid_tgid, &target, 0, now);
    }
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_probe_read_user` and others are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
