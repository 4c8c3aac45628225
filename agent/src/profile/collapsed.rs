//! Collapsed stacks: a line for each stack, outermost frame first, with the number of its samples. The input of flame graph
//! tools: <https://github.com/brendangregg/FlameGraph>.

use std::collections::BTreeMap;
use std::io;

use super::{Frame, Sample};

/// Samples, counted by their stacks.
#[derive(Debug, Default)]
pub struct Collapsed {
    counts: BTreeMap<String, u64>,
    by_request: bool,
}

impl Collapsed {
    /// The same with the ids of trace and span below the service, as far as they are known.
    pub fn by_request() -> Self {
        Self { by_request: true, ..Self::default() }
    }

    /// Counts a sample.
    pub fn add(&mut self, sample: &Sample) {
        let mut line = String::new();
        push(&mut line, &sample.service.name);
        if self.by_request {
            let ids = sample.link.map(|link| format!("{}:{}", link.trace_id, link.span_id));
            push(&mut line, ids.as_deref().unwrap_or("[no request]"));
        }
        if sample.stack.truncated {
            push(&mut line, "[truncated]");
        }
        if sample.stack.frames.is_empty() {
            push(&mut line, "[no Python]");
        }
        for frame in sample.stack.frames.iter().rev() {
            push(&mut line, &text(frame));
        }
        *self.counts.entry(line).or_default() += 1;
    }

    /// Samples so far.
    pub fn samples(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Writes the lines, sorted.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        self.counts.iter().try_for_each(|(stack, count)| writeln!(out, "{stack} {count}"))
    }
}

/// `function (file:line)`, as py-spy has it.
fn text(frame: &Frame) -> String {
    let Frame { function, file, line, .. } = frame;
    if file.is_empty() { function.to_string() } else { format!("{function} ({file}:{line})") }
}

/// Adds a frame. Semicolons and line breaks are the format's own.
fn push(line: &mut String, frame: &str) {
    if !line.is_empty() {
        line.push(';');
    }
    line.extend(frame.chars().map(|c| if c == ';' || c.is_control() { '_' } else { c }));
}
