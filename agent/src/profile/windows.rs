//! Samples added up over a few seconds for each service instance: what is exported at a time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Sample;
use super::stacks::{Stacks, Subject};
use crate::process::resource::Service;

/// What one service instance did over a while.
#[derive(Clone, Debug)]
pub struct ServiceProfile {
    /// The service instance.
    pub service: Arc<Service>,
    /// From when
    pub start: SystemTime,
    /// for so long.
    pub duration: Duration,
    /// CPU time between two samples.
    pub period: Duration,
    /// The samples.
    pub stacks: Stacks,
}

/// The window that is open now.
#[derive(Debug)]
pub struct Windows {
    start: SystemTime,
    period: Duration,
    services: Vec<(Arc<Service>, Stacks)>,
}

impl Windows {
    /// `period`: CPU time between two samples.
    pub fn new(now: SystemTime, period: Duration) -> Self {
        Self { start: now, period, services: Vec::new() }
    }

    /// Takes a sample.
    pub fn add(&mut self, sample: Sample) {
        let Sample { service, stack, link, .. } = sample;
        let subject = Subject { link, ..Subject::default() };
        match self.services.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &service)) {
            Some((_, stacks)) => stacks.add(subject, stack, 1),
            None => {
                let mut stacks = Stacks::default();
                stacks.add(subject, stack, 1);
                self.services.push((service, stacks));
            }
        }
    }

    /// Different stacks, each of a request, in the window.
    pub fn stacks(&self) -> usize {
        self.services.iter().map(|(_, stacks)| stacks.len()).sum()
    }

    /// The profiles of the window, and a new window.
    pub fn close(&mut self, now: SystemTime) -> Vec<ServiceProfile> {
        let start = std::mem::replace(&mut self.start, now);
        let duration = now.duration_since(start).unwrap_or_default();
        let period = self.period;
        let services = std::mem::take(&mut self.services);
        services
            .into_iter()
            .map(|(service, stacks)| ServiceProfile { service, start, duration, period, stacks })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::test_receiver::service;
    use crate::profile::Stack;

    #[test]
    fn a_profile_for_each_service_and_window() {
        let start = SystemTime::UNIX_EPOCH;
        let mut windows = Windows::new(start, Duration::from_millis(10));
        let (shop, stock) = (service("shop"), service("stock"));
        for service in [&shop, &stock, &shop] {
            let service = Arc::clone(service);
            windows.add(Sample { service, pid: 1, tid: 1, time: start, stack: Stack::default(), link: None });
        }
        assert_eq!(windows.stacks(), 2);
        let end = start + Duration::from_secs(10);
        let profiles = windows.close(end);
        let found: Vec<(&str, u64)> =
            profiles.iter().map(|profile| (profile.service.name.as_str(), profile.stacks.total())).collect();
        assert_eq!(found, [("shop", 2), ("stock", 1)]);
        assert_eq!((profiles[0].start, profiles[0].duration), (start, Duration::from_secs(10)));
        assert!(windows.close(end).is_empty(), "nothing was sampled");
    }
}
