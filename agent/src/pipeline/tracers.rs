//! Signs of an OpenTelemetry SDK in what a process sends and receives.
//!
//! Takes the trace context that each exchange carried, the owners of operations as the causality stage settles them, and
//! requests that export telemetry; says of which process it has seen enough. What that means is the caller's to decide.
//!
//! A `traceparent` on a request that a process makes is no sign by itself: a proxy hands on what it was given. It is one if
//! the request is part of one that came with the same trace and another span (the span was made in this process), or if
//! requests that came without any context lead to such with ever new traces. An orphan proves nothing, as what led to it
//! may have come over a connection that cannot be read.

use std::collections::VecDeque;

use opentelemetry::{SpanId, TraceId};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::causality::{ExchangeKey, Settled};
use crate::process::sdk::{SdkProcesses, Sign};
use crate::protocol::otlp::Signal;
use crate::protocol::{Role, TraceHeaders};
use crate::trace::propagation::parse_traceparent;

/// Exchanges whose context is remembered.
const MOST: usize = 16_384;
/// Traces that a process has begun, before that counts: a fixed `traceparent` may come from its environment.
const BEGUN: usize = 2;

/// What a request carried.
#[derive(Clone, Copy, Debug)]
struct Carried {
    pid: u32,
    context: Context,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    /// None.
    Absent,
    /// It cannot be told.
    Unknown,
    /// This.
    Is(TraceId, SpanId),
}

impl Context {
    fn of(headers: &TraceHeaders) -> Self {
        match headers.traceparent.as_deref() {
            _ if headers.uncertain => Self::Unknown,
            None => Self::Absent,
            Some(value) => {
                parse_traceparent(value).map_or(Self::Unknown, |(trace, span, _)| Self::Is(trace, span))
            }
        }
    }
}

/// See the module.
pub(super) struct Tracers {
    wanted: bool,
    carried: FxHashMap<ExchangeKey, Carried>,
    order: VecDeque<ExchangeKey>,
    /// Traces that processes have begun.
    begun: FxHashMap<u32, FxHashSet<TraceId>>,
    /// Processes that were found to begin or to continue traces: whatever was made of it, once is enough.
    told: FxHashSet<u32>,
    /// Processes that receive telemetry: what they send may be what they were sent.
    receivers: FxHashSet<u32>,
    found: Vec<(u32, Sign)>,
}

impl Tracers {
    pub(super) fn new(processes: SdkProcesses) -> Self {
        Self {
            wanted: processes == SdkProcesses::Leave,
            carried: FxHashMap::default(),
            order: VecDeque::new(),
            begun: FxHashMap::default(),
            told: FxHashSet::default(),
            receivers: FxHashSet::default(),
            found: Vec::new(),
        }
    }

