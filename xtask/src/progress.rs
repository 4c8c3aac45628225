//! The list of steps on standard error: what is being done, how long it took, and what it says meanwhile.
//!
//! On a terminal the running step has a spinner with the latest line of its output; elsewhere a line at its start and
//! one at its end, so that a log shows where a run stands.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// One running step. Dropped without [`Step::done`] it is shown as failed.
pub(crate) struct Step {
    title: String,
    started: Instant,
    detail: Arc<Mutex<String>>,
    spinner: Option<Spinner>,
    finished: bool,
}

struct Spinner {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Step {
    /// Starts a step whose commands run quietly.
    pub(crate) fn begin(title: impl Into<String>) -> Self {
        let mut step = Self::silent(title);
        if stderr().is_terminal() {
            step.spinner = Some(Spinner::start(step.title.clone(), step.started, Arc::clone(&step.detail)));
        } else {
            eprintln!("  . {}", step.title);
        }
        step
    }

    /// Starts a step whose commands write to the terminal themselves, as cargo does.
    pub(crate) fn loud(title: impl Into<String>) -> Self {
        let step = Self::silent(title);
        eprintln!("  . {}", step.title);
        step
    }

    fn silent(title: impl Into<String>) -> Self {
        let (title, detail) = (title.into(), Arc::default());
        Self { title, started: Instant::now(), detail, spinner: None, finished: false }
    }

    /// Shows the latest thing that the running command said.
    pub(crate) fn say(&self, line: &str) {
        let line: String = line.trim().chars().filter(|c| !c.is_control()).take(70).collect();
        if !line.is_empty() {
            *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = line;
        }
    }

    /// Ends the step; `note` says what came out of it.
    pub(crate) fn done(mut self, note: &str) {
        self.finish("✓", note);
    }

    fn finish(&mut self, mark: &str, note: &str) {
        self.finished = true;
        if let Some(Spinner { stop, thread }) = self.spinner.take() {
            drop(stop);
            let _ = thread.join();
        }
        let separator = if note.is_empty() { "" } else { ": " };
        eprintln!("  {mark} {}{separator}{note} ({})", self.title, seconds(self.started.elapsed()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.finish("✗", "");
        }
    }
}

impl Spinner {
    fn start(title: String, started: Instant, detail: Arc<Mutex<String>>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            for frame in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏".chars().cycle() {
                let said = detail.lock().unwrap_or_else(PoisonError::into_inner).clone();
                eprint!("\r\x1b[K  {frame} {title} ({}) \x1b[2m{said}\x1b[0m", seconds(started.elapsed()));
                let _ = stderr().flush();
                if stopped.recv_timeout(Duration::from_millis(100)) != Err(mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
            }
            eprint!("\r\x1b[K");
        });
        Self { stop, thread }
    }
}

/// A duration as a person reads it.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        whole @ 10..60 => format!("{whole} s"),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        assert_eq!(seconds(Duration::from_millis(340)), "0.3 s");
        assert_eq!(seconds(Duration::from_secs(12)), "12 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
