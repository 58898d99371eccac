//! What Postfix asks, and what it is told: SMTPD_POLICY_README.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use crate::meter::key::KeyMaker;
use crate::smtp::address::{Address, ClientText};
use crate::smtp::client::Client;
use crate::smtp::event::{Event, Fate};
use crate::smtp::reply::{Code, Reply};
use crate::telemetry::Failure;

/// One request.
#[derive(Debug)]
pub struct Request<'a> {
    /// When Postfix asks.
    pub stage: Stage,
    /// About whom.
    pub client: Client,
    /// What the client calls itself; empty before HELO.
    pub helo: ClientText,
    /// The name of the message, from its first recipient on; empty before.
    pub instance: &'a str,
    /// What `main.cf` calls the restriction list that asks; empty if nothing.
    pub context: &'a str,
    /// How many recipients Postfix has accepted; told from DATA on.
    pub recipient_count: u32,
    /// The size of the message in bytes: the declared one, and at its end the true one.
    pub size: Option<u64>,
    sender: &'a str,
    recipient: &'a str,
}

/// The stage at which Postfix asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The client has connected.
    Connect,
    /// HELO or EHLO.
    Helo,
    /// MAIL.
    Mail,
    /// RCPT. Unless `smtpd_delay_reject = no`, all that came before is asked about here, too.
    Recipient,
    /// DATA or BDAT.
    Data,
    /// The message is complete.
    EndOfMessage,
    /// A command that we have no opinion on: VRFY, ETRN, and what may come.
    Other,
}

/// Bytes that are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// More bytes without an end than any request has.
    TooLong,
    /// A line without `=`.
    NoAttribute,
    /// `request` is missing or not `smtpd_access_policy`.
    NoRequest,
    /// Well-formed, but without a client address that can be read.
    NoClient,
}

impl Garbage {
    /// What it counts as.
    pub fn failure(self) -> Failure {
        match self {
            Self::TooLong | Self::NoAttribute | Self::NoRequest => Failure::Frame,
            Self::NoClient => Failure::Address,
        }
    }
}

impl Display for Garbage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "a policy request without an end",
            Self::NoAttribute => "a policy request with a line that is no name=value",
            Self::NoRequest => "a policy request that is not for smtpd_access_policy",
            Self::NoClient => "a policy request without a client address that can be read",
        })
    }
}

impl<'a> Request<'a> {
    /// Reads a request. An attribute that is missing, as in older versions, is empty; one that is
    /// not known, as in newer ones, is skipped.
    pub fn parse(text: &'a str) -> Result<Self, Garbage> {
        let mut kind = "";
        let (mut stage, mut address, mut port, mut name) = ("", "", "", "");
        let (mut helo, mut instance, mut sender, mut recipient) = ("", "", "", "");
        let (mut recipient_count, mut size, mut user, mut encryption) = ("", "", "", "");
        let mut context = "";
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (attribute, value) = line.split_once('=').ok_or(Garbage::NoAttribute)?;
            match attribute {
                "request" => kind = value,
                "protocol_state" => stage = value,
                "client_address" => address = value,
                "client_port" => port = value,
                "client_name" => name = value,
                "helo_name" => helo = value,
                "instance" => instance = value,
                "sender" => sender = value,
                "recipient" => recipient = value,
                "recipient_count" => recipient_count = value,
                "size" => size = value,
                "sasl_username" => user = value,
                "encryption_protocol" => encryption = value,
                "policy_context" => context = value,
                _ => {}
            }
        }
        if kind != "smtpd_access_policy" {
            return Err(Garbage::NoRequest);
        }
        let address: IpAddr = address.parse().map_err(|_| Garbage::NoClient)?;
        let mut client = Client::new(address);
        client.port = port.parse().ok().filter(|port| *port > 0);
        // Whoever has authenticated has done so before anything is inferred of the session.
        client.user = (!user.is_empty()).then(|| ClientText::new(user.as_bytes()));
        client.tls = !encryption.is_empty();
        // Postfix says `unknown` where the name is not confirmed.
        if !name.is_empty() && name != "unknown" {
            client = client.named(name);
        }
        let stage = match stage {
            "CONNECT" => Stage::Connect,
            "HELO" | "EHLO" => Stage::Helo,
            "MAIL" => Stage::Mail,
            "RCPT" => Stage::Recipient,
            "DATA" => Stage::Data,
            "END-OF-MESSAGE" => Stage::EndOfMessage,
            _ => Stage::Other,
        };
        let helo = ClientText::new(helo.as_bytes());
        // Zero where the client declared none.
        let size = size.parse().ok().filter(|size| *size > 0);
        let recipient_count = recipient_count.parse().unwrap_or(0);
        Ok(Self {
            stage,
            client,
            helo,
            instance,
            context,
            recipient_count,
            size,
            sender,
            recipient,
        })
    }

    /// Adds what makes two requests about one client the same.
    #[must_use]
    pub fn question(&self, maker: KeyMaker) -> KeyMaker {
        // Before MAIL nothing but the greeting tells two requests apart.
        let helo = if self.stage == Stage::Helo { self.helo.as_str() } else { "" };
        [self.instance, self.sender, self.recipient, helo]
            .iter()
            .fold(maker.part(&[self.stage as u8]), |maker, part| maker.part(part.as_bytes()))
    }

    /// The MAIL that its message began with.
    pub fn mail(&self) -> Event {
        Event::Mail {
            sender: Address::new(self.sender.as_bytes()),
            size: self.size,
            user: self.client.user.clone(),
            tls: self.client.tls,
        }
    }

    /// The RCPT that it is about.
    pub fn recipient(&self) -> Event {
        let address = Address::new(self.recipient.as_bytes());
        Event::Recipient { address, fate: Fate::Offered }
    }
}

/// What Postfix is told to do. Never a bare number: `421` without a text means OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// No opinion: go on with the next restriction.
    Dunno,
    /// Put off with this reply.
    Refuse(Reply),
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dunno => f.write_str("DUNNO"),
            // Answered with 450 once no later restriction has refused for good.
            Self::Refuse(reply) if reply.code() == Code::Code450 => {
                write!(f, "DEFER_IF_PERMIT {} {}", reply.enhanced(), reply.text())
            }
            Self::Refuse(reply) => write!(f, "{reply}"),
        }
    }
}
