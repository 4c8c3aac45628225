//! Ring-buffer records as safe Rust values. The only `unsafe` of the record path.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use pitviper_ebpf::abi::{self, Clocks, RecordKind, SampledFrame, SocketId, Task};

/// A record that the kernel side sent.
#[derive(Debug)]
pub enum Record<'a> {
    /// A socket was used for the first time.
    SocketOpened {
        /// The process that used it.
        pid: u32,
        /// Which socket.
        socket: SocketId,
        /// Its ends.
        address: SocketAddress,
    },
    /// Bytes went over a socket.
    SocketData(SocketData<'a>),
    /// A TCP socket was closed, or (`sending_only`) will send nothing more.
    SocketClosed {
        /// When.
        ktime_ns: u64,
        /// Which socket.
        socket: SocketId,
        /// It may still receive.
        sending_only: bool,
    },
    /// A context was made.
    ContextMade {
        /// In which process.
        pid: u32,
        /// When.
        ktime_ns: u64,
        /// The thread, and its current context: the parent, if there is one.
        task: Task,
        /// The thread's clocks.
        clocks: Clocks,
        /// The new context.
        child: u64,
        /// It is not a copy of the current context.
        unrelated: bool,
        /// Changes when copies were lost before this record.
        epoch: u16,
    },
    /// A thread enters a context.
    ContextEntered {
        /// In which process.
        pid: u32,
        /// When.
        ktime_ns: u64,
        /// The thread, and the context that it was in until then.
        task: Task,
        /// The thread's clocks, with the version of before.
        clocks: Clocks,
        /// Which.
        context: u64,
        /// Changes when copies were lost before this record.
        epoch: u16,
    },
    /// A context is being deallocated.
    ContextGone {
        /// In which process.
        pid: u32,
        /// On which thread, in which turn of its loop.
        task: Task,
        /// Which.
        context: u64,
        /// Changes when copies were lost before this record.
        epoch: u16,
    },
    /// A work item of a thread pool went into its queue or out of it, or is done.
    WorkItem {
        /// In which process.
        pid: u32,
        /// When.
        ktime_ns: u64,
        /// Who did it.
        task: Task,
        /// The thread's clocks.
        clocks: Clocks,
        /// What was done.
        step: WorkStep,
        /// Changes when records that lineage depends on were lost before this one.
        epoch: u16,
    },
    /// A thread was started, and does not run yet.
    ThreadStarted {
        /// In which process.
        pid: u32,
        /// When.
        ktime_ns: u64,
        /// Who started it.
        task: Task,
        /// The new thread.
        tid: u32,
        /// Changes when records that lineage depends on were lost before this one.
        epoch: u16,
    },
    /// A thread other than the main thread ended.
    ThreadEnded {
        /// In which process.
        pid: u32,
        /// When.
        ktime_ns: u64,
        /// Which.
        tid: u32,
    },
    /// A greenlet is gone.
    GreenletGone {
        /// In which process.
        pid: u32,
        /// When.
        ktime_ns: u64,
        /// Which, as it was called when it was made.
        greenlet: u64,
    },
    /// A target forked.
    ProcessForked {
        /// The parent.
        pid: u32,
        /// When.
        ktime_ns: u64,
        /// The child.
        child: u32,
    },
    /// A process executed a new program.
    ProcessExecuted {
        /// Which.
        pid: u32,
        /// It was a target before.
        target: bool,
    },
    /// A target of which nothing is captured has loaded code, or its interpreter has started.
    ProcessStirred {
        /// Which.
        pid: u32,
    },
    /// It was found out over which socket a TLS connection goes.
    TlsBound {
        /// The TLS connection.
        tls: SocketId,
        /// Its socket.
        socket: SocketId,
    },
    /// A target ended.
    ProcessExited {
        /// Which.
        pid: u32,
        /// When.
        ktime_ns: u64,
    },
    /// A process listens on a new TCP port.
    SocketListening {
        /// Which process.
        pid: u32,
        /// On which port.
        port: u16,
    },
    /// A turn of an event loop took long, and is over.
    LoopBlocked(LoopBlocked),
    /// A thread was on a CPU when the sampling timer went off.
    StackSample(StackSample<'a>),
}

/// A turn of an event loop that took long. CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct LoopBlocked {
    /// In which process.
    pub pid: u32,
    /// On which thread.
    pub tid: u32,
    /// Its number.
    pub turn: u32,
    /// Its beginning.
    pub began_ns: u64,
    /// Its end.
    pub ended_ns: u64,
    /// When its longest sleep began, and how long that was; 0: there was none.
    pub slept: (u64, u64),
}

