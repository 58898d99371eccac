//! Everything that `postpone ctl status` tells. The names are stable; a field that is missing, as
//! an older daemon leaves it out, reads as its default.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::engine::Engine;
use crate::engine::recent::Most;
use crate::policy::allowed::Entry;
use crate::policy::by_hand::{Lifted, Scope};
use crate::policy::decision::Reason;
use crate::policy::load::{Level, Seen, Worse};
use crate::policy::maintenance::{By, Closure};
use crate::setting::Mode;
use crate::telemetry::Failure;
use crate::telemetry::counts::OfRule;

/// How the daemon is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The version that runs.
    pub version: String,
    /// When it began to serve.
    pub since: Time,
    /// The time there.
    pub now: Time,
    /// Whether it has jumped and is not believed yet: nothing fades by it.
    pub clock_doubted: bool,
    /// What it goes by.
    pub settings: Settings,
    /// Where MTAs find it.
    pub listeners: Vec<String>,
    /// When an MTA last asked; nothing: never.
    pub asked: Option<Time>,
    /// Sessions open now, as milters see them.
    pub sessions_open: u64,
    /// How the host is.
    pub load: Load,
    /// What is closed; nothing: no maintenance.
    pub maintenance: Vec<Closed>,
    /// Until when everything passes, by `bypass-on`.
    pub bypass: Option<Time>,
    /// Rules that are taken out by hand.
    pub shadows: Vec<Shadow>,
    /// Until when behaviour only watches because the database is new.
    pub learning_until: Option<Time>,
    /// Who is allowed by hand.
    pub allowed: Vec<Allowed>,
    /// What passed.
    pub passed: Counted,
    /// Every rule in force, and others that have spoken since the start.
    pub rules: Vec<Rule>,
    /// `pass`, and refusals by their reason.
    pub decisions: BTreeMap<String, u64>,
    /// What shadows would have refused, by the reason.
    pub shadowed: BTreeMap<String, u64>,
    /// Memory.
    pub tables: Vec<Table>,
    /// What is on disk.
    pub state: State,
    /// Our own trouble, in which the mail passed, by its kind.
    pub failures: BTreeMap<String, u64>,
}

/// What the daemon goes by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The file.
    pub file: String,
    /// When those in force were read.
    pub loaded: Time,
    /// What is in force now, in one line: what is taken out by hand is in shadow.
    pub in_force: String,
    /// Built-in limits that those of the file have replaced.
    pub replaced: Vec<String>,
    /// What came of the last attempt to read them again, if it was refused.
    pub refused: Option<Refused>,
}

/// A reload that was refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// When.
    pub at: Time,
    /// The first thing that is wrong.
    pub why: String,
}

/// How often something has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// In the last hour, to the minute.
    pub hour: u64,
    /// Since the start.
    pub total: u64,
}

/// A rule and what it has said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// The limit's name, or the signal's.
    pub name: String,
    /// Whether it acts now.
    pub mode: Mode,
    /// Refusals.
    pub refused: Counted,
    /// What it would have refused, in shadow.
    pub shadowed: Counted,
    /// Whom it has refused most in the last hour, or would have if it is a shadow, among the decisions
    /// that are remembered.
    pub most: Option<Most>,
}

/// A network that is allowed by hand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allowed {
    /// The network, or a single address.
    pub network: String,
    /// Until when.
    pub until: Time,
}

/// A rule that is taken out by hand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shadow {
    /// Its name.
    pub rule: String,
    /// Until when.
    pub until: Time,
}

/// How the host is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Whether it acts.
    pub mode: Mode,
    /// The level in force.
    pub level: Level,
    /// Why, above normal.
    pub cause: Option<Cause>,
    /// The part of new sessions that is let in, by standing.
    pub admitted: BTreeMap<String, f64>,
    /// All sensors.
    pub sensors: Vec<Sensor>,
}

/// The sensor that decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Its name.
    pub sensor: String,
    /// What it said.
    pub reading: f64,
    /// The mark that it has reached.
    pub mark: f64,
}

