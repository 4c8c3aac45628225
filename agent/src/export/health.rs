//! What to say about the receiver, and when: each cause of failure once, and once that it works again.
//!
//! Takes what became of each batch; gives the messages. Keeps the count of what an outage cost.

use super::failure::{Cause, Failure};

/// More different failures than this in one outage are not told.
const MOST_TOLD: usize = 8;

/// The receiver as the last batches found it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Spans lost since it last worked.
    lost: u64,
    /// Failures of this outage that need no diagnosis any more, and what was said about them.
    told: Vec<(Failure, Cause)>,
}

impl Health {
    /// Notes that `failure` cost so many spans; `true` if it is new and its cause should be found and told.
    pub(super) fn failed(&mut self, failure: &Failure, spans: u64) -> bool {
        self.lost += spans;
        self.told.len() < MOST_TOLD && !self.told.iter().any(|(known, _)| known == failure)
    }

    /// Notes the cause of `failure`; `true` if it is to be told.
    pub(super) fn diagnosed(&mut self, failure: Failure, cause: &Cause) -> bool {
        let news = !self.told.iter().any(|(_, known)| known == cause);
        self.told.push((failure, cause.clone()));
        news
    }

    /// Notes that a whole batch was taken; how many spans were lost if that is the end of an outage.
    pub(super) fn worked(&mut self) -> Option<u64> {
        let Self { lost, told } = std::mem::take(self);
        (!told.is_empty()).then_some(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_an_outage() {
        let refused = || Failure::Transport("refused".into());
        let unreachable = Cause::Unreachable("refused".into());
        let mut health = Health::default();
        assert_eq!(health.worked(), None);
        for outage in 0..2 {
            assert!(health.failed(&refused(), 5), "outage {outage}");
            assert!(health.diagnosed(refused(), &unreachable));
            assert!(!health.failed(&refused(), 6));
            assert!(health.failed(&Failure::Http(503), 7));
            assert!(health.diagnosed(Failure::Http(503), &Cause::Answered("HTTP 503".into())));
            // Another failure of the same cause is not told again.
            assert!(health.failed(&Failure::Timeout, 1));
            assert!(!health.diagnosed(Failure::Timeout, &unreachable));
            assert_eq!(health.worked(), Some(19));
            assert_eq!(health.worked(), None);
        }
    }

    #[test]
    fn endless_news_end() {
        let mut health = Health::default();
        let told = (400..500).filter(|status| {
            let failure = Failure::Http(*status);
            health.failed(&failure, 1) && health.diagnosed(failure, &Cause::Answered(status.to_string()))
        });
        assert_eq!(told.count(), MOST_TOLD);
        assert_eq!(health.worked(), Some(100));
    }
}
