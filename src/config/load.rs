//! `[load]` and `[maintenance]`: what is watched, from which readings on, and what it does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::front::address::Address;
use crate::meter::units::{Size, Span};
use crate::policy::access::Entry;
use crate::policy::load::{self, LEVELS, Level, Marks, STANDINGS, Scarce, Worse};
use crate::setting::{Complaint, Mode, OrNone};
use crate::smtp::reply::Action;
use crate::smtp::template::Template;

/// `[load]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// Whether it acts.
    pub mode: Mode,
    /// How often sensors are read.
    pub period: Span,
    /// How long a level is kept after the last reading that asks for it.
    pub hold: Span,
    /// The time in which admission comes back.
    pub ramp: Span,
    /// The part of the open sessions that one unknown network may hold above normal.
    pub max_share: f64,
    /// The wait told.
    pub retry: Span,
    /// What is said.
    pub reply: Replies,
    /// The factor on quotas, by level and standing.
    pub allowance: Allowances,
    /// Where the kernel shows its readings.
    pub proc: PathBuf,
    /// Stalls of the host.
    #[serde(skip_serializing_if = "is_default")]
    pub pressure: Pressures,
    /// Stalls within named cgroups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroup: Vec<Cgroup>,
    /// Load average for each core.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_per_core: Plain<f64>,
    /// Memory that programs can still have.
    #[serde(skip_serializing_if = "is_default")]
    pub memory_available: Plain<Size>,
    /// Room on disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<Disk>,
    /// Messages in the MTA's queue.
    #[serde(skip_serializing_if = "is_default")]
    pub queue: Queue,
    /// Open sessions against what the MTA bears.
    #[serde(skip_serializing_if = "is_default")]
    pub sessions: Sessions,
    /// How long events wait before we look at them.
    #[serde(skip_serializing_if = "is_default")]
    pub delay: Plain<Span>,
    /// Servers that mail is passed on to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probe: Vec<Probe>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            period: Span::secs(1),
            hold: Span::secs(30),
            ramp: Span::secs(60),
            max_share: 0.05,
            retry: Span::secs(300),
            reply: Replies::default(),
            allowance: Allowances::default(),
            proc: "/proc".into(),
            pressure: Pressures::default(),
            cgroup: Vec::new(),
            cpu_per_core: Plain::default(),
            memory_available: Plain::default(),
            disk: Vec::new(),
            queue: Queue::default(),
            sessions: Sessions::default(),
            delay: Plain::default(),
            probe: Vec::new(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `[load.reply]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replies {
    /// When time, memory or processes are short.
    pub busy: Template,
    /// When room for mail is.
    pub space: Template,
    /// When a server that mail is passed on to cannot be reached.
    pub downstream: Template,
    /// When it can, and does not work.
    pub downstream_fault: Template,
}

const BUSY: &str = "421 4.3.2 {hostname} Too much load, try again later; retry in {wait} seconds";
const SPACE: &str = "421 4.3.1 {hostname} Short of space for mail; retry in {wait} seconds";
const DOWNSTREAM: &str =
    "421 4.4.1 {hostname} The server behind this one does not answer; retry in {wait} seconds";
const DOWNSTREAM_FAULT: &str =
    "421 4.3.0 {hostname} The server behind this one is in trouble; retry in {wait} seconds";
const MAINTENANCE: &str = "421 4.3.2 {hostname} Closed for maintenance; retry in {wait} seconds";

impl Default for Replies {
    fn default() -> Self {
        let template = |text: &str| text.parse().expect("a test reads every reply here");
        Self {
            busy: template(BUSY),
            space: template(SPACE),
            downstream: template(DOWNSTREAM),
            downstream_fault: template(DOWNSTREAM_FAULT),
        }
    }
}

/// `[load.allowance]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowances {
    /// At elevated.
    pub elevated: Allowance,
    /// At high.
    pub high: Allowance,
    /// At critical.
    pub critical: Allowance,
}

impl Default for Allowances {
    fn default() -> Self {
        Self {
            elevated: Allowance { suspect: 0.25, unknown: 0.5, proven: 1.0 },
            high: Allowance { suspect: 0.1, unknown: 0.25, proven: 1.0 },
            critical: Allowance { suspect: 0.1, unknown: 0.1, proven: 0.5 },
        }
    }
}

/// Factors on quotas: above 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Of suspects.
    pub suspect: f32,
    /// Of strangers.
    pub unknown: f32,
    /// Of proven clients.
    pub proven: f32,
}

