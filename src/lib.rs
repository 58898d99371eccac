//! wip
pub mod clock;
pub mod setting;
pub mod meter;
pub mod smtp;
pub mod policy;
pub mod telemetry;
pub mod engine;
pub mod front;
