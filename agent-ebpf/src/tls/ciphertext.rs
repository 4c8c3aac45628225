//! Which socket a TLS connection goes over: by the ciphertext, and by what OpenSSL does itself.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use pitviper_ebpf::abi::fingerprint::mix;
use pitviper_ebpf::abi::{
    Clocks, Counter, DATA_END, DATA_RECEIVED, Header, RecordKind, SocketData, SocketId, SyscallKind,
};

use super::objects::{
    Binding, CALL_ACTIVE, CALL_RECEIVES, CALL_SEQUENCE, Call, Object, Received, SHAKING, TLS_CALLS,
    TLS_OBJECTS, TLS_RECEIVED, TLS_SENT, TLS_SOCKETS, bind, bound, object,
};
use super::tls_target;
use crate::capture::{MSG_NOT_STREAM, MSGHDR_IOV, Registers, is};
use crate::context::current_task;
use crate::maps::{count, epoch, global, send, stream};
use crate::read;
use crate::socket::Socket;

/// First bytes of a piece of ciphertext that are compared. After a record header (5 bytes), or a whole ChangeCipherSpec record
/// (6) and a header, and perhaps a counting nonce (8), thirteen encrypted bytes are left at least; of a ClientHello or
/// ServerHello they hold 21 random bytes (RFC 8446, section 4.1.2).
const COMPARED: u64 = 32;
/// A BIO with more in it than this is none.
const MOST_PENDING: u64 = 1 << 30;

/// Where OpenSSL keeps its input BIO in an `SSL` (the output BIO follows it), and a BIO its data: `rbio` and `ptr`.
///
/// OpenSSL 1.1.1 (`struct ssl_st` in ssl/ssl_local.h: version, method, rbio; `struct bio_st`: method, callback, callback_ex, cb_arg,
/// four ints, num, ptr), 3.0 and 3.1 (`bio_st` begins with a `libctx`), 3.2 to 3.6 (`struct ssl_connection_st`: 64 bytes of `ssl_st`,
/// user_ssl, version, rbio), and the same built without QUIC (no user_ssl).
const LAYOUTS: [(u64, u64); 4] = [(0x10, 0x38), (0x10, 0x40), (0x50, 0x40), (0x48, 0x40)];
/// `struct bio_buf_mem_st { BUF_MEM *buf; BUF_MEM *readp; }`, where `readp` is what has not been read yet: crypto/bio/bss_mem.c,
/// since 1.1.0. `struct buf_mem_st { size_t length; char *data; ... }`: openssl/buffer.h.
const READP: u64 = 8;

/// The first bytes of ciphertext.
type Head = [u64; (COMPARED / 8) as usize];

/// Whether bytes begin as a TLS record does: a content type of RFC 8446 section 5.1, and version 3.0 to 3.4.
#[inline(always)]
fn is_record(first: u64) -> bool {
    let (kind, major, minor) = (first & 0xff, (first >> 8) & 0xff, (first >> 16) & 0xff);
    matches!(kind, 20..=23) && major == 3 && minor <= 4
}

#[inline(always)]
fn hash(pid_tgid: u64, head: &Head) -> u64 {
    let mut hash = mix(0, pid_tgid >> 32);
    let mut index = 0;
    while index < head.len() {
        hash = mix(hash, head[index]);
        index += 1;
    }
    hash
}

/// What waits in a memory BIO of an `SSL`, if it begins a record: how much, and the first bytes.
#[inline(always)]
fn pending(ssl: u64, bio: u64, data: u64) -> Option<(u64, Head)> {
    let bio: u64 = read::user_if_there(ssl.wrapping_add(bio))?;
    let buffers: u64 = read::user_if_there(bio.wrapping_add(data))?;
    let unread: u64 = read::user_if_there(buffers.wrapping_add(READP))?;
    let [len, bytes] = read::user_if_there::<[u64; 2]>(unread)?;
    if !(COMPARED..=MOST_PENDING).contains(&len) {
        return None;
    }
    let head: Head = read::user_if_there(bytes)?;
    is_record(head[0]).then_some((len, head))
}

