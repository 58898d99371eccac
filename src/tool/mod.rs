//! What an administrator runs beside the daemon.

pub mod check;
pub mod command;
pub mod ctl;
mod dial;
mod explain;
pub mod foreign;
mod lines;
pub mod log;
pub mod manual;
pub mod outcome;
pub mod replay;
pub mod setup;
pub mod state;
mod status;
