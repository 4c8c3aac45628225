//! Kernel to daemon and back: what crosses the boundary, byte for byte.

pub mod fingerprint;
mod stack;
mod timing;
mod tls;
mod work;

use core::mem::size_of;

pub use stack::{
    MAX_FRAMES, NO_CELL, SAMPLE_ASLEEP, SAMPLE_CUT, SAMPLE_DEEP, SampledFrame, StackLayout, StackSample,
};
pub use timing::{Clocks, ContextEntered, LoopBlocked, Runtime, Thread, ThreadState, Times};
pub use tls::{CAPTURE_TLS, TLS_MARK, TlsBound};
pub use work::{
    GreenletGone, OBJECT_TYPE, TYPE_NAME, ThreadEnded, ThreadStarted, WORK_DONE, WORK_ITEM_NAME,
    WORK_SUBMITTED, WorkItem,
};

/// How the gilstate `PyThreadState` pointer of a thread is found from its thread pointer (`fsbase` on x86-64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TlsKind {
    /// No context can be read: operations of this process carry context 0.
    None = 0,
    /// glibc, key < 32: the slot is at `thread_pointer + slot_offset`.
    GlibcFirstBlock = 1,
    /// musl: the slot is at `*(thread_pointer + 128) + slot_offset`.
    Musl = 2,
    /// A thread-local variable of the executable, or of a library loaded with it: at `thread_pointer + slot_offset`, which is
    /// negative.
    Static = 3,
    /// A thread-local variable of another library: at `*(dtv + dtv_entry) + slot_offset`, where `dtv` is
    /// `*(thread_pointer + 8)` in glibc (`tcbhead_t`) and musl (`struct pthread`) alike.
    Dynamic = 4,
}

/// What the kernel side needs to know of one target process. Value of the `TARGETS` map, keyed by tgid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// A [`TlsKind`] as a number.
    pub tls_kind: u32,
    /// Byte offset of the thread-specific slot that holds the `PyThreadState` pointer; see [`TlsKind`]. A negative one as two's
    /// complement.
    pub slot_offset: u32,
    /// Byte offset of the module's entry in a thread's table of thread-local storage; see [`TlsKind::Dynamic`].
    pub dtv_entry: u32,
    /// Byte offset of `context` inside `PyThreadState`.
    pub context_offset: u32,
    /// What is captured: [`CAPTURE_SOCKETS`], [`CAPTURE_PIPES`], [`CAPTURE_TLS`]. 0: nothing, only its children are followed.
    pub capture: u32,
    /// See `awaited`.
    pub awaited_bits: u32,
    /// While nothing is captured: address of an `int` in which one of `awaited_bits` is set when the interpreter starts, or 0
    /// if that is not known; see [`ProcessStirred`].
    pub awaited: u64,
    /// Number of greenlet's module in the dynamic thread vector.
    pub greenlet_module: u32,
    /// Byte offset of greenlet's `ThreadState *` in that module's thread-local storage.
    pub greenlet_offset: u32,
    /// Address of greenlet's `PyGreenlet_Type`; 0: greenlets are not told apart.
    pub greenlet_type: u64,
}

/// Flag of [`Target::capture`]: what it sends and receives.
pub const CAPTURE_SOCKETS: u32 = 1;
/// Flag of [`Target::capture`]: what it writes to pipes and reads from them too, but for the standard streams.
pub const CAPTURE_PIPES: u32 = 2;

impl Target {
    /// A target whose interpreter's contexts cannot be read: thread-level tracing only.
    pub const WITHOUT_CONTEXT: Self = Self {
        tls_kind: TlsKind::None as u32,
        slot_offset: 0,
        dtv_entry: 0,
        context_offset: 0,
        capture: CAPTURE_SOCKETS,
        awaited_bits: 0,
        awaited: 0,
        greenlet_module: 0,
        greenlet_offset: 0,
        greenlet_type: 0,
    };

    /// A process that is of interest only for its children, or until its interpreter has started.
    pub const FOLLOWED: Self = Self { capture: 0, ..Self::WITHOUT_CONTEXT };
}

