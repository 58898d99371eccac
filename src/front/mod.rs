//! Bytes to events, decisions to bytes.

pub mod address;
pub mod control;
mod counted;
mod guests;
pub mod http;
pub mod listen;
pub mod listener;
pub mod milter;
pub mod packaged;
pub mod passed;
pub mod policyd;
pub mod socket_file;
pub mod takeable;
pub mod transport;
