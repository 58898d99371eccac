//! One mail transaction, from MAIL to the end of the message (RFC 5321 section 3.3).

use super::address::Address;

/// What is known of the transaction under way.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The reverse path.
    pub sender: Address,
    /// Recipients accepted so far, by the MTA and by us.
    pub accepted: u32,
}

impl Transaction {
    /// A transaction with no recipient yet.
    pub fn new(sender: Address) -> Self {
        Self { sender, accepted: 0 }
    }
}
