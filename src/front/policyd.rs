//! The policy front: Postfix's SMTPD_POLICY delegation protocol.
//!
//! A request is a list of `name=value` lines that ends with an empty one, and so is the answer. A
//! connection belongs to an smtpd process; nothing tells when a session begins or ends, and a
//! request comes again after a time-out and from every restriction list that asks. What a client
//! did before the stage at which it is asked about is therefore inferred: a first request at RCPT
//! also stands for its CONNECT, HELO and MAIL.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Display, Formatter};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::listener::{Acceptor, Alive, Bound, Transport};
use crate::clock::Time;
use crate::engine::{Answer, Door, Engine, Session};
use crate::meter::key::{Key, Secret};
use crate::policy::signal::Ends;
use crate::smtp::address::{Address, ClientText};
use crate::smtp::client::Client;
use crate::smtp::event::{Event, Fate};
use crate::smtp::reply::{Code, Reply};
use crate::telemetry::Failure;

/// The longest request taken, in bytes. Postfix's own are below 4 KiB.
const LONGEST_REQUEST: u64 = 64 << 10;

/// Serves a socket until `stopping` becomes true; requests under way are answered.
pub async fn serve(
    bound: Bound,
    engine: Arc<Engine>,
    door: Door,
    desk: Arc<Desk>,
    max_connections: usize,
    stopping: watch::Receiver<bool>,
    grace: Duration,
) -> io::Result<()> {
    let (mut acceptor, mut ended) = Acceptor::new(bound, engine.clone(), stopping.clone())?;
    let permits = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    let mut stop = stopping.clone();
    let mut connections = JoinSet::new();
    loop {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let accepted = tokio::select! {
            accepted = poll_fn(|cx| acceptor.poll_accept(cx)) => accepted,
            _ = stop.wait_for(|stopping| *stopping) => break,
        };
        let (transport, alive) = accepted;
        let (engine, door) = (engine.clone(), door.clone());
        let (desk, stopping) = (desk.clone(), stopping.clone());
        connections.spawn(async move {
            converse(transport, alive, &engine, &door, &desk, stopping).await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(acceptor);
    let _ = tokio::time::timeout(grace, ended.recv()).await;
    Ok(())
}

async fn converse(
    transport: Transport,
    _alive: Alive,
    engine: &Arc<Engine>,
    door: &Door,
    desk: &Desk,
    mut stopping: watch::Receiver<bool>,
) {
    let mut stream = BufReader::new(transport);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = tokio::select! {
            read = request(&mut stream, &mut text) => read,
            // Between two requests nothing is lost: Postfix connects again.
            _ = stopping.wait_for(|stopping| *stopping), if text.is_empty() => return,
        };
        let answer = match read {
            Ok(Came::Request) => {
                Request::parse(&text).map(|request| desk.answer(request, engine, door))
            }
            Ok(Came::Nothing) | Err(_) => return,
            Ok(Came::TooMuch) => Err(Garbage::TooLong),
        };
        let (action, go_on) = match answer {
            Ok(action) => (action, true),
            Err(garbage) => {
                engine.failed(Failure::Frame, &garbage);
                (Action::Dunno, garbage == Garbage::NoClient)
            }
        };
        if stream.write_all(format!("action={action}\n\n").as_bytes()).await.is_err() || !go_on {
            return;
        }
    }
}

/// What came before the connection fell silent.
enum Came {
    /// A request, whole.
    Request,
    /// The end.
    Nothing,
    /// More than any request has.
    TooMuch,
}

/// Reads up to the empty line.
async fn request(stream: &mut BufReader<Transport>, text: &mut Vec<u8>) -> io::Result<Came> {
    loop {
        let room = LONGEST_REQUEST.saturating_sub(text.len() as u64);
        let before = text.len();
        let read = (&mut *stream).take(room).read_until(b'\n', text).await?;
        let line = &text[before..];
        match line {
            b"\n" => return Ok(Came::Request),
            _ if read as u64 == room => return Ok(Came::TooMuch),
            [] => return Ok(Came::Nothing),
            // The connection ended within a line.
            [.., last] if *last != b'\n' => return Ok(Came::Nothing),
            _ => {}
        }
    }
}

/// Bytes that are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// More than [`LONGEST_REQUEST`] bytes without an end.
    TooLong,
    /// A line without `=`, or bytes that are no text.
    NoAttribute,
    /// `request` is missing or not `smtpd_access_policy`.
    NoRequest,
    /// Well-formed, but without a client address that can be read.
    NoClient,
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

/// The stage at which Postfix asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Connect,
    Helo,
    Mail,
    Recipient,
    Data,
    EndOfMessage,
    /// A command that we have no opinion on: VRFY, ETRN, and what may come.
    Other,
}

/// One request.
#[derive(Debug)]
pub struct Request<'a> {
    stage: Stage,
    client: Client,
    helo: &'a str,
    instance: &'a str,
    sender: &'a str,
    recipient: &'a str,
    recipient_count: u32,
    size: Option<u64>,
    user: &'a str,
    tls: bool,
    /// What `main.cf` calls the restriction list that asks.
    context: &'a str,
}

