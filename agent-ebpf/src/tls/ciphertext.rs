//! Which socket a TLS connection goes over: by the ciphertext, and by what OpenSSL does itself.

use core::ptr::null_mut;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use pitviper_ebpf::abi::fingerprint::mix;
use pitviper_ebpf::abi::{
    Clocks, Counter, DATA_END, DATA_RECEIVED, Header, RecordKind, SocketData, SocketId,
};

use super::objects::{
    Binding, CALL_ACTIVE, CALL_RECEIVES, CALL_SEQUENCE, Call, Object, Received, SHAKING, TLS_CALLS,
    TLS_OBJECTS, TLS_RECEIVED, TLS_SENT, TLS_SOCKETS, bind, bound, object,
};
use crate::capture::{Buffer, Transfer};
use crate::context::current_task;
use crate::maps::{Scratch, count, epoch, send};
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

/// Where the first bytes are that a system call moved, if they begin a record.
#[inline(always)]
fn head(moved: &Transfer) -> Option<u64> {
    let Buffer { at, is_list, .. } = moved.buffer;
    let first = if is_list != 0 { read::user_if_there(at)? } else { at };
    let head: u32 = read::user_if_there(first)?;
    is_record(u64::from(head)).then_some(first)
}

/// A system call of a process with probes on its TLS libraries moved bytes over a socket. Tells if they are ciphertext of a
/// known TLS connection. Looks at the first buffer of the call only.
///
/// Its parts are functions: the verifier goes through each of them once, and not once for all that follows.
#[inline(never)]
pub(crate) fn carries(scratch: *mut Scratch) -> u32 {
    // SAFETY: the pointer is to this CPU's map value, and no other program of this CPU uses it meanwhile: the tracepoint runs
    // with preemption disabled.
    let moved = unsafe { &mut (*scratch).transfer };
    let call = TLS_CALLS.get_ptr_mut(moved.pid_tgid);
    // SAFETY: the pointer is to a map value.
    let call = call.filter(|call| unsafe { (**call).flags } & CALL_ACTIVE != 0);
    // The number of what is sent outside OpenSSL is of no use here.
    if moved.received != 0 || call.is_some() {
        moved.ask_sequence();
    }
    let mut binding = binding(moved.socket.id);
    if let Some(call) = call {
        binding = inside(moved, call, binding);
    }
    if !binding.is_null() {
        known(scratch, binding)
    } else {
        // SAFETY: as above.
        compare(unsafe { &(*scratch).transfer })
    }
}

/// What the socket is used for, or NULL: not for a TLS connection, as far as is known.
#[inline(always)]
fn binding(socket: SocketId) -> *mut Binding {
    let Some(binding) = TLS_SOCKETS.get_ptr_mut(socket.sock) else { return null_mut() };
    // SAFETY: the pointer is to a map value.
    let Binding { tls, inode, .. } = unsafe { *binding };
    // SAFETY: the value is copied at once.
    let alive = unsafe { TLS_OBJECTS.get(tls.sock) }.is_some_and(|object| object.inode == tls.inode);
    if inode != socket.inode || !alive {
        let _ = TLS_SOCKETS.remove(socket.sock);
        return null_mut();
    }
    binding
}

/// The thread is inside OpenSSL: this is its connection's socket. Gives its binding.
#[inline(never)]
fn inside(moved: &Transfer, call: *mut Call, mut binding: *mut Binding) -> *mut Binding {
    let Transfer { pid_tgid, socket: Socket { id: socket, .. }, after, len, has_sequence, received, .. } =
        *moved;
    // SAFETY: the pointer is to a map value, and only its own thread uses it.
    let Call { object: key, flags, .. } = unsafe { *call };
    if len == 0 || head(moved).is_none() {
        return binding;
    }
    // An object that gets another socket becomes another one: none has two.
    // SAFETY: the pointer is to a map value.
    if binding.is_null() || unsafe { (*binding).tls.sock } != key {
        bind(pid_tgid, key, socket);
        binding = bound(key).unwrap_or(null_mut());
    }
    if has_sequence == 0 || binding.is_null() {
        return binding;
    }
    if received != 0 {
        // OpenSSL reads the header of a record by itself, so that what it gives out begins with the last one.
        // SAFETY: as above.
        unsafe {
            (*binding).received = after.wrapping_sub(len as u32);
            (*binding).fresh = 1;
        }
    } else if flags & (CALL_SEQUENCE | CALL_RECEIVES) == 0 {
        // SAFETY: as above.
        unsafe {
            (*call).sequence = after.wrapping_sub(len as u32);
            (*call).flags = flags | CALL_SEQUENCE;
        }
    }
    binding
}

/// The socket carries a TLS connection. Of that the daemon is told when nothing more will come. Tells if it knows the
/// socket: it has to be told who the ends are.
#[inline(never)]
fn known(scratch: *mut Scratch, binding: *mut Binding) -> u32 {
    // SAFETY: see `carries`.
    let Transfer { after, len, has_sequence, received, announced, .. } = unsafe { (*scratch).transfer };
    // SAFETY: the pointer is to a map value.
    let Binding { tls, fresh, .. } = unsafe { *binding };
    if received != 0 && len == 0 {
        ended(scratch, tls);
    } else if received != 0 && has_sequence != 0 {
        // SAFETY: as above.
        unsafe {
            (*binding).after = after;
            if fresh == 0 {
                (*binding).received = after.wrapping_sub(len as u32);
                (*binding).fresh = 1;
            }
        }
    }
    announced
}

#[inline(always)]
fn ended(scratch: *mut Scratch, tls: SocketId) {
    let Some(object) = TLS_OBJECTS.get_ptr_mut(tls.sock) else { return };
    // SAFETY: the pointer is to a map value.
    let Object { inode, received, .. } = unsafe { *object };
    if inode != tls.inode {
        return;
    }
    // SAFETY: see `carries`.
    let (record, Transfer { pid_tgid, target, .. }) =
        unsafe { (&mut (*scratch).record, &(*scratch).transfer) };
    *record = SocketData {
        header: Header {
            kind: RecordKind::SocketData as u16,
            flags: epoch() | DATA_RECEIVED | DATA_END,
            pid: (pid_tgid >> 32) as u32,
            // SAFETY: the helper has no preconditions.
            ktime_ns: unsafe { bpf_ktime_get_ns() },
        },
        task: current_task(*pid_tgid, target),
        clocks: Clocks::NONE,
        socket: tls,
        position: received,
        len: 0,
        head_len: 0,
        tail_len: 0,
        sequence: 0,
    };
    send(&*record, Counter::RingFullData);
}

/// Compares what a socket that is not known to carry TLS has sent or received with the ciphertext of connections whose socket
/// is not known. Gives 1 if it has found one.
#[inline(never)]
fn compare(moved: &Transfer) -> u32 {
    let Transfer { pid_tgid, socket: Socket { id: socket, .. }, after, len, has_sequence, received, .. } =
        *moved;
    if len < COMPARED {
        return 0;
    }
    let Some(first) = head(moved) else { return 0 };
    let Some(head) = read::user_if_there::<Head>(first) else { return 0 };
    let hash = hash(pid_tgid, &head);
    if received != 0 {
        let mut piece = Received {
            socket,
            sequence: after.wrapping_sub(len as u32),
            after,
            has_sequence: u64::from(has_sequence),
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
