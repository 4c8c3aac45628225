//! Samples added up: which stack was running, how often, and for which route. What every file format starts from.

use std::sync::Arc;

use opentelemetry::{SpanId, TraceId};
use rustc_hash::FxHashMap;

/// A line of Python in a function: one level of a stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// The function's qualified name, before CPython 3.11 its name.
    pub function: Arc<str>,
    /// The file, as its code object names it.
    pub file: Arc<str>,
    /// The line on which the function begins; 0 if not known.
    pub first_line: u32,
    /// The line that was executing; 0 if not known.
    pub line: u32,
}

/// The request that a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Its trace.
    pub trace_id: TraceId,
    /// Its server span.
    pub span_id: SpanId,
}

/// For whom a stack ran, as far as that is known and wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Subject {
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
    /// The stack, outermost frame first.
    pub frames: &'a [Frame],
    /// How many.
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    subject: Subject,
    /// Outermost first.
    frames: Vec<Frame>,
}

/// How often each stack was seen.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    counts: FxHashMap<Key, u64>,
}

impl Stacks {
    /// Adds samples of a stack, outermost frame first.
    pub fn add(&mut self, subject: Subject, frames: Vec<Frame>, count: u64) {
        *self.counts.entry(Key { subject, frames }).or_default() += count;
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
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
            (&key.frames, &key.subject.route, link)
        });
        sorted.into_iter().map(|(Key { subject, frames }, count)| Entry { subject, frames, count: *count })
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

    /// The functions that were at the top of most stacks: those that did the work themselves. With their samples.
    pub fn hottest(&self, most: usize) -> Vec<(Frame, u64)> {
        let mut functions: FxHashMap<Frame, u64> = FxHashMap::default();
        for (key, count) in &self.counts {
            let Some(leaf) = key.frames.last() else { continue };
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
    use super::*;

    pub(crate) fn frame(function: &str, line: u32) -> Frame {
        Frame { function: function.into(), file: "/srv/shop/main.py".into(), first_line: 10, line }
    }

    pub(crate) fn link(number: u8) -> Link {
        Link { trace_id: TraceId::from_bytes([number; 16]), span_id: SpanId::from_bytes([number; 8]) }
    }

    /// `main` calls `price` (3 samples on line 12, 1 on line 14; for /a) and `größe` (2 samples; for /b).
    pub(crate) fn sample() -> Stacks {
        let mut stacks = Stacks::default();
        let of = |route: &str, number| Subject { route: Some(route.into()), link: Some(link(number)) };
        stacks.add(of("GET /a", 1), vec![frame("main", 20), frame("price", 12)], 3);
        stacks.add(of("GET /a", 1), vec![frame("main", 20), frame("price", 14)], 1);
        stacks.add(of("GET /b", 2), vec![frame("main", 21), frame("Ware.größe", 30)], 2);
        stacks.add(Subject::default(), vec![frame("main", 22)], 1);
        stacks
    }

    #[test]
    fn adds_up() {
        let mut stacks = sample();
        stacks.add(Subject::default(), vec![frame("main", 22)], 4);
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
