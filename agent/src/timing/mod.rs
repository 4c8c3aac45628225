//! Where the time of a request went: on a CPU, in the queue for one, waiting for the interpreter's lock, waiting for peers;
//! and who held the event loop.
//!
//! [`threads`] turns the clocks that the kernel side sends along with each record into pieces of a thread's time, each of a
//! logical task, with what [`nesting`] knows of the contexts that it is in. [`buckets`] adds them up between the moments at which a task may change hands, so that few questions have
//! to be asked about whose they were. [`ledger`] adds up what belongs to a request, and gives the [`Split`] of its wall
//! time. [`blocking`] finds out which request held an event loop for long. [`describe`] says all that on a span. Nothing here
//! decides whose a piece of time is: that is the causality stage's word.

pub mod blocking;
pub mod buckets;
pub mod describe;
pub mod ledger;
mod nesting;
pub mod threads;

pub use ledger::{Ledgers, Split, Wait};
