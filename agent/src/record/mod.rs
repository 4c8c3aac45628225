//! Profiles as files for a person: pprof, flame graphs, speedscope.
//!
//! Takes samples added up in [`Stacks`]; gives the files' bytes. Knows nothing of processes, kernels and OTLP.

pub mod flamegraph;
pub mod pprof;
pub mod route;
pub mod speedscope;
pub mod stacks;

pub use stacks::{Frame, Stacks};