/// A sensor of the load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sensor {
    /// Its name.
    pub name: String,
    /// What it says, in its own unit; nothing while it is off.
    pub reading: Option<f64>,
    /// Why it is off, if it is.
    pub off: Option<String>,
    /// Why it reads so, where that can be told: how a probe fails.
    pub why: Option<String>,
    /// The level that it asks for.
    pub level: Level,
    /// Where elevated begins; nothing: it never asks for it.
    pub elevated: Option<f64>,
    /// Where high begins.
    pub high: Option<f64>,
    /// Where critical begins.
    pub critical: Option<f64>,
    /// Whether it is the lower readings that are worse.
    pub lower_is_worse: bool,
}

/// What is closed for maintenance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Closed {
    /// The listener; nothing: all of them.
    pub listener: Option<String>,
    /// When it is over.
    pub until: Time,
    /// Seconds until then, rounded up.
    pub remaining_secs: u64,
    /// Whether it is `[maintenance] until` that says so.
    pub by_settings: bool,
}

/// A table of memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Entries.
    pub entries: u64,
    /// How many there may be.
    pub max: u64,
    /// Entries that had to make room before their time.
    pub evicted: u64,
    /// New ones that found no room.
    pub turned_away: u64,
}

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Whether anything is kept.
    pub kept: bool,
    /// Whether what was kept is still being read back.
    pub loading: bool,
    /// Entries that were read back.
    pub loaded_entries: u64,
    /// Changed entries that are not on disk yet.
    pub behind_entries: u64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Up to when every change is on disk.
    pub last_written: Option<Time>,
}

impl Status {
    /// How it is now.
    pub fn of(
        engine: &Engine,
        since: Time,
        mut settings: Settings,
        listeners: &[Arc<str>],
    ) -> Self {
        settings.in_force = in_force(&engine.rules(), &settings.replaced);
        let lately = engine.telemetry().lately();
        let totals = engine.telemetry().totals();
        let by_reason = |counts: [u64; Reason::ALL.len()]| {
            Reason::ALL.into_iter().map(|r| r.name().to_owned()).zip(counts)
        };
        let table = |(name, size): (&str, crate::meter::table::Size)| Table {
            name: name.to_owned(),
            entries: size.entries as u64,
            max: size.max_entries as u64,
            evicted: size.evicted,
            turned_away: size.turned_away,
        };
        let kept = totals.written_up_to.is_some();
        let lifted = engine.lifted();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since,
            now: engine.now(),
            clock_doubted: engine.moment().is_doubted(),
            settings,
            asked: lately.asked,
            passed: Counted { hour: lately.passed_in_hour, total: lately.passed },
            rules: Rule::all(engine, lately.rules),
            listeners: listeners.iter().map(|listener| (**listener).to_owned()).collect(),
            sessions_open: totals.sessions,
            load: Load::of(engine),
            maintenance: Closed::all(engine, listeners),
            bypass: lifted.iter().find(|it| it.scope == Scope::Everything).map(|it| it.until),
            shadows: lifted.iter().filter_map(Shadow::of).collect(),
            learning_until: engine.learning_until(),
            allowed: engine.allowed().into_iter().map(Allowed::of).collect(),
            decisions: by_reason(totals.refused)
                .chain([("pass".to_owned(), totals.passes)])
                .collect(),
            shadowed: by_reason(totals.shadowed).collect(),
            tables: engine.memory().sizes().map(table).collect(),
            state: State {
                kept,
                loading: totals.loading,
                loaded_entries: totals.loaded,
                behind_entries: if kept { engine.memory().behind() as u64 } else { 0 },
                bytes: totals.bytes,
                last_written: totals.written_up_to,
            },
            failures: Failure::ALL
                .into_iter()
                .map(|failure| failure.name().to_owned())
                .zip(totals.failures)
                .collect(),
        }
    }
}

