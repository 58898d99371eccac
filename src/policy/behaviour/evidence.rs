//! What speaks for and against a client: a fixed number of fading counts, and the score they make.
//!
//! A score is a sum of named terms. Each is like the logarithm of odds: the more it is above zero,
//! the less the client sends like a person or an established machine. Terms that rest on the same
//! evidence are a family, whose sum has a cap; no term speaks before it has seen enough, so a new
//! client begins near zero. There is no content in it: times, what the peer calls itself, the
//! envelope, and what became of deferrals.
//!
//! `x` fades by `exp(-dt/tau)`, reckoned at the next event. Weights of the peer's hygiene are
//! logarithms of likelihood ratios at the receiving border of 1,626 spam and 3,184 ham messages
//! (2001 to 2003), shrunk because they are old.

mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{Moment, Time};
use crate::meter::record::{Parts, Record, Stored, Worth, keep_later, put_time};

const HOUR: f64 = 3_600.0;
const DAY: f64 = 86_400.0;
const WEEK: f64 = 7.0 * DAY;
/// What halves in thirty days.
const THIRTY_DAYS: f64 = 30.0 * DAY / std::f64::consts::LN_2;
const FORTNIGHT: f64 = 14.0 * DAY;

/// Messages an hour that a client of no standing may send before [`Term::Velocity`] speaks.
const EARNED_BY_NOBODY: f64 = 30.0;
/// The same for all other new hosts of its network together.
const EARNED_BY_NETWORK: f64 = 300.0;
/// Ratios rest on at most so many events, so that they fade once a client stops.
const RATIO_MEMORY: f64 = 60.0;
/// A deferral that nobody came back for within four to eight hours is one of a sender that never
/// does.
const NEVER_AFTER: u64 = 4 * 3_600;
/// Counts and maps "of the last day" are of the current twelve hours and those before.
const HALF_DAY: u64 = 12 * 3_600;
/// A client is forgotten so long after its last event: two half-lives of what it has earned.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60 * 86_400);
/// Days without a suspicious score after which a client is no new one of its network.
const SETTLED: u8 = 3;

/// One kind of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// More messages an hour than it has earned.
    Velocity,
    /// Many messages to strangers on its first day.
    ColdBurst,
    /// Even gaps between sessions.
    Regular,
    /// As much at night as by day.
    Nightless,
    /// Nobody it writes to has heard from it before.
    FirstContact,
    /// A new sender domain each time.
    SenderChurn,
    /// Recipients that do not exist.
    UnknownRecipients,
    /// A HELO name, or a name of its address, that no established server has.
    Helo,
    /// Many HELO names.
    HeloChurn,
    /// Many new hosts of many names in its network.
    Swarm,
    /// Many messages of other new hosts of its network.
    NetworkVelocity,
    /// What it does when it is deferred.
    Retry,
    /// What clean days have earned.
    Trust,
    /// Its recipients have written to this sender before.
    Conversation,
}

/// Terms that rest on the same evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// How much.
    Volume,
    /// When.
    Timing,
    /// To and from how many.
    Spread,
    /// To whom.
    List,
    /// As whom.
    Identity,
    /// From where.
    Neighbours,
    /// And then.
    Retry,
    /// What speaks for it. Has no cap.
    Credit,
}

impl Family {
    /// All of them that have a cap.
    pub const CAPPED: [Self; 7] = [
        Self::Volume,
        Self::Timing,
        Self::Spread,
        Self::List,
        Self::Identity,
        Self::Neighbours,
        Self::Retry,
    ];
}

impl Term {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Velocity,
        Self::ColdBurst,
        Self::Regular,
        Self::Nightless,
        Self::FirstContact,
        Self::SenderChurn,
        Self::UnknownRecipients,
        Self::Helo,
        Self::HeloChurn,
        Self::Swarm,
        Self::NetworkVelocity,
        Self::Retry,
        Self::Trust,
        Self::Conversation,
    ];

    /// Its one name in settings, logs and explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Velocity => "velocity",
            Self::ColdBurst => "cold_burst",
            Self::Regular => "regular",
            Self::Nightless => "nightless",
            Self::FirstContact => "first_contact",
            Self::SenderChurn => "sender_churn",
            Self::UnknownRecipients => "unknown_rcpt",
            Self::Helo => "helo",
            Self::HeloChurn => "helo_churn",
            Self::Swarm => "swarm",
            Self::NetworkVelocity => "prefix_velocity",
            Self::Retry => "retry",
            Self::Trust => "trust",
            Self::Conversation => "conversation",
        }
    }

    /// What it says, for the postmaster of the sender.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Velocity => "many messages an hour",
            Self::ColdBurst => "many messages on the first day",
            Self::Regular => "clockwork timing",
            Self::Nightless => "no difference of day and night",
            Self::FirstContact => "only new recipients",
            Self::SenderChurn => "new sender domain each time",
            Self::UnknownRecipients => "many unknown recipients",
            Self::Helo => "HELO or host name of no mail server",
            Self::HeloChurn => "many HELO names",
            Self::Swarm => "many new hosts in your network",
            Self::NetworkVelocity => "many messages from your network",
            Self::Retry => "deferred mail not retried properly",
            Self::Trust => "clean history",
            Self::Conversation => "answers to mail from here",
        }
    }

    /// The family it belongs to.
    pub const fn family(self) -> Family {
        match self {
            Self::Velocity | Self::ColdBurst => Family::Volume,
            Self::Regular | Self::Nightless => Family::Timing,
            Self::FirstContact | Self::SenderChurn => Family::Spread,
            Self::UnknownRecipients => Family::List,
            Self::Helo | Self::HeloChurn => Family::Identity,
            Self::Swarm | Self::NetworkVelocity => Family::Neighbours,
            Self::Retry => Family::Retry,
            Self::Trust | Self::Conversation => Family::Credit,
        }
    }
}

