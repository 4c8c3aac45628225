//! The types that the kernel programs and the daemon share: map values, ring-buffer records and counters.
//!
//! Everything here is `repr(C)`, has no implicit padding (the size assertions below say so), and means the same
//! on both sides. This crate's library knows no helper, no map and no system call; the programs are in the binary.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod abi;
