//! The desk where requests of all listeners are answered. It knows whom it has answered before.
//!
//! A request comes again after a time-out and from every restriction list that asks; it is counted
//! once. Nothing tells when a session begins or ends, so what a client did before the stage at
//! which it is asked about is inferred: a first request at RCPT also stands for its CONNECT, HELO
//! and MAIL.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::request::{Action, Request, Stage};
use crate::clock::Time;
use crate::engine::{Answer, Door, Engine, Refused, Session};
use crate::meter::key::{Key, KeyMaker, Secret};
use crate::policy::decision::Reason;
use crate::policy::signal::Ends;
use crate::smtp::address::ClientText;
use crate::smtp::event::Event;
use crate::smtp::reply;

/// How long an answer is remembered for the same request. A refusal no longer than its wait: who
/// comes back then must be heard.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);

/// Answers remembered at most. Beyond it the oldest is forgotten, and its request counts again.
pub(super) const MOST_ANSWERS: usize = 65_536;

/// How long a session is remembered of which nothing is heard. Postfix hangs up on a client that
/// is silent for five minutes, but while a message is on its way there is nothing to ask about.
const LONGEST_SILENCE: Duration = Duration::from_secs(30 * 60);

/// Requests about messages under way for which their sessions are remembered. Beyond it the
/// session heard of longest ago is forgotten; what it goes on with counts as begun anew.
pub(super) const MOST_QUESTIONS: usize = 65_536;

/// What is forgotten for one request at most, so that none pays for all that has faded meanwhile.
const MOST_FORGOTTEN: usize = 16;

/// Answers requests. A lock is held while one request is decided, for microseconds; nothing in
/// there waits.
pub struct Desk {
    secret: Secret,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    answers: Answers,
    sessions: Sessions,
}

impl Desk {
    /// A desk that knows nobody.
    pub fn new(secret: &Secret) -> Self {
        Self { secret: secret.clone(), known: Mutex::default() }
    }

    /// Answers a request; the same again, if it is one that was answered before.
    pub fn answer(&self, request: &Request<'_>, engine: &Arc<Engine>, door: &Door) -> Action {
        if request.stage == Stage::Other {
            return Action::Dunno;
        }
        let now = engine.now();
        let endpoint = self.endpoint(request);
        let question = request.question(endpoint.clone()).finish();
        // A panic cannot leave a map half-changed: deciding catches its own.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = endpoint.finish();
        match known.answers.recall(question, now) {
            Some(Action::Dunno) => return Action::Dunno,
            // A refusal that is repeated tries the patience of Postfix as well.
            Some(refusal) if known.sessions.repeats_refusal(endpoint) => return refusal,
            Some(_) | None => {}
        }
        let ask = |seat: &mut Option<Box<Conversation>>| self.ask(seat, request, engine, door);
        let (action, keep) = match known.sessions.with(endpoint, now, ask) {
            Ok(()) => (Action::Dunno, REMEMBERED),
            // It can be ended at any moment.
            Err(Refused { reply, reason: Reason::Maintenance, .. }) => {
                (Action::Refuse(reply), Duration::ZERO)
            }
            Err(Refused { reply, wait, .. }) => (Action::Refuse(reply), wait.min(REMEMBERED)),
        };
        known.answers.remember(question, action.clone(), now, keep);
        action
    }

    /// Asks whoever has the seat, or somebody new.
    fn ask(
        &self,
        seat: &mut Option<Box<Conversation>>,
        request: &Request<'_>,
        engine: &Arc<Engine>,
        door: &Door,
    ) -> Result<(), Refused> {
        let ends = if engine.holds(&request.client) { Ends::SeenElsewhere } else { door.ends };
        // A milter may hold the session only since it was last heard of, or no longer.
        let known = seat.take().filter(|known| known.ends == ends);
        let known =
            known.unwrap_or_else(|| Box::new(Conversation::new(request, engine, door, ends)));
        let conversation = seat.insert(known);
        conversation.session.patience_of_the_mta(request.stress);
        let asked = conversation.ask(request, |text| self.name(text));
        if request.stage == Stage::Connect && ends == Ends::Unseen {
            engine.counted(&request.client);
        }
        let closes = |refused: &Refused| refused.reply.code().action() == reply::Action::Close;
        if asked.as_ref().is_err_and(closes) {
            *seat = None;
        }
        asked
    }

