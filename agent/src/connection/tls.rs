//! Encrypted connections: the plaintext is a connection of its own, and its socket only carries it.
//!
//! What is known of the socket (its ends, that its peer has finished, that it is closed) holds for what it carries. The
//! ciphertext is nothing: it makes no message, and is not counted among the connections that were not understood.

use pitviper_ebpf::abi::SocketId;

use super::table::{Connections, Happening, State};

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
        let address = carrier.peers.address;
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
