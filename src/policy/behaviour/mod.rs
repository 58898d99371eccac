//! Does it send like a person, or like an established machine?
//!
//! Velocity limits see how much; most abuse is quieter. Every client has a score, made of named
//! terms that rest on what it does ([`evidence`]). The score and the client's history make its
//! standing; from some scores on new triplets wait, and it may go on only at its own pace
//! ([`pace`]). Nobody is shut out for good: the slowest pace brings every queue through.
//!
//! Mail to strangers that is paced, clean and little cannot be told from a person's, and is not.

pub mod evidence;
mod explain;
pub mod pace;

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::evidence::{
    ABNORMAL, Hygiene, Neighbourhood, Peer, Return, Returns, SUSPICIOUS, Score, Sender, Sighting,
    Term, Weights,
};
use self::pace::{Rates, Stage};
use super::Bounds;
use super::decision::{Decision, Refusal, Why};
use super::greylist;
use super::signal::{Context, Ledger, Round, Signal};
use super::standing::Standing;
use crate::clock::{Moment, Time};
use crate::meter::key::Key;
use crate::meter::quota::{Quota, Unit};
use crate::meter::table::{Kept, Size, Table};
use crate::meter::units::Span;
use crate::setting::{Complaint, Mode};
use crate::smtp::event::{Event, Fate};
use crate::smtp::pool::{NameKind, Pool};
use crate::smtp::reply::{Action, Code};
use crate::smtp::template::Template;

/// `[behaviour]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Whether it acts.
    pub mode: Mode,
    /// How long a new database only watches.
    pub learn_for: Span,
    /// The score from which on a client is a suspect: new triplets wait, and it starts slowly.
    pub suspect: f64,
    /// The score from which on it has a small quota.
    pub abnormal: f64,
    /// The score from which on it may only try now and then.
    pub extreme: f64,
    /// How many messages a suspect may send at first.
    pub slow: Quota,
    /// How many one whose sending is abnormal.
    pub quota: Quota,
    /// How many one whose sending is extremely so.
    pub probes: Quota,
    /// What is said.
    pub reply: Template,
    /// A factor on each term; 0 turns it off.
    pub weight: Terms,
    /// The most that each family adds.
    pub cap: Caps,
}

const REPLY: &str = "421 4.7.0 {hostname} Unusual sending pattern ({evidence}); retry in {wait} \
                     seconds id={id}";

impl Default for Params {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            learn_for: Span::secs(7 * 86_400),
            suspect: f64::from(SUSPICIOUS),
            abnormal: f64::from(ABNORMAL),
            extreme: 6.0,
            slow: Quota::events(30, 3_600),
            quota: Quota::events(12, 3_600),
            probes: Quota::events(2, 3_600),
            reply: REPLY.parse().expect("a test reads the default reply"),
            weight: Terms::default(),
            cap: Caps::default(),
        }
    }
}

macro_rules! named_numbers {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident = $default:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: f64,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            fn all(&self) -> impl Iterator<Item = f64> {
                [$(self.$field,)*].into_iter()
            }
        }
    };
}

named_numbers! {
    /// `[behaviour.weight]`
    Terms {
        /// [`Term::Velocity`]
        velocity = 1.0,
        /// [`Term::ColdBurst`]
        cold_burst = 1.0,
        /// [`Term::Regular`]
        regular = 1.0,
        /// [`Term::Nightless`]
        nightless = 1.0,
        /// [`Term::FirstContact`]
        first_contact = 1.0,
        /// [`Term::SenderChurn`]
        sender_churn = 1.0,
        /// [`Term::UnknownRecipients`]
        unknown_rcpt = 1.0,
        /// [`Term::Helo`]
        helo = 1.0,
        /// [`Term::HeloChurn`]
        helo_churn = 1.0,
        /// [`Term::Swarm`]
        swarm = 1.0,
        /// [`Term::NetworkVelocity`]
        prefix_velocity = 1.0,
        /// [`Term::Retry`]
        retry = 1.0,
        /// [`Term::Trust`]
        trust = 1.0,
        /// [`Term::Conversation`]
        conversation = 1.0,
    }
}

named_numbers! {
    /// `[behaviour.cap]`
    Caps {
        /// [`evidence::Family::Volume`]
        volume = 3.0,
        /// [`evidence::Family::Timing`]
        timing = 3.0,
        /// [`evidence::Family::Spread`]
        spread = 3.0,
        /// [`evidence::Family::List`]
        list = 4.0,
        /// [`evidence::Family::Identity`]
        identity = 3.0,
        /// [`evidence::Family::Neighbours`]
        neighbours = 3.0,
        /// [`evidence::Family::Retry`]
        retry = 3.0,
    }
}

