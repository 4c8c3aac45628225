//! Processes: who they are and which are targets. A look-up, never a stage of the pipeline.
//!
//! [`identity`] tells from a command line what a process serves, [`resource`] makes OpenTelemetry's resource of it,
//! [`select`] is which processes the user wants, [`ps`] the listing of those that there are.

pub mod cgroup;
pub mod command;
pub mod container;
pub mod environ;
pub mod host;
pub mod identity;
pub mod naming;
pub mod ports;
pub mod ps;
pub mod resource;
pub mod sdk;
pub mod select;
mod target_name;
pub mod tree;