impl<'a> Request<'a> {
    /// Reads a request. An attribute that is missing, as in older versions, is empty.
    pub fn parse(text: &'a [u8]) -> Result<Self, Garbage> {
        let text = std::str::from_utf8(text).map_err(|_| Garbage::NoAttribute)?;
        let mut attributes = HashMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once('=').ok_or(Garbage::NoAttribute)?;
            attributes.insert(name, value);
        }
        let get = |name: &str| attributes.get(name).copied().unwrap_or_default();
        if get("request") != "smtpd_access_policy" {
            return Err(Garbage::NoRequest);
        }
        let address: IpAddr = get("client_address").parse().map_err(|_| Garbage::NoClient)?;
        let mut client = Client::new(address);
        client.port = get("client_port").parse().ok();
        // Postfix says `unknown` where the name is not confirmed.
        let name = get("client_name");
        if !name.is_empty() && name != "unknown" {
            client = client.named(name);
        }
        let stage = match get("protocol_state") {
            "CONNECT" => Stage::Connect,
            "HELO" | "EHLO" => Stage::Helo,
            "MAIL" => Stage::Mail,
            "RCPT" => Stage::Recipient,
            "DATA" => Stage::Data,
            "END-OF-MESSAGE" => Stage::EndOfMessage,
            _ => Stage::Other,
        };
        // Zero where the client declared none.
        let size = get("size").parse().ok().filter(|size| *size > 0);
        Ok(Self {
            stage,
            client,
            helo: get("helo_name"),
            instance: get("instance"),
            sender: get("sender"),
            recipient: get("recipient"),
            recipient_count: get("recipient_count").parse().unwrap_or(0),
            size,
            context: get("policy_context"),
            user: get("sasl_username"),
            tls: !get("encryption_protocol").is_empty(),
        })
    }

    fn mail(&self) -> Event {
        Event::Mail {
            sender: Address::new(self.sender.as_bytes()),
            size: self.size,
            user: (!self.user.is_empty()).then(|| self.user.into()),
            tls: self.tls,
        }
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

/// How long an answer is remembered for the same request.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Answers remembered at most. Beyond it the clients heard of longest ago are forgotten, and their
/// repeated requests count again.
const MOST_ANSWERS: usize = 65_536;

/// Where requests of all listeners are answered: it knows whom it has answered before.
///
/// The lock is held while one request is decided, for microseconds; nothing in there waits.
pub struct Desk {
    secret: Secret,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    by_endpoint: HashMap<Key, Conversation>,
    /// Endpoints by the time they were first heard of, or found to have spoken since.
    oldest: VecDeque<(Time, Key)>,
    answers: usize,
}

/// What one client, by address and port, was asked about.
struct Conversation {
    session: Session,
    arrival: Arrival,
    /// Which message the session is at, once it is told.
    message: Message,
    /// Recipients of the message that have been asked about or counted.
    seen: u32,
    helo: String,
    answers: Vec<(Key, Action)>,
    last: Time,
}

/// Whether the session has been told that its client has connected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Untold,
    Told,
}

/// Postfix names a message from its first recipient on.
#[derive(PartialEq, Eq)]
enum Message {
    None,
    Unnamed,
    Named(String),
}

impl Desk {
    /// A desk that knows nobody.
    pub fn new(secret: &Secret) -> Self {
        Self { secret: secret.clone(), clients: Mutex::default() }
    }

    /// Answers a request; the same again, if it is one that was answered before.
    pub fn answer(&self, request: Request<'_>, engine: &Arc<Engine>, door: &Door) -> Action {
        if request.stage == Stage::Other {
            return Action::Dunno;
        }
        let now = engine.now();
        let (endpoint, question) = (self.endpoint(&request), self.question(&request));
        // A panic cannot leave the map half-changed: deciding catches its own.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.forget(now);
        let mut conversation = match clients.by_endpoint.remove(&endpoint) {
            Some(known) => known,
            None => {
                clients.oldest.push_back((now, endpoint));
                Conversation::new(&request, engine, door, now)
            }
        };
        conversation.last = now;
        let known = conversation.answers.iter().find(|(asked, _)| *asked == question);
        let action = match known {
            Some((_, action)) => action.clone(),
            None => {
                let action = conversation.ask(&request);
                conversation.answers.push((question, action.clone()));
                clients.answers += 1;
                action
            }
        };
        clients.by_endpoint.insert(endpoint, conversation);
        action
    }