/// Which rules are enforced and which are in shadow, and which built-in limits no longer hold.
pub fn in_force(rules: &[(Arc<str>, Mode)], replaced: &[String]) -> String {
    let of_mode = |(mode, is): (Mode, &str)| {
        let names = rules.iter().filter(|(_, its)| *its == mode).map(|(name, _)| &**name);
        let names: Vec<_> = names.collect();
        (!names.is_empty()).then(|| format!("{is}: {}", names.join(", ")))
    };
    let gone = (!replaced.is_empty())
        .then(|| format!("built-in limits that no longer hold: {}", replaced.join(", ")));
    let modes = [(Mode::Enforce, "enforced"), (Mode::Shadow, "in shadow")];
    modes.into_iter().filter_map(of_mode).chain(gone).collect::<Vec<_>>().join("; ")
}

/// A time as people read it: to the second.
pub fn whole(time: Time) -> String {
    time.whole()
}

impl Load {
    fn of(engine: &Engine) -> Self {
        let load = &engine.memory().load;
        let standings = ["suspect", "unknown", "proven"].map(str::to_owned);
        Self {
            mode: engine.load_mode(),
            level: load.level(),
            cause: load.cause().map(|cause| Cause {
                sensor: cause.sensor.to_string(),
                reading: cause.reading,
                mark: cause.mark,
            }),
            admitted: standings.into_iter().zip(load.shares().map(f64::from)).collect(),
            sensors: load.sensors().into_iter().map(Sensor::of).collect(),
        }
    }
}

impl Rule {
    /// Those in force in their order, then those that have spoken before a reload.
    fn all(engine: &Engine, mut spoken: BTreeMap<Arc<str>, OfRule>) -> Vec<Self> {
        let mut most = engine.refused_most();
        let mut rule = |(name, mode): (Arc<str>, Mode), OfRule { hour, all }: OfRule| Self {
            most: most
                .remove(&(name.clone(), if mode == Mode::Shadow { mode } else { Mode::Enforce })),
            name: (*name).to_owned(),
            mode,
            refused: Counted { hour: hour.refused, total: all.refused },
            shadowed: Counted { hour: hour.shadowed, total: all.shadowed },
        };
        let in_force = engine.rules();
        let mut rules: Vec<_> = in_force
            .into_iter()
            .map(|named| {
                let of_it = spoken.remove(&named.0).unwrap_or_default();
                rule(named, of_it)
            })
            .collect();
        rules.extend(spoken.into_iter().map(|(name, of_it)| rule((name, Mode::Off), of_it)));
        rules
    }
}

impl Shadow {
    fn of(lifted: &Lifted) -> Option<Self> {
        match &lifted.scope {
            Scope::Everything => None,
            Scope::Rule(rule) => Some(Self { rule: (**rule).to_owned(), until: lifted.until }),
        }
    }
}

impl Allowed {
    fn of(Entry { network, until }: Entry) -> Self {
        Self { network: shown(network), until }
    }
}

/// A network; a single address without its bits.
pub fn shown(network: IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}

impl Sensor {
    fn of(Seen { sample, level }: Seen) -> Self {
        let [elevated, high, critical] = sample.marks.levels;
        let (reading, off) = match sample.reading {
            Ok(reading) => (Some(reading), None),
            Err(why) => (None, Some(why.to_string())),
        };
        Self {
            name: sample.sensor.to_string(),
            reading,
            off,
            why: sample.why.map(|why| why.to_string()),
            level,
            elevated,
            high,
            critical,
            lower_is_worse: sample.marks.worse == Worse::Lower,
        }
    }
}

impl Closed {
    /// When it is over, to the second.
    pub fn end(&self) -> String {
        whole(self.until)
    }

    /// Everything that is closed now.
    pub fn all(engine: &Engine, listeners: &[Arc<str>]) -> Vec<Self> {
        let now = engine.now();
        let closed = |(listener, closure): (Option<Arc<str>>, Closure)| Self {
            listener: listener.map(|listener| (*listener).to_owned()),
            until: closure.until,
            remaining_secs: closure.until.since(now).as_nanos().div_ceil(1_000_000_000) as u64,
            by_settings: closure.by == By::Settings,
        };
        engine.closures(listeners).into_iter().map(closed).collect()
    }
}
