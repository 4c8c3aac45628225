//! The daemon's socket, and how `pitviper ps` finds and asks it.
//!
//! The socket is AF_UNIX with the abstract name `@pitviper-<pid>`: it vanishes with the daemon, however that ends
//! (unix(7), "Abstract sockets"), and several daemons do not meet. Anybody may connect to an abstract socket and
//! anybody may bind one, so that both ends look at the other's credentials (SO_PEERCRED) first: only root, and whoever
//! the daemon runs as, is answered or believed. Whoever connects gets one [`Report`] and the end of file. Neither end
//! waits long for the other. Abstract names belong to a network namespace: a daemon in another one is not found.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::inquiry::{Inquirer, Question};
use super::report::{FORMAT, Report};

/// What a name begins with; the daemon's pid follows.
const PREFIX: &str = "pitviper-";
/// How long a client may take to read the answer.
const SLOWEST_CLIENT: Duration = Duration::from_secs(3);
/// Clients at once; more are turned away.
const MOST_CLIENTS: usize = 8;
/// How long a daemon may take to answer.
const SLOWEST_DAEMON: Duration = Duration::from_secs(3);
/// The largest answer that is read.
const LARGEST_ANSWER: u64 = 16 << 20;

/// Begins to answer on the socket of this process. The socket is closed when the handle's task is aborted.
pub fn serve(inquirer: Inquirer, runtime: &Handle) -> io::Result<JoinHandle<()>> {
    let _entered = runtime.enter();
    let listener = UnixListener::bind(address(std::process::id()))?;
    Ok(runtime.spawn(accept(listener, inquirer)))
}

fn address(pid: u32) -> String {
    format!("\0{PREFIX}{pid}")
}

async fn accept(listener: UnixListener, inquirer: Inquirer) {
    let mut clients = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((client, _)) if clients.len() < MOST_CLIENTS && is_trusted(&client) => {
                let inquirer = inquirer.clone();
                clients.spawn(timeout(SLOWEST_CLIENT, answer(client, inquirer)));
            }
            Ok(_) => {}
            // Out of descriptors, for one: they come back.
            Err(error) => {
                log::debug!("a client of `pitviper ps` was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn answer(mut client: UnixStream, inquirer: Inquirer) {
    let Some(report) = inquirer.ask(Question::Present).await else { return };
    let Ok(text) = serde_json::to_vec(&report) else { return };
    // A client that has gone away is no failure.
    let _ = client.write_all(&text).await;
    let _ = client.shutdown().await;
}

/// Whether the other end runs as root, or as we do.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// Asks all daemons of this network namespace. Gives their reports, and a sentence for each that did not answer.
pub async fn ask_all() -> (Vec<Report>, Vec<String>) {
    // Without the list there is no daemon to ask.
    let sockets = std::fs::read("/proc/net/unix").unwrap_or_default();
    let mut answers = JoinSet::new();
    for pid in listening(&String::from_utf8_lossy(&sockets)) {
        answers.spawn(async move { (pid, timeout(SLOWEST_DAEMON, ask(pid)).await) });
    }
    let (mut reports, mut failures) = (Vec::new(), Vec::new());
    while let Some(Ok((pid, answer))) = answers.join_next().await {
        match answer.unwrap_or_else(|_| Err("it does not answer".to_owned())) {
            Ok(report) => reports.push(report),
            Err(reason) => failures.push(format!("the daemon {pid} tells nothing: {reason}")),
        }
    }
    reports.sort_by_key(|report| report.daemon);
    failures.sort_unstable();
    (reports, failures)
}

async fn ask(pid: u32) -> Result<Report, String> {
    let mut daemon = UnixStream::connect(address(pid)).await.map_err(|error| error.to_string())?;
    if !is_trusted(&daemon) {
        return Err("its socket is neither root's nor ours".to_owned());
    }
    let mut text = Vec::new();
    (&mut daemon).take(LARGEST_ANSWER).read_to_end(&mut text).await.map_err(|error| error.to_string())?;
    if text.is_empty() {
        return Err("it answers root only, and whoever it runs as".to_owned());
    }
    let report: Report =
        serde_json::from_slice(&text).map_err(|_| "its answer is not understood".to_owned())?;
    if report.format > FORMAT {
        return Err(format!("it is of version {}, newer than this one", report.version));
    }
    Ok(report)
}

/// The daemons in the text of `/proc/net/unix`: address, reference count, protocol, flags, type, state, inode, name.
/// Of the flags `__SO_ACCEPTCON` (0x10000, include/uapi/linux/net.h) marks what listens; connections have the name too.
fn listening(text: &str) -> Vec<u32> {
    const ACCEPTS: u32 = 0x10000;
    let mut pids: Vec<u32> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
            let pid = fields.nth(3)?.strip_prefix('@')?.strip_prefix(PREFIX)?.parse().ok()?;
            (flags & ACCEPTS != 0).then_some(pid)
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::inquiry;

    #[test]
    fn only_listening_sockets_are_found() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 51 @pitviper-4711\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 52 @pitviper-4712\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 53 /run/@pitviper-1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 54 @pitviper-\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 55\n";
        assert_eq!(listening(text), [4711]);
        for end in 0..text.len() {
            assert!(listening(&text[..end]).iter().all(|pid| "4711".starts_with(&pid.to_string())));
        }
    }

    /// One process has one socket, so that this is one test.
    #[tokio::test]
    async fn a_daemon_is_found_and_asked() {
        let (inquirer, questions) = inquiry::channel();
        let server = serve(inquirer, &Handle::current()).unwrap();
        let pid = std::process::id();
        let pipeline = std::thread::spawn(move || {
            let mut asked = 0;
            while asked < 2 {
                questions.answer(|_| {
                    asked += 1;
                    Report::new(pid)
                });
                std::thread::yield_now();
            }
        });
        // Clients that say nothing and read nothing hold nobody up.
        let _hanging = UnixStream::connect(address(pid)).await.unwrap();
        let (reports, _) = ask_all().await;
        assert_eq!(reports.iter().filter(|report| report.daemon == pid).count(), 1);
        pipeline.join().unwrap();
        // The pipeline has ended, and does not answer any more.
        let (reports, failures) = ask_all().await;
        assert!(reports.iter().all(|report| report.daemon != pid));
        assert!(failures.iter().any(|failure| failure.contains(&pid.to_string())), "{failures:?}");

        server.abort();
        let _ = server.await;
        // A socket of the same name at which nobody accepts, answers or ends.
        let wedged = UnixListener::bind(address(pid)).unwrap();
        let start = std::time::Instant::now();
        let (_, failures) = ask_all().await;
        assert!(failures.iter().any(|failure| failure.contains("does not answer")), "{failures:?}");
        assert!(start.elapsed() < SLOWEST_DAEMON * 2);
        drop(wedged);
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        assert!(!listening(&sockets).contains(&pid), "the socket outlives its listener");
    }
}
