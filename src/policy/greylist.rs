//! Have this client, this sender and this recipient met before?
//!
//! First contact waits (RFC 6647 section 2.4, "RCPT-based greylisting"). A real mail server comes
//! back; most that do not have no queue. A client that has come back often enough is proven and
//! no longer asked.

mod explain;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Bounds;
use super::decision::{Decision, Reason, Refusal, Why};
use super::imported::{Imported, Imports};
use super::signal::{Context, Ledger, Round, Signal};
use super::standing::Standing;
use super::when::When;
use crate::clock::{Moment, Time};
use crate::meter::key::{Key, Secret};
use crate::meter::record::{Parts, Record, Stored, Until, Worth, put_time};
use crate::meter::table::{Kept, Size, Table};
use crate::meter::units::Span;
use crate::setting::{Complaint, Mode};
use crate::smtp::address::Address;
use crate::smtp::domain::Domain;
use crate::smtp::event::{Event, Fate};
use crate::smtp::reply::Action;
use crate::smtp::template::Template;

/// `[greylist]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Whether it acts.
    pub mode: Mode,
    /// To whom and to what it applies.
    pub when: When,
    /// What makes two attempts the same.
    pub per: Vec<Dimension>,
    /// How long a first contact waits.
    pub delay: Span,
    /// A retry later than this starts again.
    pub window: Span,
    /// Distinct passes after which a client is no longer greylisted.
    pub proven_after: NonZeroU32,
    /// How long a triplet, or a proven client, is remembered after it was last seen.
    pub forget: Span,
    /// Pending triplets that are stored for one network within a window; for all networks of an
    /// IPv6 /48 together eight times as many.
    pub max_pending_per_network: NonZeroU32,
    /// Recipient domains that do not want it.
    pub exempt_recipient_domains: Vec<Domain>,
    /// What is said; with 421 it is said at DATA, when every triplet has been seen.
    pub reply: Template,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            mode: Mode::Shadow,
            when: When {
                standing: Some(vec![Standing::Unknown, Standing::Suspect]),
                ..When::default()
            },
            per: vec![Dimension::Pool, Dimension::Sender, Dimension::Recipient],
            delay: Span::secs(5 * 60),
            window: Span::secs(2 * 86_400),
            proven_after: NonZeroU32::new(5).expect("five is not zero"),
            forget: Span::secs(36 * 86_400),
            max_pending_per_network: NonZeroU32::new(10_000).expect("ten thousand is not zero"),
            exempt_recipient_domains: Vec::new(),
            reply: REPLY.parse().expect("a test reads the default reply"),
        }
    }
}

const REPLY: &str = "451 4.7.1 {hostname} First contact; retry in {wait} seconds";

/// How many networks' worth of pending triplets an IPv6 site may have, which has 65,536 networks.
///
/// More than one, so that no network alone takes the room of its neighbours: a hoster may have
/// thousands of customers in one site. No more than a few, because the table is shared by all
/// sites: at the defaults it takes sixty-two of them to fill it.
const SITE_SHARE: u32 = 8;

/// A part of what makes two attempts the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The mail system the client belongs to: another of its hosts may bring the retry.
    Pool,
    /// The client's network.
    Network,
    /// The envelope sender.
    Sender,
    /// The envelope recipient.
    Recipient,
}

impl Params {
    /// What makes no sense.
    pub fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        if !self.per.iter().any(|d| matches!(d, Dimension::Pool | Dimension::Network)) {
            let message = "expected \"pool\" or \"network\": senders and recipients can be forged";
            complaints.push(Complaint::error("per", message));
        }
        if self.delay.duration().is_zero() {
            complaints.push(Complaint::error("delay", "expected a time longer than zero"));
        }
        if self.window <= self.delay {
            let message =
                format!("expected longer than `delay` ({}): no retry could pass", self.delay);
            complaints.push(Complaint::error("window", message));
        }
        if self.forget < self.window {
            let message = format!("expected at least `window` ({})", self.window);
            complaints.push(Complaint::error("forget", message));
        }
        let misgiving = self.reply.misgiving();
        complaints.extend(misgiving.map(|message| Complaint::warning("reply", message)));
        complaints
    }
}