/// First field of every ring-buffer record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RecordKind {
    /// [`SocketOpened`]
    SocketOpened = 1,
    /// [`SocketData`], followed by `head_len + tail_len` bytes.
    SocketData = 2,
    /// [`SocketClosed`]
    SocketClosed = 3,
    /// [`ContextMade`]
    ContextMade = 4,
    /// [`ProcessForked`]
    ProcessForked = 5,
    /// [`ProcessExecuted`]
    ProcessExecuted = 6,
    /// [`ProcessExited`]
    ProcessExited = 7,
    /// [`SocketListening`]
    SocketListening = 8,
    /// [`ProcessStirred`]
    ProcessStirred = 9,
    /// [`StackSample`], followed by its [`SampledFrame`]s.
    StackSample = 10,
    /// [`LoopBlocked`]
    LoopBlocked = 40,
    /// [`ContextEntered`]
    ContextEntered = 41,
    /// [`ContextGone`]
    ContextGone = 42,
    /// [`TlsBound`]
    TlsBound = 20,
    /// [`WorkItem`]
    WorkItem = 30,
    /// [`ThreadStarted`]
    ThreadStarted = 31,
    /// [`ThreadEnded`]
    ThreadEnded = 32,
    /// [`GreenletGone`]
    GreenletGone = 33,
}

impl RecordKind {
    /// The kind with this number, if there is one.
    pub const fn from_u16(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::SocketOpened,
            2 => Self::SocketData,
            3 => Self::SocketClosed,
            4 => Self::ContextMade,
            5 => Self::ProcessForked,
            6 => Self::ProcessExecuted,
            7 => Self::ProcessExited,
            8 => Self::SocketListening,
            9 => Self::ProcessStirred,
            10 => Self::StackSample,
            40 => Self::LoopBlocked,
            41 => Self::ContextEntered,
            42 => Self::ContextGone,
            20 => Self::TlsBound,
            30 => Self::WorkItem,
            31 => Self::ThreadStarted,
            32 => Self::ThreadEnded,
            33 => Self::GreenletGone,
            _ => return None,
        })
    }
}

/// Head of every record.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// A [`RecordKind`] as a number.
    pub kind: u16,
    /// Meaning depends on the kind.
    pub flags: u16,
    /// The kernel's tgid: OpenTelemetry's `process.pid`, in the initial pid namespace.
    pub pid: u32,
    /// `bpf_ktime_get_ns`: CLOCK_MONOTONIC nanoseconds.
    pub ktime_ns: u64,
}

/// A thread and the logical task that it was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Task {
    /// Kernel thread id.
    pub tid: u32,
    /// Event-loop turns of this thread: how often it has come back from `epoll_wait`. 0: it runs no event loop.
    pub turn: u32,
    /// Address of the current `contextvars.Context`, or 0: none, or not readable. With [`CONTEXT_IS_BASE`] in its lowest
    /// bit, which an address has clear.
    pub context: u64,
}

impl Task {
    /// Whether nothing but the thread (or greenlet) tells what it is at work on: no context, or a base one.
    pub const fn is_base(self) -> bool {
        self.context == 0 || self.context & CONTEXT_IS_BASE != 0
    }
}

/// Mark in [`Task::context`]: the context was made by the interpreter for a thread (or greenlet) that used a context
/// variable without having been given a context, not by a copy. Nothing tells when one is made, often at the address of
/// a context that is gone, so it must not be taken for the latest copy at that address.
pub const CONTEXT_IS_BASE: u64 = 1;

/// Mark in [`Task::context`]: this is no context but the address of the current greenlet, which has no context of its own
/// or a base one, in a process with gevent. Every greenlet is reported when it is made, as a [`ContextMade`].
pub const CONTEXT_IS_GREENLET: u64 = 2;

/// `offsetof(PyContext, ctx_entered)`: an `int` that is 1 while the context is being run and 0 in a base context.
/// CPython 3.8 to 3.15, GIL builds: `struct _pycontextobject` in Include/internal/pycore_context.h.
pub const CONTEXT_ENTERED: u64 = 40;

/// Address of a `struct sock` plus the number of its inode: together unique over the life of the machine for all
/// practical purposes (the allocator recycles addresses, the inode counter goes on). Or a TLS connection, see [`TLS_MARK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SocketId {
    /// Kernel address of the `struct sock`.
    pub sock: u64,
    /// Inode number, as in `/proc/PID/fd`: `socket:[inode]`.
    pub inode: u64,
}

/// The first record of a socket: sent before its first data. There is none of a TLS connection.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SocketOpened {
    /// `flags` is 0.
    pub header: Header,
    /// Which socket.
    pub socket: SocketId,
    /// For AF_UNIX the `struct sock` at the other end, else 0.
    pub peer_sock: u64,
    /// AF_INET (2), AF_INET6 (10) or AF_UNIX (1).
    pub family: u16,
    /// Local port, host byte order.
    pub local_port: u16,
    /// Remote port, host byte order.
    pub remote_port: u16,
    /// Explicit padding, 0.
    pub reserved: u16,
    /// Descriptor that the socket was used through.
    pub fd: i32,
    /// Used bytes of `path`.
    pub path_len: u32,
    /// Network byte order; IPv4 in the first four bytes.
    pub local_address: [u8; 16],
    /// Network byte order; IPv4 in the first four bytes.
    pub remote_address: [u8; 16],
    /// AF_UNIX: the path that this end, or else the other end, is bound to. Abstract names begin with `@`.
    pub path: [u8; UNIX_PATH],
}