impl Params {
    /// What makes no sense.
    pub fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut error = |key, message: String| complaints.push(Complaint::error(key, message));
        if !(self.suspect > 0.0 && self.abnormal > self.suspect && self.extreme > self.abnormal) {
            error("suspect", "expected 0 < suspect < abnormal < extreme".into());
        }
        for (key, quota) in [("slow", self.slow), ("quota", self.quota), ("probes", self.probes)] {
            if quota.unit() != Unit::Events {
                error(key, "expected a number of messages in a time".into());
            } else if quota.interval() > LONGEST_INTERVAL {
                error(
                    key,
                    "expected at least one message in 4h: otherwise mail expires in the \
                            sender's queue"
                        .into(),
                );
            }
        }
        let sound = |mut numbers: Box<dyn Iterator<Item = f64> + '_>| {
            numbers.all(|number| (0.0..=100.0).contains(&number))
        };
        if !sound(Box::new(self.weight.all())) {
            error("weight", "expected numbers from 0 to 100".into());
        }
        if !sound(Box::new(self.cap.all())) {
            error("cap", "expected numbers from 0 to 100".into());
        }
        let misgiving = self.reply.misgiving();
        complaints.extend(misgiving.map(|message| Complaint::warning("reply", message)));
        complaints
    }

    fn weights(&self) -> Weights {
        let mut weights = Weights::default();
        weights.terms.iter_mut().zip(self.weight.all()).for_each(|(to, from)| *to = from);
        weights.caps.iter_mut().zip(self.cap.all()).for_each(|(to, from)| *to = from);
        weights
    }
}

const LONGEST_INTERVAL: Duration = Duration::from_secs(4 * 3_600);

/// What is remembered of clients. It outlives every policy.
#[derive(Clone)]
pub struct Memory {
    /// Bound: `max_clients`. When it is full, those go that have earned nothing and were not seen
    /// for longest.
    senders: Arc<Table<Box<Sender>>>,
    /// Bound: `max_clients`. When it is full, those go that were not seen for longest.
    networks: Arc<Table<Neighbourhood>>,
    /// By host, or by pool where it has a name. Bound and rule likewise.
    returns: Arc<Table<Returns>>,
    /// When the database was begun.
    begun: Arc<AtomicU64>,
    /// Whether that has been put right, and is to be kept so.
    begun_anew: Arc<AtomicBool>,
}

impl Memory {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            senders: Arc::new(Table::noting_changes(bounds.max_clients)),
            networks: Arc::new(Table::new(bounds.max_clients)),
            returns: Arc::new(Table::noting_changes(bounds.max_clients)),
            begun: Arc::default(),
            begun_anew: Arc::default(),
        }
    }

    pub(super) fn signal(&self, params: &Params, triplets: &greylist::Memory) -> Option<Behaviour> {
        let rate = |quota: &Quota| 1.0 / quota.interval().as_secs_f64();
        (params.mode != Mode::Off).then(|| Behaviour {
            mode: params.mode,
            learn_for: params.learn_for.duration(),
            from: [params.suspect, params.abnormal, params.extreme],
            rates: Rates {
                slow: rate(&params.slow),
                quota: rate(&params.quota),
                probes: rate(&params.probes),
            },
            weights: params.weights(),
            template: Arc::new(params.reply.clone()),
            memory: self.clone(),
            triplets: triplets.clone(),
        })
    }

    /// The database is as old as this: a young one only watches.
    pub fn begun(&self, at: Time) {
        self.begun.store(at.as_nanos(), Ordering::Relaxed);
    }

    /// When the database was begun, where that has been put right since this was last asked.
    pub fn begun_anew(&self) -> Option<Time> {
        let anew = self.begun_anew.swap(false, Ordering::Relaxed);
        anew.then(|| Time::from_nanos(self.begun.load(Ordering::Relaxed)))
    }

    pub(super) fn sweep(&self, at: Moment, parts: usize) {
        // Begun by a clock that was ahead, it would only watch until the clock comes there again.
        if at.is_settled() && Time::from_nanos(self.begun.load(Ordering::Relaxed)) > at.now {
            self.begun(at.now);
            self.begun_anew.store(true, Ordering::Relaxed);
        }
        self.senders.sweep(at, parts);
        self.networks.sweep(at, parts);
        self.returns.sweep(at, parts);
    }

    pub(super) fn sizes(&self) -> [(&'static str, Size); 3] {
        [
            ("senders", self.senders.size()),
            ("neighbourhoods", self.networks.size()),
            ("returns", self.returns.size()),
        ]
    }

    pub(super) fn kept(&self) -> [(&'static str, Arc<dyn Kept>); 3] {
        [
            ("senders", self.senders.clone()),
            ("neighbourhoods", self.networks.clone()),
            ("returns", self.returns.clone()),
        ]
    }
}

/// The signal.
pub struct Behaviour {
    mode: Mode,
    learn_for: Duration,
    /// Where suspect, abnormal and extreme begin.
    from: [f64; 3],
    rates: Rates,
    weights: Weights,
    template: Arc<Template>,
    memory: Memory,
    triplets: greylist::Memory,
}

/// What an event shows of its client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// The score, with what the event adds.
    pub score: Score,
    /// What it adds: at a recipient.
    sighting: Option<Sighting>,
}

