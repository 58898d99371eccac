//! What an administrator runs beside the daemon.

pub mod check;
