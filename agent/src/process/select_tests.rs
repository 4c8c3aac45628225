//! Selection among real processes.

use std::process::Command;

use super::*;
use crate::python::testing::Python;

fn selector(options: Options) -> Selector {
    Selector::try_from(options).unwrap()
}

fn error(options: Options) -> String {
    Selector::try_from(options).unwrap_err().to_string()
}

/// A Python that has a child of its own; the answer is the child's pid.
fn parent_and_child() -> Option<(Python, u32)> {
    let program = r"
import os, subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)
print(child.pid)
sys.stdout.flush()
sys.stdin.read()
";
    let python = Python::start("/usr/bin/python3", program)?;
    let child = u32::try_from(python.numbers()[0]).unwrap();
    Some((python, child))
}

#[test]
fn pids_and_their_descendants() {
    let Some((python, child)) = parent_and_child() else { return };
    let by_pid = selector(Options { pids: vec![python.pid()], ..Options::default() });
    assert!(by_pid.is_only_pids());
    assert!(by_pid.matches(python.pid()));
    assert!(by_pid.matches(child));
    assert!(!by_pid.matches(std::process::id()));
    let mut expected = [python.pid(), child];
    expected.sort_unstable();
    assert_eq!(by_pid.present(), expected);
    let of_child = selector(Options { pids: vec![child], ..Options::default() });
    assert!(!of_child.matches(python.pid()));
}

#[test]
fn everything_but_own_children() {
    let Some((python, child)) = parent_and_child() else { return };
    let everything = selector(Options::default());
    assert!(everything.is_everything() && !everything.is_only_pids());
    assert!(everything.matches(std::os::unix::process::parent_id()));
    for own in [std::process::id(), python.pid(), child] {
        assert!(!everything.matches(own));
    }
}

#[test]
fn executables() {
    let Some(python) = Python::start("/usr/bin/python3", "") else { return };
    let exe = std::fs::canonicalize("/usr/bin/python3").unwrap();
    for (glob, matches) in [
        (exe.to_str().unwrap(), true),
        ("/usr/bin/python3*", true),
        ("python3.*", true),
        ("python3", exe.file_name().unwrap() == "python3"),
        ("/opt/*", false),
        ("uvicorn", false),
    ] {
        let by_exe = selector(Options { exes: vec![glob.to_owned()], ..Options::default() });
        assert_eq!(by_exe.matches(python.pid()), matches, "{glob}");
    }
}

#[test]
fn listeners() {
    let program = r"
import socket, sys
listener = socket.create_server(('127.0.0.1', 0))
print(listener.getsockname()[1])
sys.stdout.flush()
sys.stdin.read()
";
    let Some(python) = Python::start("/usr/bin/python3", program) else { return };
    let port = u16::try_from(python.numbers()[0]).unwrap();
    let by_port = selector(Options { ports: vec![port], ..Options::default() });
    assert_eq!(by_port.present(), [python.pid()]);
}

#[test]
fn control_groups() {
    let Some(own) = cgroup::of_process(std::process::id()) else {
        eprintln!("skipped: no cgroup v2 hierarchy is mounted");
        return;
    };
    let Some(python) = Python::start("/usr/bin/python3", "") else { return };
    let by_group = selector(Options { cgroups: vec![own], ..Options::default() });
    assert!(by_group.matches(python.pid()));
    // A name that only starts the same is another group.
    let by_other = Selector { cgroups: vec![PathBuf::from("/no/such")], ..Selector::default() };
    assert!(!by_other.matches(python.pid()));
}

#[test]
fn a_group_of_its_own() {
    let Some(mount) = cgroup::mount_point() else {
        eprintln!("skipped: no cgroup v2 hierarchy is mounted");
        return;
    };
    let name = format!("pitviper-test-{}", std::process::id());
    let group = mount.join(&name);
    if let Err(error) = std::fs::create_dir(&group) {
        eprintln!("skipped: no cgroup can be made below {}: {error}", mount.display());
        return;
    }
    let found = {
        let python = Python::start("/usr/bin/python3", "").unwrap();
        std::fs::write(group.join("cgroup.procs"), python.pid().to_string()).unwrap();
        let present =
            |path: PathBuf| selector(Options { cgroups: vec![path], ..Options::default() }).present();
        [group.clone(), PathBuf::from(&name), PathBuf::from(format!("/{name}"))].map(present)
            == [[python.pid()], [python.pid()], [python.pid()]]
    };
    // The killed process leaves the group a moment after it was waited for.
    let removed = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        std::fs::remove_dir(&group).is_ok()
    });
    assert!(found && removed);
}

#[test]
fn mistakes_are_told_in_one_sentence() {
    let gone = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    for (options, expected) in [
        (
            Options { pids: vec![gone], ..Options::default() },
            format!("--pid {gone}: there is no such process"),
        ),
        (
            Options { pids: vec![u32::MAX], ..Options::default() },
            format!("--pid {}: there is no such process", u32::MAX),
        ),
        (
            Options { ports: vec![0], ..Options::default() },
            "--port 0: a port is a number from 1 to 65535".to_owned(),
        ),
    ] {
        assert_eq!(error(options), expected);
    }
    assert!(
        error(Options { exes: vec!["[".to_owned()], ..Options::default() })
            .starts_with("--exe [: not a valid glob: ")
    );
    if let Some(mount) = cgroup::mount_point() {
        assert_eq!(
            error(Options { cgroups: vec![PathBuf::from("no/such")], ..Options::default() }),
            format!("--cgroup no/such: there is no such cgroup below {}", mount.display())
        );
    }
}

#[test]
fn a_thread_is_no_process() {
    let tid = std::thread::spawn(|| {
        let thread = std::fs::read_link("/proc/thread-self").unwrap();
        let tid: u32 = thread.file_name().unwrap().to_str().unwrap().parse().unwrap();
        (tid, error(Options { pids: vec![tid], ..Options::default() }))
    });
    let (tid, message) = tid.join().unwrap();
    assert_eq!(message, format!("--pid {tid}: that is a thread; its process is {}", std::process::id()));
}