/// What each term counts for, and the most that a family does.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// A factor on each term, in the order of [`Term::ALL`]; 0 turns it off.
    pub terms: [f64; Term::ALL.len()],
    /// By [`Family::CAPPED`].
    pub caps: [f64; Family::CAPPED.len()],
}

impl Default for Weights {
    fn default() -> Self {
        Self { terms: [1.0; Term::ALL.len()], caps: [3.0, 3.0, 3.0, 4.0, 3.0, 3.0, 3.0] }
    }
}

/// A score, and what it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// The sum.
    pub total: f64,
    /// What each term adds, in the order of [`Term::ALL`], cut where its family was.
    pub terms: [f64; Term::ALL.len()],
}

impl Score {
    /// What a term adds.
    pub fn of(&self, term: Term) -> f64 {
        self.terms[term as usize]
    }

    /// Whether it is the network rather than the client that sends: then all share one pace.
    pub fn is_shared(&self) -> bool {
        self.of(Term::Swarm) + self.of(Term::NetworkVelocity) > 1.0
    }

    /// The terms that add most, the largest first.
    pub fn largest(&self) -> impl Iterator<Item = (Term, f64)> {
        let mut terms = Term::ALL.map(|term| (term, self.of(term)));
        terms.sort_by(|one, other| other.1.total_cmp(&one.1));
        terms.into_iter().filter(|(_, adds)| *adds > 0.3)
    }
}

/// What a peer calls itself, the worst that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hygiene {
    /// Nothing to be said.
    #[default]
    Good,
    /// Its HELO is a bare address.
    Literal,
    /// Its HELO is a word without a dot.
    NotQualified,
    /// Its address has no forward-confirmed name.
    Nameless,
    /// That name carries the address, as access networks name their hosts.
    Generic,
}

impl Hygiene {
    const ALL: [Self; 5] =
        [Self::Good, Self::Literal, Self::NotQualified, Self::Nameless, Self::Generic];

    fn weight(self) -> f64 {
        match self {
            Self::Good => -0.2,
            Self::Literal => 2.0,
            Self::NotQualified => 1.2,
            Self::Nameless => 1.0,
            Self::Generic => 0.5,
        }
    }
}

/// A set of values in 64 bits: linear counting (Whang, Vander-Zanden, Taylor 1990).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    current: u64,
    previous: u64,
}

impl Map {
    fn add(&mut self, hash: u64) {
        self.current |= 1 << (hash >> 58);
    }

    fn turn(&mut self, times: u64) {
        *self = match times {
            0 => *self,
            1 => Self { current: 0, previous: self.current },
            _ => Self::default(),
        };
    }

    /// How many different values there were.
    fn count(&self) -> f64 {
        match (self.current | self.previous).count_zeros() {
            0 => 512.0,
            zeros => -64.0 * (f64::from(zeros) / 64.0).ln(),
        }
    }
}

/// Who the client says it is.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// What it calls itself.
    pub hygiene: Hygiene,
    /// The HELO name, as an evenly spread hash.
    pub helo: u64,
}

/// One recipient of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// Whether it is the first of a message that was not seen before.
    pub message: bool,
    /// Whether it is the first of its session.
    pub session: bool,
    /// Who it says it is.
    pub peer: Peer,
    /// The sender's domain, as an evenly spread hash.
    pub domain: u64,
    /// The organisation of the host's name, likewise.
    pub organisation: u64,
    /// Whether nobody of its network has written to this recipient before.
    pub stranger: bool,
    /// Whether the recipient exists.
    pub exists: bool,
    /// Whether the recipient has written to this sender before.
    pub answered: bool,
    /// Since when its return is awaited, if it was deferred.
    pub awaited: Option<Time>,
    /// Whether it is no new message because one of its sender and size was put off.
    pub known_by_size: bool,
}

/// What became of a deferral.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// It came back within a minute.
    Early,
    /// It waited.
    Proper,
}

/// A client: 256 bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sender {
    /// Its last event.
    last: Time,
    /// Its first, in seconds.
    first: u32,
    /// Days without a suspicious score, and what it called itself last.
    clean_days: u8,
    hygiene: Hygiene,
    /// Whether any message of its last days was put off.
    was_refused: bool,
    /// New messages, in this half day and the last.
    messages: [u16; 2],
    /// New messages, tau 1 h: the rate an hour; and tau 24 h.
    per_hour: f32,
    per_day: f32,
    /// `per_hour` averaged over 7 d: the client's own normal.
    normal: f32,
    /// The highest `per_hour` of past clean days, halves in 30 d; and of this day.
    peak: f32,
    today: f32,
    /// Recipients and first contacts among them, tau 1 h; and tau 7 d.
    hour: f32,
    hour_new: f32,
    week: f32,
    week_new: f32,
    /// Recipients who wrote to this sender before, tau 7 d.
    answered: f32,
    /// Recipients that exist and that do not, tau 24 h.
    known: f32,
    unknown: f32,
    /// ln(silence before a session): count, mean, sum of squares, tau 24 h.
    gaps: f32,
    gap_mean: f32,
    gap_m2: f32,
    /// Recipients accepted at a score below suspicion, halves in 30 d.
    trust: f32,
    /// The highest score of this day, and the last.
    worst: f32,
    score: f32,
    /// How fast it may send.
    pub(super) pace: super::pace::Pace,
    domains: Map,
    helos: Map,
    /// Messages by hour of the day, tau 14 d.
    hours: [f32; 24],
}

