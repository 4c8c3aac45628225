//! A process as an OpenTelemetry resource: service, process, host, container.
//!
//! What the process says of itself in `OTEL_RESOURCE_ATTRIBUTES` wins over what was found out, but for `telemetry.*`:
//! it is pitviper that observes. Command-line arguments are left out on purpose, they may hold secrets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::Resource;
use procfs::ProcError;
use procfs::process::{Process, Stat};
use uuid::Uuid;

use super::command::base_name;
use super::container::Container;
use super::environ::Environ;
use super::host::Host;
use super::identity::Server;
use super::naming::{self, Naming};
use crate::config::resource_attributes::parse_resource_attributes;
use crate::python::Version;
use crate::python::maps::without_deleted;
use crate::trace::semconv;

/// Namespace of the UUIDs of `service.instance.id`, given by the semantic conventions.
const INSTANCE_NAMESPACE: Uuid = Uuid::from_u128(0x4d63009a_8d0f_11ee_aad7_4c796ed8e320);

/// A service instance: one observed process, as OpenTelemetry names it.
#[derive(Clone, Debug)]
pub struct Service {
    /// The kernel's tgid.
    pub pid: u32,
    /// `service.name`
    pub name: String,
    /// What serves, when it is one of the known servers.
    pub server: Option<Server>,
    /// All resource attributes, `service.name` included.
    pub resource: Resource,
}

/// What the agent's own environment says of all services: less than what a service says of itself, more than what was
/// found out.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// The agent's `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// The agent's `OTEL_RESOURCE_ATTRIBUTES`.
    pub attributes: Vec<(String, String)>,
}

impl Defaults {
    fn service_name(&self) -> Option<&str> {
        let attribute = || self.attributes.iter().rev().find(|(key, _)| key == semconv::SERVICE_NAME);
        self.service_name.as_deref().or_else(|| attribute().map(|(_, value)| value.as_str()))
    }
}

impl Service {
    /// Describes a running process; `runtime` is its CPython. Fails only when the process is gone.
    pub fn of_process(pid: u32, runtime: Option<Version>, defaults: &Defaults) -> Result<Self, ProcError> {
        let process = Process::new(i32::try_from(pid).map_err(|_| ProcError::NotFound(None))?)?;
        let stat = process.stat()?;
        let environ = Environ::read(pid).unwrap_or_default();
        let Naming { server, own, name } = naming::name(pid, &environ);
        let name = defaults.service_name().filter(|_| !own).map_or(name, str::to_owned);
        let container = Container::of_process(pid);

        let mut attributes = Attributes::default();
        attributes.put(semconv::SERVICE_INSTANCE_ID, instance_id(&stat, &container));
        attributes.put_process(&process, &stat);
        if let Some(runtime) = runtime {
            attributes.put(semconv::PROCESS_RUNTIME_NAME, "cpython");
            attributes.put(semconv::PROCESS_RUNTIME_VERSION, runtime.to_string());
        }
        attributes.put_some(semconv::CONTAINER_ID, container.id);
        attributes.put_some(semconv::K8S_POD_UID, container.pod_uid);
        attributes.put_host(Host::this());
        for (key, value) in &defaults.attributes {
            attributes.0.insert(key.clone(), value.clone().into());
        }
        for (key, value) in own_attributes(&environ) {
            attributes.0.insert(key, value.into());
        }
        attributes.put(semconv::SERVICE_NAME, name.clone());
        attributes.put_telemetry();
        Ok(Self { pid, name, server, resource: attributes.into_resource() })
    }
}

