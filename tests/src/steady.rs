//! Load that goes on while something happens to the service: who is not answered tries the next number.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::load::{CONCURRENCY, Connection, Reply};

/// Clients of one service, each request on a connection of its own.
pub struct Steady {
    port: u16,
    route: &'static str,
    next: AtomicU64,
}

/// What came of it.
pub struct Outcome<T> {
    /// What happened meanwhile.
    pub value: T,
    /// Requests that were answered with 200.
    pub replies: Vec<Reply>,
    /// Requests that were not.
    pub failures: u64,
}

impl Steady {
    /// Of the service on `port`, numbered from `first`.
    pub fn new(port: u16, route: &'static str, first: u64) -> Self {
        Self { port, route, next: AtomicU64::new(first) }
    }

    /// Sends requests until `happens` has returned.
    pub fn during<T>(&self, happens: impl FnOnce() -> Result<T>) -> Result<Outcome<T>> {
        let (stop, failures) = (AtomicBool::new(false), AtomicU64::new(0));
        let replies = Mutex::new(Vec::new());
        let value = thread::scope(|scope| {
            for _ in 0..CONCURRENCY {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let n = self.next.fetch_add(1, Ordering::Relaxed);
                        match Connection::new(self.port)
                            .get(&format!("/{}/{n}", self.route), "connection: close\r\n")
                        {
                            // Of a server that was killed there may be half an answer.
                            Ok(reply) if reply.status == 200 && reply.operations().is_ok() => {
                                replies.lock().unwrap_or_else(PoisonError::into_inner).push(reply);
                            }
                            _ => {
                                failures.fetch_add(1, Ordering::Relaxed);
                                // Nobody listens at the moment.
                                thread::sleep(Duration::from_millis(20));
                            }
                        }
                    }
                });
            }
            let value = happens();
            stop.store(true, Ordering::Relaxed);
            value
        })?;
        let replies = replies.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Outcome { value, replies, failures: failures.into_inner() })
    }
}
