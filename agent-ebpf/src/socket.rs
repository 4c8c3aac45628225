//! Sockets by their kernel object: from a descriptor to the `struct sock`, its identity, its addresses and its end.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel_buf};
use pitviper_ebpf::abi::{
    CAPTURE_PIPES, CLOSED_SENDING, Counter, Header, RecordKind, SocketClosed, SocketId, SocketListening,
    Stream, UNIX_PATH,
};

use crate::maps::{Scratch, global, insert_stream, opaque, remove_stream, scratch, send, stream};
use crate::{read, task};

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const S_IFIFO: u16 = 0o010_000;
const SOCK_STREAM: u16 = 1;
const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// AF_UNSPEC stands for a pipe.
const PIPE: u32 = 0;
/// Standard input, output and error are not looked at as pipes: nothing but text goes through them.
const STDERR: u32 = 2;

// include/net/tcp_states.h
const TCP_FIN_WAIT1: u32 = 4;
const TCP_CLOSE: u32 = 7;
const TCP_LAST_ACK: u32 = 9;
const TCP_LISTEN: u32 = 10;

/// A stream socket of a family that is traced, or a pipe.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Socket {
    pub id: SocketId,
    family: u32,
    /// Not 0: it is a TCP socket.
    is_tcp: u32,
}

/// What is kept of this very socket, if the daemon has been told of it.
#[inline(always)]
fn known(id: SocketId) -> Option<*mut Stream> {
    // SAFETY: the pointer is to a map value.
    stream(id.sock).filter(|known| unsafe { (**known).inode } == id.inode)
}

impl Socket {
    /// The socket behind a descriptor of the current process: `current->files->fdt->fd[fd]->private_data->sk`. Of a pipe,
    /// if `capture` says so, the `struct pipe_inode_info` that `private_data` points to (`fifo_open` and
    /// `create_pipe_files` in fs/pipe.c). And what is kept of it, if the daemon has been told of it.
    #[inline(always)]
    pub(crate) fn of_descriptor(fd: u32, capture: u32) -> Option<(Self, Option<*mut Stream>)> {
        let file = task::file(fd)?;
        let (private_data, inode) = (global!(file_private_data), global!(file_inode));
        // Neighbours in newer kernels (6.18), apart in older ones.
        let [socket, inode] = if inode == private_data + 8 {
            read::kernel(file, private_data)?
        } else {
            [read::kernel(file, private_data)?, read::kernel(file, inode)?]
        };
        let (mode, inode) = read::kernel_pair::<u16, u64, 9>(inode, global!(inode_mode), global!(inode_ino))?;
        if mode & S_IFMT == S_IFIFO && capture & CAPTURE_PIPES != 0 && fd > STDERR {
            let id = SocketId { sock: socket, inode };
            return Some((Self { id, family: PIPE, is_tcp: 0 }, known(id)));
        }
        if mode & S_IFMT != S_IFSOCK {
            return None;
        }
        let (kind, sock) =
            read::kernel_pair::<u16, u64, 4>(socket, global!(socket_type), global!(socket_sk))?;
        if kind == SOCK_STREAM { Self::of_id(SocketId { sock, inode }) } else { None }
    }

    /// A socket whose kernel object is known, and what is kept of it. What never changes of a socket is kept there.
    #[inline(always)]
    pub(crate) fn of_id(id: SocketId) -> Option<(Self, Option<*mut Stream>)> {
        const IPPROTO_TCP: u16 = 6;
        if let Some(known) = known(id) {
            // SAFETY: the pointer is to a map value.
            let Stream { family, is_tcp, .. } = unsafe { *known };
            return Some((Self { id, family, is_tcp }, Some(known)));
        }
        let family: u16 = read::kernel(id.sock, global!(sock_family))?;
        let is_tcp = match u32::from(family) {
            AF_INET | AF_INET6 => read::kernel::<u16>(id.sock, global!(sock_protocol))? == IPPROTO_TCP,
            AF_UNIX => false,
            _ => return None,
        };
        Some((Self { id, family: u32::from(family), is_tcp: u32::from(is_tcp) }, None))
    }

    /// The positions of this socket: `known`, if that is not NULL. Else the daemon is told of it.
    #[inline(always)]
    pub(crate) fn stream(&self, known: *mut Stream, pid: u32, fd: u32) -> Option<*mut Stream> {
        if !known.is_null() {
            return Some(known);
        }
        if !self.is_pipe() {
            self.announce(pid, fd);
        }
        let Self { id, family, is_tcp } = *self;
        insert_stream(id.sock, &Stream { inode: id.inode, sent: 0, received: 0, family, is_tcp })
    }

    #[inline(always)]
    pub(crate) fn is_pipe(&self) -> bool {
        self.family == PIPE
    }

