//! How much more can the host bear, and who is let in while it is short?
//!
//! Sensors are read beside the mail path. Each has marks with a lower one beside it, so that a
//! reading that trembles does not make the level tremble; the worst sensor decides. As the level
//! rises, quotas shrink, and then new sessions are put off: those of suspects first, then of
//! strangers, of proven clients last, and never of trusted ones.

use std::fmt::{self, Display, Formatter};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Bounds;
use super::decision::{Decision, Refusal, Urgency, Why};
use super::signal::{Context, Ends, Ledger, Round, Signal};
use super::standing::Standing;
use crate::clock::{Moment, Time};
use crate::meter::key::Key;
use crate::meter::record::{Record, Worth};
use crate::meter::table::{Size, Table};
use crate::setting::Mode;
use crate::smtp::event::Event;
use crate::smtp::template::Template;

/// How the host is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It bears what comes.
    #[default]
    Normal,
    /// Quotas shrink.
    Elevated,
    /// New sessions of suspects are put off, and some of strangers.
    High,
    /// New sessions of strangers are put off, and some of proven clients.
    Critical,
}

impl Level {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Elevated, Self::High, Self::Critical];

    /// Its one name in settings, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Elevated => "elevated",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    fn of(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }
}

/// What is short. It decides what the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// Time, memory, processes: 4.3.2 (RFC 3463: system not accepting network messages).
    Capacity,
    /// Room for mail: 4.3.1 (RFC 3463: mail system full).
    Space,
    /// A server that mail is passed on to cannot be reached: 4.4.1 (RFC 3463: no answer from host).
    Downstream,
    /// It can, and does not work: 4.3.0 (RFC 3463: other mail system status).
    DownstreamFault,
}

impl Scarce {
    /// Its one name in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capacity => "load",
            Self::Space => "space",
            Self::Downstream | Self::DownstreamFault => "downstream",
        }
    }
}

/// Which readings are worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worse {
    /// The higher: pressure, queues.
    Higher,
    /// The lower: what is free.
    Lower,
}

/// The readings at which levels are reached, and left.
#[derive(Clone, Debug, PartialEq)]
pub struct Marks {
    /// Where elevated, high and critical begin; nothing: never.
    pub levels: [Option<f64>; 3],
    /// A level is left when the reading is below so much of its mark (for what is free: above the
    /// mark divided by it). Above 0, at most 1.
    pub down: f64,
    /// Which readings are worse.
    pub worse: Worse,
}

impl Marks {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.levels.iter().any(Option::is_some)
    }

    /// The level of a reading after that level before.
    fn level(&self, reading: f64, before: Level) -> Level {
        let at = |level: Level| {
            let mark = self.levels[level as usize - 1]?;
            let left = match self.worse {
                Worse::Higher => reading < mark * self.down,
                Worse::Lower => reading > mark / self.down,
            };
            let reached = match self.worse {
                Worse::Higher => reading >= mark,
                Worse::Lower => reading <= mark,
            };
            (reached || (level <= before && !left)).then_some(level)
        };
        [Level::Critical, Level::High, Level::Elevated].into_iter().find_map(at).unwrap_or_default()
    }

    /// How far a reading has come from where this level is left to where the next one begins, or
    /// to a quarter beyond the mark: 0 to 1.
    fn strain(&self, reading: f64, level: Level) -> f64 {
        let Some(mark) = (level as usize).checked_sub(1).and_then(|n| self.levels[n]) else {
            return 0.0;
        };
        let above = self.levels.get(level as usize).copied().flatten();
        let (from, to) = match self.worse {
            Worse::Higher => (mark * self.down, above.unwrap_or(mark * 1.25)),
            Worse::Lower => (mark / self.down, above.unwrap_or(mark * 0.75)),
        };
        // Without a way down it is on or off, as a probe is: nothing lies between.
        if from == to || self.down >= 1.0 {
            return 1.0;
        }
        ((reading - from) / (to - from)).clamp(0.0, 1.0)
    }
}

