//! Does a client do more of something than it may: at once, or in a time?
//!
//! Sessions at once are counted by gauges that the end of the session gives back; amounts in a
//! time by one GCRA meter for each rule and key; different values by a sketch.

pub mod dimension;
mod explain;
pub mod params;
pub mod penalty;

use std::sync::Arc;
use std::time::Duration;

use self::dimension::Dimension;
pub use self::params::Params;
use self::params::{Charging, Count, Measured};
use self::penalty::Penalty;
use super::Bounds;
use super::decision::{Decision, Refusal, Urgency, Why};
use super::signal::{Arrival, Context, Ends, Ledger, Round, Signal};
use super::standing::Standing;
use super::when::When;
use crate::clock::{Moment, Time};
use crate::meter::distinct::Distinct;
use crate::meter::gcra::{Charged, Gcra};
use crate::meter::key::{Key, KeyMaker, Secret};
use crate::meter::quota::{Quota, Unit};
use crate::meter::record::{Record, Worth};
use crate::meter::table::{Kept, Size, Table};
use crate::meter::units::Span;
use crate::setting::Mode;
use crate::smtp::address::folded;
use crate::smtp::event::{Event, Fate, Kind};
use crate::smtp::template::Template;

/// The wait told by a limit of sessions that names none.
const SESSIONS_RETRY: Span = Span::secs(60);

/// How far a meter may run ahead beyond the longest wait of any limit before it is taken for a trace
/// of a clock that was ahead: limits in shadow mode count whatever passes.
const SHADOWS_RUN_AHEAD: Duration = Duration::from_secs(86_400);

/// Charges remembered for one message. It takes as many recipient domains, or limits, to come
/// beyond; those charges stand even if the message never comes.
const MOST_CHARGES: usize = 1_024;

/// What all limits remember. Everything is kept under the name and count of its limit, so that it
/// survives a reload.
///
/// When a table is full, what is nearest to being forgotten goes first; a session that is open is
/// never forgotten, and one that could not be noted is not counted. Before that, when a table is
/// crowded, new IPv6 networks of clients that have earned nothing count under their site.
#[derive(Clone)]
pub struct Memory {
    secret: Secret,
    /// Bound: four for each of `max_clients`.
    meters: Arc<Table<Gcra>>,
    /// Bound: `max_clients`.
    gauges: Arc<Table<Gauge>>,
    /// Bound: a quarter of `max_clients`, since a sketch is some ten times as large.
    sketches: Arc<Table<Box<Distinct>>>,
    /// Bound: `max_clients`.
    penalties: Arc<Table<Penalty>>,
}

impl Memory {
    pub(super) fn new(secret: &Secret, bounds: Bounds) -> Self {
        Self {
            secret: secret.clone(),
            meters: Arc::new(Table::new(bounds.max_clients.saturating_mul(4))),
            gauges: Arc::new(Table::new(bounds.max_clients)),
            sketches: Arc::new(Table::new(bounds.max_clients / 4)),
            penalties: Arc::new(Table::new(bounds.max_clients)),
        }
    }

    pub(super) fn signal(&self, limits: &[Params]) -> Limits {
        let limits = limits.iter().filter(|params| params.mode != Mode::Off);
        let limits: Vec<_> = limits.map(|params| Limit::new(params, &self.secret)).collect();
        let longest = limits.iter().map(|limit| limit.longest_wait(1.0)).max().unwrap_or_default();
        // Loaded, a host makes waits longer; and a shadow runs ahead of what is allowed.
        self.meters.lasts_at_most(longest + SHADOWS_RUN_AHEAD);
        self.sketches.lasts_at_most(longest + SHADOWS_RUN_AHEAD);
        self.penalties.lasts_at_most(longest + SHADOWS_RUN_AHEAD);
        Limits { limits, memory: self.clone() }
    }

    pub(super) fn sweep(&self, at: Moment, parts: usize) {
        self.meters.sweep(at, parts);
        self.gauges.sweep(at, parts);
        self.sketches.sweep(at, parts);
        self.penalties.sweep(at, parts);
    }