/// What becomes of deferrals: of one host, or of a mail system with a name, where another of its
/// hosts may bring what one was told to bring again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Returns {
    last: Time,
    /// Deferrals whose return is awaited, in these four hours and the last.
    awaited: [u16; 2],
    /// Deferrals not retried, retried within a minute, retried properly, tau 7 d.
    never: f32,
    early: f32,
    proper: f32,
}

impl Returns {
    /// As of now; while nobody knows when that is, nothing fades.
    pub fn fade(&mut self, at: Moment) {
        let now = at.now;
        if self.last == Time::default() {
            self.last = now;
        }
        if now <= self.last || at.is_doubted() {
            return;
        }
        let values = &mut [&mut self.never, &mut self.early, &mut self.proper];
        fade(values, now.since(self.last).as_secs_f64(), WEEK);
        let [current, previous] = self.awaited;
        match turns(self.last, now, NEVER_AFTER) {
            0 => {}
            1 => {
                self.never += f32::from(previous);
                self.awaited = [0, current];
            }
            _ => {
                self.never += f32::from(previous) + f32::from(current);
                self.awaited = [0, 0];
            }
        }
        self.last = now;
    }

    /// A deferral whose return is awaited from now on.
    pub fn deferred(&mut self) {
        self.awaited[0] = self.awaited[0].saturating_add(1);
    }

    /// What was deferred has come back; `first` is when it was deferred.
    pub fn returned(&mut self, how: Return, first: Time, now: Time) {
        match how {
            Return::Early => self.early += 1.0,
            Return::Proper => {
                self.proper += 1.0;
                if let Some(awaited) = self.awaited.get_mut(turns(first, now, NEVER_AFTER) as usize)
                {
                    *awaited = awaited.saturating_sub(1);
                }
            }
        }
    }

    /// What was deferred has come back, and was put off again before it showed as what: for the
    /// first time, or once more.
    pub fn knocked(&mut self, first_time: bool) {
        let [current, previous] = &mut self.awaited;
        let awaited = if *previous > 0 { previous } else { current };
        *awaited = awaited.saturating_sub(1);
        if first_time {
            self.proper += 1.0;
        }
    }

    /// Whether the return of anything is awaited.
    pub fn is_awaited(&self) -> bool {
        self.awaited != [0, 0]
    }
}

impl Record for Returns {
    const FAVOURS: bool = true;

    fn forgettable(&self, now: Time) -> bool {
        now.since(self.last) >= FORGOTTEN_AFTER
    }

    fn worth(&self) -> Worth {
        Worth::Fleeting(self.last.as_nanos())
    }

    /// What lies ahead is now: nothing is known of the time in between.
    fn seen_from(&self, now: Time, _: Duration) -> Option<Self> {
        (self.last > now).then(|| Self { last: now, ..self.clone() })
    }
}

impl Stored for Returns {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.last);
        bytes.extend(self.awaited.iter().flat_map(|count| count.to_le_bytes()));
        let counts = [self.never, self.early, self.proper];
        bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let mut read = Self { last: parts.time()?, ..Self::default() };
        for count in &mut read.awaited {
            *count = u16::from_le_bytes(parts.bytes()?);
        }
        for count in [&mut read.never, &mut read.early, &mut read.proper] {
            *count = Some(f32::from_le_bytes(parts.bytes()?)).filter(|count| count.is_finite())?;
        }
        parts.end(read)
    }

    /// The later one has seen more.
    fn fold(&mut self, other: Self) {
        keep_later(self, other, |it| it.last);
    }
}

/// The network of a client: its new hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbourhood {
    last: Time,
    /// Their new messages, tau 1 h.
    per_hour: f32,
    /// Their organisations, in this hour and the last.
    names: Map,
    /// How fast all of them may send together.
    pub(super) pace: super::pace::Pace,
}

fn ramp(x: f64, low: f64, high: f64) -> f64 {
    ((x - low) / (high - low)).clamp(0.0, 1.0)
}

fn seconds(time: Time) -> u64 {
    time.as_nanos() / 1_000_000_000
}

/// How many periods have begun between two moments.
fn turns(from: Time, to: Time, period: u64) -> u64 {
    (seconds(to) / period).saturating_sub(seconds(from) / period)
}

fn fade(values: &mut [&mut f32], dt: f64, tau: f64) {
    let factor = (-dt / tau).exp() as f32;
    values.iter_mut().for_each(|value| **value *= factor);
}

