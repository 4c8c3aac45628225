//! Processes: who they are and which are targets. A look-up, never a stage of the pipeline.

pub mod resource;
