//! The `pitviper` command: options and environment in, exit code out.

use std::io;
use std::process::ExitCode;

use anyhow::Error;
use clap::Parser as _;
use pitviper::cli::{Cli, Command};
use pitviper::kernel::sweeper;
use pitviper::{logger, process, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Run(options) => {
            logger::install(options.verbose);
            run::run(&options)
        }
        Command::Ps => list(),
        Command::Sweep { daemon } => sweeper::main(daemon).map_err(Error::from),
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
