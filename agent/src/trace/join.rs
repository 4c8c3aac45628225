//! Two observed processes at the two ends of one connection: the client exchange and the server exchange of a request.
//!
//! The request is the same if it is the same bytes of the same kernel connection. For TCP that is the 4-tuple and the
//! sequence number of the first byte, which both ends share, however late the agent came. For AF_UNIX it is the pair of
//! sockets and the request's own bytes, in order.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::causality::ExchangeKey;
use crate::protocol::MessageId;

/// Places that are remembered; beyond it the oldest is forgotten, and its server span starts a trace.
const MOST: usize = 32_768;

/// Where an exchange meets another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The other end of the connection.
    pub join: Option<JoinKey>,
    /// The other end of the queue that the message goes through.
    pub message: Option<MessageId>,
    /// The process of this end.
    pub pid: u32,
}

/// A request's place on a connection, the same for both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JoinKey {
    /// TCP.
    Tcp {
        /// The end that sends requests.
        client: SocketAddr,
        /// The end that answers.
        server: SocketAddr,
        /// Sequence number of the request's first byte.
        sequence: u32,
    },
    /// AF_UNIX.
    Unix {
        /// Kernel address of the answering end's socket.
        server_sock: u64,
        /// Hash of the request's first bytes.
        fingerprint: u64,
    },
}

/// Requests that one end has shown and the other has not yet.
#[derive(Default)]
pub(super) struct Joins {
    clients: HashMap<JoinKey, ExchangeKey>,
    servers: HashMap<JoinKey, ExchangeKey>,
    order: VecDeque<JoinKey>,
}

impl Joins {
    /// A server read this request; gives the client exchange that sent it, if that is known.
    pub(super) fn server(&mut self, join: JoinKey, key: ExchangeKey) -> Option<ExchangeKey> {
        let client = self.clients.remove(&join);
        if client.is_none() {
            self.servers.insert(join, key);
            self.remember(join);
        }
        client
    }

    /// A client sent this request; gives the server exchange that read it, if that is known.
    pub(super) fn client(&mut self, join: JoinKey, key: ExchangeKey) -> Option<ExchangeKey> {
        let server = self.servers.remove(&join);
        if server.is_none() {
            self.clients.insert(join, key);
            self.remember(join);
        }
        server
    }

    /// An exchange is gone.
    pub(super) fn forget(&mut self, join: Option<JoinKey>, key: ExchangeKey) {
        let Some(join) = join else { return };
        for side in [&mut self.clients, &mut self.servers] {
            if side.get(&join) == Some(&key) {
                side.remove(&join);
            }
        }
    }

    fn remember(&mut self, join: JoinKey) {
        self.order.push_back(join);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.clients.remove(&oldest);
            self.servers.remove(&oldest);
        }
    }
}