    pub(super) fn sizes(&self) -> [(&'static str, Size); 4] {
        [
            ("meters", self.meters.size()),
            ("gauges", self.gauges.size()),
            ("sketches", self.sketches.size()),
            ("penalties", self.penalties.size()),
        ]
    }

    /// Whether a new key of this limit would take some of the last room there is.
    fn is_crowded_for(&self, limit: &Limit) -> bool {
        let counted = match limit.measure {
            Measure::AtOnce { .. } => self.gauges.is_crowded(),
            Measure::InTime(_) => self.meters.is_crowded(),
            Measure::Distinct { .. } => self.sketches.is_crowded(),
        };
        counted || limit.penalty.is_some() && self.penalties.is_crowded()
    }

    /// Whether a limit has counted something under this key.
    fn knows(&self, limit: &Limit, key: Key, at: Moment) -> bool {
        match limit.measure {
            Measure::AtOnce { .. } => self.gauges.read(key, at, |gauge| gauge.is_some()),
            Measure::InTime(_) => self.meters.read(key, at, |meter| meter.is_some()),
            Measure::Distinct { .. } => self.sketches.read(key, at, |sketch| sketch.is_some()),
        }
    }

    /// What is written down at the end. Sessions end with the process.
    pub(super) fn kept(&self) -> [(&'static str, Arc<dyn Kept>); 3] {
        [
            ("penalties", self.penalties.clone()),
            ("meters", self.meters.clone()),
            ("sketches", self.sketches.clone()),
        ]
    }
}

/// The sessions under one key.
#[derive(Debug, Default)]
struct Gauge {
    /// Sessions within `max`: what is compared and shown.
    admitted: u32,
    /// All sessions that the front still holds, refused ones too.
    open: u32,
}

impl Record for Gauge {
    const FAVOURS: bool = false;

    fn forgettable(&self, _: Time) -> bool {
        self.open == 0
    }

    fn worth(&self) -> Worth {
        Worth::Lasting
    }

    fn seen_from(&self, _: Time, _: Duration) -> Option<Self> {
        None
    }
}

/// A place in a gauge.
#[derive(Debug)]
pub(super) struct Hold {
    key: Key,
    admitted: bool,
}

/// What the message under way was charged under one key.
#[derive(Debug)]
pub(super) struct Charge {
    key: Key,
    quota: Quota,
    charged: Charged,
    fate: Passing,
}

/// Whether what was charged has passed. Only that is given back when no message comes of it: an
/// attempt that was refused has been one, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passing {
    Passed,
    Refused,
}

/// The signal: every limit in force.
pub struct Limits {
    limits: Vec<Limit>,
    memory: Memory,
}

struct Limit {
    name: Arc<str>,
    mode: Mode,
    count: Count,
    per: Vec<Dimension>,
    counted_at: Kind,
    /// Whether it has anything to do with events of a kind; all the others, which are most, are
    /// passed over by this alone.
    concerns: [bool; Kind::ALL.len()],
    charging: Charging,
    penalty: Option<penalty::Params>,
    when: When,
    measure: Measure,
    template: Arc<Template>,
    /// What its name and count put into every key.
    own_key: Key,
    /// Makes the values of which different ones are counted.
    values: KeyMaker,
}

fn concerns(params: &Params, kind: Kind) -> bool {
    match (params.count, kind) {
        (Count::UnknownRecipients, Kind::Connect | Kind::Mail | Kind::Recipient)
        | (Count::Recipients, Kind::Data) => true,
        _ => kind == params.counted_at(),
    }
}

enum Measure {
    AtOnce { max: u32, retry: Duration },
    InTime(Quota),
    Distinct { max: u32, window: Duration },
}

/// What an event is to a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The limit is asked about it.
    Asked,
    /// It counts, whatever is decided.
    Counted,
    /// The limit is asked, and it counts if it passes.
    Both,
}

