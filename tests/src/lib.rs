//! Whole-system tests of pitviper; see `tests/`.
