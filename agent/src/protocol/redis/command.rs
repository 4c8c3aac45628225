//! Commands: arrays of counted strings, or inline lines, into a name and short prefixes of the arguments.
//!
//! Takes the bytes of the request direction; gives one [`Arguments`] per command. Prefixes live until the next
//! command only; what may leave is decided in [`super::text`].

use super::lex::{BULK_LIMIT, Item, Lexer, Lost, integer};

/// Arguments whose prefixes are kept; a name, eight keys and the options before them fit.
const KEPT_ARGUMENTS: usize = 32;
/// Most bytes kept of an argument.
pub(super) const KEPT_BYTES: usize = 128;
/// Most bytes kept of what is pushed on a list: it may be a task, which says so behind its arguments.
const KEPT_PUSHED: usize = 16 * 1024;
/// Most arguments of one command that are believed (Redis: `INT_MAX`).
const COUNT_LIMIT: i64 = i32::MAX as i64;

/// One argument's prefix, inside [`Arguments::bytes`].
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    len: u64,
}

/// A command's arguments, its name included. No `Debug`: these are values.
#[derive(Default)]
pub(super) struct Arguments {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// How many there are, the name included.
    pub(super) count: u64,
    /// Sum of their lengths in bytes, the name included.
    pub(super) total_len: u64,
}

impl Arguments {
    /// The kept prefix of argument `index`; 0 is the name.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let span = self.spans.get(index)?;
        self.bytes.get(span.start..span.end)
    }

    /// Argument `index`, if all of it was captured and kept.
    pub(super) fn whole(&self, index: usize) -> Option<&[u8]> {
        let prefix = self.get(index)?;
        (self.len_of(index) == Some(prefix.len() as u64)).then_some(prefix)
    }

    /// The whole length of argument `index`, where its prefix is kept.
    pub(super) fn len_of(&self, index: usize) -> Option<u64> {
        self.spans.get(index).map(|span| span.len)
    }

    /// Most bytes that are kept of the next argument.
    fn kept_of_next(&self) -> usize {
        let pushed = || matches!(self.get(0), Some(name) if is_push(name));
        match self.spans.len() {
            KEPT_ARGUMENTS.. => 0,
            2 if pushed() => KEPT_PUSHED,
            _ => KEPT_BYTES,
        }
    }

    fn clear(&mut self) {
        let Self { bytes, spans, count, total_len } = self;
        bytes.clear();
        spans.clear();
        *count = 0;
        *total_len = 0;
    }

    fn push(&mut self, prefix: &[u8], len: u64) {
        if self.spans.len() < KEPT_ARGUMENTS {
            let start = self.bytes.len();
            self.bytes.extend(prefix.iter().take(self.kept_of_next()));
            self.spans.push(Span { start, end: self.bytes.len(), len });
        }
        self.total_len = self.total_len.saturating_add(len);
    }
}

/// Reads one command after the other.
pub(super) struct CommandReader {
    lexer: Lexer,
    arguments: Arguments,
    /// Arguments of the array that are still to come; 0 between commands.
    left: u64,
    /// Length of the counted string that is being read.
    bulk_len: u64,
}

impl CommandReader {
    pub(super) fn new() -> Self {
        Self { lexer: Lexer::new(false), arguments: Arguments::default(), left: 0, bulk_len: 0 }
    }

    /// Forgets a command that was begun.
    pub(super) fn reset(&mut self) {
        self.lexer.reset();
        self.left = 0;
    }

    /// Whether the next byte is the first of a command.
    pub(super) fn between_commands(&self) -> bool {
        self.left == 0 && self.lexer.between_items()
    }

    /// How many of the next bytes need not be seen.
    pub(super) fn skippable(&self) -> u64 {
        self.lexer.skippable()
    }

    /// Steps over bytes that were not captured.
    pub(super) fn skip(&mut self, gap: u64) -> Result<(), Lost> {
        self.lexer.skip(gap)
    }

    /// The command that [`Self::next`] completed last.
    pub(super) fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    /// Takes bytes until a command is complete (`true`) or there are none left.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<bool, Lost> {
        while let Some(item) = self.lexer.next(input)? {
            let complete = match item {
                Item::Line if self.left == 0 => self.begin()?,
                Item::Line => {
                    let length = self.lexer.kept().strip_prefix(b"$").and_then(integer).ok_or(Lost)?;
                    self.bulk_len = u64::try_from(length).map_err(|_| Lost)?;
                    if self.bulk_len > BULK_LIMIT {
                        return Err(Lost);
                    }
                    let keep = self.arguments.kept_of_next();
                    let keep = keep.min(usize::try_from(self.bulk_len).unwrap_or(usize::MAX));
                    self.lexer.begin_bulk(self.bulk_len, keep);
                    false
                }
                Item::Bulk => {
                    self.arguments.push(self.lexer.kept(), self.bulk_len);
                    self.left = self.left.saturating_sub(1);
                    self.left == 0
                }
            };
            if complete {
                return match self.arguments.whole(0) {
                    Some(name) if is_name(name) => Ok(true),
                    _ => Err(Lost),
                };
            }
        }
        Ok(false)
    }

    /// The first line of a command. Empty lines and empty arrays are nothing, as for Redis.
    fn begin(&mut self) -> Result<bool, Lost> {
        self.arguments.clear();
        let line = self.lexer.kept();
        if let Some(count) = line.strip_prefix(b"*") {
            let count = integer(count).filter(|&count| count <= COUNT_LIMIT).ok_or(Lost)?;
            self.left = u64::try_from(count).unwrap_or(0);
            self.arguments.count = self.left;
            return Ok(false);
        }
        for word in words(line) {
            self.arguments.count = self.arguments.count.saturating_add(1);
            self.arguments.push(word, word.len() as u64);
        }
        Ok(self.arguments.count > 0)
    }
}

/// Whether the command of this name puts a value on a list.
pub(super) fn is_push(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"LPUSH") || name.eq_ignore_ascii_case(b"RPUSH")
}

/// Whether this can be a command's name: modules add dots, underscores and dashes to the letters.
pub(super) fn is_name(name: &[u8]) -> bool {
    name.len() <= 48
        && name.first().is_some_and(u8::is_ascii_alphabetic)
        && name.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Whether a command may start with these bytes; only what is there is judged.
pub(super) fn may_start(bytes: &[u8]) -> bool {
    let Some(mut rest) = bytes.strip_prefix(b"*") else { return false };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    rest = rest.get(digits..).unwrap_or_default();
    if rest.is_empty() {
        return digits <= 10;
    }
    let agrees = rest.iter().zip(b"\r\n$").all(|(seen, expected)| seen == expected);
    (1..=10).contains(&digits) && agrees
}

/// The words of an inline command; a quoted one is a single word, quotes included.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let quote = rest.first().copied().filter(|first| matches!(first, b'"' | b'\''));
        let end = match quote {
            Some(quote) => {
                let mut escaped = true;
                let close = rest.iter().position(|&byte| {
                    let closes = byte == quote && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    closes
                });
                close.map_or(rest.len(), |close| close.saturating_add(1))
            }
            None => rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len()),
        };
        let (word, after) = rest.split_at_checked(end)?;
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}
