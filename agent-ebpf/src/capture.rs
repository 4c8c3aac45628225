//! System calls that move bytes: who, on which socket, at which position, how much, and the first and last bytes.

use core::ptr::null_mut;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use pitviper_ebpf::abi::{
    CAPTURE_TLS, Clocks, Counter, DATA_END, DATA_PIPE, DATA_RECEIVED, DATA_SEQUENCE, Header, MAX_CAPTURE,
    MAX_TAIL, RecordKind, SocketData, Stream, SyscallKind, Target,
};

use crate::context::current;
use crate::maps::{IGNORED, Scratch, count, epoch, global, opaque, send_bytes, wanted_from};
use crate::socket::Socket;
use crate::task::typed;
use crate::thread::{next_turn, store_clocks};
use crate::{publish, read, tls};

/// `MSG_PEEK`: the bytes stay in the socket and will be read again. `MSG_OOB`, `MSG_ERRQUEUE`: they are no part of
/// the stream.
const MSG_NOT_STREAM: u64 = 0x2 | 0x1 | 0x2000;
/// Entries of an iovec list that are copied; more become a gap.
const MAX_IOVECS: u64 = 16;
/// Messages of a `sendmmsg` or `recvmmsg` that are counted.
const MAX_MESSAGES: u64 = 64;
/// `struct mmsghdr`: a `struct msghdr` (56 bytes) and the number of bytes moved.
const MMSGHDR_SIZE: u64 = 64;
const MMSGHDR_LEN: u64 = 56;
/// Offset of `msg_iov` in `struct msghdr`; `msg_iovlen` follows it.
const MSGHDR_IOV: u64 = 16;

/// Where the bytes of a call are in user memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Buffer {
    /// Address of the bytes or of a list of `struct iovec`; 0: they never were in user memory.
    pub at: u64,
    /// So many.
    pub entries: u64,
    /// Not 0: it is a list.
    pub is_list: u64,
}

/// The registers of a system call, as the tracepoint hands them over: a typed pointer that may be read directly.
#[derive(Clone, Copy)]
pub(crate) struct Registers(*const u8);

impl Registers {
    /// `regs` is the tracepoint's `struct pt_regs *`.
    #[inline(always)]
    pub(crate) fn of(regs: *const u8) -> Self {
        Self(regs)
    }

    /// Number of the system call.
    #[inline(always)]
    pub(crate) fn system_call(self) -> u64 {
        let offset = global!(regs_syscall);
        // SAFETY: the verifier knows the type behind the pointer, and the offset as a constant of a register in it.
        unsafe { typed(self.0, offset) }
    }

    /// An argument of the system call, by its register's offset.
    #[inline(always)]
    pub(crate) fn argument(self, offset: u32) -> u64 {
        // SAFETY: as above.
        unsafe { typed(self.0, offset) }
    }
}