impl Limit {
    fn new(params: &Params, secret: &Secret) -> Self {
        let max = params.max.map_or(u32::MAX, u32::from);
        let measure = match (params.count.measured(), params.quota) {
            (Measured::InTime, Some(quota)) => Measure::InTime(quota),
            (Measured::Distinct, _) => {
                let window = params.window.unwrap_or(SESSIONS_RETRY).duration();
                Measure::Distinct { max, window }
            }
            (Measured::AtOnce | Measured::InTime, _) => {
                Measure::AtOnce { max, retry: params.retry.unwrap_or(SESSIONS_RETRY).duration() }
            }
        };
        Self {
            name: params.name.as_str().into(),
            mode: params.mode,
            count: params.count,
            per: params.per.clone(),
            counted_at: params.counted_at(),
            concerns: Kind::ALL.map(|kind| concerns(params, kind)),
            charging: params.charge,
            penalty: params.penalty.filter(|_| params.mode == Mode::Enforce),
            when: params.when.clone(),
            measure,
            template: Arc::new(params.template()),
            own_key: secret
                .key("limit")
                .part(params.name.as_bytes())
                .part(params.count.name().as_bytes())
                .finish(),
            values: secret.key("value"),
        }
    }

    /// The longest that it makes anybody wait, under this allowance.
    fn longest_wait(&self, allowance: f32) -> Duration {
        let own = match &self.measure {
            Measure::AtOnce { retry, .. } => *retry,
            Measure::InTime(quota) => Gcra::longest(&quota.times(allowance)),
            Measure::Distinct { window, .. } => *window,
        };
        own.max(self.penalty.map_or(Duration::ZERO, |penalty| penalty.cap.duration()))
    }

    /// Whether it holds even for exempt clients: it protects the host and not its mailboxes.
    fn whole_host(&self) -> bool {
        self.per.is_empty()
    }

    fn key(&self, cx: &Context<'_>) -> Option<Key> {
        self.per.iter().try_fold(self.own_key, |key, dimension| Some(key.with(dimension.key(cx)?)))
    }

    /// The same for all of an IPv6 site.
    fn site_key(&self, cx: &Context<'_>) -> Option<Key> {
        let add = |key: Key, dimension: &Dimension| Some(key.with(dimension.site_key(cx)?));
        self.per.iter().try_fold(self.own_key, add)
    }

    fn part(&self, cx: &Context<'_>) -> Option<Part> {
        match (self.count, cx.event) {
            // The milter judges and charges the same event itself, and it alone knows what it has
            // charged this message already.
            _ if cx.ends == Ends::SeenElsewhere => None,
            (Count::Connections, Event::Connect) if cx.arrival == Arrival::Counted => None,
            // Nobody would give the place back.
            (Count::Sessions, _) if cx.ends == Ends::Unseen => None,
            (
                Count::UnknownRecipients,
                Event::Recipient { fate: Fate::Unknown | Fate::Doomed, .. },
            ) => Some(Part::Counted),
            (_, Event::Recipient { fate: Fate::Unknown | Fate::Rejected, .. }) => None,
            // The MTA has answered that recipient; we act at whatever comes next.
            (
                Count::UnknownRecipients,
                Event::Connect | Event::Mail { .. } | Event::Recipient { .. },
            ) => Some(Part::Asked),
            (Count::UnknownRecipients, _) => None,
            (Count::Recipients, Event::Data { unseen: 1.. }) => Some(Part::Both),
            (_, event) => (event.kind() == self.counted_at).then_some(Part::Both),
        }
    }

    /// How much of it the event amounts to.
    fn amount(&self, cx: &Context<'_>) -> u64 {
        let declared = match cx.event {
            Event::Mail { size, .. } => *size,
            _ => cx.transaction.and_then(|transaction| transaction.size),
        };
        match (self.count, cx.event) {
            (Count::Bytes, _) => declared.unwrap_or(0),
            (_, Event::Data { unseen }) => u64::from(*unseen),
            _ => 1,
        }
    }

    /// The value of which different ones are counted.
    fn value(&self, cx: &Context<'_>) -> u64 {
        let value = match self.count {
            Count::DistinctSenders => cx.sender().map(|sender| folded(sender.as_str())),
            Count::DistinctRecipients => cx.recipient_mailbox(),
            _ => cx.client.helo.as_ref().map(|helo| helo.host_name()),
        };
        self.values.clone().part(value.unwrap_or_default().as_bytes()).finish().to_u64()
    }

    fn refusal(&self, why: Why, wait: Duration) -> Refusal {
        let refusal = Refusal::new(self.mode, &self.template, why).waiting(wait);
        let surplus = matches!(self.count, Count::Recipients | Count::DistinctRecipients);
        let binds_exempt = self.whole_host();
        Refusal { limit: Some(self.name.clone()), surplus, binds_exempt, ..refusal }
    }

