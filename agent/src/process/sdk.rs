//! Tracers that are at work inside a process: which signs there are, and those that can be seen from outside.
//!
//! A process with an OpenTelemetry SDK exports the spans that pitviper would. By default it is left to its SDK: pitviper
//! exports no spans of it. Other tracers send elsewhere, so that nothing is doubled; they are told, and change nothing.
//! The signs in what a process sends and receives are [`crate::pipeline`]'s to find.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use clap::ValueEnum;

use super::environ::Environ;
use crate::python::elf::Elf;
use crate::python::maps;

/// What to do with processes that an OpenTelemetry SDK traces from inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SdkProcesses {
    /// Export no spans of them: their SDK does.
    #[default]
    Leave,
    /// Export spans of them too, in traces of their own where the SDK's are not known.
    Trace,
}

/// What shows that an OpenTelemetry SDK is at work in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It was started by `opentelemetry-instrument`, or as that does it: by OpenTelemetry's Kubernetes operator, say.
    AutoInstrumentation,
    /// It sent spans by OTLP.
    Exports,
    /// It put ids of spans that are its own into the `traceparent` of requests.
    Propagates,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AutoInstrumentation => "it was started with OpenTelemetry's auto-instrumentation",
            Self::Exports => "it exports spans of its own",
            Self::Propagates => "its requests carry span ids of its own",
        })
    }
}

/// Another tracer than OpenTelemetry's, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OtherTracer {
    /// `ddtrace-run` started the process, or ddtrace's library is loaded.
    Datadog,
    /// `newrelic-admin run-program` started it.
    NewRelic,
    /// Somebody's library that publishes the active span.
    Library(PathBuf),
}

impl fmt::Display for OtherTracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Datadog => f.write_str("Datadog's tracer"),
            Self::NewRelic => f.write_str("New Relic's agent"),
            Self::Library(path) => write!(f, "the tracer in {}", path.display()),
        }
    }
}

/// The directories in `PYTHONPATH` whose `sitecustomize.py` starts a tracer. `opentelemetry-instrument`, `ddtrace-run` and
/// `newrelic-admin` put theirs in front and replace themselves by the program, so that the command line says nothing.
const AUTO_INSTRUMENTATION: &str = "/opentelemetry/instrumentation/auto_instrumentation";
const DATADOG: &str = "/ddtrace/bootstrap";
const NEW_RELIC: &str = "/newrelic/bootstrap";

/// The thread-local variable by which a tracer publishes the active span: OpenTelemetry's enhancement proposal 4947.
/// ddtrace's native library defines it; OpenTelemetry's own SDK for Python does not.
const THREAD_CONTEXT: &str = "otel_thread_ctx_v1";

/// What a process's environment shows.
pub fn sign(environ: &Environ) -> Option<Sign> {
    (starts(environ, AUTO_INSTRUMENTATION) && may_export(environ)).then_some(Sign::AutoInstrumentation)
}

/// Whether an SDK in a process with this environment may export spans: nobody has forbidden it.
pub fn may_export(environ: &Environ) -> bool {
    let says = |name: &str, word: &str| {
        environ.get(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(word))
    };
    !says("OTEL_SDK_DISABLED", "true") && !says("OTEL_TRACES_EXPORTER", "none")
}

/// Another tracer in a process: by its environment, else by the libraries that it has loaded.
pub fn other_tracer(pid: u32, environ: &Environ) -> Option<OtherTracer> {
    if starts(environ, DATADOG) {
        return Some(OtherTracer::Datadog);
    }
    if starts(environ, NEW_RELIC) {
        return Some(OtherTracer::NewRelic);
    }
    let library = publishing_library(pid)?;
    let is_datadog = library.components().any(|part| part.as_os_str() == "ddtrace");
    Some(if is_datadog { OtherTracer::Datadog } else { OtherTracer::Library(library) })
}

fn starts(environ: &Environ, directory: &str) -> bool {
    let path = environ.get("PYTHONPATH").unwrap_or_default();
    path.split(':').any(|entry| entry.trim_end_matches('/').ends_with(directory))
}

/// The loaded library that defines [`THREAD_CONTEXT`]. Each file is read once over the agent's life.
fn publishing_library(pid: u32) -> Option<PathBuf> {
    static KNOWN: Mutex<Option<HashMap<(u64, PathBuf), bool>>> = Mutex::new(None);
    let mappings = maps::file_mappings(pid).ok()?;
    // Extension modules only: a library of the system's is no tracer.
    let modules = mappings.iter().filter(|mapping| {
        mapping.executable && mapping.path.components().any(|part| part.as_os_str() == "site-packages")
    });
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    for mapping in modules {
        let defines = *known.entry((mapping.inode, mapping.path.clone())).or_insert_with(|| {
            let file = maps::open(pid, mapping);
            let elf = file.ok().and_then(|opened| Elf::read(&opened.file, &[THREAD_CONTEXT]).ok());
            elf.is_some_and(|elf| elf.symbols.contains_key(THREAD_CONTEXT))
        });
        if defines {
            return Some(mapping.path.clone());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_in_the_environment() {
        let auto =
            "PYTHONPATH=/v/lib/python3.11/site-packages/opentelemetry/instrumentation/auto_instrumentation";
        for (environ, expected) in [
            (auto.to_owned(), true),
            (format!("{auto}/:/srv"), true),
            (format!("{auto}:/srv\0OTEL_TRACES_EXPORTER=console"), true),
            (format!("{auto}\0OTEL_TRACES_EXPORTER=none"), false),
            (format!("{auto}\0OTEL_SDK_DISABLED=True"), false),
            ("PYTHONPATH=/srv\0OTEL_TRACES_EXPORTER=otlp".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(sign(&Environ::parse(environ.as_bytes())).is_some(), expected, "{environ}");
        }
    }

    #[test]
    fn other_tracers_in_the_environment() {
        let other = |text: &str| other_tracer(std::process::id(), &Environ::parse(text.as_bytes()));
        assert_eq!(other("PYTHONPATH=/v/site-packages/ddtrace/bootstrap:/srv"), Some(OtherTracer::Datadog));
        assert_eq!(other("PYTHONPATH=/srv:/v/site-packages/newrelic/bootstrap"), Some(OtherTracer::NewRelic));
        assert_eq!(other("PYTHONPATH=/srv/ddtrace"), None);
        assert_eq!(other(""), None);
    }

    /// A real extension module with the symbol in a real process, compiled here; and one without.
    #[test]
    fn a_library_that_publishes_the_span_is_found() {
        use crate::python::testing::Python;
        use std::process::Command;
        let folder = std::env::temp_dir().join(format!("pitviper-publish-{}", std::process::id()));
        let packages = folder.join("site-packages");
        std::fs::create_dir_all(&packages).unwrap();
        for (name, code) in [("publishes", "__thread void *otel_thread_ctx_v1;"), ("plain", "int other;")] {
            let (source, library) = (folder.join("source.c"), packages.join(format!("{name}.so")));
            std::fs::write(&source, code).unwrap();
            let built =
                Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
            if !built.is_ok_and(|status| status.success()) {
                eprintln!("skipped: no C compiler");
                return;
            }
            let script = format!(
                "import ctypes, sys; ctypes.CDLL('{}'); print('ready'); sys.stdout.flush(); sys.stdin.read()",
                library.display()
            );
            let mut command = Command::new("/usr/bin/python3");
            let Some(python) = Python::start_command(command.args(["-c", &script])) else { return };
            let found = other_tracer(python.pid(), &Environ::default());
            let expected = (name == "publishes").then(|| OtherTracer::Library(library.clone()));
            assert_eq!(found, expected, "{name}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
