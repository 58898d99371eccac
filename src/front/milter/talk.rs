//! What is said on one connection: frames to events, answers to frames. It knows no socket.

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use indymilter::message::command::CommandKind;
use indymilter::message::reply::ReplyKind;
use indymilter::{ProtoOpts, SocketInfo};

use super::macros::{Macros, OfClient, Resolved, address_of};
use super::negotiation::{Offer, wanted};
use super::order::Stage;
use super::wire::{Frame, Nonsense, first, put, put_reply, strings};
use crate::engine::{Answer, Door, Engine, Session};
use crate::policy::Policy;
use crate::smtp::address::{Address, ClientText};
use crate::smtp::client::Client;
use crate::smtp::event::{Event, Fate};
use crate::telemetry::Failure;

/// What all connections of a listener have in common.
pub(super) struct House {
    /// Who decides.
    pub(super) engine: Arc<Engine>,
    /// By which door they come.
    pub(super) door: Door,
    /// What the MTA has called the host last: it always says the same.
    pub(super) called: Mutex<Option<Arc<str>>>,
}

impl House {
    /// The door, with what the MTA calls the host.
    fn door(&self, host: Option<&str>) -> Door {
        let Some(host) = host else { return self.door.clone() };
        let mut called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
        if called.as_deref() != Some(host) {
            *called = Some(host.into());
        }
        Door { hostname: called.clone(), ..self.door.clone() }
    }
}

/// Answers that may be waiting to be written before no more is heard, in bytes. One more answer
/// comes on top.
const MOST_UNSAID: usize = 8 << 10;

/// One connection.
pub(super) struct Talk {
    house: Arc<House>,
    /// What is in force since the negotiation, in which it decided what we are shown.
    policy: Option<Arc<Policy>>,
    stage: Stage,
    agreed: ProtoOpts,
    macros: Macros,
    /// None before a client has come, and where its address cannot be read: then all passes.
    session: Option<Box<Session>>,
}

/// Why no more is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// There is no other whole frame.
    All,
    /// What was answered is to be written first.
    Enough,
    /// The MTA has said that the session is over.
    TheEnd,
    /// It has sent what makes no sense.
    Nonsense(Nonsense),
}

impl Talk {
    pub(super) fn new(house: Arc<House>) -> Self {
        Self {
            house,
            policy: None,
            stage: Stage::Begin,
            // As if nothing of what we never want could come.
            agreed: ProtoOpts::NO_HEADER
                | ProtoOpts::NO_EOH
                | ProtoOpts::NO_BODY
                | ProtoOpts::NO_UNKNOWN,
            macros: Macros::default(),
            session: None,
        }
    }

    /// Takes whole frames off the front of what came, and appends what they are answered.
    pub(super) fn hear(&mut self, came: &mut &[u8], out: &mut Vec<u8>) -> Heard {
        while out.len() < MOST_UNSAID {
            let taken = first(came).and_then(|frame| {
                let Some((frame, rest)) = frame else { return Ok(Some(Heard::All)) };
                *came = rest;
                self.take(frame, out)
            });
            match taken {
                Ok(None) => {}
                Ok(Some(heard)) => return heard,
                Err(nonsense) => return Heard::Nonsense(nonsense),
            }
        }
        Heard::Enough
    }

