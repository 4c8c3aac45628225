//! Placeholder.
use super::{Direction, Protocol, Role, Segment};

/// Which protocol a connection speaks, from its first segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// This protocol, with this role of the observed process.
    Known { /// x
 protocol: Protocol, /// x
 role: Role, /// x
 from: usize },
    /// Keep buffering: more bytes would tell.
    NeedMore,
    /// None of ours.
    Unknown,
}

/// Judges a connection by its first segments in both directions, in the order in which they happened.
pub fn detect(_segments: &[(Direction, Segment<'_>)]) -> Detection {
    Detection::Unknown
}
