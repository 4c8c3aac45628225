//! CPU profiles: samples of the Python stacks of the observed threads, each with the request that it was taken in.
//!
//! Takes the kernel side's stack samples in their order, the causality stage's word on whose request each belongs to, and
//! the trace stage's ids for that request; gives [`Sample`]s with names and lines. The types here are what all outputs of
//! profiles are made of; nothing here knows a format but [`collapsed`] and [`pprof`], which files and exporters share, and
//! nothing knows a socket or a protocol.
//!
//! - [`layout`]: what the kernel side has to know of an interpreter to walk its stacks;
//! - [`symbols`]: from code objects to names, files and lines, while the process lives;
//! - [`native`]: the C function that a Python function was in, where that is asked for;
//! - [`runs`]: samples that nothing has come between are one question to the causality stage;
//! - [`profiler`]: samples on their way, until name, request and trace are known.

pub mod by_route;
pub mod collapsed;
pub mod layout;
pub mod native;
pub mod pprof;
pub mod profiler;
pub mod route;
pub mod runs;
pub mod stacks;
pub mod symbols;
pub mod table;
pub mod windows;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, TraceId};

use crate::causality::ExchangeKey;
use crate::process::resource::Service;

/// Samples per second of each CPU, unless asked otherwise: not a divisor of anything that programs do by the clock.
pub const SAMPLE_HZ: u32 = 97;

/// CPU time between two samples.
pub fn period(hz: u32) -> Duration {
    Duration::from_nanos(1_000_000_000 / u64::from(hz.max(1)))
}

/// What a frame is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrameKind {
    /// A Python function, class body, module, lambda or comprehension.
    #[default]
    Python,
    /// A C function, or one of another compiled language. It has no lines, and its file is the one that holds the code: of `[libfoo.so]`, a
    /// function that is not known, the name says it.
    Native,
}

/// A frame: a function, and the line that it was at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// What it is of.
    pub kind: FrameKind,
    /// Qualified name; before CPython 3.11 the bare name. `[unknown]` if the code object was gone before it could be read.
    pub function: Arc<str>,
    /// The file that it was compiled from, as CPython has it: `<string>` and the like are no files.
    pub file: Arc<str>,
    /// The line on which it begins: of a decorated function the line of its first decorator. 0: unknown.
    pub first_line: u32,
    /// The line that was being executed, or that called the next frame. 0: unknown.
    pub line: u32,
}

/// The Python stack of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stack {
    /// Innermost first. Empty: the thread was running no Python, as threads of C libraries do.
    pub frames: Vec<Frame>,
    /// The outermost frames are missing.
    pub truncated: bool,
}

/// The stack of a thread that runs an event loop.
#[derive(Clone, Debug)]
pub struct LoopStack {
    /// The turn of the loop in which it was taken.
    pub turn: u32,
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub ktime_ns: u64,
    /// The thread was going to sleep; else it was running.
    pub asleep: bool,
    /// The question to the causality stage whose work it was.
    pub question: ExchangeKey,
    /// The stack.
    pub stack: Stack,
}

/// The span of the request that a sample was taken in: the server span, which is the root of what one service does for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Its trace.
    pub trace_id: TraceId,
    /// The server span.
    pub span_id: SpanId,
}

/// A thread was on a CPU: one period of the sampling timer.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which service instance.
    pub service: Arc<Service>,
    /// The process.
    pub pid: u32,
    /// The kernel's thread id.
    pub tid: u32,
    /// When.
    pub time: SystemTime,
    /// What it was doing.
    pub stack: Stack,
    /// For which request, if that is known, and if its trace is exported.
    pub link: Option<Link>,
}