    /// A text, for comparison only.
    fn name(&self, text: &[u8]) -> Option<Key> {
        (!text.is_empty()).then(|| self.secret.key("policy name").part(text).finish())
    }

    /// How many answers, and requests about messages under way, are remembered.
    pub fn sizes(&self) -> [(&'static str, usize); 2] {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        [("answers", known.answers.given.len()), ("asked", known.sessions.questions)]
    }

    fn endpoint(&self, request: &Request<'_>) -> KeyMaker {
        let maker = self.secret.key("policy client");
        let maker = match request.client.address() {
            IpAddr::V4(address) => maker.part(&address.octets()),
            IpAddr::V6(address) => maker.part(&address.octets()),
        };
        match request.client.port {
            Some(port) => maker.part(&port.to_be_bytes()),
            // Postfix before 3.0 tells no port: then a message stands for its session.
            None => maker.part(b"message").part(request.instance),
        }
    }
}

/// What was answered, by question.
#[derive(Default)]
struct Answers {
    by_question: HashMap<Key, Answered, RandomState>,
    /// Every answer given, the oldest first; one that was given anew stands here twice.
    given: VecDeque<(Time, Key)>,
}

struct Answered {
    action: Action,
    given: Time,
    until: Time,
}

impl Answers {
    fn recall(&self, question: Key, now: Time) -> Option<Action> {
        let known = self.by_question.get(&question);
        let known = known.filter(|known| known.given <= now && now < known.until);
        known.map(|known| known.action.clone())
    }

    fn remember(&mut self, question: Key, action: Action, now: Time, keep: Duration) {
        self.forget(now);
        self.given.push_back((now, question));
        self.by_question.insert(question, Answered { action, given: now, until: now + keep });
    }

    fn forget(&mut self, now: Time) {
        for _ in 0..MOST_FORGOTTEN {
            let full = self.given.len() >= MOST_ANSWERS;
            let faded = |given: &Time| full || !now.is_within(REMEMBERED, *given);
            let Some((given, question)) = self.given.pop_front_if(|(given, _)| faded(given)) else {
                return;
            };
            if let Entry::Occupied(entry) = self.by_question.entry(question)
                && entry.get().given == given
            {
                entry.remove();
            }
        }
    }
}

/// The SMTP sessions that were asked about, by the client's address and port.
#[derive(Default)]
struct Sessions {
    by_endpoint: HashMap<Key, Seat, RandomState>,
    /// Every seat once, by the time when something was heard of it: the first time, or later.
    oldest: VecDeque<(Time, Key)>,
    /// The weight of all seats.
    questions: usize,
}

struct Seat {
    heard: Time,
    /// None once Postfix was told to hang up: what comes from there next is another session.
    ///
    /// In a box, because most seats are of sessions that are over, and are passed by in search of
    /// others.
    conversation: Option<Box<Conversation>>,
}

impl Seat {
    fn weight(&self) -> usize {
        1 + self.conversation.as_ref().map_or(0, |conversation| conversation.questions)
    }
}

impl Sessions {
    fn with<T>(
        &mut self,
        endpoint: Key,
        now: Time,
        ask: impl FnOnce(&mut Option<Box<Conversation>>) -> T,
    ) -> T {
        self.forget(now);
        let seat = match self.by_endpoint.entry(endpoint) {
            Entry::Occupied(seat) => {
                self.questions -= seat.get().weight();
                seat.into_mut()
            }
            Entry::Vacant(free) => {
                self.oldest.push_back((now, endpoint));
                free.insert(Seat { heard: now, conversation: None })
            }
        };
        if now.since(seat.heard) >= LONGEST_SILENCE {
            seat.conversation = None;
        }
        seat.heard = now;
        let told = ask(&mut seat.conversation);
        self.questions += seat.weight();
        told
    }

    /// Whether a refusal may be given again, which then counts as another. Of a session that is over
    /// nothing can be lost.
    fn repeats_refusal(&mut self, endpoint: Key) -> bool {
        let seat = self.by_endpoint.get_mut(&endpoint);
        let conversation = seat.and_then(|seat| seat.conversation.as_mut());
        conversation.is_none_or(|known| known.session.repeats_refusal())
    }