    fn endpoint(&self, request: &Request<'_>) -> Key {
        let maker = self.secret.key("policy client");
        let maker = maker.part(request.client.address().to_string().as_bytes());
        match request.client.port {
            Some(port) => maker.part(&port.to_be_bytes()),
            // Postfix before 3.0 tells no port: then a message stands for its session.
            None => maker.part(b"message").part(request.instance.as_bytes()),
        }
        .finish()
    }

    /// What makes two requests the same, beside the client.
    fn question(&self, request: &Request<'_>) -> Key {
        let Request { stage, instance, sender, recipient, helo, .. } = request;
        // Before MAIL nothing but the greeting tells two requests apart.
        let helo = if *stage == Stage::Helo { helo } else { "" };
        [instance, sender, recipient, helo]
            .iter()
            .fold(self.secret.key("policy question").part(&[*stage as u8]), |maker, part| {
                maker.part(part.as_bytes())
            })
            .finish()
    }
}

impl Clients {
    /// Forgets whom nobody has asked about for a while, and the oldest where there are too many.
    fn forget(&mut self, now: Time) {
        while let Some((since, endpoint)) = self.oldest.front().copied() {
            let full = self.answers >= MOST_ANSWERS;
            if !full && now.since(since) < REMEMBERED {
                return;
            }
            self.oldest.pop_front();
            let last = self.by_endpoint.get(&endpoint).map(|conversation| conversation.last);
            if let Some(last) = last.filter(|last| !full && now.since(*last) < REMEMBERED) {
                self.oldest.push_back((last, endpoint));
            } else if let Some(conversation) = self.by_endpoint.remove(&endpoint) {
                self.answers -= conversation.answers.len();
            }
        }
    }
}

impl Conversation {
    fn new(request: &Request<'_>, engine: &Arc<Engine>, door: &Door, now: Time) -> Self {
        let elsewhere = engine.holds(&request.client);
        let ends = if elsewhere { Ends::SeenElsewhere } else { door.ends };
        let listener = match request.context {
            "" => door.listener.clone(),
            context => context.into(),
        };
        let door = Door { listener, speak: door.speak, ends };
        let session = engine.session(request.client.clone(), door);
        let (arrival, helo) = (Arrival::Untold, String::new());
        let message = Message::None;
        Self { session, arrival, message, seen: 0, helo, answers: Vec::new(), last: now }
    }

    /// Tells the session what must have happened, and then what is asked about.
    fn ask(&mut self, request: &Request<'_>) -> Action {
        let events = self.inferred(request);
        for event in events {
            let is_mail = matches!(event, Event::Mail { .. });
            if let Answer::Refuse(refused) = self.session.on(event) {
                if is_mail {
                    // The message has not begun: it is judged again at its next recipient.
                    self.message = Message::None;
                }
                return Action::Refuse(refused.reply);
            }
        }
        Action::Dunno
    }

    fn inferred(&mut self, request: &Request<'_>) -> Vec<Event> {
        let mut events = Vec::new();
        if self.arrival == Arrival::Untold {
            self.arrival = Arrival::Told;
            events.push(Event::Connect);
        }
        if !request.helo.is_empty() && request.helo != self.helo {
            self.helo = request.helo.into();
            events.push(Event::Helo { name: ClientText::new(request.helo.as_bytes()) });
        }
        if request.stage >= Stage::Mail && self.begins(request) {
            events.push(request.mail());
        }
        match request.stage {
            Stage::Recipient => {
                let address = Address::new(request.recipient.as_bytes());
                self.seen += 1;
                events.push(Event::Recipient { address, fate: Fate::Offered });
            }
            Stage::Data => events.push(self.data(request)),
            Stage::EndOfMessage => {
                events.push(self.data(request));
                events.push(Event::EndOfMessage { size: request.size });
            }
            Stage::Connect | Stage::Helo | Stage::Mail | Stage::Other => {}
        }
        events
    }

    /// Whether the request is about a message that the session has not heard of.
    fn begins(&mut self, request: &Request<'_>) -> bool {
        let named = match request.instance {
            "" => Message::Unnamed,
            instance => Message::Named(instance.into()),
        };
        let begins = match (&self.message, &named) {
            // The message of the MAIL before, which had no name yet.
            (Message::Unnamed, Message::Named(_)) => false,
            (known, named) => known != named || request.stage == Stage::Mail,
        };
        self.message = named;
        if begins {
            self.seen = 0;
        }
        begins
    }

    /// Postfix tells how many recipients it has accepted from DATA on; those it did not ask about
    /// are counted now.
    fn data(&mut self, request: &Request<'_>) -> Event {
        let unseen = request.recipient_count.saturating_sub(self.seen);
        self.seen += unseen;
        Event::Data { unseen }
    }
}