/// What greylisting remembers.
///
/// Pending and passed triplets have a table and half of `max_triplets` each, because a single
/// message makes a pending one, and a flood of those must not push out what has passed.
#[derive(Clone)]
pub struct Memory {
    secret: Secret,
    /// When it is full, the oldest go.
    pending: Arc<Table<Pending>>,
    /// When it is full, those go that have not been seen for longest.
    passed: Arc<Table<Passed>>,
    /// Bound: `max_clients`. When it is full, those go that have passed the fewest times, and of
    /// those the ones not seen for longest; never one that is proven.
    proven: Arc<Table<Proven>>,
    /// Bound: `max_clients`. When it is full, those go that have the fewest pending triplets.
    crowds: Arc<Table<Crowd>>,
    /// Who has written to whom. Bound: half of `max_triplets`. When it is full, those go first that
    /// a single bad message could make, and of the others those that were not seen for longest.
    contacts: Arc<Table<Contact>>,
    /// What another greylisting daemon knew. Bound: as many as may have passed. When it is full,
    /// those go that fade first. Nothing a client does adds to it.
    imported: Arc<Table<Imported>>,
}

impl Memory {
    pub(super) fn new(secret: &Secret, bounds: Bounds) -> Self {
        let half = bounds.max_triplets / 2;
        Self {
            secret: secret.clone(),
            pending: Arc::new(Table::noting_changes(half)),
            passed: Arc::new(Table::noting_changes(half)),
            proven: Arc::new(Table::noting_changes(bounds.max_clients)),
            crowds: Arc::new(Table::new(bounds.max_clients)),
            contacts: Arc::new(Table::noting_changes(half)),
            imported: Arc::new(Table::noting_changes(half)),
        }
    }

    pub(super) fn signal(&self, params: &Params) -> Option<Greylist> {
        let (window, forget) = (params.window.duration(), params.forget.duration());
        self.pending.lasts_at_most(window);
        self.crowds.lasts_at_most(window);
        self.passed.lasts_at_most(forget);
        self.proven.lasts_at_most(forget);
        self.imported.lasts_at_most(forget);
        self.contacts.lasts_at_most(ACQUAINTED);
        (params.mode != Mode::Off).then(|| Greylist {
            mode: params.mode,
            when: params.when.clone(),
            per: params.per.clone(),
            delay: params.delay.duration(),
            window: params.window.duration(),
            proven_after: params.proven_after.get(),
            forget: params.forget.duration(),
            max_pending_per_network: params.max_pending_per_network.get(),
            exempt_domains: params
                .exempt_recipient_domains
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            template: Arc::new(params.reply.clone()),
            triplets: self.secret.key("triplet").finish(),
            clients: self.secret.key("client").finish(),
            pending: self.pending.clone(),
            passed: self.passed.clone(),
            proven: self.proven.clone(),
            crowds: self.crowds.clone(),
            imports: Imports { secret: self.secret.clone(), table: self.imported.clone() },
        })
    }

    /// Whether there was ever mail between these two, or this message, whatever its key is of.
    pub(super) fn has_met(&self, key: Key, at: Moment) -> bool {
        self.contacts.read(key, at, |contact| contact.is_some())
    }

    /// There was not, after all.
    pub(super) fn forget(&self, key: Key) {
        self.contacts.take(key);
    }

    /// There was: good mail, or what a single bad message can make.
    pub(super) fn meet(&self, key: Key, good: bool, at: Moment) {
        let until = at.now + ACQUAINTED;
        // Written anew some thirty times until it is forgotten at most.
        let stale = |contact: Option<&Contact>| {
            contact.is_none_or(|c| (good && !c.good) || c.until + ACQUAINTED / 32 < until)
        };
        if self.contacts.read(key, at, stale) {
            // A full table counts itself.
            let _ = self.contacts.write(key, at, |contact| {
                *contact = Contact { good: good || contact.good, until };
            });
        }
    }