    fn forget(&mut self, now: Time) {
        for turn in 1..=MOST_FORGOTTEN {
            let full = self.questions >= MOST_QUESTIONS;
            let faded = |heard: &Time| full || !now.is_within(LONGEST_SILENCE, *heard);
            let Some((heard, endpoint)) = self.oldest.pop_front_if(|(heard, _)| faded(heard))
            else {
                return;
            };
            let Entry::Occupied(mut seat) = self.by_endpoint.entry(endpoint) else { continue };
            // What a clock that was ahead has heard counts as heard now.
            let last_heard = seat.get().heard.min(now);
            seat.get_mut().heard = last_heard;
            let last_turn = full && turn == MOST_FORGOTTEN;
            if last_heard != heard && !last_turn {
                self.oldest.push_back((last_heard, endpoint));
            } else {
                self.questions -= seat.remove().weight();
            }
        }
    }
}

/// What one SMTP session was asked about.
struct Conversation {
    session: Session,
    ends: Ends,
    arrival: Arrival,
    /// What the client calls itself.
    helo: Option<Key>,
    message: Message,
    /// How much was asked about the message.
    questions: usize,
    /// How many of its recipients were asked about, or counted.
    seen: u32,
}

/// Whether the session has been told that its client has connected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Untold,
    Told,
}

/// Which message the session is at, once it is told. Postfix names a message from its first
/// recipient on.
#[derive(PartialEq, Eq)]
enum Message {
    None,
    Unnamed,
    Named(Key),
}

impl Conversation {
    fn new(request: &Request<'_>, engine: &Arc<Engine>, door: &Door, ends: Ends) -> Self {
        let listener = match request.context {
            b"" => door.listener.clone(),
            context => ClientText::new(context).as_str().into(),
        };
        let door = Door { listener, ends, ..door.clone() };
        Self {
            session: engine.session(request.client.clone(), door),
            ends,
            arrival: Arrival::Untold,
            helo: None,
            message: Message::None,
            questions: 0,
            seen: 0,
        }
    }

    /// Tells the session what must have happened, and then what is asked about.
    fn ask(
        &mut self,
        request: &Request<'_>,
        name: impl Fn(&[u8]) -> Option<Key>,
    ) -> Result<(), Refused> {
        if self.arrival == Arrival::Untold {
            self.arrival = Arrival::Told;
            self.tell(Event::Connect)?;
        }
        let helo = name(request.helo);
        if helo.is_some() && helo != self.helo {
            self.helo = helo;
            self.tell(request.greeting())?;
        }
        if request.stage >= Stage::Mail {
            let message = name(request.instance).map_or(Message::Unnamed, Message::Named);
            if self.begins(&message, request.stage) {
                // If it is refused it has not begun: it is judged again at its next recipient.
                self.message = Message::None;
                (self.questions, self.seen) = (0, 0);
                self.tell(request.mail())?;
            }
            self.message = message;
            self.questions += 1;
        }
        match request.stage {
            Stage::Recipient => {
                self.seen = self.seen.saturating_add(1);
                self.tell(request.recipient())
            }
            Stage::Data => self.tell_data(request),
            Stage::EndOfMessage => {
                self.tell_data(request)?;
                self.tell(Event::EndOfMessage { size: request.size })
            }
            Stage::Connect | Stage::Helo | Stage::Mail | Stage::Other => Ok(()),
        }
    }

    /// Postfix tells how many recipients it has accepted from DATA on; those it did not ask about
    /// are counted now.
    fn tell_data(&mut self, request: &Request<'_>) -> Result<(), Refused> {
        let unseen = request.recipient_count.saturating_sub(self.seen);
        self.seen += unseen;
        self.tell(Event::Data { unseen })
    }

    fn tell(&mut self, event: Event) -> Result<(), Refused> {
        match self.session.on(event) {
            Answer::Pass => Ok(()),
            Answer::Refuse(refused) => Err(refused),
        }
    }

    /// Whether it is a message that the session has not heard of.
    fn begins(&self, message: &Message, stage: Stage) -> bool {
        match (&self.message, message) {
            // The message of the MAIL before, which had no name yet.
            (Message::Unnamed, Message::Named(_)) => false,
            (known, message) => known != message || stage == Stage::Mail,
        }
    }
}
