//! Encrypted connections: how they are named, and what is said of them.

use super::{Header, SocketId};

/// Mark in [`SocketId::inode`]: it is no socket but a TLS connection, and its data the plaintext. [`SocketId::sock`] then stands
/// for the process and the address of its `SSL` object, and the rest of `inode` for the time at which it was first seen: no
/// inode number is that large.
pub const TLS_MARK: u64 = 1 << 63;

impl SocketId {
    /// Whether it is a TLS connection, see [`TLS_MARK`].
    #[inline(always)]
    pub const fn is_tls(self) -> bool {
        self.inode & TLS_MARK != 0
    }
}

/// Flag of [`super::Target::capture`]: probes are on the TLS libraries of this process.
pub const CAPTURE_TLS: u32 = 4;

/// It was found out over which socket a TLS connection goes. May come again, with another socket.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TlsBound {
    /// `flags` is 0.
    pub header: Header,
    /// The TLS connection.
    pub tls: SocketId,
    /// Its socket.
    pub socket: SocketId,
}

const _: () = assert!(size_of::<TlsBound>() == 48);
