//! The `pitviper` command: options and environment in, exit code out.

use std::io;
use std::process::ExitCode;

use anyhow::Error;
use clap::Parser as _;
use pitviper::cli::{Cli, Command};
use pitviper::{logger, process, record, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Run(options) => {
            logger::install(options.verbose);
            run::run(&options)
        }
        Command::Record(options) => {
            logger::install(options.verbose);
            record::command::record(&options)
        }
        Command::Ps => list(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pitviper: {error:#}");
            ExitCode::from(if error.is::<run::Unusable>() { 2 } else { 1 })
        }
    }
}

fn list() -> Result<(), Error> {
    match process::ps::render(&process::ps::list(), &mut io::stdout().lock()) {
        // A reader that has gone away, such as `head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
