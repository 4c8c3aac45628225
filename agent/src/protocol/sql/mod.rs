//! SQL text for people: literals hidden ([`redact()`]), and what a query does in a few words ([`summary()`]).
//!
//! Takes captured bytes of any query, cut anywhere and in any encoding; never fails. It must not know where they came
//! from.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

mod lexer;
mod redact;
mod summary;

pub use redact::{MAX_TEXT, has_parameters, parameterised, redact};
pub use summary::{MAX_SUMMARY, looks_like_statement, summary};

#[cfg(test)]
mod tests;
