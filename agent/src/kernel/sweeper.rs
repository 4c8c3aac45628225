//! A helper process that takes away the daemon's probe definitions if the daemon is killed.
//!
//! A definition does nothing by itself, but it outlives its maker (see [`super::tracefs`]). The helper sleeps on a pipe whose
//! other end only the daemon holds, so that the daemon's end, however it comes, wakes it.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::families::sweep;
use super::tracefs::Tracefs;

/// The hidden command that [`main`] runs as.
pub const COMMAND: &str = "sweep";
/// The kernel lets go of a dead daemon's events a moment after the pipe.
const RETRY: Duration = Duration::from_millis(50);
const RETRIES: usize = 200;

/// The helper. Dropping it ends it: the daemon takes its definitions away itself.
#[derive(Debug)]
pub struct Sweeper(Child);

impl Sweeper {
    /// Starts it.
    pub fn start() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("pitviper").arg(COMMAND).arg(std::process::id().to_string());
        // In a group of its own a Ctrl-C does not reach it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self)
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends at once when there is nothing to take away.
        let _ = self.0.wait();
    }
}

/// What the helper does: waits for the end of the daemon with this pid, and cleans up behind it.
pub fn main(daemon: u32) -> io::Result<()> {
    // SAFETY: no handler is installed; a service manager that ends the whole group sends SIGTERM to the helper too.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    let _ = io::stdin().read(&mut [0])?;
    let tracefs = Tracefs::open()?;
    for _ in 0..RETRIES {
        if sweep(&tracefs, |pid| pid == daemon).is_ok() {
            return Ok(());
        }
        std::thread::sleep(RETRY);
    }
    Ok(())
}