impl Sender {
    /// A client that is seen for the first time.
    fn begin(now: Time) -> Self {
        Self {
            last: now,
            first: u32::try_from(seconds(now)).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }

    /// As of now; while nobody knows when that is, nothing fades.
    pub fn fade(&mut self, at: Moment) {
        let now = at.now;
        if self.last == Time::default() {
            *self = Self::begin(now);
            return;
        }
        if now <= self.last || at.is_doubted() {
            return;
        }
        let dt = now.since(self.last).as_secs_f64();
        fade(&mut [&mut self.per_hour, &mut self.hour, &mut self.hour_new], dt, HOUR);
        let day = &mut [
            &mut self.per_day,
            &mut self.known,
            &mut self.unknown,
            &mut self.gaps,
            &mut self.gap_m2,
        ];
        fade(day, dt, DAY);
        let week = &mut [&mut self.week, &mut self.week_new, &mut self.answered];
        fade(week, dt, WEEK);
        fade(&mut [&mut self.trust, &mut self.peak], dt, THIRTY_DAYS);
        let factor = (-dt / FORTNIGHT).exp() as f32;
        self.hours.iter_mut().for_each(|messages| *messages *= factor);
        let kept = (-dt / WEEK).exp();
        self.normal =
            (f64::from(self.normal) * kept + f64::from(self.per_hour) * (1.0 - kept)) as f32;
        self.turn(now);
        self.last = now;
    }

    /// Ends the half day, the four hours and the day that are over.
    fn turn(&mut self, now: Time) {
        let halves = turns(self.last, now, HALF_DAY);
        self.messages = match halves {
            0 => self.messages,
            1 => [0, self.messages[0]],
            _ => [0, 0],
        };
        self.domains.turn(halves);
        self.helos.turn(halves);
        if turns(self.last, now, DAY as u64) > 0 {
            // Only clean days raise what has been earned.
            if self.worst < SUSPICIOUS {
                self.clean_days = self.clean_days.saturating_add(1);
                self.peak = self.peak.max(self.today);
            }
            // What was put off longer ago than that has come back or never will.
            self.was_refused &= turns(self.last, now, DAY as u64) < 5;
            (self.worst, self.today) = (0.0, 0.0);
        }
    }

    /// Takes in a new message; `self` has been faded to now.
    fn see_message(&mut self, domain: u64, now: Time) {
        self.per_hour += 1.0;
        self.per_day += 1.0;
        self.messages[0] = self.messages[0].saturating_add(1);
        self.today = self.today.max(self.per_hour);
        self.domains.add(domain);
        self.hours[(seconds(now) / 3_600 % 24) as usize] += 1.0;
    }

    /// Takes in a new session; `self` has been faded to now.
    fn see_session(&mut self, peer: Peer, silence: Duration) {
        // The silence before a session, not its length; of the first there is none.
        if self.week > 0.0 {
            let gap = silence.as_secs_f64().max(0.1).ln() as f32;
            self.gaps = self.gaps * 0.97 + 1.0;
            let off = gap - self.gap_mean;
            self.gap_mean += off / self.gaps;
            self.gap_m2 = self.gap_m2 * 0.97 + off * (gap - self.gap_mean);
        }
        self.hygiene = peer.hygiene;
        self.helos.add(peer.helo);
    }

    /// Takes in a message that was put off before it had a recipient: of a session that was closed
    /// for it, and seen for the first time, where that is so. `self` has been faded to now.
    pub fn refused(
        &mut self,
        message: Option<u64>,
        session: Option<Peer>,
        silence: Duration,
        now: Time,
    ) {
        self.was_refused = true;
        if let Some(domain) = message {
            self.see_message(domain, now);
        }
        if let Some(peer) = session {
            self.see_session(peer, silence);
        }
    }

    /// Takes in a sighting; `self` has been faded to now.
    pub fn see(&mut self, sighting: &Sighting, silence: Duration, now: Time) {
        if sighting.message {
            self.see_message(sighting.domain, now);
        }
        if sighting.session {
            self.see_session(sighting.peer, silence);
        }
        let new = f32::from(u8::from(sighting.stranger));
        self.hour += 1.0;
        self.hour_new += new;
        self.week += 1.0;
        self.week_new += new;
        self.answered += f32::from(u8::from(sighting.answered));
        *(if sighting.exists { &mut self.known } else { &mut self.unknown }) += 1.0;
        let most = RATIO_MEMORY as f32;
        if self.known + self.unknown > most {
            let factor = most / (self.known + self.unknown);
            self.known *= factor;
            self.unknown *= factor;
        }
        if self.week > most {
            let factor = most / self.week;
            self.week *= factor;
            self.week_new *= factor;
            self.answered *= factor;
        }
    }

    /// Notes the score of an event that `see` has taken in.
    pub fn scored(&mut self, score: f64, exists: bool) {
        self.score = score as f32;
        self.worst = self.worst.max(self.score);
        if self.score < SUSPICIOUS && exists {
            self.trust += 1.0;
        } else if self.score > ABNORMAL {
            self.trust *= 0.98;
        }
    }

    /// A message was put off: it is looked for from now on.
    pub fn put_off(&mut self) {
        self.was_refused = true;
    }

    /// Whether it counts among the new hosts of its network.
    pub fn is_new(&self) -> bool {
        self.clean_days < SETTLED
    }

    /// What it has earned, 0 to 1: a week of clean days, and messages on them.
    pub fn established(&self) -> f64 {
        let days = (f64::from(self.clean_days) / 7.0).min(1.0);
        days * (f64::from(self.trust).ln_1p() / 5.0).min(1.0)
    }

    /// Messages an hour that it may send before [`Term::Velocity`] speaks.
    fn earned(&self) -> f64 {
        (EARNED_BY_NOBODY * (1.0 + 4.0 * self.established()))
            .max(3.0 * f64::from(self.normal))
            .max(1.5 * f64::from(self.peak))
    }

    /// Whether any message of its last days was put off.
    pub fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// The score of its last event.
    pub fn last_score(&self) -> f64 {
        self.score.into()
    }

    /// When it was last seen.
    pub fn last(&self) -> Time {
        self.last
    }

    /// The score, as of now. All of them have been faded.
    pub fn score(
        &self,
        network: &Neighbourhood,
        returns: &Returns,
        weights: &Weights,
        now: Time,
    ) -> Score {
        let mut terms = [0.0; Term::ALL.len()];
        let mut add = |term: Term, value: f64| terms[term as usize] = value;
        let share = |part: f32, of: f32, least: f32| match of >= least {
            true => f64::from(part / of),
            false => 0.0,
        };
        let age = seconds(now).saturating_sub(u64::from(self.first)) as f64;
        let messages = f64::from(self.messages[0]) + f64::from(self.messages[1]);
        let established = self.established();
        let new_hour = share(self.hour_new, self.hour, 8.0);
        let new_week = share(self.week_new, self.week, 12.0);

        let over = (f64::from(self.per_hour).max(1e-9) / self.earned()).ln();
        add(Term::Velocity, over.max(0.0) * (0.4 + 0.6 * new_hour));
        if age < DAY {
            add(Term::ColdBurst, 1.5 * ramp(self.per_day.into(), 20.0, 200.0) * new_week);
        }

        // The deviation of ln(gap) of something without memory is 1.28 at any rate, of people and
        // organisations 1.5 to 3.6, of a clock below 0.6.
        if self.gaps >= 14.0 {
            let deviation = f64::from(self.gap_m2 / self.gaps).max(0.0).sqrt();
            add(Term::Regular, 3.0 * ramp(0.9 - deviation, 0.0, 0.7) * new_week);
        }
        let total: f64 = self.hours.iter().map(|messages| f64::from(*messages)).sum();
        if total >= 48.0 && age > 2.0 * DAY {
            let (x, y) = (0..).zip(self.hours).fold((0.0, 0.0), |(x, y), (hour, messages)| {
                let angle = std::f64::consts::PI * f64::from(hour) / 12.0;
                let messages = f64::from(messages);
                (x + messages * angle.cos(), y + messages * angle.sin())
            });
            // Not by `hypot`: glibc's newest one is younger than EL 9.
            let length = (x * x + y * y).sqrt();
            add(Term::Nightless, 1.2 * ramp(0.3 - length / total, 0.0, 0.2) * new_week);
        }

        let contacts = ramp(new_week, 0.6, 1.0) * ramp(self.week.into(), 10.0, 60.0);
        add(Term::FirstContact, 1.5 * contacts);
        if messages >= 8.0 {
            let churn = (self.domains.count() - 1.0) / messages;
            let most = if self.hygiene == Hygiene::Good { 1.5 } else { 2.5 };
            add(Term::SenderChurn, most * ramp(churn, 0.3, 1.0) * ramp(messages, 5.0, 20.0));
        }

        // Shrunk towards 5 %, silent below 10 %.
        let recipients = f64::from(self.known + self.unknown);
        if recipients >= 4.0 {
            let share = (f64::from(self.unknown) + 0.3) / (recipients + 6.0);
            add(Term::UnknownRecipients, (1.6 * (share / 0.10).ln()).max(0.0));
        }

        // Nothing is known of what has not come as far as a recipient.
        if self.week > 0.0 {
            add(Term::Helo, self.hygiene.weight());
        }
        add(Term::HeloChurn, (self.helos.count() - 2.0).max(0.0));

        if self.is_new() {
            add(Term::Swarm, 0.25 * (network.names.count() - 6.0).max(0.0));
            let others = f64::from(network.per_hour - self.per_hour).max(1e-9);
            add(Term::NetworkVelocity, (others / EARNED_BY_NETWORK).ln().max(0.0));
        }

        // A third of what bots send comes back too, so that coming back is a weak alibi.
        if returns.never + returns.early + returns.proper > 0.0 {
            let (never, early) = (f64::from(returns.never), f64::from(returns.early));
            let proper = (0.3 * f64::from(returns.proper)).min(0.9);
            add(Term::Retry, 0.6 * never + 0.4 * early - proper);
        }

        // Credit is spent by a surge to strangers.
        let calm = 1.0 - over.clamp(0.0, 1.0) * new_hour;
        let answered = share(self.answered, self.week, 5.0);
        add(Term::Trust, -3.0 * established * calm);
        add(Term::Conversation, -1.5 * (answered / 0.2).min(1.0) * calm);
        cut(terms, weights)
    }
}

/// Weighs the terms, and cuts what is beyond the cap of its family.
fn cut(mut terms: [f64; Term::ALL.len()], weights: &Weights) -> Score {
    for (term, weight) in terms.iter_mut().zip(weights.terms) {
        *term *= weight;
    }
    let mut total = 0.0;
    for (family, cap) in Family::CAPPED.into_iter().zip(weights.caps) {
        let of_it = |term: &Term| term.family() == family;
        let sum: f64 = Term::ALL.iter().filter(|t| of_it(t)).map(|t| terms[*t as usize]).sum();
        total += sum.min(cap);
        if sum > cap {
            for term in Term::ALL.iter().filter(|term| of_it(term)) {
                let value = &mut terms[*term as usize];
                if *value > 0.0 {
                    *value *= cap / sum;
                }
            }
        }
    }
    let credit = Term::ALL.iter().filter(|term| term.family() == Family::Credit);
    total += credit.map(|term| terms[*term as usize]).sum::<f64>();
    Score { total, terms }
}

/// From here on a client is a suspect.
pub const SUSPICIOUS: f32 = 2.0;
/// From here on its sending is abnormal.
pub const ABNORMAL: f32 = 4.0;

impl Neighbourhood {
    /// As of now; while nobody knows when that is, nothing fades.
    pub fn fade(&mut self, at: Moment) {
        let now = at.now;
        if self.last == Time::default() {
            self.last = now;
        }
        if now <= self.last || at.is_doubted() {
            return;
        }
        fade(&mut [&mut self.per_hour], now.since(self.last).as_secs_f64(), HOUR);
        self.names.turn(turns(self.last, now, 3_600));
        self.last = now;
    }

