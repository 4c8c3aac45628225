//! A service's name from the module, file or folder that is run, passing over names that say nothing.

use std::path::{Path, PathBuf};

/// Names of modules and files that say what something is, not which one: `main`, `wsgi`.
#[rustfmt::skip]
const GENERIC: &[&str] = &[
    "__init__", "__main__", "app", "application", "apps", "asgi", "celery", "celery_app", "celeryapp",
    "cli", "code", "config", "conf", "core", "entrypoint", "index", "main", "manage", "project", "run",
    "server", "service", "settings", "src", "start", "web", "wsgi",
];
/// Names of folders that say nothing either; `/app` is where containers keep everything.
#[rustfmt::skip]
const GENERIC_FOLDERS: &[&str] = &[
    "bin", "build", "current", "data", "dist-packages", "home", "html", "lib", "local", "mnt", "opt",
    "releases", "repo", "root", "sbin", "share", "site-packages", "srv", "tmp", "usr", "var", "work",
    "workdir", "workspace", "www",
];

/// `shop.main:app`, `shop.main`, `shop/main.py`, `shop/main.py:app`
pub(super) fn of_target(target: &str, cwd: Option<&Path>) -> Option<String> {
    let target = target.split(':').next()?;
    if target.contains('/') || target.ends_with(".py") {
        return of_path(target, cwd);
    }
    let mut parts = target.split('.').filter(|part| !part.is_empty());
    let first = parts.clone().next()?;
    let telling = parts.find(|part| !GENERIC.contains(part)).map(str::to_owned);
    telling.or_else(|| of_folder(cwd?)).or_else(|| Some(first.to_owned()))
}

/// `python -m shop.worker` is `shop.worker`, for another module of `shop` is another program; `shop.main` is `shop`.
pub(super) fn of_module(module: &str, cwd: Option<&Path>) -> Option<String> {
    let mut name = module;
    while let Some((package, last)) = name.rsplit_once('.') {
        if !matches!(last, "__main__" | "main" | "app" | "run" | "cli") {
            return Some(name.to_owned());
        }
        name = package;
    }
    of_target(name, cwd)
}

/// `jobs/cleanup.py` is `cleanup`; `shop/main.py` is `shop`.
pub(super) fn of_path(path: &str, cwd: Option<&Path>) -> Option<String> {
    let path: PathBuf = cwd.unwrap_or(Path::new("")).join(path);
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".py").or_else(|| name.strip_suffix(".pyc")).unwrap_or(name);
    if !GENERIC.contains(&stem) {
        return Some(stem.to_owned());
    }
    path.parent().and_then(of_folder).or_else(|| Some(stem.to_owned()))
}

/// The nearest folder upwards that has a telling name.
pub(super) fn of_folder(path: &Path) -> Option<String> {
    path.ancestors().take(3).find_map(|folder| {
        let name = folder.file_name()?.to_str()?;
        let is_user = folder.parent() == Some(Path::new("/home"));
        let telling = !is_user && !GENERIC.contains(&name) && !GENERIC_FOLDERS.contains(&name);
        telling.then(|| name.to_owned())
    })
}
