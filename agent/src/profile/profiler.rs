//! Samples on their way: from the records of a batch to [`Sample`]s whose names, request and trace are known.
//!
//! A sample gets its names at the end of the batch that it came in. Then it waits for the causality stage's answer to the
//! question that it is part of, and, when a request is the answer, for the trace of that request.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pitviper_ebpf::abi::SampledFrame;
use rustc_hash::FxHashMap;

use super::native::NativeCode;
use super::symbols::{Named, Symbols};
use super::{Link, LoopStack, Sample};
use crate::causality::ExchangeKey;
use crate::clock::Clock;
use crate::kernel::records::StackSample;
use crate::process::resource::Service;
use crate::python::layout::Layout;
use crate::trace::assembly::TraceOf;

/// Samples that wait; what comes when there are as many leaves without a request.
const MOST_WAITING: usize = 65_536;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Samples taken.
    pub samples: u64,
    /// Of these: with a request.
    pub linked: u64,
    /// Of these: without a request because too many were waiting.
    pub hurried: u64,
    /// Of these: of a process that was not known, or not any more. They are dropped.
    pub strays: u64,
    /// Frames.
    pub frames: u64,
    /// Of these: their code object was gone before it could be read.
    pub unknown_frames: u64,
    /// Samples with more frames than fit.
    pub deep: u64,
    /// Samples with a frame that could not be read, and those beyond it.
    pub cut: u64,
}

/// The process that a sample was taken of.
pub struct Process {
    /// Its service.
    pub service: Arc<Service>,
    /// Where its interpreter keeps things.
    pub layout: &'static Layout,
    /// The file with the interpreter, as the process sees it.
    pub interpreter: PathBuf,
}

/// A sample of the current batch.
struct Taken {
    question: ExchangeKey,
    pid: u32,
    tid: u32,
    turn: u32,
    asleep: bool,
    ktime_ns: u64,
    frames: Vec<SampledFrame>,
    truncated: bool,
    instruction: u64,
}

/// See the module.
pub struct Profiler {
    /// Somebody takes samples.
    wanted: Arc<AtomicBool>,
    taken: Vec<Taken>,
    processes: FxHashMap<u32, Symbols>,
    native: Option<NativeCode>,
    /// Of processes that were forked and have not been sampled yet.
    parents: FxHashMap<u32, u32>,
    /// By the question that they are part of.
    asked: FxHashMap<ExchangeKey, Vec<Sample>>,
    /// By the request that they were taken in.
    owned: FxHashMap<ExchangeKey, Vec<Sample>>,
    waiting: usize,
    stats: Stats,
}

impl Profiler {
    /// A profiler that gives samples as long as `wanted` is set; with `native`, the C function that was running is above the
    /// Python ones.
    pub fn new(wanted: Arc<AtomicBool>, native: bool) -> Self {
        Self {
            wanted,
            taken: Vec::new(),
            processes: FxHashMap::default(),
            native: native.then(NativeCode::default),
            parents: FxHashMap::default(),
            asked: FxHashMap::default(),
            owned: FxHashMap::default(),
            waiting: 0,
            stats: Stats::default(),
        }
    }

    /// A record has come, part of a question to the causality stage.
    pub fn take(&mut self, question: ExchangeKey, sample: &StackSample<'_>) {
        self.stats.samples += u64::from(!sample.asleep);
        self.stats.deep += u64::from(sample.deep);
        self.stats.cut += u64::from(sample.cut);
        self.taken.push(Taken {
            question,
            pid: sample.pid,
            tid: sample.task.tid,
            turn: sample.task.turn,
            asleep: sample.asleep,
            ktime_ns: sample.ktime_ns,
            frames: sample.frames().collect(),
            truncated: sample.deep || sample.cut,
            instruction: sample.instruction,
        });
    }

