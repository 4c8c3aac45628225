//! The maps, the constants that the daemon fills in before loading, and the counters.

use aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP;
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use pitviper_ebpf::abi::{
    COUNTERS as COUNTER_KINDS, Counter, EPOCH_SHIFT, Globals, MAX_CAPTURE, MAX_TAIL, SYSCALL_NUMBERS,
    SocketData, SocketOpened, Stream, Target, Verdict,
};

use crate::capture::Transfer;
use crate::{publish, tls};

/// Filled in by the daemon; read-only for the programs, so that the verifier sees constants.
#[unsafe(no_mangle)]
static GLOBALS: Globals = Globals {
    task_thread_pointer: 0,
    task_files: 0,
    task_tgid: 0,
    task_pid: 0,
    task_state: 0,
    task_signal: 0,
    signal_live: 0,
    files_fdt: 0,
    fdt_fd: 0,
    fdt_max_fds: 0,
    file_inode: 0,
    file_private_data: 0,
    inode_mode: 0,
    inode_ino: 0,
    socket_sk: 0,
    socket_type: 0,
    sock_family: 0,
    sock_num: 0,
    sock_dport: 0,
    sock_rcv_saddr: 0,
    sock_daddr: 0,
    sock_v6_rcv_saddr: 0,
    sock_v6_daddr: 0,
    sock_protocol: 0,
    tcp_write_seq: 0,
    tcp_copied_seq: 0,
    unix_peer: 0,
    unix_addr: 0,
    unix_address_len: 0,
    unix_address_name: 0,
    regs_syscall: 0,
    regs_args: [0; 4],
    capture_limit: 0,
    report_exec: 0,
    report_listen: 0,
    has_cookies: 0,
    publish: 0,
    clocks: 0,
    has_task_regs: 0,
    futex: 0,
    longest_turn_ms: 0,
    typed_task: 0,
};

/// One field of [`GLOBALS`], as the daemon set it.
macro_rules! global {
    ($($field:tt)+) => {
        // SAFETY: the static is valid; the volatile read keeps the compiler from using the initialiser's zeros.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::globals().$($field)+) }
    };
}
pub(crate) use global;

#[inline(always)]
pub(crate) fn globals() -> &'static Globals {
    &GLOBALS
}

/// A thread that takes objects out of queues; only that thread changes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Worker {
    /// The queue that it has asked last.
    pub asked: u64,
    /// The queue that the work item came from that it is at work on; 0: it has none.
    pub serves: u64,
}

/// Where a data record is put together: more than fits on the stack of a program. An iovec may be read at any offset
/// up to `MAX_CAPTURE`, at most half of `MAX_CAPTURE` at a time.
#[repr(C)]
pub(crate) struct Scratch {
    pub record: SocketData,
    pub bytes: [u8; (MAX_CAPTURE + MAX_CAPTURE / 2 + MAX_TAIL) as usize],
    pub opened: SocketOpened,
    pub transfer: Transfer,
    /// Bytes of an iovec list that have been copied. It lives here and not in a register so that the verifier does not
    /// follow its value through the loop: every turn then looks the same, and the loop is checked once.
    pub copied: u64,
    /// Where a value goes through to become unknown; nothing else reads it.
    pub opaque: u64,
}

/// No position is after this one.
pub(crate) const IGNORED: u64 = u64::MAX;

#[map]
static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(16_384, 0);
#[map]
static SYSCALLS: Array<u8> = Array::with_max_entries(SYSCALL_NUMBERS, 0);
#[map]
static WORKERS: LruHashMap<u64, Worker> = LruHashMap::with_max_entries(8192, 0);
#[map]
static STREAMS: LruHashMap<u64, Stream> = LruHashMap::with_max_entries(65_536, 0);
#[map]
static VERDICTS: LruHashMap<u64, Verdict> = LruHashMap::with_max_entries(65_536, 0);
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_KINDS, 0);
#[map]
static EPOCH: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);
/// Wakes the daemon out of the pause in which it lets records gather. The byte itself says nothing.
#[map]
static DOORBELL: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Something has to be acted on at once.
#[inline(always)]
pub(crate) fn ring_doorbell() {
    // A full buffer means that the bell is ringing already.
    let _ = DOORBELL.output::<u64>(0_u64, u64::from(BPF_RB_FORCE_WAKEUP));
}

#[inline(always)]
pub(crate) fn target(pid: u32) -> Option<Target> {
    // SAFETY: the value is copied at once; the daemon replaces values whole.
    unsafe { TARGETS.get(pid) }.copied()
}

#[inline(always)]
pub(crate) fn insert_target(pid: u32, target: &Target) {
    if TARGETS.insert(pid, target, 0).is_err() {
        count(Counter::MapUpdateFailed);
    }
}

#[inline(always)]
pub(crate) fn remove_target(pid: u32) {
    let _ = TARGETS.remove(pid);
}

