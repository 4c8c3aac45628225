//! Profiles as files for a person.

pub mod command;
