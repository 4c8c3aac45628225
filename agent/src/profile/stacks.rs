//! Samples added up: which stack was running, how often, and for which route. What every file format starts from.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{Frame, FrameKind, Link, Stack};

/// For whom a stack ran, as far as that is known and wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The service.
    pub service: Option<Arc<str>>,
    /// The kind of request.
    pub route: Option<Arc<str>>,
    /// The very request.
    pub link: Option<Link>,
}

/// Samples with the same stack and the same subject.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// For whom.
    pub subject: &'a Subject,
    /// What was running.
    pub stack: &'a Stack,
    /// How many.
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    subject: Subject,
    stack: Stack,
}

/// How often each stack was seen.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    counts: FxHashMap<Key, u64>,
}

impl Entry<'_> {
    /// The frames, outermost first, with a frame without a file in place of those that are missing.
    pub fn outermost_first(&self) -> Vec<Frame> {
        let mark = |function: &str| Frame {
            kind: FrameKind::Python,
            function: function.into(),
            file: "".into(),
            first_line: 0,
            line: 0,
        };
        let Stack { frames, truncated } = self.stack;
        let missing = truncated.then(|| mark("[truncated]"));
        let none = frames.is_empty().then(|| mark("[no Python]"));
        missing.into_iter().chain(none).chain(frames.iter().rev().cloned()).collect()
    }
}

impl Stacks {
    /// The same samples, each with what `subject` makes of its subject.
    pub fn with_subjects(self, subject: impl Fn(&Subject) -> Subject) -> Self {
        let mut stacks = Self::default();
        for (key, count) in self.counts {
            stacks.add(subject(&key.subject), key.stack, count);
        }
        stacks
    }

    /// Adds samples of a stack.
    pub fn add(&mut self, subject: Subject, stack: Stack, count: u64) {
        *self.counts.entry(Key { subject, stack }).or_default() += count;
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Different stacks, each for a subject.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The stacks in a stable order.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut sorted: Vec<(&Key, &u64)> = self.counts.iter().collect();
        sorted.sort_by_cached_key(|(key, _)| {
            let link = key.subject.link.map(|link| (link.trace_id.to_bytes(), link.span_id.to_bytes()));
            (
                key.stack.frames.iter().rev().collect::<Vec<_>>(),
                key.stack.truncated,
                &key.subject.service,
                &key.subject.route,
                link,
            )
        });
        sorted.into_iter().map(|(Key { subject, stack }, count)| Entry { subject, stack, count: *count })
    }

    /// The routes that were seen, the busiest first, each with its own stacks.
    pub fn by_route(&self) -> Vec<(Arc<str>, Self)> {
        let mut routes: FxHashMap<Arc<str>, Self> = FxHashMap::default();
        for (key, count) in &self.counts {
            let Some(route) = &key.subject.route else { continue };
            routes.entry(Arc::clone(route)).or_default().counts.insert(key.clone(), *count);
        }
        let mut routes: Vec<(Arc<str>, Self)> = routes.into_iter().collect();
        routes.sort_by(|(a, of_a), (b, of_b)| of_b.total().cmp(&of_a.total()).then_with(|| a.cmp(b)));
        routes
    }

    /// The samples that have no route.
    pub fn without_route(&self) -> Self {
        let without = self.counts.iter().filter(|(key, _)| key.subject.route.is_none());
        Self { counts: without.map(|(key, count)| (key.clone(), *count)).collect() }
    }

    /// The functions that were at the top of most stacks: those that did the work themselves. With their samples.
    pub fn hottest(&self, most: usize) -> Vec<(Frame, u64)> {
        let mut functions: FxHashMap<Frame, u64> = FxHashMap::default();
        for (key, count) in &self.counts {
            let Some(leaf) = key.stack.frames.first() else { continue };
            *functions.entry(Frame { line: 0, ..leaf.clone() }).or_default() += count;
        }
        let mut functions: Vec<(Frame, u64)> = functions.into_iter().collect();
        functions.sort_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
        functions.truncate(most);
        functions
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use opentelemetry::trace::{SpanId, TraceId};

    use super::*;

    /// From the outermost to the innermost.
    pub(crate) fn stack<const N: usize>(frames: [Frame; N]) -> Stack {
        Stack { frames: frames.into_iter().rev().collect(), truncated: false }
    }

    pub(crate) fn frame(function: &str, line: u32) -> Frame {
        Frame {
            kind: FrameKind::Python,
            function: function.into(),
            file: "/srv/shop/main.py".into(),
            first_line: 10,
            line,
        }
    }

    pub(crate) fn link(number: u8) -> Link {
        Link { trace_id: TraceId::from_bytes([number; 16]), span_id: SpanId::from_bytes([number; 8]) }
    }

    /// `main` calls `price` (3 samples on line 12, 1 on line 14; for /a) and `größe` (2 samples; for /b).
    pub(crate) fn sample() -> Stacks {
        let mut stacks = Stacks::default();
        let of = |route: &str, number| Subject {
            service: None,
            route: Some(route.into()),
            link: Some(link(number)),
        };
        stacks.add(of("GET /a", 1), stack([frame("main", 20), frame("price", 12)]), 3);
        stacks.add(of("GET /a", 1), stack([frame("main", 20), frame("price", 14)]), 1);
        stacks.add(of("GET /b", 2), stack([frame("main", 21), frame("Ware.größe", 30)]), 2);
        stacks.add(Subject::default(), stack([frame("main", 22)]), 1);
        stacks
    }

    #[test]
    fn adds_up() {
        let mut stacks = sample();
        stacks.add(Subject::default(), stack([frame("main", 22)]), 4);
        assert_eq!(stacks.total(), 11);
        assert_eq!(stacks.iter().count(), 4);
    }

    #[test]
    fn routes_and_hot_functions() {
        let stacks = sample();
        let routes: Vec<_> =
            stacks.by_route().iter().map(|(route, of)| (route.to_string(), of.total())).collect();
        assert_eq!(routes, [("GET /a".to_owned(), 4), ("GET /b".to_owned(), 2)]);
        assert_eq!(stacks.hottest(2), [(frame("price", 0), 4), (frame("Ware.größe", 0), 2)]);
    }
}