    pub(super) fn sweep(&self, at: Moment, parts: usize) {
        self.pending.sweep(at, parts);
        self.passed.sweep(at, parts);
        self.proven.sweep(at, parts);
        self.crowds.sweep(at, parts);
        self.contacts.sweep(at, parts);
        self.imported.sweep(at, parts);
    }

    pub(super) fn sizes(&self) -> [(&'static str, Size); 6] {
        [
            ("pending", self.pending.size()),
            ("passed", self.passed.size()),
            ("proven", self.proven.size()),
            ("crowds", self.crowds.size()),
            ("contacts", self.contacts.size()),
            ("imported", self.imported.size()),
        ]
    }

    /// What is written down as it changes, the most telling first.
    pub(super) fn kept(&self) -> [(&'static str, Arc<dyn Kept>); 6] {
        [
            ("proven", self.proven.clone()),
            ("passed", self.passed.clone()),
            ("imported", self.imported.clone()),
            ("pending", self.pending.clone()),
            ("crowds", self.crowds.clone()),
            ("contacts", self.contacts.clone()),
        ]
    }
}

/// How long it is remembered who has written to whom.
const ACQUAINTED: Duration = Duration::from_secs(36 * 86_400);

/// A triplet that waits.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    first: Time,
    until: Time,
}

/// A triplet that has come back.
type Passed = Until<false>;

/// A client whose triplets have come back.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Proven {
    passes: u32,
    /// Whether they were enough when the last one passed.
    enough: bool,
    until: Time,
}

/// The pending triplets of one network, or of an IPv6 site. Counted anew after each window, so it
/// has between once and twice its bound.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Crowd {
    stored: u32,
    /// In whole seconds since 1970, which takes half the room.
    #[serde(rename = "until", with = "whole_secs")]
    until_secs: u32,
}

/// Seconds since 1970, for people a time as any other.
mod whole_secs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Crowd, Time};

    pub(super) fn serialize<S: Serializer>(secs: &u32, to: S) -> Result<S::Ok, S::Error> {
        Time::from_secs((*secs).into()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        Ok(Crowd::new(0, Time::deserialize(from)?).until_secs)
    }
}

impl Crowd {
    fn new(stored: u32, until: Time) -> Self {
        let secs = until.as_nanos() / 1_000_000_000;
        Self { stored, until_secs: u32::try_from(secs).unwrap_or(u32::MAX) }
    }

    fn until(&self) -> Time {
        Time::from_secs(self.until_secs.into())
    }
}

impl Record for Crowd {
    const FAVOURS: bool = false;

    fn forgettable(&self, now: Time) -> bool {
        self.until() <= now
    }

    fn worth(&self) -> Worth {
        Worth::Fleeting(self.stored.into())
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        let seen = Self::new(self.stored, self.until().at_most(longest, now));
        (seen.until_secs != self.until_secs).then_some(seen)
    }
}

/// Two who have had to do with each other.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contact {
    /// Whether it took a good message.
    good: bool,
    until: Time,
}

impl Pending {
    /// Seen from before its first attempt, that attempt is now.
    fn at_most(&self, longest: Duration, now: Time) -> Option<Self> {
        let first = self.first.min(now);
        let until = first + self.until.since(self.first).min(longest);
        ((first, until) != (self.first, self.until)).then_some(Self { first, until })
    }
}

impl Contact {
    fn at_most(&self, longest: Duration, now: Time) -> Option<Self> {
        let until = self.until.at_most(longest, now);
        (until != self.until).then_some(Self { until, ..*self })
    }
}

impl Proven {
    fn at_most(&self, longest: Duration, now: Time) -> Option<Self> {
        let until = self.until.at_most(longest, now);
        (until != self.until).then_some(Self { until, ..*self })
    }
}

macro_rules! forgettable_at_until {
    ($($record:ty: $favours:literal, |$it:ident| $worth:expr;)*) => {$(
        impl Record for $record {
            const FAVOURS: bool = $favours;

            fn forgettable(&self, now: Time) -> bool {
                self.until <= now
            }

            fn worth(&self) -> Worth {
                let $it = self;
                $worth
            }

            fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
                self.at_most(longest, now)
            }
        }
    )*};
}
forgettable_at_until! {
    // The oldest has had the most time to come back.
    Pending: false, |it| Worth::Fleeting(it.first.as_nanos());
    Contact: true, |it| Worth::Fleeting(u64::from(it.good) << 63 | it.until.as_nanos() >> 1);
    Proven: true, |it| if it.enough {
        Worth::Lasting
    } else {
        Worth::Fleeting(u64::from(it.passes.min(255)) << 56 | it.until.as_nanos() >> 8)
    };
}

