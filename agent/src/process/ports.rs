//! Which process listens on a TCP port, as seen from that process's own network namespace.

use std::collections::HashSet;

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};

/// Whether a process holds a socket that listens on one of these ports.
pub fn listens_on(pid: u32, ports: &[u16]) -> bool {
    let Some(process) = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()) else { return false };
    let tables = [process.tcp(), process.tcp6()];
    let sockets: HashSet<u64> = tables
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == TcpState::Listen && ports.contains(&entry.local_address.port()))
        .map(|entry| entry.inode)
        .collect();
    if sockets.is_empty() {
        return false;
    }
    let Ok(descriptors) = process.fd() else { return false };
    descriptors.flatten().any(|descriptor| match descriptor.target {
        FDTarget::Socket(inode) => sockets.contains(&inode),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_own_listeners_only_while_they_listen() {
        let own = std::process::id();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert!(listens_on(own, &[1, port]), "{address}");
            assert!(!listens_on(std::os::unix::process::parent_id(), &[port]));
            drop(listener);
            assert!(!listens_on(own, &[port]));
        }
    }
}