    #[inline(always)]
    fn announce(&self, pid: u32, fd: u32) {
        let sock = self.id.sock;
        let Some(scratch) = scratch() else { return };
        let (mut peer_sock, mut path_len) = (0, 0);
        if self.family == AF_UNIX {
            peer_sock = read::kernel(sock, global!(unix_peer)).unwrap_or(0);
            path_len = unix_path(sock, scratch);
            if path_len == 0 && peer_sock != 0 {
                path_len = unix_path(peer_sock, scratch);
            }
        }
        // SAFETY: the pointer is to this CPU's map value, and no other program of this CPU uses it meanwhile: the
        // tracepoint runs with preemption disabled.
        let record = unsafe { &mut (*scratch).opened };
        record.header = Header {
            kind: RecordKind::SocketOpened as u16,
            flags: 0,
            pid,
            // SAFETY: the helper has no preconditions.
            ktime_ns: unsafe { bpf_ktime_get_ns() },
        };
        record.socket = self.id;
        record.family = self.family as u16;
        record.fd = fd as i32;
        record.reserved = 0;
        record.peer_sock = peer_sock;
        record.path_len = path_len;
        record.local_port = 0;
        record.remote_port = 0;
        if self.family != AF_UNIX {
            record.local_port = read::kernel(sock, global!(sock_num)).unwrap_or(0);
            record.remote_port = u16::from_be(read::kernel(sock, global!(sock_dport)).unwrap_or(0));
            // An IPv4 address is the first four bytes; what follows it is not looked at.
            let six = self.family == AF_INET6;
            let local = if six { global!(sock_v6_rcv_saddr) } else { global!(sock_rcv_saddr) };
            let remote = if six { global!(sock_v6_daddr) } else { global!(sock_daddr) };
            read_into(sock, local, &mut record.local_address);
            read_into(sock, remote, &mut record.remote_address);
        }
        send(&*record, Counter::RingFullLifecycle);
    }

    /// Sequence number of the byte after the last one sent or received, for TCP.
    #[inline(always)]
    pub(crate) fn sequence(&self, received: bool) -> Option<u32> {
        if self.is_tcp == 0 {
            return None;
        }
        let offset = if received { global!(tcp_copied_seq) } else { global!(tcp_write_seq) };
        read::kernel(self.id.sock, offset)
    }
}

#[inline(always)]
fn read_into(base: u64, offset: u32, into: &mut [u8; 16]) {
    // SAFETY: the helper checks the address.
    let _ = unsafe { bpf_probe_read_kernel_buf((base + u64::from(offset)) as *const u8, into) };
}

/// Reads the path that an AF_UNIX socket is bound to; gives its length, 0 when it is unnamed.
#[inline(always)]
fn unix_path(sock: u64, scratch: *mut Scratch) -> u32 {
    /// `sockaddr_un.sun_path` follows the family.
    const PATH: u64 = 2;
    let address: u64 = read::kernel(sock, global!(unix_addr)).unwrap_or(0);
    if address == 0 {
        return 0;
    }
    let len: u32 = read::kernel(address, global!(unix_address_len)).unwrap_or(0);
    let path_len = u64::from(len).wrapping_sub(PATH);
    if path_len == 0 || path_len > UNIX_PATH as u64 {
        return 0;
    }
    if !read_path(scratch, address + u64::from(global!(unix_address_name)) + PATH, path_len) {
        return 0;
    }
    // SAFETY: the pointer is to this CPU's map value.
    let first = unsafe { &mut (*scratch).opened.path[0] };
    if *first == 0 {
        *first = b'@';
        return path_len as u32;
    }
    // The length of a path counts its terminating zero.
    path_len as u32 - 1
}

/// Reads a path into the scratch area. It is as small as `capture::read_user`, for its reason.
#[inline(never)]
fn read_path(scratch: *mut Scratch, address: u64, len: u64) -> bool {
    let len = opaque(scratch, len);
    if len > UNIX_PATH as u64 {
        return false;
    }
    // SAFETY: the helper checks the address, and there is room for `len` bytes.
    unsafe {
        let into = (&raw mut (*scratch).opened.path).cast();
        bpf_probe_read_kernel(into, len as u32, address as *const core::ffi::c_void) == 0
    }
}

/// A TCP socket changed its state, in whatever context.
#[inline(always)]
pub(crate) fn state_changed(sock: u64, new_state: u32) {
    let flags = match new_state {
        TCP_CLOSE => 0,
        TCP_FIN_WAIT1 | TCP_LAST_ACK => CLOSED_SENDING,
        TCP_LISTEN if global!(report_listen) != 0 => {
            listening(sock);
            return;
        }
        _ => return,
    };
    let Some(known) = stream(sock) else { return };
    // SAFETY: the pointer is to a map value.
    let inode = unsafe { (*known).inode };
    // SAFETY: the helpers have no preconditions.
    let header = unsafe {
        Header {
            kind: RecordKind::SocketClosed as u16,
            flags,
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            ktime_ns: bpf_ktime_get_ns(),
        }
    };
    send(&SocketClosed { header, socket: SocketId { sock, inode } }, Counter::RingFullLifecycle);
    if new_state == TCP_CLOSE {
        remove_stream(sock);
    }
}

#[inline(always)]
fn listening(sock: u64) {
    let port: u16 = read::kernel(sock, global!(sock_num)).unwrap_or(0);
    let header = Header {
        kind: RecordKind::SocketListening as u16,
        flags: 0,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        // SAFETY: the helper has no preconditions.
        ktime_ns: unsafe { bpf_ktime_get_ns() },
    };
    send(&SocketListening { header, port: u32::from(port), reserved: 0 }, Counter::RingFullLifecycle);
}