/// A client and its network, brought up to an event.
struct Look {
    sender: Sender,
    network: Neighbourhood,
    returns: Returns,
    seen: Seen,
}

impl Behaviour {
    /// Whether it acts, or only watches.
    fn mode(&self, cx: &Context<'_>) -> Mode {
        cx.mode("behaviour", self.own_mode(cx.now))
    }

    /// Whether it acts by its settings and its age.
    pub(super) fn own_mode(&self, now: Time) -> Mode {
        let begun = Time::from_nanos(self.memory.begun.load(Ordering::Relaxed));
        // One whose age nobody has told is new.
        let age = if begun == Time::default() { Duration::ZERO } else { now.since(begun) };
        let learning = age < self.learn_for;
        if learning { Mode::Shadow } else { self.mode }
    }

    /// One of two has written to the other.
    pub(super) fn has_talked(&self, key: Key, at: Moment) {
        self.triplets.meet(key, true, at);
    }

    fn stage(&self, score: f64) -> Stage {
        match self.from.iter().filter(|from| score >= **from).count() {
            0 => Stage::Calm,
            1 => Stage::Suspect,
            2 => Stage::Abnormal,
            _ => Stage::Extreme,
        }
    }

    /// Whether new triplets of this client wait, whoever it is.
    pub(super) fn suspects(&self, cx: &Context<'_>) -> bool {
        self.mode(cx) == Mode::Enforce && self.stage(cx.score().total) >= Stage::Suspect
    }

    /// Whose deferrals are kept together: those of a mail system that has a name, since another of
    /// its hosts may bring the retry; else of the host.
    fn returns_key(cx: &Context<'_>) -> Key {
        match cx.pool() {
            Pool::Domain(_) => cx.pool_key(),
            Pool::Network(_) => cx.network_key(),
        }
    }

    /// What tells a message from others before it has a recipient: who brings it, its sender and
    /// its size.
    fn message(cx: &Context<'_>) -> Option<Key> {
        let size = match cx.event {
            Event::Mail { size, .. } => *size,
            _ => cx.transaction?.size,
        };
        let size = cx.key("message", &size.unwrap_or(0).to_le_bytes());
        Some(cx.pool_key().with(cx.sender_key()?).with(size))
    }

    /// What tells a message from others that has been put off at a recipient.
    fn told(cx: &Context<'_>) -> Option<Key> {
        Some(cx.pool_key().with(cx.sender_key()?).with(cx.recipient_key()?))
    }

    /// Under which a network's acquaintance with a recipient is remembered.
    fn pair(cx: &Context<'_>) -> Option<Key> {
        cx.recipient_key().map(|recipient| cx.neighbourhood_key().with(recipient))
    }

    /// What this event shows of its client.
    pub fn see(&self, cx: &Context<'_>) -> Seen {
        self.look(cx).seen
    }

