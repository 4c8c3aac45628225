//! Runs `pitviper run` for the demo and the bench, and collects what it prints.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, IsTerminal as _, Read, stdout},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{command, services::Service, workspace};

/// A running pitviper; dropping it ends it.
pub(crate) struct Agent {
    service: Service,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Output {
    /// Whether lines of standard output go on to ours; what comes before is only counted.
    shown: AtomicBool,
    latest: Mutex<Option<Instant>>,
    errors: Mutex<String>,
}

impl Agent {
    /// Attaches to `pids` and their descendants.
    pub(crate) fn start(pids: &[u32], arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = command::new(workspace::daemon(true));
        command.arg("run").args(arguments).envs(environment.iter().copied());
        for pid in pids {
            command.args(["--pid", &pid.to_string()]);
        }
        if stdout().is_terminal() {
            command.env("CLICOLOR_FORCE", "1");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut service = Service::spawn("pitviper", &mut command, PathBuf::new())?;
        let output = Arc::new(Output::default());
        let child = service.child();
        let readers = [(child.stdout.take().map(boxed), true), (child.stderr.take().map(boxed), false)]
            .into_iter()
            .filter_map(|(pipe, is_stdout)| Some((pipe?, is_stdout)))
            .map(|(pipe, is_stdout)| {
                let output = Arc::clone(&output);
                thread::spawn(move || output.collect(pipe, is_stdout))
            })
            .collect();
        Ok(Self { service, output, readers })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Shows what it prints from now on.
    pub(crate) fn show(&self) {
        self.output.shown.store(true, Ordering::Relaxed);
    }

    /// How long it has been silent; nothing if it never printed.
    pub(crate) fn silence(&self) -> Option<Duration> {
        lock(&self.output.latest).map(|latest| latest.elapsed())
    }

    /// An error with its own words if it has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        if self.service.check_alive().is_err() {
            self.finish_reading();
            bail!("pitviper ended: {}", self.messages().trim());
        }
        Ok(())
    }

    /// What it wrote to standard error.
    pub(crate) fn messages(&self) -> String {
        lock(&self.output.errors).clone()
    }

    /// Waits for the end of its output, after its end.
    fn finish_reading(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    /// Ends it, which flushes; an error if that took too long or failed.
    pub(crate) fn stop(mut self) -> Result<String> {
        let status = self.service.stop().context("pitviper did not end within 6 s of SIGTERM")?;
        self.finish_reading();
        let messages = self.messages();
        if !status.success() {
            bail!("pitviper failed ({status}): {}", messages.trim());
        }
        Ok(messages)
    }
}

impl Output {
    fn collect(&self, pipe: Box<dyn Read>, is_stdout: bool) {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if is_stdout {
                *lock(&self.latest) = Some(Instant::now());
                if self.shown.load(Ordering::Relaxed) {
                    println!("{line}");
                }
            } else {
                let _ = writeln!(lock(&self.errors), "{line}");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn boxed(pipe: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(pipe)
}
