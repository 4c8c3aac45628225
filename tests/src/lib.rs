//! The harness of pitviper's whole-system tests: real interpreters, servers and back ends, and a real OTLP receiver.
//!
//! A test binary is a [`runner::Suite`] of cases over one [`lab::Lab`]. A case starts a [`service`] of `apps/`, points
//! an [`agent`] at it, sends tagged [`load`], and lets the [`oracle`] compare what the [`collector`] received with what
//! the service said it did. Everything that is started is ended on drop, by pid.

pub mod agent;
pub mod celery;
pub mod chroot;
pub mod collector;
pub mod debian11;
pub mod lab;
pub mod load;
pub mod metrics;
pub mod mix;
pub mod observation;
pub mod oracle;
pub mod packages;
pub mod postgres;
pub mod process;
pub mod python;
pub mod redis;
pub mod runner;
pub mod scenario;
pub mod service;
pub mod sink;
pub mod spans;
pub mod stacks;
pub mod steady;
pub mod tls;
pub mod variants;