    /// Takes one frame; says so where it is the last.
    fn take(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<Option<Heard>, Nonsense> {
        if frame.command == CommandKind::Quit {
            return Ok(Some(Heard::TheEnd));
        }
        if let Some(next) = Stage::of(frame.command) {
            if !self.stage.leads_to(next, self.agreed) {
                // libmilter's way: the message under way is over, and it goes on from HELO.
                if self.stage.is_in_transaction() {
                    self.tell(Event::Abort);
                }
                self.stage = Stage::Helo;
                if !self.stage.leads_to(next, self.agreed) {
                    return Ok(None);
                }
            }
            self.stage = next;
        }
        if frame.payload.is_empty() && needs_payload(frame.command) {
            return Err(Nonsense::Payload(frame.command));
        }
        self.obey(frame, out)?;
        Ok(None)
    }

    fn obey(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<(), Nonsense> {
        let Frame { command, payload } = frame;
        let unreadable = Nonsense::Payload(command);
        match command {
            CommandKind::DefMacros => self.macros.take(payload),
            CommandKind::OptNeg => self.negotiate(&Offer::read(payload)?, out),
            CommandKind::ConnInfo => {
                self.macros.forget_message();
                let name = strings(payload).next().ok_or(unreadable)?;
                self.connect(name, &socket(&payload[name.len() + 1..]));
                self.ask(Event::Connect, out);
            }
            CommandKind::Helo => {
                self.macros.forget_message();
                let ends = payload.ends_with(b"\0");
                let name = strings(payload).next().filter(|_| ends).ok_or(unreadable)?;
                self.ask(Event::Helo { name: ClientText::new(name) }, out);
            }
            CommandKind::Mail => {
                self.macros.forget_recipient();
                let event = self.mail(payload).ok_or(unreadable)?;
                self.ask(event, out);
            }
            CommandKind::Rcpt => {
                self.macros.size = None;
                let event = self.recipient(payload).ok_or(unreadable)?;
                self.ask(event, out);
            }
            CommandKind::Data => self.ask(Event::Data { unseen: 0 }, out),
            CommandKind::BodyEnd => {
                let size = self.macros.size;
                // A refusal here would come too late: the letter for it makes Postfix lose the
                // mail.
                self.tell(Event::EndOfMessage { size });
                go_on(out);
            }
            CommandKind::Header
            | CommandKind::Eoh
            | CommandKind::BodyChunk
            | CommandKind::Unknown => go_on(out),
            CommandKind::Abort => drop(self.tell(Event::Abort)),
            CommandKind::Quit | CommandKind::QuitNc => {
                self.session = None;
                self.macros = Macros::default();
            }
        }
        Ok(())
    }

    fn negotiate(&mut self, offer: &Offer, out: &mut Vec<u8>) {
        self.macros = Macros::default();
        let policy = self.house.engine.policy();
        self.agreed = offer.agree(wanted(&policy, self.house.door.speak));
        offer.answer(self.agreed, out);
        self.policy = Some(policy);
    }

    fn connect(&mut self, name: &[u8], socket: &SocketInfo) {
        let address = match socket {
            SocketInfo::Inet(address) => Some((address.ip(), Some(address.port()))),
            SocketInfo::Unix(_) | SocketInfo::Unknown => {
                self.macros.client.address.map(|address| (address, None))
            }
        };
        let engine = &self.house.engine;
        let door = self.house.door(self.macros.client.host.as_deref());
        let Some((address, port)) = address else {
            // Without a session every later command of this client is answered with Continue.
            engine.failed(Failure::Address, &"a client without a readable address");
            return self.session = None;
        };
        let mut client = Client::new(address);
        client.port = port;
        let client = with_name(client, name, &self.macros.client);
        // One that comes without a negotiation, which no MTA does, has left nothing out.
        let policy = self.policy.get_or_insert_with(|| engine.policy()).clone();
        self.session = Some(Box::new(engine.session_under(policy, client, door)));
    }

    fn mail(&mut self, payload: &[u8]) -> Option<Event> {
        let mut words = strings(payload);
        let sender = Address::new(words.next()?);
        // RFC 1870 section 6.
        let size = words.filter_map(|word| std::str::from_utf8(word).ok()).find_map(|word| {
            let (key, value) = word.split_once('=')?;
            key.eq_ignore_ascii_case("SIZE").then(|| value.parse().ok())?
        });
        let said = &self.macros.sender;
        Some(Event::Mail { sender, size, user: said.user.clone(), tls: said.tls })
    }

    fn recipient(&mut self, payload: &[u8]) -> Option<Event> {
        let path = strings(payload).next()?;
        // It is of this recipient only.
        let address = match self.macros.recipient.mailbox.take() {
            Some(mailbox) => Address::resolved(path, mailbox.as_str().as_bytes()),
            None => Address::new(path),
        };
        let fate = self.macros.recipient.fate.unwrap_or(Fate::Offered);
        Some(Event::Recipient { address, fate })
    }

    /// Asks whether that may be, and answers so.
    fn ask(&mut self, event: Event, out: &mut Vec<u8>) {
        let silent = self.stage == Stage::Helo && self.agreed.contains(ProtoOpts::NOREPLY_HELO);
        match self.tell(event) {
            _ if silent => {}
            Answer::Pass => go_on(out),
            Answer::Refuse(refused) => {
                put_reply(out, &refused.reply);
                if self.stage != Stage::Recipient {
                    // What is refused is over; of recipients, the others go on.
                    self.stage = Stage::Helo;
                }
            }
        }
    }

    fn tell(&mut self, event: Event) -> Answer {
        self.session.as_mut().map_or(Answer::Pass, |session| session.on(event))
    }
}

fn go_on(out: &mut Vec<u8>) {
    put(out, ReplyKind::Continue, |_| {});
}

/// Whether a command without a payload makes no sense.
fn needs_payload(command: CommandKind) -> bool {
    match command {
        CommandKind::BodyChunk
        | CommandKind::ConnInfo
        | CommandKind::DefMacros
        | CommandKind::Helo
        | CommandKind::Header
        | CommandKind::Mail
        | CommandKind::OptNeg
        | CommandKind::Rcpt
        | CommandKind::Unknown => true,
        CommandKind::Abort
        | CommandKind::BodyEnd
        | CommandKind::Data
        | CommandKind::Eoh
        | CommandKind::Quit
        | CommandKind::QuitNc => false,
    }
}

/// Where a client comes from, behind its name in a connect payload: family, port, address. What
/// cannot be read is unknown.
fn socket(payload: &[u8]) -> SocketInfo {
    let Some(([family @ (b'4' | b'6'), high, low], address)) = payload.split_first_chunk() else {
        return SocketInfo::Unknown;
    };
    let address = CStr::from_bytes_until_nul(address).ok();
    match (family, address.and_then(|address| address_of(address.to_bytes()))) {
        (b'4', Some(ip @ IpAddr::V4(_))) | (b'6', Some(ip @ IpAddr::V6(_))) => {
            SocketInfo::Inet(SocketAddr::new(ip, u16::from_be_bytes([*high, *low])))
        }
        _ => SocketInfo::Unknown,
    }
}

/// The client with its name, if the MTA has confirmed it. Postfix says `unknown` otherwise;
/// Sendmail gives the address in brackets, or a name that does not hold, as `{client_resolve}`
/// tells.
fn with_name(client: Client, name: &[u8], told: &OfClient) -> Client {
    let name = std::str::from_utf8(name).unwrap_or_default();
    let is_name = !name.is_empty() && name != "unknown" && !name.starts_with('[');
    match told.resolved {
        Resolved::Unsure => client.of_unsure_name(),
        Resolved::Confirmed | Resolved::Untold if is_name => client.named(name),
        Resolved::Confirmed | Resolved::Untold | Resolved::Unconfirmed => client,
    }
}