#[inline(always)]
pub(crate) fn syscall_kind(number: u64) -> u8 {
    if number >= u64::from(SYSCALL_NUMBERS) { 0 } else { SYSCALLS.get(number as u32).copied().unwrap_or(0) }
}

#[inline(always)]
pub(crate) fn forget_worker(pid_tgid: u64) {
    tls::thread_gone(pid_tgid);
    let _ = WORKERS.remove(pid_tgid);
}

/// A thread that takes objects out of queues.
#[inline(always)]
pub(crate) fn worker(pid_tgid: u64) -> Option<*mut Worker> {
    WORKERS.get_ptr_mut(pid_tgid)
}

#[inline(always)]
pub(crate) fn insert_worker(pid_tgid: u64, worker: &Worker) {
    if WORKERS.insert(pid_tgid, worker, 0).is_err() {
        count(Counter::MapUpdateFailed);
    }
}

#[inline(always)]
pub(crate) fn stream(sock: u64) -> Option<*mut Stream> {
    STREAMS.get_ptr_mut(sock)
}

#[inline(always)]
pub(crate) fn insert_stream(sock: u64, stream: &Stream) -> Option<*mut Stream> {
    if STREAMS.insert(sock, stream, 0).is_err() {
        count(Counter::MapUpdateFailed);
    }
    STREAMS.get_ptr_mut(sock)
}

#[inline(always)]
pub(crate) fn remove_stream(sock: u64) {
    publish::answered(sock);
    tls::socket_gone(sock);
    let _ = STREAMS.remove(sock);
    let _ = VERDICTS.remove(sock);
}

/// What the daemon has said of a socket holds no longer.
#[inline(always)]
pub(crate) fn remove_verdict(sock: u64) {
    let _ = VERDICTS.remove(sock);
}

/// Before which position the daemon wants nothing of a stream of this socket; [`IGNORED`] if it wants nothing at all.
#[inline(always)]
pub(crate) fn wanted_from(sock: u64, inode: u64, received: bool) -> u64 {
    // SAFETY: the values are copied at once; a torn read of a position costs one copy too many or a gap.
    match unsafe { VERDICTS.get(sock) } {
        Some(verdict) if verdict.inode != inode => 0,
        Some(verdict) if verdict.ignore != 0 => IGNORED,
        Some(verdict) if received => verdict.skip_received_until,
        Some(verdict) => verdict.skip_sent_until,
        None => 0,
    }
}

#[inline(always)]
pub(crate) fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

/// The value itself, of which neither compiler nor verifier knows anything any more: the one would drop a check of
/// bounds that it has proven, the other follow paths that they exclude.
#[inline(always)]
pub(crate) fn opaque(scratch: *mut Scratch, value: u64) -> u64 {
    // SAFETY: the pointer is to this CPU's map value.
    unsafe {
        let through = &raw mut (*scratch).opaque;
        through.write_volatile(value);
        through.read_volatile()
    }
}

/// Sends a record, or counts that there was no room.
#[inline(always)]
pub(crate) fn send<T>(record: &T, lost: Counter) -> bool {
    let sent = RECORDS.output::<T>(record, 0).is_ok();
    if !sent {
        count(lost);
    }
    sent
}

/// Room for a record in the ring buffer itself, or a count that there was none: for programs that may be preempted.
#[inline(always)]
pub(crate) fn reserve<T: 'static>(lost: Counter) -> Option<RingBufEntry<T>> {
    let entry = RECORDS.reserve::<T>(0);
    if entry.is_none() {
        count(lost);
    }
    entry
}

/// The lineage epoch, where the flags of a record hold it.
#[inline(always)]
pub(crate) fn epoch() -> u16 {
    (EPOCH.get(0).copied().unwrap_or(0) as u16) << EPOCH_SHIFT
}

/// A record that lineage depends on was lost. Two losses at once may count as one; that there was one is what matters.
#[inline(always)]
pub(crate) fn next_epoch() {
    if let Some(epoch) = EPOCH.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map value.
        unsafe { *epoch += 1 };
    }
}

/// Sends the first `len` bytes at `record`, or counts that there was no room.
///
/// # Safety
/// `len` bytes must be readable at `record`, and the verifier must be able to see so.
#[inline(always)]
pub(crate) unsafe fn send_bytes(record: *const u8, len: u64, lost: Counter) -> bool {
    // SAFETY: RECORDS is a ring buffer; the caller vouches for the bytes.
    let sent = unsafe {
        aya_ebpf::helpers::generated::bpf_ringbuf_output(
            (&raw const RECORDS).cast_mut().cast(),
            record.cast_mut().cast(),
            len,
            0,
        )
    };
    if sent != 0 {
        count(lost);
    }
    sent == 0
}

#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's map value.
        unsafe { *value += 1 };
    }
}