/// The agent itself as a resource. What its environment says of services, their names above all, is not meant for it.
pub fn of_agent(defaults: &Defaults) -> Resource {
    let mut attributes = Attributes::default();
    attributes.put_host(Host::this());
    for (key, value) in &defaults.attributes {
        attributes.0.insert(key.clone(), value.clone().into());
    }
    if let Ok(process) = Process::myself()
        && let Ok(stat) = process.stat()
    {
        attributes.put_process(&process, &stat);
        attributes.put(
            semconv::SERVICE_INSTANCE_ID,
            instance_id(&stat, &Container::of_process(std::process::id())),
        );
    }
    attributes.put(semconv::SERVICE_NAME, "pitviper");
    attributes.put(semconv::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
    attributes.put_telemetry();
    attributes.put(semconv::TELEMETRY_SDK_LANGUAGE, "rust");
    attributes.into_resource()
}

/// What a process says in its `OTEL_RESOURCE_ATTRIBUTES`; an error anywhere discards the whole, as OpenTelemetry wants it.
pub(super) fn own_attributes(environ: &Environ) -> Vec<(String, String)> {
    let text = environ.get("OTEL_RESOURCE_ATTRIBUTES");
    text.and_then(|text| parse_resource_attributes(text).ok()).unwrap_or_default()
}

/// Stable while the process lives, whoever asks and however often, and never used again.
fn instance_id(stat: &Stat, container: &Container) -> String {
    let host = Host::this();
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let name = [
        text(&host.id),
        text(&host.boot_id),
        text(&container.id),
        stat.pid.to_string(),
        stat.starttime.to_string(),
    ];
    Uuid::new_v5(&INSTANCE_NAMESPACE, name.join("/").as_bytes()).to_string()
}

#[derive(Default)]
struct Attributes(BTreeMap<String, Value>);

impl Attributes {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn put_process(&mut self, process: &Process, stat: &Stat) {
        self.put(semconv::PROCESS_PID, i64::from(stat.pid));
        self.put(semconv::PROCESS_PARENT_PID, i64::from(stat.ppid));
        self.put_some(semconv::PROCESS_CREATION_TIME, creation_time(stat));
        let owner = process.uid().ok().map(|uid| user_name(stat.pid, uid).unwrap_or_else(|| uid.to_string()));
        self.put_some(semconv::PROCESS_OWNER, owner);
        let path = process.exe().ok().map(|path| without_deleted(path).to_string_lossy().into_owned());
        if let Some(path) = path {
            self.put(semconv::PROCESS_EXECUTABLE_NAME, base_name(&path).to_owned());
            self.put(semconv::PROCESS_EXECUTABLE_PATH, path);
        }
        // A process that set its title has its arguments in there too; then there is no command to tell.
        let argv =
            u32::try_from(stat.pid).ok().and_then(|pid| naming::command_line(pid).ok()).unwrap_or_default();
        let command = argv.into_iter().next().filter(|command| !command.contains([' ', '[']));
        self.put_some(semconv::PROCESS_COMMAND, command);
    }

    fn put_host(&mut self, host: &Host) {
        let Host { id, name, arch, boot_id: _, boot_time: _ } = host;
        self.put_some(semconv::HOST_ID, id.clone());
        self.put_some(semconv::HOST_NAME, name.clone());
        self.put(semconv::HOST_ARCH, *arch);
        self.put(semconv::OS_TYPE, "linux");
    }

    fn put_telemetry(&mut self) {
        const VERSION: &str = env!("CARGO_PKG_VERSION");
        self.put(semconv::TELEMETRY_SDK_LANGUAGE, "python");
        self.put(semconv::TELEMETRY_SDK_NAME, "pitviper");
        self.put(semconv::TELEMETRY_SDK_VERSION, VERSION);
        self.put(semconv::TELEMETRY_DISTRO_NAME, "pitviper");
        self.put(semconv::TELEMETRY_DISTRO_VERSION, VERSION);
    }

    fn into_resource(self) -> Resource {
        let attributes = self.0.into_iter().map(|(key, value)| KeyValue::new(key, value));
        Resource::builder_empty().with_schema_url(attributes, semconv::SCHEMA_URL).build()
    }
}

/// The name of a user, by the process's own `/etc/passwd`: a container has its own users. What is there is the
/// container's choice: neither a link to elsewhere, nor a FIFO, nor an endless file is followed.
fn user_name(pid: i32, uid: u32) -> Option<String> {
    const MAX_PASSWD: u64 = 1 << 20;
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(format!("/proc/{pid}/root/etc/passwd")).ok()?;
    let mut users = String::new();
    file.metadata().ok()?.is_file().then(|| file.take(MAX_PASSWD).read_to_string(&mut users))?.ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// When a process was created, in ISO 8601 with milliseconds.
fn creation_time(stat: &Stat) -> Option<String> {
    let ticks = procfs::ticks_per_second();
    let since_boot = stat.starttime.checked_mul(1000)?.checked_div(ticks)?;
    iso_8601(Host::this().boot_time?.checked_mul(1000)?.checked_add(since_boot)?)
}

/// UTC; takes milliseconds since 1970. The calendar is Howard Hinnant's `civil_from_days`, from year 1970 on.
fn iso_8601(unix_millis: u64) -> Option<String> {
    let (seconds, millis) = (unix_millis / 1000, unix_millis % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is their last.
    let days = days.checked_add(719_468)?;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"))
}

#[cfg(test)]
#[path = "resource_tests.rs"]
mod tests;
