//! Scores spans against what the service said it did: is every operation there, once, below its own request?
//!
//! Takes replies and spans, gives a [`Score`]. An operation is known by its key (`pg:N:i`, `redis:N:i`, `http:N:i`), which
//! is read back from the one attribute of its span that carries the tag.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use anyhow::{Result, ensure};

use crate::load::{Reply, number_of};
use crate::spans::Span;

/// How many examples of each fault a message shows.
const EXAMPLES: usize = 6;

/// What became of the requests and their operations.
#[derive(Debug, Default)]
pub struct Score {
    /// Requests sent.
    pub requests: usize,
    /// Operations run.
    pub operations: usize,
    /// Operations whose span is below the span of their own request.
    pub correct: usize,
    /// Examples, or all where few: spans below another request, or below nothing that was exported.
    pub wrong: Vec<String>,
    /// Spans without a parent.
    pub orphans: Vec<String>,
    /// The first part of the path of each orphan's request.
    pub orphaned_routes: Vec<String>,
    /// Operations without a span.
    pub missing: Vec<String>,
    /// Operations with more than one span.
    pub duplicates: Vec<String>,
    /// Requests without exactly one server span.
    pub uncaptured: Vec<String>,
    /// Tagged spans with a parent, of whatever request; see [`Score::judge_others`].
    pub others: usize,
}

/// The key of the operation that a client span stands for.
pub fn operation_key(span: &Span) -> Option<String> {
    let numbers = |text: &str, separator: char| {
        let mut parts = text.split(separator);
        let n = parts.next()?.parse::<u64>().ok()?;
        let i = parts.next()?.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()?;
        Some((n, i))
    };
    let after = |attribute: &str, mark: &str, separator: char| {
        numbers(span.attribute(attribute).split_once(mark)?.1, separator)
    };
    let (kind, (n, i)) = match span.attribute("db.system.name") {
        "postgresql" => ("pg", after("db.query.text", "tag_", '_')?),
        "redis" => ("redis", after("db.query.text", "k:", ':')?),
        _ => ("http", after("url.full", "/up/", '/')?),
    };
    Some(format!("{kind}:{n}:{i}"))
}

/// Scores the spans of the service whose server spans are those of `replies`.
pub fn score(replies: &[Reply], spans: &[Span]) -> Result<Score> {
    let by_id: HashMap<(&str, &str), &Span> =
        spans.iter().map(|span| ((span.trace_id.as_str(), span.span_id.as_str()), span)).collect();
    let mut servers: HashMap<&str, Vec<&Span>> = HashMap::new();
    let mut clients: HashMap<String, Vec<&Span>> = HashMap::new();
    for span in spans {
        if span.is_server() {
            servers.entry(span.attribute("url.path")).or_default().push(span);
        } else if let Some(key) = operation_key(span).filter(|_| span.is_client()) {
            clients.entry(key).or_default().push(span);
        }
    }
    let mut score = Score { requests: replies.len(), ..Score::default() };
    for reply in replies {
        let own = servers.get(reply.path.as_str()).map_or(0, Vec::len);
        if own != 1 {
            score.uncaptured.push(format!("{} has {own} server spans", reply.path));
        }
        for key in reply.operations()? {
            score.operations += 1;
            let found = clients.get(&key).map(Vec::as_slice).unwrap_or_default();
            match found {
                [] => score.missing.push(key),
                [span] => score.judge(&key, span, &by_id, reply),
                _ => score.duplicates.push(format!("{key}: {}", found.len())),
            }
        }
    }
    Ok(score)
}

impl Score {
    fn judge(&mut self, key: &str, span: &Span, by_id: &HashMap<(&str, &str), &Span>, reply: &Reply) {
        let mut at = span;
        loop {
            if at.parent_id.is_empty() {
                self.orphaned_routes.extend(reply.path.split('/').nth(1).map(str::to_owned));
                return self.orphans.push(format!("{key}: {}", span.line()));
            }
            let Some(parent) = by_id.get(&(at.trace_id.as_str(), at.parent_id.as_str())) else {
                return self.wrong.push(format!("{key}: the parent was not exported: {}", at.line()));
            };
            if parent.is_server() {
                let path = parent.attribute("url.path");
                if path == reply.path {
                    self.correct += 1;
                } else {
                    self.wrong.push(format!(
                        "{key}: under request {} ({path}): {}",
                        number_of(path),
                        span.line()
                    ));
                }
                return;
            }
            at = parent;
        }
    }

    /// Looks at the tagged spans of requests that have no reply, because they failed, were given up or timed out: what the
    /// service did for them is not known, but what has a parent must be below its own request.
    pub fn judge_others(&mut self, spans: &[Span]) {
        let by_id: HashMap<(&str, &str), &Span> =
            spans.iter().map(|span| ((span.trace_id.as_str(), span.span_id.as_str()), span)).collect();
        for span in spans.iter().filter(|span| span.is_client() && !span.parent_id.is_empty()) {
            let Some(key) = operation_key(span) else { continue };
            let own = key.split(':').nth(1).and_then(|n| n.parse::<u64>().ok());
            let parent = by_id.get(&(span.trace_id.as_str(), span.parent_id.as_str()));
            let path = parent.map(|parent| parent.attribute("url.path")).unwrap_or_default();
            self.others += 1;
            if own != Some(number_of(path)) {
                self.wrong.push(format!("{key}: under {path:?}: {}", span.line()));
            }
        }
    }

    /// The figures in one line, with the routes that the orphans are of.
    pub fn figures(&self) -> String {
        let mut routes: BTreeMap<&str, usize> = BTreeMap::new();
        for route in &self.orphaned_routes {
            *routes.entry(route).or_default() += 1;
        }
        let Self { requests, operations, correct, missing, uncaptured, .. } = self;
        let (missing, uncaptured) = (missing.len(), uncaptured.len());
        format!(
            "{requests} replies: {correct} of {operations} operations right, orphaned {routes:?}, {missing} missing, \
             {uncaptured} requests uncaptured"
        )
    }

    /// Fails unless everything is there and right.
    pub fn assert_perfect(&self) -> Result<()> {
        self.assert_honest()?;
        ensure!(self.orphans.is_empty(), "orphans\n{self}");
        Ok(())
    }

    /// Fails if anything is under a wrong parent, whatever else is missing.
    pub fn assert_never_wrong(&self) -> Result<()> {
        ensure!(self.operations > 0, "nothing was measured");
        ensure!(self.wrong.is_empty(), "wrong parents\n{self}");
        Ok(())
    }

    /// Fails unless everything is there and nothing is under a wrong parent; orphans may be.
    pub fn assert_honest(&self) -> Result<()> {
        self.assert_never_wrong()?;
        ensure!(self.uncaptured.is_empty(), "requests without their server span\n{self}");
        ensure!(self.missing.is_empty(), "missing spans\n{self}");
        ensure!(self.duplicates.is_empty(), "duplicate spans\n{self}");
        Ok(())
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, operations, correct, wrong, orphans, missing, duplicates, uncaptured, .. } =
            self;
        write!(f, "{requests} requests, {operations} operations: {correct} right")?;
        let faults = [
            ("wrong", wrong),
            ("orphaned", orphans),
            ("missing", missing),
            ("duplicate", duplicates),
            ("requests uncaptured", uncaptured),
        ];
        for (name, list) in faults {
            write!(f, ", {} {name}", list.len())?;
        }
        for (name, list) in faults {
            for example in list.iter().take(EXAMPLES) {
                write!(f, "\n    {name}: {example}")?;
            }
        }
        Ok(())
    }
}
