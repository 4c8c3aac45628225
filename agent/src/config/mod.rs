//! The agent's own configuration from OpenTelemetry's environment variables.
