//! Which command may follow which, as libmilter has it (its engine.c) and indymilter after it.

use indymilter::ProtoOpts;
use indymilter::message::command::CommandKind;

/// How far a connection has come: the last command that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Nothing yet.
    Begin,
    Negotiated,
    Connect,
    Helo,
    Mail,
    Recipient,
    Data,
    Header,
    EndOfHeader,
    Body,
    EndOfMessage,
    Quit,
    Abort,
    Unknown,
    /// The session has ended, and another may begin on the same connection.
    QuitAndStay,
}

impl Stage {
    /// In the order in which they come, and are passed over where the MTA leaves some out.
    const ALL: [Self; 15] = [
        Self::Begin,
        Self::Negotiated,
        Self::Connect,
        Self::Helo,
        Self::Mail,
        Self::Recipient,
        Self::Data,
        Self::Header,
        Self::EndOfHeader,
        Self::Body,
        Self::EndOfMessage,
        Self::Quit,
        Self::Abort,
        Self::Unknown,
        Self::QuitAndStay,
    ];

    /// Where a command leads; macros come at any time and lead nowhere.
    pub(super) fn of(command: CommandKind) -> Option<Self> {
        Some(match command {
            CommandKind::DefMacros => return None,
            CommandKind::OptNeg => Self::Negotiated,
            CommandKind::ConnInfo => Self::Connect,
            CommandKind::Helo => Self::Helo,
            CommandKind::Mail => Self::Mail,
            CommandKind::Rcpt => Self::Recipient,
            CommandKind::Data => Self::Data,
            CommandKind::Header => Self::Header,
            CommandKind::Eoh => Self::EndOfHeader,
            CommandKind::BodyChunk => Self::Body,
            CommandKind::BodyEnd => Self::EndOfMessage,
            CommandKind::Quit => Self::Quit,
            CommandKind::Abort => Self::Abort,
            CommandKind::Unknown => Self::Unknown,
            CommandKind::QuitNc => Self::QuitAndStay,
        })
    }

    /// Whether a message is under way.
    pub(super) fn is_in_transaction(self) -> bool {
        (Self::Mail..=Self::Body).contains(&self)
    }

    /// Whether this may come next from an MTA that leaves out what these options say.
    pub(super) fn leads_to(self, next: Self, left_out: ProtoOpts) -> bool {
        let after = Self::ALL.into_iter().skip(self as usize + 1);
        let mut passed_over =
            after.take_while(|stage| stage.option().is_some_and(|it| left_out.contains(it)));
        self.precedes(next) || passed_over.any(|stage| stage.precedes(next))
    }

    fn precedes(self, next: Self) -> bool {
        use Stage::*;
        match self {
            Begin => next == Negotiated,
            Negotiated | QuitAndStay => matches!(next, Connect | Unknown),
            Connect | Helo => matches!(next, Helo | Mail | Unknown),
            Mail => matches!(next, Recipient | Abort | Unknown),
            Recipient => matches!(
                next,
                Header | EndOfHeader | Data | Body | EndOfMessage | Recipient | Abort | Unknown
            ),
            Data | Header => matches!(next, EndOfHeader | Header | Abort),
            EndOfHeader | Body => matches!(next, Body | EndOfMessage | Abort),
            EndOfMessage => matches!(next, Quit | Mail | Unknown | QuitAndStay),
            Quit | Abort => false,
            Unknown => matches!(
                next,
                Helo | Mail | Recipient | Data | Body | Unknown | Abort | Quit | QuitAndStay
            ),
        }
    }

    /// The option by which an MTA leaves it out, if it can.
    fn option(self) -> Option<ProtoOpts> {
        Some(match self {
            Self::Connect => ProtoOpts::NO_CONNECT,
            Self::Helo => ProtoOpts::NO_HELO,
            Self::Mail => ProtoOpts::NO_MAIL,
            Self::Recipient => ProtoOpts::NO_RCPT,
            Self::Data => ProtoOpts::NO_DATA,
            Self::Header => ProtoOpts::NO_HEADER,
            Self::EndOfHeader => ProtoOpts::NO_EOH,
            Self::Body => ProtoOpts::NO_BODY,
            Self::Unknown => ProtoOpts::NO_UNKNOWN,
            Self::Begin
            | Self::Negotiated
            | Self::EndOfMessage
            | Self::Quit
            | Self::Abort
            | Self::QuitAndStay => return None,
        })
    }
}