impl Stored for Pending {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.first);
        put_time(bytes, self.until);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let read = Self { first: parts.time()?, until: parts.time()? };
        parts.end(read)
    }

    fn fold(&mut self, other: Self) {
        *self = Self { first: self.first.min(other.first), until: self.until.max(other.until) };
    }
}

impl Stored for Contact {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until);
        bytes.push(self.good.into());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let (until, [good]) = (parts.time()?, parts.bytes()?);
        parts.end(Self { good: good != 0, until })
    }

    fn fold(&mut self, other: Self) {
        *self = Self { good: self.good || other.good, until: self.until.max(other.until) };
    }
}

impl Stored for Proven {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until);
        bytes.extend(self.passes.to_le_bytes());
        bytes.push(self.enough.into());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let (until, passes, [enough]) = (parts.time()?, parts.number()?, parts.bytes()?);
        parts.end(Self { passes, enough: enough != 0, until })
    }

    fn fold(&mut self, other: Self) {
        *self = Self {
            passes: self.passes.max(other.passes),
            enough: self.enough || other.enough,
            until: self.until.max(other.until),
        };
    }
}

impl Stored for Crowd {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until());
        bytes.extend(self.stored.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let (until, stored) = (parts.time()?, parts.number()?);
        parts.end(Self::new(stored, until))
    }

    fn fold(&mut self, other: Self) {
        *self = Self {
            stored: self.stored.max(other.stored),
            until_secs: self.until_secs.max(other.until_secs),
        };
    }
}

/// When the recipients of a transaction may come back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    /// When the youngest of them was first seen.
    first: Time,
    /// When it may come back.
    at: Time,
}

/// The signal.
pub struct Greylist {
    mode: Mode,
    when: When,
    per: Vec<Dimension>,
    delay: Duration,
    window: Duration,
    proven_after: u32,
    forget: Duration,
    max_pending_per_network: u32,
    exempt_domains: Vec<Box<str>>,
    template: Arc<Template>,
    triplets: Key,
    clients: Key,
    pending: Arc<Table<Pending>>,
    passed: Arc<Table<Passed>>,
    proven: Arc<Table<Proven>>,
    crowds: Arc<Table<Crowd>>,
    imports: Imports,
}

/// What is known of a triplet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acquaintance {
    /// Its client is proven, or it has passed before; remembered until then.
    Known { until: Time },
    /// It waits since then, and has waited long enough; or another daemon knew it.
    Back,
    /// It waits since then.
    Waiting { first: Time },
    /// It has never been seen, or too long ago.
    New,
}

impl Greylist {
    fn acquaintance(&self, cx: &Context<'_>) -> Acquaintance {
        // The triplet before its client: mostly it is the one that is known, and each look into a
        // large table is cold memory.
        let triplet = self.triplet(cx);
        let known = |passed: Option<&Passed>| passed.map(|passed| passed.until);
        if let Some(until) = self.passed.read(triplet, cx.at, known).or_else(|| {
            // From a suspicious score on, what its history has earned does not hold.
            self.proven_until(cx).filter(|_| !cx.policy.suspects(cx))
        }) {
            return Acquaintance::Known { until };
        }
        let own = match self.pending.read(triplet, cx.at, |pending| pending.copied()) {
            Some(Pending { first, .. }) if cx.now.since(first) < self.delay => {
                Acquaintance::Waiting { first }
            }
            Some(_) => Acquaintance::Back,
            None => Acquaintance::New,
        };
        match own {
            Acquaintance::New | Acquaintance::Waiting { .. } if self.imports.know(cx) => {
                Acquaintance::Back
            }
            own => own,
        }
    }