/// One sensor, as it was just read.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The sensor's name in logs and metrics.
    pub sensor: Arc<str>,
    /// What is short when it is worse.
    pub scarce: Scarce,
    /// Its marks.
    pub marks: Arc<Marks>,
    /// The reading, or why there is none.
    pub reading: Result<f64, Arc<str>>,
    /// Why it reads so, where that can be told: how a probe fails.
    pub why: Option<Arc<str>>,
}

/// What is known of a sensor.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What was read last.
    pub sample: Sample,
    /// What it amounts to.
    pub level: Level,
}

/// The sensor that decides, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// Its name.
    pub sensor: Arc<str>,
    /// What is short.
    pub scarce: Scarce,
    /// Its reading.
    pub reading: f64,
    /// The mark that it has reached.
    pub mark: f64,
}

/// The level has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Crossing {
    /// The level before.
    pub from: Level,
    /// The level now.
    pub to: Level,
    /// Why, unless it is over.
    pub cause: Option<Cause>,
}

/// How the load is answered.
#[derive(Clone, Debug)]
pub struct Params {
    /// Whether it acts.
    pub mode: Mode,
    /// Whether there is any sensor.
    pub watches: bool,
    /// How long a level is kept after the last reading that asks for it.
    pub hold: Duration,
    /// The time in which admission comes back from nothing to everything. It goes ten times as
    /// fast.
    pub ramp: Duration,
    /// The part of the open sessions that one network of no proven standing may hold while the
    /// level is not normal; one session it may always hold.
    pub max_share: f64,
    /// The wait told.
    pub retry: Duration,
    /// The factor on quotas, by level and standing.
    pub allowance: [[f32; STANDINGS]; LEVELS],
    /// What is said when capacity is short.
    pub busy: Arc<Template>,
    /// What is said when space is.
    pub space: Arc<Template>,
    /// What is said when a downstream server cannot be reached.
    pub downstream: Arc<Template>,
    /// What is said when it does not work.
    pub downstream_fault: Arc<Template>,
}

/// How many levels there are.
pub const LEVELS: usize = Level::ALL.len();

/// How many standings there are that load concerns: all but trusted.
pub const STANDINGS: usize = 3;

fn number(standing: Standing) -> Option<usize> {
    match standing {
        Standing::Suspect => Some(0),
        Standing::Unknown => Some(1),
        Standing::Proven => Some(2),
        Standing::Trusted => None,
    }
}

/// What is known of the host. It outlives every policy.
#[derive(Clone)]
pub struct Memory(Arc<Host>);

struct Host {
    level: AtomicU8,
    /// How many of those who come are let in, by standing.
    gates: [Gate; STANDINGS],
    /// Sessions that the fronts hold.
    open: AtomicU32,
    /// Those of them that were put off and wait to be told.
    waiting: AtomicU32,
    /// Sessions of each network, while there is any sensor. Bound: `max_clients`; a session that
    /// finds it full is not counted.
    networks: Table<Held>,
    watch: Mutex<Watch>,
}

/// What only the one who reads sensors changes.
#[derive(Default)]
struct Watch {
    seen: Vec<Seen>,
    cause: Option<Cause>,
    /// Until when the level is kept.
    held_until: Time,
    last: Option<Time>,
    /// The sensors that count; none where nobody has said so.
    counts: Option<Vec<Arc<str>>>,
}

/// Lets a part of those who come pass, evenly: half means every second one.
struct Gate {
    /// The part, as the bits of an `f32`.
    share: AtomicU32,
    /// What the last ones have left over for the next, likewise.
    credit: AtomicU32,
}

impl Gate {
    fn open() -> Self {
        Self { share: AtomicU32::new(1_f32.to_bits()), credit: AtomicU32::new(0) }
    }

    fn share(&self) -> f32 {
        f32::from_bits(self.share.load(Ordering::Relaxed))
    }

    fn credit(&self) -> f32 {
        f32::from_bits(self.credit.load(Ordering::Relaxed))
    }

    fn admits(&self) -> bool {
        self.credit() + self.share() >= 1.0
    }

    /// Lets in this part from now on.
    fn lets_in(&self, share: f64) {
        self.share.store((share as f32).to_bits(), Ordering::Relaxed);
    }

