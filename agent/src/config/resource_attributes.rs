//! The `key=value,...` lists of `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_EXPORTER_OTLP_HEADERS`.
//!
//! Takes the text of a variable, the agent's own or a target's; gives decoded pairs in order. The specification wants
//! a resource with any undecodable part discarded as a whole ("Specifying resource information via an environment
//! variable"), so there are no partial results.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use std::fmt;

use percent_encoding::percent_decode_str;

/// Why a list cannot be used. Names the position, never the value, which may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    /// The item of this number (from 1) has no `=`, or nothing before it.
    NotAPair(usize),
    /// The %-encoded bytes of the item of this number (from 1) are not UTF-8.
    NotUtf8(usize),
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPair(number) => write!(f, "item {number} is not of the form key=value"),
            Self::NotUtf8(number) => write!(f, "item {number} is not UTF-8 once it is %-decoded"),
        }
    }
}

impl std::error::Error for ListError {}

/// The attributes of a resource: keys and values %-decoded, in order. Of equal keys the last one counts.
pub fn parse_resource_attributes(text: &str) -> Result<Vec<(String, String)>, ListError> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    for pair in pairs(text) {
        let (key, value) = pair?;
        attributes.retain(|(known, _)| *known != key);
        attributes.push((key, value));
    }
    Ok(attributes)
}

/// Each pair of the list or what is wrong with it. Empty items (a trailing comma) are skipped.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = Result<(String, String), ListError>> {
    let items = text.split(',').map(str::trim).enumerate().filter(|(_, item)| !item.is_empty());
    items.map(|(index, item)| {
        let number = index.saturating_add(1);
        let (key, value) = item.split_once('=').ok_or(ListError::NotAPair(number))?;
        let decode = |text: &str| {
            let decoded = percent_decode_str(text.trim()).decode_utf8();
            decoded.map(String::from).map_err(|_| ListError::NotUtf8(number))
        };
        let (key, value) = (decode(key)?, decode(value)?);
        if key.is_empty() { Err(ListError::NotAPair(number)) } else { Ok((key, value)) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[(&str, &str)], ListError>) {
        let expected = expected.map(|pairs| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        });
        assert_eq!(parse_resource_attributes(text), expected, "{text}");
    }

    #[test]
    fn lists() {
        check("", Ok(&[]));
        check("a=b", Ok(&[("a", "b")]));
        check(" a = b , c=d,", Ok(&[("a", "b"), ("c", "d")]));
        check("a=x%2Cy%3Dz%20%C3%A9", Ok(&[("a", "x,y=z é")]));
        check("a=b=c", Ok(&[("a", "b=c")]));
        check("a=,b=%", Ok(&[("a", ""), ("b", "%")]));
        check("a=1,b=2,a=3", Ok(&[("b", "2"), ("a", "3")]));
        check("a=1,b", Err(ListError::NotAPair(2)));
        check("=1", Err(ListError::NotAPair(1)));
        check("a=%FF", Err(ListError::NotUtf8(1)));
    }
}