    fn look(&self, cx: &Context<'_>) -> Look {
        let mut sender = self.memory.senders.read(cx.network_key(), cx.at, |sender| {
            sender.map_or_else(Sender::default, |sender| (**sender).clone())
        });
        let key = cx.neighbourhood_key();
        let mut network = self
            .memory
            .networks
            .read(key, cx.at, |network| network.map_or_else(Neighbourhood::default, Clone::clone));
        let silence = cx.at.since(sender.last());
        sender.fade(cx.at);
        let mut returns = self.memory.returns.read(Self::returns_key(cx), cx.at, |returns| {
            returns.map_or_else(Returns::default, Clone::clone)
        });
        returns.fade(cx.at);
        let sighting = self.sighting(cx, &sender, &returns);
        network.fade(cx.at);
        if let Some(sighting) = &sighting {
            sender.see(sighting, silence, cx.now);
            if sender.is_new() {
                network.see(sighting);
            }
        }
        let score = sender.score(&network, &returns, &self.weights, cx.now);
        Look { sender, network, returns, seen: Seen { score, sighting } }
    }

    /// Whether a message that was put off has come back already.
    fn has_come_back(&self, message: Key, at: Moment) -> bool {
        self.triplets.has_met(message.with(message), at)
    }

    /// Whether the score may have come so far by now, by what it was last: a glance, for all those
    /// about whom there is nothing to say.
    fn may_be(&self, cx: &Context<'_>, stage: Stage) -> bool {
        let from = self.from[stage as usize - 1];
        let last =
            |sender: Option<&Box<Sender>>| sender.is_some_and(|s| s.last_score() + SLACK >= from);
        self.memory.senders.read(cx.network_key(), cx.at, last)
    }

    /// What a recipient shows; nothing at other events.
    fn sighting(&self, cx: &Context<'_>, sender: &Sender, returns: &Returns) -> Option<Sighting> {
        let Event::Recipient { fate, .. } = cx.event else { return None };
        // Why the MTA has refused it otherwise says nothing about the client: it may have been us.
        let exists = match fate {
            Fate::Offered => true,
            Fate::Unknown | Fate::Doomed => false,
            Fate::Rejected => return None,
        };
        let known = |key: Option<Key>| key.is_some_and(|key| self.triplets.has_met(key, cx.at));
        let first = cx.asked.in_message == 0;
        let look = first && sender.was_refused();
        let known_by_size = look && known(Self::message(cx));
        let refused = known_by_size || (look && known(Self::told(cx)));
        // One that the MTA has refused has not come as far as being let in.
        let may_return = *fate != Fate::Unknown && returns.is_awaited();
        let awaited = if may_return { cx.policy.awaits(cx) } else { None };
        Some(Sighting {
            message: first && !refused && awaited.is_none(),
            session: cx.asked.in_session == 0,
            peer: peer(cx),
            domain: domain(cx),
            organisation: cx.pool_key().to_u64(),
            stranger: !known(Self::pair(cx)),
            exists,
            answered: known(cx.answer_key()),
            awaited,
            known_by_size,
        })
    }

    /// The bucket that this client draws from, as of now, and whether its network shares it.
    fn pace(&self, look: &Look, now: Time) -> (pace::Pace, Stage, bool) {
        let score = &look.seen.score;
        let stage = self.stage(score.total);
        let shared = score.is_shared();
        let pace = if shared { look.network.pace } else { look.sender.pace };
        (pace.at(stage, shared, &self.rates, now), stage, shared)
    }

    /// How long a message must wait, and why, if it must.
    fn refusal(&self, cx: &Context<'_>) -> Option<(Refusal, Stage)> {
        let look = self.look(cx);
        let (pace, stage, shared) = self.pace(&look, cx.now);
        if stage == Stage::Calm {
            return None;
        }
        let wait = pace.wait(stage, &self.rates);
        if wait.is_zero() {
            return None;
        }
        let from = self.from[stage as usize - 1];
        let why = Why::Behaviour { score: look.seen.score, from, shared };
        let mut refusal = Refusal::new(self.mode(cx), &self.template, why).waiting(wait);
        if stage == Stage::Suspect && refusal.action() == Action::Close {
            // This message is put off; the session may go on.
            refusal.code = Code::Code451;
        }
        Some((refusal, stage))
    }
}

/// The key of a message by its size that was put off at a recipient, by which it is better known.
fn seen_further(message: Key) -> Key {
    message.with(message).with(message)
}

fn peer(cx: &Context<'_>) -> Peer {
    let helo = cx.client.helo.as_ref().map(|helo| helo.host_name()).unwrap_or_default();
    Peer { hygiene: hygiene(cx), helo: cx.key("helo", helo.as_bytes()).to_u64() }
}

fn domain(cx: &Context<'_>) -> u64 {
    let domain = cx.sender().map_or("", |sender| sender.domain());
    cx.key("domain", domain.as_bytes()).to_u64()
}

