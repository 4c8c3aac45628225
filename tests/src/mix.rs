//! Requests as a crowd sends them: routes mixed at random, some half-sent, some pipelined, some given up in the middle.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::load::{CONCURRENCY, Connection, Reply};

/// What is mixed.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Routes; more often where they are listed more often.
    pub routes: &'static [&'static str],
    /// Whether the server takes requests that come before the response to the one before.
    pub pipelining: bool,
    /// In a thousand requests so many are given up: the client goes away before the response.
    pub given_up: u64,
}

impl Mix {
    /// Sends requests N of `numbers`, [`CONCURRENCY`] at once. Gives the replies with status 200; requests that were given
    /// up have none, and a route that fails on purpose may.
    pub fn run(&self, port: u16, numbers: Range<u64>) -> Result<Vec<Reply>> {
        let next = AtomicU64::new(numbers.start);
        let replies = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CONCURRENCY)
                .map(|_| scope.spawn(|| self.client(port, &next, numbers.end, &replies)))
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
        })?;
        Ok(replies.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn client(&self, port: u16, next: &AtomicU64, end: u64, replies: &Mutex<Vec<Reply>>) -> Result<()> {
        let mut connection = Connection::new(port);
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= end {
                return Ok(());
            }
            let mut random = Random(n);
            let path = |n: u64, random: &mut Random| {
                let route = self.routes.get(random.below(self.routes.len() as u64) as usize);
                format!("/{}/{n}", route.copied().unwrap_or_default())
            };
            let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n");
            let first = path(n, &mut random);
            let mut paths = vec![first.clone()];
            let choice = random.below(1000);
            if choice < self.given_up {
                connection.close();
                connection.send(request(&first).as_bytes())?;
                thread::sleep(Duration::from_millis(random.below(40)));
                connection.close();
                continue;
            }
            // A connection that the server has closed meanwhile costs the request: there is no telling how far it came.
            let sent = match choice % 8 {
                0 => {
                    let text = request(&first);
                    let (head, tail) = text.as_bytes().split_at(20);
                    connection.send(head).and_then(|()| {
                        thread::sleep(Duration::from_millis(random.below(10)));
                        connection.send(tail)
                    })
                }
                kind @ 1..=2 if self.pipelining => {
                    for further in 0..=random.below(2) {
                        // Numbers of their own, far from those that are counted up.
                        paths.push(path(n + 1_000_000_000 * (further + 1), &mut random));
                    }
                    let texts: Vec<_> = paths.iter().map(|path| request(path)).collect();
                    if kind == 1 {
                        connection.send(texts.concat().as_bytes())
                    } else {
                        texts.iter().try_for_each(|text| connection.send(text.as_bytes()))
                    }
                }
                _ => connection.send(request(&first).as_bytes()),
            };
            if sent.is_err() {
                connection.close();
                continue;
            }
            for path in &paths {
                let Ok(reply) = connection.reply(path, false) else {
                    connection.close();
                    break;
                };
                ensure!(matches!(reply.status, 200 | 500), "{path}: {}", reply.status);
                let closing = reply.header("connection") == Some("close");
                if reply.status == 200 {
                    replies.lock().unwrap_or_else(PoisonError::into_inner).push(reply);
                }
                if closing {
                    connection.close();
                    break;
                }
            }
            if random.below(6) == 0 {
                connection.close();
            }
        }
    }
}

/// SplitMix64: the same mix in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }
}
