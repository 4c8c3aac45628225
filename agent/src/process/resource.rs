//! Placeholder.
use opentelemetry_sdk::Resource;

/// A service instance: one observed process, as OpenTelemetry names it.
#[derive(Clone, Debug)]
pub struct Service {
    /// The kernel's tgid.
    pub pid: u32,
    /// `service.name`
    pub name: String,
    /// All resource attributes, `service.name` included.
    pub resource: Resource,
}