fn hygiene(cx: &Context<'_>) -> Hygiene {
    let Some(helo) = cx.client.helo.as_ref().map(|helo| helo.as_str()) else {
        return Hygiene::Good;
    };
    let digits = helo.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if helo.starts_with('[') || (digits && !helo.is_empty()) {
        Hygiene::Literal
    } else if !helo.contains('.') {
        Hygiene::NotQualified
    } else if cx.client.name_is_unsure() {
        Hygiene::Good
    } else {
        match cx.name_kind() {
            NameKind::None => Hygiene::Nameless,
            NameKind::Generic => Hygiene::Generic,
            NameKind::Known => Hygiene::Good,
        }
    }
}

impl Signal for Arc<Behaviour> {
    fn name(&self) -> &'static str {
        "behaviour"
    }

    fn standing(&self, cx: &Context<'_>) -> Option<Standing> {
        if self.mode(cx) != Mode::Enforce {
            return None;
        }
        let score = cx.score();
        if self.stage(score.total) >= Stage::Suspect {
            return Some(Standing::Suspect);
        }
        (score.of(Term::Trust) < EARNED).then_some(Standing::Proven)
    }

    fn assess(&self, cx: &Context<'_>, ledger: &Ledger, round: &mut Round) {
        let (from, may_be) = match cx.event {
            // At EHLO for those only who may try now and then.
            Event::Connect => (Stage::Extreme, self.may_be(cx, Stage::Extreme)),
            Event::Mail { .. } => (Stage::Abnormal, self.may_be(cx, Stage::Abnormal)),
            Event::Recipient { .. } => {
                // Asked before anybody settles, who would change what it shows.
                let calm = self.stage(cx.score().total) == Stage::Calm;
                // What greylisting puts off costs nothing, and neither do further recipients.
                (Stage::Suspect, !calm && !ledger.paid && !round.refuses())
            }
            _ => return,
        };
        if may_be
            && let Some((refusal, stage)) = self.refusal(cx)
            && stage >= from
        {
            round.refuse(refusal);
        }
    }

    fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        if decision.exemption().is_some() {
            if let Event::Recipient { fate: Fate::Offered, .. } = cx.event
                && cx.standing() == Standing::Trusted
                && let Some(key) = cx.talk_key()
            {
                self.triplets.meet(key, true, cx.at);
            }
            return;
        }
        match cx.event {
            Event::Mail { .. } => self.settle_mail(cx, decision, ledger),
            Event::Recipient { .. } => self.settle_recipient(cx, decision, ledger),
            _ => {}
        }
    }
}

/// By how much a score can rise without an event: by deferrals that nobody has come back for.
const SLACK: f64 = 2.0;

/// Who comes back sooner does not keep time.
const HAMMERED: Duration = Duration::from_secs(60);

/// What [`Term::Trust`] must say of a proven client.
const EARNED: f64 = -1.5;

impl Behaviour {
    /// A message is asked for by a client that has to keep a pace: the bucket is as of now.
    fn settle_mail(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        (ledger.paced, ledger.paid) = (false, false);
        if cx.rehearsal || !self.may_be(cx, Stage::Suspect) {
            return;
        }
        let look = self.look(cx);
        let (_, stage, shared) = self.pace(&look, cx.now);
        if stage == Stage::Calm {
            return;
        }
        // From what it is now: another session may have taken out of it since we looked.
        let up_to_now = |pace: &mut pace::Pace| {
            *pace = pace.at(stage, shared, &self.rates, cx.now);
        };
        if shared {
            let change = |network: &mut Neighbourhood| up_to_now(&mut network.pace);
            self.memory.networks.write_known(cx.neighbourhood_key(), cx.at, change);
        }
        // What is put off here shows no recipient. It counts all the same, once, or who sends more
        // than it may would soon look as if it had sent nothing.
        let message = Self::message(cx).filter(|_| !decision.passes());
        let met = |key: Key| self.triplets.has_met(key, cx.at);
        let new = message.filter(|message| !met(*message) && !met(seen_further(*message)));
        if let Some(message) = new {
            self.triplets.meet(message, false, cx.at);
        }
        // The first time it comes back after that tells how it keeps time.
        let back = message.filter(|message| new.is_none() && !self.has_come_back(*message, cx.at));
        if let Some(message) = back {
            self.triplets.meet(message.with(message), false, cx.at);
        }
        let closed = decision.action() == Action::Close && cx.asked.in_session == 0;
        self.memory.senders.write_known(cx.network_key(), cx.at, |sender| {
            if !shared {
                up_to_now(&mut sender.pace);
            }
            if !decision.passes() {
                let silence = cx.at.since(sender.last());
                sender.fade(cx.at);
                let (message, session) = (new.map(|_| domain(cx)), closed.then(|| peer(cx)));
                sender.refused(message, session, silence, cx.now);
            }
        });
        if !decision.passes() && new.is_none() {
            self.memory.returns.write_known(Self::returns_key(cx), cx.at, |returns| {
                returns.fade(cx.at);
                returns.knocked(back.is_some());
            });
        }
        ledger.paced = true;
    }

