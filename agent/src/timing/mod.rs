//! Where the time of a request went: on a CPU, in the queue for one, waiting for the interpreter's lock, waiting for peers.
//!
//! [`Threads`] turns the clocks that the kernel side sends along with each record into [`Share`]s: pieces of a thread's
//! time, each with the moment by which the owner rule can tell whose it was. [`Ledgers`] adds up what belongs to a
//! request, and gives the [`Split`] of its wall time. Knows no span and no protocol; who owns a share is not decided here.

mod ledger;
mod threads;

pub use ledger::{Ledgers, Split, Wait};
pub use threads::{Share, Threads};
