//! The words of mail (RFC 5321), as values only.

pub mod address;
pub mod client;
pub mod domain;
pub mod event;
pub mod harmless;
pub mod mailbox;
pub mod pool;
pub mod reply;
pub mod template;
pub mod transaction;
pub mod translation;
