//! The plaintext: data records like those of sockets, put together in the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use pitviper_ebpf::abi::{
    Counter, DATA_RECEIVED, DATA_SEQUENCE, Header, MAX_CAPTURE, MAX_TAIL, RecordKind, SocketData, SocketId,
    Target,
};

use super::objects::{CALL_RECEIVES, CALL_SEQUENCE, Call, Object, TLS_OBJECTS, bound};
use crate::context::current;
use crate::maps::{IGNORED, count, epoch, global, reserve, wanted_from};
use crate::publish;
use crate::socket::Socket;
use crate::thread::clocks;

/// `len` bytes of plaintext were read or written.
#[inline(never)]
pub(super) fn moved_plaintext(pid_tgid: u64, target: &Target, call: &Call, len: u64) -> u32 {
    let Some(object) = TLS_OBJECTS.get_ptr_mut(call.object) else { return 0 };
    let received = call.flags & CALL_RECEIVES != 0;
    // SAFETY: the pointer is to a map value. OpenSSL does not allow two threads to use an object at once.
    let (inode, position) = unsafe {
        let counter = if received { &raw mut (*object).received } else { &raw mut (*object).sent };
        let position = *counter;
        *counter = position + len;
        ((*object).inode, position)
    };
    let socket = SocketId { sock: call.object, inode };
    let body_until = wanted_from(socket.sock, inode, received);
    if body_until == IGNORED {
        return 0;
    }
    if !received {
        publish::answered(socket.sock);
    }
    if position + len < body_until {
        return 0;
    }
    let sequence = sequence(call, object);
    let mut flags = epoch() | if received { DATA_RECEIVED } else { 0 };
    if sequence & HAS_SEQUENCE != 0 {
        flags |= DATA_SEQUENCE;
    }
    let mut limit = u64::from(global!(capture_limit));
    if limit > u64::from(MAX_CAPTURE) {
        limit = u64::from(MAX_CAPTURE);
    }
    let wanted = if position + len <= body_until { 0 } else { len };
    let (head, tail) = if wanted <= limit {
        (wanted, 0)
    } else if len - limit < u64::from(MAX_TAIL) {
        (limit, len - limit)
    } else {
        (limit, u64::from(MAX_TAIL))
    };
    // SAFETY: the helper has no preconditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let (task, version) = current(pid_tgid, target);
    let record = SocketData {
        header: Header { kind: RecordKind::SocketData as u16, flags, pid: (pid_tgid >> 32) as u32, ktime_ns },
        task,
        clocks: clocks(pid_tgid, ktime_ns, version),
        socket,
        position,
        len: len as u32,
        head_len: head as u32,
        tail_len: tail as u32,
        sequence: sequence as u32,
    };
    if head + tail <= SMALL as u64 {
        output::<SMALL>(&record, call.buffer);
    } else if head + tail <= MIDDLE as u64 {
        output::<MIDDLE>(&record, call.buffer);
    } else {
        output::<LARGE>(&record, call.buffer);
    }
    0
}

/// Mark in what [`sequence`] gives.
const HAS_SEQUENCE: u64 = 1 << 32;

/// TCP sequence number of the ciphertext that plaintext begins with, with [`HAS_SEQUENCE`], or 0 if it is not certain: of what
/// was received, the first byte that came since plaintext was given out last; of what is sent, where the call has begun to
/// send, or will begin as nothing waits. Plaintext that shares its ciphertext's beginning with what came before has none.
///
/// A number and no `Option`, in a function of its own: before Linux 6.3 the verifier refuses to reload a spilled value that
/// only some of the paths have written.
#[inline(never)]
fn sequence(call: &Call, object: *mut Object) -> u64 {
    let Some(binding) = bound(call.object) else { return 0 };
    // SAFETY: the pointers are to map values.
    unsafe {
        if call.flags & CALL_RECEIVES != 0 {
            let fresh = (*binding).fresh;
            (*binding).fresh = 0;
            return if fresh == 1 { HAS_SEQUENCE | u64::from((*binding).received) } else { 0 };
        }
        let sequence = if call.flags & CALL_SEQUENCE != 0 {
            call.sequence
        } else {
            let Some(next) = Socket::of_id((*object).socket).and_then(|(socket, _)| socket.sequence(false))
            else {
                return 0;
            };
            next
        };
        if (*object).last_sent == sequence {
            return 0;
        }
        (*object).last_sent = sequence;
        HAS_SEQUENCE | u64::from(sequence)
    }
}

/// Room for bytes in the records of the three sizes: what the ring buffer gives must be of a fixed size.
const SMALL: usize = 512;
const MIDDLE: usize = 4096 + MAX_TAIL as usize;
const LARGE: usize = (MAX_CAPTURE + MAX_TAIL) as usize;

/// A record with room behind it.
#[repr(C)]
struct Roomy<const ROOM: usize> {
    record: SocketData,
    bytes: [u8; ROOM],
}

#[inline(never)]
fn output<const ROOM: usize>(record: &SocketData, buffer: u64) -> u32 {
    let Some(mut entry) = reserve::<Roomy<ROOM>>(Counter::RingFullData) else { return 0 };
    let into = entry.as_mut_ptr();
    // SAFETY: the entry has room for a record.
    unsafe { (&raw mut (*into).record).write(*record) };
    // SAFETY: the reference is valid; the compiler must not know the values, or it would drop checks that the verifier needs.
    let (head, tail, len) = unsafe {
        (
            (&raw const record.head_len).read_volatile(),
            (&raw const record.tail_len).read_volatile(),
            (&raw const record.len).read_volatile(),
        )
    };
    let (head, tail) = (u64::from(head), u64::from(tail));
    let mut copied = true;
    if head > 0 {
        copied = head <= ROOM as u64;
        if copied {
            // SAFETY: there is room for so many bytes; the helper checks the address.
            copied = unsafe {
                bpf_probe_read_user((&raw mut (*into).bytes).cast(), head as u32, buffer as *const _) == 0
            };
        }
    }
    if copied && tail > 0 {
        copied = tail <= u64::from(MAX_TAIL) && head <= (ROOM - MAX_TAIL as usize) as u64;
        if copied {
            // SAFETY: as above.
            copied = unsafe {
                let to = (&raw mut (*into).bytes).cast::<u8>().add(head as usize);
                let from = buffer + u64::from(len) - tail;
                bpf_probe_read_user(to.cast(), tail as u32, from as *const _) == 0
            };
        }
    }
    if !copied {
        count(Counter::UserReadFailed);
        // SAFETY: the entry has room for a record.
        unsafe {
            (*into).record.head_len = 0;
            (*into).record.tail_len = 0;
        }
    }
    entry.submit(0);
    count(Counter::DataRecords);
    0
}
