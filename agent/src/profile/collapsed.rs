//! Collapsed stacks: a line for each stack, outermost frame first, with the number of its samples. The input of flame graph
//! tools: <https://github.com/brendangregg/FlameGraph>.

use std::collections::BTreeMap;
use std::io;

use super::stacks::{Entry, Stacks};
use super::{Frame, FrameKind};

/// What stands between the service and its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    Service,
    /// The ids of trace and span, as far as they are known.
    Request,
}

/// Writes the lines, sorted.
pub fn write(stacks: &Stacks, level: Level, out: &mut impl io::Write) -> io::Result<()> {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for entry in stacks.iter() {
        *lines.entry(line(&entry, level)).or_default() += entry.count;
    }
    lines.iter().try_for_each(|(stack, count)| writeln!(out, "{stack} {count}"))
}

fn line(entry: &Entry<'_>, level: Level) -> String {
    let subject = entry.subject;
    let ids = || subject.link.map(|link| format!("{}:{}", link.trace_id, link.span_id));
    let request = (level == Level::Request).then(|| ids().unwrap_or_else(|| "[no request]".to_owned()));
    let frames = entry.outermost_first();
    let levels = subject.service.as_deref().map(str::to_owned).into_iter().chain(request);
    let levels: Vec<String> =
        levels.chain(frames.iter().map(text)).map(|level| replace_separators(&level)).collect();
    levels.join(";")
}

/// `function (file:line)` or `function (library)`, as py-spy has it.
fn text(frame: &Frame) -> String {
    let Frame { kind, function, file, line, .. } = frame;
    match kind {
        _ if file.is_empty() => function.to_string(),
        FrameKind::Python => format!("{function} ({file}:{line})"),
        FrameKind::Native => format!("{function} ({file})"),
    }
}

/// A level's text without what would be taken for the end of the level or of the stack.
pub fn replace_separators(level: &str) -> String {
    level.chars().map(|c| if c == ';' || c.is_control() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Stack;
    use super::super::stacks::Subject;
    use super::super::stacks::tests::{frame, link, stack};
    use super::*;

    fn check(level: Level, samples: &[(Option<u8>, Stack)], expected: &str) {
        let mut stacks = Stacks::default();
        for (number, stack) in samples {
            let subject = Subject { service: Some("shop".into()), route: None, link: number.map(link) };
            stacks.add(subject, stack.clone(), 1);
        }
        let mut text = Vec::new();
        write(&stacks, level, &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn outermost_first_and_counted() {
        let stack = stack([frame("größe", 9), frame("inner", 3)]);
        let line = "shop;größe (/srv/shop/main.py:9);inner (/srv/shop/main.py:3) 2\n";
        check(Level::Service, &[(Some(1), stack.clone()), (None, stack)], line);
    }

    #[test]
    fn what_is_missing_is_said() {
        let truncated = Stack { truncated: true, ..stack([frame("f", 1)]) };
        let samples = [(None, truncated), (None, Stack::default())];
        let expected = "shop;[no Python] 1\nshop;[truncated];f (/srv/shop/main.py:1) 1\n";
        check(Level::Service, &samples, expected);
    }

    #[test]
    fn names_do_not_break_the_format() {
        let samples = [(None, stack([frame("a;b\nc", 1)]))];
        check(Level::Service, &samples, "shop;a_b_c (/srv/shop/main.py:1) 1\n");
    }

    #[test]
    fn by_request() {
        let stack = stack([frame("f", 1)]);
        let expected = "shop;02020202020202020202020202020202:0202020202020202;f (/srv/shop/main.py:1) 1\n\
                        shop;[no request];f (/srv/shop/main.py:1) 1\n";
        check(Level::Request, &[(Some(2), stack.clone()), (None, stack)], expected);
    }
}