/// Room for `sockaddr_un.sun_path` (108 bytes), rounded up.
pub const UNIX_PATH: usize = 112;

/// Flag of [`SocketData`]: bytes were received; else they were sent.
pub const DATA_RECEIVED: u16 = 1;
/// Flag of [`SocketData`]: a read returned 0, the peer has finished sending. `len` is 0.
pub const DATA_END: u16 = 2;
/// Flag of [`SocketData`]: `sequence` is a TCP sequence number.
pub const DATA_SEQUENCE: u16 = 4;
/// Flag of [`SocketData`]: it is a pipe, one end of which is this process's. There is no [`SocketOpened`] of a pipe; its
/// [`SocketId`] is the address of the `struct pipe_inode_info` with the number of the inode, and one direction of it is
/// `sent`, the other `received`, whichever process does it.
pub const DATA_PIPE: u16 = 8;

/// In the flags of [`SocketData`], [`ContextMade`], [`WorkItem`] and [`ThreadStarted`] the bits from here up are the
/// lineage epoch: it changes when one of the latter three was lost. Every record sent after the loss shows the new epoch,
/// so the daemon knows before it relies on the address of a context that it may not know the latest generation of it.
pub const EPOCH_SHIFT: u16 = 4;

/// Bytes went over a socket.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SocketData {
    /// `flags`: [`DATA_RECEIVED`], [`DATA_END`], [`DATA_SEQUENCE`], [`DATA_PIPE`], and the epoch.
    pub header: Header,
    /// Who did it.
    pub task: Task,
    /// The thread's clocks.
    pub clocks: Clocks,
    /// Which socket.
    pub socket: SocketId,
    /// Position of the first byte in this direction of the stream, counted from the first one seen.
    pub position: u64,
    /// How many bytes the call moved.
    pub len: u32,
    /// How many of the call's first bytes follow this struct.
    pub head_len: u32,
    /// How many of the call's last bytes follow those; never overlaps the head.
    pub tail_len: u32,
    /// TCP sequence number of the first byte: the same number at both ends of a connection. Of a TLS connection that of the
    /// first byte of its ciphertext. See [`DATA_SEQUENCE`].
    pub sequence: u32,
}

/// Flag of [`SocketClosed`]: this end will send nothing more (a close or a shutdown); it may still receive.
pub const CLOSED_SENDING: u16 = 1;

/// A TCP socket was closed or reset.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SocketClosed {
    /// `flags`: [`CLOSED_SENDING`]. `pid` is not meaningful: the close may have run in interrupt context.
    pub header: Header,
    /// Which socket.
    pub socket: SocketId,
}

/// Flag of [`ContextMade`]: it is not a copy of the current context, but an empty one or a copy of any other.
pub const CONTEXT_UNRELATED: u16 = 1;
/// A `contextvars.Context` was made; or a greenlet was, see [`CONTEXT_IS_GREENLET`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ContextMade {
    /// `flags`: [`CONTEXT_UNRELATED`], and the epoch.
    pub header: Header,
    /// The caller; its `context` is the parent, unless they are unrelated.
    pub task: Task,
    /// The thread's clocks.
    pub clocks: Clocks,
    /// Address of the `contextvars.Context`: a new generation of that address.
    pub child: u64,
}

/// A `contextvars.Context` is deallocated: nothing runs in it any more, and nothing will.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ContextGone {
    /// `flags` are the epoch.
    pub header: Header,
    /// The thread; `context` is 0.
    pub task: Task,
    /// Address of the context.
    pub context: u64,
}

/// A target process forked; the child is a target already.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessForked {
    /// `pid` is the parent.
    pub header: Header,
    /// The child's tgid.
    pub child: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
}

/// Flag of [`ProcessExecuted`]: the process was a target before; its interpreter data has been cleared.
pub const EXEC_TARGET: u16 = 1;

/// A process executed a new program.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessExecuted {
    /// `flags`: [`EXEC_TARGET`].
    pub header: Header,
}

