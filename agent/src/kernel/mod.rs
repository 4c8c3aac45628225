//! The kernel side, seen from the daemon: what this kernel can do, loading the programs, and the records they send.
//!
//! Only this module calls bpf(2). It knows no protocol and no span.

pub mod btf;
pub mod capabilities;
mod disposal;
mod families;
pub mod offsets;
mod perf;
pub mod probes;
pub mod programs;
pub mod publish;
pub mod records;
mod sampling;
pub mod sweeper;
pub mod syscalls;
mod tracefs;