/// A system call of this kind returned `result`, in a process whose [`Target`] is in the scratch area.
#[inline(always)]
pub(crate) fn system_call(pid_tgid: u64, scratch: *mut Scratch, kind: u8, regs: Registers, result: i64) {
    if is(kind, SyscallKind::EpollWait) {
        // `epoll_wait(epfd, events, maxevents, timeout)`. An event loop watches a wake-up descriptor beside its sockets;
        // room for a single event is a library that waits for its own socket (psycopg connecting, say).
        if regs.argument(global!(regs_args[2])) > 1 {
            // SAFETY: the pointer is to this CPU's map value.
            next_turn(pid_tgid, unsafe { &(*scratch).transfer.target });
        }
        return;
    }
    if result < 0 {
        return;
    }
    let argument = |offset: u32| regs.argument(offset);
    let first = argument(global!(regs_args[0]));
    let second = argument(global!(regs_args[1]));
    let third = argument(global!(regs_args[2]));
    let received = is(kind, SyscallKind::Read)
        || is(kind, SyscallKind::Readv)
        || is(kind, SyscallKind::Recvfrom)
        || is(kind, SyscallKind::Recvmsg)
        || is(kind, SyscallKind::Recvmmsg);
    let peeked = if is(kind, SyscallKind::Recvfrom) {
        argument(global!(regs_args[3])) & MSG_NOT_STREAM != 0
    } else {
        is(kind, SyscallKind::Recvmsg) && third & MSG_NOT_STREAM != 0
    };
    if peeked || (has_one_buffer(kind) && third == 0) {
        return;
    }
    let compared = !(is(kind, SyscallKind::Readv)
        || has_several_messages(kind)
        || is(kind, SyscallKind::Sendfile)
        || is(kind, SyscallKind::Splice));
    // SAFETY: the pointer is to this CPU's map value, and no other program of this CPU uses it meanwhile: the tracepoint runs
    // with preemption disabled.
    let transfer = unsafe { &raw mut (*scratch).transfer };
    let nowhere = Buffer { at: 0, entries: 0, is_list: 0 };
    let mut len = result as u64;
    let mut there = len;
    let buffer = if has_one_buffer(kind) {
        Buffer { at: second, ..nowhere }
    } else if is(kind, SyscallKind::Readv) || is(kind, SyscallKind::Writev) {
        Buffer { at: second, entries: third, is_list: 1 }
    } else if is(kind, SyscallKind::Splice) || is(kind, SyscallKind::Sendfile) {
        nowhere
    } else {
        if has_several_messages(kind) {
            // What follows the first message is counted, not captured.
            there = u64::from(read::user::<u32>(second + MMSGHDR_LEN).unwrap_or(0));
            len = sum_of_messages(scratch, second, len);
        }
        let Some([list, entries]) = read::user::<[u64; 2]>(second + MSGHDR_IOV) else { return };
        Buffer { at: list, entries, is_list: 1 }
    };
    // SAFETY: as above. The rest is set by `look_up`.
    unsafe {
        (*transfer).pid_tgid = pid_tgid;
        (*transfer).buffer = buffer;
        (*transfer).len = len;
        (*transfer).there = there;
        (*transfer).fd = first as u32;
        (*transfer).received = u32::from(received);
        (*transfer).may_be_tls = u32::from(compared && (*transfer).target.capture & CAPTURE_TLS != 0);
    }
    if is(kind, SyscallKind::Splice) {
        // Either end may be the socket: the first descriptor is read, the second written.
        // SAFETY: as above.
        unsafe { (*transfer).received = 1 };
        report(scratch);
        // SAFETY: as above.
        unsafe {
            (*transfer).received = 0;
            (*transfer).fd = third as u32;
        }
    }
    report(scratch);
}

/// How many bytes the first messages of a list have moved. The sum is in the scratch area for the reason given there.
#[inline(never)]
fn sum_of_messages(scratch: *mut Scratch, list: u64, messages: u64) -> u64 {
    // SAFETY: the pointer is to this CPU's map value.
    let sum = unsafe { &raw mut (*scratch).copied };
    // SAFETY: as above; volatile, for the reason given at the field.
    unsafe { sum.write_volatile(0) };
    let mut index = 0;
    while index < MAX_MESSAGES {
        if index >= messages {
            break;
        }
        let len = read::user::<u32>(list + index * MMSGHDR_SIZE + MMSGHDR_LEN).unwrap_or(0);
        // SAFETY: as above.
        unsafe { sum.write_volatile(sum.read_volatile() + u64::from(len)) };
        index += 1;
    }
    // SAFETY: as above.
    unsafe { sum.read_volatile() }
}

#[inline(always)]
const fn is(kind: u8, expected: SyscallKind) -> bool {
    kind == expected as u8
}

#[inline(always)]
const fn has_one_buffer(kind: u8) -> bool {
    is(kind, SyscallKind::Read) || is(kind, SyscallKind::Write) || is(kind, SyscallKind::Recvfrom)
}

#[inline(always)]
const fn has_several_messages(kind: u8) -> bool {
    is(kind, SyscallKind::Recvmmsg) || is(kind, SyscallKind::Sendmmsg)
}

/// What a system call moved. It is in this CPU's scratch area and not on the stack, of which programs have 512 bytes for a
/// call and all that it calls; and what is reloaded from there the verifier does not know, so that it need not go through
/// what follows for each kind of call and socket.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Transfer {
    pub pid_tgid: u64,
    pub target: Target,
    pub buffer: Buffer,
    pub len: u64,
    /// How many of the bytes are in the buffer, beginning with the first.
    there: u64,
    /// Its address is 0 if there is none.
    pub socket: Socket,
    fd: u32,
    pub received: u32,
    /// Not 0: the process has probes on its TLS libraries, and the call is one that is compared with what those do.
    may_be_tls: u32,
    /// Not 0: the daemon has been told of the socket.
    pub announced: u32,
    /// TCP sequence number after the last byte, once it has been asked for, if `has_sequence` is not 0.
    pub after: u32,
    pub has_sequence: u32,
}