    fn triplet(&self, cx: &Context<'_>) -> Key {
        let add = |key: Key, dimension: &Dimension| match dimension {
            Dimension::Pool => key.with(cx.pool_key()),
            Dimension::Network => key.with(cx.network_key()),
            Dimension::Sender => {
                cx.sender_key_without_tags().map_or(key, |sender| key.with(sender))
            }
            Dimension::Recipient => cx.recipient_key().map_or(key, |recipient| key.with(recipient)),
        };
        self.per.iter().fold(self.triplets, add)
    }

    /// What is proven, and has its own bound of pending triplets: whatever a retry may come from.
    fn client(&self, cx: &Context<'_>) -> Key {
        self.clients.with(match self.per.contains(&Dimension::Pool) {
            true => cx.pool_key(),
            false => cx.network_key(),
        })
    }

    fn crowd(&self, cx: &Context<'_>) -> Key {
        // In a table of its own, so it may be the same as that of the client.
        self.clients.with(cx.network_key())
    }

    /// The crowd of the IPv6 site that the network lies in.
    fn site_crowd(&self, cx: &Context<'_>) -> Option<Key> {
        cx.network.site().map(|site| self.clients.with(cx.key_of(site)))
    }

    /// Whether there was room for one more in a crowd, which it has taken. One that could not be
    /// noted has room.
    fn join(&self, crowd: Key, most: u32, at: Moment) -> bool {
        let room = self.crowds.write(crowd, at, |crowd| {
            if at.is_past(crowd.until()) {
                *crowd = Crowd::new(0, at.now + self.window);
            }
            let room = crowd.stored < most;
            crowd.stored += u32::from(room);
            room
        });
        room != Ok(false)
    }

    fn leave(&self, crowd: Key, at: Moment) {
        self.crowds.write_known(crowd, at, |crowd| crowd.stored = crowd.stored.saturating_sub(1));
    }

    /// Until when the client is proven, if it is.
    fn proven_until(&self, cx: &Context<'_>) -> Option<Time> {
        let proven = |client: Option<&Proven>| {
            let proven = client.filter(|client| client.passes >= self.proven_after);
            proven.map(|proven| proven.until)
        };
        self.proven.read(self.client(cx), cx.at, proven)
    }

    /// Whether it acts by its settings.
    pub(super) fn own_mode(&self) -> Mode {
        self.mode
    }

    /// Whether it acts.
    fn mode(&self, cx: &Context<'_>) -> Mode {
        cx.mode("greylist", self.mode)
    }

    /// Whether it has nothing to say about this recipient.
    fn passes_over(&self, cx: &Context<'_>, recipient: &Address) -> bool {
        self.exempts(cx, recipient) || !self.applies(cx)
    }

    /// Whether first contacts of this client wait.
    fn applies(&self, cx: &Context<'_>) -> bool {
        self.when.holds(cx) || cx.policy.suspects(cx)
    }

    /// Since when this triplet is awaited, if it has been told to come back.
    pub(super) fn awaits(&self, cx: &Context<'_>) -> Option<Time> {
        let waits = |pending: Option<&Pending>| pending.map(|pending| pending.first);
        self.pending.read(self.triplet(cx), cx.at, waits)
    }

    /// Whether a triplet that is awaited since then will be put off at DATA.
    pub(super) fn puts_off_at_data(&self, cx: &Context<'_>, first: Time) -> bool {
        self.speaks_at_data() && cx.now.since(first) < self.delay && self.applies(cx)
    }

    /// This triplet is awaited no more.
    pub(super) fn has_returned(&self, cx: &Context<'_>) {
        self.pending.take(self.triplet(cx));
    }

    fn exempts(&self, cx: &Context<'_>, recipient: &Address) -> bool {
        cx.policy.recipients().is_at(recipient, &self.exempt_domains)
    }

    /// With 421 nothing is said before DATA: at the first recipient it would hide the others, and
    /// each would wait a delay of its own.
    fn speaks_at_data(&self) -> bool {
        self.template.code().action() == Action::Close
    }

    fn refusal(&self, ready: Ready, now: Time) -> Refusal {
        let why = Why::Greylist { age: now.since(ready.first), delay: self.delay };
        Refusal::new(self.mode, &self.template, why).waiting(ready.at.since(now))
    }

