//! `postpone replay --events`: what would have been said to a recorded trace, under its own clock.
//!
//! One JSON object a line in, one out, in order, each written before the next is read. The engine
//! is the daemon's own, so the same trace gives the same bytes.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, ManualClock, Time};
use crate::config::Settings;
use crate::engine::{Answer, Door, Engine, Refused, Session, Speak};
use crate::meter::key::Secret;
use crate::policy::Memory;
use crate::policy::behaviour::evidence::{Score, Term};
use crate::policy::signal::Ends;
use crate::policy::standing::Standing;
use crate::setting::Complaint;
use crate::smtp::address::{Address, ClientText};
use crate::smtp::client::Client;
use crate::smtp::event::{Event, Fate};

/// One line of a trace.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line {
    /// Somebody sends a message.
    Message(Box<Message>),
    /// Time has passed.
    Tick {
        /// Seconds since 1970.
        t: f64,
    },
}

#[derive(Debug, Deserialize)]
struct Message {
    t: f64,
    session: String,
    client: std::net::IpAddr,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    helo: String,
    sender: String,
    recipients: Vec<String>,
    #[serde(default)]
    unknown: Vec<String>,
    #[serde(default)]
    conversation: Vec<String>,
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    tls: bool,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default = "yes")]
    enforced: bool,
}

fn yes() -> bool {
    true
}

/// What is said to one.
#[derive(Debug, Serialize)]
struct Said {
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standing: Option<Standing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    #[serde(skip_serializing_if = "Terms::is_empty")]
    terms: Terms,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

/// The terms that are worth naming, in their order.
#[derive(Debug, Default)]
struct Terms(Vec<(Term, f64)>);

impl Terms {
    fn of(score: &Score) -> Self {
        let terms = Term::ALL.map(|term| (term, score.of(term)));
        Self(terms.into_iter().filter(|(_, adds)| adds.abs() >= 0.05).collect())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Terms {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(term, adds)| (term.name(), rounded(*adds, 2))))
    }
}

fn rounded(number: f64, places: i32) -> f64 {
    let factor = 10_f64.powi(places);
    // No zero has a sign, so that it looks the same however it came about.
    (number * factor).round() / factor + 0.0
}

