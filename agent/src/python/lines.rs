//! From an instruction to its line: the tables of lines of code objects, in CPython's three formats.
//!
//! Takes a table's bytes, which may be anything; gives a [`LineTable`]. A position is in bytes from the first instruction.

/// The lines of a code object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineTable {
    first_line: u32,
    /// Ends of ranges of instructions, rising, and the line of each.
    ranges: Vec<(u32, u32)>,
}

impl LineTable {
    /// `co_lnotab` of CPython 3.8 and 3.9: pairs of increments of the position (unsigned) and of the line (signed). See
    /// `Objects/lnotab_notes.txt`.
    pub fn from_lnotab(table: &[u8], first_line: u32) -> Self {
        let mut lines = Self { first_line, ranges: Vec::new() };
        let (mut end, mut line) = (0_u32, i64::from(first_line));
        for pair in pairs(table) {
            let [address, delta] = pair;
            end = end.saturating_add(u32::from(address));
            if address != 0 {
                lines.push(end, line);
            }
            line += i64::from(delta as i8);
        }
        lines.push(u32::MAX, line);
        lines
    }

    /// `co_linetable` of CPython 3.10 (PEP 626): pairs of the length of a range and its line's increment, -128 for a range
    /// without a line. See `Objects/lnotab_notes.txt`.
    pub fn from_pep_626(table: &[u8], first_line: u32) -> Self {
        let mut lines = Self { first_line, ranges: Vec::new() };
        let (mut end, mut line) = (0_u32, i64::from(first_line));
        for [length, delta] in pairs(table) {
            end = end.saturating_add(u32::from(length));
            let delta = delta as i8;
            if delta != i8::MIN {
                line += i64::from(delta);
            }
            if length != 0 {
                lines.push(end, line);
            }
        }
        lines
    }

    /// `co_linetable` since CPython 3.11 (PEP 657): entries that begin with a byte whose highest bit is set. See
    /// `Objects/locations.md`, since 3.13 `InternalDocs/code_objects.md`.
    pub fn from_locations(table: &[u8], first_line: u32) -> Self {
        /// Bytes of a code unit.
        const UNIT: u32 = 2;
        let mut lines = Self { first_line, ranges: Vec::new() };
        let (mut end, mut line) = (0_u32, i64::from(first_line));
        let mut rest = table.iter().copied().peekable();
        while let Some(first) = rest.next() {
            if first & 0x80 == 0 {
                continue;
            }
            end = end.saturating_add((u32::from(first & 7) + 1) * UNIT);
            line += match (first >> 3) & 15 {
                13 | 14 => signed(&mut rest),
                code @ 10..=12 => i64::from(code) - 10,
                _ => 0,
            };
            lines.push(end, line);
            while rest.next_if(|byte| byte & 0x80 == 0).is_some() {}
        }
        lines
    }

    /// The line of the instruction at a position. What has no line of its own counts as that before it, what lies before
    /// the first instruction as the first line.
    pub fn line(&self, position: i32) -> u32 {
        let Ok(position) = u32::try_from(position) else { return self.first_line };
        let index = self.ranges.partition_point(|(end, _)| *end <= position);
        self.ranges.get(index).map_or(self.first_line, |(_, line)| *line)
    }

    fn push(&mut self, end: u32, line: i64) {
        let line = u32::try_from(line).unwrap_or(self.first_line);
        match self.ranges.last_mut() {
            Some((last_end, last_line)) if *last_line == line => *last_end = end,
            _ => self.ranges.push((end, line)),
        }
    }
}

fn pairs(table: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    table.chunks_exact(2).filter_map(|pair| pair.try_into().ok())
}

/// A signed number: six bits a byte, least significant first, the seventh bit says that there are more. The lowest bit of
/// the number is its sign.
fn signed(bytes: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> i64 {
    let mut number = 0_i64;
    let mut shift = 0;
    while let Some(byte) = bytes.next_if(|byte| byte & 0x80 == 0) {
        if shift < 36 {
            number |= i64::from(byte & 0x3f) << shift;
        }
        shift += 6;
        if byte & 0x40 == 0 {
            break;
        }
    }
    if number & 1 == 1 { -(number >> 1) } else { number >> 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &[u8]) {
        for made in [LineTable::from_lnotab, LineTable::from_pep_626, LineTable::from_locations] {
            // Every truncation of it, too.
            for end in 0..=table.len() {
                let lines = made(&table[..end], 7);
                assert_eq!(lines.line(-2), 7);
                for position in [0, 2, 1000, i32::MAX] {
                    lines.line(position);
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_a_table() {
        check(&[]);
        check(&[0xff; 64]);
        check(&[0x7f; 64]);
        check(&[0; 64]);
        check(&(0..=255).collect::<Vec<u8>>());
        check(&[0xf0, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f]);
    }

    /// The example of `Objects/lnotab_notes.txt`.
    #[test]
    fn the_example_of_lnotab() {
        // Positions 0, 6, 50, 350, 361 are on lines 1, 2, 7, 207, 208.
        let table = [0, 1, 6, 1, 44, 5, 255, 0, 45, 127, 0, 73, 11, 1];
        let lines = LineTable::from_lnotab(&table, 0);
        for (position, line) in [(0, 1), (5, 1), (6, 2), (49, 2), (50, 7), (349, 7), (350, 207), (361, 208)] {
            assert_eq!(lines.line(position), line, "{position}");
        }
    }
}