    fn settle_recipient(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        let Seen { score, sighting } = *cx.seen();
        let Some(sighting) = sighting else { return };
        // The first recipient that we do not refuse: the message is on its way, or it was a guess.
        let takes = decision.passes() && !cx.rehearsal && !ledger.paid && {
            ledger.paid = true;
            self.stage(score.total) > Stage::Calm
        };
        let (shared, stage) = (score.is_shared(), self.stage(score.total));
        let take = |pace: &mut pace::Pace| {
            if !ledger.paced {
                *pace = pace.at(stage, shared, &self.rates, cx.now);
            }
            pace.take();
        };
        let told_to_return = std::mem::take(&mut ledger.told_to_return) && !cx.rehearsal;
        let returned = sighting.awaited.filter(|_| !cx.rehearsal).and_then(|first| {
            // Where greylisting speaks at DATA, who passes here may still have to wait.
            let early = cx.now.since(first) < HAMMERED;
            match decision.passes() && !cx.policy.puts_off_at_data(cx, first) {
                true => Some((Return::Proper, first)),
                false => early.then_some((Return::Early, first)),
            }
        });
        if let Some((Return::Proper, _)) = returned {
            cx.policy.has_returned(cx);
        }
        // A full table counts itself.
        let is_new = self.memory.senders.write(cx.network_key(), cx.at, |sender| {
            let silence = cx.at.since(sender.last());
            sender.fade(cx.at);
            sender.see(&sighting, silence, cx.now);
            sender.scored(score.total, sighting.exists);
            if !decision.passes() && !cx.rehearsal {
                sender.put_off();
            }
            if takes && !shared {
                take(&mut sender.pace);
            }
            sender.is_new()
        });
        if told_to_return || returned.is_some() {
            let _ = self.memory.returns.write(Self::returns_key(cx), cx.at, |returns| {
                returns.fade(cx.at);
                if told_to_return {
                    returns.deferred();
                }
                if let Some((how, first)) = returned {
                    returns.returned(how, first, cx.now);
                }
            });
        }
        if is_new == Ok(true) || shared {
            let _ = self.memory.networks.write(cx.neighbourhood_key(), cx.at, |network| {
                network.fade(cx.at);
                if is_new == Ok(true) {
                    network.see(&sighting);
                }
                if takes && shared {
                    take(&mut network.pace);
                }
            });
        }
        let put_off = told_to_return || (!decision.passes() && !cx.rehearsal);
        if sighting.known_by_size
            && !cx.rehearsal
            && let Some(message) = Self::message(cx)
        {
            // Each is looked for once: another of its size is another.
            self.triplets.forget(message);
        }
        if put_off {
            // Known again, also should it be put off before it has a recipient.
            let by_size = Self::message(cx).map(seen_further);
            for key in by_size.into_iter().chain(Self::told(cx)) {
                self.triplets.meet(key, false, cx.at);
            }
        }
        if let Some(pair) = Self::pair(cx) {
            let lasting = decision.passes() && sighting.exists && stage == Stage::Calm;
            self.triplets.meet(pair, lasting, cx.at);
        }
    }
}

/// The terms that add most, in words.
pub(super) struct Evidence<'a>(pub(super) &'a Score);

impl Display for Evidence<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut words = self.0.largest().map(|(term, _)| term.words()).take(2);
        f.write_str(words.next().unwrap_or("many small signs"))?;
        words.try_for_each(|words| write!(f, ", {words}"))
    }
}

#[cfg(test)]
mod tests {
    use super::evidence::Family;
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(Params::default().check(), []);
        assert_eq!(Params::default().weights(), Weights::default());
        assert_eq!(Terms::default().all().count(), Term::ALL.len());
        assert_eq!(Caps::default().all().count(), Family::CAPPED.len());
    }
}