    /// When a triplet may come back, if it must; nothing if it may pass.
    fn ready(&self, cx: &Context<'_>, recipient: &Address) -> Option<Ready> {
        if self.exempts(cx, recipient) {
            return None;
        }
        let first = match self.acquaintance(cx) {
            Acquaintance::Known { .. } | Acquaintance::Back => return None,
            Acquaintance::New if self.forgets_too_soon(cx.now) || !self.remembers_all() => {
                return None;
            }
            Acquaintance::New => cx.now,
            Acquaintance::Waiting { first } => first,
        };
        // Asked last, since what the client has earned is one more look into a large table.
        self.applies(cx).then(|| Ready { first, at: first + self.delay })
    }

    /// Whether first contacts are pushed out before they can come back: their retries could never
    /// succeed, so that they pass until it has become quieter.
    fn forgets_too_soon(&self, now: Time) -> bool {
        let first = Time::from_nanos(self.pending.last_evicted());
        // One that lies ahead says nothing: the clock has stepped back since, and while nobody new
        // is stored nobody is pushed out who would say more.
        let told = first > Time::default() && first <= now;
        told && now.since(first) < self.delay.saturating_mul(2)
    }

    /// Whether what was known before the last start has been read again. Until then a triplet that
    /// is not found passes, since it may have waited already.
    fn remembers_all(&self) -> bool {
        self.pending.is_whole()
            && self.passed.is_whole()
            && self.proven.is_whole()
            && self.imports.table.is_whole()
    }

    fn store(&self, cx: &Context<'_>) {
        // The site first: where it has no room, its new networks get no entry either.
        let (site, most) = (self.site_crowd(cx), self.max_pending_per_network);
        let joins_site = |site| self.join(site, most.saturating_mul(SITE_SHARE), cx.at);
        if !site.is_none_or(joins_site) {
            return;
        }
        if !self.join(self.crowd(cx), most, cx.at) {
            site.into_iter().for_each(|site| self.leave(site, cx.at));
            return;
        }
        let pending = Pending { first: cx.now, until: cx.now + self.window };
        // A full table counts what it turns away.
        let _ = self.pending.write(self.triplet(cx), cx.at, |entry| *entry = pending);
    }

    /// The triplet has waited, so its client has one more pass.
    fn prove(&self, cx: &Context<'_>) {
        let until = cx.now + self.forget;
        let _ = self.proven.write(self.client(cx), cx.at, |proven| {
            let passes = if cx.at.is_past(proven.until) { 0 } else { proven.passes };
            let passes = passes.saturating_add(1);
            *proven = Proven { passes, enough: passes >= self.proven_after, until };
        });
    }

    /// The triplet is an acquaintance from now on.
    fn pass(&self, cx: &Context<'_>) {
        let until = cx.now + self.forget;
        let triplet = self.triplet(cx);
        let _ = self.passed.write(triplet, cx.at, |passed| passed.until = until);
        if self.pending.take(triplet).is_some() {
            self.leave(self.crowd(cx), cx.at);
            self.site_crowd(cx).into_iter().for_each(|site| self.leave(site, cx.at));
        }
    }

    /// Seen again: remembered for another while.
    fn refresh(&self, cx: &Context<'_>) {
        let until = cx.now + self.forget;
        self.proven.write_known(self.client(cx), cx.at, |proven| proven.until = until);
        self.passed.write_known(self.triplet(cx), cx.at, |passed| passed.until = until);
    }

