//! The loaded programs: their maps, their attachments, and what the kernel counted.

use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, TracePoint, UProbe};
use aya::{Btf as AyaBtf, Ebpf, EbpfLoader};
use aya_log::{EbpfLogger, Level};
use log::Log;
use pitviper_ebpf::abi::{
    COUNTERS, Counter, Globals, MAX_CAPTURE, Runtime, SocketId, StackLayout, Target, Thread, ThreadState,
    Verdict,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::btf::{self, Btf};
use super::probes::Probes;
use super::probes::sets::{self, ProbeSet, Subject};
use super::publish::{self, Pin, Published};
use super::records::Record;
use super::{capabilities, offsets, sampling, syscalls};
use crate::clock;

/// What the user may choose about the kernel side.
#[derive(Debug)]
pub struct Options {
    /// First bytes captured of each call.
    pub capture_limit: u32,
    /// Size of the ring buffer in bytes: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Report every exec on the machine.
    pub report_exec: bool,
    /// Report every new listening TCP socket on the machine.
    pub report_listen: bool,
    /// Profile samples per second of each CPU; 0: none.
    pub sample_hz: u32,
    /// Keep clocks of the threads of targets, and report turns of event loops that are longer than this.
    pub clocks: Option<Duration>,
    /// Hand on what the programs log, for debugging them.
    pub log: bool,
    /// Publish the spans of threads in the map pinned here.
    pub publish: Option<Pin>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            capture_limit: 4096,
            ring_bytes: 8 << 20,
            report_exec: false,
            report_listen: false,
            sample_hz: 0,
            clocks: None,
            log: false,
            publish: None,
        }
    }
}

/// The kernel side, loaded and attached. Dropping it detaches and unloads everything.
pub struct Programs {
    ebpf: Ebpf,
    targets: HashMap<MapData, u32, Target>,
    verdicts: HashMap<MapData, u64, Verdict>,
    /// `None` when no stacks are taken.
    profiled: Option<HashMap<MapData, u32, StackLayout>>,
    /// `None` when no clocks are kept.
    runtimes: Option<HashMap<MapData, u32, Runtime>>,
    /// The same.
    threads: Option<HashMap<MapData, u64, Thread>>,
    counters: PerCpuArray<MapData, u64>,
    records: RingBuf<MapData>,
    doorbell: RingBuf<MapData>,
    probes: Probes,
    published: Option<Published>,
    log: Option<EbpfLogger<&'static dyn Log>>,
}

