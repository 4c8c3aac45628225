//! Encrypted connections: the plaintext is a connection of its own, and its socket only carries it.
//!
//! What is known of the socket (its ends, that its peer has finished, that it is closed) holds for what it carries. The
//! ciphertext is nothing, but for the name of the server that begins it: it makes no message, and is not counted among the
//! connections that were not understood. When the TLS connection ends before its socket, that may go on in the clear.

use pitviper_ebpf::abi::{SocketId, Verdict};

use super::hello;
use super::table::{Connections, Happening, NO_VERDICT, PATIENCE, State};
use crate::kernel::records::SocketData;

/// Calls of a handshake that are looked at. By then the plaintext is seen, and nothing of the socket, or it never will be; before that
/// the kernel side is not told to ignore the socket, which may go on in the clear when it carries TLS no more.
const HANDSHAKE: u8 = 24;
/// Sockets that are waited for.
const MOST_EARLY: usize = 1024;

impl Connections {
    /// It was found out over which socket a TLS connection goes.
    pub fn tls_bound(&mut self, tls: SocketId, socket: SocketId, out: &mut Vec<Happening>) {
        let Self { by_sock, stats, losses, .. } = self;
        let Some(carrier) = by_sock.get_mut(&socket.sock).filter(|known| known.peers.socket == socket) else {
            // It is announced by the same system call, a little later.
            if self.early.len() >= MOST_EARLY {
                self.early.clear();
            }
            self.early.insert(socket, tls);
            return;
        };
        let (address, server_name) = (carrier.peers.address, carrier.peers.server_name.clone());
        carrier.carries = Some(tls);
        if let Some(pid) = carrier.foreign_to.take() {
            stats.foreign -= 1;
            if let Some(losses) = losses.get_mut(&pid) {
                losses.foreign -= 1;
            }
        }
        if matches!(carrier.state, State::Detecting { .. }) {
            carrier.state = State::Ignored;
        }
        self.ensure(tls, out);
        if let Some(connection) = self.by_sock.get_mut(&tls.sock) {
            connection.peers.address = address;
            connection.peers.server_name = server_name;
            connection.carrier = Some(socket);
        }
    }

    /// Takes note of a ClientHello, and whom it asks for.
    pub(super) fn greeted(&mut self, data: &SocketData<'_>) {
        if data.socket.is_tls() || !hello::begins(data.head) {
            return;
        }
        if let Some(known) = self.by_sock.get_mut(&data.socket.sock) {
            known.patience = HANDSHAKE;
        }
        let Some(name) = hello::server_name(data.head) else { return };
        for socket in [Some(data.socket), self.carried(data.socket)].into_iter().flatten() {
            if let Some(known) =
                self.by_sock.get_mut(&socket.sock).filter(|known| known.peers.socket == socket)
            {
                known.peers.server_name = Some(name.into());
            }
        }
    }

    /// A TLS connection has ended. Its socket is as good as new: the kernel side has forgotten the verdict on it.
    pub(super) fn tls_ended(&mut self, tls: SocketId) {
        let carrier = self.by_sock.get(&tls.sock).filter(|known| known.peers.socket == tls);
        let Some(socket) = carrier.and_then(|known| known.carrier) else { return };
        let carrier = self.by_sock.get_mut(&socket.sock).filter(|known| known.peers.socket == socket);
        if let Some(carrier) = carrier.filter(|known| known.carries == Some(tls)) {
            carrier.carries = None;
            carrier.state = State::Detecting { buffered: Vec::new(), bytes: 0 };
            carrier.verdict = Verdict { inode: socket.inode, ..NO_VERDICT };
            carrier.patience = PATIENCE;
        }
    }

    /// The TLS connection that a socket carries.
    pub(super) fn carried(&self, socket: SocketId) -> Option<SocketId> {
        self.by_sock.get(&socket.sock).filter(|known| known.peers.socket == socket)?.carries
    }
}

#[cfg(test)]
mod tests {
    use pitviper_ebpf::abi::{TLS_MARK, Task};

    use super::*;
    use crate::kernel::records::{SocketAddress, SocketData};
    use crate::protocol::Event;

    const SOCKET: SocketId = SocketId { sock: 0xffff_8880_0000_1000, inode: 7 };
    const TLS: SocketId = SocketId { sock: 0x1234, inode: TLS_MARK | 99 };

