//! Replies: RESP2 and RESP3 values of any nesting, walked without recursion, into the little that pairing needs.
//!
//! Takes the bytes of the response direction; gives one [`Reply`] per top-level value. Facts from
//! <https://github.com/redis/redis-specifications/blob/master/protocol/RESP3.md>.

use super::lex::{BULK_LIMIT, Item, Lexer, Lost, integer};

/// Deepest nesting that is followed.
const DEPTH_LIMIT: usize = 64;
/// Bytes kept of a string that may say what a push message is.
const WORD_KEPT: usize = 16;

/// The outermost form of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Any value that is neither of the others.
    Value,
    /// A simple string.
    Status,
    /// A simple or blob error.
    Error,
    /// An array, not null.
    Array,
    /// An out-of-band message: never the answer to a command, but for subscriptions.
    Push,
}

/// What is remembered of a reply. No `Debug`: words may be values.
pub(super) struct Reply {
    /// The outermost form.
    pub(super) form: Form,
    /// Prefix of a simple string, or of the first element of an array or push.
    pub(super) word: Vec<u8>,
    /// The last integer among the elements of an array or push.
    pub(super) number: Option<i64>,
    /// Prefix of the first error, on the outside or among the elements.
    pub(super) error: Option<Box<str>>,
}

impl Reply {
    const EMPTY: Self = Self { form: Form::Value, word: Vec::new(), number: None, error: None };

    /// Whether the status or first element is this word; the case does not count.
    pub(super) fn says(&self, word: &str) -> bool {
        self.word.eq_ignore_ascii_case(word.as_bytes())
    }
}

/// An aggregate that is being read.
struct Level {
    /// Elements to come; `None`: until the end mark of a streamed aggregate.
    left: Option<u64>,
    /// Attributes are no element of what holds them.
    attribute: bool,
    /// A streamed string: its elements are chunks.
    chunks: bool,
}

/// Reads one reply after the other.
pub(super) struct ReplyReader {
    lexer: Lexer,
    levels: Vec<Level>,
    reply: Reply,
    /// A value has begun: the outermost one, attributes before it not counted.
    begun: bool,
    /// Elements seen of the outermost aggregate.
    elements: u64,
    /// Type of the counted string that is being read.
    bulk: u8,
    /// How much of it should be kept; less is there when a gap hid it.
    bulk_keep: usize,
}

impl ReplyReader {
    pub(super) fn new() -> Self {
        Self {
            lexer: Lexer::new(true),
            levels: Vec::new(),
            reply: Reply::EMPTY,
            begun: false,
            elements: 0,
            bulk: 0,
            bulk_keep: 0,
        }
    }

    /// Forgets a reply that was begun.
    pub(super) fn reset(&mut self) {
        self.lexer.reset();
        self.levels.clear();
        self.clear();
    }

    fn clear(&mut self) {
        self.reply = Reply::EMPTY;
        self.begun = false;
        self.elements = 0;
    }

    /// Whether the next byte is the first of a reply, or of what follows its attributes.
    pub(super) fn between_replies(&self) -> bool {
        !self.begun && self.levels.is_empty() && self.lexer.between_items()
    }

    /// How many of the next bytes need not be seen.
    pub(super) fn skippable(&self) -> u64 {
        self.lexer.skippable()
    }

    /// Steps over bytes that were not captured.
    pub(super) fn skip(&mut self, gap: u64) -> Result<(), Lost> {
        self.lexer.skip(gap)
    }

    /// How many elements of the outermost aggregate are complete.
    pub(super) fn values_seen(&self) -> u64 {
        self.elements
    }

    /// The outermost form of the reply that has begun, where it is known.
    pub(super) fn form(&self) -> Option<Form> {
        self.begun.then_some(self.reply.form)
    }

