//! One mail transaction, from MAIL to the end of the message (RFC 5321 section 3.3).

use super::address::Address;

/// What is known of the transaction under way.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The reverse path.
    pub sender: Address,
    /// The size the client declared, in bytes.
    pub size: Option<u64>,
    /// Recipients accepted so far, by the MTA and by us.
    pub accepted: u32,
    /// Those of them that are exempt from nothing.
    pub judged: u32,
}

impl Transaction {
    /// A transaction with no recipient yet.
    pub fn new(sender: Address, size: Option<u64>) -> Self {
        Self { sender, size, accepted: 0, judged: 0 }
    }
}
