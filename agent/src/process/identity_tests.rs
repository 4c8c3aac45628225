//! Command lines as they are seen in the wild, and what they serve.

use super::*;

/// `line` is the command line with `|` between arguments; the environment is `KEY=value` words.
fn check(line: &str, cwd: &str, environ: &str, server: Option<Server>, name: &str) {
    let argv: Vec<String> = line.split('|').map(str::to_owned).collect();
    let environ = Environ::parse(environ.replace(' ', "\0").as_bytes());
    let identity = identify(Clues { argv: &argv, cwd: Some(Path::new(cwd)), environ: &environ });
    let name = match name {
        "^" => Name::Parents,
        "?" => Name::Unknown,
        name => Name::Is(name.to_owned()),
    };
    assert_eq!(identity, Identity { server, name }, "{line} in {cwd} with {environ:?}");
}

#[test]
fn asgi_and_wsgi_servers() {
    use Server::*;
    for (line, server, name) in [
        ("python3|/usr/local/bin/uvicorn|shop.main:app", Uvicorn, "shop"),
        ("python|-m|uvicorn|pkg.app:create|--factory", Uvicorn, "pkg"),
        ("python|-m|uvicorn|--factory|pkg.app:create", Uvicorn, "pkg"),
        ("python|/v/bin/uvicorn|--host|0.0.0.0|--port|8000|--log-level|info|shop.main:app", Uvicorn, "shop"),
        ("python|/v/bin/uvicorn|--host=::|shop.main:app|--workers|4", Uvicorn, "shop"),
        ("python|/v/bin/uvicorn|main:app", Uvicorn, "orders"),
        ("python|/v/bin/uvicorn|app.main:app", Uvicorn, "orders"),
        ("python|/v/bin/uvicorn|src.shop.main:app", Uvicorn, "shop"),
        ("python|/v/lib/python3.11/site-packages/uvicorn/__main__.py|shop:app", Uvicorn, "shop"),
        ("python|/v/bin/gunicorn|-w|2|orders.wsgi:app", Gunicorn, "orders"),
        ("python|/v/bin/gunicorn|orders:app", Gunicorn, "orders"),
        ("python|/v/bin/gunicorn|-k|uvicorn.workers.UvicornWorker|-b|:8000|shop.main:app", Gunicorn, "shop"),
        ("python|/v/bin/gunicorn|-b|localhost:8000|-b|unix:/run/x.sock|shop", Gunicorn, "shop"),
        ("python|/v/bin/gunicorn|--preload|shop:create_app()", Gunicorn, "shop"),
        ("python|/v/bin/gunicorn|-n|checkout|shop:app", Gunicorn, "checkout"),
        ("python|-m|gunicorn.app.wsgiapp|shop.wsgi", Gunicorn, "shop"),
        ("python|/v/bin/gunicorn|-c|gunicorn.conf.py", Gunicorn, "orders"),
        ("gunicorn: master [orders]", Gunicorn, "orders"),
        ("gunicorn: worker [orders.wsgi:app]", Gunicorn, "orders"),
        ("gunicorn: worker [main:app]", Gunicorn, "orders"),
        ("gunicorn: worker", Gunicorn, "^"),
        ("python|/v/bin/hypercorn|--bind|0.0.0.0:80|shop.main:app", Hypercorn, "shop"),
        ("python|/v/bin/daphne|-p|8001|shop.asgi:application", Daphne, "shop"),
        ("python|/v/bin/granian|--interface|asgi|shop.main:app", Granian, "shop"),
        ("python|/v/bin/waitress-serve|--port=80|shop.wsgi:app", Waitress, "shop"),
        ("python|-m|aiohttp.web|-P|8080|shop.main:init", Aiohttp, "shop"),
        ("/usr/bin/uwsgi|--http|:80|--module|shop.wsgi:app", Uwsgi, "shop"),
        ("/usr/bin/uwsgi|--ini|/etc/uwsgi.ini", Uwsgi, "orders"),
    ] {
        check(line, "/srv/orders", "", Some(server), name);
    }
}

#[test]
fn frameworks_and_workers() {
    use Server::*;
    for (line, environ, server, name) in [
        ("python|/v/bin/flask|--app|shop|run", "", Flask, "shop"),
        ("python|-m|flask|--app=shop.web:create_app()|run", "", Flask, "shop"),
        ("python|-m|flask|run|-p|80", "FLASK_APP=shop/app.py", Flask, "shop"),
        ("python|-m|flask|run", "FLASK_APP=billing", Flask, "billing"),
        ("python|-m|flask|run", "", Flask, "orders"),
        ("python|manage.py|runserver|0:8000", "", Django, "orders"),
        ("python|/srv/shop/manage.py|runserver", "", Django, "shop"),
        ("python|manage.py|runserver", "DJANGO_SETTINGS_MODULE=shop.settings.production", Django, "shop"),
        ("python|manage.py|runserver|--settings=billing.settings", "", Django, "billing"),
        ("python|-m|django|runserver", "DJANGO_SETTINGS_MODULE=config.settings", Django, "orders"),
        ("python|/v/bin/celery|-A|proj|worker|-l|INFO", "", Celery, "proj"),
        ("python|-m|celery|--app=proj.celery_app|worker", "", Celery, "proj"),
        ("python|/v/bin/celery|worker", "CELERY_APP=proj.celery:app", Celery, "proj"),
        ("[celeryd: celery@host:MainProcess] -active- (-A proj worker -l info)", "", Celery, "proj"),
        ("[celeryd: celery@host:ForkPoolWorker-1]", "", Celery, "^"),
        ("python|/v/bin/fastapi|run|app/main.py", "", FastApi, "orders"),
        ("python|/v/bin/fastapi|dev|--port|80|shop/main.py", "", FastApi, "shop"),
        ("python|/v/bin/fastapi|run", "", FastApi, "orders"),
    ] {
        check(line, "/srv/orders", environ, Some(server), name);
    }
}

#[test]
fn scripts_and_modules() {
    for (line, cwd, name) in [
        ("python|jobs/cleanup.py", "/srv/orders", "cleanup"),
        ("python|main.py", "/srv/orders", "orders"),
        ("python|./main.py", "/srv/orders", "orders"),
        ("python|shop/main.py", "/srv/orders", "shop"),
        ("python|/srv/shop/src/app.py", "/", "shop"),
        ("python|main.py", "/app", "main"),
        ("python|app.py", "/home/alice", "app"),
        ("python|-m|pkg.mod", "/", "pkg.mod"),
        ("python|-m|pkg.main", "/", "pkg"),
        ("python|-m|pkg.__main__", "/", "pkg"),
        ("python|-m|app.main", "/srv/orders", "orders"),
        ("python|-m|http.server", "/", "http.server"),
        ("python|-u|/v/bin/billing-worker|--queue|x", "/", "billing-worker"),
        ("/opt/frozen/reporter", "/", "reporter"),
        ("python|-c|import time", "/srv/orders", "?"),
        ("python", "/srv/orders", "?"),
        ("", "/", "?"),
        (
            "python|-c|from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)|--multiprocessing-fork",
            "/",
            "^",
        ),
        ("python|-c|from multiprocessing.resource_tracker import main;main(5)", "/", "^"),
        ("python|-s|-c|from multiprocessing.forkserver import main; main(3)", "/", "^"),
    ] {
        check(line, cwd, "", None, name);
    }
}

#[test]
fn generic_application_in_a_generic_folder_keeps_its_own_name() {
    check("python|/v/bin/uvicorn|main:app", "/app", "", Some(Server::Uvicorn), "main");
}