impl Programs {
    /// Loads and attaches everything but the per-process probes.
    pub fn load(object: &[u8], options: Options) -> Result<Self> {
        let types =
            std::fs::read(btf::VMLINUX).with_context(|| format!("failed to read {}", btf::VMLINUX))?;
        let has_registers = capabilities::has_task_registers();
        let globals = Globals {
            capture_limit: options.capture_limit.min(MAX_CAPTURE),
            report_exec: u32::from(options.report_exec),
            report_listen: u32::from(options.report_listen),
            has_cookies: u32::from(aya::features().bpf_cookie()),
            publish: u32::from(options.publish.is_some()),
            clocks: u32::from(options.clocks.is_some()),
            has_task_regs: u32::from(has_registers),
            futex: u32::try_from(libc::SYS_futex)?,
            longest_turn_ms: options
                .clocks
                .filter(|_| has_registers)
                .map_or(Ok(0), |longest| longest.as_millis().try_into())?,
            typed_task: u32::from(capabilities::has_typed_task()),
            ..offsets::resolve(&Btf::parse(types)?)?
        };
        let kernel_types = AyaBtf::from_sys_fs().context("failed to read the kernel's type information")?;
        // Below the lowest level there is nothing: the verifier drops the logging code.
        let log_level: u8 = if options.log { Level::Debug as u8 } else { 0 };
        let mut loader = EbpfLoader::new();
        match &options.publish {
            Some(pin) => loader.map_pin_path(publish::MAP, pin.map()),
            None => loader.map_max_entries(publish::MAP, 1).map_max_entries("SERVING", 1),
        };
        let mut ebpf = loader
            .btf(Some(&kernel_types))
            .override_global("GLOBALS", &globals, true)
            .override_global("AYA_LOG_LEVEL", &log_level, true)
            .map_max_entries("RECORDS", options.ring_bytes)
            .load(object)
            .context("failed to load the kernel programs")?;
        let mut kinds: Array<_, u8> = Array::try_from(ebpf.map_mut("SYSCALLS").context("no map SYSCALLS")?)?;
        for (number, kind) in syscalls::table() {
            kinds.set(number, kind as u8, 0).context("failed to fill the table of system calls")?;
        }
        let mut tracepoints =
            vec!["sched_process_fork", "sched_process_exec", "sched_process_exit", "inet_sock_set_state"];
        if capabilities::preempts_tracepoints() {
            let name = "sys_exit_unpreempted";
            let program: &mut TracePoint = program(&mut ebpf, name)?.try_into()?;
            program.load().with_context(|| format!("the kernel refused the program {name}"))?;
            program.attach("raw_syscalls", "sys_exit").context(
                "failed to attach to the tracepoint raw_syscalls:sys_exit (is /sys/kernel/tracing mounted?)",
            )?;
        } else {
            tracepoints.push("sys_exit");
        }
        if options.clocks.is_some() {
            tracepoints.extend(["sched_switch", "sched_wakeup"]);
        }
        for name in tracepoints {
            let program: &mut BtfTracePoint = program(&mut ebpf, name)?.try_into()?;
            program
                .load(name, &kernel_types)
                .with_context(|| format!("the kernel refused the program {name}"))?;
            program.attach().with_context(|| format!("failed to attach to the tracepoint {name}"))?;
        }
        for name in sets::PROGRAMS {
            let probe: &mut UProbe = program(&mut ebpf, name)?.try_into()?;
            probe.load().with_context(|| format!("the kernel refused the program {name}"))?;
        }
        if options.sample_hz != 0 {
            sampling::attach(program(&mut ebpf, sampling::PROGRAM)?, options.sample_hz)?;
        }
        for (name, program) in ebpf.programs() {
            if let Some(count) = program.info().ok().and_then(|info| info.verified_instruction_count()) {
                log::debug!("the kernel verified {name} in {count} steps");
            }
        }

        let log = options
            .log
            .then(|| EbpfLogger::init(&mut ebpf))
            .transpose()
            .context("failed to open the kernel programs' log")?;
        let published = options.publish.map(|pin| Published::new(&mut ebpf, pin)).transpose()?;
        let mut map = |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("no map {name}"));
        Ok(Self {
            targets: map("TARGETS")?.try_into()?,
            verdicts: map("VERDICTS")?.try_into()?,
            profiled: (options.sample_hz != 0 || options.clocks.is_some())
                .then(|| map("PROFILED")?.try_into().map_err(Error::new))
                .transpose()?,
            runtimes: options.clocks.map(|_| map("RUNTIMES")?.try_into().map_err(Error::new)).transpose()?,
            threads: options.clocks.map(|_| map("THREADS")?.try_into().map_err(Error::new)).transpose()?,
            counters: map("COUNTERS")?.try_into()?,
            records: map("RECORDS")?.try_into()?,
            doorbell: map("DOORBELL")?.try_into()?,
            probes: Probes::new(),
            published,
            log,
            ebpf,
        })
    }

    /// Makes a process a target, or replaces what is known of it.
    pub fn set_target(&mut self, pid: u32, target: Target) -> Result<()> {
        self.targets.insert(pid, target, 0).with_context(|| format!("failed to make process {pid} a target"))
    }

    /// Replaces what is known of a target, unless it has ended and is none any more.
    pub fn update_target(&mut self, pid: u32, target: Target) -> bool {
        const ONLY_IF_THERE: u64 = 2; // BPF_EXIST
        self.targets.insert(pid, target, ONLY_IF_THERE).is_ok()
    }

    /// All targets, those too that the kernel side has made by itself.
    pub fn target_pids(&self) -> Vec<u32> {
        self.targets.keys().flatten().collect()
    }

    /// What the kernel side knows of a target.
    pub fn target(&self, pid: u32) -> Option<Target> {
        self.targets.get(&pid, 0).ok()
    }

    /// Whether clocks of threads are kept.
    pub fn keeps_clocks(&self) -> bool {
        self.threads.is_some()
    }

    /// From now on it is told when a thread of this target waits for its interpreter's lock, which is at `runtime`.
    pub fn set_runtime(&mut self, pid: u32, runtime: Runtime) -> Result<()> {
        let Some(runtimes) = &mut self.runtimes else { return Ok(()) };
        runtimes.insert(pid, runtime, 0).with_context(|| format!("failed to name the lock of process {pid}"))
    }

    /// Keeps clocks of these threads of a process from now on, unless the kernel side keeps them already.
    pub fn keep_clocks(&mut self, pid: u32, tids: impl IntoIterator<Item = u32>) {
        const ONLY_IF_NOT_THERE: u64 = 1; // BPF_NOEXIST
        let Some(threads) = &mut self.threads else { return };
        for tid in tids {
            let thread = Thread::since(clock::ktime_ns(), ThreadState::Asleep);
            // It is there, or there is no room, which costs the time until it is next seen.
            let _ = threads.insert(u64::from(pid) << 32 | u64::from(tid), thread, ONLY_IF_NOT_THERE);
        }
    }

    fn unset_runtime(&mut self, pid: u32) {
        if let Some(runtimes) = &mut self.runtimes {
            // It had none, perhaps.
            let _ = runtimes.remove(&pid);
        }
    }

    /// No more samples are taken, of any process.
    pub fn stop_sampling(&mut self) {
        if self.profiled.take().is_some()
            && let Err(error) = program(&mut self.ebpf, sampling::PROGRAM).and_then(sampling::detach)
        {
            log::debug!("the sampling timers go on: {error:#}");
        }
    }

    /// From now on samples of this target are taken; its Python frames are where `layout` says.
    pub fn set_profiled(&mut self, pid: u32, layout: StackLayout) -> Result<()> {
        let Some(profiled) = &mut self.profiled else { return Ok(()) };
        profiled.insert(pid, layout, 0).with_context(|| format!("failed to profile process {pid}"))
    }

    /// No more samples of this target are taken.
    pub fn unset_profiled(&mut self, pid: u32) {
        if let Some(profiled) = &mut self.profiled {
            // Nobody has taken samples of it, perhaps.
            let _ = profiled.remove(&pid);
        }
    }

    /// Ends the tracing of a process: no more records, no more probes.
    pub fn remove_target(&mut self, pid: u32) {
        // The entry is gone already when the process has ended.
        let _ = self.targets.remove(&pid);
        self.unset_profiled(pid);
        self.unset_runtime(pid);
        self.detach_probes(pid);
    }

    /// Puts probes on a process, in place of what it has on the same subject: on all its threads, and on what it forks from now on, if that
    /// is possible on this machine; see [`Programs::pass_on_probes`].
    pub fn attach_probes(&mut self, pid: u32, set: &ProbeSet<'_>) -> Result<()> {
        self.probes.attach(&mut self.ebpf, pid, set)
    }

    /// On what a process has probes.
    pub fn probed_subjects(&self, pid: u32) -> Vec<Subject> {
        self.probes.subjects(pid).collect()
    }

    /// Takes note that a child, forked at `ktime_ns`, has inherited its parent's probes on this. False if it has not: then it
    /// needs its own.
    pub fn pass_on_probes(&mut self, parent: u32, child: u32, ktime_ns: u64, subject: Subject) -> bool {
        self.probes.pass_on(parent, child, ktime_ns, subject)
    }

    /// Takes the probes on one subject off a process.
    pub fn detach_probes_from(&mut self, pid: u32, subject: Subject) {
        self.probes.detach_from(&mut self.ebpf, pid, subject);
    }

    /// Takes all probes off a process.
    pub fn detach_probes(&mut self, pid: u32) {
        self.probes.detach(&mut self.ebpf, pid);
    }

    /// From time to time: gives up what is not used any more.
    pub fn tidy(&mut self, now_ns: u64) {
        self.probes.tidy(now_ns);
    }

    /// How many processes have lineage probes.
    pub fn probed(&self) -> usize {
        self.probes.count(Subject::Contexts)
    }

    /// Tells the kernel side what is wanted of a socket. A failure costs only work.
    pub fn set_verdict(&mut self, socket: SocketId, verdict: Verdict) {
        if let Err(error) = self.verdicts.insert(socket.sock, verdict, 0) {
            log::debug!("failed to set a verdict: {error}");
        }
    }

    /// The map of published spans, if there is to be one.
    pub fn published(&mut self) -> Option<&mut Published> {
        self.published.as_mut()
    }

    /// Sleeps until there are records, or `timeout` is over; tells which. The kernel side wakes the sleeper only for a
    /// record that finds the ring buffer read empty.
    pub fn wait(&self, timeout: Duration) -> bool {
        readable(&self.records, timeout)
    }

    /// Lets records gather for `pause`, or until something happens that has to be acted on at once: a fork or an exec.
    pub fn gather(&mut self, pause: Duration) {
        if readable(&self.doorbell, pause) {
            while self.doorbell.next().is_some() {}
        }
    }

    /// Hands over at most `limit` waiting records, in their order, until `each` breaks off; gives how many there were. Bytes
    /// that are no record of this version's are counted in the second number.
    pub fn drain(
        &mut self,
        limit: usize,
        mut each: impl FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> (usize, usize) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let (mut seen, mut unknown) = (0, 0);
        while seen < limit {
            let Some(item) = self.records.next() else { break };
            seen += 1;
            match Record::parse(&item) {
                Some(record) => {
                    if each(record).is_break() {
                        break;
                    }
                }
                None => unknown += 1,
            }
        }
        (seen, unknown)
    }

    /// What the kernel side counted, summed over the CPUs, in the order of [`Counter`].
    pub fn counters(&self) -> [u64; COUNTERS as usize] {
        let mut sums = [0; COUNTERS as usize];
        for (index, sum) in (0..).zip(&mut sums) {
            if let Ok(values) = self.counters.get(&index, 0) {
                *sum = values.iter().sum();
            }
        }
        sums
    }

    /// One number of [`Programs::counters`].
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters().get(counter as usize).copied().unwrap_or(0)
    }
}

fn readable(buffer: &RingBuf<MapData>, timeout: Duration) -> bool {
    // SAFETY: the descriptor is the buffer's, which lives longer than this call.
    let fd = unsafe { BorrowedFd::borrow_raw(buffer.as_raw_fd()) };
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // A wait that is interrupted by a signal is an early end of it.
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}: rebuild it with `cargo xtask build`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_accepts_the_programs() {
        let object = aya::include_bytes_aligned!(env!("PITVIPER_EBPF_OBJECT"));
        if capabilities::check().is_err() {
            eprintln!("skipped: this user or kernel cannot load eBPF programs");
            return;
        }
        let mut programs =
            Programs::load(object, Options { ring_bytes: 1 << 16, sample_hz: 97, ..Options::default() })
                .unwrap();
        assert_eq!(programs.counter(Counter::RingFullData), 0);
        programs.set_target(u32::MAX, Target::WITHOUT_CONTEXT).unwrap();
        assert_eq!(programs.target(u32::MAX), Some(Target::WITHOUT_CONTEXT));
        programs.remove_target(u32::MAX);
        assert_eq!(programs.target(u32::MAX), None);
    }
}
