//! Real services for the demo and the bench: started on free ports in a temporary folder, and always ended.
//!
//! A [`Service`] leads its own process group, so that its workers end with it and Ctrl-C does not reach them first.

pub(crate) mod postgres;
pub(crate) mod python;
pub(crate) mod redis;
pub(crate) mod scratch;
pub(crate) mod tls;

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::interrupt::{self, POLL};

/// How long a service has to end after its signal.
const GRACE: Duration = Duration::from_secs(6);

/// A running program; dropping it ends it and its process group.
pub(crate) struct Service {
    name: &'static str,
    child: Child,
    log: PathBuf,
    stop_signal: Signal,
}

impl Service {
    /// Starts `command` with its output in `<folder>/<name>.log`.
    pub(crate) fn start(name: &'static str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log);
        let (stdout, stderr) = open()
            .and_then(|file| Ok((file.try_clone()?, file)))
            .with_context(|| format!("failed to create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Self::spawn(name, command, log)
    }

    /// Starts `command` with the streams that it was given; `log` is quoted when it fails.
    pub(crate) fn spawn(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let child = command.process_group(0).spawn().with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name, child, log, stop_signal: Signal::TERM })
    }

    /// Makes it end by another signal than SIGTERM.
    pub(crate) fn set_stop_signal(&mut self, signal: Signal) {
        self.stop_signal = signal;
    }

    /// The kernel's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until `ready`; an early end is an error that quotes the log.
    pub(crate) fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let what = format!("the start of {}", self.name);
        interrupt::wait_for(&what, limit, || {
            self.check_alive()?;
            Ok(ready().then_some(()))
        })
        .with_context(|| self.tail())
    }

    /// Waits until something listens on a local port.
    pub(crate) fn wait_for_port(&mut self, port: u16) -> Result<()> {
        self.wait_until(Duration::from_secs(60), || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
    }

    /// An error if the program has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        if let Some(status) =
            self.child.try_wait().with_context(|| format!("failed to wait for {}", self.name))?
        {
            bail!("{} ended ({status}): {}", self.name, self.tail());
        }
        Ok(())
    }

    /// Asks the leader to end, then makes the group end; the leader's status unless it had to be killed.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        let _ = kill_process(pid, self.stop_signal);
        let end = Instant::now() + GRACE;
        let mut status = None;
        while status.is_none() && Instant::now() < end {
            thread::sleep(POLL);
            status = self.child.try_wait().ok().flatten();
        }
        // Workers that outlived their leader, or a leader that did not listen.
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.child.wait();
        status
    }

    /// The last lines of the log, for an error message.
    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(8)..].join("\n    ");
        format!("{} said:\n    {last}", self.name)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A TCP port that nothing uses now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a free port")?;
    Ok(listener.local_addr().context("failed to find a free port")?.port())
}