/// A target mapped a file with code in it, or the interpreter that one of which nothing is captured maps has started: it is
/// worth a look. The latter is sent again at every system call of interest until the daemon has changed what it knows of the
/// target.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessStirred {
    /// `flags` is 0.
    pub header: Header,
}

/// A target process ended (its last thread did).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessExited {
    /// `flags` is 0.
    pub header: Header,
}

/// A process began to listen on a TCP port; sent only while [`Globals::report_listen`] is set.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SocketListening {
    /// `flags` is 0.
    pub header: Header,
    /// Port, host byte order.
    pub port: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
}

/// Positions of the two directions of a socket, and what of it never changes. Value of the `STREAMS` map, keyed by the address of
/// its kernel object.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stream {
    /// Inode number: another one is another socket at the same address.
    pub inode: u64,
    /// Bytes sent, since the first ones seen.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Address family; 0: it is a pipe.
    pub family: u32,
    /// Not 0: it is a TCP socket.
    pub is_tcp: u32,
}

/// The daemon's word on one socket. Value of the `VERDICTS` map, keyed by the address of the `struct sock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Verdict {
    /// The verdict holds only while the socket at that address still has this inode.
    pub inode: u64,
    /// Not 0: none of our protocols; send nothing more.
    pub ignore: u64,
    /// Calls that end before this position of the sent stream are body: send nothing for them.
    pub skip_sent_until: u64,
    /// The same for the received stream.
    pub skip_received_until: u64,
}

/// What is counted in the kernel, one `u64` per CPU each, in the `COUNTERS` array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// The ring buffer was full: a socket data record was lost (the daemon sees the gap in `position`).
    RingFullData = 0,
    /// The ring buffer was full: a context copy, a work item or the start of a thread was lost.
    RingFullContext = 1,
    /// The ring buffer was full: a process or socket life-cycle record was lost.
    RingFullLifecycle = 2,
    /// A user-space buffer could not be read (paged out or unmapped); the bytes became a gap.
    UserReadFailed = 3,
    /// A kernel structure could not be read.
    KernelReadFailed = 4,
    /// A map was full or refused an update.
    MapUpdateFailed = 5,
    /// Data records sent.
    DataRecords = 6,
    /// Context copies sent.
    ContextRecords = 7,
    /// An iovec list was longer than what is copied; the rest became a gap.
    IovecTruncated = 8,
    /// Profile samples sent.
    SampleRecords = 9,
    /// The ring buffer was full: a profile sample was lost.
    RingFullSample = 10,
    /// A frame was not resident: the sample's stack ends there.
    StackReadFailed = 11,
}

/// Number of [`Counter`]s.
pub const COUNTERS: u32 = 12;

/// Most bytes captured of one call, a power of two; the daemon may ask for less with [`Globals::capture_limit`].
pub const MAX_CAPTURE: u32 = 16 * 1024;
/// Most bytes captured from the end of a call that is longer than the capture limit.
pub const MAX_TAIL: u32 = 256;

