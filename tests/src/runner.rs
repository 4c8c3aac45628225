//! Runs the cases of a test binary one after the other over one [`Lab`], and tells how each went.
//!
//! libtest would leave shared servers running (statics are never dropped) and run cases at once on shared ports.
//! Arguments: words that a case's name must contain, `--list`, `--exact`; libtest's other options are ignored.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Error, Result};

use crate::lab::Lab;

/// Says that a case cannot run on this machine, and why.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// The error that makes the runner skip the case.
pub fn skip(reason: impl Into<String>) -> Error {
    Error::new(Skip(reason.into()))
}

type Run = Box<dyn Fn(&Lab) -> Result<String>>;

/// The cases of a test binary.
#[derive(Default)]
pub struct Suite {
    cases: Vec<(String, Run)>,
}

impl Suite {
    /// No cases yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a case. What it returns is printed beside its name.
    pub fn case<T: Into<String>>(
        mut self,
        name: impl Into<String>,
        run: impl Fn(&Lab) -> Result<T> + 'static,
    ) -> Self {
        self.cases.push((name.into(), Box::new(move |lab| run(lab).map(Into::into))));
        self
    }

    /// Runs the cases that the arguments select.
    pub fn main(self) -> ExitCode {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let (options, words): (Vec<_>, Vec<_>) = arguments.iter().partition(|word| word.starts_with("--"));
        let exact = options.iter().any(|option| *option == "--exact");
        let wanted = |name: &str| {
            let fits =
                |word: &&String| if exact { name == word.as_str() } else { name.contains(word.as_str()) };
            words.is_empty() || words.iter().any(fits)
        };
        let cases: Vec<_> = self.cases.into_iter().filter(|(name, _)| wanted(name)).collect();
        if options.iter().any(|option| *option == "--list") {
            cases.iter().for_each(|(name, _)| println!("{name}: test"));
            return ExitCode::SUCCESS;
        }
        if cases.is_empty() {
            return ExitCode::SUCCESS;
        }
        let lab = match Lab::start() {
            Ok(lab) => lab,
            Err(error) => {
                eprintln!("the back ends did not start: {error:#}");
                return ExitCode::FAILURE;
            }
        };
        let mut failed = Vec::new();
        for (name, run) in &cases {
            let start = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&lab)));
            let seconds = start.elapsed().as_secs_f32();
            match outcome {
                Ok(Ok(note)) => println!("ok      {name} ({seconds:.1} s) {note}"),
                Ok(Err(error)) if error.is::<Skip>() => println!("skipped {name}: {error}"),
                Ok(Err(error)) => {
                    println!("FAILED  {name} ({seconds:.1} s)\n  {error:#}");
                    failed.push(name.as_str());
                }
                Err(_) => failed.push(name.as_str()),
            }
        }
        drop(lab);
        println!("{} of {} cases passed", cases.len() - failed.len(), cases.len());
        if failed.is_empty() {
            return ExitCode::SUCCESS;
        }
        println!("failed: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}
