//! What an administrator runs beside the daemon.

pub mod check;
pub mod ctl;
pub mod foreign;
pub mod state;
mod text;