/// Before OpenSSL reads from a memory BIO: from which socket did that come?
#[inline(never)]
pub(super) fn find_received(pid_tgid: u64, key: u64, ssl: u64) -> u32 {
    if let Some(binding) = bound(key) {
        // SAFETY: the pointer is to a map value.
        if unsafe { (*binding).fresh } == SHAKING {
            behind_handshake(ssl, binding);
        }
        return 0;
    }
    let mut index = 0;
    while index < LAYOUTS.len() {
        let (bio, data) = LAYOUTS[index];
        index += 1;
        let Some((_, head)) = pending(ssl, bio, data) else { continue };
        let hash = hash(pid_tgid, &head);
        // SAFETY: the value is copied at once.
        let Some(found) = unsafe { TLS_RECEIVED.get(hash) }.copied() else { continue };
        if found.socket.sock == 0 {
            continue;
        }
        let _ = TLS_RECEIVED.remove(hash);
        bind(pid_tgid, key, found.socket);
        if found.has_sequence != 0
            && let Some(binding) = bound(key)
        {
            // SAFETY: the pointer is to a map value.
            unsafe {
                (*binding).received = found.sequence;
                (*binding).after = found.after;
                (*binding).fresh = 1;
            }
        }
        break;
    }
    0
}

/// The first plaintext after a handshake may have come with the end of that: it begins as many bytes before the end of what was
/// received as are left in the BIO.
#[inline(always)]
fn behind_handshake(ssl: u64, binding: *mut Binding) {
    let mut index = 0;
    // SAFETY: the pointer is to a map value.
    unsafe { (*binding).fresh = 0 };
    while index < LAYOUTS.len() {
        let (bio, data) = LAYOUTS[index];
        index += 1;
        if let Some((len, _)) = pending(ssl, bio, data) {
            // SAFETY: as above.
            unsafe {
                (*binding).received = (*binding).after.wrapping_sub(len as u32);
                (*binding).fresh = 1;
            }
            break;
        }
    }
}

/// After OpenSSL has written to a memory BIO: whoever sends this sends it for this object.
#[inline(never)]
pub(super) fn await_sending(pid_tgid: u64, key: u64, ssl: u64) -> u32 {
    if bound(key).is_some() {
        return 0;
    }
    let Some(object) = object(key) else { return 0 };
    // SAFETY: the pointer is to a map value.
    let id = SocketId { sock: key, inode: unsafe { (*object).inode } };
    let mut index = 0;
    while index < LAYOUTS.len() {
        let (bio, data) = LAYOUTS[index];
        index += 1;
        let Some((_, head)) = pending(ssl, bio + 8, data) else { continue };
        if TLS_SENT.insert(hash(pid_tgid, &head), id, 0).is_err() {
            count(Counter::MapUpdateFailed);
        }
        break;
    }
    0
}

/// What a system call moved over a socket. It is handed on in this CPU's map and not on the stack, of which programs have 512
/// bytes for a call and all that it calls, and before Linux 5.14 a function at least 32.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Moved {
    pid_tgid: u64,
    socket: SocketId,
    /// Where the first bytes are in user memory, or 0.
    first: u64,
    /// What is there, if they begin a record, or 0.
    head: u32,
    /// TCP sequence number after the last byte, if `is_tcp` is not 0.
    after: u32,
    len: u64,
    is_tcp: u32,
    received: u32,
}

#[map]
static TLS_MOVED: PerCpuArray<Moved> = PerCpuArray::with_max_entries(1, 0);

/// A system call of a process with probes on its TLS libraries returned `result`. Tells if what it moved is ciphertext of a
/// known TLS connection. Looks at the first buffer of the call only; what it does not understand is none.
///
/// Its parts are functions: the verifier goes through each of them once, and not once for all that follows.
#[inline(always)]
pub(crate) fn carries(pid_tgid: u64, kind: u8, regs: Registers, result: i64) -> bool {
    if describe(pid_tgid, kind, regs, result) == 0 {
        return false;
    }
    inside();
    known() != 0 || compare() != 0
}