/// What the daemon finds out once, before the programs are loaded. All offsets come from the kernel's BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Globals {
    /// `task_struct.thread.fsbase` (x86-64) or `task_struct.thread.uw.tp_value` (arm64).
    pub task_thread_pointer: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.__state`, before Linux 5.14 `state`.
    pub task_state: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `signal_struct.live`: threads of the process that have not begun to exit.
    pub signal_live: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `fdtable.max_fds`
    pub fdt_max_fds: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.private_data`
    pub file_private_data: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `socket.type`
    pub socket_type: u32,
    /// `sock.__sk_common.skc_family`
    pub sock_family: u32,
    /// `sock.__sk_common.skc_num`: local port, host byte order.
    pub sock_num: u32,
    /// `sock.__sk_common.skc_dport`: remote port, network byte order.
    pub sock_dport: u32,
    /// `sock.__sk_common.skc_rcv_saddr`
    pub sock_rcv_saddr: u32,
    /// `sock.__sk_common.skc_daddr`
    pub sock_daddr: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`
    pub sock_v6_rcv_saddr: u32,
    /// `sock.__sk_common.skc_v6_daddr`
    pub sock_v6_daddr: u32,
    /// `sock.sk_protocol`
    pub sock_protocol: u32,
    /// `tcp_sock.write_seq`
    pub tcp_write_seq: u32,
    /// `tcp_sock.copied_seq`
    pub tcp_copied_seq: u32,
    /// `unix_sock.peer`
    pub unix_peer: u32,
    /// `unix_sock.addr`
    pub unix_addr: u32,
    /// `unix_address.len`
    pub unix_address_len: u32,
    /// `unix_address.name`
    pub unix_address_name: u32,
    /// Offsets inside `pt_regs`: the system call number as entered, and its arguments one to four.
    pub regs_syscall: u32,
    /// See `regs_syscall`.
    pub regs_args: [u32; 4],
    /// First bytes captured of each call; at most [`MAX_CAPTURE`].
    pub capture_limit: u32,
    /// Not 0: every `exec` on the machine is reported, not only those of targets.
    pub report_exec: u32,
    /// Not 0: every new listening TCP socket on the machine is reported.
    pub report_listen: u32,
    /// Not 0: the kernel knows cookies, and a probe that is on one process only has its pid as its cookie; see
    /// `py_context_copy_current`.
    pub has_cookies: u32,
    /// Not 0: there are entries in `traces_ctx_v1` to take away.
    pub publish: u32,
    /// Not 0: clocks of threads are kept.
    pub clocks: u32,
    /// Not 0: the kernel has `bpf_task_pt_regs` (Linux 5.15).
    pub has_task_regs: u32,
    /// Number of the system call `futex`.
    pub futex: u32,
    /// A longer turn of an event loop is reported; 0: none is.
    pub longest_turn_ms: u32,
    /// Not 0: the kernel has `bpf_get_current_task_btf`.
    pub typed_task: u32,
}

/// Value of the map `traces_ctx_v1`, whose key is the kernel's `pid_tgid`: trace id (16 bytes) and span id (8 bytes), as
/// they are written, from the most significant byte.
pub type SpanIds = [u8; 24];
/// Number of entries of `traces_ctx_v1`.
pub const PUBLISHED_THREADS: u32 = 16_384;

/// What a system call does, for the `SYSCALLS` array that maps its number to this; 0 is "nothing of interest".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SyscallKind {
    /// Not of interest.
    None = 0,
    /// `read(fd, buf, count)`, `recvfrom(fd, buf, len, flags, ...)`: one buffer, received. Flags: see `Recvfrom`.
    Read = 1,
    /// `write(fd, buf, count)`, `sendto(fd, buf, len, flags, ...)`: one buffer, sent.
    Write = 2,
    /// `readv(fd, iov, iovcnt)`
    Readv = 3,
    /// `writev(fd, iov, iovcnt)`
    Writev = 4,
    /// `recvfrom`: like `Read`, ignored when the fourth argument has MSG_PEEK.
    Recvfrom = 5,
    /// `recvmsg(fd, msghdr, flags)`
    Recvmsg = 6,
    /// `sendmsg(fd, msghdr, flags)`
    Sendmsg = 7,
    /// `recvmmsg(fd, mmsghdr, vlen, flags, timeout)`
    Recvmmsg = 8,
    /// `sendmmsg(fd, mmsghdr, vlen, flags)`
    Sendmmsg = 9,
    /// `sendfile(out_fd, in_fd, offset, count)`: sent, no user buffer.
    Sendfile = 10,
    /// `splice(fd_in, off_in, fd_out, off_out, len, flags)`: either end may be a socket.
    Splice = 11,
    /// `epoll_wait` and its kin: one turn of an event loop.
    EpollWait = 12,
    /// `mmap(addr, len, prot, flags, fd, offset)`: of interest where it loads code, an interpreter or a module.
    Map = 13,
}

/// Length of the `SYSCALLS` array.
pub const SYSCALL_NUMBERS: u32 = 512;

const _: () = {
    assert!(size_of::<Target>() == 48);
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Task>() == 16);
    assert!(size_of::<SocketOpened>() == 16 + 16 + 8 + 8 + 8 + 32 + UNIX_PATH);
    assert!(size_of::<SocketData>() == 16 + 16 + 56 + 16 + 8 + 16);
    assert!(size_of::<SocketClosed>() == 32);
    assert!(size_of::<ContextMade>() == 40 + 56);
    assert!(size_of::<ContextGone>() == 40);
    assert!(size_of::<ProcessForked>() == 24);
    assert!(size_of::<SocketListening>() == 24);
    assert!(size_of::<Stream>() == 32);
    assert!(size_of::<Verdict>() == 32);
    assert!(size_of::<Globals>() == 45 * 4);
    assert!(MAX_CAPTURE.is_power_of_two());
};

#[cfg(feature = "user")]
mod user {
    use super::{SocketId, Stream, Target, Verdict};

    // SAFETY: these are `repr(C)` structs of integers without padding (asserted above); every bit pattern is valid.
    unsafe impl aya::Pod for Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Verdict {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Stream {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketId {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Globals {}
}