impl Transfer {
    #[inline(always)]
    pub(crate) fn ask_sequence(&mut self) {
        if self.has_sequence == 0
            && let Some(after) = self.socket.sequence(self.received != 0)
        {
            self.after = after;
            self.has_sequence = 1;
        }
    }
}

/// Reports what went through the socket behind the descriptor, if it is one.
#[inline(always)]
fn report(scratch: *mut Scratch) {
    // SAFETY: the pointer is to this CPU's map value.
    let transfer = unsafe { &raw mut (*scratch).transfer };
    let known = look_up(transfer);
    // SAFETY: as above.
    let Transfer { socket, may_be_tls, .. } = unsafe { &*transfer };
    if socket.id.sock == 0 {
        return;
    }
    // The ciphertext of a connection whose plaintext is known is of no interest.
    if *may_be_tls != 0 && !socket.is_pipe() && tls::carries(scratch) != 0 {
        return;
    }
    record(scratch, known);
}

/// Finds the socket of a transfer, and what is kept of it; NULL if the daemon has not been told of it.
#[inline(never)]
fn look_up(transfer: *mut Transfer) -> *mut Stream {
    // SAFETY: the pointer is to this CPU's map value.
    let transfer = unsafe { &mut *transfer };
    transfer.socket.id.sock = 0;
    transfer.announced = 0;
    transfer.has_sequence = 0;
    transfer.after = 0;
    if transfer.len == 0 && transfer.received == 0 {
        return null_mut();
    }
    let Some((socket, known)) = Socket::of_descriptor(transfer.fd, transfer.target.capture) else {
        return null_mut();
    };
    transfer.socket = socket;
    let Some(known) = known else { return null_mut() };
    transfer.announced = 1;
    known
}

/// Sends a record of a transfer over a socket of which this is kept.
///
/// A function of its own keeps the registers and the stack of what is around it out of the way: before Linux 6.3
/// the verifier refuses to reload a spilled value that only some of the paths have written.
#[inline(never)]
fn record(scratch: *mut Scratch, known: *mut Stream) {
    // SAFETY: the pointer is to this CPU's map value.
    let transfer = unsafe { &mut (*scratch).transfer };
    let Transfer { pid_tgid, socket, fd, len, there, buffer, .. } = *transfer;
    let received = transfer.received != 0;
    let body_until = wanted_from(socket.id.sock, socket.id.inode, received);
    if body_until == IGNORED {
        return;
    }
    let pid = (pid_tgid >> 32) as u32;
    let Some(stream) = socket.stream(known, pid, fd) else { return };
    // SAFETY: the pointer is to a map value. Two threads that use one direction of a socket at once may lose an
    // update; the daemon then sees positions that do not fit and treats the bytes as a gap.
    let position = unsafe {
        let counter = if received { &raw mut (*stream).received } else { &raw mut (*stream).sent };
        let position = *counter;
        *counter = position + len;
        position
    };
    if !received {
        publish::answered(socket.id.sock);
    }
    if len != 0 && position + len < body_until {
        return;
    }
    let mut flags = epoch() | if received { DATA_RECEIVED } else { 0 };
    if len == 0 {
        flags |= DATA_END;
    } else {
        transfer.ask_sequence();
        if transfer.has_sequence != 0 {
            flags |= DATA_SEQUENCE;
        }
    }
    if socket.is_pipe() {
        flags |= DATA_PIPE;
    }
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let (task, version) = current(pid_tgid, &transfer.target);
    // SAFETY: the pointer is to this CPU's map value, and no other program of this CPU uses it meanwhile: the
    // tracepoint runs with preemption disabled.
    unsafe {
        (*scratch).record = SocketData {
            header: Header { kind: RecordKind::SocketData as u16, flags, pid, ktime_ns },
            task,
            clocks: Clocks::NONE,
            socket: socket.id,
            position,
            len: len as u32,
            head_len: 0,
            tail_len: 0,
            sequence: transfer.after.wrapping_sub(len as u32),
        };
        store_clocks(&raw mut (*scratch).record.clocks, pid_tgid, ktime_ns, version);
    }
    let wanted = if position + len <= body_until { 0 } else { there };
    let captured = copy(scratch, buffer, wanted);
    if send_captured(scratch, captured) {
        count(Counter::DataRecords);
    }
}

