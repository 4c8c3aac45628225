//! Any sequence of segments: no panic, and every exchange that is opened is closed exactly once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitviper::protocol::{Direction, Event, Protocol, Role, Segment, postgres, walker};

fuzz_target!(|segments: Vec<(bool, Option<u16>, &[u8])>| {
    let mut walker = walker(Protocol::Postgres, Role::Client);
    let mut events = Vec::new();
    for (mark, (sent, gap, bytes)) in segments.iter().enumerate() {
        let direction = if *sent { Direction::Send } else { Direction::Recv };
        let _ = postgres::guess(bytes);
        walker.feed(direction, Segment::Bytes(bytes), mark, &mut events);
        if let Some(length) = gap {
            walker.feed(direction, Segment::Gap(u64::from(*length)), mark, &mut events);
        }
        let _ = walker.interest(direction);
    }
    walker.close(segments.len(), &mut events);
    assert_eq!(walker.open_exchanges(), 0);
    let opened = events.iter().filter(|event| matches!(event, Event::Opened { .. })).count();
    let closed = events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
    assert_eq!(opened, closed);
    let _ = format!("{events:?}");
});
