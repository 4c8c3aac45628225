//! Runs the daemon under test: starts it on its targets, waits until it is attached, stops it, and tells what it said.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::collector::{Collector, Transport};
use crate::packages::target_directory;
use crate::process::{send_signal, wait_until};
use crate::spans::Span;

/// How long attaching may take on a loaded machine.
const ATTACH_LIMIT: Duration = Duration::from_secs(90);

/// A running daemon.
pub struct Agent {
    child: Child,
    stderr: Arc<Mutex<String>>,
    stdout: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

/// What a daemon left behind.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it wrote there.
    pub stdout: String,
    /// All it wrote there.
    pub stderr: String,
    /// Time from the signal to the exit.
    pub took: Duration,
}

/// The daemon's file: `$PITVIPER_BIN`, or the workspace's release build.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("PITVIPER_BIN")
        .map_or_else(|| target_directory().join("release/pitviper"), PathBuf::from);
    ensure!(
        path.exists(),
        "no {}: run `cargo xtask build --release` first, or set PITVIPER_BIN",
        path.display()
    );
    Ok(path)
}

/// Runs the daemon to its end, for options that make it end by itself.
pub fn run_to_end(arguments: &[&str]) -> Result<Finished> {
    let mut agent = Agent::spawn(arguments, &[])?;
    let status = wait_until("pitviper ends by itself", Duration::from_secs(30), || agent.ended())?;
    agent.collect(status, Duration::ZERO)
}

impl Agent {
    /// Starts `pitviper run ARGUMENTS` exporting to `collector` over gRPC, and waits until it is attached.
    pub fn start(arguments: &[&str], collector: &Collector) -> Result<Self> {
        Self::start_with(arguments, &collector.environment(Transport::Grpc))
    }

    /// Starts `pitviper run ARGUMENTS` with these environment variables, and waits until it is attached.
    pub fn start_with(arguments: &[&str], environment: &[(&str, String)]) -> Result<Self> {
        let mut agent = Self::spawn(&[&["run"], arguments].concat(), environment)?;
        let start = Instant::now();
        while !agent.stderr().contains("pitviper: ready") {
            if let Some(status) = agent.ended() {
                thread::sleep(Duration::from_millis(100));
                bail!("pitviper ended before it was ready ({status}): {}", agent.stderr());
            }
            ensure!(start.elapsed() < ATTACH_LIMIT, "pitviper is not ready: {}", agent.stderr());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    fn spawn(arguments: &[&str], environment: &[(&str, String)]) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (variable, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_"))
        {
            command.env_remove(variable);
        }
        // Short batches, so that a case does not wait five seconds for the default schedule.
        command.env("OTEL_BSP_SCHEDULE_DELAY", "500");
        // A receiver that two busy cores starve for seconds is not what the cases are about; `exporting` is.
        command.env("OTEL_BSP_MAX_QUEUE_SIZE", "65536");
        command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        let mut child = command.spawn().context("failed to start pitviper")?;
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(follow(pipe, &stdout));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(follow(pipe, &stderr));
        }
        Ok(Self { child, stderr, stdout, readers })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends SIGTERM and waits for the end; more than the promised five seconds (and slack for a busy machine) fail.
    pub fn stop(mut self) -> Result<Finished> {
        send_signal(self.pid(), libc::SIGTERM);
        self.wait(Duration::from_secs(10))
    }

    /// Waits for the daemon to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<Finished> {
        let start = Instant::now();
        let status = wait_until("pitviper ends", limit, || self.ended()).with_context(|| self.stderr())?;
        self.collect(status, start.elapsed())
    }

    /// Stops the daemon and gives every span that it says it exported.
    pub fn finish(self, collector: &Collector) -> Result<(Finished, Vec<Span>)> {
        let finished = self.stop()?;
        ensure!(finished.status.success(), "pitviper ended with {}: {}", finished.status, finished.stderr);
        // Beside the case's outcome: a loss explains what is missing.
        finished
            .stderr
            .lines()
            .filter(|line| line.contains("warning"))
            .for_each(|line| println!("        {line}"));
        let (exported, dropped) = finished.counts()?;
        ensure!(dropped == 0, "pitviper dropped {dropped} spans: {}", finished.stderr);
        let spans = collector.wait_for(exported).with_context(|| finished.stderr.clone())?;
        Ok((finished, spans))
    }

    fn collect(&mut self, status: ExitStatus, took: Duration) -> Result<Finished> {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let text = |shared: &Mutex<String>| shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Finished { status, stdout: text(&self.stdout), stderr: text(&self.stderr), took })
    }
}

impl Finished {
    /// Spans exported and dropped, by the daemon's last line.
    pub fn counts(&self) -> Result<(usize, usize)> {
        let line = self.stderr.lines().rev().find_map(|line| line.strip_prefix("pitviper: exported "));
        let line = line.with_context(|| format!("no line `pitviper: exported` in:\n{}", self.stderr))?;
        let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        let both = numbers.next().zip(numbers.next());
        both.with_context(|| format!("not `exported N spans, dropped M`: {line}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn follow(pipe: impl std::io::Read + Send + 'static, into: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while lines.by_ref().read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}
