//! Pitviper's daemon: what the kernel saw of a Python service, made into OpenTelemetry traces.
//!
//! Data flows one way, in the order of the modules: [`kernel`] events, [`connection`] streams, [`protocol`] exchanges,
//! [`causality`] (which request is this part of), [`trace`] spans, [`profile`] samples, [`export`]. No stage imports a later
//! one; [`process`], [`python`] and [`tls`] are look-ups, and [`config`] is read once. [`telemetry`] is what the agent says of itself.
//! [`pipeline`] wires the stages up; [`run`], [`record`] and [`ps`] are the commands around it. Only [`kernel`] calls bpf(2)
//! and holds `unsafe`; only [`export`] speaks OTLP; [`causality`] knows no protocol.

#![deny(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod config;
#[allow(
    unsafe_code,
    reason = "records are bytes, and descriptors are borrowed; each block says why it is sound"
)]
pub mod kernel;
pub mod logger;
pub mod process;
pub mod python;
pub mod tls;

pub mod connection;
pub mod protocol;

pub mod causality;
pub mod trace;

pub mod profile;

pub mod timing;

pub mod export;
pub mod telemetry;

pub mod pipeline;
pub mod ps;
pub mod record;
pub mod run;
