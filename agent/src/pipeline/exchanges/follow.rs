//! What the walkers have learnt, to the causality and trace stages: an exchange opens, is answered, closes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Closed, Exchanges, Open};
use crate::causality::Moment;
use crate::connection::{Happening, Mark, Peers};
use crate::kernel::records::SocketAddress;
use crate::protocol::otlp::Signal;
use crate::protocol::{Event, Role};
use crate::trace::join::{JoinKey, Place};
use crate::trace::{Endpoint, Endpoints, propagation};

impl Exchanges {
    /// Takes what the walkers have learnt to the later stages.
    pub(super) fn follow(&mut self) {
        let mut happenings = std::mem::take(&mut self.happenings);
        for Happening { connection, peers, event } in happenings.drain(..) {
            match event {
                Event::Opened { exchange, role, first, head, trace, fingerprint } => {
                    self.last_key += 1;
                    let open = Open {
                        key: self.last_key,
                        role,
                        pid: head.pid,
                        tid: head.task.tid,
                        first_ns: first.ktime_ns,
                        since_ns: head.ktime_ns,
                    };
                    if role == Role::Server {
                        self.boundary(&head);
                    }
                    let place = Place {
                        join: join_key(&peers, role, &first, fingerprint),
                        message: trace.message,
                        pid: head.pid,
                    };
                    let start = self.clock.wall(first.ktime_ns);
                    self.tracers.opened(open.key, open.pid, role, &trace);
                    match role {
                        Role::Server => {
                            // A message that is served is a job of a pool process.
                            let is_job = trace.message.is_some();
                            let (begun, read) = (moment(&first), moment(&head));
                            if is_job {
                                self.engine.job_read(open.key, connection, begun, read);
                            } else {
                                self.engine.request_read(open.key, connection, begun, read);
                            }
                            let remote = propagation::remote_parent(&trace);
                            if let Some(timing) = &mut self.timing {
                                timing.request_opened(open.key);
                            }
                            self.assembly.server_opened(open.key, first.ktime_ns, start, remote, place);
                            // A job's result goes through another pipe, at which the kernel side would not withdraw it.
                            if let Some(publisher) = self.publisher.as_mut().filter(|_| !is_job)
                                && let Some(sent) = self.connections.sent(peers.socket)
                            {
                                publisher.request_read(open.key, peers.socket, &head, sent);
                            }
                        }
                        Role::Client => {
                            self.engine.operation(open.key, moment(&first));
                            if let Some(timing) = &mut self.timing {
                                let peer = endpoints(&peers, role).peer;
                                timing.operation_opened(open.key, first.ktime_ns, name(&peer));
                            }
                            self.assembly.client_opened(open.key, first.ktime_ns, start, place);
                        }
                    }
                    self.open.insert((connection, exchange), open);
                }
                Event::Telemetry { exchange, signal, mark } => {
                    let number = exchange.map(|exchange| (connection, exchange));
                    let role = number.and_then(|number| self.open.get(&number)).map(|open| open.role);
                    let role = role.unwrap_or(Role::Client);
                    self.tracers.telemetry(mark.pid, role, signal);
                    // Who receives telemetry serves a request like any other; but a span of what pitviper itself has sent
                    // would be one more to send. An export is no part of the application's work.
                    if (role == Role::Client || signal == Signal::OfPitviper)
                        && let Some(open) = number.and_then(|number| self.open.remove(&number))
                    {
                        if open.role == Role::Server {
                            self.engine.request_over(open.key, mark.ktime_ns, true);
                            if let Some(publisher) = &mut self.publisher {
                                publisher.over(open.key);
                            }
                        }
                        self.discard(open.key);
                    }
                }
                Event::Answered { exchange, mark } => {
                    self.boundary(&mark);
                    if let Some(open) = self.open.get(&(connection, exchange))
                        && open.role == Role::Server
                    {
                        self.engine.response_begun(open.key, moment(&mark));
                        if let Some(publisher) = &mut self.publisher {
                            publisher.answered(open.key, &mark);
                        }
                    }
                }
                Event::Closed { exchange, last, outcome } => {
                    if let Some(open) = self.open.remove(&(connection, exchange)) {
                        if open.role == Role::Server {
                            self.request_ends(open.pid);
                            self.engine.request_over(open.key, last.ktime_ns, outcome.bytes_lost());
                            if let Some(publisher) = &mut self.publisher {
                                publisher.over(open.key);
                            }
                        }
                        if let Some(timing) = self.timing.as_mut().filter(|_| open.role == Role::Client) {
                            timing.operation_over(open.key, last.ktime_ns);
                        }
                        self.closed.push(Closed { open, peers, connection, last, outcome });
                    }
                }
            }
        }
        self.happenings = happenings;
    }
}

fn moment(mark: &Mark) -> Moment {
    Moment { pid: mark.pid, ktime_ns: mark.ktime_ns, task: mark.task }
}

fn join_key(peers: &Peers, role: Role, first: &Mark, fingerprint: u64) -> Option<JoinKey> {
    match (peers.address?, role) {
        (SocketAddress::Inet { local, remote }, Role::Client) => {
            Some(JoinKey::Tcp { client: local, server: remote, sequence: first.sequence? })
        }
        (SocketAddress::Inet { local, remote }, Role::Server) => {
            Some(JoinKey::Tcp { client: remote, server: local, sequence: first.sequence? })
        }
        (SocketAddress::Unix { peer_sock, .. }, Role::Client) => {
            Some(JoinKey::Unix { server_sock: peer_sock, fingerprint })
        }
        (SocketAddress::Unix { .. }, Role::Server) => {
            Some(JoinKey::Unix { server_sock: peers.socket.sock, fingerprint })
        }
    }
}

/// A peer, as the attributes of the time that was spent waiting for it name it.
fn name(peer: &Endpoint) -> Arc<str> {
    match peer {
        Endpoint::Inet(address) => address.to_string().into(),
        Endpoint::Unix(Some(path)) => path.display().to_string().into(),
        Endpoint::Unix(None) => "unix".into(),
        Endpoint::Unknown => "unknown".into(),
    }
}

pub(super) fn endpoints(peers: &Peers, role: Role) -> Endpoints {
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