/// The readings at which levels are reached. A mark left out is off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, bound(deserialize = "T: Deserialize<'de>"))]
pub struct Plain<T> {
    /// Where elevated begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elevated: Option<T>,
    /// Where high begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<T>,
    /// Where critical begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<T>,
    /// A level is left below so much of its mark.
    pub down: f64,
}

impl<T> Default for Plain<T> {
    fn default() -> Self {
        Self { elevated: None, high: None, critical: None, down: DOWN }
    }
}

const DOWN: f64 = 0.8;

/// A reading as a number.
pub trait Reading: Copy {
    /// The number.
    fn number(self) -> f64;
}

impl Reading for f64 {
    fn number(self) -> f64 {
        self
    }
}

impl Reading for u64 {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Reading for Size {
    fn number(self) -> f64 {
        self.as_bytes() as f64
    }
}

impl Reading for Span {
    fn number(self) -> f64 {
        self.duration().as_secs_f64()
    }
}

/// `[load.pressure.cpu]` and its like: percent of the last ten seconds in which some task, or all,
/// stalled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pressure {
    /// Where elevated begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elevated: Option<f64>,
    /// Where high begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Where critical begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<f64>,
    /// A level is left below so much of its mark.
    pub down: f64,
    /// The same of the time in which all tasks stalled.
    #[serde(skip_serializing_if = "is_default")]
    pub full: Plain<f64>,
}

impl Default for Pressure {
    fn default() -> Self {
        Self { elevated: None, high: None, critical: None, down: DOWN, full: Plain::default() }
    }
}

/// `[load.pressure]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pressures {
    /// Waiting for a processor.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu: Pressure,
    /// Waiting for memory.
    #[serde(skip_serializing_if = "is_default")]
    pub memory: Pressure,
    /// Waiting for disks.
    #[serde(skip_serializing_if = "is_default")]
    pub io: Pressure,
}

/// `[[load.cgroup]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    /// Its folder.
    pub path: PathBuf,
    /// Waiting for a processor.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cpu: Pressure,
    /// Waiting for memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory: Pressure,
    /// Waiting for disks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub io: Pressure,
}

/// `[[load.disk]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A file or folder on it.
    pub path: PathBuf,
    /// At so few free bytes elevated begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elevated: Option<Size>,
    /// At so few, high.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<Size>,
    /// At so few, critical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical: Option<Size>,
    /// A level is left above its mark divided by this.
    #[serde(default = "down")]
    pub down: f64,
    /// The same of free inodes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub inodes: Plain<u64>,
}

fn down() -> f64 {
    DOWN
}

/// `[load.queue]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// The queue's folder; `auto`: Postfix is asked for it.
    pub path: PathBuf,
    /// Messages in Postfix's `maildrop`.
    #[serde(skip_serializing_if = "is_default")]
    pub maildrop: Plain<u64>,
    /// In `incoming`.
    #[serde(skip_serializing_if = "is_default")]
    pub incoming: Plain<u64>,
    /// In `active`.
    #[serde(skip_serializing_if = "is_default")]
    pub active: Plain<u64>,
    /// In `deferred`.
    #[serde(skip_serializing_if = "is_default")]
    pub deferred: Plain<u64>,
    /// In a queue of Sendmail.
    #[serde(skip_serializing_if = "is_default")]
    pub messages: Plain<u64>,
}

impl Default for Queue {
    fn default() -> Self {
        let (maildrop, incoming, active) = (Plain::default(), Plain::default(), Plain::default());
        let (deferred, messages) = (Plain::default(), Plain::default());
        Self { path: "auto".into(), maildrop, incoming, active, deferred, messages }
    }
}

/// Where the number of sessions comes from that the MTA bears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// `max`.
    #[default]
    Settings,
    /// Postfix is asked for it.
    Mta,
}

