//! Samples for the tests.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use opentelemetry_sdk::Resource;

use super::{Frame, Sample, Stack};
use crate::process::resource::Service;

pub(super) fn service() -> Arc<Service> {
    let resource = Resource::builder_empty().build();
    Arc::new(Service { pid: 1, name: "shop".to_owned(), server: None, resource })
}

pub(super) fn frame(function: &str, line: u32) -> Frame {
    Frame { function: function.into(), file: "/srv/shop.py".into(), first_line: 1, line }
}

pub(super) fn sample(stack: Stack) -> Sample {
    Sample { service: service(), pid: 1, tid: 1, time: UNIX_EPOCH, stack, link: None }
}