    /// Takes in a sighting of one of its new hosts.
    pub fn see(&mut self, sighting: &Sighting) {
        self.per_hour += f32::from(u8::from(sighting.message));
        self.names.add(sighting.organisation);
    }
}

impl Record for Sender {
    const FAVOURS: bool = true;

    fn forgettable(&self, now: Time) -> bool {
        now.since(self.last) >= FORGOTTEN_AFTER
    }

    /// Who has earned something stays; of the others the one goes that was not seen for longest.
    fn worth(&self) -> Worth {
        match self.clean_days >= SETTLED && self.trust >= 3.0 {
            true => Worth::Lasting,
            false => Worth::Fleeting(self.last.as_nanos()),
        }
    }

    /// What lies ahead is now: nothing is known of the time in between.
    fn seen_from(&self, now: Time, _: Duration) -> Option<Self> {
        (self.last > now).then(|| Self {
            last: now,
            first: self.first.min(u32::try_from(seconds(now)).unwrap_or(u32::MAX)),
            ..self.clone()
        })
    }
}

impl Record for Neighbourhood {
    const FAVOURS: bool = true;

    fn forgettable(&self, now: Time) -> bool {
        now.since(self.last) >= Duration::from_secs(86_400)
    }

    fn worth(&self) -> Worth {
        Worth::Fleeting(self.last.as_nanos())
    }

