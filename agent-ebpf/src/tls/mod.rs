//! TLS: the plaintext of what OpenSSL encrypts, and the socket that the ciphertext goes over.
//!
//! Probes on `SSL_read`, `SSL_write` and their `_ex` kin report the plaintext as data records of a TLS connection, which is
//! known by its `SSL` object and has positions, verdicts, context and thread like a socket. Its socket is a fact that is
//! found out by evidence that cannot mislead, or not at all:
//!
//! - a socket call *inside* `SSL_read` or `SSL_write` on the same thread, with bytes that begin as a TLS record does: OpenSSL
//!   does its own input and output (`SSL_set_fd`, libpq's BIO);
//! - where a program does it for OpenSSL through memory BIOs (asyncio): the *ciphertext*. What waits in the `SSL` object's BIO
//!   when `SSL_read` is called is what came out of a socket before; what waits after `SSL_write` is what goes into one. The
//!   first 32 bytes are compared, by a hash: they hold a random or encrypted part. Bytes that two sockets had are
//!   no evidence.
//!
//! The BIO is found by offsets in OpenSSL's structures (`ciphertext::LAYOUTS`). Were they wrong, the bytes there would be no ciphertext
//! of any socket, and nothing would be found: all layouts are tried, and only while the socket is not known. From then on
//! the socket's own data are lengths at most.
//!
//! Unlike the tracepoints these programs may be preempted: they must not use the scratch area, which another program of the
//! same CPU would overwrite. Records are put together in the ring buffer.

mod ciphertext;
mod objects;
mod plaintext;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use pitviper_ebpf::abi::{CAPTURE_TLS, Counter, Target};

pub(crate) use ciphertext::carries;
use ciphertext::{await_sending, find_received};
use objects::{CALL_ACTIVE, CALL_RECEIVES, Call, SHAKING, TLS_CALLS, bound, freed, key, object};
pub(crate) use objects::{socket_gone, thread_gone};
use plaintext::moved_plaintext;

use crate::maps::{count, target};
use crate::read;

/// `int SSL_read(SSL *ssl, void *buf, int num)`
#[uprobe]
fn tls_read(ctx: ProbeContext) -> u32 {
    entered(&ctx, CALL_RECEIVES, None);
    0
}

/// `int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *readbytes)`
#[uprobe]
fn tls_read_ex(ctx: ProbeContext) -> u32 {
    entered(&ctx, CALL_RECEIVES, Some(3));
    0
}

/// `int SSL_write(SSL *ssl, const void *buf, int num)`
#[uprobe]
fn tls_write(ctx: ProbeContext) -> u32 {
    entered(&ctx, 0, None);
    0
}

/// `int SSL_write_ex(SSL *ssl, const void *buf, size_t num, size_t *written)`
#[uprobe]
fn tls_write_ex(ctx: ProbeContext) -> u32 {
    entered(&ctx, 0, Some(3));
    0
}

/// `int SSL_write_ex2(SSL *s, const void *buf, size_t num, uint64_t flags, size_t *written)`, since OpenSSL 3.3.
#[uprobe]
fn tls_write_ex2(ctx: ProbeContext) -> u32 {
    entered(&ctx, 0, Some(4));
    0
}

/// The return from any of these. They are leaves as far as Python goes: what they call is OpenSSL's and the C library's,
/// which never switches greenlets, so that a return probe is safe.
#[uretprobe]
fn tls_returned(ctx: RetProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(call) = TLS_CALLS.get_ptr_mut(pid_tgid) else { return 0 };
    // SAFETY: the pointer is to a map value, and only its own thread uses it.
    let done = unsafe { *call };
    if done.flags & CALL_ACTIVE == 0 {
        return 0;
    }
    // SAFETY: as above.
    unsafe { (*call).flags = 0 };
    let result: i32 = ctx.ret();
    if result <= 0 {
        return 0;
    }
    let len = if done.moved == 0 {
        result as u64
    } else {
        let Some(len) = read::user::<u64>(done.moved) else { return 0 };
        len
    };
    let Some(target) = tls_target(pid_tgid) else { return 0 };
    if len == 0 || len > u64::from(u32::MAX) {
        return 0;
    }
    if done.flags & CALL_RECEIVES == 0 {
        await_sending(pid_tgid, done.object, done.ssl);
    }
    moved_plaintext(pid_tgid, &target, &done, len);
    0
}

/// `int SSL_do_handshake(SSL *ssl)`, which `SSL_connect` and `SSL_accept` call. No return probe: it may call back into Python.
#[uprobe]
fn tls_handshake(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if tls_target(pid_tgid).is_some()
        && let Some(ssl) = ctx.arg::<u64>(0)
    {
        let key = key(pid_tgid, ssl);
        if object(key).is_some() {
            find_received(pid_tgid, key, ssl);
            // What has come so far begins with handshake.
            if let Some(binding) = bound(key) {
                // SAFETY: the pointer is to a map value.
                unsafe { (*binding).fresh = SHAKING };
            }
        }
    }
    0
}

/// `void SSL_free(SSL *ssl)`
#[uprobe]
fn tls_free(ctx: ProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if tls_target(pid_tgid).is_some()
        && let Some(ssl) = ctx.arg::<u64>(0)
    {
        freed(pid_tgid, key(pid_tgid, ssl));
    }
    0
}

#[inline(always)]
fn tls_target(pid_tgid: u64) -> Option<Target> {
    target((pid_tgid >> 32) as u32).filter(|target| target.capture & CAPTURE_TLS != 0)
}

/// A thread enters OpenSSL; `count_at`: which argument points to where it says how much it has moved, if one does.
#[inline(always)]
fn entered(ctx: &ProbeContext, flags: u32, count_at: Option<usize>) {
    let pid_tgid = bpf_get_current_pid_tgid();
    if tls_target(pid_tgid).is_none() {
        return;
    }
    let (Some(ssl), Some(buffer)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) else { return };
    let moved = match count_at {
        Some(argument) => ctx.arg::<u64>(argument).unwrap_or(0),
        None => 0,
    };
    let key = key(pid_tgid, ssl);
    if object(key).is_none() {
        return;
    }
    if flags & CALL_RECEIVES != 0 {
        find_received(pid_tgid, key, ssl);
    }
    let call = Call { object: key, ssl, buffer, moved, sequence: 0, flags: flags | CALL_ACTIVE };
    if let Some(known) = TLS_CALLS.get_ptr_mut(pid_tgid) {
        // SAFETY: the pointer is to a map value, and only its own thread uses it.
        unsafe { *known = call };
    } else if TLS_CALLS.insert(pid_tgid, call, 0).is_err() {
        count(Counter::MapUpdateFailed);
    }
}