    /// An exchange was opened.
    pub(super) fn opened(&mut self, key: ExchangeKey, pid: u32, role: Role, headers: &TraceHeaders) {
        let context = Context::of(headers);
        if !self.wanted || (role == Role::Client && !matches!(context, Context::Is(..))) {
            return;
        }
        self.carried.insert(key, Carried { pid, context });
        self.order.push_back(key);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.carried.remove(&oldest);
        }
    }

    /// The owners of operations are known.
    pub(super) fn settled(&mut self, settled: &[Settled]) {
        for Settled { operation, owner } in settled {
            let Some(Carried { pid, context: Context::Is(trace, span) }) = self.carried.remove(operation)
            else {
                continue;
            };
            let owner = owner.ok().and_then(|(key, _)| self.carried.get(&key)).map(|carried| carried.context);
            match owner {
                _ if self.told.contains(&pid) => {}
                Some(Context::Is(came, from)) if came == trace && from != span => self.propagates(pid),
                Some(Context::Absent) => {
                    let begun = self.begun.entry(pid).or_default();
                    begun.insert(trace);
                    if begun.len() >= BEGUN {
                        self.propagates(pid);
                    }
                }
                _ => {}
            }
        }
    }

    fn propagates(&mut self, pid: u32) {
        self.begun.remove(&pid);
        self.told.insert(pid);
        self.found.push((pid, Sign::Propagates));
    }

    /// A process sent or received telemetry.
    pub(super) fn telemetry(&mut self, pid: u32, role: Role, signal: Signal) {
        match (role, signal) {
            (Role::Server, Signal::Traces | Signal::Other) => {
                self.receivers.insert(pid);
            }
            (Role::Client, Signal::Traces) if self.wanted && !self.receivers.contains(&pid) => {
                self.found.push((pid, Sign::Exports));
            }
            _ => {}
        }
    }

    /// A process has ended, or runs a new program.
    pub(super) fn forget(&mut self, pid: u32) {
        self.begun.remove(&pid);
        self.told.remove(&pid);
        self.receivers.remove(&pid);
    }

    /// Processes of which enough has been seen, some of them perhaps again.
    pub(super) fn take_found(&mut self) -> Vec<(u32, Sign)> {
        std::mem::take(&mut self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causality::{Evidence, Orphan};

    const PID: u32 = 7;
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const OTHER: &str = "1af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";
    const CHILD: &str = "c7ad6b7169203331";

    fn headers(context: Option<(&str, &str)>) -> TraceHeaders {
        let traceparent = context.map(|(trace, span)| format!("00-{trace}-{span}-01").into_boxed_str());
        TraceHeaders { traceparent, ..TraceHeaders::default() }
    }

    /// A request with `came` leads to one with `went`, as many times as there are pairs.
    fn check(pairs: &[(TraceHeaders, TraceHeaders)], owned: bool, expected: bool) {
        let mut tracers = Tracers::new(SdkProcesses::Leave);
        // Twice as much evidence makes no second sign.
        let pairs = &[pairs, pairs].concat();
        for (number, (came, went)) in (0..).zip(pairs) {
            let (request, operation) = (number * 2, number * 2 + 1);
            tracers.opened(request, PID, Role::Server, came);
            tracers.opened(operation, PID, Role::Client, went);
            let owner = if owned { Ok((request, Evidence::Response)) } else { Err(Orphan::Unrelated) };
            tracers.settled(&[Settled { operation, owner }]);
        }
        let found = tracers.take_found();
        assert_eq!(found, vec![(PID, Sign::Propagates); usize::from(expected)], "{pairs:?}");
    }

    #[test]
    fn a_span_of_its_own_is_a_sign() {
        let (none, came) = (headers(None), headers(Some((TRACE, SPAN))));
        let (child, begun, another) =
            (headers(Some((TRACE, CHILD))), headers(Some((OTHER, SPAN))), headers(Some((OTHER, CHILD))));
        check(&[(came.clone(), child.clone())], true, true);
        check(&[(none.clone(), came.clone()), (none.clone(), begun.clone())], true, true);
        // A proxy; an orphan; another trace, which may come from anywhere; a fixed value, of the environment perhaps.
        check(&[(came.clone(), came.clone())], true, false);
        check(&[(came.clone(), child.clone())], false, false);
        check(&[(came.clone(), begun.clone())], true, false);
        check(&[(none.clone(), begun), (none.clone(), another)], true, false);
        check(&[(came.clone(), none.clone()), (none.clone(), none.clone())], true, false);
        // The head was cut before the header may have come.
        let cut = TraceHeaders { uncertain: true, ..none };
        check(&[(cut.clone(), came), (cut, child)], true, false);
    }

    #[test]
    fn exports_are_a_sign_but_of_a_receiver() {
        let mut tracers = Tracers::new(SdkProcesses::Leave);
        tracers.telemetry(PID, Role::Client, Signal::Other);
        assert!(tracers.take_found().is_empty());
        tracers.telemetry(PID, Role::Client, Signal::Traces);
        assert_eq!(tracers.take_found(), [(PID, Sign::Exports)]);
        tracers.telemetry(PID + 1, Role::Server, Signal::Traces);
        tracers.telemetry(PID + 1, Role::Client, Signal::Traces);
        assert!(tracers.take_found().is_empty());
        let mut indifferent = Tracers::new(SdkProcesses::Trace);
        indifferent.telemetry(PID, Role::Client, Signal::Traces);
        assert!(indifferent.take_found().is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut tracers = Tracers::new(SdkProcesses::Leave);
        for key in 0..3 * MOST as u64 {
            tracers.opened(key, PID, Role::Server, &headers(None));
        }
        assert_eq!((tracers.carried.len(), tracers.order.len()), (MOST, MOST));
    }
}
