//! Memory that outlives the process: what every backend keeps, and what the keeper makes of one
//! that dies, stalls, is full, or gives back damage.
//!
//! The daemon itself, with a real disk, is in `tests/daemon_state.rs`.

mod support;

#[path = "store/backends.rs"]
mod backends;
#[path = "store/deaths.rs"]
mod deaths;
#[path = "store/forgotten.rs"]
mod forgotten;
#[path = "store/host.rs"]
mod host;
#[path = "store/shelf.rs"]
mod shelf;
#[path = "store/start.rs"]
mod start;
#[path = "store/trouble.rs"]
mod trouble;
