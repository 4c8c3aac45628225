//! Collapsed stacks as the daemon wrote them, taken apart for assertions.

use std::path::Path;

use anyhow::{Context as _, Result};

/// A line of collapsed stacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// What is not a frame: the service, the ids of a request, `[truncated]`.
    pub labels: Vec<String>,
    /// Outermost first.
    pub frames: Vec<Frame>,
    /// Samples.
    pub count: u64,
}

/// `function (file:line)`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its (qualified) name.
    pub function: String,
    /// Its file.
    pub file: String,
    /// Its line.
    pub line: u32,
}

/// Reads a file of them.
pub fn read(path: &Path) -> Result<Vec<Stack>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    text.lines().map(|line| parse(line).with_context(|| format!("no stack: {line}"))).collect()
}

fn parse(line: &str) -> Option<Stack> {
    let (stack, count) = line.rsplit_once(' ')?;
    let (mut labels, mut frames) = (Vec::new(), Vec::new());
    for part in stack.split(';') {
        match frame(part) {
            Some(frame) => frames.push(frame),
            None => labels.push(part.to_owned()),
        }
    }
    Some(Stack { labels, frames, count: count.parse().ok()? })
}

fn frame(text: &str) -> Option<Frame> {
    let (function, place) = text.strip_suffix(')')?.split_once(" (")?;
    let (file, line) = place.rsplit_once(':')?;
    Some(Frame { function: function.to_owned(), file: file.to_owned(), line: line.parse().ok()? })
}

impl Stack {
    /// Whether a label or a frame without a place says so.
    pub fn says(&self, label: &str) -> bool {
        self.labels.iter().any(|part| part == label)
    }

    /// The functions, outermost first.
    pub fn functions(&self) -> Vec<&str> {
        self.frames.iter().map(|frame| frame.function.as_str()).collect()
    }
}