    /// A recipient has been asked for: what that makes of its triplet.
    fn meet(
        &self,
        cx: &Context<'_>,
        recipient: &Address,
        decision: &Decision,
        ledger: &mut Ledger,
    ) {
        let others_refuse = decision
            .reasons()
            .iter()
            .chain(decision.at_data())
            .any(|refusal| refusal.why.reason() != Reason::Greylist);
        let is_spared = |reason: Reason| decision.spared().iter().any(|r| r.why.reason() == reason);
        let acquaintance = self.acquaintance(cx);
        let has_waited = matches!(acquaintance, Acquaintance::Known { .. } | Acquaintance::Back);
        ledger.one_has_waited |= has_waited && decision.passes();
        match acquaintance {
            // Written anew some hundred times a `forget` at most: it takes as long as the rest.
            Acquaintance::Known { until } if cx.now + (self.forget - self.forget / 128) < until => {
            }
            // Who is proven is not asked, but seen.
            Acquaintance::Known { .. } if cx.standing() == Standing::Proven => self.refresh(cx),
            // It was told to come back and has, though by now it would not be told so.
            Acquaintance::Back | Acquaintance::Waiting { .. }
                if !others_refuse && !self.exempts(cx, recipient) && !self.applies(cx) =>
            {
                if acquaintance == Acquaintance::Back {
                    self.prove(cx);
                }
                self.pass(cx);
            }
            _ if self.passes_over(cx, recipient) => {}
            Acquaintance::Known { .. } => self.refresh(cx),
            // In shadow mode, and beyond the MTA's patience, as if nothing had been refused: the sender
            // has no reason to come back, so its next message must not look like another first contact. Nor was it made to
            // wait, so it proves nothing.
            Acquaintance::New | Acquaintance::Waiting { .. }
                if self.mode(cx) == Mode::Shadow || is_spared(Reason::Greylist) =>
            {
                self.pass(cx);
            }
            // What another rule refuses has been seen all the same, so that delays do not add up.
            Acquaintance::New if !self.remembers_all() || self.forgets_too_soon(cx.now) => {}
            Acquaintance::New => {
                ledger.told_to_return = true;
                self.store(cx);
            }
            // It waits as it was told to, also where a clock that was ahead has stored it.
            Acquaintance::Waiting { .. } => {
                self.pending.write_known(self.triplet(cx), cx.at, |_| ());
            }
            Acquaintance::Back if others_refuse => {}
            Acquaintance::Back => {
                self.prove(cx);
                self.pass(cx);
            }
        }
    }
}

impl Signal for Arc<Greylist> {
    fn name(&self) -> &'static str {
        "greylist"
    }

    fn standing(&self, cx: &Context<'_>) -> Option<Standing> {
        // Before everything is known again, none may be called a stranger.
        let proven = self.proven_until(cx).is_some() || !self.proven.is_whole();
        proven.then_some(Standing::Proven)
    }

    fn is_suspended(&self, now: Time) -> bool {
        self.mode == Mode::Enforce && self.forgets_too_soon(now)
    }

    fn speaks_at_data(&self) -> bool {
        Greylist::speaks_at_data(self)
    }

    fn assess(&self, cx: &Context<'_>, ledger: &Ledger, round: &mut Round) {
        let ready = match cx.event {
            Event::Recipient { address, .. } if !self.speaks_at_data() => self.ready(cx, address),
            Event::Data { .. } => ledger.ready,
            _ => None,
        };
        if let Some(ready) = ready {
            round.refuse(self.refusal(ready, cx.now));
        }
    }

    fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        match cx.event {
            Event::Recipient { address, fate: Fate::Offered | Fate::Doomed }
                if decision.exemption().is_none() =>
            {
                // Who was refused otherwise will come back in another message.
                if self.speaks_at_data() && decision.passes() {
                    let latest = ledger.ready.into_iter().chain(self.ready(cx, address));
                    ledger.ready = latest.max_by_key(|ready| ready.at);
                }
                if !cx.rehearsal {
                    self.meet(cx, address, decision, ledger);
                }
            }
            Event::Mail { .. } | Event::EndOfMessage { .. } | Event::Abort | Event::Disconnect => {
                ledger.ready = None;
            }
            Event::Recipient { .. } | Event::Connect | Event::Helo { .. } | Event::Data { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(Params::default().check(), []);
    }

    #[test]
    fn what_could_never_pass_is_an_error() {
        let params = Params {
            per: vec![Dimension::Sender],
            delay: Span::secs(600),
            window: Span::secs(600),
            forget: Span::secs(60),
            ..Params::default()
        };
        let keys: Vec<_> = params.check().iter().map(|complaint| complaint.key).collect();
        assert_eq!(keys, ["per", "window", "forget"]);
    }
}
