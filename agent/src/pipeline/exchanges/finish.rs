//! Exchanges that are over, to spans: what each protocol says of them, when they leave, and where their ends are.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Closed, Exchanges};
use crate::causality::ExchangeKey;
use crate::connection::Peers;
use crate::kernel::records::SocketAddress;
use crate::process::resource::Service;
use crate::protocol::{Outcome, Role};
use crate::trace::assembly::Finished;
use crate::trace::{self, Endpoint, Endpoints};

/// A server span waits no longer than this for the samples of its request: a worker thread's are known when its work has ended.
const SAMPLES_WAIT_NS: u64 = 250_000_000;

impl Exchanges {
    pub(super) fn finish(&mut self, closed: Closed, service: Arc<Service>) {
        let Closed { open, peers, connection: _, last, outcome } = closed;
        let endpoints = endpoints(&peers, open.role);
        let parts = match outcome {
            Outcome::Http(exchange) => trace::http::span_parts(&exchange, open.role, &endpoints),
            Outcome::Postgres(exchange) => trace::postgres::span_parts(&exchange, open.role, &endpoints),
            Outcome::Redis(exchange) if exchange.is_worth_a_span() => match &exchange.message {
                Some(message) => trace::celery::producer(message, &exchange, &endpoints),
                None => trace::redis::span_parts(&exchange, open.role, &endpoints),
            },
            Outcome::Celery(run) => trace::celery::consumer(&run),
            Outcome::Redis(exchange) => {
                self.housekeeping += u64::from(exchange.housekeeping);
                self.assembly.discarded(open.key);
                return;
            }
            Outcome::Discarded => {
                self.assembly.discarded(open.key);
                return;
            }
        };
        let end = self.clock.wall(last.ktime_ns);
        let finished = Finished { service, parts, end };
        if open.role == Role::Server && !self.questions.is_empty() {
            // Some of the samples whose request is not known yet may be its own.
            self.unhurried.push_back((open.key, last.ktime_ns, finished));
        } else {
            self.assembly.finished(open.key, last.ktime_ns, finished);
        }
    }

    /// Lets server spans go that have waited for their samples.
    pub(super) fn let_go(&mut self, now_ns: u64) {
        let waited = |(_, over_ns, _): &mut (ExchangeKey, u64, Finished)| {
            now_ns.saturating_sub(*over_ns) >= SAMPLES_WAIT_NS
        };
        while let Some((key, over_ns, finished)) = self.unhurried.pop_front_if(waited) {
            self.assembly.finished(key, over_ns, finished);
        }
    }
}

fn endpoints(peers: &Peers, role: Role) -> Endpoints {
    let (local, peer) = match &peers.address {
        Some(SocketAddress::Inet { local, remote }) => (Endpoint::Inet(*local), Endpoint::Inet(*remote)),
        Some(SocketAddress::Unix { path, .. }) => {
            // Clients do not bind: the path is the answering end's.
            let path = Some(path.as_bytes())
                .filter(|path| !path.is_empty())
                .map(|path| PathBuf::from(OsStr::from_bytes(path)));
            let (local, peer) = if role == Role::Server { (path, None) } else { (None, path) };
            (Endpoint::Unix(local), Endpoint::Unix(peer))
        }
        None => (Endpoint::Unknown, Endpoint::Unknown),
    };
    Endpoints { local, peer, encrypted: peers.socket.is_tls(), server_name: peers.server_name.clone() }
}
