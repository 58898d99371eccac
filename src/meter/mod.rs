//! The arithmetic of limits. It knows nothing of mail.

pub mod changes;
pub mod distinct;
pub mod forgotten;
pub mod gcra;
pub mod key;
pub mod quota;
pub mod record;
pub mod table;
pub mod units;
