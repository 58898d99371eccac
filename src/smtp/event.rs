//! What happens in an SMTP session, as a front reports it.

use super::address::{Address, ClientText};

/// One event of a session (RFC 5321), with what the client or the MTA said at it.
#[derive(Clone, Debug)]
pub enum Event {
    /// The client has connected.
    Connect,
    /// HELO or EHLO. May be skipped, and comes again after STARTTLS.
    Helo {
        /// The name the client calls itself.
        name: ClientText,
    },
    /// MAIL FROM: begins a transaction.
    Mail {
        /// The reverse path.
        sender: Address,
        /// The size the client declared, in bytes (RFC 1870).
        size: Option<u64>,
        /// The name the client has authenticated as.
        user: Option<ClientText>,
        /// Whether the session is encrypted.
        tls: bool,
    },
    /// RCPT TO.
    Recipient {
        /// The forward path.
        address: Address,
        /// What the MTA itself makes of it.
        fate: Fate,
    },
    /// DATA: the envelope is complete.
    Data {
        /// Recipients accepted that this front was not asked about: a policy service that is
        /// asked no sooner hears only their number.
        unseen: u32,
    },
    /// The message is complete, and nobody before us has refused it.
    EndOfMessage {
        /// Its true size in bytes, where the MTA tells.
        size: Option<u64>,
    },
    /// The transaction has ended without a message. May be missing, doubled, or late.
    Abort,
    /// The session is over.
    Disconnect,
}

/// What the MTA makes of a recipient before it asks us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It would accept it.
    Offered,
    /// It has refused it because there is no such mailbox (enhanced code 5.1.x), and only lets us
    /// know.
    Unknown,
    /// It has refused it for another reason.
    Rejected,
    /// It will refuse it because there is no such mailbox, but has not yet: as where we are asked
    /// before it looks.
    Doomed,
}

/// The kind of an event, and its one name in logs, metrics and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Event::Connect`]
    Connect,
    /// [`Event::Helo`]
    Helo,
    /// [`Event::Mail`]
    Mail,
    /// [`Event::Recipient`]
    Recipient,
    /// [`Event::Data`]
    Data,
    /// [`Event::EndOfMessage`]
    EndOfMessage,
    /// [`Event::Abort`]
    Abort,
    /// [`Event::Disconnect`]
    Disconnect,
}

impl Kind {
    /// All kinds, in the order of a session.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Helo,
        Self::Mail,
        Self::Recipient,
        Self::Data,
        Self::EndOfMessage,
        Self::Abort,
        Self::Disconnect,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Helo => "helo",
            Self::Mail => "mail",
            Self::Recipient => "rcpt",
            Self::Data => "data",
            Self::EndOfMessage => "end-of-message",
            Self::Abort => "abort",
            Self::Disconnect => "disconnect",
        }
    }
}

impl Event {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Connect => Kind::Connect,
            Self::Helo { .. } => Kind::Helo,
            Self::Mail { .. } => Kind::Mail,
            Self::Recipient { .. } => Kind::Recipient,
            Self::Data { .. } => Kind::Data,
            Self::EndOfMessage { .. } => Kind::EndOfMessage,
            Self::Abort => Kind::Abort,
            Self::Disconnect => Kind::Disconnect,
        }
    }
}
