//! Head sampling: whether a trace is recorded, decided from its id and its parent as the specification's samplers do.
//!
//! Takes the names of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`; gives yes or no for each span. Knows no
//! span, no exporter and no clock, and keeps no state.

use opentelemetry::TraceId;

/// What is known of a span's parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentContext {
    /// Whether the parent was sampled.
    pub sampled: bool,
    /// Whether the parent came in a request's headers rather than from this agent.
    pub remote: bool,
}

/// A sampler that decides without a parent's help.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Root {
    /// Every trace.
    AlwaysOn,
    /// No trace.
    AlwaysOff,
    /// The traces whose id, in its low 64 bits, is below the ratio (from 0 to 1) of their range.
    TraceIdRatio(f64),
}

/// A sampler by the specification's names. A parent-based one follows the parent, remote or not, if there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether a parent's decision is followed.
    pub parent_based: bool,
    /// Who decides otherwise.
    pub root: Root,
}

impl Default for Sampler {
    /// `parentbased_always_on`
    fn default() -> Self {
        Self { parent_based: true, root: Root::AlwaysOn }
    }
}

impl Sampler {
    /// The sampler of these names, and a sentence about what was ignored. Unknown names mean the default sampler, an
    /// unusable ratio means 1: the specification wants telemetry rather than silence.
    pub fn from_names(name: Option<&str>, arg: Option<&str>) -> (Self, Option<String>) {
        let Some(name) = name else {
            let warning = arg.map(|_| {
                "OTEL_TRACES_SAMPLER_ARG does nothing without OTEL_TRACES_SAMPLER; to sample a ratio of the traces, \
                 set that to parentbased_traceidratio"
                    .to_owned()
            });
            return (Self::default(), warning);
        };
        let lowercase = name.to_ascii_lowercase();
        let root_name = lowercase.strip_prefix("parentbased_");
        let (parent_based, root_name) = (root_name.is_some(), root_name.unwrap_or(&lowercase));
        let (root, warning) = match root_name {
            "always_on" => (Root::AlwaysOn, None),
            "always_off" => (Root::AlwaysOff, None),
            "traceidratio" => ratio(arg),
            _ => {
                let warning =
                    format!("OTEL_TRACES_SAMPLER: `{name}` is not known; parentbased_always_on is used");
                return (Self::default(), Some(warning));
            }
        };
        (Self { parent_based, root }, warning)
    }

    /// Whether a span of this trace is recorded and exported.
    pub fn should_sample(&self, trace_id: TraceId, parent: Option<ParentContext>) -> bool {
        let Self { parent_based, root } = self;
        match (parent, root) {
            (Some(parent), _) if *parent_based => parent.sampled,
            (_, Root::AlwaysOn) => true,
            (_, Root::AlwaysOff) => false,
            (_, Root::TraceIdRatio(ratio)) => below_ratio(trace_id, *ratio),
        }
    }
}

fn ratio(arg: Option<&str>) -> (Root, Option<String>) {
    let Some(arg) = arg else { return (Root::TraceIdRatio(1.0), None) };
    match arg.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => (Root::TraceIdRatio(ratio), None),
        _ => {
            let warning = format!("OTEL_TRACES_SAMPLER_ARG: `{arg}` is not a number from 0 to 1; 1 is used");
            (Root::TraceIdRatio(1.0), Some(warning))
        }
    }
}

/// The comparison of the Go and Rust SDKs, on the upper 63 of the low 64 bits; Python's differs from it only in the
/// last bit. So an SDK and this agent keep the same traces of a distributed request.
fn below_ratio(trace_id: TraceId, ratio: f64) -> bool {
    const RANGE: f64 = (1_u64 << 63) as f64;
    let [.., a, b, c, d, e, f, g, h] = trace_id.to_bytes();
    let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    // The cast saturates, and a ratio of 1 gives the bound 2^63, which no 63-bit number reaches.
    (low >> 1) < (ratio * RANGE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(name: &str, arg: Option<&str>) -> Sampler {
        let (sampler, warning) = Sampler::from_names(Some(name), arg);
        assert_eq!(warning, None);
        sampler
    }

    fn id(low: u64) -> TraceId {
        TraceId::from((0xffff_u128 << 64) | u128::from(low))
    }

    #[test]
    fn names() {
        let check = |name: &str, arg, parent_based, root| {
            assert_eq!(sampler(name, arg), Sampler { parent_based, root }, "{name}");
        };
        check("always_on", None, false, Root::AlwaysOn);
        check("Always_Off", Some("0.5"), false, Root::AlwaysOff);
        check("traceidratio", Some("0.25"), false, Root::TraceIdRatio(0.25));
        check("traceidratio", None, false, Root::TraceIdRatio(1.0));
        check("parentbased_always_on", None, true, Root::AlwaysOn);
        check("parentbased_always_off", None, true, Root::AlwaysOff);
        check("parentbased_traceidratio", Some("1e-3"), true, Root::TraceIdRatio(0.001));
    }

    #[test]
    fn what_cannot_be_used_samples_everything_and_says_so() {
        for (name, arg) in [
            (Some("parentbased_trace_id_ratio"), Some("0.1")),
            (Some("jaeger_remote"), None),
            (Some("parentbased_"), None),
            (Some("traceidratio"), Some("10%")),
            (Some("traceidratio"), Some("1.5")),
            (Some("traceidratio"), Some("NaN")),
            (None, Some("0.1")),
        ] {
            let (sampler, warning) = Sampler::from_names(name, arg);
            assert!(warning.is_some(), "{name:?} {arg:?}");
            assert!(sampler.should_sample(id(u64::MAX), None), "{name:?} {arg:?}");
        }
    }

    #[test]
    fn a_ratio_compares_the_low_half_of_the_trace_id() {
        let half = sampler("traceidratio", Some("0.5"));
        assert!(half.should_sample(id(0), None));
        assert!(half.should_sample(id(0x7fff_ffff_ffff_ffff), None));
        assert!(!half.should_sample(id(0x8000_0000_0000_0000), None));
        assert!(!half.should_sample(id(u64::MAX), None));
        assert!(!sampler("traceidratio", Some("0")).should_sample(id(0), None));
        assert!(sampler("traceidratio", Some("1")).should_sample(id(u64::MAX), None));
    }

    #[test]
    fn it_agrees_with_the_sdks_sampler() {
        use opentelemetry::trace::SpanKind;
        use opentelemetry_sdk::trace::{Sampler as Sdk, SamplingDecision, ShouldSample as _};
        let mut low = 0x9e37_79b9_7f4a_7c15_u64;
        for step in 0..1000_u32 {
            low = low.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let ratio = f64::from(step) / 1000.0;
            let sdk =
                Sdk::TraceIdRatioBased(ratio).should_sample(None, id(low), "", &SpanKind::Server, &[], &[]);
            let ours = Sampler { parent_based: false, root: Root::TraceIdRatio(ratio) };
            assert_eq!(ours.should_sample(id(low), None), sdk.decision == SamplingDecision::RecordAndSample);
        }
    }

    #[test]
    fn parents_are_followed_only_by_parent_based_samplers() {
        for remote in [true, false] {
            for sampled in [true, false] {
                let parent = Some(ParentContext { sampled, remote });
                assert_eq!(sampler("parentbased_always_off", None).should_sample(id(1), parent), sampled);
                assert_eq!(sampler("parentbased_always_on", None).should_sample(id(1), parent), sampled);
                assert!(sampler("always_on", None).should_sample(id(1), parent));
                assert!(!sampler("traceidratio", Some("0")).should_sample(id(1), parent));
            }
        }
    }
}
