//! Runs `pitviper run` for the demo and the bench, until it is ready and until it has flushed.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, interrupt, services::Service, workspace};

/// What it writes to standard error once every program is attached.
const READY: &str = "pitviper: ready";

/// Where its traces and warnings go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// To the terminal, like those of a pitviper that the user started.
    Everything,
    /// Nowhere; warnings are kept for an error message.
    Nothing,
}

/// A running pitviper; dropping it ends it.
pub(crate) struct Agent {
    service: Service,
    messages: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Agent {
    /// Attaches to `pids` and their descendants, and returns when it is ready.
    pub(crate) fn start(
        pids: &[u32],
        arguments: &[&str],
        environment: &[(&str, &str)],
        show: Show,
    ) -> Result<Self> {
        let mut command = command::new(workspace::daemon(true));
        command.arg("run").args(arguments);
        for pid in pids {
            command.args(["--pid", &pid.to_string()]);
        }
        // What the user's shell sets for other programs would change what is shown and measured.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stderr(Stdio::piped());
        command.stdout(if show == Show::Everything { Stdio::inherit() } else { Stdio::null() });
        let mut service = Service::spawn("pitviper", &mut command, PathBuf::new())?;
        let messages = Arc::new(Mutex::new(String::new()));
        let reader = service.child().stderr.take().map(|pipe| {
            let messages = Arc::clone(&messages);
            thread::spawn(move || collect(pipe, &messages, show))
        });
        let mut agent = Self { service, messages, reader };
        interrupt::wait_for("attaching", Duration::from_secs(60), || {
            agent.check_alive()?;
            Ok(agent.messages().contains(READY).then_some(()))
        })
        .with_context(|| format!("pitviper is not ready: {}", agent.messages().trim()))?;
        Ok(agent)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// An error with its own words if it has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        if self.service.check_alive().is_err() {
            self.finish_reading();
            bail!("pitviper ended: {}", self.messages().trim());
        }
        Ok(())
    }

    /// Ends it, which flushes; an error if that took too long or failed.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.service.stop().context("pitviper did not end within 6 s of SIGTERM")?;
        self.finish_reading();
        if !status.success() {
            bail!("pitviper failed ({status}): {}", self.messages().trim());
        }
        Ok(())
    }

    fn messages(&self) -> MutexGuard<'_, String> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of its output, after its end.
    fn finish_reading(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn collect(pipe: impl Read, messages: &Mutex<String>, show: Show) {
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        if show == Show::Everything && !line.contains(READY) {
            eprintln!("{line}");
        }
        let _ = writeln!(messages.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
    }
}
