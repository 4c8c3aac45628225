//! Resources of really running processes.

use std::process::Command;

use opentelemetry::Key;

use super::*;
use crate::python::testing::Python;

const WAIT: &str = "import sys; print('ready'); sys.stdout.flush(); sys.stdin.read()";

fn text(service: &Service, key: &'static str) -> Option<String> {
    service.resource.get(&Key::new(key)).map(|value| value.as_str().into_owned())
}

fn start(environ: &[(&str, &str)]) -> Option<Python> {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", WAIT, "--password=hunter2"]).env_clear().envs(environ.iter().copied());
    Python::start_command(&mut command)
}

#[test]
fn a_running_child() {
    let Some(child) = start(&[]) else { return };
    let service = Service::of_process(child.pid(), Some(Version::new(3, 11)), &Defaults::default()).unwrap();
    assert_eq!(service.name, "unknown_service:python");
    assert_eq!(service.resource.schema_url(), Some(semconv::SCHEMA_URL));
    let get = |key| text(&service, key);
    assert_eq!(get(semconv::SERVICE_NAME).as_deref(), Some("unknown_service:python"));
    assert_eq!(get(semconv::PROCESS_PID), Some(child.pid().to_string()));
    assert_eq!(get(semconv::PROCESS_PARENT_PID), Some(std::process::id().to_string()));
    assert_eq!(get(semconv::PROCESS_COMMAND).as_deref(), Some("/usr/bin/python3"));
    let exe = std::fs::canonicalize("/usr/bin/python3").unwrap();
    assert_eq!(get(semconv::PROCESS_EXECUTABLE_PATH), Some(exe.to_str().unwrap().to_owned()));
    assert_eq!(get(semconv::PROCESS_RUNTIME_NAME).as_deref(), Some("cpython"));
    assert_eq!(get(semconv::PROCESS_RUNTIME_VERSION).as_deref(), Some("3.11"));
    assert_eq!(get(semconv::OS_TYPE).as_deref(), Some("linux"));
    assert_eq!(get(semconv::TELEMETRY_SDK_NAME).as_deref(), Some("pitviper"));
    assert!(get(semconv::HOST_NAME).is_some());
    let owner = Command::new("id").arg("-un").output().unwrap().stdout;
    assert_eq!(get(semconv::PROCESS_OWNER).unwrap(), String::from_utf8(owner).unwrap().trim());
    for (_, value) in &service.resource {
        assert!(!value.as_str().contains("hunter2"), "a command-line argument got out");
    }
}

#[test]
fn creation_time_is_about_now() {
    let Some(child) = start(&[]) else { return };
    let service = Service::of_process(child.pid(), None, &Defaults::default()).unwrap();
    let created = text(&service, semconv::PROCESS_CREATION_TIME).unwrap();
    let created = Command::new("date").args(["-d", &created, "+%s"]).output().unwrap().stdout;
    let created: u64 = String::from_utf8(created).unwrap().trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(created) < 10, "created at {created}, now is {now}");
}

#[test]
fn instance_ids_are_stable_and_distinct() {
    let (Some(one), Some(other)) = (start(&[]), start(&[])) else { return };
    let id = |pid| {
        text(&Service::of_process(pid, None, &Defaults::default()).unwrap(), semconv::SERVICE_INSTANCE_ID)
            .unwrap()
    };
    assert_eq!(id(one.pid()), id(one.pid()));
    assert_ne!(id(one.pid()), id(other.pid()));
    assert_eq!(Uuid::try_parse(&id(one.pid())).unwrap().get_version_num(), 5);
}

#[test]
fn the_process_has_the_last_word_but_for_telemetry() {
    let attributes =
        "service.namespace=shop%2Cde,service.version=1.2,os.type=mine,telemetry.sdk.name=x,service.name=no";
    let environ = [("OTEL_SERVICE_NAME", "orders"), ("OTEL_RESOURCE_ATTRIBUTES", attributes)];
    let Some(child) = start(&environ) else { return };
    let service = Service::of_process(child.pid(), None, &Defaults::default()).unwrap();
    let get = |key| text(&service, key);
    assert_eq!(service.name, "orders");
    assert_eq!(get(semconv::SERVICE_NAME).as_deref(), Some("orders"));
    assert_eq!(get(semconv::SERVICE_NAMESPACE).as_deref(), Some("shop,de"));
    assert_eq!(get(semconv::SERVICE_VERSION).as_deref(), Some("1.2"));
    assert_eq!(get(semconv::OS_TYPE).as_deref(), Some("mine"));
    assert_eq!(get(semconv::TELEMETRY_SDK_NAME).as_deref(), Some("pitviper"));
}

#[test]
fn a_process_that_is_gone() {
    assert!(Service::of_process(u32::MAX, None, &Defaults::default()).is_err());
    assert!(Service::of_process(4_000_000, None, &Defaults::default()).is_err());
}

#[test]
fn calendar() {
    for (millis, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_700_558_734_853, "2023-11-21T09:25:34.853Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ] {
        assert_eq!(iso_8601(millis).as_deref(), Some(text));
    }
    assert!(iso_8601(u64::MAX).is_some());
}

#[test]
fn the_agents_own_word_stands_behind_the_services() {
    let defaults = Defaults {
        service_name: Some("agents".to_owned()),
        attributes: vec![("team".to_owned(), "agents".to_owned()), ("zone".to_owned(), "a".to_owned())],
    };
    let Some(silent) = start(&[]) else { return };
    let service = Service::of_process(silent.pid(), None, &defaults).unwrap();
    assert_eq!(service.name, "agents");
    assert_eq!(text(&service, "team").as_deref(), Some("agents"));

    let own = [("OTEL_SERVICE_NAME", "own"), ("OTEL_RESOURCE_ATTRIBUTES", "team=own")];
    let Some(speaking) = start(&own) else { return };
    let service = Service::of_process(speaking.pid(), None, &defaults).unwrap();
    assert_eq!(service.name, "own");
    assert_eq!(text(&service, "team").as_deref(), Some("own"));
    assert_eq!(text(&service, "zone").as_deref(), Some("a"));
}

#[test]
fn the_agent_is_itself() {
    let defaults = Defaults {
        service_name: Some("shop".to_owned()),
        attributes: vec![
            ("service.name".to_owned(), "shop".to_owned()),
            ("deployment.environment.name".to_owned(), "test".to_owned()),
        ],
    };
    let resource = of_agent(&defaults);
    let get = |key: &'static str| resource.get(&Key::new(key)).map(|value| value.as_str().into_owned());
    assert_eq!(get(semconv::SERVICE_NAME).as_deref(), Some("pitviper"));
    assert_eq!(get(semconv::SERVICE_VERSION).as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(get(semconv::PROCESS_PID), Some(std::process::id().to_string()));
    assert_eq!(get(semconv::DEPLOYMENT_ENVIRONMENT_NAME).as_deref(), Some("test"));
    assert!(get(semconv::SERVICE_INSTANCE_ID).is_some() && get(semconv::OS_TYPE).is_some());
}
