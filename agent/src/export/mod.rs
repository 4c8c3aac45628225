//! Finished spans out of the process: the bounded queue, OTLP over gRPC and HTTP, and the console.

pub mod console;
