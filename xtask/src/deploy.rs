//! The options that `deploy/` and the README use must be options of `pitviper run`.

use std::{collections::BTreeSet, fs};

use crate::{command, workspace};

const FILES: [&str; 4] =
    ["deploy/pitviper.service", "deploy/Dockerfile", "deploy/daemonset.yaml", "README.md"];

/// The long options after each `pitviper run` of a text, up to the end of its line or quotation, and those of an
/// `args: ["run", …]` or `CMD ["run", …]` list.
fn options(text: &str) -> BTreeSet<&str> {
    let starts = ["pitviper run", "args: [\"run\"", "CMD [\"run\""];
    text.lines()
        .flat_map(|line| starts.iter().filter_map(move |start| Some(line.split_once(start)?.1)))
        .flat_map(|rest| rest.split('`').next().unwrap_or_default().split([' ', ',', ']', '"', '=']))
        .map(|word| word.trim_end_matches(|c: char| c.is_ascii_punctuation()))
        .filter(|word| word.starts_with("--"))
        .collect()
}

#[test]
fn options_are_found_where_they_are_used() {
    let text = "uvicorn --reload\nExecStart=/usr/bin/pitviper run --pid 1 --port=80\nargs: [\"run\", \"--console\"]\n\
                `pitviper run --exe a` with `--other` (pitviper run --port).";
    assert_eq!(options(text), BTreeSet::from(["--pid", "--port", "--console", "--exe"]));
}

#[test]
fn deployed_options_exist() {
    let Some(daemon) = [true, false].map(workspace::daemon).into_iter().find(|path| path.is_file()) else {
        eprintln!("skipped: there is no pitviper in target/; run `cargo xtask build` first");
        return;
    };
    let help = command::output(command::new("timeout").arg("10").arg(&daemon).args(["run", "--help"]))
        .expect("pitviper run --help works");
    for file in FILES {
        let text = fs::read_to_string(workspace::root().join(file)).expect(file);
        for option in options(&text) {
            let known = help.split([' ', ',', '\n', '=']).any(|word| word == option);
            assert!(known, "{file} uses {option}, which `pitviper run --help` does not list");
        }
    }
}