    /// Somebody has come, and was let in or not.
    fn came(&self, admitted: bool) {
        let share = self.share();
        let credit = match share >= 1.0 {
            true => 0.0,
            false => (self.credit() + share - if admitted { 1.0 } else { 0.0 }).clamp(0.0, 1.0),
        };
        self.credit.store(credit.to_bits(), Ordering::Relaxed);
    }

    /// Moves for the time since the last reading.
    fn moves(&self, standing: usize, level: Level, strain: f64, by: f64) {
        let now = f64::from(self.share());
        let most = shares(level, strain)[standing];
        let share = match Some(standing) == number(Standing::Proven) {
            // What strangers hold already must have the time to end, before it is their turn.
            true => most.clamp(now - by, now + FAST * by),
            false => sought(now, most, level, strain, by),
        };
        self.share.store((share.clamp(0.0, 1.0) as f32).to_bits(), Ordering::Relaxed);
    }
}

/// The part of strangers to be let in after `by` ramps more, at most `most`.
///
/// The right one may be a tenth or a thousandth of those who come, so it is sought by factors and
/// not by steps: it grows while the host bears it, holds where the strain is half of what high can
/// be, and shrinks ten times as fast beyond. Critical ends it at once, since a flood fills all
/// processes within a second.
fn sought(now: f64, most: f64, level: Level, strain: f64, by: f64) -> f64 {
    let doublings = (1.0 / LEAST_STRANGERS).log2() * by;
    match level {
        Level::Critical => most,
        Level::High if strain > 0.5 => {
            let less = now * (-FAST * doublings * (2.0 * strain - 1.0)).exp2();
            less.min(most.max(now - FAST * by))
        }
        Level::High => {
            let more = now.max(LEAST_STRANGERS) * (doublings * (1.0 - 2.0 * strain)).exp2();
            more.min(most.max(now - FAST * by))
        }
        Level::Normal | Level::Elevated => now.max(LEAST_STRANGERS) * doublings.exp2(),
    }
}

/// Where the search begins, of strangers: one of sixty-four.
const LEAST_STRANGERS: f64 = 1.0 / 64.0;

/// How much faster a gate moves the way it should move fast.
const FAST: f64 = 10.0;

/// The sessions of one network.
#[derive(Default)]
struct Held(u32);

impl Record for Held {
    const FAVOURS: bool = false;

    fn forgettable(&self, _: Time) -> bool {
        self.0 == 0
    }

    fn worth(&self) -> Worth {
        Worth::Lasting
    }

    fn seen_from(&self, _: Time, _: Duration) -> Option<Self> {
        None
    }
}

impl Memory {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Host {
            level: AtomicU8::new(0),
            gates: [Gate::open(), Gate::open(), Gate::open()],
            open: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            networks: Table::new(bounds.max_clients),
            watch: Mutex::default(),
        }))
    }

    pub(super) fn signal(&self, params: &Params) -> Load {
        Load { params: params.clone(), host: self.0.clone() }
    }

    pub(super) fn sweep(&self, at: Moment, parts: usize) {
        self.0.networks.sweep(at, parts);
    }

    pub(super) fn size(&self) -> (&'static str, Size) {
        ("load", self.0.networks.size())
    }

    /// The level in force.
    pub fn level(&self) -> Level {
        self.0.level()
    }

    /// The sensor that decides, above normal.
    pub fn cause(&self) -> Option<Cause> {
        self.0.watch().cause.clone()
    }

    /// Every sensor as it was read last.
    pub fn sensors(&self) -> Vec<Seen> {
        self.0.watch().seen.clone()
    }

    /// The part of new sessions that is let in: of suspects, strangers and proven clients.
    pub fn shares(&self) -> [f32; STANDINGS] {
        [0, 1, 2].map(|standing: usize| self.0.gates[standing].share())
    }

    /// Sessions that the fronts hold.
    pub fn open(&self) -> u32 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Only these sensors count from now on. Where the one that has caused the level is not among
    /// them, nobody is put off for it any longer.
    pub fn count_only(&self, sensors: Vec<Arc<str>>) -> Option<Crossing> {
        self.0.count_only(sensors)
    }

    /// Takes in what all sensors say now. Called by one only, beside the mail path.
    pub fn observe(&self, samples: Vec<Sample>, params: &Params, now: Time) -> Option<Crossing> {
        self.0.observe(samples, params, now)
    }
}