/// The Python stack of a thread.
#[derive(Clone, Copy, Debug)]
pub struct StackSample<'a> {
    /// The process.
    pub pid: u32,
    /// When.
    pub ktime_ns: u64,
    /// The thread and its logical task.
    pub task: Task,
    /// The thread's clocks.
    pub clocks: Clocks,
    /// It was not running, but about to sleep in the midst of a turn of its event loop.
    pub asleep: bool,
    /// There were more frames, further out.
    pub deep: bool,
    /// A frame could not be read: those further out are missing.
    pub cut: bool,
    /// Changes when context copies were lost before this record.
    pub epoch: u16,
    /// Address of the instruction that the thread was at, or that it had called the kernel with. 0: not known.
    pub instruction: u64,
    frames: &'a [u8],
}

impl StackSample<'_> {
    /// The frames, innermost first.
    pub fn frames(&self) -> impl Iterator<Item = SampledFrame> {
        self.frames.chunks_exact(size_of::<SampledFrame>()).filter_map(read)
    }
}

/// What becomes of a work item, known by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkStep {
    /// It is about to be put into the queue.
    Submitted(u64),
    /// The thread has taken it.
    Taken(u64),
    /// The thread is through with the one that it had.
    Done,
}

/// Both ends of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// TCP; IPv4-mapped addresses as IPv4.
    Inet {
        /// This end.
        local: SocketAddr,
        /// The other end.
        remote: SocketAddr,
    },
    /// AF_UNIX.
    Unix {
        /// Kernel address of the socket at the other end, or 0.
        peer_sock: u64,
        /// Path that either end is bound to; empty when unnamed.
        path: UnixPath,
    },
}

/// A socket path as it lies in the record: without allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UnixPath {
    bytes: [u8; abi::UNIX_PATH],
    len: usize,
}