/// Copies the head and the tail of a buffer behind the record, sets their lengths, and returns their sum.
#[inline(always)]
fn copy(scratch: *mut Scratch, buffer: Buffer, len: u64) -> u64 {
    let mut limit = u64::from(global!(capture_limit));
    if limit > u64::from(MAX_CAPTURE) {
        limit = u64::from(MAX_CAPTURE);
    }
    let Buffer { at, entries, is_list } = buffer;
    if at == 0 {
        0
    } else if is_list != 0 {
        copy_vector(scratch, at, entries, len, limit)
    } else {
        copy_one(scratch, at, len, limit)
    }
}

#[inline(always)]
fn copy_one(scratch: *mut Scratch, address: u64, len: u64, limit: u64) -> u64 {
    let mut head = if len < limit { len } else { limit };
    if head > u64::from(MAX_CAPTURE) {
        head = u64::from(MAX_CAPTURE);
    }
    if head == 0 || !read_user(scratch, 0, address, head) {
        return 0;
    }
    let mut tail = len - head;
    if tail > u64::from(MAX_TAIL) {
        tail = u64::from(MAX_TAIL);
    }
    if tail > 0 && !read_user(scratch, head, address + len - tail, tail) {
        tail = 0;
    }
    // SAFETY: the pointer is to this CPU's map value.
    unsafe {
        (*scratch).record.head_len = head as u32;
        (*scratch).record.tail_len = tail as u32;
    }
    head + tail
}

#[inline(always)]
fn copy_vector(scratch: *mut Scratch, list: u64, entries: u64, len: u64, limit: u64) -> u64 {
    let wanted = if len < limit { len } else { limit };
    // SAFETY: the pointer is to this CPU's map value.
    let copied = unsafe { &raw mut (*scratch).copied };
    // SAFETY: as above; volatile, for the reason given at the field.
    let so_far = || unsafe { copied.read_volatile() };
    // SAFETY: as above.
    unsafe { copied.write_volatile(0) };
    let mut index: u64 = 0;
    while index < MAX_IOVECS {
        if index >= entries || so_far() >= wanted {
            break;
        }
        let Some([base, size]) = read::user::<[u64; 2]>(list + index * 16) else { break };
        let offset = so_far();
        let mut part = wanted - offset;
        if part > size {
            part = size;
        }
        let mut now = part;
        if now > u64::from(MAX_CAPTURE / 2) {
            now = u64::from(MAX_CAPTURE / 2);
        }
        if now > 0 && !read_user(scratch, offset, base, now) {
            break;
        }
        // SAFETY: as above.
        unsafe { copied.write_volatile(offset + now) };
        if now < part {
            break;
        }
        index += 1;
    }
    if index >= MAX_IOVECS && so_far() < wanted {
        count(Counter::IovecTruncated);
    }
    let mut head = so_far();
    if head > u64::from(MAX_CAPTURE) {
        head = u64::from(MAX_CAPTURE);
    }
    // SAFETY: the pointer is to this CPU's map value.
    unsafe { (*scratch).record.head_len = head as u32 };
    head
}

/// Reads `len` bytes of user memory to `offset` in the scratch area.
///
/// The bounds hold already. They are repeated for the verifier, in a function so small that the checked values stay in
/// their registers: before Linux 6.8 it forgets the bounds of a value that goes to the stack and back.
#[inline(never)]
fn read_user(scratch: *mut Scratch, offset: u64, address: u64, len: u64) -> bool {
    let (offset, len) = (opaque(scratch, offset), opaque(scratch, len));
    let room = if offset == 0 { MAX_CAPTURE } else { MAX_CAPTURE / 2 };
    if offset > u64::from(MAX_CAPTURE) || len > u64::from(room) {
        return false;
    }
    // SAFETY: `offset + len` is inside the area, which has room for MAX_CAPTURE and a half.
    let failed = unsafe {
        let into = (&raw mut (*scratch).bytes).cast::<u8>().add(offset as usize);
        bpf_probe_read_user(into.cast(), len as u32, address as *const _) != 0
    };
    if failed {
        count(Counter::UserReadFailed);
    }
    !failed
}

/// Sends the record in the scratch area with so many bytes behind it. It is as small as [`read_user`], for its reason.
#[inline(never)]
fn send_captured(scratch: *mut Scratch, captured: u64) -> bool {
    let captured = opaque(scratch, captured);
    if captured > u64::from(MAX_CAPTURE + MAX_TAIL) {
        return false;
    }
    let size = size_of::<SocketData>() as u64 + captured;
    // SAFETY: the scratch area has room for more than this behind the record.
    unsafe { send_bytes(scratch.cast_const().cast(), size, Counter::RingFullData) }
}