    fn assess_sessions(&self, gauge: &Gauge, max: u32, retry: Duration) -> Option<Refusal> {
        let Gauge { admitted, open } = *gauge;
        if admitted < max {
            return None;
        }
        let refusal = self.refusal(Why::Sessions { admitted, open, max }, retry);
        // Twice as many as allowed hold a process of the MTA each without speaking.
        let piled_up = self.mode == Mode::Enforce && open >= max.saturating_mul(2);
        let urgency = if piled_up { Urgency::AtOnce } else { Urgency::Spoken };
        Some(Refusal { urgency, ..refusal })
    }
}

/// Notes a charge, together with earlier ones of the same key.
fn note(charge: Charge, charges: &mut Vec<Charge>) {
    let same = |known: &&mut Charge| known.key == charge.key && known.fate == charge.fate;
    if let Some(known) = charges.iter_mut().rfind(same) {
        known.charged = known.charged.and(charge.charged);
    } else if charges.len() < MOST_CHARGES {
        charges.push(charge);
    }
}

/// What is left of a number while the host is short: one at least.
fn some_of(max: u32, cx: &Context<'_>) -> u32 {
    let allowance = cx.allowance();
    if allowance < 1.0 { ((max as f32 * allowance) as u32).max(1) } else { max }
}

impl Limits {
    /// Each limit with its mode.
    pub(in crate::policy) fn modes(&self) -> impl Iterator<Item = (Arc<str>, Mode)> {
        self.limits.iter().map(|limit| (limit.name.clone(), limit.mode))
    }