impl UnixPath {
    /// The path's bytes; those of an abstract name begin with `@`.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl std::fmt::Debug for UnixPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Bytes that went over a socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketData<'a> {
    /// The process.
    pub pid: u32,
    /// When the call returned.
    pub ktime_ns: u64,
    /// The thread and its logical task.
    pub task: Task,
    /// The thread's clocks.
    pub clocks: Clocks,
    /// Which socket, or which TLS connection.
    pub socket: SocketId,
    /// It is a pipe, not a socket.
    pub pipe: bool,
    /// Received; else sent.
    pub received: bool,
    /// The peer has finished sending; there are no bytes.
    pub end: bool,
    /// Position of the first byte in its direction.
    pub position: u64,
    /// Bytes moved.
    pub len: u32,
    /// TCP sequence number of the first byte.
    pub sequence: Option<u32>,
    /// The first bytes.
    pub head: &'a [u8],
    /// Changes when context copies were lost before this record.
    pub epoch: u16,
    /// The last bytes; between head and tail there may be a gap.
    pub tail: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads a record; `None` if it is none that this version knows.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header: abi::Header = read(bytes)?;
        Some(match RecordKind::from_u16(header.kind)? {
            RecordKind::SocketOpened => {
                let record: abi::SocketOpened = read(bytes)?;
                Self::SocketOpened { pid: header.pid, socket: record.socket, address: address(&record) }
            }
            RecordKind::SocketData => Self::SocketData(data(bytes)?),
            RecordKind::SocketClosed => {
                let record: abi::SocketClosed = read(bytes)?;
                Self::SocketClosed {
                    ktime_ns: header.ktime_ns,
                    socket: record.socket,
                    sending_only: header.flags & abi::CLOSED_SENDING != 0,
                }
            }
            RecordKind::ContextMade => {
                let record: abi::ContextMade = read(bytes)?;
                let abi::ContextMade { header, task, clocks, child } = record;
                let epoch = header.flags >> abi::EPOCH_SHIFT;
                let unrelated = header.flags & abi::CONTEXT_UNRELATED != 0;
                Self::ContextMade {
                    pid: header.pid,
                    ktime_ns: header.ktime_ns,
                    task,
                    clocks,
                    child,
                    unrelated,
                    epoch,
                }
            }
            RecordKind::ContextGone => {
                let abi::ContextGone { header, task, context } = read(bytes)?;
                let epoch = header.flags >> abi::EPOCH_SHIFT;
                Self::ContextGone { pid: header.pid, task, context, epoch }
            }
            RecordKind::ContextEntered => {
                let abi::ContextEntered { header, task, clocks, context } = read(bytes)?;
                let (pid, ktime_ns, epoch) = (header.pid, header.ktime_ns, header.flags >> abi::EPOCH_SHIFT);
                Self::ContextEntered { pid, ktime_ns, task, clocks, context, epoch }
            }
            RecordKind::WorkItem => {
                let abi::WorkItem { header, task, clocks, item } = read(bytes)?;
                let is = |flag| header.flags & flag != 0;
                let step = match (is(abi::WORK_SUBMITTED), is(abi::WORK_DONE)) {
                    (true, _) => WorkStep::Submitted(item),
                    (false, false) => WorkStep::Taken(item),
                    (false, true) => WorkStep::Done,
                };
                let epoch = header.flags >> abi::EPOCH_SHIFT;
                Self::WorkItem { pid: header.pid, ktime_ns: header.ktime_ns, task, clocks, step, epoch }
            }
            RecordKind::ThreadStarted => {
                let abi::ThreadStarted { header, task, tid, .. } = read(bytes)?;
                let epoch = header.flags >> abi::EPOCH_SHIFT;
                Self::ThreadStarted { pid: header.pid, ktime_ns: header.ktime_ns, task, tid, epoch }
            }
            RecordKind::ThreadEnded => {
                let abi::ThreadEnded { header, tid, .. } = read(bytes)?;
                Self::ThreadEnded { pid: header.pid, ktime_ns: header.ktime_ns, tid }
            }
            RecordKind::GreenletGone => {
                let abi::GreenletGone { header, greenlet } = read(bytes)?;
                Self::GreenletGone { pid: header.pid, ktime_ns: header.ktime_ns, greenlet }
            }
            RecordKind::ProcessForked => {
                let record: abi::ProcessForked = read(bytes)?;
                Self::ProcessForked { pid: header.pid, ktime_ns: header.ktime_ns, child: record.child }
            }
            RecordKind::ProcessExecuted => {
                Self::ProcessExecuted { pid: header.pid, target: header.flags & abi::EXEC_TARGET != 0 }
            }
            RecordKind::ProcessStirred => Self::ProcessStirred { pid: header.pid },
            RecordKind::ProcessExited => Self::ProcessExited { pid: header.pid, ktime_ns: header.ktime_ns },
            RecordKind::SocketListening => {
                let record: abi::SocketListening = read(bytes)?;
                Self::SocketListening { pid: header.pid, port: u16::try_from(record.port).ok()? }
            }
            RecordKind::LoopBlocked => {
                let record: abi::LoopBlocked = read(bytes)?;
                let abi::LoopBlocked { header, tid, turn, began_ns, slept_ns, slept } = record;
                Self::LoopBlocked(LoopBlocked {
                    pid: header.pid,
                    tid,
                    turn,
                    began_ns,
                    ended_ns: header.ktime_ns,
                    slept: (slept_ns, slept),
                })
            }
            RecordKind::StackSample => Self::StackSample(stack_sample(bytes)?),
            RecordKind::TlsBound => {
                let abi::TlsBound { header: _, tls, socket } = read(bytes)?;
                Self::TlsBound { tls, socket }
            }
        })
    }
}

