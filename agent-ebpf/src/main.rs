//! Pitviper's kernel programs. Each is passive: it reads, counts and reports; it changes nothing of the observed process.
//!
//! The tracepoints are BTF ones (`tp_btf`), so that neither kprobes nor a mounted tracefs is needed. Every program checks
//! first whether the process is a target: nothing of any other process is copied.
#![no_std]
#![no_main]
#![allow(
    clippy::needless_pass_by_value,
    reason = "the macros of the programs hand their contexts over by value"
)]

mod capture;
mod context;
mod maps;
mod process;
mod read;
mod socket;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{btf_tracepoint, uretprobe};
use aya_ebpf::programs::{BtfTracePointContext, RetProbeContext};
use aya_log_ebpf::debug;

/// `void sys_exit(struct pt_regs *regs, long ret)`, on return from every system call. The arguments of the call are
/// still in `regs`, so that one program sees what was asked, what was done, and the buffer with the bytes in it.
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    // The number comes before the target check because it is the cheaper one: a plain load and an array, on every
    // system call of the machine.
    let regs = capture::Registers::of(ctx.arg(0));
    let kind = maps::syscall_kind(regs.system_call());
    if kind == 0 {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(target) = maps::target((pid_tgid >> 32) as u32) else { return 0 };
    if target.capture != 0 {
        capture::system_call(pid_tgid, target, kind, regs, ctx.arg(1));
    }
    0
}

/// `void inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    let new_state: u32 = ctx.arg(2);
    socket::state_changed(sock, new_state);
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
    if process::exited() {
        debug!(&ctx, "target ended");
    }
    0
}

/// `PyObject *PyContext_CopyCurrent(void)`: a new `contextvars.Context`, child of the current one. The function is a
/// leaf that never switches stacks, which makes a return probe safe under greenlets.
#[uretprobe]
fn py_context_copy_current(ctx: RetProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(target) = maps::target((pid_tgid >> 32) as u32) else { return 0 };
    let child: u64 = ctx.ret();
    context::copied(pid_tgid, target, child);
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
