//! The `pitviper` command: options and environment in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use pitviper::cli::{Cli, Command};
use pitviper::{logger, ps, record, run};

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
        Command::Ps(options) => ps::ps(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pitviper: {error:#}");
            ExitCode::from(if error.is::<run::Unusable>() { 2 } else { 1 })
        }
    }
}
