//! One SMTP session, as the engine holds it for a front.
//!
//! Read, decide, write: an event is assessed, settled and answered under one reading of the clock.
//! A session that is refused at its beginning is a sentence, which is spoken when the client can
//! hear it.

use std::cell::OnceCell;
use std::fmt::{self, Display, Formatter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::recent::{Decided, cut};
use super::{Answer, Door, Engine, Refused, Speak};
use crate::clock::{Moment, Time};
use crate::meter::key::Key;
use crate::policy::behaviour::Seen;
use crate::policy::behaviour::evidence::Score;
use crate::policy::decision::{Decision, Why};
use crate::policy::keys::Keys;
use crate::policy::patience::Patience;
use crate::policy::signal::{Arrival, Asked, Context, Ends, Ledger};
use crate::policy::standing::Standing;
use crate::policy::{self, Policy};
use crate::smtp::address::ClientText;
use crate::smtp::client::{Client, Network};
use crate::smtp::event::{Event, Fate, Kind};
use crate::smtp::pool::{NameKind, Pool};
use crate::smtp::reply::Reply;
use crate::smtp::template::Placeholder;
use crate::smtp::transaction::Transaction;
use crate::telemetry::Told;

/// Who has come, by which door, and what is known of it.
pub(super) struct Visitor {
    pub(super) client: Client,
    pub(super) network: Network,
    pub(super) pool: OnceCell<Pool>,
    pub(super) kind: OnceCell<NameKind>,
    /// What it has earned: looked up once in each message, for the first one when the client connects.
    pub(super) earned: OnceCell<Standing>,
    /// What the event under way shows of its behaviour.
    pub(super) shows: OnceCell<Seen>,
    pub(super) asked: Asked,
    pub(super) patience: Patience,
    pub(super) keys: Keys,
    pub(super) arrival: Arrival,
    pub(super) door: Door,
}

impl Visitor {
    /// Of whom nothing has been looked up yet.
    pub(super) fn new(
        policy: &Policy,
        at: Moment,
        client: Client,
        arrival: Arrival,
        door: Door,
    ) -> Self {
        let client = policy.recognised(client, at);
        Self {
            network: policy.network(client.address()),
            pool: OnceCell::new(),
            kind: OnceCell::new(),
            earned: OnceCell::new(),
            shows: OnceCell::new(),
            asked: Asked::default(),
            patience: Patience::default(),
            keys: Keys::default(),
            arrival,
            client,
            door,
        }
    }

    pub(super) fn context<'a>(
        &'a self,
        policy: &'a Policy,
        at: Moment,
        event: &'a Event,
        transaction: Option<&'a Transaction>,
    ) -> Context<'a> {
        Context {
            now: at.now,
            at,
            event,
            client: &self.client,
            network: self.network,
            pool: &self.pool,
            kind: &self.kind,
            earned: &self.earned,
            shows: &self.shows,
            asked: self.asked,
            patience: self.patience,
            rehearsal: self.door.rehearsal,
            keys: &self.keys,
            policy,
            listener: &self.door.listener,
            address: &self.door.address,
            ends: self.door.ends,
            arrival: self.arrival,
            transaction,
        }
    }
}

/// One SMTP session. Dropping it ends it: what it has taken is given back.
pub struct Session {
    engine: Arc<Engine>,
    policy: Arc<Policy>,
    visitor: Visitor,
    /// Where it is noted as held, if it is.
    held: Option<Key>,
    transaction: Option<Transaction>,
    ledger: Ledger,
    /// The refusal of the session as a whole, if it is refused.
    sentence: Option<Sentence>,
}

/// A refusal of a whole session: repeated at every command, for as long as the session goes on.
struct Sentence {
    decision: Decision,
    id: Id,
    since: Time,
    heard: Heard,
}

/// Whether the client has been told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    Already,
    NotYet,
}

impl Session {
    /// Begins a session, which keeps this policy.
    pub(super) fn begin(
        engine: &Arc<Engine>,
        policy: Arc<Policy>,
        client: Client,
        door: Door,
    ) -> Self {
        engine.telemetry.session_begun(door.ends);
        let at = engine.moment();
        let taken = engine.take(&client, door.ends, at);
        let arrival = taken.map_or(Arrival::Open, |(_, arrival)| arrival);
        let visitor = Visitor::new(&policy, at, client, arrival, door);
        Self {
            engine: engine.clone(),
            policy,
            visitor,
            held: taken.map(|(key, _)| key),
            transaction: None,
            ledger: Ledger::default(),
            sentence: None,
        }
    }

