//! `cargo xtask layouts`: writes the agent's tables of CPython's structures anew from the headers of the builds of this machine.

use anyhow::Result;

use crate::{command, progress::Step, workspace};

/// The system test that compares the tables does the work.
pub(crate) fn layouts() -> Result<()> {
    let step = Step::loud("layouts");
    let mut test = workspace::cargo();
    test.args(["test", "--locked", "--quiet", "--package", "pitviper-tests", "--test", "layouts"]);
    command::loud(test.args(["--", "--nocapture"]).env("PITVIPER_WRITE_LAYOUTS", "1"))?;
    command::loud(workspace::cargo().args(["fmt", "--package", "pitviper"]))?;
    step.done("");
    Ok(())
}
