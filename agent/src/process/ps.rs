//! The listing of Python processes that `pitviper ps` prints.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::command::{Command, Program};
use super::environ::Environ;
use super::identity::Server;
use super::naming::{self, Naming};
use super::{sdk, tree};
use crate::python::maps::without_deleted;
use crate::python::{Instance, Untraceable, Version, inspect};
use crate::tls;

/// How well a process can be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// By logical task: asyncio, threads, greenlets.
    Full,
    /// By thread only.
    Thread,
    /// It could be, and is left to the OpenTelemetry SDK in it.
    Left,
    /// Not at all.
    None,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Thread => "thread",
            Self::Left => "left",
            Self::None => "none",
        })
    }
}

/// A Python process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The kernel's tgid.
    pub pid: u32,
    /// Which CPython, where it could be told.
    pub version: Option<Version>,
    /// The file with the interpreter, as the process sees it.
    pub interpreter: Option<PathBuf>,
    /// What serves.
    pub server: Option<Server>,
    /// The service name.
    pub service: String,
    /// How well it can be traced.
    pub tier: Tier,
    /// If not fully, why.
    pub why: Option<String>,
    /// What else there is to say: a line each.
    pub notes: Vec<String>,
}

/// All Python processes, by service name and pid.
pub fn list() -> Vec<Row> {
    let mut rows: Vec<Row> = tree::all().into_iter().filter_map(row).collect();
    rows.sort_by(|a, b| (&a.service, a.pid).cmp(&(&b.service, b.pid)));
    rows
}

fn row(pid: u32) -> Option<Row> {
    let (version, interpreter, mut tier, mut why) = match inspect(pid) {
        Ok(Instance { version, interpreter, limit, .. }) => {
            let tier = if limit.is_some() { Tier::Thread } else { Tier::Full };
            (Some(version), Some(interpreter), tier, limit.map(|limit| limit.to_string()))
        }
        Err(Untraceable::NoSuchProcess | Untraceable::NotPython) => return None,
        Err(reason) => {
            let version = match reason {
                Untraceable::TooOld { version } => Some(version),
                _ => None,
            };
            // What may not be looked into is known by its command line alone.
            if version.is_none() && !looks_like_python(pid) {
                return None;
            }
            (
                version,
                std::fs::read_link(format!("/proc/{pid}/exe")).ok().map(without_deleted),
                Tier::None,
                Some(reason.to_string()),
            )
        }
    };
    let environ = Environ::read(pid).unwrap_or_default();
    if tier != Tier::None {
        if let Some(sign) = sdk::sign(&environ) {
            tier = Tier::Left;
            why = Some(format!("left to the OpenTelemetry SDK in it: {sign}"));
        } else if let Some(other) = sdk::other_tracer(pid, &environ) {
            let limit = why.map(|limit| format!("{limit}; ")).unwrap_or_default();
            why = Some(format!("{limit}{other} traces it too"));
        }
    }
    let Naming { server, name, own: _ } = naming::name(pid, &environ);
    let hidden = if matches!(tier, Tier::Full | Tier::Thread) { tls::hidden(pid) } else { Vec::new() };
    let notes = hidden.iter().map(ToString::to_string).collect();
    Some(Row { pid, version, interpreter, server, service: name, tier, why, notes })
}

fn looks_like_python(pid: u32) -> bool {
    naming::command_line(pid)
        .is_ok_and(|argv| !argv.is_empty() && !matches!(Command::parse(&argv).program, Program::Binary(_)))
}

/// Longest path shown whole, in characters.
const MAX_PATH: usize = 44;

