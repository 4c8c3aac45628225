//! Query text fit for export: literals and comments out, or, for parameterised text, as it is but never cut open.
//!
//! Takes the captured bytes of a query, and whether they are all of it; gives text of at most [`MAX_TEXT`] bytes.

use super::lexer::{Kind, Lexer, Token};

/// Longest text given out, in bytes.
pub const MAX_TEXT: usize = 4096;

/// Replaces every literal by `?` and removes comments. With `truncated`, the captured text ends before the query does:
/// the last token is then in doubt, and is replaced or left out.
///
/// What `redact` returns, it returns unchanged if asked again.
pub fn redact(sql: &[u8], truncated: bool) -> String {
    let mut out = String::with_capacity(sql.len().min(MAX_TEXT));
    let mut tokens = Lexer::new(sql).peekable();
    while let Some(token) = tokens.next() {
        let next = tokens.peek();
        let fits = match token.kind {
            Kind::Literal => push(&mut out, b"?"),
            Kind::Quoted if token.open => push(&mut out, b"?"),
            Kind::Comment => {
                // Taking the comment out must not make one token out of its two neighbours.
                let apart = next.is_none_or(|token| token.kind == Kind::Space)
                    || out.ends_with(|last: char| last.is_whitespace())
                    || out.is_empty();
                apart || push(&mut out, b" ")
            }
            Kind::Word if truncated && next.is_none() => true,
            Kind::Word | Kind::Quoted | Kind::Space | Kind::Parameter | Kind::Punctuation => {
                push(&mut out, token.bytes)
            }
        };
        if !fits {
            break;
        }
    }
    out
}

/// Parameterised text: its literals are the program's, not the user's data, and stay. Of a `truncated` text the last
/// token is left out if it may be cut open.
pub fn parameterised(sql: &[u8], truncated: bool) -> String {
    let mut out = String::with_capacity(sql.len().min(MAX_TEXT));
    let mut tokens = Lexer::new(sql).peekable();
    while let Some(token) = tokens.next() {
        let cut = token.open || (truncated && tokens.peek().is_none() && token.kind != Kind::Space);
        let fits = match token.kind {
            Kind::Literal | Kind::Quoted if cut => push(&mut out, b"?"),
            Kind::Word | Kind::Comment | Kind::Parameter if cut => true,
            _ => push(&mut out, token.bytes),
        };
        if !fits {
            break;
        }
    }
    out
}

/// Whether the text has a parameter such as `$1`.
pub fn has_parameters(sql: &[u8]) -> bool {
    Lexer::new(sql).any(|Token { kind, .. }| kind == Kind::Parameter)
}

/// Appends a token, unless the text would get too long.
fn push(out: &mut String, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let fits = out.len().saturating_add(text.len()) <= MAX_TEXT;
    if fits {
        out.push_str(&text);
    }
    fits
}