    fn data(socket: SocketId, received: bool, position: u64, head: &[u8]) -> SocketData<'_> {
        SocketData {
            pid: 1,
            ktime_ns: 1,
            task: Task { tid: 1, turn: 0, context: 0 },
            clocks: pitviper_ebpf::abi::Clocks::NONE,
            socket,
            pipe: false,
            received,
            end: false,
            position,
            len: head.len() as u32,
            sequence: None,
            epoch: 0,
            head,
            tail: b"",
        }
    }

    fn address() -> SocketAddress {
        let [local, remote] = ["127.0.0.1:40000", "127.0.0.1:443"].map(|end| end.parse().unwrap());
        SocketAddress::Inet { local, remote }
    }

    /// A request over TLS; its socket is announced and bound at these steps.
    fn check(announced: usize, bound: usize) {
        let mut connections = Connections::default();
        let mut out = Vec::new();
        let hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
        for step in 0..4 {
            if step == announced {
                connections.opened(SOCKET, address(), &mut out);
                connections.data(&data(SOCKET, false, 0, hello), &mut out);
            }
            if step == bound {
                connections.tls_bound(TLS, SOCKET, &mut out);
            }
        }
        connections.data(&data(TLS, false, 0, b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"), &mut out);
        connections.data(&data(TLS, true, 0, b"HTTP/1.1 204 No Content\r\n\r\n"), &mut out);
        assert_eq!(connections.stats().foreign, 0);
        assert_eq!(connections.stats().recognised, [1, 0, 0]);
        assert_eq!(connections.losses(1).foreign, 0);
        let opened = out.iter().filter(|happening| matches!(happening.event, Event::Opened { .. }));
        let peers: Vec<_> =
            opened.map(|happening| (happening.peers.socket, happening.peers.address)).collect();
        assert_eq!(peers, [(TLS, Some(address()))]);
        connections.closed(SOCKET, 2, false, &mut out);
        assert!(connections.is_empty(), "what the socket carried is closed with it");
    }

    #[test]
    fn the_socket_says_who_the_ends_are() {
        check(0, 1);
        check(0, 0);
        check(1, 0);
        check(3, 0);
    }

    /// A ClientHello that asks for `db.example`, of which the rest is missing.
    const NAMED: &[u8] = b"\x16\x03\x01\0\x4d\x01\0\0\x49\x03\x03\
        \x01\x02\x03\x04\x05\x06\x07\x08\x01\x02\x03\x04\x05\x06\x07\x08\x01\x02\x03\x04\x05\x06\x07\x08\x01\x02\x03\x04\x05\x06\x07\x08\
        \0\0\x02\x13\x01\x01\0\0\x30\0\0\0\x0f\0\x0d\0\0\x0adb.example";

    #[test]
    fn the_hello_says_whom_the_client_wants() {
        let ssl_request = b"\0\0\0\x08\x04\xd2\x16\x2f";
        for before in [&[][..], &[(false, &ssl_request[..]), (true, b"S")]] {
            for bound_first in [false, true] {
                let mut connections = Connections::default();
                let mut out = Vec::new();
                connections.opened(SOCKET, address(), &mut out);
                let mut positions = [0, 0];
                for (received, bytes) in before.iter().copied().chain([(false, NAMED)]) {
                    if bound_first && bytes == NAMED {
                        connections.tls_bound(TLS, SOCKET, &mut out);
                    }
                    let position = &mut positions[usize::from(received)];
                    // It may go on in the clear.
                    assert_eq!(connections.data(&data(SOCKET, received, *position, bytes), &mut out), None);
                    *position += bytes.len() as u64;
                }
                if !bound_first {
                    connections.tls_bound(TLS, SOCKET, &mut out);
                }
                connections.data(&data(TLS, false, 0, b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"), &mut out);
                let name = out.last().unwrap().peers.server_name.as_deref();
                assert_eq!(name, Some("db.example"));
            }
        }
    }

    #[test]
    fn a_socket_goes_on_in_the_clear() {
        let mut connections = Connections::default();
        let mut out = Vec::new();
        connections.opened(SOCKET, address(), &mut out);
        assert_eq!(connections.data(&data(SOCKET, false, 0, NAMED), &mut out), None);
        connections.tls_bound(TLS, SOCKET, &mut out);
        connections.data(&data(TLS, false, 0, b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"), &mut out);
        connections.data(&data(TLS, true, 0, b"HTTP/1.1 204 No Content\r\n\r\n"), &mut out);
        connections.closed(TLS, 2, false, &mut out);
        let sent = NAMED.len() as u64;
        let verdict =
            connections.data(&data(SOCKET, false, sent, b"GET /b HTTP/1.1\r\nhost: a\r\n\r\n"), &mut out);
        assert_eq!(verdict, None);
        connections.data(&data(SOCKET, true, 0, b"HTTP/1.1 204 No Content\r\n\r\n"), &mut out);
        let opened = out.iter().filter(|happening| matches!(happening.event, Event::Opened { .. }));
        let sockets: Vec<_> = opened.map(|happening| happening.peers.socket).collect();
        assert_eq!(sockets, [TLS, SOCKET]);
        assert_eq!(connections.stats().gap_bytes, 0);
        assert_eq!(connections.stats().foreign, 0);
    }

    #[test]
    fn what_is_never_seen_is_ignored_in_the_end() {
        let mut connections = Connections::default();
        let mut out = Vec::new();
        connections.opened(SOCKET, address(), &mut out);
        let mut position = 0;
        let mut send = |bytes: &[u8]| {
            position += bytes.len() as u64;
            connections.data(&data(SOCKET, false, position - bytes.len() as u64, bytes), &mut out)
        };
        let mut verdicts = vec![send(NAMED)];
        verdicts.extend((0..HANDSHAKE).map(|_| send(b"\x17\x03\x03\0\x20\x7a\x01")));
        let last = verdicts.pop().unwrap();
        assert_eq!(last.map(|verdict| verdict.ignore), Some(1));
        assert_eq!(verdicts, vec![None; usize::from(HANDSHAKE)]);
        assert_eq!(connections.stats().foreign, 1);
    }

    #[test]
    fn plaintext_whose_socket_is_not_known_has_no_peer() {
        let mut connections = Connections::default();
        let mut out = Vec::new();
        connections.data(&data(TLS, true, 0, b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"), &mut out);
        assert!(out.iter().all(|happening| happening.peers.address.is_none()));
        // It is found out later, and holds for what comes then.
        connections.opened(SOCKET, address(), &mut out);
        connections.tls_bound(TLS, SOCKET, &mut out);
        connections.data(&data(TLS, false, 0, b"HTTP/1.1 204 No Content\r\n\r\n"), &mut out);
        let last = out.last().unwrap();
        assert!(matches!(last.event, Event::Closed { .. }), "{last:?}");
        assert_eq!(last.peers.address, Some(address()));
    }
}
