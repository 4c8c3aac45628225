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

#[cfg(test)]
mod tests {
    use opentelemetry::{SpanId, TraceId};

    use super::super::testing::{frame, sample};
    use super::super::{Link, Stack};
    use super::*;

    fn check(collapsed: Collapsed, samples: &[Sample], expected: &str) {
        let mut collapsed = collapsed;
        samples.iter().for_each(|sample| collapsed.add(sample));
        let mut text = Vec::new();
        collapsed.write(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert_eq!(collapsed.samples(), samples.len() as u64);
    }

    #[test]
    fn outermost_first_and_counted() {
        let stack = Stack { frames: vec![frame("inner", 3), frame("größe", 9)], truncated: false };
        let line = "shop;größe (/srv/shop.py:9);inner (/srv/shop.py:3) 2\n";
        check(Collapsed::default(), &[sample(stack.clone()), sample(stack)], line);
    }

    #[test]
    fn what_is_missing_is_said() {
        let truncated = Stack { frames: vec![frame("f", 1)], truncated: true };
        let samples = [sample(truncated), sample(Stack::default())];
        check(Collapsed::default(), &samples, "shop;[no Python] 1\nshop;[truncated];f (/srv/shop.py:1) 1\n");
    }

    #[test]
    fn names_do_not_break_the_format() {
        let stack = Stack { frames: vec![frame("a;b\nc", 1)], truncated: false };
        check(Collapsed::default(), &[sample(stack)], "shop;a_b_c (/srv/shop.py:1) 1\n");
    }

    #[test]
    fn by_request() {
        let stack = Stack { frames: vec![frame("f", 1)], truncated: false };
        let mut of_request = sample(stack.clone());
        of_request.link =
            Some(Link { trace_id: TraceId::from_bytes([1; 16]), span_id: SpanId::from_bytes([2; 8]) });
        let expected = "shop;01010101010101010101010101010101:0202020202020202;f (/srv/shop.py:1) 1\n\
                        shop;[no request];f (/srv/shop.py:1) 1\n";
        check(Collapsed::by_request(), &[of_request, sample(stack)], expected);
    }
}
