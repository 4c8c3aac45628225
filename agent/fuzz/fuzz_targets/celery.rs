//! Any bytes, in any direction and cut, with gaps: the walker must not panic, and must close what it opens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitviper::protocol::celery::{PoolWalker, guess_job, guess_result, message};
use pitviper::protocol::{Direction, Event, Segment, Walker as _};

fuzz_target!(|data: &[u8]| {
    let mut walker = PoolWalker::new();
    let mut events = Vec::new();
    let mut rest = data;
    while let [control, tail @ ..] = rest {
        let (part, next) = tail.split_at(tail.len().min(usize::from(control >> 2)));
        let direction = if control & 1 == 0 { Direction::Send } else { Direction::Recv };
        let gap = control & 2 != 0;
        let segment = if gap { Segment::Gap(part.len() as u64) } else { Segment::Bytes(part) };
        walker.feed(direction, segment, (), &mut events);
        let _ = (guess_job(part), guess_result(part), message(part));
        rest = next;
    }
    walker.close((), &mut events);
    let opened = events.iter().filter(|event| matches!(event, Event::Opened { .. })).count();
    let closed = events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
    assert_eq!(opened, closed);
    assert_eq!(walker.open_exchanges(), 0);
});