    /// What lies ahead is now: nothing is known of the time in between.
    fn seen_from(&self, now: Time, _: Duration) -> Option<Self> {
        (self.last > now).then(|| Self { last: now, ..self.clone() })
    }
}

/// The numbers of a sender in the order in which they are written down.
macro_rules! numbers {
    ($sender:ident) => {
        [
            &$sender.per_hour,
            &$sender.per_day,
            &$sender.normal,
            &$sender.peak,
            &$sender.today,
            &$sender.hour,
            &$sender.hour_new,
            &$sender.week,
            &$sender.week_new,
            &$sender.answered,
            &$sender.known,
            &$sender.unknown,
            &$sender.gaps,
            &$sender.gap_mean,
            &$sender.gap_m2,
            &$sender.trust,
            &$sender.worst,
            &$sender.score,
        ]
    };
    (mut $sender:ident) => {
        [
            &mut $sender.per_hour,
            &mut $sender.per_day,
            &mut $sender.normal,
            &mut $sender.peak,
            &mut $sender.today,
            &mut $sender.hour,
            &mut $sender.hour_new,
            &mut $sender.week,
            &mut $sender.week_new,
            &mut $sender.answered,
            &mut $sender.known,
            &mut $sender.unknown,
            &mut $sender.gaps,
            &mut $sender.gap_mean,
            &mut $sender.gap_m2,
            &mut $sender.trust,
            &mut $sender.worst,
            &mut $sender.score,
        ]
    };
}

impl Stored for Sender {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.last);
        bytes.extend(self.first.to_le_bytes());
        bytes.extend([self.clean_days, self.hygiene as u8, self.was_refused.into()]);
        bytes.extend(self.messages.iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend(numbers!(self).iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(self.pace.to_bytes());
        let Self { domains, helos, .. } = self;
        let maps = [domains.current, domains.previous, helos.current, helos.previous];
        bytes.extend(maps.iter().flat_map(|map| map.to_le_bytes()));
        bytes.extend(self.hours.iter().flat_map(|messages| messages.to_le_bytes()));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let mut read = Self { last: parts.time()?, first: parts.number()?, ..Self::default() };
        let [clean_days, hygiene, was_refused] = parts.bytes()?;
        read.was_refused = was_refused != 0;
        (read.clean_days, read.hygiene) = (clean_days, *Hygiene::ALL.get(usize::from(hygiene))?);
        for count in &mut read.messages {
            *count = u16::from_le_bytes(parts.bytes()?);
        }
        let sound = |number: f32| Some(number).filter(|number| number.is_finite());
        for number in numbers!(mut read) {
            *number = sound(f32::from_le_bytes(parts.bytes()?))?;
        }
        read.pace = super::pace::Pace::from_bytes(parts.bytes()?);
        let mut map = || {
            let (current, previous) = (parts.bytes()?, parts.bytes()?);
            let (current, previous) = (u64::from_le_bytes(current), u64::from_le_bytes(previous));
            Some(Map { current, previous })
        };
        (read.domains, read.helos) = (map()?, map()?);
        for messages in &mut read.hours {
            *messages = sound(f32::from_le_bytes(parts.bytes()?))?;
        }
        parts.end(read)
    }

    /// The later one has seen more.
    fn fold(&mut self, other: Self) {
        keep_later(self, other, |it| it.last);
    }
}

impl Stored for Neighbourhood {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.last);
        bytes.extend(self.per_hour.to_le_bytes());
        bytes.extend(self.names.current.to_le_bytes());
        bytes.extend(self.names.previous.to_le_bytes());
        bytes.extend(self.pace.to_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let last = parts.time()?;
        let per_hour = Some(f32::from_le_bytes(parts.bytes()?)).filter(|n| n.is_finite())?;
        let (current, previous) = (parts.bytes()?, parts.bytes()?);
        let (current, previous) = (u64::from_le_bytes(current), u64::from_le_bytes(previous));
        let pace = super::pace::Pace::from_bytes(parts.bytes()?);
        parts.end(Self { last, per_hour, names: Map { current, previous }, pace })
    }

