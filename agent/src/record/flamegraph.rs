//! Flame graphs as interactive SVG, by inferno.

use std::io::{self, Write};

use inferno::flamegraph::color::{BasicPalette, Palette};
use inferno::flamegraph::{Options, from_lines};

use crate::profile::collapsed::replace_separators;
use crate::profile::stacks::Stacks;
use crate::profile::{Frame, FrameKind};

/// Draws the stacks. A level is a function, whatever the line: that is what a flame graph is looked at for; the lines are
/// in the other files.
pub fn write(stacks: &Stacks, title: &str, to: impl Write) -> io::Result<()> {
    let lines: Vec<String> = stacks
        .iter()
        .map(|entry| {
            let levels: Vec<String> = entry.outermost_first().iter().map(level).collect();
            format!("{} {}", levels.join(";"), entry.count)
        })
        .collect();
    let mut options = Options::default();
    options.title = title.to_owned();
    options.count_name = "samples".to_owned();
    options.colors = Palette::Basic(BasicPalette::Hot);
    options.min_width = 0.05;
    options.hash = true;
    from_lines(&mut options, lines.iter().map(String::as_str), to).map_err(io::Error::other)
}

/// A level's text.
fn level(frame: &Frame) -> String {
    let file = frame.file.rsplit_once('/').map_or(&*frame.file, |(_, name)| name);
    let text = match frame.kind {
        _ if file.is_empty() => frame.function.to_string(),
        FrameKind::Python => format!("{} ({file}:{})", frame.function, frame.first_line),
        FrameKind::Native => format!("{} ({file})", frame.function),
    };
    replace_separators(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::stacks::Subject;
    use crate::profile::stacks::tests::{frame, sample, stack};

    #[test]
    fn shows_functions_with_their_share() {
        let mut stacks = sample();
        stacks.add(Subject::default(), stack([frame("main", 1), frame("<eval;\n>", 1)]), 1);
        let mut svg = Vec::new();
        write(&stacks, "shop: CPU <all>", &mut svg).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        assert!(svg.contains("price (main.py:10) (4 samples, 50.00%)"), "{svg}");
        assert!(svg.contains("Ware.größe (main.py:10) (2 samples, 25.00%)"));
        assert!(svg.contains("&lt;eval__&gt;") && svg.contains("shop: CPU &lt;all&gt;"));
    }

    #[test]
    fn nothing_recorded_is_an_error_that_says_so() {
        let error = write(&Stacks::default(), "x", Vec::new()).unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