/// Fills in [`Moved`]. Gives 0 if there is nothing of interest.
#[inline(never)]
fn describe(pid_tgid: u64, kind: u8, regs: Registers, result: i64) -> u32 {
    let received =
        is(kind, SyscallKind::Read) || is(kind, SyscallKind::Recvfrom) || is(kind, SyscallKind::Recvmsg);
    let sent =
        is(kind, SyscallKind::Write) || is(kind, SyscallKind::Writev) || is(kind, SyscallKind::Sendmsg);
    if result < 0 || !(received || sent) {
        return 0;
    }
    let (fd, second) = (regs.argument(global!(regs_args[0])), regs.argument(global!(regs_args[1])));
    let flags = if is(kind, SyscallKind::Recvfrom) {
        regs.argument(global!(regs_args[3]))
    } else if is(kind, SyscallKind::Recvmsg) {
        regs.argument(global!(regs_args[2]))
    } else {
        0
    };
    if flags & MSG_NOT_STREAM != 0 {
        return 0;
    }
    let Some(socket) = Socket::of_descriptor(fd as u32, 0) else { return 0 };
    let first = if is(kind, SyscallKind::Recvmsg) || is(kind, SyscallKind::Sendmsg) {
        read::user_if_there::<u64>(second + MSGHDR_IOV).and_then(read::user_if_there).unwrap_or(0)
    } else if is(kind, SyscallKind::Writev) {
        read::user_if_there(second).unwrap_or(0)
    } else {
        second
    };
    let head = read::user_if_there::<u32>(first).filter(|head| is_record(u64::from(*head)));
    let after = socket.sequence(received);
    let Some(moved) = TLS_MOVED.get_ptr_mut(0) else { return 0 };
    // SAFETY: the pointer is to this CPU's map value, and no other program of this CPU uses it meanwhile: the tracepoint runs
    // with preemption disabled.
    unsafe {
        *moved = Moved {
            pid_tgid,
            socket: socket.id,
            first,
            head: head.unwrap_or(0),
            after: after.unwrap_or(0),
            len: result as u64,
            is_tcp: u32::from(after.is_some()),
            received: u32::from(received),
        };
    }
    1
}

/// If the thread is inside OpenSSL, this is its connection's socket.
#[inline(never)]
fn inside() -> u32 {
    let Some(moved) = TLS_MOVED.get_ptr_mut(0) else { return 0 };
    // SAFETY: see `describe`.
    let Moved { pid_tgid, socket, head, after, len, is_tcp, received, .. } = unsafe { *moved };
    let Some(call) = TLS_CALLS.get_ptr_mut(pid_tgid) else { return 0 };
    // SAFETY: the pointer is to a map value, and only its own thread uses it.
    let Call { object: key, flags, .. } = unsafe { *call };
    if flags & CALL_ACTIVE == 0 || len == 0 || head == 0 {
        return 0;
    }
    // SAFETY: the pointer is to a map value.
    if bound(key).is_none_or(|binding| unsafe { (*binding).inode } != socket.inode) {
        bind(pid_tgid, key, socket);
    }
    if is_tcp == 0 {
        return 0;
    }
    if received != 0 {
        // OpenSSL reads the header of a record by itself, so that what it gives out begins with the last one.
        if let Some(binding) = bound(key) {
            // SAFETY: as above.
            unsafe {
                (*binding).received = after.wrapping_sub(len as u32);
                (*binding).fresh = 1;
            }
        }
    } else if flags & (CALL_SEQUENCE | CALL_RECEIVES) == 0 {
        // SAFETY: as above.
        unsafe {
            (*call).sequence = after.wrapping_sub(len as u32);
            (*call).flags = flags | CALL_SEQUENCE;
        }
    }
    0
}

