//! Profiles as files for a person: flame graphs and speedscope beside what exporters have too, and the command that
//! records them.
//!
//! The formats take samples added up ([`crate::profile::stacks::Stacks`]) and give bytes; they know nothing of processes,
//! kernels and OTLP.

pub mod command;
pub mod files;
pub mod flamegraph;
pub mod speedscope;
