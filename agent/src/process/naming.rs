//! The service name of a process: its own word, what it was started as, or its parent's name if it is a worker.

use std::io;
use std::path::PathBuf;

use super::environ::Environ;
use super::identity::{Clues, Name, Server, identify};
use super::resource::own_attributes;
use super::tree;
use crate::python::maps::without_deleted;
use crate::trace::semconv::SERVICE_NAME;

/// What a service is called that nothing gives a name to, by OpenTelemetry's rule.
pub const UNKNOWN_SERVICE: &str = "unknown_service:python";
/// Workers of workers of workers; a chain longer than this has no name.
const MAX_GENERATIONS: usize = 8;

/// A process's server and service name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// The server, when it is one of the known ones.
    pub server: Option<Server>,
    /// The service name; [`UNKNOWN_SERVICE`] at worst.
    pub name: String,
    /// The process says the name itself, in its environment.
    pub own: bool,
}

/// The arguments of a process, or what it has put in their place.
pub fn command_line(pid: u32) -> io::Result<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let mut argv: Vec<String> =
        bytes.split(|&byte| byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    // An overwritten command line is padded with NULs.
    while argv.last().is_some_and(String::is_empty) {
        argv.pop();
    }
    Ok(argv)
}

/// Names a process. What cannot be read counts as not said.
pub fn name(pid: u32, environ: &Environ) -> Naming {
    let own_word = own_word(environ);
    let (mut server, mut name) = (None, None);
    for (generation, pid) in tree::lineage(pid).take(MAX_GENERATIONS).enumerate() {
        let argv = command_line(pid).unwrap_or_default();
        // A release that was replaced while it runs keeps its name.
        let cwd: Option<PathBuf> = std::fs::read_link(format!("/proc/{pid}/cwd")).ok().map(without_deleted);
        let identity = match generation {
            0 => identify(Clues { argv: &argv, cwd: cwd.as_deref(), environ }),
            _ => {
                let environ = Environ::read(pid).unwrap_or_default();
                identify(Clues { argv: &argv, cwd: cwd.as_deref(), environ: &environ })
            }
        };
        server = server.or(identity.server);
        match identity.name {
            Name::Is(found) => {
                name = Some(found);
                break;
            }
            Name::Parents => {}
            Name::Unknown => break,
        }
    }
    let own = own_word.is_some();
    Naming { server, own, name: own_word.or(name).unwrap_or_else(|| UNKNOWN_SERVICE.to_owned()) }
}

/// `OTEL_SERVICE_NAME`, which wins over a `service.name` in `OTEL_RESOURCE_ATTRIBUTES`.
fn own_word(environ: &Environ) -> Option<String> {
    let in_attributes =
        || own_attributes(environ).into_iter().find(|(key, _)| key == SERVICE_NAME).map(|(_, value)| value);
    let name = environ.get("OTEL_SERVICE_NAME").map(str::trim).map(str::to_owned);
    name.or_else(in_attributes).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::testing::Python;
    use std::process::{Command, Stdio};

    #[test]
    fn own_word_comes_first() {
        for (environ, name) in [
            ("OTEL_SERVICE_NAME=a\0OTEL_RESOURCE_ATTRIBUTES=service.name=b", Some("a")),
            ("OTEL_SERVICE_NAME=\0OTEL_RESOURCE_ATTRIBUTES=k=v,service.name=b%20c", Some("b c")),
            ("OTEL_RESOURCE_ATTRIBUTES=k=v", None),
            ("", None),
        ] {
            assert_eq!(own_word(&Environ::parse(environ.as_bytes())).as_deref(), name, "{environ}");
        }
    }

    /// A real spawned worker of a real script; the folder names the service.
    #[test]
    fn a_spawned_worker_has_its_parents_name() {
        const MAIN: &str = r"
import multiprocessing, sys, time
def work(queue):
    import os
    queue.put(os.getpid())
    time.sleep(60)
if __name__ == '__main__':
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    context.Process(target=work, args=(queue,), daemon=True).start()
    print(queue.get())
    sys.stdout.flush()
    sys.stdin.read()
";
        let folder = std::env::temp_dir().join(format!("pitviper-shop-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("main.py"), MAIN).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        let python = Python::start_command(command.arg("main.py").current_dir(&folder).stderr(Stdio::null()));
        std::fs::remove_dir_all(&folder).unwrap();
        let Some(python) = python else { return };
        let worker = u32::try_from(python.numbers()[0]).unwrap();
        let expected = folder.file_name().unwrap().to_str().unwrap();
        let named = |pid| name(pid, &Environ::read(pid).unwrap()).name;
        assert!(command_line(worker).unwrap().iter().any(|arg| arg.contains("spawn_main")));
        assert_eq!(named(python.pid()), expected, "although the folder is gone by now");
        assert_eq!(named(worker), expected);
        // End the worker with its parent's pipe: it is a daemon of a parent that is about to be killed.
        Command::new("kill").arg(worker.to_string()).status().unwrap();
    }
}
