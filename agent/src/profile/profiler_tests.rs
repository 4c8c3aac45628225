//! Samples wait for the answer to their question, and for the trace of the request that is the answer.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use pitviper_ebpf::abi::RecordKind;

use super::*;
use crate::export::test_receiver::service;
use crate::kernel::records::Record;
use crate::python::layout;

/// The bytes of a `StackSample` without frames: `flags`, then the thread, as the kernel side lays them out.
fn record(flags: u16, tid: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((RecordKind::StackSample as u16).to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(std::process::id().to_ne_bytes());
    bytes.extend(1_000_u64.to_ne_bytes());
    bytes.extend(tid.to_ne_bytes());
    bytes.extend([0; 12 + 56 + 8 + 8]);
    bytes
}

fn take(profiler: &mut Profiler, question: ExchangeKey, tid: u32) {
    let bytes = record(0, tid);
    let Some(Record::StackSample(sample)) = Record::parse(&bytes) else { panic!("it is a sample") };
    profiler.take(question, &sample);
}

fn known(number: u8) -> TraceOf {
    let (trace, span) = (TraceId::from_bytes([number; 16]), SpanId::from_bytes([number; 8]));
    TraceOf::Known(SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE))
}

/// What leaves: thread, and the first byte of the trace id.
fn leaving(
    profiler: &mut Profiler,
    answers: &[(ExchangeKey, Option<ExchangeKey>)],
    trace: impl Fn(ExchangeKey) -> TraceOf,
) -> Vec<(u32, Option<u8>)> {
    let layout = layout::of((3, 11)).unwrap();
    profiler.symbolise(
        Clock::now(),
        |_| Some(Process { service: service("shop"), layout, interpreter: "/usr/bin/python3".into() }),
        |_, _, _| {},
    );
    let mut left = Vec::new();
    let mut out = |sample: Sample| {
        left.push((sample.tid, sample.link.map(|link| link.trace_id.to_bytes()[0])));
    };
    for (question, owner) in answers {
        profiler.answered(*question, *owner, &mut out);
    }
    profiler.release(trace, &mut out);
    left
}

#[test]
fn a_sample_waits_for_its_request_and_its_trace() {
    let mut profiler = Profiler::new(Arc::new(AtomicBool::new(true)), false);
    take(&mut profiler, 5, 1);
    take(&mut profiler, 5, 2);
    take(&mut profiler, 6, 3);
    assert_eq!(leaving(&mut profiler, &[], |_| known(1)), []);
    assert_eq!(leaving(&mut profiler, &[(6, None)], |_| known(1)), [(3, None)]);
    assert_eq!(leaving(&mut profiler, &[(5, Some(2))], |_| TraceOf::Open), []);
    assert_eq!(leaving(&mut profiler, &[], |_| known(4)), [(1, Some(4)), (2, Some(4))]);
    assert_eq!(leaving(&mut profiler, &[], |_| known(4)), []);
    let stats = profiler.stats();
    assert_eq!((stats.samples, stats.linked, stats.strays), (3, 2, 0));
}

/// The causality stage may answer in the middle of a batch, before the samples have their names.
#[test]
fn a_request_that_is_not_exported_is_no_link() {
    let mut profiler = Profiler::new(Arc::new(AtomicBool::new(true)), false);
    take(&mut profiler, 5, 1);
    assert_eq!(leaving(&mut profiler, &[(5, Some(2))], |_| TraceOf::None), [(1, None)]);
}

#[test]
fn samples_of_unknown_processes_are_dropped_and_counted() {
    let mut profiler = Profiler::new(Arc::new(AtomicBool::new(true)), false);
    take(&mut profiler, 5, 1);
    profiler.symbolise(Clock::now(), |_| None, |_, _, _| {});
    assert_eq!(leaving(&mut profiler, &[(5, None)], |_| known(1)), []);
    assert_eq!(profiler.stats().strays, 1);
}
