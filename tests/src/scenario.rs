//! One measurement: a service, a daemon attached to it early or late, tagged load on some routes, the oracle's score.

use anyhow::{Context as _, Result, ensure};

use crate::agent::Agent;
use crate::lab::Lab;
use crate::load::{Load, Reply};
use crate::oracle::{self, Score};
use crate::python::Python;
use crate::service::{Server, Service};
use crate::spans::Span;

/// When the daemon attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Before the first request: it sees every connection from its first byte.
    Early,
    /// After a warm-up: pools, keep-alive connections and prepared statements are older than the daemon.
    Late,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// `module` or `module:callable` of `apps/`.
    pub app: &'static str,
    /// What serves it.
    pub server: Server,
    /// Routes, each measured by itself.
    pub routes: &'static [&'static str],
    /// Requests for each route.
    pub requests: u64,
}

/// One score for each route.
pub type Scores = Vec<(&'static str, Score)>;

impl Scenario {
    /// Runs it; one score for each route.
    pub fn run(&self, lab: &Lab, python: &Python, attach: Attach) -> Result<Scores> {
        self.run_with(lab, python, attach, &[])
    }

    /// The same with these environment variables for the service.
    pub fn run_with(
        &self,
        lab: &Lab,
        python: &Python,
        attach: Attach,
        environment: &[(&str, &str)],
    ) -> Result<Scores> {
        let service = Service::start_with(lab, python, self.app, self.server, environment)?;
        let load = Load::new(service.port());
        let (scores, _, _) = self.measure(lab, &service, &load, attach)?;
        Ok(scores)
    }

    /// Measures a service that runs, with these clients; gives all replies and spans too.
    pub fn measure(
        &self,
        lab: &Lab,
        service: &Service,
        load: &Load,
        attach: Attach,
    ) -> Result<(Scores, Vec<Reply>, Vec<Span>)> {
        let mut next = 1_000_000;
        let mut take = |count| {
            next += count;
            next - count..next
        };
        if attach == Attach::Late {
            for route in self.routes {
                load.run(route, take(100)).with_context(|| service.log())?;
            }
        }
        let collector = lab.collector()?;
        let agent = Agent::start(&["--pid", &service.pid().to_string()], collector)?;
        let mut replies = Vec::new();
        for route in self.routes {
            replies.push((*route, load.run(route, take(self.requests)).with_context(|| service.log())?));
        }
        service.settle();
        let (finished, spans) = agent.finish(collector)?;
        ensure!(!spans.is_empty(), "no spans at all: {}", finished.stderr);
        let score = |(route, replies): &(_, Vec<_>)| Ok((*route, oracle::score(replies, &spans)?));
        let scores = replies.iter().map(score).collect::<Result<_>>()?;
        Ok((scores, replies.into_iter().flat_map(|(_, replies)| replies).collect(), spans))
    }

    /// Runs it and fails unless every operation is below its own request.
    pub fn assert_perfect(&self, lab: &Lab, python: &Python, attach: Attach) -> Result<String> {
        let scores = self.run(lab, python, attach)?;
        for (route, score) in &scores {
            score.assert_perfect().with_context(|| format!("/{route}"))?;
        }
        Ok(summary(&scores))
    }

    /// Runs it and fails if a span is missing or under a wrong parent; orphans are allowed.
    pub fn assert_honest(&self, lab: &Lab, python: &Python, attach: Attach) -> Result<String> {
        let scores = self.run(lab, python, attach)?;
        for (route, score) in &scores {
            score.assert_honest().with_context(|| format!("/{route}"))?;
        }
        Ok(summary(&scores))
    }
}

/// The figures of some routes in one line: what was right, and why the rest was not if not.
pub fn summary(scores: &[(&str, Score)]) -> String {
    let requests: usize = scores.iter().map(|(_, score)| score.requests).sum();
    let count = |of: fn(&Score) -> usize| scores.iter().map(|(_, score)| of(score)).sum::<usize>();
    let (operations, correct) = (count(|score| score.operations), count(|score| score.correct));
    let mut line = format!("{requests} requests: {correct} of {operations} operations right");
    for (name, of) in [
        ("wrong", (|score| score.wrong.len()) as fn(&Score) -> usize),
        ("orphaned", |score| score.orphans.len()),
        ("missing", |score| score.missing.len()),
    ] {
        let by_route: Vec<_> = scores
            .iter()
            .filter(|(_, score)| of(score) > 0)
            .map(|(route, score)| format!("{} of /{route}", of(score)))
            .collect();
        let by_route =
            if by_route.is_empty() { String::new() } else { format!(" ({})", by_route.join(", ")) };
        line += &format!(", {} {name}{by_route}", count(of));
    }
    line
}