impl Host {
    fn level(&self) -> Level {
        Level::of(self.level.load(Ordering::Relaxed))
    }

    /// Whether everybody is let in.
    fn is_open(&self) -> bool {
        self.gates.iter().all(|gate| gate.share() >= 1.0)
    }

    /// A session that only waits to be told holds a process of the MTA as long as a client takes to
    /// greet: in a flood that alone would fill it.
    fn has_enough_waiting(&self) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting >= (self.open.load(Ordering::Relaxed) / MOST_WAITING).max(1)
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_only(&self, sensors: Vec<Arc<str>>) -> Option<Crossing> {
        let mut watch = self.watch();
        for seen in &mut watch.seen {
            if !sensors.contains(&seen.sample.sensor) {
                seen.sample.reading = Err("it is no longer in the settings".into());
                seen.level = Level::Normal;
            }
        }
        let gone = watch.cause.as_ref().is_some_and(|cause| !sensors.contains(&cause.sensor));
        watch.counts = Some(sensors);
        if !gone {
            return None;
        }
        let (from, to) = (self.level(), watch.seen.iter().map(|seen| seen.level).max());
        let to = to.unwrap_or_default();
        watch.held_until = Time::default();
        watch.cause = cause(&watch.seen, to);
        let shares = shares(to, strain(&watch.seen, to));
        self.gates.iter().zip(shares).for_each(|(gate, share)| gate.lets_in(share));
        self.level.store(to as u8, Ordering::Relaxed);
        (from != to).then(|| Crossing { from, to, cause: watch.cause.clone() })
    }

    fn observe(&self, mut samples: Vec<Sample>, params: &Params, now: Time) -> Option<Crossing> {
        let mut watch = self.watch();
        if let Some(counts) = &watch.counts {
            // A reading may have been under way when it was taken away.
            samples.retain(|sample| counts.contains(&sample.sensor));
        }
        let before = |name: &str| {
            let seen = watch.seen.iter().find(|seen| *seen.sample.sensor == *name);
            seen.map_or(Level::Normal, |seen| seen.level)
        };
        let judge = |sample: Sample| {
            let level = match &sample.reading {
                Ok(reading) => sample.marks.level(*reading, before(&sample.sensor)),
                Err(_) => Level::Normal,
            };
            Seen { sample, level }
        };
        let seen: Vec<_> = samples.into_iter().map(judge).collect();
        let from = self.level();
        let asked = seen.iter().map(|seen| seen.level).max().unwrap_or_default();
        if asked >= from && asked > Level::Normal {
            watch.held_until = now + params.hold;
        }
        // A clock that has stepped back does not hold it for longer than it says.
        watch.held_until = watch.held_until.at_most(params.hold, now);
        let to = if asked >= from || watch.held_until <= now { asked } else { from };
        // While a level is only held, or those that were put off come back, the sensor that has
        // caused it stays the cause.
        if asked == to && (to > Level::Normal || self.is_open()) {
            watch.cause = cause(&seen, to);
        }
        let strain = strain(&seen, to);
        watch.seen = seen;
        let after = watch.last.map_or(params.ramp, |last| now.since(last));
        watch.last = Some(now);
        let by = after.as_secs_f64() / params.ramp.as_secs_f64().max(0.001);
        for (standing, gate) in self.gates.iter().enumerate() {
            gate.moves(standing, to, strain, by);
        }
        self.level.store(to as u8, Ordering::Relaxed);
        let crossed = from != to;
        crossed.then(|| Crossing { from, to, cause: watch.cause.clone() })
    }
}

/// The first sensor that asks for a level.
fn cause(seen: &[Seen], level: Level) -> Option<Cause> {
    let mark = (level as usize).checked_sub(1)?;
    let worst = seen.iter().find(|seen| seen.level == level)?;
    Some(Cause {
        sensor: worst.sample.sensor.clone(),
        scarce: worst.sample.scarce,
        reading: *worst.sample.reading.as_ref().ok()?,
        mark: worst.sample.marks.levels[mark]?,
    })
}