/// The plain-data structs of the abi: integers only, without padding.
trait Plain: Copy {}
impl Plain for abi::Header {}
impl Plain for abi::SocketOpened {}
impl Plain for abi::SocketData {}
impl Plain for abi::SocketClosed {}
impl Plain for abi::ContextMade {}
impl Plain for abi::ContextGone {}
impl Plain for abi::ContextEntered {}
impl Plain for abi::WorkItem {}
impl Plain for abi::ThreadStarted {}
impl Plain for abi::ThreadEnded {}
impl Plain for abi::GreenletGone {}
impl Plain for abi::ProcessForked {}
impl Plain for abi::SocketListening {}
impl Plain for abi::LoopBlocked {}
impl Plain for abi::StackSample {}
impl Plain for abi::TlsBound {}
impl Plain for SampledFrame {}

fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: `T` is plain data for which every bit pattern is valid, and `bytes` has its size.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn data(bytes: &[u8]) -> Option<SocketData<'_>> {
    let record: abi::SocketData = read(bytes)?;
    let abi::SocketData { header, task, clocks, socket, position, len, head_len, tail_len, sequence } =
        record;
    let (head, rest) = bytes.get(size_of::<abi::SocketData>()..)?.split_at_checked(head_len as usize)?;
    Some(SocketData {
        pid: header.pid,
        ktime_ns: header.ktime_ns,
        task,
        clocks,
        socket,
        pipe: header.flags & abi::DATA_PIPE != 0,
        received: header.flags & abi::DATA_RECEIVED != 0,
        end: header.flags & abi::DATA_END != 0,
        position,
        len,
        epoch: header.flags >> abi::EPOCH_SHIFT,
        sequence: (header.flags & abi::DATA_SEQUENCE != 0).then_some(sequence),
        head,
        tail: rest.get(..tail_len as usize)?,
    })
}

fn stack_sample(bytes: &[u8]) -> Option<StackSample<'_>> {
    let record: abi::StackSample = read(bytes)?;
    let abi::StackSample { header, task, clocks, frames, reserved: _, instruction } = record;
    let frames =
        bytes.get(size_of::<abi::StackSample>()..)?.get(..frames as usize * size_of::<SampledFrame>())?;
    Some(StackSample {
        pid: header.pid,
        ktime_ns: header.ktime_ns,
        task,
        clocks,
        asleep: header.flags & abi::SAMPLE_ASLEEP != 0,
        deep: header.flags & abi::SAMPLE_DEEP != 0,
        cut: header.flags & abi::SAMPLE_CUT != 0,
        epoch: header.flags >> abi::EPOCH_SHIFT,
        instruction,
        frames,
    })
}

fn address(record: &abi::SocketOpened) -> SocketAddress {
    if i32::from(record.family) == libc::AF_UNIX {
        let len = (record.path_len as usize).min(abi::UNIX_PATH);
        return SocketAddress::Unix {
            peer_sock: record.peer_sock,
            path: UnixPath { bytes: record.path, len },
        };
    }
    let ip = |bytes: [u8; 16]| {
        if i32::from(record.family) == libc::AF_INET6 {
            Ipv6Addr::from(bytes).to_canonical()
        } else {
            let [a, b, c, d, ..] = bytes;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
    };
    SocketAddress::Inet {
        local: SocketAddr::new(ip(record.local_address), record.local_port),
        remote: SocketAddr::new(ip(record.remote_address), record.remote_port),
    }
}
