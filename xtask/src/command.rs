//! Runs other programs: quietly inside a [`Step`], or with their output on the terminal.
//!
//! `cargo xtask` runs under `cargo run`, which sets variables for this package; [`new`] takes them away, so that a
//! second cargo, perhaps of another toolchain, starts as it would from the user's shell.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    interrupt::{self, POLL},
    progress::Step,
};

/// Lines of output shown with a failure.
const TAIL: usize = 25;

/// A command in the environment that the user's shell gave to cargo.
pub(crate) fn new(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_set_by_cargo_run) {
            command.env_remove(name);
        }
    }
    // cargo run puts its toolchain's libraries first, where another toolchain's rustc would find the wrong ones.
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        let kept = env::split_paths(&paths).filter(|path| !is_of_a_toolchain(path));
        match env::join_paths(kept) {
            Ok(kept) if !kept.is_empty() => command.env("LD_LIBRARY_PATH", kept),
            _ => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
    command
}

fn is_set_by_cargo_run(name: &str) -> bool {
    const USERS: [&str; 8] =
        ["HOME", "HTTP_", "NET_", "REGISTR", "TERM_", "TARGET_DIR", "BUILD_JOBS", "INCREMENTAL"];
    match name.strip_prefix("CARGO_") {
        Some(rest) => !USERS.iter().any(|prefix| rest.starts_with(prefix)),
        None => ["CARGO", "OUT_DIR", "RUST_RECURSION_COUNT"].contains(&name),
    }
}

fn is_of_a_toolchain(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "toolchains" || part.as_os_str() == "target")
}

/// Runs with output on the terminal.
pub(crate) fn loud(command: &mut Command) -> Result<()> {
    let child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("failed to start {}", name(command)))?;
    require_success(command, wait(child)?)
}

/// Runs quietly, `step` showing the latest line; what it wrote to standard output is the result.
pub(crate) fn quiet(step: &Step, command: &mut Command) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start {}", name(command)))?;
    let (lines, output) = mpsc::channel();
    for (pipe, is_stdout) in [(child.stdout.take().map(boxed), true), (child.stderr.take().map(boxed), false)]
    {
        let (Some(pipe), lines) = (pipe, lines.clone()) else { continue };
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let _ = lines.send((is_stdout, line));
            }
        });
    }
    drop(lines);
    let (mut stdout, mut all) = (String::new(), Vec::new());
    let mut keep = |(is_stdout, line): (bool, String)| {
        step.say(&line);
        if is_stdout {
            stdout.push_str(&line);
            stdout.push('\n');
        }
        all.push(line);
    };
    let status = loop {
        if let Some(status) = poll(&mut child)? {
            break status;
        }
        if let Ok(line) = output.recv_timeout(POLL) {
            keep(line);
        }
    };
    // A daemon that the command left behind may hold the pipe open: what has arrived by now is enough.
    while let Ok(line) = output.recv_timeout(POLL) {
        keep(line);
    }
    if !status.success() {
        let tail = all[all.len().saturating_sub(TAIL)..].join("\n    ");
        bail!("{} failed ({status}); it said:\n    {tail}", name(command));
    }
    Ok(stdout)
}

/// Standard output of a short command, or nothing if it cannot run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a program of this name is on the search path, and where.
pub(crate) fn which(program: &str) -> Option<std::path::PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn boxed(pipe: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(pipe)
}

fn wait(mut child: Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = poll(&mut child)? {
            return Ok(status);
        }
        thread::sleep(POLL);
    }
}

/// The child's status once it has one; an interrupt ends it first.
fn poll(child: &mut Child) -> Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait().context("failed to wait for a child process")? {
        interrupt::check()?;
        return Ok(Some(status));
    }
    if interrupt::requested() {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(child),
            rustix::process::Signal::TERM,
        );
        let _ = child.wait();
    }
    interrupt::check()?;
    Ok(None)
}

fn require_success(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// The command as a user would type it, shortened.
pub(crate) fn name(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args().take(6)).map(OsStr::to_string_lossy);
    format!("`{}`", words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_of_cargo_run_are_removed() {
        for (variable, removed) in [
            ("CARGO", true),
            ("CARGO_MANIFEST_DIR", true),
            ("CARGO_PKG_NAME", true),
            ("CARGO_HOME", false),
            ("CARGO_NET_OFFLINE", false),
            ("CARGO_REGISTRIES_X_INDEX", false),
            ("PATH", false),
        ] {
            assert_eq!(is_set_by_cargo_run(variable), removed, "{variable}");
        }
    }

    #[test]
    fn a_failure_says_which_command_and_what_it_said() {
        let step = Step::loud("a failing command");
        let error = quiet(&step, new("sh").args(["-c", "echo reason; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("`sh -c") && error.contains("reason"), "{error}");
    }
}
