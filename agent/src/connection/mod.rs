//! Sockets as connections: two streams with explicit gaps, the protocol they turn out to speak, and its walker.
//!
//! Takes the kernel's socket records, gives the walkers' events with the connection they happened on, and verdicts for
//! the kernel side. Knows no protocol beyond the walkers' contract, no trace and no process.

mod hello;
mod pipes;
mod stream;
mod table;
mod tls;

use std::sync::Arc;

use pitviper_ebpf::abi::{SocketId, Task};

use crate::kernel::records::{SocketAddress, SocketData};

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

impl Mark {
    fn of(data: &SocketData<'_>) -> Self {
        let SocketData { pid, ktime_ns, task, sequence, position, .. } = *data;
        Self { pid, ktime_ns, task, sequence, position }
    }
}

/// Who a connection is between.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The socket of the observed process, or its TLS connection; of a process of Celery's pool, the pipe that its jobs come through.
    pub socket: SocketId,
    /// Its ends; `None` when the record that tells was lost, and for pipes.
    pub address: Option<SocketAddress>,
    /// Whom the client of a TLS connection has asked for, if that was seen.
    pub server_name: Option<Arc<str>>,
}
