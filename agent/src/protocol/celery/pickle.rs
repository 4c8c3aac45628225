//! The opcodes of pickle protocols 2 to 5, read one after the other: a text, a number, the shape of what is around them.
//!
//! Nothing is executed and no object is made; a byte that is none of the opcodes that the pickler writes for plain data,
//! or the end of what was captured, is the end. Facts from <https://docs.python.org/3/library/pickletools.html>.

/// Entries of the memo that are kept.
const MEMO_LIMIT: usize = 4096;

/// What an opcode did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A text was pushed.
    Text(&'a str),
    /// A number was pushed.
    Number(i64),
    /// `None` was pushed.
    None,
    /// `True` or `False` was pushed.
    Flag(bool),
    /// Something else was pushed.
    Other,
    /// An empty dictionary was pushed.
    Dict,
    /// What follows belongs together.
    Mark,
    /// What followed the mark became items of what was before it.
    Items,
    /// What followed the mark became one value.
    Collected,
    /// The two uppermost values became a pair in the dictionary below them.
    Pair,
    /// So many uppermost values became one less than them.
    Reduced(u8),
}

/// Reads tokens.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    memo: Vec<Option<&'a str>>,
    /// What was pushed last, if it was a text.
    last: Option<&'a str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, memo: Vec::new(), last: None }
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A length of so many bytes, little-endian.
    fn length(&mut self, width: usize) -> Option<usize> {
        let mut bytes = [0; 8];
        bytes.get_mut(..width)?.copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    }

    fn text(&mut self, width: usize) -> Option<Token<'a>> {
        let len = self.length(width)?;
        std::str::from_utf8(self.take(len)?).ok().map(Token::Text)
    }

    fn skip(&mut self, width: usize) -> Option<Token<'a>> {
        let len = self.length(width)?;
        self.take(len)?;
        Some(Token::Other)
    }

    fn remember(&mut self, index: usize) -> Option<()> {
        if index >= MEMO_LIMIT {
            return None;
        }
        if self.memo.len() <= index {
            self.memo.resize(index.saturating_add(1), None);
        }
        *self.memo.get_mut(index)? = self.last;
        Some(())
    }

    fn recall(&self, index: usize) -> Token<'a> {
        self.memo.get(index).copied().flatten().map_or(Token::Other, Token::Text)
    }

    /// The next opcode's effect; `None` at the end.
    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let [opcode] = self.array()?;
            let token = match opcode {
                // PROTO, FRAME
                0x80 => {
                    self.take(1)?;
                    continue;
                }
                0x95 => {
                    self.take(8)?;
                    continue;
                }
                // MEMOIZE, BINPUT, LONG_BINPUT
                0x94 => {
                    self.remember(self.memo.len())?;
                    continue;
                }
                b'q' | b'r' => {
                    let index = self.length(if opcode == b'q' { 1 } else { 4 })?;
                    self.remember(index)?;
                    continue;
                }
                b'K' => Token::Number(i64::from(u8::from_le_bytes(self.array()?))),
                b'M' => Token::Number(i64::from(u16::from_le_bytes(self.array()?))),
                b'J' => Token::Number(i64::from(i32::from_le_bytes(self.array()?))),
                0x8a => self.long()?,
                b'N' => Token::None,
                0x88 => Token::Flag(true),
                0x89 => Token::Flag(false),
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'h' | b'j' => {
                    let index = self.length(if opcode == b'h' { 1 } else { 4 })?;
                    self.recall(index)
                }
                b'G' => {
                    self.take(8)?;
                    Token::Other
                }
                b'C' => self.skip(1)?,
                b'B' => self.skip(4)?,
                0x8e | 0x96 => self.skip(8)?,
                b']' | b')' | 0x8f => Token::Other,
                b'}' => Token::Dict,
                b'(' => Token::Mark,
                b'u' | b'e' | 0x90 => Token::Items,
                b't' | 0x91 => Token::Collected,
                b's' => Token::Pair,
                0x85 => Token::Reduced(1),
                // TUPLE2, STACK_GLOBAL, REDUCE, NEWOBJ, BUILD, APPEND
                0x86 | 0x93 | b'R' | 0x81 | b'b' | b'a' => Token::Reduced(2),
                0x87 | 0x92 => Token::Reduced(3),
                _ => return None,
            };
            self.last = if let Token::Text(text) = token { Some(text) } else { None };
            return Some(token);
        }
    }

    /// `LONG1`: a length and so many bytes of two's complement.
    fn long(&mut self) -> Option<Token<'a>> {
        let len = self.length(1)?;
        let bytes = self.take(len)?;
        let mut value = [if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 }; 8];
        match value.get_mut(..len) {
            Some(low) => low.copy_from_slice(bytes),
            None => return Some(Token::Other),
        }
        Some(Token::Number(i64::from_le_bytes(value)))
    }
}