/// Whether the socket carries a TLS connection. Of that the daemon is told when nothing more will come.
#[inline(never)]
fn known() -> u32 {
    let Some(moved) = TLS_MOVED.get_ptr_mut(0) else { return 0 };
    // SAFETY: see `describe`.
    let Moved { pid_tgid, socket, after, len, is_tcp, received, .. } = unsafe { *moved };
    let Some(binding) = TLS_SOCKETS.get_ptr_mut(socket.sock) else { return 0 };
    // SAFETY: the pointer is to a map value.
    let Binding { tls, inode, fresh, .. } = unsafe { *binding };
    // SAFETY: the value is copied at once.
    let alive = unsafe { TLS_OBJECTS.get(tls.sock) }.is_some_and(|object| object.inode == tls.inode);
    if inode != socket.inode || !alive {
        let _ = TLS_SOCKETS.remove(socket.sock);
        return 0;
    }
    if received != 0 && len == 0 {
        ended(pid_tgid, tls);
    } else if received != 0 && is_tcp != 0 {
        // SAFETY: as above.
        unsafe {
            (*binding).after = after;
            if fresh == 0 {
                (*binding).received = after.wrapping_sub(len as u32);
                (*binding).fresh = 1;
            }
        }
    }
    // The daemon has to be told who the ends of the socket are.
    // SAFETY: as above.
    u32::from(stream(socket.sock).is_some_and(|stream| unsafe { (*stream).inode } == socket.inode))
}

#[inline(always)]
fn ended(pid_tgid: u64, tls: SocketId) {
    let Some(target) = tls_target(pid_tgid) else { return };
    let Some(object) = TLS_OBJECTS.get_ptr_mut(tls.sock) else { return };
    // SAFETY: the pointer is to a map value.
    let Object { inode, received, .. } = unsafe { *object };
    if inode != tls.inode {
        return;
    }
    let record = SocketData {
        header: Header {
            kind: RecordKind::SocketData as u16,
            flags: epoch() | DATA_RECEIVED | DATA_END,
            pid: (pid_tgid >> 32) as u32,
            // SAFETY: the helper has no preconditions.
            ktime_ns: unsafe { bpf_ktime_get_ns() },
        },
        task: current_task(pid_tgid, &target),
        clocks: Clocks::NONE,
        socket: tls,
        position: received,
        len: 0,
        head_len: 0,
        tail_len: 0,
        sequence: 0,
    };
    send(&record, Counter::RingFullData);
}

/// Compares what a socket that is not known to carry TLS has sent or received with the ciphertext of connections whose socket
/// is not known. Gives 1 if it has found one.
#[inline(never)]
fn compare() -> u32 {
    let Some(moved) = TLS_MOVED.get_ptr_mut(0) else { return 0 };
    // SAFETY: see `describe`.
    let Moved { pid_tgid, socket, first, head, after, len, is_tcp, received } = unsafe { *moved };
    if head == 0 || len < COMPARED {
        return 0;
    }
    let Some(head) = read::user_if_there::<Head>(first) else { return 0 };
    let hash = hash(pid_tgid, &head);
    if received != 0 {
        let mut piece = Received {
            socket,
            sequence: after.wrapping_sub(len as u32),
            after,
            has_sequence: u64::from(is_tcp),
        };
        // SAFETY: the value is copied at once.
        if let Some(other) = unsafe { TLS_RECEIVED.get(hash) }.copied()
            && (other.socket.sock != socket.sock || other.socket.inode != socket.inode)
        {
            piece.socket = SocketId { sock: 0, inode: 0 };
        }
        if TLS_RECEIVED.insert(hash, piece, 0).is_err() {
            count(Counter::MapUpdateFailed);
        }
        return 0;
    }
    // SAFETY: the value is copied at once.
    let Some(tls) = unsafe { TLS_SENT.get(hash) }.copied() else { return 0 };
    let _ = TLS_SENT.remove(hash);
    // SAFETY: as above.
    if unsafe { TLS_OBJECTS.get(tls.sock) }.is_some_and(|object| object.inode == tls.inode) {
        bind(pid_tgid, tls.sock, socket);
    }
    0
}
