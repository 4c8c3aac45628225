//! Sockets as connections: two streams with explicit gaps, the protocol they turn out to speak, and its walker.
//!
//! Takes the kernel's socket records, gives the walkers' events with the connection they happened on, and verdicts for
//! the kernel side. Knows no protocol beyond the walkers' contract, no trace and no process.

mod stream;
mod table;

use pitviper_ebpf::abi::{SocketId, Task};

use crate::kernel::records::SocketAddress;

pub use table::{Connections, Happening, Losses, Stats};

/// What is known of a segment: when, who, and where in the stream. Walkers carry it without looking inside.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Process that did the call.
    pub pid: u32,
    /// When the call returned, in CLOCK_MONOTONIC nanoseconds.
    pub ktime_ns: u64,
    /// Thread and logical task.
    pub task: Task,
    /// TCP sequence number of the call's first byte.
    pub sequence: Option<u32>,
    /// Position of the call's first byte, counted from the first one that was seen.
    pub position: u64,
}

/// Who a connection is between.
#[derive(Clone, Copy, Debug)]
pub struct Peers {
    /// The socket of the observed process.
    pub socket: SocketId,
    /// Its ends; `None` when the record that tells was lost.
    pub address: Option<SocketAddress>,
}
