//! What pitviper says on standard error while it works: one line a message, the same message not twice in a row.

use std::io::Write as _;
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger {
    level: LevelFilter,
    last: Mutex<String>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level && is_ours(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mark = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        let line = format!("pitviper: {mark}{}", record.args());
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last != line {
            // There is nowhere to complain about a closed standard error.
            let _ = writeln!(std::io::stderr(), "{line}");
            *last = line;
        }
    }

    fn flush(&self) {}
}

/// Libraries speak through `log` too; what they have to say is for debugging them.
fn is_ours(target: &str) -> bool {
    // The kernel programs' own messages come under the name of their crate, `pitviper_ebpf`.
    target.starts_with("pitviper")
}

/// Installs the logger; `verbose` counts the `-v` on the command line.
pub fn install(verbose: u8) {
    let level = if verbose == 0 { LevelFilter::Info } else { LevelFilter::Debug };
    let logger = Box::new(Logger { level, last: Mutex::new(String::new()) });
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}