/// Prints the listing as an aligned table; the reason for less than full tracing, and notes, are on lines of their own
/// below.
pub fn render(rows: &[Row], to: &mut impl io::Write) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(to, "no Python process is running, or none that may be seen: try it as root");
    }
    let header = ["PID", "SERVICE", "SERVER", "PYTHON", "TRACES", "INTERPRETER"].map(str::to_owned);
    let table: Vec<[String; 6]> = std::iter::once(header).chain(rows.iter().map(cells)).collect();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let width = |row: &[String; 6]| row.get(column).map_or(0, |cell| cell.chars().count());
        table.iter().map(width).max().unwrap_or(0)
    });
    let lines = |row: &Row| row.why.iter().chain(&row.notes).map(|line| printable(line)).collect();
    let lines: Vec<Vec<String>> = std::iter::once(Vec::new()).chain(rows.iter().map(lines)).collect();
    let indent = widths.first().copied().unwrap_or(0);
    for ([pid, service, server, python, traces, interpreter], lines) in table.iter().zip(&lines) {
        let [w0, w1, w2, w3, w4, _] = widths;
        writeln!(to, "{pid:>w0$}  {service:w1$}  {server:w2$}  {python:w3$}  {traces:w4$}  {interpreter}")?;
        for line in lines {
            writeln!(to, "{:indent$}  └ {line}", "")?;
        }
    }
    Ok(())
}

fn cells(row: &Row) -> [String; 6] {
    let Row { pid, version, interpreter, server, service, tier, why: _, notes: _ } = row;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        pid.to_string(),
        printable(service),
        or_dash(server.map(|server| server.to_string())),
        or_dash(version.map(|version| version.to_string())),
        tier.to_string(),
        or_dash(interpreter.as_ref().map(|path| shorten(&printable(&path.to_string_lossy()), MAX_PATH))),
    ]
}

/// Names come from other processes: no control character of theirs reaches the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Leaves out the middle of a text that is too long; its end tells most.
fn shorten(text: &str, limit: usize) -> String {
    let length = text.chars().count();
    if length <= limit {
        return text.to_owned();
    }
    let kept = limit.saturating_sub(1);
    let head = kept / 3;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length.saturating_sub(kept.saturating_sub(head))).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::testing::{PYENV, Python};

    #[test]
    fn lists_what_runs() {
        let interpreter = format!("{PYENV}/3.12.1/bin/python");
        let Some(traceable) = Python::start(&interpreter, "") else { return };
        let old = Python::start(&format!("{PYENV}/3.7.16/bin/python"), "");
        let rows = list();
        let find = |pid| rows.iter().find(|row| row.pid == pid);
        let row = find(traceable.pid()).unwrap();
        assert_eq!(row.version.unwrap().to_string(), "3.12.1");
        assert_eq!((row.tier, &row.why), (Tier::Full, &None));
        assert_eq!(row.service, "unknown_service:python");
        assert!(row.interpreter.as_ref().unwrap().ends_with("lib/libpython3.12.so.1.0"));
        if let Some(old) = old {
            let row = find(old.pid()).unwrap();
            assert_eq!(row.tier, Tier::None);
            assert!(row.why.as_ref().unwrap().contains("too old"), "{row:?}");
        }
        assert!(find(std::process::id()).is_none());
    }

    #[test]
    fn renders_a_table() {
        let row = |pid, service: &str, server, tier, why: Option<&str>| Row {
            pid,
            version: Version::from_text("3.12.1"),
            interpreter: Some(PathBuf::from(
                "/usr/local/lib/a/rather/deep/folder/of/things/libpython3.12.so.1.0",
            )),
            server,
            service: service.to_owned(),
            tier,
            why: why.map(str::to_owned),
            notes: Vec::new(),
        };
        let mut rows = [
            row(7, "orders\x1b[31m", Some(Server::Gunicorn), Tier::Thread, Some("because")),
            row(12345, "shop", None, Tier::Full, None),
        ];
        rows[1].notes = vec!["3 edges".to_owned(), "from\nafar".to_owned()];
        let mut text = Vec::new();
        render(&rows, &mut text).unwrap();
        // Escaped, for a line continuation would eat the indentation.
        let expected = "\x20 PID  SERVICE      SERVER    PYTHON  TRACES  INTERPRETER
    7  orders\u{fffd}[31m  gunicorn  3.12.1  thread  /usr/local/lib…f/things/libpython3.12.so.1.0
       └ because
12345  shop         -         3.12.1  full    /usr/local/lib…f/things/libpython3.12.so.1.0
       └ 3 edges
       └ from\u{fffd}afar
";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn shortening_counts_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("äöüäöüäöü", 7), "äö…üäöü");
        assert_eq!(shorten("abc", 0), "…");
    }
}