    /// Names the samples of the batch. Stacks of threads that run an event loop go to `stack` as well, with process and thread.
    pub fn symbolise(
        &mut self,
        clock: Clock,
        mut process: impl FnMut(u32) -> Option<Process>,
        mut stack_of_loop: impl FnMut(u32, u32, LoopStack),
    ) {
        for taken in std::mem::take(&mut self.taken) {
            let Taken { question, pid, tid, turn, asleep, ktime_ns, frames, truncated, instruction } = taken;
            let Some(Process { service, layout, interpreter }) = process(pid) else {
                self.stats.strays += 1;
                continue;
            };
            if !self.processes.contains_key(&pid) {
                let parent = self.parents.remove(&pid).and_then(|parent| self.processes.get(&parent));
                let symbols = match parent {
                    Some(parent) => parent.of_child(pid, layout),
                    None => Symbols::open(pid, layout),
                };
                self.processes.insert(pid, symbols);
            }
            let Some(symbols) = self.processes.get_mut(&pid) else { continue };
            let Named { mut stack, unknown } = symbols.stack(frames.into_iter(), truncated);
            self.stats.frames += stack.frames.len() as u64;
            self.stats.unknown_frames += unknown;
            if turn != 0 {
                let stack = stack.clone();
                stack_of_loop(pid, tid, LoopStack { turn, ktime_ns, asleep, question, stack });
            }
            if asleep || !self.wanted.load(Ordering::Relaxed) {
                continue;
            }
            if let Some(native) = &mut self.native
                && let Some(frame) = native.frame(pid, instruction, &interpreter)
            {
                stack.frames.insert(0, frame);
            }
            let sample = Sample { service, pid, tid, time: clock.wall(ktime_ns), stack, link: None };
            self.asked.entry(question).or_default().push(sample);
            self.waiting += 1;
        }
    }

    /// A process was forked.
    pub fn forked(&mut self, parent: u32, child: u32) {
        if self.processes.contains_key(&parent) {
            self.parents.insert(child, parent);
        }
    }

    /// A process has ended, or runs another program: its code objects are gone.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.parents.remove(&pid);
        if let Some(native) = &mut self.native {
            native.forget(pid);
        }
    }

    /// The causality stage has answered a question: the samples are part of a request, or of none.
    pub fn answered(
        &mut self,
        question: ExchangeKey,
        owner: Option<ExchangeKey>,
        out: &mut impl FnMut(Sample),
    ) {
        let Some(samples) = self.asked.remove(&question) else { return };
        match owner {
            Some(owner) => self.owned.entry(owner).or_default().extend(samples),
            None => self.leave(samples, None, out),
        }
    }

    /// Lets samples leave whose trace is known.
    pub fn release(&mut self, mut trace: impl FnMut(ExchangeKey) -> TraceOf, out: &mut impl FnMut(Sample)) {
        let mut leaving = Vec::new();
        let mut crowded = self.waiting > MOST_WAITING;
        self.owned.retain(|owner, samples| {
            let link = match trace(*owner) {
                TraceOf::Known(span) => Some(Link { trace_id: span.trace_id(), span_id: span.span_id() }),
                TraceOf::None => None,
                TraceOf::Open if crowded => None,
                TraceOf::Open => return true,
            };
            leaving.push((std::mem::take(samples), link));
            false
        });
        for (samples, link) in leaving {
            self.leave(samples, link, out);
        }
        crowded = self.waiting > MOST_WAITING;
        if crowded {
            let asked = std::mem::take(&mut self.asked);
            for samples in asked.into_values() {
                self.stats.hurried += samples.len() as u64;
                self.leave(samples, None, out);
            }
        }
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn leave(&mut self, samples: Vec<Sample>, link: Option<Link>, out: &mut impl FnMut(Sample)) {
        self.waiting -= samples.len();
        for mut sample in samples {
            sample.link = link;
            self.stats.linked += u64::from(link.is_some());
            out(sample);
        }
    }
}

#[cfg(test)]
#[path = "profiler_tests.rs"]
mod tests;
