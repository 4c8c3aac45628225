//! Samples as a push to Pyroscope: pprof files with series labels, by its Connect API (`push.v1.PusherService/Push`).
//!
//! The messages are those of `api/push/v1/push.proto` and `api/types/v1/types.proto` in grafana/pyroscope. The series'
//! name `process_cpu` and pprof's types give Pyroscope's usual `process_cpu:cpu:nanoseconds:cpu:nanoseconds`.

use opentelemetry::Key;
use prost::Message;

use super::ServiceProfile;
use crate::process::resource::Service;
use crate::profile::pprof::{self, Recorded};

/// Path of the push, below the server's address.
pub(super) const PATH: &str = "push.v1.PusherService/Push";
/// Connect's content type for a single message in protobuf.
pub(super) const CONTENT_TYPE: &str = "application/proto";

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<RawProfileSeries>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct RawProfileSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<LabelPair>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct RawSample {
    /// A gzipped pprof.
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
    #[prost(string, tag = "2")]
    id: String,
}

/// One request for all of them.
pub(super) fn request(profiles: &[ServiceProfile]) -> PushRequest {
    let series = profiles
        .iter()
        .map(|profile| {
            let ServiceProfile { service, start, duration, period, stacks } = profile;
            let recorded = Recorded { start: *start, duration: *duration, period: *period };
            let mut raw_profile = Vec::new();
            if let Err(error) = pprof::write(stacks, recorded, &mut raw_profile) {
                log::error!("a profile could not be compressed: {error}");
            }
            let samples = vec![RawSample { raw_profile, id: String::new() }];
            RawProfileSeries { labels: labels(service), samples }
        })
        .collect();
    PushRequest { series }
}

/// The resource attributes that make a series, with names that Pyroscope accepts. Few on purpose: each combination of
/// values is a series of its own.
const ATTRIBUTES: [&str; 6] = [
    "service.namespace",
    "service.version",
    "deployment.environment.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "host.name",
];

fn labels(service: &Service) -> Vec<LabelPair> {
    let pair = |name: &str, value: String| LabelPair { name: name.to_owned(), value };
    let attributes = ATTRIBUTES.iter().filter_map(|name| {
        let value = service.resource.get(&Key::from_static_str(name))?;
        Some(pair(&name.replace('.', "_"), value.to_string()))
    });
    [pair("__name__", "process_cpu".to_owned()), pair("service_name", service.name.clone())]
        .into_iter()
        .chain(attributes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::profiles::tests::service_profile;

    #[test]
    fn a_series_for_each_service() {
        let request = PushRequest::decode(request(&[service_profile("shop")]).encode_to_vec().as_slice());
        let series = &request.unwrap().series[0];
        let labels: Vec<_> =
            series.labels.iter().map(|label| (label.name.as_str(), label.value.as_str())).collect();
        assert_eq!(
            labels,
            [("__name__", "process_cpu"), ("service_name", "shop"), ("service_version", "1.2")]
        );
        assert!(series.samples[0].raw_profile.starts_with(&[0x1f, 0x8b]), "gzipped");
    }
}