    /// What the client has earned, and how abnormal its sending is, as of its last event.
    pub fn standing(&self) -> (Standing, Score) {
        let at = self.engine.moment();
        // Nothing is shown by this event but what is known.
        let cx = self.visitor.context(&self.policy, at, &Event::Abort, self.transaction.as_ref());
        (cx.standing(), *cx.score())
    }

    /// Answers an event. Never panics: then the event passes.
    pub fn on(&mut self, event: Event) -> Answer {
        let at = self.engine.moment();
        let now = at.now;
        self.engine.telemetry.asked(now);
        let kind = event.kind();
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(at, event)));
        let answer = self.engine.or_pass(kind, answer);
        if let Answer::Refuse(_) = answer {
            self.is_refused();
        }
        // By the same clock, though it may step: to read it takes a fifth of a decision.
        self.engine.telemetry.event(kind, self.engine.clock.now().since(now));
        answer
    }

    fn answer(&mut self, at: Moment, event: Event) -> Answer {
        match &event {
            Event::Helo { name } => self.visitor.client.helo = Some(name.clone()),
            Event::Mail { user, tls, .. } => {
                self.visitor.client.user.clone_from(user);
                self.visitor.client.tls = *tls;
                if self.transaction.is_some() {
                    // Nobody told that the last transaction ended; so it ends here.
                    self.decide(at, &Event::Abort);
                    self.forget_message();
                }
                self.visitor.asked.in_message = 0;
            }
            _ => {}
        }
        self.visitor.keys.begin(&event);
        self.visitor.shows = OnceCell::new();
        if let Some(sentence) = self.sentence.take()
            && let Ok(answer) = self.repeat(at, &event, sentence)
        {
            return answer;
        }
        let decision = self.decide(at, &event);
        if let Event::Recipient { .. } = event {
            let Asked { in_session, in_message } = &mut self.visitor.asked;
            *in_session = in_session.saturating_add(1);
            *in_message = in_message.saturating_add(1);
        }
        self.follow(at.now, event, decision)
    }

    /// The MTA has refused something, whoever told it to.
    fn is_refused(&mut self) {
        self.visitor.patience.strain();
        self.tell_patience();
    }

    /// The front gives a refusal once more that it was told before, for a command that has come again.
    /// Whether it may: else the session has to be asked.
    pub fn repeats_refusal(&mut self) -> bool {
        let may = !self.visitor.patience.is_spent(self.policy.most_refusals());
        if may {
            self.is_refused();
        }
        may
    }

    /// Lets the policy service know, where it is asked about the same session.
    fn tell_patience(&self) {
        if let Some(key) = self.held {
            let refused = self.visitor.patience.refused;
            let at = self.engine.moment();
            self.engine.held.write_known(key, at, |held| held.refused = refused);
        }
    }

    /// What the MTA lets us know of itself: whether it is short of processes, so that it hangs up at
    /// the first refusal; and what a milter has refused in the same session, if one holds it.
    pub fn patience_of_the_mta(&mut self, stress: bool) {
        let patience = &mut self.visitor.patience;
        patience.stress = stress;
        if self.visitor.door.ends == Ends::SeenElsewhere {
            let elsewhere = self.engine.refused_elsewhere(&self.visitor.client);
            patience.refused = patience.refused.max(elsewhere);
        }
    }

    /// Reads, decides, writes.
    fn decide(&mut self, at: Moment, event: &Event) -> Decision {
        let Self { policy, visitor, transaction, ledger, .. } = self;
        let cx = visitor.context(policy, at, event, transaction.as_ref());
        let decision = policy.assess(&cx, ledger);
        policy.settle(&cx, &decision, ledger);
        decision
    }

    /// What a session that is refused hears, unless it has become exempt, or what it was refused for
    /// is over.
    fn repeat(
        &mut self,
        at: Moment,
        event: &Event,
        mut sentence: Sentence,
    ) -> Result<Answer, Lifted> {
        let silent = match event {
            Event::Helo { .. } => self.visitor.door.speak == Speak::Mail,
            Event::Mail { .. } if self.visitor.client.authenticated() => {
                let cx = self.visitor.context(&self.policy, at, event, self.transaction.as_ref());
                if self.policy.assess(&cx, &self.ledger).exemption().is_some() {
                    sentence.decision = sentence.decision.for_exempt();
                }
                false
            }
            Event::Mail { .. } | Event::Recipient { .. } | Event::Data { .. } => false,
            Event::Connect | Event::EndOfMessage { .. } | Event::Abort | Event::Disconnect => true,
        };
        if silent {
            self.sentence = Some(sentence);
            return Ok(Answer::Pass);
        }
        let listener = &self.visitor.door.address;
        let Sentence { decision, since, .. } = sentence;
        let decision = self.policy.reconsidered(decision, listener, since, at.now);
        if decision.passes() {
            return Err(Lifted);
        }
        let sentence = Sentence { decision, ..sentence };
        Ok(self.pronounce(at.now, event, sentence))
    }

    /// Speaks a sentence, and keeps it for the next command.
    fn pronounce(&mut self, now: Time, event: &Event, sentence: Sentence) -> Answer {
        let Sentence { decision, id, since, .. } = sentence;
        let decision = self.policy.said_again(decision, self.visitor.patience);
        let wait = decision.wait().saturating_sub(now.since(since));
        let answer = self.tell(event, &decision, id, wait);
        let decision = decision.without_shadows();
        self.sentence = Some(Sentence { decision, id, since, heard: Heard::Already });
        answer
    }

    /// Lets the session go the way of the decision.
    fn follow(&mut self, now: Time, event: Event, decision: Decision) -> Answer {
        if let Event::Connect | Event::Helo { .. } = event
            && !decision.passes()
        {
            let at_once = match event {
                Event::Connect => self.visitor.door.speak == Speak::Connect || decision.at_once(),
                _ => self.visitor.door.speak != Speak::Mail,
            };
            let id = self.engine.next_id(now);
            let sentence = Sentence { decision, id, since: now, heard: Heard::NotYet };
            if at_once {
                return self.pronounce(now, &event, sentence);
            }
            self.sentence = Some(sentence);
            return Answer::Pass;
        }
        let answer = if decision.is_worth_telling() {
            let id = self.engine.next_id(now);
            self.tell(&event, &decision, id, decision.wait())
        } else {
            if policy::can_be_refused(&event) {
                self.engine.telemetry.passed();
            }
            Answer::Pass
        };
        match event {
            Event::Mail { sender, size, .. } if decision.passes() => {
                self.transaction = Some(Transaction::new(sender, size));
            }
            Event::Recipient { fate: Fate::Offered, .. } if decision.passes() => {
                if let Some(transaction) = &mut self.transaction {
                    let judged = u32::from(decision.exemption().is_none());
                    transaction.accepted = transaction.accepted.saturating_add(1);
                    transaction.judged = transaction.judged.saturating_add(judged);
                }
            }
            // The MTA has refused it, which counts there as well.
            Event::Recipient { fate: Fate::Unknown | Fate::Rejected, .. } => self.is_refused(),
            Event::EndOfMessage { .. } => {
                self.visitor.patience.restore();
                self.tell_patience();
                self.forget_message();
            }
            Event::Mail { .. } | Event::Abort | Event::Disconnect => self.forget_message(),
            Event::Connect | Event::Helo { .. } | Event::Recipient { .. } | Event::Data { .. } => {}
        }
        answer
    }

    /// What comes next is another message, in which the client may have earned something else.
    fn forget_message(&mut self) {
        self.transaction = None;
        self.visitor.earned = OnceCell::new();
    }

    /// Logs and counts a decision, and puts it in words for the client.
    fn tell(&self, event: &Event, decision: &Decision, number: Id, wait: Duration) -> Answer {
        let sender = match event {
            Event::Mail { sender, .. } => Some(sender),
            _ => self.transaction.as_ref().map(|transaction| &transaction.sender),
        };
        let recipient = match event {
            Event::Recipient { address, .. } => Some(address),
            _ => None,
        };
        let (told, id) = (told_wait(wait, number).to_string(), number.to_string());
        let strongest = decision.strongest().filter(|_| event.kind() != Kind::Disconnect);
        let refused = strongest.map(|refusal| {
            let fact = |place| match place {
                Placeholder::Hostname => {
                    let mta = self.visitor.door.hostname.as_deref();
                    let mta = mta.or_else(|| self.engine.mta.get().map(AsRef::as_ref));
                    self.policy.hostname(mta).into()
                }
                Placeholder::Client => self.visitor.client.address().to_string().into(),
                Placeholder::Network => self.visitor.network.to_string().into(),
                Placeholder::Reason => refusal.why.reason().name().into(),
                Placeholder::Wait => told.as_str().into(),
                Placeholder::Id => id.as_str().into(),
                Placeholder::Sender => sender.map_or("", |sender| sender.shown()).into(),
                Placeholder::SenderDomain => sender.map_or("", |sender| sender.domain()).into(),
                Placeholder::Recipient => recipient.map_or("", |rcpt| rcpt.as_str()).into(),
                Placeholder::RecipientDomain => match &refusal.why {
                    // Of an address that hides where it leads.
                    Why::Required { recipient_domain, .. } => (&**recipient_domain).into(),
                    _ => recipient.map_or("", |rcpt| rcpt.domain()).into(),
                },
                Placeholder::Url => (&*self.policy.help_url).into(),
                Placeholder::Evidence => refusal.why.evidence().into(),
            };
            Refused {
                reply: Reply::new(refusal.code, refusal.enhanced, &refusal.template.text(fact)),
                reason: refusal.why.reason(),
                limit: refusal.limit.clone(),
                wait,
                id: id.clone(),
            }
        });
        self.engine.telemetry.told(&Told {
            decision,
            id: &id,
            event: event.kind(),
            client: self.visitor.client.address(),
            name: self.visitor.client.name(),
            helo: self.visitor.client.helo.as_ref().map(|helo| helo.as_str()),
            user: self.visitor.client.user.as_ref().map(|user| user.as_str()),
            sender: sender.map(|sender| sender.as_str()),
            recipient: recipient.map(|recipient| recipient.as_str()),
            wait,
            reply: refused.as_ref().map(|refused| &refused.reply),
        });
        if let Some(refusal) = decision.strongest().or(decision.shadowed().first()) {
            let text = |text: Option<&ClientText>| text.map(|text| cut(text.as_str()));
            self.engine.recent.push(Decided {
                id: number.0,
                at: self.engine.clock.now(),
                event: event.kind(),
                client: self.visitor.client.address(),
                name: self.visitor.client.name().map(cut),
                helo: text(self.visitor.client.helo.as_ref()),
                user: text(self.visitor.client.user.as_ref()),
                listener: self.visitor.door.listener.clone(),
                sender: sender.map(|sender| cut(sender.as_str())),
                recipient: recipient.map(|recipient| cut(recipient.as_str())),
                mode: refusal.mode,
                action: refusal.action().name(),
                why: refusal.why.clone(),
                limit: refusal.limit.clone(),
                wait: if decision.passes() { refusal.wait } else { wait },
                reply: refused.as_ref().map(|refused| cut(&refused.reply.to_string())),
            });
        }
        refused.map_or(Answer::Pass, Answer::Refuse)
    }

    fn end(&mut self, at: Moment) {
        if let Some(sentence) = self.sentence.take()
            && sentence.heard == Heard::NotYet
        {
            // The client went before it could be told; the log tells all the same.
            self.pronounce(at.now, &Event::Disconnect, sentence);
        }
        self.decide(at, &Event::Disconnect);
    }
}