    /// The limits that this event concerns, each with its key.
    fn concerned<'a>(
        &'a self,
        cx: &'a Context<'_>,
        exempt: bool,
    ) -> impl Iterator<Item = (&'a Limit, Part, Key)> {
        let kind = cx.event.kind() as usize;
        let bound = move |limit: &&Limit| limit.concerns[kind] && (!exempt || limit.whole_host());
        self.limits.iter().filter(bound).filter_map(|limit| {
            let part = limit.part(cx).filter(|_| limit.when.holds(cx))?;
            Some((limit, part, self.key(limit, cx)?))
        })
    }

    /// What an event counts under: while there is room, what the limit says.
    ///
    /// When its table is crowded, an IPv6 client that has earned nothing and has no entry yet
    /// counts under its site, by the same quota. So one entry takes 65,536 networks in, which would
    /// otherwise each come with a new quota and push out what others have used of theirs. Who has
    /// an entry keeps it.
    fn key(&self, limit: &Limit, cx: &Context<'_>) -> Option<Key> {
        let own = limit.key(cx)?;
        let by_itself = !self.memory.is_crowded_for(limit)
            || cx.network.site().is_none()
            || self.memory.knows(limit, own, cx.at)
            || cx.standing() >= Standing::Proven;
        if by_itself { Some(own) } else { limit.site_key(cx) }
    }

    /// `attempted`: this message has been refused and charged under this key already.
    fn assess_one(
        &self,
        limit: &Limit,
        key: Key,
        attempted: bool,
        cx: &Context<'_>,
    ) -> Option<Refusal> {
        let now = cx.now;
        let is_charged = limit.charging == Charging::Attempts && !attempted;
        let refusal = match &limit.measure {
            Measure::AtOnce { max, retry } => self.memory.gauges.read(key, cx.at, |gauge| {
                gauge.and_then(|gauge| limit.assess_sessions(gauge, some_of(*max, cx), *retry))
            }),
            Measure::InTime(quota) => {
                let quota = &quota.times(cx.allowance());
                let meter = self.memory.meters.read(key, cx.at, |m| m.copied().unwrap_or_default());
                let amount = limit.amount(cx);
                let wait = match meter.wait(quota, now, amount) {
                    // This attempt will be charged, too: the next one waits for it as well.
                    wait if !wait.is_zero() && is_charged => meter
                        .charged(quota, now, amount)
                        .capped(quota, now)
                        .wait(quota, now, amount),
                    wait => wait,
                };
                let used = meter.used(quota, now).saturating_add(amount);
                let why = Why::Rate { used, quota: *quota };
                (!wait.is_zero()).then(|| limit.refusal(why, wait))
            }
            Measure::Distinct { max, window } => self.memory.sketches.read(key, cx.at, |sketch| {
                let (sketch, value) = (sketch?, limit.value(cx));
                let (max, window) = (some_of(*max, cx), *window);
                let (wait, count) =
                    (sketch.wait(value, max, window, now), sketch.with(value, window, now));
                (!wait.is_zero()).then(|| limit.refusal(Why::Distinct { count, max, window }, wait))
            }),
        };
        let Some(params) = &limit.penalty else { return refusal };
        let penalty = self.memory.penalties.read(key, cx.at, |p| p.copied().unwrap_or_default());
        let penalty = penalty.at_most(limit.longest_wait(cx.allowance()), now);
        let rest = penalty.rest(now);
        match refusal {
            None if rest.is_zero() => None,
            None => Some(limit.refusal(Why::Penalty { offences: penalty.offences() }, rest)),
            Some(refusal) if rest.is_zero() => {
                let wait = penalty.lengthened(refusal.wait, params, now);
                Some(refusal.waiting(wait))
            }
            Some(refusal) => {
                let wait = refusal.wait.max(rest);
                Some(refusal.waiting(wait))
            }
        }
    }

    /// What the message under way has been charged under this key already, where it is charged once
    /// however many of its recipients have this key.
    fn charged_already<'a>(limit: &Limit, key: Key, ledger: &'a Ledger) -> Option<&'a Charge> {
        let once = limit.counted_at == Kind::Recipient
            && matches!(limit.count, Count::Messages | Count::Bytes);
        ledger.charges.iter().rfind(|charge| once && charge.key == key)
    }

    fn count(&self, limit: &Limit, key: Key, cx: &Context<'_>, fate: Passing, ledger: &mut Ledger) {
        match &limit.measure {
            Measure::AtOnce { .. } => {}
            Measure::InTime(quota) => {
                let quota = &quota.times(cx.allowance());
                let amount = limit.amount(cx);
                let charged = self.memory.meters.write(key, cx.at, |meter| {
                    let before = *meter;
                    *meter = meter.charged(quota, cx.now, amount);
                    // A shadow counts as if nothing had been refused, however far it runs ahead.
                    if limit.mode == Mode::Enforce {
                        *meter = meter.capped(quota, cx.now);
                    }
                    Charged::between(before, *meter, cx.now)
                });
                let of_a_message =
                    matches!(limit.count, Count::Messages | Count::Bytes | Count::Recipients);
                if of_a_message && let Ok(charged) = charged {
                    note(Charge { key, quota: *quota, charged, fate }, &mut ledger.charges);
                }
            }
            Measure::Distinct { window, .. } => {
                let value = limit.value(cx);
                // A full table counts itself.
                let _ = self.memory.sketches.write(key, cx.at, |s| s.add(value, *window, cx.now));
            }
        }
    }

    fn hold(&self, key: Key, admitted: bool, at: Moment) -> Option<Hold> {
        let held = self.memory.gauges.write(key, at, |gauge| {
            gauge.open += 1;
            gauge.admitted += u32::from(admitted);
        });
        held.ok().map(|()| Hold { key, admitted })
    }

    fn release(&self, hold: Hold, at: Moment) {
        self.memory.gauges.write_known(hold.key, at, |gauge| {
            gauge.open -= 1;
            gauge.admitted -= u32::from(hold.admitted);
        });
    }

    /// What a refusal leaves behind, so that the wait it has told holds.
    fn refused(&self, limit: &Limit, key: Key, cx: &Context<'_>, decision: &Decision) {
        let now = cx.now;
        let by_this = |refusal: &&Refusal| {
            refusal.limit.as_ref().is_some_and(|name| Arc::ptr_eq(name, &limit.name))
        };
        let Some(refusal) = decision.reasons().iter().find(by_this) else { return };
        // It may run far ahead: from the time when the limit was a shadow, or by a clock that has
        // stepped back. It was read as capped, and is so from now on.
        match &limit.measure {
            Measure::AtOnce { .. } => {}
            Measure::InTime(quota) => {
                let cap = |meter: &mut Gcra| *meter = meter.capped(quota, now);
                self.memory.meters.write_known(key, cx.at, cap);
            }
            Measure::Distinct { window, .. } => {
                let cap = |sketch: &mut Box<Distinct>| **sketch = sketch.at(*window, now);
                self.memory.sketches.write_known(key, cx.at, cap);
            }
        }
        if let Some(params) = &limit.penalty {
            // A refusal after the wait of the last one has passed is another offence.
            let longest = limit.longest_wait(cx.allowance());
            let _ = self.memory.penalties.write(key, cx.at, |penalty| {
                *penalty = penalty.at_most(longest, now);
                if penalty.rest(now).is_zero() {
                    *penalty = penalty.after_offence(refusal.wait, params, now);
                }
            });
        }
    }

    fn give_back(&self, charge: Charge, at: Moment) {
        if charge.fate == Passing::Passed {
            let give_back = |meter: &mut Gcra| *meter = meter.given_back(charge.charged, at.now);
            self.memory.meters.write_known(charge.key, at, give_back);
        }
    }

    /// The message has come: what it was charged stands, bytes by their true size.
    fn confirm(&self, charges: Vec<Charge>, size: Option<u64>, at: Moment) {
        let Some(size) = size else { return };
        let has_come =
            |charge: &Charge| charge.fate == Passing::Passed && charge.quota.unit() == Unit::Bytes;
        for Charge { key, quota, charged, .. } in charges.into_iter().filter(has_come) {
            self.memory.meters.write_known(key, at, |meter| {
                *meter = meter.given_back(charged, at.now).charged(&quota, at.now, size);
            });
        }
    }

    /// What the end of a message or of a session decides about what was taken for it.
    fn close(&self, cx: &Context<'_>, ledger: &mut Ledger) {
        match cx.event {
            Event::EndOfMessage { size } => {
                self.confirm(std::mem::take(&mut ledger.charges), *size, cx.at);
            }
            // Where no end is reported, its absence says nothing.
            Event::Abort | Event::Disconnect if cx.ends != Ends::Seen => ledger.charges.clear(),
            Event::Abort | Event::Disconnect => {
                ledger.charges.drain(..).for_each(|charge| self.give_back(charge, cx.at));
            }
            _ => {}
        }
        if matches!(cx.event, Event::Disconnect) {
            ledger.holds.drain(..).for_each(|hold| self.release(hold, cx.at));
        }
    }
}