/// `[load.sessions]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// Who knows the number.
    pub from: From,
    /// Sessions that the MTA bears.
    pub max: u32,
    /// The part of them at which elevated begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elevated: Option<f64>,
    /// Where high begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Where critical begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<f64>,
    /// A level is left below so much of its mark.
    pub down: f64,
}

impl Default for Sessions {
    fn default() -> Self {
        let (elevated, high, critical) = (None, None, None);
        Self { from: From::Settings, max: 100, elevated, high, critical, down: DOWN }
    }
}

/// `[[load.probe]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its name in logs and metrics.
    pub name: String,
    /// What to connect to.
    pub connect: Address,
    /// How its first line must begin; nothing: it is not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
    /// How long both may take.
    #[serde(default = "deadline")]
    pub deadline: Span,
    /// The level when it fails.
    #[serde(default = "probe_level")]
    pub level: Level,
}

fn deadline() -> Span {
    Span::secs(2)
}

fn probe_level() -> Level {
    Level::High
}

/// One thing to read.
#[derive(Clone, Debug)]
pub struct Sensor {
    /// Its name in logs and metrics.
    pub name: Arc<str>,
    /// What is short when it is worse.
    pub scarce: Scarce,
    /// Its marks.
    pub marks: Arc<Marks>,
    /// Where its reading comes from.
    pub source: Source,
}

/// Where a reading comes from, and its unit.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The `avg10` of a pressure file, percent: of the line `some`, or of the line `full`.
    Pressure {
        /// The file.
        file: PathBuf,
        /// Which line.
        full: bool,
    },
    /// The load average of one minute in this file, for each core.
    LoadPerCore(PathBuf),
    /// `MemAvailable` in this file, bytes.
    MemoryAvailable(PathBuf),
    /// Bytes that an ordinary user can have on the disk of this path.
    FreeBytes(PathBuf),
    /// Inodes there.
    FreeInodes(PathBuf),
    /// Files in one of Postfix's queues, or in a queue of Sendmail.
    Queue {
        /// The folder of all queues; nothing: Postfix is asked for it.
        root: Option<PathBuf>,
        /// Which of them; nothing: Sendmail has only one.
        name: Option<&'static str>,
        /// There is no use in counting further.
        enough: u64,
    },
    /// Open sessions against so many; nothing: Postfix is asked for it.
    Sessions {
        /// How many the MTA bears.
        max: Option<u32>,
    },
    /// How late our own workers are, seconds.
    Delay,
    /// Whether a server fails: 0 or 1.
    Probe {
        /// What to connect to.
        connect: Address,
        /// How its first line must begin.
        banner: Option<String>,
        /// How long both may take.
        deadline: Duration,
    },
}

struct Sensors(Vec<Sensor>);

impl Sensors {
    fn add<T: Reading>(
        &mut self,
        name: String,
        (scarce, worse): (Scarce, Worse),
        levels: [Option<T>; 3],
        down: f64,
        source: Source,
    ) {
        let levels = levels.map(|mark| mark.map(T::number));
        let marks = Marks { levels, down, worse };
        if marks.any() {
            self.0.push(Sensor { name: name.into(), scarce, marks: Arc::new(marks), source });
        }
    }

    fn plain<T: Reading>(
        &mut self,
        name: String,
        kind: (Scarce, Worse),
        marks: &Plain<T>,
        source: Source,
    ) {
        let Plain { elevated, high, critical, down } = marks;
        self.add(name, kind, [*elevated, *high, *critical], *down, source);
    }

    fn pressure(&mut self, name: &str, pressure: &Pressure, file: PathBuf) {
        let Pressure { elevated, high, critical, down, full } = pressure;
        let source = Source::Pressure { file: file.clone(), full: false };
        self.add(name.into(), BUSIER, [*elevated, *high, *critical], *down, source);
        self.plain(format!("{name}.full"), BUSIER, full, Source::Pressure { file, full: true });
    }
}

const BUSIER: (Scarce, Worse) = (Scarce::Capacity, Worse::Higher);
const SCARCER: (Scarce, Worse) = (Scarce::Capacity, Worse::Lower);
const FULLER: (Scarce, Worse) = (Scarce::Space, Worse::Lower);

