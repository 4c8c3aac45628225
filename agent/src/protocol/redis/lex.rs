//! The lowest layer of RESP: lines and counted strings, over any cut of the stream.
//!
//! Takes bytes and gaps of one direction; gives [`Item`]s. Keeps a short prefix of each, whatever its size, and steps
//! over the rest. It must not know what the items mean.

/// Framing is lost: the bytes are not RESP, or a gap hid a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// What was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A line; see [`Lexer::kept`].
    Line,
    /// A counted string and the line end behind it; see [`Lexer::kept`].
    Bulk,
}

/// Most bytes kept of a line.
const LINE_KEPT: usize = 512;
/// Longest line that is believed: Redis itself refuses inline commands beyond 64 KiB.
const LINE_LIMIT: u64 = 64 * 1024;
/// Longest counted string that is believed.
pub(super) const BULK_LIMIT: u64 = 1 << 40;

#[derive(Debug)]
enum State {
    Line { seen: u64 },
    Bulk { left: u64, keep: usize },
}

/// Splits one direction into lines and counted strings.
#[derive(Debug)]
pub(super) struct Lexer {
    state: State,
    kept: Vec<u8>,
    /// Lines end with `\r\n`; else a lone `\n` will do, as in inline commands.
    strict: bool,
}

impl Lexer {
    pub(super) fn new(strict: bool) -> Self {
        Self { state: State::Line { seen: 0 }, kept: Vec::new(), strict }
    }

    /// Forgets everything: the next byte starts a line.
    pub(super) fn reset(&mut self) {
        self.state = State::Line { seen: 0 };
        self.kept.clear();
    }

    /// The next bytes are a string of `len` bytes; its first `keep` bytes are wanted.
    pub(super) fn begin_bulk(&mut self, len: u64, keep: usize) {
        self.kept.clear();
        self.state = State::Bulk { left: len.saturating_add(2), keep };
    }

    /// The kept prefix of the item that [`Self::next`] completed last.
    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// Whether no byte of a next item has been taken.
    pub(super) fn between_items(&self) -> bool {
        matches!(self.state, State::Line { seen: 0 })
    }

    /// How many of the next bytes need not be seen.
    pub(super) fn skippable(&self) -> u64 {
        match self.state {
            State::Bulk { left, keep } if self.kept.len() >= keep => left,
            _ => 0,
        }
    }

    /// Takes bytes from `input` until an item is complete. `None`: all were taken.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Item>, Lost> {
        match self.state {
            State::Line { seen } => self.next_line(seen, input),
            State::Bulk { left, keep } => self.next_bulk(left, keep, input),
        }
    }

    fn next_line(&mut self, seen: u64, input: &mut &[u8]) -> Result<Option<Item>, Lost> {
        if input.is_empty() {
            return Ok(None);
        }
        if seen == 0 {
            self.kept.clear();
        }
        let end = input.iter().position(|&byte| byte == b'\n');
        let (part, rest) = match end {
            Some(end) => input.split_at_checked(end.saturating_add(1)).ok_or(Lost)?,
            None => (*input, [].as_slice()),
        };
        *input = rest;
        let seen = seen.saturating_add(part.len() as u64);
        if seen > LINE_LIMIT {
            return Err(Lost);
        }
        // The last two bytes are kept beyond the limit, so that the line end can be told.
        for &byte in part {
            if self.kept.len() > LINE_KEPT {
                self.kept.remove(LINE_KEPT.saturating_sub(1));
            }
            self.kept.push(byte);
        }
        if end.is_none() {
            self.state = State::Line { seen };
            return Ok(None);
        }
        self.state = State::Line { seen: 0 };
        self.kept.pop();
        if self.kept.last() == Some(&b'\r') {
            self.kept.pop();
        } else if self.strict {
            return Err(Lost);
        }
        Ok(Some(Item::Line))
    }

    fn next_bulk(&mut self, mut left: u64, keep: usize, input: &mut &[u8]) -> Result<Option<Item>, Lost> {
        let content = usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX).min(input.len());
        let (part, rest) = input.split_at_checked(content).ok_or(Lost)?;
        let room = keep.saturating_sub(self.kept.len());
        self.kept.extend(part.iter().take(room));
        left = left.saturating_sub(content as u64);
        *input = rest;
        while left > 0 && left <= 2 {
            let Some((&byte, rest)) = input.split_first() else { break };
            let expected = if left == 2 { b'\r' } else { b'\n' };
            if byte != expected {
                return Err(Lost);
            }
            *input = rest;
            left = left.saturating_sub(1);
        }
        if left > 0 {
            self.state = State::Bulk { left, keep };
            return Ok(None);
        }
        self.state = State::Line { seen: 0 };
        Ok(Some(Item::Bulk))
    }

    /// Steps over bytes that were not captured. If that completes an item, [`Self::next`] gives it.
    pub(super) fn skip(&mut self, gap: u64) -> Result<(), Lost> {
        match &mut self.state {
            State::Bulk { left, keep } if gap <= *left => {
                *left = left.saturating_sub(gap);
                // What would follow the gap is not a prefix any more.
                *keep = self.kept.len();
                Ok(())
            }
            _ => Err(Lost),
        }
    }
}

/// Reads a length or count: an optional minus sign and up to eighteen digits.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        Some((b'+', digits)) => (false, digits),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut value: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(i64::from(digit.saturating_sub(b'0')))?;
    }
    Some(if negative { value.saturating_neg() } else { value })
}