    /// Takes bytes until a reply is complete or there are none left.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, Lost> {
        while let Some(item) = self.lexer.next(input)? {
            let complete = match item {
                Item::Line => self.line()?,
                Item::Bulk => {
                    if matches!(self.bulk, b'!') {
                        self.note_error();
                    }
                    self.note_word();
                    self.element_done()
                }
            };
            if complete {
                let reply = std::mem::replace(&mut self.reply, Reply::EMPTY);
                self.clear();
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// Takes a line: a scalar, or the head of a string or an aggregate. `true`: the reply is complete.
    fn line(&mut self) -> Result<bool, Lost> {
        let (&kind, text) = self.lexer.kept().split_first().ok_or(Lost)?;
        let in_chunks = self.levels.last().is_some_and(|level| level.chunks);
        if in_chunks != (kind == b';') {
            return Err(Lost);
        }
        let streamed = text == b"?";
        let number = integer(text);
        match kind {
            b'.' if text.is_empty() => {
                let open = self.levels.pop().filter(|level| level.left.is_none()).ok_or(Lost)?;
                Ok(if open.attribute { false } else { self.element_done() })
            }
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {
                let valid = match kind {
                    b':' => number.is_some() || integer_like(text),
                    b'(' => integer_like(text),
                    b'_' => text.is_empty(),
                    b'#' => matches!(text, b"t" | b"f"),
                    b',' => double_like(text),
                    _ => true,
                };
                if !valid {
                    return Err(Lost);
                }
                self.begin_value(match kind {
                    b'+' => Form::Status,
                    b'-' => Form::Error,
                    _ => Form::Value,
                });
                match kind {
                    b'-' => self.note_error_line(),
                    b':' if self.depth() == 1 => self.reply.number = number,
                    b'+' => self.note_word_line(),
                    _ => {}
                }
                Ok(self.element_done())
            }
            b';' => self.chunk(number.ok_or(Lost)?),
            b'$' | b'=' | b'!' => {
                self.begin_value(if kind == b'!' { Form::Error } else { Form::Value });
                if kind == b'$' && streamed {
                    self.open(None, false, true)?;
                    return Ok(false);
                }
                match number {
                    Some(-1) => Ok(self.element_done()),
                    Some(len) => {
                        let len = u64::try_from(len).ok().filter(|&len| len <= BULK_LIMIT).ok_or(Lost)?;
                        let wanted = kind == b'!' || (self.depth() == 1 && self.elements == 0);
                        let keep = if wanted { WORD_KEPT.saturating_mul(2) } else { 0 };
                        self.bulk = kind;
                        self.bulk_keep = keep.min(usize::try_from(len).unwrap_or(usize::MAX));
                        self.lexer.begin_bulk(len, self.bulk_keep);
                        Ok(false)
                    }
                    None => Err(Lost),
                }
            }
            b'*' | b'~' | b'%' | b'>' | b'|' => self.aggregate(kind, number, streamed),
            _ => Err(Lost),
        }
    }

    fn aggregate(&mut self, kind: u8, number: Option<i64>, streamed: bool) -> Result<bool, Lost> {
        let attribute = kind == b'|';
        if !attribute {
            let null = number == Some(-1);
            self.begin_value(match kind {
                b'>' => Form::Push,
                b'*' if !null => Form::Array,
                _ => Form::Value,
            });
            if null {
                return Ok(self.element_done());
            }
        }
        if streamed {
            self.open(None, attribute, false)?;
            return Ok(false);
        }
        let count = number.and_then(|count| u64::try_from(count).ok()).ok_or(Lost)?;
        let count = if matches!(kind, b'%' | b'|') { count.checked_mul(2).ok_or(Lost)? } else { count };
        if count > u64::from(u32::MAX) {
            return Err(Lost);
        }
        if count == 0 {
            return Ok(if attribute { false } else { self.element_done() });
        }
        self.open(Some(count), attribute, false)?;
        Ok(false)
    }

    fn chunk(&mut self, len: i64) -> Result<bool, Lost> {
        if len == 0 {
            self.levels.pop();
            return Ok(self.element_done());
        }
        self.bulk = b';';
        self.lexer.begin_bulk(u64::try_from(len).map_err(|_| Lost)?, 0);
        Ok(false)
    }

    fn open(&mut self, left: Option<u64>, attribute: bool, chunks: bool) -> Result<(), Lost> {
        if self.levels.len() >= DEPTH_LIMIT {
            return Err(Lost);
        }
        self.levels.push(Level { left, attribute, chunks });
        Ok(())
    }

    /// An element is complete, and maybe what it was the last of. `true`: the reply is complete.
    fn element_done(&mut self) -> bool {
        if self.depth() == 1 {
            self.elements = self.elements.saturating_add(1);
        }
        while let Some(level) = self.levels.last_mut() {
            let Some(left) = &mut level.left else { return false };
            *left = left.saturating_sub(1);
            if *left > 0 {
                return false;
            }
            let attribute = level.attribute;
            self.levels.pop();
            if attribute {
                return false;
            }
            if self.depth() == 1 {
                self.elements = self.elements.saturating_add(1);
            }
        }
        true
    }

    /// How many aggregates hold the current value; inside attributes it is not told.
    fn depth(&self) -> usize {
        if self.levels.iter().any(|level| level.attribute) { usize::MAX } else { self.levels.len() }
    }

    fn begin_value(&mut self, form: Form) {
        if !self.begun && self.levels.is_empty() {
            self.begun = true;
            self.reply.form = form;
        }
    }

    fn note_word_line(&mut self) {
        let word = self.lexer.kept().get(1..).unwrap_or_default();
        if self.levels.is_empty() || (self.depth() == 1 && self.elements == 0) {
            self.reply.word = word.iter().copied().take(WORD_KEPT).collect();
        }
    }

    fn note_word(&mut self) {
        if self.depth() == 1 && self.elements == 0 && self.bulk == b'$' {
            self.reply.word = self.lexer.kept().iter().copied().take(WORD_KEPT).collect();
        }
    }

    fn note_error(&mut self) {
        if self.depth() <= 1 && self.reply.error.is_none() {
            let kept = self.lexer.kept();
            let whole = kept.len() >= self.bulk_keep;
            self.reply.error = Some(if whole { error_prefix(kept) } else { "ERR".into() });
        }
    }

    fn note_error_line(&mut self) {
        if self.depth() <= 1 && self.reply.error.is_none() {
            self.reply.error = Some(error_prefix(self.lexer.kept().get(1..).unwrap_or_default()));
        }
    }
}

/// The first word of an error where it is a code (`WRONGTYPE`), else `ERR`: free text never leaves.
pub(super) fn error_prefix(message: &[u8]) -> Box<str> {
    let word = message.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
    let is_code = (1..=24).contains(&word.len())
        && word.iter().all(|&byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    match std::str::from_utf8(word) {
        Ok(word) if is_code => word.into(),
        _ => "ERR".into(),
    }
}

pub(super) fn integer_like(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

pub(super) fn double_like(text: &[u8]) -> bool {
    matches!(text, b"inf" | b"-inf" | b"nan" | b"-nan")
        || (!text.is_empty()
            && text.len() <= 64
            && text.iter().any(u8::is_ascii_digit)
            && text.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte)))
}
