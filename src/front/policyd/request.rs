//! What Postfix asks, and what it is told: SMTPD_POLICY_README.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

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
    pub helo: &'a [u8],
    /// The name of the message, from its first recipient on; empty before.
    pub instance: &'a [u8],
    /// What `main.cf` calls the restriction list that asks; empty if nothing.
    pub context: &'a [u8],
    /// Whether Postfix is short of smtpd processes (its STRESS_README).
    pub stress: bool,
    /// How many recipients Postfix has accepted; told from DATA on.
    pub recipient_count: u32,
    /// The size of the message in bytes: the declared one, and at its end the true one.
    pub size: Option<u64>,
    sender: &'a [u8],
    recipient: &'a [u8],
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

/// Bytes that are no request, or none that can be answered.
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
    /// No garbage: Postfix says that it does not know the client's address.
    UnknownClient,
}

impl Garbage {
    /// What it counts as.
    pub fn failure(self) -> Failure {
        match self {
            Self::TooLong | Self::NoAttribute | Self::NoRequest => Failure::Frame,
            Self::NoClient | Self::UnknownClient => Failure::Address,
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
            Self::UnknownClient => "a policy request about a client of unknown address",
        })
    }
}

impl<'a> Request<'a> {
    /// Reads a request. An attribute that is missing, as in older versions, is empty; one that is
    /// not known, as in newer ones, is skipped.
    pub fn parse(text: &'a [u8]) -> Result<Self, Garbage> {
        let nothing = &b""[..];
        let mut kind = nothing;
        let (mut stage, mut address, mut port, mut name) = (nothing, nothing, nothing, nothing);
        let (mut helo, mut sender, mut recipient) = (nothing, nothing, nothing);
        let (mut instance, mut recipient_count, mut size) = (nothing, nothing, nothing);
        let (mut user, mut encryption, mut context) = (nothing, nothing, nothing);
        let mut claimed = nothing;
        let mut stress = false;
        for line in text.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            let end = line.iter().position(|byte| *byte == b'=').ok_or(Garbage::NoAttribute)?;
            let value = &line[end + 1..];
            match &line[..end] {
                b"request" => kind = value,
                b"protocol_state" => stage = value,
                b"client_address" => address = value,
                b"client_port" => port = value,
                b"client_name" => name = value,
                b"reverse_client_name" => claimed = value,
                b"helo_name" => helo = value,
                b"sender" => sender = value,
                b"recipient" => recipient = value,
                b"recipient_count" => recipient_count = value,
                b"instance" => instance = value,
                b"size" => size = value,
                b"sasl_username" => user = value,
                b"encryption_protocol" => encryption = value,
                b"policy_context" => context = value,
                b"stress" => stress = value == b"yes",
                _ => {}
            }
        }
        if kind != b"smtpd_access_policy" {
            return Err(Garbage::NoRequest);
        }
        if address == b"unknown" {
            return Err(Garbage::UnknownClient);
        }
        let mut client = Client::new(read::<IpAddr>(address).ok_or(Garbage::NoClient)?);
        client.port = read(port).filter(|port| *port > 0);
        // Whoever has authenticated has done so before anything is inferred of the session.
        client.user = (!user.is_empty()).then(|| ClientText::new(user));
        client.tls = !encryption.is_empty();
        // Postfix says `unknown` where the name is not confirmed.
        let is_name = |name: &[u8]| !name.is_empty() && name != b"unknown";
        client = match is_name(name) {
            true => client.named(&String::from_utf8_lossy(name)),
            // Or its resolver has failed: it says the same in both cases.
            false => {
                let claimed = is_name(claimed).then(|| String::from_utf8_lossy(claimed));
                client.of_untold_name(claimed.as_deref())
            }
        };
        let stage = match stage {
            b"CONNECT" => Stage::Connect,
            b"HELO" | b"EHLO" => Stage::Helo,
            b"MAIL" => Stage::Mail,
            b"RCPT" => Stage::Recipient,
            b"DATA" => Stage::Data,
            b"END-OF-MESSAGE" => Stage::EndOfMessage,
            _ => Stage::Other,
        };
        // Zero where the client declared none.
        let size = read(size).filter(|size| *size > 0);
        let recipient_count = read(recipient_count).unwrap_or(0);
        Ok(Self {
            stage,
            client,
            helo,
            instance,
            context,
            stress,
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
        let helo = if self.stage == Stage::Helo { self.helo } else { b"" };
        [self.instance, self.sender, self.recipient, helo]
            .into_iter()
            .fold(maker.part(&[self.stage as u8]), KeyMaker::part)
    }

    /// The HELO that its session began with.
    pub fn greeting(&self) -> Event {
        Event::Helo { name: ClientText::new(self.helo) }
    }

    /// The MAIL that its message began with.
    pub fn mail(&self) -> Event {
        Event::Mail {
            sender: Address::unquoted(self.sender),
            size: self.size,
            user: self.client.user.clone(),
            tls: self.client.tls,
        }
    }

    /// The RCPT that it is about.
    pub fn recipient(&self) -> Event {
        Event::Recipient { address: Address::unquoted(self.recipient), fate: Fate::Offered }
    }
}

fn read<T: FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
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
