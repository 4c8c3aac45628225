//! JSON read from its start, as far as it was captured: each text, number and flag with the keys that lead to it.
//!
//! It does not check what it has no use for: what is no JSON ends the reading, or gives values that nobody asked for.

/// Deepest nesting that is followed.
const DEPTH_LIMIT: usize = 16;

/// A value that is no object and no array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// The bytes between the quotes, escapes and all.
    Text(&'a [u8]),
    /// A number, a flag, or null.
    Word(&'a [u8]),
}

/// What is open: an object with its last key, or an array.
enum Level<'a> {
    Object { key: &'a [u8], is_key: bool },
    Array,
}

/// Calls `each` with the keys down to each value; an array counts as the key before it, with an empty key inside.
pub(super) fn scan<'a>(bytes: &'a [u8], mut each: impl FnMut(&[&'a [u8]], Value<'a>)) {
    let mut levels: Vec<Level<'a>> = Vec::new();
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match byte {
            b'{' | b'[' => {
                if levels.len() >= DEPTH_LIMIT {
                    return;
                }
                levels.push(if byte == b'{' {
                    Level::Object { key: &[], is_key: true }
                } else {
                    Level::Array
                });
                after
            }
            b'}' | b']' => {
                levels.pop();
                after
            }
            b',' => {
                if let Some(Level::Object { is_key, .. }) = levels.last_mut() {
                    *is_key = true;
                }
                after
            }
            b':' | b' ' | b'\t' | b'\r' | b'\n' => after,
            b'"' => {
                let Some((text, behind)) = string(after) else { return };
                match levels.last_mut() {
                    Some(Level::Object { key, is_key }) if *is_key => {
                        *key = text;
                        *is_key = false;
                    }
                    _ => each(&path(&levels), Value::Text(text)),
                }
                behind
            }
            _ => {
                let end = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']'));
                // A word that goes on to the end of what was captured may go on behind it.
                let Some((word, behind)) = end.and_then(|end| rest.split_at_checked(end)) else { return };
                each(&path(&levels), Value::Word(word.trim_ascii()));
                behind
            }
        };
    }
}

fn path<'a>(levels: &[Level<'a>]) -> Vec<&'a [u8]> {
    levels.iter().map(|level| if let Level::Object { key, .. } = level { *key } else { &[] }).collect()
}

/// A string's bytes and what is behind its closing quote.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    let end = bytes.iter().position(|&byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })?;
    let (text, rest) = bytes.split_at_checked(end)?;
    Some((text, rest.get(1..)?))
}