/// The session is exempt now, or let in after all; what was decided before does not hold.
struct Lifted;

impl Drop for Session {
    fn drop(&mut self) {
        let at = self.engine.moment();
        let now = at.now;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self.end(at);
            Answer::Pass
        }));
        self.engine.or_pass(Kind::Disconnect, ended);
        if let Some(key) = self.held {
            self.engine.held.write_known(key, at, |held| held.sessions -= 1);
        }
        let took = self.engine.clock.now().since(now);
        self.engine.telemetry.event(Kind::Disconnect, took);
        self.engine.telemetry.session_ended(self.visitor.door.ends);
    }
}

/// The wait told, in whole seconds: never less than the true one, and at most a quarter or five
/// seconds more, so that those who were deferred together do not return together.
pub(super) fn told_wait(wait: Duration, id: Id) -> u64 {
    let true_ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    let least = true_ms.div_ceil(1_000);
    let most = true_ms.saturating_add((true_ms / 4).max(5_000)) / 1_000;
    // The same decision always tells the same wait. Ids of one moment differ in their last bits
    // only, so they are mixed well (the finaliser of MurmurHash3).
    let mixed = (id.0 ^ (id.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    least + (mixed ^ (mixed >> 33)) % (most - least + 1)
}

/// The id of a decision: when it was made, to the millisecond, and a serial number. The same in
/// the reply and in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) u64);

/// Crockford's base 32: nothing in it is mistaken for another when read out on the phone.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl Id {
    /// Reads one as it is told, in capitals or not.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| {
            DIGITS.iter().position(|digit| *digit == byte.to_ascii_lowercase()).map(|d| d as u64)
        };
        if text.len() != 11 {
            return None;
        }
        let id = text.bytes().try_fold(0_u64, |id, byte| Some(id << 5 | digit(byte)?))?;
        Some(Self(id))
    }
}

impl Display for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = (0..11).rev().map(|place| DIGITS[(self.0 >> (5 * place)) as usize & 31]);
        digits.map(char::from).try_for_each(|digit| f.write_char(digit))
    }
}