    /// The later one has seen more.
    fn fold(&mut self, other: Self) {
        keep_later(self, other, |it| it.last);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::meter::record::written;

    /// A Monday, 10:00.
    const START: Time = Time::from_secs(1_800_007_200);

    #[test]
    fn they_measure_what_is_said() {
        assert!(size_of::<Sender>() <= 256, "{}", size_of::<Sender>());
        assert!(size_of::<Neighbourhood>() <= 128);
    }

    fn hygiene() -> impl Strategy<Value = Hygiene> {
        proptest::sample::select(Hygiene::ALL.to_vec())
    }

    prop_compose! {
        fn sighting()(
            [message, session, stranger, exists, answered] in any::<[bool; 5]>(),
            hygiene in hygiene(),
            [helo, domain, organisation] in any::<[u64; 3]>(),
            awaited in proptest::option::of(0..4_000_000_000_u64),
        ) -> Sighting {
            Sighting {
                message,
                session,
                peer: Peer { hygiene, helo },
                domain,
                organisation,
                stranger,
                exists,
                answered,
                awaited: awaited.map(Time::from_secs),
                known_by_size: false,
            }
        }
    }

    /// What can happen to a client: after so many milliseconds, at a recipient.
    #[derive(Clone, Debug)]
    struct Step {
        after: Duration,
        sighting: Sighting,
        told_to_return: bool,
        refused: bool,
    }

    prop_compose! {
        fn step()(
            after in prop_oneof![Just(0), 0..10_000_u64, 0..100_000_000_u64, 0..10_000_000_000_u64],
            sighting in sighting(),
            [told_to_return, refused] in any::<[bool; 2]>(),
        ) -> Step {
            Step { after: Duration::from_millis(after), sighting, told_to_return, refused }
        }
    }

    /// A client and its network after all of it, and when that is.
    fn lived(
        steps: &[Step],
        mut each: impl FnMut(&Score),
    ) -> (Sender, Neighbourhood, Returns, Time) {
        let (mut sender, mut network) = (Sender::default(), Neighbourhood::default());
        let mut returns = Returns::default();
        let mut now = START;
        for Step { after, sighting, told_to_return, refused } in steps {
            now = now + *after;
            let silence = now.since(sender.last());
            sender.fade(Moment::of(now));
            network.fade(Moment::of(now));
            returns.fade(Moment::of(now));
            if *refused {
                let (domain, peer) = (sighting.domain, sighting.peer);
                let message = sighting.message.then_some(domain);
                sender.refused(message, sighting.session.then_some(peer), silence, now);
            } else {
                sender.see(sighting, silence, now);
                if sender.is_new() {
                    network.see(sighting);
                }
            }
            let score = sender.score(&network, &returns, &Weights::default(), now);
            each(&score);
            sender.scored(score.total, sighting.exists);
            if *told_to_return {
                returns.deferred();
            }
            if let Some(first) = sighting.awaited {
                let how = if sighting.answered { Return::Early } else { Return::Proper };
                returns.returned(how, first, now);
            }
        }
        (sender, network, returns, now)
    }

    fn alike(one: f64, other: f64) -> bool {
        (one - other).abs() <= 1e-3 * one.abs().max(other.abs()).max(1.0)
    }

    proptest! {
        #[test]
        fn what_is_written_down_is_read_the_same(steps in vec(step(), 0..40)) {
            let (sender, network, returns, _) = lived(&steps, |_| ());
            prop_assert_eq!(Returns::decode(&written(&returns)[..]), Some(returns));
            prop_assert_eq!(Sender::decode(&written(&sender)[..]), Some(sender));
            prop_assert_eq!(Neighbourhood::decode(&written(&network)[..]), Some(network));
        }

        /// Neither what happens nor any bytes.
        #[test]
        fn a_score_is_always_a_number(steps in vec(step(), 0..60)) {
            let (sender, network, returns, now) = lived(&steps, |score| {
                assert!(score.total.is_finite(), "{score:?}");
                assert!(score.terms.iter().all(|term| term.is_finite()), "{score:?}");
            });
            // However long nothing happens.
            for days in [1, 100, 100_000] {
                let later = now + Duration::from_secs(days * 86_400);
                let (mut sender, mut network) = (sender.clone(), network.clone());
                let mut returns = returns.clone();
                sender.fade(Moment::of(later));
                network.fade(Moment::of(later));
                returns.fade(Moment::of(later));
                let score = sender.score(&network, &returns, &Weights::default(), later);
                prop_assert!(score.total.is_finite(), "{:?}", score);
            }
        }

        #[test]
        fn no_bytes_make_a_score_that_is_no_number(
            bytes in prop_oneof![vec(any::<u8>(), 0..300), vec(any::<u8>(), LENGTH..=LENGTH)],
            sighting in sighting(),
        ) {
            let Some(mut sender) = Sender::decode(&bytes) else { return Ok(()) };
            sender.fade(Moment::of(START));
            sender.see(&sighting, Duration::from_secs(1), START);
            let (network, returns) = (Neighbourhood::default(), Returns::default());
            let score = sender.score(&network, &returns, &Weights::default(), START);
            prop_assert!(!score.total.is_nan(), "{:?}", score);
            sender.scored(score.total, true);
        }

        /// Whoever looks in between changes nothing. Told apart is the client's own normal, which is
        /// an average of what was there when it was looked at; and what is only known when a period
        /// is over fades from when that was seen.
        #[test]
        fn fading_does_not_depend_on_how_often(
            steps in vec(step(), 1..40),
            // Less than a day: two of them are two clean ones to who looks on both.
            looks in vec(1..3_600_000_u64, 0..20),
        ) {
            let (sender, network, returns, now) = lived(&steps, |_| ());
            let (mut returns_once, mut returns_often) = (returns.clone(), returns);
            let end = now + Duration::from_millis(looks.iter().sum::<u64>() + 1);
            let (mut once, mut often) = (sender.clone(), sender);
            let (mut network_once, mut network_often) = (network.clone(), network);
            once.fade(Moment::of(end));
            network_once.fade(Moment::of(end));
            returns_once.fade(Moment::of(end));
            looks.iter().fold(now, |at, look| {
                let at = at + Duration::from_millis(*look);
                often.fade(Moment::of(at));
                network_often.fade(Moment::of(at));
                returns_often.fade(Moment::of(at));
                at
            });
            often.fade(Moment::of(end));
            network_often.fade(Moment::of(end));
            returns_often.fade(Moment::of(end));
            let (one, other) = (&returns_once, &returns_often);
            for (one, other) in [(one.never, other.never), (once.peak, often.peak)] {
                prop_assert!(other <= one * 1.001 && one * 0.85 <= other, "{} {}", one, other);
            }
            for sender in [&mut once, &mut often] {
                (sender.normal, sender.peak) = (0.0, 0.0);
            }
            for (one, other) in numbers!(once).iter().zip(numbers!(often)) {
                prop_assert!(alike((**one).into(), (*other).into()), "{:?}\n{:?}", once, often);
            }
            for (one, other) in once.hours.iter().zip(often.hours) {
                prop_assert!(alike((*one).into(), other.into()));
            }
            prop_assert_eq!(once.messages, often.messages);
            prop_assert_eq!(returns_once.awaited, returns_often.awaited);
            prop_assert_eq!((once.domains, once.helos), (often.domains, often.helos));
            prop_assert_eq!(once.clean_days, often.clean_days);
            prop_assert!(alike(network_once.per_hour.into(), network_often.per_hour.into()));
            prop_assert_eq!(network_once.names, network_often.names);
        }

        #[test]
        fn to_fold_twice_is_to_fold_once(
            one in vec(step(), 0..20),
            other in vec(step(), 0..20),
        ) {
            let (one, one_network, ..) = lived(&one, |_| ());
            let (other, other_network, ..) = lived(&other, |_| ());
            let mut once = one;
            once.fold(other.clone());
            let mut twice = once.clone();
            twice.fold(other);
            prop_assert_eq!(&twice, &once);
            twice.fold(once.clone());
            prop_assert_eq!(twice, once);
            let mut once = one_network;
            once.fold(other_network.clone());
            let mut twice = once.clone();
            twice.fold(other_network);
            prop_assert_eq!(twice, once);
        }

        /// What shares evidence is not added twice.
        #[test]
        fn no_family_adds_more_than_its_cap(steps in vec(step(), 0..60)) {
            let weights = Weights::default();
            lived(&steps, |score| {
                for (family, cap) in Family::CAPPED.into_iter().zip(weights.caps) {
                    let of_it = Term::ALL.into_iter().filter(|term| term.family() == family);
                    let sum: f64 = of_it.map(|term| score.of(term)).sum();
                    assert!(sum <= cap + 1e-9, "{family:?}: {score:?}");
                }
                assert!(score.of(Term::Trust) <= 0.0 && score.of(Term::Conversation) <= 0.0);
            });
        }

        /// Of a term that is off nothing is left, and of the others no less.
        #[test]
        fn a_term_of_no_weight_adds_nothing(steps in vec(step(), 0..40), off in 0..Term::ALL.len()) {
            let (sender, network, returns, now) = lived(&steps, |_| ());
            let mut weights = Weights::default();
            let all = sender.score(&network, &returns, &weights, now);
            weights.terms[off] = 0.0;
            let without = sender.score(&network, &returns, &weights, now);
            prop_assert_eq!(without.terms[off], 0.0);
            let difference = all.total - without.total;
            prop_assert!(difference.abs() <= all.terms[off].abs().max(4.0) + 1e-9);
        }
    }

    /// Bytes of a sender, written down.
    const LENGTH: usize = 8 + 4 + 3 + 4 + 18 * 4 + 16 + 32 + 24 * 4;

    #[test]
    fn a_sender_takes_so_many_bytes() {
        assert_eq!(written(&Sender::default()).len(), LENGTH);
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let bytes = written(&Sender::default());
        assert!((0..bytes.len()).all(|end| Sender::decode(&bytes[..end]).is_none()));
        let bytes = written(&Neighbourhood::default());
        assert!((0..bytes.len()).all(|end| Neighbourhood::decode(&bytes[..end]).is_none()));
    }

    #[test]
    fn who_is_new_begins_near_zero() {
        for hygiene in Hygiene::ALL {
            let sighting = Sighting {
                message: true,
                session: true,
                peer: Peer { hygiene, helo: 1 },
                domain: 1,
                organisation: 1,
                stranger: true,
                exists: true,
                answered: false,
                awaited: None,
                known_by_size: false,
            };
            let step =
                Step { after: Duration::ZERO, sighting, told_to_return: false, refused: false };
            lived(&[step], |score| assert_eq!(score.total, hygiene.weight()));
        }
    }

    #[test]
    fn a_clock_that_steps_back_fades_nothing() {
        let mut sender = Sender::default();
        sender.fade(Moment::of(START));
        sender.see_message(1, START);
        let before = sender.clone();
        sender.fade(Moment::of(Time::from_secs(1_700_000_000)));
        assert_eq!(sender, before);
    }
}
