//! wip
pub mod clock;
pub mod meter;
pub mod smtp;
