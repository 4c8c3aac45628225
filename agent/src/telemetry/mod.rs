//! What the agent says of itself: a [`Report`] that the pipeline makes when somebody asks.
//!
//! Two ask: `pitviper ps`, through the daemon's [`socket`], and the [`metrics`] that go to the OTLP receiver. The
//! pipeline's thread answers [`inquiry::Questions`] between its rounds, so that nothing is counted twice, shared or
//! locked while nobody asks.

pub mod inquiry;
mod instruments;
pub mod metrics;
pub mod push;
pub mod report;
pub mod socket;

pub use report::{ProcessReport, Report};
