//! The machine, as all resources describe it.

use std::sync::LazyLock;

/// What identifies the machine and its present run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `host.id`: the machine id of `machine-id(5)`.
    pub id: Option<String>,
    /// `host.name`
    pub name: Option<String>,
    /// `host.arch`, in OpenTelemetry's words.
    pub arch: &'static str,
    /// Another one after each boot.
    pub boot_id: Option<String>,
    /// When the machine was booted, in seconds since 1970.
    pub boot_time: Option<u64>,
}

impl Host {
    /// This machine; read once.
    pub fn this() -> &'static Self {
        static THIS: LazyLock<Host> = LazyLock::new(|| Host {
            id: read("/etc/machine-id").or_else(|| read("/var/lib/dbus/machine-id")),
            name: read("/proc/sys/kernel/hostname"),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            boot_time: procfs::boot_time_secs().ok(),
        });
        &THIS
    }
}

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
