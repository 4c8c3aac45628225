//! One direction of a socket: from records with positions to contiguous segments and gaps.

use crate::kernel::records::SocketData;
use crate::protocol::Segment;

/// Where one direction of a socket is.
#[derive(Debug, Default)]
pub(super) struct Stream {
    next: u64,
}

impl Stream {
    /// Position after the last byte that was seen or skipped.
    pub(super) fn position(&self) -> u64 {
        self.next
    }

    /// Hands over what a record adds: a gap where bytes are missing before it, its head, the gap in its middle, its
    /// tail. A record from before the current position (two threads raced on the socket, or the kernel side has
    /// forgotten it and counts anew) is a gap of its own length: its bytes are not in their place.
    pub(super) fn segments<'a>(&mut self, data: &SocketData<'a>, mut each: impl FnMut(Segment<'a>)) {
        let len = u64::from(data.len);
        let mut gap = |bytes: u64| {
            if bytes > 0 {
                each(Segment::Gap(bytes));
            }
        };
        if data.position < self.next {
            gap(len);
            self.next = data.position.saturating_add(len).max(self.next);
            return;
        }
        gap(data.position.saturating_sub(self.next));
        self.next = data.position.saturating_add(len);
        if !data.head.is_empty() {
            each(Segment::Bytes(data.head));
        }
        let middle = len.saturating_sub(data.head.len() as u64).saturating_sub(data.tail.len() as u64);
        if middle > 0 {
            each(Segment::Gap(middle));
        }
        if !data.tail.is_empty() {
            each(Segment::Bytes(data.tail));
        }
    }
}

#[cfg(test)]
mod tests {
    use pitviper_ebpf::abi::{Clocks, SocketId, Task};

    use super::*;

    fn record<'a>(position: u64, len: u32, head: &'a [u8], tail: &'a [u8]) -> SocketData<'a> {
        SocketData {
            pid: 1,
            ktime_ns: 1,
            task: Task { tid: 1, turn: 0, context: 0 },
            clocks: Clocks::NONE,
            socket: SocketId { sock: 1, inode: 1 },
            pipe: false,
            received: true,
            end: false,
            position,
            len,
            sequence: None,
            epoch: 0,
            head,
            tail,
        }
    }

    fn check(records: &[SocketData<'static>], expected: &[Segment<'static>]) {
        let mut stream = Stream::default();
        let mut seen = Vec::new();
        for record in records {
            stream.segments(record, |segment| seen.push(segment));
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn whole_calls_are_bytes() {
        check(
            &[record(0, 2, b"ab", b""), record(2, 1, b"c", b"")],
            &[Segment::Bytes(b"ab"), Segment::Bytes(b"c")],
        );
    }

    #[test]
    fn what_was_not_captured_is_a_gap() {
        check(
            &[record(0, 10, b"ab", b"yz"), record(10, 5, b"", b"")],
            &[Segment::Bytes(b"ab"), Segment::Gap(6), Segment::Bytes(b"yz"), Segment::Gap(5)],
        );
    }

    #[test]
    fn a_lost_record_is_a_gap() {
        check(
            &[record(0, 2, b"ab", b""), record(7, 1, b"c", b"")],
            &[Segment::Bytes(b"ab"), Segment::Gap(5), Segment::Bytes(b"c")],
        );
    }

    #[test]
    fn a_record_out_of_order_is_not_taken_for_the_next_bytes() {
        check(
            &[record(4, 2, b"ef", b""), record(0, 4, b"abcd", b""), record(6, 1, b"g", b"")],
            &[Segment::Gap(4), Segment::Bytes(b"ef"), Segment::Gap(4), Segment::Bytes(b"g")],
        );
    }
}