/// How far the worst sensor has come within a level.
fn strain(seen: &[Seen], level: Level) -> f64 {
    let strains = seen.iter().filter(|seen| seen.level == level).filter_map(|seen| {
        let reading = seen.sample.reading.as_ref().ok()?;
        Some(seen.sample.marks.strain(*reading, level))
    });
    strains.fold(0.0, f64::max)
}

/// The part of new sessions that is let in, of suspects, strangers and proven clients: the more
/// strain, the less.
fn shares(level: Level, strain: f64) -> [f64; STANDINGS] {
    match level {
        Level::Normal | Level::Elevated => [1.0, 1.0, 1.0],
        Level::High => [0.0, 1.0 - strain, 1.0],
        Level::Critical => [0.0, 0.0, (1.0 - strain).max(LEAST_PROVEN)],
    }
}

/// Of so many open sessions, one may be waiting to be told that it was put off.
const MOST_WAITING: u32 = 4;

/// What is always let in of proven clients.
const LEAST_PROVEN: f64 = 0.25;

/// The signal.
pub struct Load {
    params: Params,
    host: Arc<Host>,
}

/// What the session of a client counts for, until it ends.
#[derive(Debug)]
pub(super) struct Place {
    network: Option<Key>,
    /// Whether it was put off and waits to be told.
    waits: bool,
}

impl Load {
    /// How the load is answered.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The factor on the quotas of this client.
    pub(super) fn allowance(&self, cx: &Context<'_>) -> f32 {
        let level = self.host.level();
        if level == Level::Normal || cx.mode("load", self.params.mode) != Mode::Enforce {
            return 1.0;
        }
        number(cx.standing())
            .map_or(1.0, |standing| self.params.allowance[level as usize][standing])
    }

    fn refusal(&self, why: Why, scarce: Scarce) -> Refusal {
        let template = match scarce {
            Scarce::Capacity => &self.params.busy,
            Scarce::Space => &self.params.space,
            Scarce::Downstream => &self.params.downstream,
            Scarce::DownstreamFault => &self.params.downstream_fault,
        };
        Refusal::new(self.params.mode, template, why).waiting(self.params.retry)
    }

    /// Whether a stranger's network holds as much as it may.
    fn holds_its_share(&self, network: Key, at: Moment) -> Option<Why> {
        let open = self.host.open.load(Ordering::Relaxed).saturating_add(1);
        let most = (self.params.max_share * f64::from(open)) as u32;
        let most = most.max(1);
        let held = self.host.networks.read(network, at, |held| held.map_or(0, |held| held.0));
        (held >= most).then_some(Why::Share { held, most, open })
    }
}

impl Signal for Arc<Load> {
    fn name(&self) -> &'static str {
        "load"
    }

    fn assess(&self, cx: &Context<'_>, _: &Ledger, round: &mut Round) {
        // Beside a milter, which judges the same session, nothing is said in the middle of it.
        if !matches!(cx.event, Event::Connect) || cx.ends == Ends::SeenElsewhere {
            return;
        }
        let (level, host) = (self.host.level(), &self.host);
        if level == Level::Normal && host.is_open() {
            return;
        }
        // Asked only now, since it is a look into a large table.
        let Some(standing) = number(cx.standing()) else { return };
        if !host.gates[standing].admits()
            && let Some(cause) = host.watch().cause.clone()
        {
            let at_once = level == Level::Critical || host.has_enough_waiting();
            let urgency = if at_once { Urgency::AtOnce } else { Urgency::Spoken };
            let scarce = cause.scarce;
            let refusal = self.refusal(Why::Load { level, cause }, scarce);
            return round.refuse(Refusal { urgency, ..refusal });
        }
        let stranger = level > Level::Normal && cx.standing() < Standing::Proven;
        if let Some(why) = stranger.then(|| self.holds_its_share(cx.network_key(), cx.at)).flatten()
        {
            round.refuse(self.refusal(why, Scarce::Capacity));
        }
    }

    fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        match cx.event {
            Event::Connect if cx.ends != Ends::SeenElsewhere => {
                if !self.host.is_open()
                    && let Some(standing) = number(cx.standing())
                {
                    self.host.gates[standing].came(decision.passes());
                }
                // Closed at once, a session is gone before it counts.
                if cx.ends == Ends::Seen && self.params.watches && !decision.at_once() {
                    let key = cx.network_key();
                    let counted = self.host.networks.write(key, cx.at, |held| held.0 += 1);
                    self.host.open.fetch_add(1, Ordering::Relaxed);
                    let waits = !decision.passes();
                    self.host.waiting.fetch_add(u32::from(waits), Ordering::Relaxed);
                    ledger.place = Some(Place { network: counted.ok().map(|()| key), waits });
                }
            }
            Event::Disconnect => {
                let Some(place) = ledger.place.take() else { return };
                self.host.open.fetch_sub(1, Ordering::Relaxed);
                self.host.waiting.fetch_sub(u32::from(place.waits), Ordering::Relaxed);
                if let Some(network) = place.network {
                    self.host.networks.write_known(network, cx.at, |held| held.0 -= 1);
                }
            }
            _ => {}
        }
    }
}

impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.sensor, Rounded(self.reading))
    }
}

/// A reading as people say it: whole, or with two places where it is small.
pub struct Rounded(pub f64);

impl Display for Rounded {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.abs() < 100.0 && self.0.fract() != 0.0 {
            true => write!(f, "{:.2}", self.0),
            false => write!(f, "{:.0}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(worse: Worse, levels: [f64; 3]) -> Marks {
        Marks { levels: levels.map(Some), down: 0.8, worse }
    }

    #[test]
    fn a_level_is_left_only_below_its_lower_mark() {
        let marks = marks(Worse::Higher, [40.0, 60.0, 85.0]);
        let mut level = Level::Normal;
        let steps = [
            (39.9, Level::Normal),
            (61.0, Level::High),
            (48.0, Level::High),
            (47.9, Level::Elevated),
            (32.0, Level::Elevated),
            (31.9, Level::Normal),
            (90.0, Level::Critical),
            (0.0, Level::Normal),
        ];
        for (reading, expected) in steps {
            level = marks.level(reading, level);
            assert_eq!(level, expected, "at {reading}");
        }
    }

    #[test]
    fn of_what_is_free_the_lower_is_the_worse() {
        let marks = marks(Worse::Lower, [2000.0, 1000.0, 250.0]);
        let mut level = Level::Normal;
        let steps = [
            (2001.0, Level::Normal),
            (1000.0, Level::High),
            (1250.0, Level::High),
            (1251.0, Level::Elevated),
            (250.0, Level::Critical),
            (313.0, Level::High),
        ];
        for (reading, expected) in steps {
            level = marks.level(reading, level);
            assert_eq!(level, expected, "at {reading}");
        }
    }

    #[test]
    fn a_gate_lets_its_share_pass_evenly() {
        let gate = Gate::open();
        gate.share.store(0.25_f32.to_bits(), Ordering::Relaxed);
        let passed: String = (0..12)
            .map(|_| {
                let admits = gate.admits();
                gate.came(admits);
                if admits { '+' } else { '-' }
            })
            .collect();
        assert_eq!(passed, "---+---+---+");
    }

    #[test]
    fn strangers_go_fast_and_come_back_slowly() {
        let gate = Gate::open();
        let share = |level, strain, secs: f64| {
            gate.moves(1, level, strain, secs / 60.0);
            (gate.share() * 1_000.0).round()
        };
        assert_eq!(share(Level::High, 0.5, 3.0), 500.0, "no more than the strain leaves");
        assert_eq!(share(Level::High, 0.5, 60.0), 500.0, "it holds there");
        assert_eq!(share(Level::High, 0.75, 2.0), 250.0);
        assert_eq!(share(Level::Critical, 0.0, 1.0), 0.0);
        assert_eq!(share(Level::Normal, 0.0, 30.0), 125.0);
        assert_eq!(share(Level::Normal, 0.0, 30.0), 1_000.0);
    }

    #[test]
    fn proven_clients_go_slowly_and_come_back_fast() {
        let gate = Gate::open();
        gate.moves(2, Level::Critical, 1.0, 0.5);
        assert_eq!(gate.share(), 0.5);
        gate.moves(2, Level::High, 1.0, 0.05);
        assert_eq!(gate.share(), 1.0);
    }
}
