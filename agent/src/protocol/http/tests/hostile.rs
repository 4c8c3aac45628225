//! Bytes that no honest peer sends, and bytes that must never be shown.
