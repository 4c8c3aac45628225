//! Whose is the `PING` that a new Redis connection begins with? The thread's next command tells.
//!
//! A client that looks after its connections tries a new one before it sets it up, and kombu tries one before it uses
//! another. Such a command waits here, until the same thread sends what gives it away, or does not for a while.

use super::exchanges::Closed;
use crate::protocol::Outcome;
use crate::protocol::redis::Exchange;

/// Longest wait: a thread that sets a connection up is not interrupted.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Most that wait; beyond it the oldest is taken for the application's.
const MOST: usize = 1024;

/// The exchanges that wait.
#[derive(Default)]
pub(super) struct Greetings(Vec<Closed>);

impl Greetings {
    /// Takes away what waits of a process.
    pub(super) fn leave(&mut self, pid: u32) -> Vec<Closed> {
        self.0.extract_if(.., |held| held.last.pid == pid).collect()
    }

    /// Passes on what is over but for what has to wait, and what has waited long enough.
    pub(super) fn sift(&mut self, closed: Vec<Closed>, now_ns: u64) -> Vec<Closed> {
        let mut passed = Vec::with_capacity(closed.len());
        for closed in closed {
            let Outcome::Redis(exchange) = &closed.outcome else {
                passed.push(closed);
                continue;
            };
            let tid = closed.last.task.tid;
            if exchange.sign_of_life {
                self.0.push(closed);
                continue;
            }
            let Exchange { connection_setup: setup, housekeeping, first_work, .. } = **exchange;
            let broker = housekeeping || exchange.message.is_some();
            let held = self.0.extract_if(.., |held| {
                held.last.task.tid == tid && (!setup || held.connection == closed.connection)
            });
            let mut greetings: Vec<Closed> = held.collect();
            let newest = greetings.len().saturating_sub(1);
            for (index, greeting) in greetings.iter_mut().enumerate() {
                // Another connection is kombu's too if nothing came between, and what came is new.
                let kombus = greeting.connection == closed.connection || (first_work && index == newest);
                if let Outcome::Redis(exchange) = &mut greeting.outcome {
                    exchange.connection_setup = setup;
                    exchange.housekeeping |= broker && kombus;
                }
            }
            passed.append(&mut greetings);
            passed.push(closed);
        }
        let surplus = self.0.len().saturating_sub(MOST);
        passed.extend(self.0.drain(..surplus));
        passed.extend(self.0.extract_if(.., |held| now_ns.saturating_sub(held.last.ktime_ns) > PATIENCE_NS));
        passed
    }
}