impl Load {
    /// What is to be read, each with its marks; those without a mark are off.
    pub fn sensors(&self) -> Vec<Sensor> {
        let mut sensors = Sensors(Vec::new());
        if self.mode == Mode::Off {
            return sensors.0;
        }
        let Pressures { cpu, memory, io } = &self.pressure;
        for (name, pressure) in [("cpu", cpu), ("memory", memory), ("io", io)] {
            let file = self.proc.join("pressure").join(name);
            sensors.pressure(&format!("pressure.{name}"), pressure, file);
        }
        for Cgroup { path, cpu, memory, io } in &self.cgroup {
            for (name, pressure) in [("cpu", cpu), ("memory", memory), ("io", io)] {
                let file = path.join(format!("{name}.pressure"));
                sensors.pressure(&format!("cgroup {}: {name}", path.display()), pressure, file);
            }
        }
        let source = Source::LoadPerCore(self.proc.join("loadavg"));
        sensors.plain("cpu_per_core".into(), BUSIER, &self.cpu_per_core, source);
        let source = Source::MemoryAvailable(self.proc.join("meminfo"));
        sensors.plain("memory_available".into(), SCARCER, &self.memory_available, source);
        for Disk { path, elevated, high, critical, down, inodes } in &self.disk {
            let (name, source) = (path.display(), Source::FreeBytes(path.clone()));
            let marks = [*elevated, *high, *critical];
            sensors.add(format!("disk {name}"), FULLER, marks, *down, source);
            let source = Source::FreeInodes(path.clone());
            sensors.plain(format!("inodes {name}"), FULLER, inodes, source);
        }
        let Queue { path, maildrop, incoming, active, deferred, messages } = &self.queue;
        let root = (path.as_os_str() != "auto").then(|| path.clone());
        for (name, marks) in [
            (Some("maildrop"), maildrop),
            (Some("incoming"), incoming),
            (Some("active"), active),
            (Some("deferred"), deferred),
            (None, messages),
        ] {
            let most = [marks.elevated, marks.high, marks.critical].into_iter().flatten().max();
            // A quarter beyond the last mark tells all there is to tell.
            let enough = most.map_or(0, |most| most.saturating_add(most / 4).saturating_add(1));
            let source = Source::Queue { root: root.clone(), name, enough };
            sensors.plain(format!("queue.{}", name.unwrap_or("messages")), BUSIER, marks, source);
        }
        let Sessions { from, max, elevated, high, critical, down } = self.sessions;
        let source = Source::Sessions { max: (from == From::Settings).then_some(max) };
        sensors.add("sessions".into(), BUSIER, [elevated, high, critical], down, source);
        sensors.plain("delay".into(), BUSIER, &self.delay, Source::Delay);
        for Probe { name, connect, banner, deadline, level } in &self.probe {
            let mut levels: [Option<f64>; 3] = [None; 3];
            let Some(mark) = (*level as usize).checked_sub(1) else { continue };
            levels[mark] = Some(1.0);
            let (connect, banner) = (connect.clone(), banner.clone());
            let source = Source::Probe { connect, banner, deadline: deadline.duration() };
            let kind = (Scarce::Downstream, Worse::Higher);
            sensors.add(format!("probe.{name}"), kind, levels, 1.0, source);
        }
        sensors.0
    }

    /// How the load is answered.
    pub fn params(&self) -> load::Params {
        let Allowances { elevated, high, critical } = self.allowance;
        let factors = |a: Allowance| [a.suspect, a.unknown, a.proven];
        let allowance: [[f32; STANDINGS]; LEVELS] =
            [[1.0; STANDINGS], factors(elevated), factors(high), factors(critical)];
        let template = |template: &Template| Arc::new(template.clone());
        load::Params {
            mode: self.mode,
            watches: !self.sensors().is_empty(),
            hold: self.hold.duration(),
            ramp: self.ramp.duration(),
            max_share: self.max_share,
            retry: self.retry.duration(),
            allowance,
            busy: template(&self.reply.busy),
            space: template(&self.reply.space),
            downstream: template(&self.reply.downstream),
            downstream_fault: template(&self.reply.downstream_fault),
        }
    }