/// Why a trace could not be played to its end.
#[derive(Debug)]
pub enum Trouble {
    /// A line that is no event.
    Line {
        /// Its number, from 1.
        number: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Lists of the settings that cannot be read.
    Settings(Vec<Complaint>),
    /// It could not be read, or the answers not be written.
    Io(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Sessions that are held at once: of one beyond, the oldest is thought to have ended.
const MOST_SESSIONS: usize = 4_096;

/// How often what has faded is dropped, in events.
const SWEEP_EVERY: usize = 65_536;

/// Plays a trace under these settings, from empty memory.
pub fn replay(
    settings: &Settings,
    events: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<(), Trouble> {
    let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
    let policy = settings.policy(&memory).map_err(Trouble::Settings)?;
    let clock = Arc::new(ManualClock::at(Time::default()));
    let engine = Engine::new(Box::new(clock.clone()), memory, policy);
    let listener = settings.listen.first().map_or_else(|| "".into(), |l| l.door().listener);
    let mut player =
        Player { engine, clock, listener, sessions: HashMap::new(), order: VecDeque::new() };
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        if events.read_line(&mut line)? == 0 {
            break;
        }
        let what = serde_json::from_str(&line)
            .map_err(|error| Trouble::Line { number, what: error.to_string() })?;
        let said = player.play(what);
        serde_json::to_writer(&mut *out, &said).map_err(io::Error::from)?;
        writeln!(out)?;
        // Whoever waits for the answer sends the next line only then.
        out.flush()?;
        if number % SWEEP_EVERY == 0 {
            player.engine.sweep(1);
        }
    }
    Ok(())
}

struct Player {
    engine: Arc<Engine>,
    clock: Arc<ManualClock>,
    listener: Arc<str>,
    /// By their names in the trace.
    sessions: HashMap<String, Session>,
    order: VecDeque<String>,
}

impl Player {
    fn at(&self, t: f64) {
        let now = Time::from_nanos((t.max(0.0) * 1e9).round() as u64);
        if now > self.clock.now() {
            self.clock.set(now);
        }
    }

    fn play(&mut self, line: Line) -> Said {
        match line {
            Line::Tick { t } => {
                self.at(t);
                self.engine.sweep(1);
                Said::pass()
            }
            Line::Message(message) => {
                self.at(message.t);
                self.message(&message)
            }
        }
    }

    fn message(&mut self, message: &Message) -> Said {
        let sender = Address::new(message.sender.as_bytes());
        let recipients: Vec<_> =
            message.recipients.iter().map(|r| Address::new(r.as_bytes())).collect();
        for other in &message.conversation {
            self.engine.has_written(&Address::new(other.as_bytes()), &sender);
        }
        let mut refused = None;
        let mut session = self.session(message, &mut refused);
        let user = message.authenticated.then(|| ClientText::new(b"user"));
        let mail = Event::Mail { sender, size: message.size, user, tls: message.tls };
        let mut on = |session: &mut Session, event| {
            if refused.is_none()
                && let Answer::Refuse(answer) = session.on(event)
            {
                refused = Some(answer);
            }
            refused.is_none()
        };
        on(&mut session, mail);
        let mut worst = session.standing();
        for (address, name) in recipients.into_iter().zip(&message.recipients) {
            let unknown = message.unknown.contains(name);
            let fate = if unknown { Fate::Doomed } else { Fate::Offered };
            if !on(&mut session, Event::Recipient { address, fate }) {
                break;
            }
            let seen = session.standing();
            if seen.1.total >= worst.1.total || worst.1 == Score::default() {
                worst = seen;
            }
        }
        let seen = session.standing();
        if seen.1.total > worst.1.total {
            worst = seen;
        }
        if on(&mut session, Event::Data { unseen: 0 }) {
            session.on(Event::EndOfMessage { size: message.size });
        } else {
            session.on(Event::Abort);
        }
        let closed = refused
            .as_ref()
            .is_some_and(|refused: &Refused| refused.reply.code().digits() == "421");
        if !closed {
            self.keep(message.session.clone(), session);
        }
        Said::of(refused, worst)
    }

    /// The session of a message: one that is under way, or a new one.
    fn session(&mut self, message: &Message, refused: &mut Option<Refused>) -> Session {
        if let Some(session) = self.sessions.remove(&message.session) {
            self.order.retain(|name| *name != message.session);
            return session;
        }
        let mut client = Client::new(message.client);
        if let Some(name) = &message.name {
            client = client.named(name);
        }
        let door = Door {
            listener: self.listener.clone(),
            address: self.listener.clone(),
            hostname: None,
            speak: Speak::Helo,
            ends: Ends::Seen,
            rehearsal: !message.enforced,
        };
        let mut session = self.engine.session(client, door);
        let helo = ClientText::new(message.helo.as_bytes());
        for event in [Event::Connect, Event::Helo { name: helo }] {
            if let Answer::Refuse(answer) = session.on(event) {
                *refused = Some(answer);
                break;
            }
        }
        session
    }

    fn keep(&mut self, name: String, session: Session) {
        if self.sessions.len() >= MOST_SESSIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.sessions.remove(&oldest);
        }
        self.order.push_back(name.clone());
        self.sessions.insert(name, session);
    }
}

impl Said {
    fn pass() -> Self {
        Self {
            action: "pass",
            reason: None,
            wait: None,
            standing: None,
            score: None,
            terms: Terms::default(),
            id: None,
        }
    }

    fn of(refused: Option<Refused>, (standing, score): (Standing, Score)) -> Self {
        let known = Self {
            standing: Some(standing),
            score: Some(rounded(score.total, 3)),
            terms: Terms::of(&score),
            ..Self::pass()
        };
        let Some(Refused { reply, reason, wait, id, .. }) = refused else { return known };
        Self {
            action: reply.code().action().name(),
            reason: Some(reason.name()),
            wait: Some(rounded(wait.as_secs_f64(), 1)),
            id: Some(id),
            ..known
        }
    }
}
