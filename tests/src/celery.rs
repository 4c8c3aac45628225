//! A Celery worker and the service that sends it tasks, with a database of the Redis server to themselves.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::Lab;
use crate::load::Connection;
use crate::process::{Tree, wait_until};
use crate::service::{self, Service};

/// A worker with its pool, and a service, of `apps/celery_app.py`.
pub struct Shop {
    worker: Tree,
    service: Service,
    database: u8,
}

impl Shop {
    /// Starts both; `database` is the broker's, `pool` what the worker is told of its pool.
    pub fn start(lab: &Lab, database: u8, pool: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let venv = lab.python().celery()?;
        let broker = format!("redis://127.0.0.1:{}/{database}", lab.redis().port());
        let mut environment: Vec<(&str, String)> =
            environment.iter().map(|(name, value)| (*name, value.replace("BROKER", &broker))).collect();
        environment.push(("TEST_BROKER", broker));
        let mut command = Command::new(venv.script("celery"));
        command.args(["-A", "celery_app:celery", "worker", "--loglevel", "INFO"]).args(pool);
        command.current_dir(service::apps()).env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
        command.envs(lab.back_ends()).envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        // Celery shrinks from root.
        command.env("C_FORCE_ROOT", "1");
        let worker = Tree::spawn("celery", command, &lab.directory().join(format!("celery-{database}.log")))?;
        wait_until("the worker is ready", Duration::from_secs(90), || {
            worker.log().contains(" ready.").then_some(())
        })
        .with_context(|| worker.log())?;
        let service = Service::start_command(lab, "celery_app", |port| {
            let mut command = Command::new(venv.script("gunicorn"));
            command.args([
                "--bind",
                &format!("127.0.0.1:{port}"),
                "--worker-class",
                "gthread",
                "--threads",
                "16",
            ]);
            command.args([
                "--timeout",
                "120",
                "--graceful-timeout",
                "2",
                "--keep-alive",
                "30",
                "celery_app:app",
            ]);
            command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
            command
        })?;
        Ok(Self { worker, service, database })
    }

    /// The service that sends tasks.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// What an agent is told to observe.
    pub fn pids(&self) -> [String; 4] {
        let option = || "--pid".to_owned();
        [option(), self.worker.pid().to_string(), option(), self.service.pid().to_string()]
    }

    /// What the worker said.
    pub fn log(&self) -> String {
        self.worker.log()
    }

    /// Waits until so many tasks have been done since the beginning.
    pub fn wait_for(&self, tasks: u64) -> Result<()> {
        let mut connection = Connection::new(self.service.port());
        let mut done = 0;
        let outcome = wait_until("the tasks are done", Duration::from_secs(120), || {
            std::thread::sleep(Duration::from_millis(80));
            let reply = connection.get("/done/0", "").ok()?;
            done = serde_json::from_slice::<Value>(&reply.body).ok()?.get("done")?.as_u64()?;
            (done >= tasks).then_some(())
        });
        outcome
            .with_context(|| format!("{done} of {tasks} in database {}:\n{}", self.database, self.log()))?;
        ensure!(done == tasks, "{done} tasks were done, not {tasks}");
        // What the worker does after a task.
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    }
}
