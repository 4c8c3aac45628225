//! Where profile samples go while `pitviper run` works: to the exporters, and to the summary at the end of the console.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use opentelemetry_sdk::trace::SpanData;

use crate::export::profiles::ProfileExport;
use crate::profile::by_route::ByRoute;
use crate::profile::collapsed::{self, Level};
use crate::profile::stacks::{Stacks, Subject};
use crate::profile::{FrameKind, Sample};
use crate::record::files::write_file;

/// Routes of the summary, the busiest ones.
const MOST_ROUTES: usize = 8;
/// Functions of a route.
const MOST_FUNCTIONS: usize = 5;

/// The takers of samples.
pub(super) struct Samples {
    export: ProfileExport,
    summary: Option<ByRoute>,
    /// For debugging: collapsed stacks with the ids of trace and span, written at the end.
    file: Option<(PathBuf, Stacks)>,
}

impl Samples {
    /// With a `summary` the hottest functions are known at the end.
    pub(super) fn new(export: ProfileExport, summary: bool, file: Option<PathBuf>) -> Self {
        let file = file.map(|path| (path, Stacks::default()));
        Self { export, summary: summary.then(ByRoute::default), file }
    }

    pub(super) fn sample(&mut self, sample: Sample) {
        if let Some((_, stacks)) = &mut self.file {
            let Sample { service, stack, link, .. } = &sample;
            let service = Some(service.name.as_str().into());
            stacks.add(Subject { service, route: None, link: *link }, stack.clone(), 1);
        }
        if let Some(summary) = &mut self.summary {
            summary.sample(sample.clone());
        }
        self.export.push(sample);
    }

    pub(super) fn span(&mut self, span: &SpanData) {
        if let Some(summary) = &mut self.summary {
            summary.span(span);
        }
    }

    /// The summary, if it was asked for and if there is anything to say.
    pub(super) fn finish(self, period: Duration) -> Result<Option<String>> {
        if let Some((path, stacks)) = self.file {
            write_file(&path, |to| collapsed::write(&stacks, Level::Request, to))?;
        }
        Ok(self.summary.map(ByRoute::finish).filter(|stacks| !stacks.is_empty()).map(|s| summary(&s, period)))
    }
}

/// The hottest functions of each route.
fn summary(stacks: &Stacks, period: Duration) -> String {
    let seconds = |samples: u64| samples as f64 * period.as_secs_f64();
    let total = stacks.total();
    let mut text = format!("CPU: {:.1} s in {total} samples; the hottest functions", seconds(total));
    let routes = stacks.by_route();
    let of_routes: u64 = routes.iter().map(|(_, of)| of.total()).sum();
    let mut section = |heading: &str, of: &Stacks| {
        let sum = of.total();
        let _ = write!(text, "\n{heading}  {:.1} s", seconds(sum));
        for (frame, samples) in of.hottest(MOST_FUNCTIONS) {
            let share = samples as f64 * 100.0 / sum.max(1) as f64;
            let file = frame.file.rsplit_once('/').map_or(&*frame.file, |(_, name)| name);
            let place = match frame.kind {
                _ if file.is_empty() => String::new(),
                FrameKind::Python => format!("  {file}:{}", frame.first_line),
                FrameKind::Native => format!("  {file}"),
            };
            let _ = write!(text, "\n  {share:3.0} %  {}{place}", frame.function);
        }
    };
    for (route, of) in routes.iter().take(MOST_ROUTES) {
        section(route, of);
    }
    if of_routes < total {
        section("outside of requests", &stacks.without_route());
    }
    // Names come from other processes: no control character of theirs reaches the terminal.
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::stacks::tests::sample;

    #[test]
    fn summarises_by_route() {
        let expected = "CPU: 0.1 s in 7 samples; the hottest functions
GET /a  0.0 s
  100 %  price  main.py:10
GET /b  0.0 s
  100 %  Ware.größe  main.py:10
outside of requests  0.0 s
  100 %  main  main.py:10";
        assert_eq!(summary(&sample(), Duration::from_millis(10)), expected);
    }
}
