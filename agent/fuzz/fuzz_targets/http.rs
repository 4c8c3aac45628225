//! Any bytes, cut into segments of both directions with gaps: the HTTP walker must keep its contract.
//!
//! Each segment starts with a control byte: bit 0 is the direction, bits 1 and 2 choose bytes, a gap, or an end of stream,
//! and the other five times eight are the segment's length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitviper::protocol::http::{HttpWalker, guess};
use pitviper::protocol::{Direction, Event, Role, Segment, Walker};

fuzz_target!(|data: &[u8]| {
    guess(data);
    for role in [Role::Server, Role::Client] {
        let mut walker = HttpWalker::new(role);
        let mut events = Vec::new();
        let mut rest = data;
        let mut mark = 0_u32;
        while let Some((&control, after)) = rest.split_first() {
            let direction = if control & 1 == 0 { Direction::Send } else { Direction::Recv };
            let length = usize::from(control >> 3) * 8 + 1;
            let (segment, after) = after.split_at(length.min(after.len()));
            match (control >> 1) & 3 {
                2 => walker.feed(direction, Segment::Gap(length as u64), mark, &mut events),
                3 if control >> 3 == 31 => walker.end(direction, mark, &mut events),
                _ => walker.feed(direction, Segment::Bytes(segment), mark, &mut events),
            }
            walker.interest(direction);
            rest = if (control >> 1) & 3 >= 2 { rest.get(1..).unwrap_or_default() } else { after };
            mark += 1;
        }
        walker.close(mark, &mut events);
        assert_eq!(walker.open_exchanges(), 0);
        let opened = events.iter().filter(|event| matches!(event, Event::Opened { .. })).count();
        let closed = events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
        assert_eq!(opened, closed);
    }
});
