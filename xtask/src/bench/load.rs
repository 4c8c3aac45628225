//! The load generator: keep-alive connections, as fast as answers come or at a fixed rate.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustls::ClientConfig;

use crate::{http::Client, interrupt};

/// How requests follow each other on all connections together.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// The next one when the answer is there.
    Saturate,
    /// So many per second; latency counts from the time at which a request was due, sent late or not.
    PerSecond(f64),
}

/// What to send, and for how long.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) port: u16,
    /// For TLS.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) connections: u32,
    pub(crate) pace: Pace,
    pub(crate) duration: Duration,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    /// Of every request, ascending.
    latencies: Vec<Duration>,
}

impl Load {
    /// Sends it; a status other than 200 is an error.
    pub(crate) fn run(self) -> Result<Outcome> {
        let start = Instant::now();
        let load = Arc::new(self);
        let workers: Vec<_> = (0..load.connections)
            .map(|worker| {
                let load = Arc::clone(&load);
                thread::spawn(move || load.work(worker, start))
            })
            .collect();
        let mut latencies = Vec::new();
        for worker in workers {
            latencies.extend(worker.join().unwrap_or_else(|_| bail!("a load worker panicked"))?);
        }
        let elapsed = start.elapsed();
        interrupt::check()?;
        latencies.sort_unstable();
        Ok(Outcome { elapsed, latencies })
    }

    fn work(&self, worker: u32, start: Instant) -> Result<Vec<Duration>> {
        let Self { port, ref tls, connections, pace, duration } = *self;
        let mut client = Client::connect_with(port, tls.as_ref())?;
        let mut latencies = Vec::new();
        for turn in 0_u32.. {
            let due = match pace {
                Pace::Saturate => Instant::now(),
                Pace::PerSecond(rate) => {
                    let number = f64::from(turn) * f64::from(connections) + f64::from(worker);
                    start + Duration::from_secs_f64(number / rate)
                }
            };
            if due >= start + duration || interrupt::requested() {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let path = format!("/work/{}", 1 + (turn + worker) % 20);
            let status = client.request("GET", &path, "pitviper-bench", "")?;
            if status != 200 {
                bail!("the bench's service answered {status}");
            }
            latencies.push(due.elapsed());
        }
        Ok(latencies)
    }
}

impl Outcome {
    pub(crate) fn requests(&self) -> f64 {
        self.latencies.len() as f64
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.requests() / self.elapsed.as_secs_f64()
    }

    /// The latency that this share of the requests did not exceed, in milliseconds.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        let rank = (share * self.requests()).ceil() as usize;
        let latency = self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default();
        latency.as_secs_f64() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let outcome = Outcome {
            elapsed: Duration::from_secs(2),
            latencies: (1..=200).map(Duration::from_millis).collect(),
        };
        assert_eq!([0.5, 0.99, 1.0].map(|share| outcome.quantile_ms(share)), [100.0, 198.0, 200.0]);
        assert_eq!(outcome.per_second(), 100.0);
    }

    #[test]
    fn a_fixed_rate_is_kept() {
        let port = crate::http::serve(|_| b"").unwrap();
        let load = Load {
            port,
            tls: None,
            connections: 4,
            pace: Pace::PerSecond(200.0),
            duration: Duration::from_millis(500),
        };
        assert_eq!(load.run().unwrap().requests(), 100.0);
    }
}
