//! What is remembered of TLS connections, their sockets and the threads inside OpenSSL.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use pitviper_ebpf::abi::{Counter, Header, RecordKind, SocketClosed, SocketId, TLS_MARK, TlsBound};

use crate::maps::{count, remove_stream, remove_verdict, reserve, send};

/// What a thread is doing in OpenSSL. Kept for each thread, so that a call costs no insertion.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Call {
    /// Key of the object in [`OBJECTS`].
    pub(super) object: u64,
    /// The `SSL` itself.
    pub(super) ssl: u64,
    /// Where the plaintext is or will be.
    pub(super) buffer: u64,
    /// Where the `_ex` functions say how much was moved, else 0.
    pub(super) moved: u64,
    /// TCP sequence number of the first byte that the call has sent, see `CALL_SEQUENCE`.
    pub(super) sequence: u32,
    pub(super) flags: u32,
}

/// The thread is inside.
pub(super) const CALL_ACTIVE: u32 = 1;
/// It is a read.
pub(super) const CALL_RECEIVES: u32 = 2;
/// `sequence` is set.
pub(super) const CALL_SEQUENCE: u32 = 4;

/// A TLS connection.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Object {
    /// With [`TLS_MARK`], see there.
    pub(super) inode: u64,
    /// Position in the plaintext.
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Its socket, as found out last. It counts as long as the socket's [`Binding`] says the same.
    pub(super) socket: SocketId,
    /// The last sequence number given to plaintext that was sent: a second piece with the same one has none.
    pub(super) last_sent: u32,
    pub(super) reserved: u32,
}

/// What a socket is used for.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Binding {
    pub(super) tls: SocketId,
    /// The socket's inode.
    pub(super) inode: u64,
    /// TCP sequence number of the first byte received since plaintext was given out, if `fresh` says so.
    pub(super) received: u32,
    /// Whether `received` is set; [`SHAKING`]: what was received last began with handshake.
    pub(super) fresh: u32,
    /// TCP sequence number after the last byte received.
    pub(super) after: u32,
    pub(super) reserved: u32,
}

/// See [`Binding::fresh`].
pub(super) const SHAKING: u32 = 2;

/// A piece of ciphertext that came from a socket.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Received {
    /// All 0: from several.
    pub(super) socket: SocketId,
    pub(super) sequence: u32,
    pub(super) after: u32,
    pub(super) has_sequence: u64,
}

#[map]
pub(super) static TLS_CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(32_768, 0);
#[map]
pub(super) static TLS_OBJECTS: LruHashMap<u64, Object> = LruHashMap::with_max_entries(65_536, 0);
/// By the address of the `struct sock`.
#[map]
pub(super) static TLS_SOCKETS: LruHashMap<u64, Binding> = LruHashMap::with_max_entries(65_536, 0);
/// Ciphertext by its hash: from which socket it came.
#[map]
pub(super) static TLS_RECEIVED: LruHashMap<u64, Received> = LruHashMap::with_max_entries(16_384, 0);
/// Ciphertext by its hash: whose it is.
#[map]
pub(super) static TLS_SENT: LruHashMap<u64, SocketId> = LruHashMap::with_max_entries(16_384, 0);

/// One number for a process and an address in it that is a multiple of 16, as all of `malloc` are: 43 bits of address, and a pid has
/// 22 at most. The bit in which they meet is 0 in addresses of this day.
#[inline(always)]
pub(super) fn key(pid_tgid: u64, ssl: u64) -> u64 {
    ((pid_tgid >> 32) << 43) ^ (ssl >> 4)
}

/// The object with this key; a new one if there is none.
#[inline(always)]
pub(super) fn object(key: u64) -> Option<*mut Object> {
    if let Some(known) = TLS_OBJECTS.get_ptr_mut(key) {
        return Some(known);
    }
    let fresh = Object {
        // SAFETY: the helper has no preconditions.
        inode: TLS_MARK | unsafe { bpf_ktime_get_ns() },
        sent: 0,
        received: 0,
        socket: SocketId { sock: 0, inode: 0 },
        last_sent: 0,
        reserved: 0,
    };
    if TLS_OBJECTS.insert(key, fresh, 0).is_err() {
        count(Counter::MapUpdateFailed);
    }
    TLS_OBJECTS.get_ptr_mut(key)
}

/// The binding of an object's socket, if that is known.
#[inline(always)]
pub(super) fn bound(key: u64) -> Option<*mut Binding> {
    let object = TLS_OBJECTS.get_ptr_mut(key)?;
    // SAFETY: the pointers are to map values.
    unsafe {
        let Object { inode, socket, .. } = *object;
        if socket.sock == 0 {
            return None;
        }
        let binding = TLS_SOCKETS.get_ptr_mut(socket.sock)?;
        let same =
            (*binding).inode == socket.inode && (*binding).tls.sock == key && (*binding).tls.inode == inode;
        same.then_some(binding)
    }
}

/// The socket of an object is known.
#[inline(never)]
pub(super) fn bind(pid_tgid: u64, key: u64, socket: SocketId) -> u32 {
    let Some(object) = object(key) else { return 0 };
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the pointer is to a map value.
    let tls = unsafe {
        if (*object).socket.sock != 0 {
            // What had another socket was another connection, whose end was not seen.
            (*object).inode = TLS_MARK | ktime_ns;
            (*object).sent = 0;
            (*object).received = 0;
        }
        (*object).socket = socket;
        SocketId { sock: key, inode: (*object).inode }
    };
    let binding = Binding { tls, inode: socket.inode, received: 0, fresh: 0, after: 0, reserved: 0 };
    if TLS_SOCKETS.insert(socket.sock, binding, 0).is_err() {
        count(Counter::MapUpdateFailed);
    }
    let pid = (pid_tgid >> 32) as u32;
    let Some(mut entry) = reserve::<TlsBound>(Counter::RingFullLifecycle) else { return 0 };
    let header = Header { kind: RecordKind::TlsBound as u16, flags: 0, pid, ktime_ns };
    entry.write(TlsBound { header, tls, socket });
    entry.submit(0);
    0
}

#[inline(never)]
pub(super) fn freed(pid_tgid: u64, key: u64) -> u32 {
    let Some(object) = TLS_OBJECTS.get_ptr_mut(key) else { return 0 };
    // SAFETY: the pointer is to a map value.
    let Object { inode, socket, .. } = unsafe { *object };
    if bound(key).is_some() {
        let _ = TLS_SOCKETS.remove(socket.sock);
        // It may go on in the clear (`SSL_shutdown`), after the daemon has found nothing in it that it understands.
        remove_verdict(socket.sock);
    }
    let _ = TLS_OBJECTS.remove(key);
    remove_stream(key);
    let header = Header {
        kind: RecordKind::SocketClosed as u16,
        flags: 0,
        pid: (pid_tgid >> 32) as u32,
        // SAFETY: the helper has no preconditions.
        ktime_ns: unsafe { bpf_ktime_get_ns() },
    };
    send(&SocketClosed { header, socket: SocketId { sock: key, inode } }, Counter::RingFullLifecycle);
    0
}

/// A socket is gone.
#[inline(always)]
pub(crate) fn socket_gone(sock: u64) {
    let _ = TLS_SOCKETS.remove(sock);
}

/// A thread is gone.
#[inline(always)]
pub(crate) fn thread_gone(pid_tgid: u64) {
    let _ = TLS_CALLS.remove(pid_tgid);
}
