//! PostgreSQL's lexical structure, as far as hiding literals needs it: bytes in, [`Token`]s out.
//!
//! Every byte of the input belongs to exactly one token, in order. Nothing is rejected: what PostgreSQL would call an
//! error comes out as some token. Rules: PostgreSQL documentation, "4.1. Lexical Structure". The lexer must not know
//! what a token means.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// White space.
    Space,
    /// `-- ...` up to the end of its line, or `/* ... */`, which nests.
    Comment,
    /// A keyword or an unquoted identifier.
    Word,
    /// `"..."`, also `U&"..."`.
    Quoted,
    /// A string, bit-string or number, with its sign.
    Literal,
    /// `$1`.
    Parameter,
    /// Any other single byte.
    Punctuation,
}

/// A piece of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) bytes: &'a [u8],
    /// The text ended before the token's own closing mark.
    pub(super) open: bool,
}

impl Token<'_> {
    /// Whether this is the unquoted word `word`, which is given in capitals.
    pub(super) fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.bytes.eq_ignore_ascii_case(word.as_bytes())
    }

    /// Whether this is the single byte `byte`.
    pub(super) fn is_byte(&self, byte: u8) -> bool {
        self.kind == Kind::Punctuation && self.bytes == [byte]
    }
}

/// The tokens of a text.
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    /// The token before was an operand, without space after it: a sign here is an operator.
    after_operand: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { rest: text, after_operand: false }
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let first = *self.rest.first()?;
        let (kind, scan) = scan(self.rest, first, self.after_operand);
        let length = scan.length.clamp(1, self.rest.len());
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        self.after_operand = match kind {
            Kind::Word | Kind::Quoted | Kind::Parameter => true,
            Kind::Punctuation => matches!(first, b')' | b']' | b'?'),
            Kind::Space | Kind::Comment | Kind::Literal => false,
        };
        Some(Token { kind, bytes, open: scan.open })
    }
}

struct Scan {
    length: usize,
    open: bool,
}

impl Scan {
    const fn closed(length: usize) -> Self {
        Self { length, open: false }
    }

    /// From `skip` on, the token ends at the first place where `end` says so (giving the bytes after it), or not at all.
    fn until(text: &[u8], end: Option<usize>) -> Self {
        end.map_or(Self { length: text.len(), open: true }, Self::closed)
    }
}

fn scan(text: &[u8], first: u8, after_operand: bool) -> (Kind, Scan) {
    let at = |index: usize| text.get(index).copied();
    let second = at(1);
    match (first, second) {
        (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => {
            (Kind::Space, Scan::closed(count(text, |byte| byte.is_ascii_whitespace() || byte == 0x0b)))
        }
        (b'-', Some(b'-')) => {
            (Kind::Comment, Scan::closed(count(text, |byte| byte != b'\n' && byte != b'\r')))
        }
        (b'/', Some(b'*')) => (Kind::Comment, Scan::until(text, block_comment(text))),
        (b'\'', _) => (Kind::Literal, Scan::until(text, quoted(text, 1, b'\'', false))),
        (b'"', _) => (Kind::Quoted, Scan::until(text, quoted(text, 1, b'"', false))),
        (b'e' | b'E', Some(b'\'')) => (Kind::Literal, Scan::until(text, quoted(text, 2, b'\'', true))),
        (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', Some(b'\'')) => {
            (Kind::Literal, Scan::until(text, quoted(text, 2, b'\'', false)))
        }
        (b'u' | b'U', Some(b'&')) if at(2) == Some(b'\'') => {
            (Kind::Literal, Scan::until(text, quoted(text, 3, b'\'', false)))
        }
        (b'u' | b'U', Some(b'&')) if at(2) == Some(b'"') => {
            (Kind::Quoted, Scan::until(text, quoted(text, 3, b'"', false)))
        }
        (b'$', Some(b'0'..=b'9')) => {
            let digits = count(text.get(1..).unwrap_or_default(), |byte| byte.is_ascii_digit());
            (Kind::Parameter, Scan::closed(digits.saturating_add(1)))
        }
        (b'$', _) => dollar(text),
        (b'0'..=b'9', _) => (Kind::Literal, Scan::closed(number(text, 0))),
        (b'.', Some(b'0'..=b'9')) => (Kind::Literal, Scan::closed(number(text, 0))),
        (b'+' | b'-', Some(b'0'..=b'9')) if !after_operand => (Kind::Literal, Scan::closed(number(text, 1))),
        (b'+' | b'-', Some(b'.')) if !after_operand && at(2).is_some_and(|byte| byte.is_ascii_digit()) => {
            (Kind::Literal, Scan::closed(number(text, 1)))
        }
        _ if starts_word(first) => {
            (Kind::Word, Scan::closed(count(text, |byte| continues_word(byte) || byte == b'$')))
        }
        _ => (Kind::Punctuation, Scan::closed(1)),
    }
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit()
}

fn count(text: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    text.iter().take_while(|byte| belongs(**byte)).count()
}

/// Length of a number that starts after `sign` bytes. Junk that clings to it goes with it: hidden is hidden.
fn number(text: &[u8], sign: usize) -> usize {
    let mut length = sign;
    let mut point = false;
    let mut before = 0;
    for byte in text.iter().skip(sign).copied() {
        let belongs = match byte {
            b'.' => !std::mem::replace(&mut point, true),
            b'+' | b'-' => matches!(before, b'e' | b'E') && !hexadecimal(text, sign),
            _ => continues_word(byte),
        };
        if !belongs {
            break;
        }
        before = byte;
        length = length.saturating_add(1);
    }
    length
}

fn hexadecimal(text: &[u8], sign: usize) -> bool {
    matches!(text.get(sign..).unwrap_or_default(), [b'0', b'x' | b'X', ..])
}

/// Where a quoted token ends whose content starts at `start`. A doubled quote stands for itself.
fn quoted(text: &[u8], start: usize, quote: u8, backslashes: bool) -> Option<usize> {
    let mut bytes = text.iter().copied().enumerate().skip(start).peekable();
    while let Some((index, byte)) = bytes.next() {
        if backslashes && byte == b'\\' {
            bytes.next();
        } else if byte == quote && bytes.next_if(|(_, next)| *next == quote).is_none() {
            return Some(index.saturating_add(1));
        }
    }
    None
}

fn block_comment(text: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut pairs = text.windows(2).enumerate();
    while let Some((index, pair)) = pairs.next() {
        match pair {
            b"/*" => depth = depth.saturating_add(1),
            b"*/" => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return Some(index.saturating_add(2));
        }
        pairs.next();
    }
    None
}

/// `$tag$ ... $tag$`.
fn dollar(text: &[u8]) -> (Kind, Scan) {
    let name = count(text.get(1..).unwrap_or_default(), continues_word);
    let opening = name.saturating_add(2);
    match text.get(name.saturating_add(1)) {
        Some(b'$') => {
            let tag = text.get(..opening).unwrap_or_default();
            let body = text.get(opening..).unwrap_or_default();
            let end = body.windows(opening).position(|window| window == tag);
            (Kind::Literal, Scan::until(text, end.map(|at| at.saturating_add(opening.saturating_mul(2)))))
        }
        _ => (Kind::Punctuation, Scan::closed(1)),
    }
}