    /// What makes no sense.
    pub(super) fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut error = |key, message: String| complaints.push(Complaint::error(key, message));
        if self.period < Span::millis(100) || self.period > Span::secs(60) {
            error("period", "expected 100ms to 1m".into());
        }
        if !(self.max_share > 0.0 && self.max_share <= 1.0) {
            error("max_share", format!("expected above 0, at most 1, not {}", self.max_share));
        }
        let Allowances { elevated, high, critical } = self.allowance;
        let factors = [elevated, high, critical].map(|a| [a.suspect, a.unknown, a.proven]);
        if let Some(wrong) = factors.iter().flatten().find(|f| !(**f > 0.0 && **f <= 1.0)) {
            error("allowance", format!("expected factors above 0, at most 1, not {wrong}"));
        }
        if self.sessions.max == 0 {
            error("sessions", "expected `max` to be at least 1".into());
        }
        if let Some(probe) = self.probe.iter().find(|probe| probe.level == Level::Normal) {
            error("probe", format!("{:?}: expected a level above normal", probe.name));
        }
        let names: Vec<_> = self.probe.iter().map(|probe| &probe.name).collect();
        if let Some((_, twice)) =
            names.iter().enumerate().find(|(n, name)| names[..*n].contains(name))
        {
            error("probe", format!("expected names of their own; {twice:?} is taken"));
        }
        for sensor in self.sensors() {
            let section = sensor.name.split([' ', '.', ':']).next().unwrap_or_default();
            let key = KEYS.iter().find(|(name, _)| *name == section).map_or("mode", |(_, key)| key);
            let Marks { levels, down, worse } = &*sensor.marks;
            let given: Vec<f64> = levels.iter().flatten().copied().collect();
            let in_order = given.windows(2).all(|pair| match worse {
                Worse::Higher => pair[0] < pair[1],
                Worse::Lower => pair[0] > pair[1],
            });
            if !in_order {
                let rather = if *worse == Worse::Higher { "rise" } else { "fall" };
                error(key, format!("{}: expected marks that {rather} with the level", sensor.name));
            }
            if given.iter().any(|mark| !(mark.is_finite() && *mark > 0.0)) {
                error(key, format!("{}: expected marks above 0", sensor.name));
            }
            if !(*down > 0.0 && *down <= 1.0) {
                error(key, format!("{}: expected `down` above 0, at most 1", sensor.name));
            }
        }
        complaints
    }
}

/// The key of `[load]` that a sensor's name begins with.
const KEYS: [(&str, &str); 10] = [
    ("pressure", "pressure"),
    ("cgroup", "cgroup"),
    ("cpu_per_core", "cpu_per_core"),
    ("memory_available", "memory_available"),
    ("disk", "disk"),
    ("inodes", "disk"),
    ("queue", "queue"),
    ("sessions", "sessions"),
    ("delay", "delay"),
    ("probe", "probe"),
];

/// `[maintenance]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Maintenance {
    /// Until when new sessions are put off.
    pub until: OrNone<Time>,
    /// Who is served all the same.
    pub allow: Vec<Entry>,
    /// What is said.
    pub reply: Template,
}

impl Default for Maintenance {
    fn default() -> Self {
        let reply = MAINTENANCE.parse().expect("a test reads the reply");
        Self { until: OrNone::None, allow: Vec::new(), reply }
    }
}

impl Maintenance {
    /// What makes no sense.
    pub(super) fn check(&self) -> Option<Complaint> {
        let closes = self.reply.code().action() == Action::Close;
        // Another code would leave the session open, and each of its commands be refused.
        (!closes).then(|| Complaint::error("reply", "expected 421, which closes the session"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense_and_watch_nothing() {
        assert_eq!(Load::default().check(), []);
        assert_eq!(Maintenance::default().check(), None);
        assert!(Load::default().sensors().is_empty());
        let replies = [BUSY, SPACE, DOWNSTREAM, DOWNSTREAM_FAULT, MAINTENANCE];
        assert!(replies.iter().all(|reply| reply.parse::<Template>().is_ok()));
    }
}
