//! What a Python process serves, told from how it was started.
//!
//! Takes a command line, a working directory and an environment; gives a server and a service name. Pure: the reading
//! of `/proc` and the looking at parents is [`super::naming`]'s.

use std::fmt;
use std::path::Path;

use super::command::{Command, Program, base_name};
use super::environ::Environ;
use super::target_name;

/// The program that serves requests or runs jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of products")]
pub enum Server {
    Aiohttp,
    Celery,
    Daphne,
    Django,
    FastApi,
    Flask,
    Granian,
    Gunicorn,
    Hypercorn,
    Uvicorn,
    Uwsgi,
    Waitress,
}

impl Server {
    /// By the name of its command or module.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "aiohttp" => Self::Aiohttp,
            "celery" => Self::Celery,
            "daphne" => Self::Daphne,
            "manage.py" | "django-admin" | "django" => Self::Django,
            "fastapi" | "fastapi_cli" => Self::FastApi,
            "flask" => Self::Flask,
            "granian" => Self::Granian,
            "gunicorn" | "gunicorn3" => Self::Gunicorn,
            "hypercorn" => Self::Hypercorn,
            "uvicorn" => Self::Uvicorn,
            "uwsgi" | "uwsgi-core" | "pyuwsgi" => Self::Uwsgi,
            "waitress-serve" | "waitress" => Self::Waitress,
            _ => return None,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aiohttp => "aiohttp",
            Self::Celery => "celery",
            Self::Daphne => "daphne",
            Self::Django => "django",
            Self::FastApi => "fastapi",
            Self::Flask => "flask",
            Self::Granian => "granian",
            Self::Gunicorn => "gunicorn",
            Self::Hypercorn => "hypercorn",
            Self::Uvicorn => "uvicorn",
            Self::Uwsgi => "uwsgi",
            Self::Waitress => "waitress",
        })
    }
}

/// A service name, or where to find one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// This.
    Is(String),
    /// The process is a worker that does not say whose: the parent knows.
    Parents,
    /// Nothing tells.
    Unknown,
}

/// What a process was found to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The server, when it is one of the known ones.
    pub server: Option<Server>,
    /// The service name.
    pub name: Name,
}

/// What there is to go by.
#[derive(Clone, Copy, Debug)]
pub struct Clues<'a> {
    /// `/proc/PID/cmdline`
    pub argv: &'a [String],
    /// `/proc/PID/cwd`
    pub cwd: Option<&'a Path>,
    /// `/proc/PID/environ`
    pub environ: &'a Environ,
}

/// Options of the servers that take no value, so that what follows is not taken for one.
#[rustfmt::skip]
const FLAGS: &[&str] = &[
    "--access-log", "--capture-output", "--check-config", "--daemon", "--debug", "--factory",
    "--preload", "--proxy-headers", "--reload", "--reuse-port", "--use-colors", "-D", "-v",
];

/// Tells what a process serves.
pub fn identify(clues: Clues<'_>) -> Identity {
    if let Some(identity) = clues.argv.first().and_then(|title| from_title(title, clues.cwd)) {
        return identity;
    }
    let command = Command::parse(clues.argv);
    let server = server_of(command.program);
    let name = match (server, command.program) {
        (Some(server), _) => served(server, command, clues),
        (None, Program::Code(code)) if is_worker(code) => Name::Parents,
        (None, Program::Code(_) | Program::Interactive) => Name::Unknown,
        (None, Program::Script(path) | Program::Binary(path)) => known(target_name::of_path(path, clues.cwd)),
        (None, Program::Module(module)) => known(target_name::of_module(module, clues.cwd)),
    };
    Identity { server, name }
}

/// The start of a spawned child of `multiprocessing`, or of Celery's fork of it.
fn is_worker(code: &str) -> bool {
    code.starts_with("from multiprocessing.")
        || code.starts_with("from billiard.")
        || code.contains("spawn_main(")
}

fn known(name: Option<String>) -> Name {
    name.map_or(Name::Unknown, Name::Is)
}