impl Signal for Arc<Limits> {
    fn name(&self) -> &'static str {
        "limit"
    }

    fn binds_exempt(&self) -> bool {
        self.limits.iter().any(Limit::whole_host)
    }

    fn assess(&self, cx: &Context<'_>, ledger: &Ledger, round: &mut Round) {
        let exempt = round.exemption().is_some();
        for (limit, part, key) in self.concerned(cx, exempt) {
            let fate = Limits::charged_already(limit, key, ledger).map(|charge| charge.fate);
            if part == Part::Counted || fate == Some(Passing::Passed) {
                continue;
            }
            let attempted = fate == Some(Passing::Refused);
            if let Some(refusal) = self.assess_one(limit, key, attempted, cx) {
                round.refuse(refusal);
            }
        }
    }

    fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        self.close(cx, ledger);
        let exempt = decision.exemption().is_some();
        for (limit, part, key) in self.concerned(cx, exempt) {
            self.refused(limit, key, cx, decision);
            if part == Part::Asked {
                continue;
            }
            if let Measure::AtOnce { .. } = limit.measure {
                // Closed at once, a session is gone before it counts.
                if !decision.at_once() {
                    ledger.holds.extend(self.hold(key, decision.passes(), cx.at));
                }
                continue;
            }
            let fate = if decision.passes() { Passing::Passed } else { Passing::Refused };
            // Nothing is charged for what is refused, unless attempts are what counts.
            let counts = fate == Passing::Passed || limit.charging == Charging::Attempts;
            let charged = Limits::charged_already(limit, key, ledger).map(|charge| charge.fate);
            if counts && charged != Some(Passing::Passed) && charged != Some(fate) {
                self.count(limit, key, cx, fate, ledger);
            }
        }
    }
}
