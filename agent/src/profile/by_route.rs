//! Samples by the kind of request that they were taken in, for a person at a terminal.
//!
//! A sample knows the span of its request, and the span knows method and path; either may come first.

use std::collections::VecDeque;
use std::sync::Arc;

use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::trace::SpanData;
use rustc_hash::FxHashMap;

use super::stacks::{Stacks, Subject};
use super::{Link, Sample, Stack, route};
use crate::trace::semconv;

/// Requests whose route is remembered after their span has come.
const MOST_ROUTES: usize = 16_384;
/// Samples that wait for their span; the oldest ones are then counted without a route.
const MOST_WAITING: usize = 65_536;

/// A sample whose span has not come.
#[derive(Debug)]
struct Waiting {
    link: Link,
    service: Arc<str>,
    stack: Stack,
}

/// Samples added up by route.
#[derive(Debug, Default)]
pub struct ByRoute {
    stacks: Stacks,
    routes: FxHashMap<Link, Arc<str>>,
    in_order: VecDeque<Link>,
    waiting: VecDeque<Waiting>,
}

impl ByRoute {
    /// Takes a sample.
    pub fn sample(&mut self, sample: Sample) {
        let Sample { service, stack, link, .. } = sample;
        let service: Arc<str> = service.name.as_str().into();
        let route = link.map(|link| self.routes.get(&link).cloned());
        match (link, route.flatten()) {
            (Some(link), None) => self.waiting.push_back(Waiting { link, service, stack }),
            (_, route) => self.stacks.add(of(service, route), stack, 1),
        }
        if self.waiting.len() > MOST_WAITING
            && let Some(Waiting { service, stack, .. }) = self.waiting.pop_front()
        {
            self.stacks.add(of(service, None), stack, 1);
        }
    }

    /// Takes note of a span: of a request that was sampled, the route.
    pub fn span(&mut self, span: &SpanData) {
        let attribute = |key: &str| {
            let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key)?;
            Some(found.value.as_str().into_owned())
        };
        if attribute(semconv::PYROSCOPE_PROFILE_ID).is_none() {
            return;
        }
        let name =
            match (&span.span_kind, attribute(semconv::HTTP_REQUEST_METHOD), attribute(semconv::URL_PATH)) {
                (SpanKind::Server, Some(method), Some(path)) => route::name(&method, &path),
                _ => span.name.to_string(),
            };
        let link = Link { trace_id: span.span_context.trace_id(), span_id: span.span_context.span_id() };
        let route: Arc<str> = name.into();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.link == link {
                self.stacks.add(of(waiting.service, Some(Arc::clone(&route))), waiting.stack, 1);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        self.routes.insert(link, route);
        self.in_order.push_back(link);
        if self.in_order.len() > MOST_ROUTES
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.routes.remove(&oldest);
        }
    }

    /// All samples; those whose span never came are without a route.
    pub fn finish(mut self) -> Stacks {
        for Waiting { service, stack, .. } in self.waiting {
            self.stacks.add(of(service, None), stack, 1);
        }
        self.stacks
    }
}

fn of(service: Arc<str>, route: Option<Arc<str>>) -> Subject {
    Subject { service: Some(service), route, link: None }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use opentelemetry::KeyValue;

    use super::*;
    use crate::export::test_receiver::{service, span};
    use crate::profile::stacks::tests::{frame, link, stack};

    fn sample(link: Option<Link>) -> Sample {
        let stack = stack([frame("main", 1)]);
        Sample { service: service("shop"), pid: 1, tid: 1, time: SystemTime::UNIX_EPOCH, stack, link }
    }

    fn server_span(link: Link, path: &str) -> SpanData {
        let mut data = span("shop", "GET").data;
        data.span_context = opentelemetry::trace::SpanContext::new(
            link.trace_id,
            link.span_id,
            opentelemetry::TraceFlags::SAMPLED,
            false,
            Default::default(),
        );
        data.attributes = vec![
            KeyValue::new(semconv::HTTP_REQUEST_METHOD, "GET"),
            KeyValue::new(semconv::URL_PATH, path.to_owned()),
            KeyValue::new(semconv::PYROSCOPE_PROFILE_ID, link.span_id.to_string()),
        ];
        data
    }

    #[test]
    fn span_and_sample_in_either_order() {
        let mut routes = ByRoute::default();
        routes.sample(sample(Some(link(1))));
        routes.span(&server_span(link(1), "/items/1"));
        routes.span(&server_span(link(2), "/items/2"));
        routes.sample(sample(Some(link(2))));
        routes.sample(sample(Some(link(3))));
        routes.sample(sample(None));
        let stacks = routes.finish();
        assert_eq!(stacks.total(), 4);
        let by_route = stacks.by_route();
        let found: Vec<(&str, u64)> = by_route.iter().map(|(route, of)| (&**route, of.total())).collect();
        assert_eq!(found, [("GET /items/{}", 2)]);
    }
}