fn server_of(program: Program<'_>) -> Option<Server> {
    match program {
        Program::Script(path) => match base_name(path) {
            // `python site-packages/uvicorn/__main__.py`
            "__main__.py" => Server::from_name(path.rsplit('/').nth(1)?),
            name => Server::from_name(name),
        },
        Program::Binary(path) => Server::from_name(base_name(path)),
        Program::Module(module) => Server::from_name(module.split('.').next()?),
        Program::Code(_) | Program::Interactive => None,
    }
}

/// Titles that servers give their processes with `setproctitle`, which overwrites the command line.
fn from_title(title: &str, cwd: Option<&Path>) -> Option<Identity> {
    if let Some(rest) = title.strip_prefix("gunicorn: ") {
        // `gunicorn: worker [shop.wsgi:app]`; in the brackets is `--name` or the application.
        let inside =
            rest.split_once('[').and_then(|(_, inside)| inside.split_once(']')).map(|(inside, _)| inside);
        let name =
            inside.and_then(|inside| target_name::of_target(inside, cwd)).map_or(Name::Parents, Name::Is);
        return Some(Identity { server: Some(Server::Gunicorn), name });
    }
    if title.starts_with("[celery") {
        // `[celeryd: celery@host:MainProcess] -active- (-A shop worker)`; the pool's children say less.
        let args = title.rsplit_once('(').map(|(_, args)| args.trim_end_matches(')')).unwrap_or_default();
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        let command = Command { program: Program::Interactive, args: &args };
        let app = command.option(&["-A", "--app"]).and_then(|app| target_name::of_target(app, cwd));
        return Some(Identity { server: Some(Server::Celery), name: app.map_or(Name::Parents, Name::Is) });
    }
    None
}

/// The name of what a known server serves.
fn served(server: Server, command: Command<'_>, clues: Clues<'_>) -> Name {
    let Clues { cwd, environ, .. } = clues;
    let target = match server {
        Server::Celery => command.option(&["-A", "--app"]).or_else(|| environ.get("CELERY_APP")),
        Server::Flask => command.option(&["-A", "--app"]).or_else(|| environ.get("FLASK_APP")),
        Server::Django => {
            let settings = command.option(&["--settings"]).or_else(|| environ.get("DJANGO_SETTINGS_MODULE"));
            match (settings, command.program) {
                (None, Program::Script(path)) if base_name(path) == "manage.py" => Some(path),
                (settings, _) => settings,
            }
        }
        Server::Uwsgi => command
            .option(&["--module", "-w", "--wsgi"])
            .or_else(|| command.option(&["--wsgi-file", "--mount", "--file"])),
        Server::Gunicorn => command.option(&["--name", "-n"]).or_else(|| application(command)),
        Server::FastApi => command.positionals(FLAGS).find(|arg| !matches!(*arg, "run" | "dev")),
        Server::Aiohttp
        | Server::Daphne
        | Server::Granian
        | Server::Hypercorn
        | Server::Uvicorn
        | Server::Waitress => application(command),
    };
    let name = target.and_then(|target| target_name::of_target(target, cwd));
    known(name.or_else(|| target_name::of_folder(cwd?)))
}

/// The argument that names the application: the one of the form `module:attribute`, else the first that is no option.
fn application<'a>(command: Command<'a>) -> Option<&'a str> {
    let is_application = |arg: &&str| {
        arg.split_once(':').is_some_and(|(module, attribute)| {
            is_dotted(module) && attribute.starts_with(|c: char| c.is_alphabetic() || c == '_')
        })
    };
    command
        .positionals(FLAGS)
        .find(is_application)
        .or_else(|| command.positionals(FLAGS).find(|arg| is_dotted(arg)))
        // An option unknown here may have been taken to own it.
        .or_else(|| command.args.iter().map(String::as_str).find(is_application))
}

fn is_dotted(name: &str) -> bool {
    name.split('.').all(|part| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
    })
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
