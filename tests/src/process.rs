//! Child processes that never outlive the test: a command with a log file, its descendants, signals by pid.
//!
//! Knows nothing of what runs. A [`Tree`] ends its command and everything that this one started when it is dropped.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Sends `signal` to one process; whether it existed.
pub fn send_signal(pid: u32, signal: i32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    // SAFETY: kill(2) takes two integers and touches no memory of this process.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// A port of 127.0.0.1 that nobody listens on at the moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?.port())
}

/// Polls `condition` until it gives a value. `what` names it in the error.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// When a process started, in clock ticks since boot: with its pid, its identity.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// All processes below `root`, without `root`, parents before children.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found.split_off(1)
}

/// CPU time that a process and its descendants have used, in clock ticks.
fn cpu_ticks(root: u32) -> u64 {
    let used = |pid: u32| -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
    };
    std::iter::once(root).chain(descendants(root)).filter_map(used).sum()
}

/// Waits until a process and its descendants are through with their work: that they use no more CPU than an idle server's timers
/// do, for most of a second. On a busy machine work that goes on after the responses takes its time.
pub fn wait_until_idle(root: u32) {
    /// Clock ticks, of 70 in the time that is looked at.
    const IDLE: u64 = 3;
    for _ in 0..30 {
        let before = cpu_ticks(root);
        std::thread::sleep(Duration::from_millis(700));
        if cpu_ticks(root).saturating_sub(before) <= IDLE {
            return;
        }
    }
}

/// A running command and all that it started.
pub struct Tree {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Tree {
    /// Starts `command` with its output going to `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("failed to start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Pid of the command itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the command and its children wrote so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The exit status, if the command has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until something accepts connections on `port`, or the command ends.
    pub fn wait_for_port(&mut self, port: u16) -> Result<()> {
        let start = Instant::now();
        loop {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                bail!("{} ended at once ({status}):\n{}", self.name, self.log());
            }
            if start.elapsed() > Duration::from_secs(60) {
                bail!("{} does not listen on port {port} after 60 s:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the command to end with `signal`, and makes sure that nothing of it is left.
    pub fn stop(&mut self, signal: i32, patience: Duration) {
        let below: Vec<_> = descendants(self.pid()).into_iter().map(|pid| (pid, start_time(pid))).collect();
        if self.ended().is_none() {
            send_signal(self.pid(), signal);
        }
        let start = Instant::now();
        while self.ended().is_none() && start.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for (pid, started) in below {
            // A worker that lost its parent is still ours, unless its pid has a new owner.
            if started.is_some() && start_time(pid) == started {
                send_signal(pid, libc::SIGKILL);
            }
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.stop(libc::SIGTERM, Duration::from_secs(5));
    }
}
