//! Every metric, label and log field, once.
//!
//! One event a decision at `info` when it is not a pass, with what a postmaster needs to explain
//! it. Metrics are labelled by what we and the settings name, never by what comes from the
//! network.

pub mod counts;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::with_local_recorder;
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tracing::{error, info, warn};

use self::counts::{Counts, Lately, Totals};
use crate::clock::{Moment, Time};
use crate::meter::table::Size;
use crate::policy::by_hand::{Lifted, Scope};
use crate::policy::decision::{Decision, Refusal};
use crate::policy::load::{self, Crossing, Level, Seen};
use crate::policy::maintenance::Closure;
use crate::policy::signal::Ends;
use crate::setting::Mode;
use crate::smtp::event::Kind;
use crate::smtp::harmless::harmless;
use crate::smtp::reply::Reply;

/// Our own trouble. In each the mail passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A decision panicked, or a connection, or a thread that is started again.
    Panic,
    /// A client without an address we can read.
    Address,
    /// A frame or a request that makes no sense; its connection was closed.
    Frame,
    /// A connection could not be accepted.
    Accept,
    /// Log lines were dropped because they could not be written fast enough.
    Log,
    /// State could not be read or written.
    State,
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Panic, Self::Address, Self::Frame, Self::Accept, Self::Log, Self::State];

    /// Its one name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Address => "address",
            Self::Frame => "frame",
            Self::Accept => "accept",
            Self::Log => "log",
            Self::State => "state",
        }
    }
}

/// One decision, as it is told.
pub struct Told<'a> {
    /// What was decided.
    pub decision: &'a Decision,
    /// Its id.
    pub id: &'a str,
    /// The event at which the client hears of it.
    pub event: Kind,
    /// The client's address.
    pub client: IpAddr,
    /// Its forward-confirmed name.
    pub name: Option<&'a str>,
    /// Its HELO name.
    pub helo: Option<&'a str>,
    /// The name it has authenticated as.
    pub user: Option<&'a str>,
    /// The envelope sender.
    pub sender: Option<&'a str>,
    /// The envelope recipient.
    pub recipient: Option<&'a str>,
    /// How long the client must wait from now on.
    pub wait: Duration,
    /// What is said, if anything is.
    pub reply: Option<&'a Reply>,
}

/// Counts and tells.
pub struct Telemetry {
    recorder: PrometheusRecorder,
    events: [Counter; Kind::ALL.len()],
    passes: Counter,
    latency: Latency,
    sessions: Gauge,
    stress: Counter,
    suspended: Gauge,
    /// Whether the wall clock is not believed.
    doubted: Gauge,
    told_doubted: AtomicBool,
    /// Whether the last line about greylisting was that it is suspended, and when that was.
    told_suspended: AtomicBool,
    told_suspended_at: AtomicU64,
    failures: [Counter; Failure::ALL.len()],
    last_told: [AtomicU64; Failure::ALL.len()],
    counts: Counts,
    /// What was told of maintenance last, by its scope.
    closed: Mutex<HashMap<Arc<str>, Closure>>,
    /// What was told last of what is taken out by hand.
    lifted: Mutex<Vec<Lifted>>,
}

/// Upper bounds of the latency histogram's buckets, in seconds: from a decision's usual time to
/// one that somebody would feel.
const LATENCY_BUCKETS: [(u64, &str); 10] = [
    (500, "0.0000005"),
    (1_000, "0.000001"),
    (2_000, "0.000002"),
    (5_000, "0.000005"),
    (10_000, "0.00001"),
    (25_000, "0.000025"),
    (100_000, "0.0001"),
    (1_000_000, "0.001"),
    (10_000_000, "0.01"),
    (100_000_000, "0.1"),
];

/// A histogram of a fixed size. The exporter's own keeps every sample until the next upkeep, and
/// reads the clock once more for each.
#[derive(Default)]
struct Latency {
    /// Samples by the first bucket they fit, the last for what fits none.
    buckets: [AtomicU64; LATENCY_BUCKETS.len() + 1],
    sum_ns: AtomicU64,
}

impl Latency {
    fn record(&self, took: Duration) {
        let nanos = took.as_nanos() as u64;
        let bucket = LATENCY_BUCKETS.iter().take_while(|(bound, _)| *bound < nanos).count();
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    fn render(&self, to: &mut String) {
        use std::fmt::Write;
        let name = names::LATENCY;
        let mut count = 0;
        let _ =
            writeln!(to, "# HELP {name} Time from an event to its answer\n# TYPE {name} histogram");
        let bounds = LATENCY_BUCKETS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(to, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(to, "{name}_sum {sum}\n{name}_count {count}");
    }
}

/// How often a line tells of the same trouble at most.
const LINE_EVERY: Duration = Duration::from_secs(60);

impl Telemetry {
    /// Telemetry with metrics of its own.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, describe);
        let handles = || {
            let events = Kind::ALL.map(|kind| counter!(names::EVENTS, "event" => kind.name()));
            let passes = counter!(names::DECISIONS, "action" => "pass", "reason" => "none",
                "limit" => "none");
            let failures = Failure::ALL.map(|f| counter!(names::FAILURES, "kind" => f.name()));
            let (sessions, suspended) = (gauge!(names::SESSIONS), gauge!(names::SUSPENDED));
            let suspended = (suspended, gauge!(names::DOUBTED));
            (events, passes, failures, sessions, counter!(names::STRESS), suspended)
        };
        let (events, passes, failures, sessions, stress, (suspended, doubted)) =
            with_local_recorder(&recorder, handles);
        with_local_recorder(&recorder, || {
            gauge!(names::BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        });
        Self {
            recorder,
            events,
            passes,
            latency: Latency::default(),
            sessions,
            stress,
            suspended,
            doubted,
            told_doubted: AtomicBool::new(false),
            told_suspended: AtomicBool::new(false),
            told_suspended_at: AtomicU64::new(0),
            failures,
            last_told: Default::default(),
            counts: Counts::default(),
            closed: Mutex::default(),
            lifted: Mutex::default(),
        }
    }

    /// A session has begun. It is open only where its end will be seen.
    pub fn session_begun(&self, ends: Ends) {
        if ends == Ends::Seen {
            self.counts.session_begun();
        }
    }

    /// A session has ended.
    pub fn session_ended(&self, ends: Ends) {
        if ends == Ends::Seen {
            self.counts.session_ended();
        }
    }

    /// An MTA asks.
    pub fn asked(&self, now: Time) {
        self.counts.asked(now);
    }

    /// Notes what has been counted so far, once a minute.
    pub fn note(&self, now: Time) {
        self.counts.note(now);
    }

    /// What has been counted in the last hour and since the start.
    pub fn lately(&self) -> Lately {
        self.counts.lately()
    }

    /// An event was answered within `took`.
    pub fn event(&self, kind: Kind, took: Duration) {
        self.events[kind as usize].increment(1);
        self.latency.record(took);
    }

    /// An event passed, and no rule in shadow mode would have had it otherwise.
    pub fn passed(&self) {
        self.counts.passed();
    }

    /// A decision that somebody may ask about: a refusal, or what a shadow would have refused.
    pub fn told(&self, told: &Told<'_>) {
        let decision = told.decision;
        with_local_recorder(&self.recorder, || {
            match decision.strongest() {
                Some(refusal) => {
                    self.counts.refused(refusal.why.reason());
                    self.counts.spoke(refusal);
                    count_refusal(names::DECISIONS, refusal);
                }
                None => self.counts.passed(),
            }
            for refusal in decision.shadowed() {
                self.counts.shadowed(refusal.why.reason());
                self.counts.spoke(refusal);
                count_refusal(names::SHADOWED, refusal);
            }
            for refusal in decision.spared() {
                count_refusal(names::SPARED, refusal);
            }
        });
        if let Some(refusal) = decision.strongest() {
            let others = decision.reasons().get(1..).unwrap_or_default();
            line(told, refusal, refusal.mode.name(), told.wait, others);
        }
        // What shadows would have done is told apart: each has a rule and a wait of its own.
        for refusal in decision.shadowed() {
            line(told, refusal, refusal.mode.name(), refusal.wait, &[]);
        }
        for refusal in decision.spared() {
            line(told, refusal, "spared", refusal.wait, &[]);
        }
    }

    /// Our own trouble: counted, and told at most once a minute for each kind.
    pub fn failed(&self, failure: Failure, now: Time, detail: &dyn std::fmt::Display) {
        self.counts.failed(failure);
        let last = &self.last_told[failure as usize];
        let before = last.load(Ordering::Relaxed);
        let quiet = now.is_within(LINE_EVERY, Time::from_nanos(before));
        let claimed = !quiet
            && last
                .compare_exchange(before, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if claimed {
            let kind = failure.name();
            match failure {
                Failure::Panic | Failure::State => {
                    error!(kind, %detail, "internal error, failing open");
                }
                Failure::Address | Failure::Frame | Failure::Accept | Failure::Log => {
                    warn!(kind, %detail, "internal error, failing open");
                }
            }
        }
    }

    /// A policy request came from a Postfix that is short of processes.
    pub fn under_stress(&self) {
        self.stress.increment(1);
    }

    /// Whether greylisting is suspended now. Its begin and end are told, though not more than once
    /// a minute: where memory is just too small, it comes and goes.
    pub fn greylisting(&self, suspended: bool, now: Time) {
        self.suspended.set(f64::from(u8::from(suspended)));
        let last = Time::from_nanos(self.told_suspended_at.load(Ordering::Relaxed));
        let quiet = now.is_within(LINE_EVERY, last);
        if quiet || self.told_suspended.swap(suspended, Ordering::Relaxed) == suspended {
            return;
        }
        self.told_suspended_at.store(now.as_nanos(), Ordering::Relaxed);
        if suspended {
            warn!(
                "greylisting is suspended: first contacts pass, because triplets are dropped \
                 before their retry; raise max_triplets"
            );
        } else {
            info!("greylisting is resumed");
        }
    }

    /// Whether the wall clock is believed. It is told when that begins and when it ends.
    pub fn clock(&self, at: Moment) {
        let doubted = at.is_doubted();
        self.doubted.set(f64::from(u8::from(doubted)));
        if self.told_doubted.swap(doubted, Ordering::Relaxed) == doubted {
            return;
        }
        if doubted {
            warn!(
                clock = %at.now,
                "the wall clock has jumped, or does not fit the last run: until it is corrected, \
                 for an hour at most, nothing expires"
            );
        } else {
            info!(clock = %at.now, "the wall clock is trusted again");
        }
    }

    /// Settings were read again.
    pub fn reloaded(&self, outcome: &'static str) {
        with_local_recorder(&self.recorder, || {
            counter!(names::RELOADS, "outcome" => outcome).increment(1);
        });
    }

    /// Since when the process has run.
    pub fn started(&self, at: Time) {
        with_local_recorder(&self.recorder, || {
            gauge!(names::STARTED).set(Duration::from_nanos(at.as_nanos()).as_secs_f64());
        });
    }

    /// What tables have come to.
    pub fn table_sizes(&self, sizes: impl Iterator<Item = (&'static str, Size)>) {
        with_local_recorder(&self.recorder, || {
            for (table, size) in sizes {
                gauge!(names::ENTRIES, "table" => table).set(size.entries as f64);
                gauge!(names::MAX_ENTRIES, "table" => table).set(size.max_entries as f64);
                gauge!(names::BYTES, "table" => table).set(size.bytes as f64);
                counter!(names::TURNED_AWAY, "table" => table).absolute(size.turned_away);
                counter!(names::EVICTED, "table" => table).absolute(size.evicted);
            }
        });
    }

    /// What the sensors say, by their names from the settings.
    pub fn sensors(&self, seen: &[Seen], level: Level, shares: [f32; load::STANDINGS]) {
        with_local_recorder(&self.recorder, || {
            gauge!(names::LOAD_LEVEL).set(f64::from(level as u8));
            for (standing, share) in ["suspect", "unknown", "proven"].into_iter().zip(shares) {
                gauge!(names::LOAD_ADMITTED, "standing" => standing).set(f64::from(share));
            }
            for Seen { sample, level } in seen {
                let name = sample.sensor.to_string();
                let on = if sample.reading.is_ok() { 1.0 } else { 0.0 };
                gauge!(names::SENSOR_ON, "sensor" => name.clone()).set(on);
                let reading = sample.reading.as_ref().copied().unwrap_or(f64::NAN);
                gauge!(names::SENSOR, "sensor" => name.clone()).set(reading);
                gauge!(names::SENSOR_LEVEL, "sensor" => name).set(f64::from(*level as u8));
            }
        });
    }

    /// The level has changed.
    pub fn crossed(&self, crossing: &Crossing) {
        let Crossing { from, to, cause } = crossing;
        let sensor = cause.as_ref().map_or("none", |cause| &*cause.sensor).to_owned();
        with_local_recorder(&self.recorder, || {
            counter!(names::CROSSINGS, "level" => to.name(), "sensor" => sensor.clone())
                .increment(1);
        });
        let (level, from) = (to.name(), from.name());
        match cause {
            Some(cause) if to.name() != "normal" => {
                let (value, mark) = (cause.reading, cause.mark);
                warn!(level, from, sensor, value, mark, "load");
            }
            _ => info!(level, from, "load"),
        }
    }

    /// What is closed for maintenance now, scope by scope. Each change is told once.
    pub fn maintenance(&self, scopes: impl Iterator<Item = (Arc<str>, Option<Closure>)>) {
        let mut told = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        for (scope, closure) in scopes {
            with_local_recorder(&self.recorder, || {
                let closed = if closure.is_some() { 1.0 } else { 0.0 };
                gauge!(names::MAINTENANCE, "scope" => scope.to_string()).set(closed);
            });
            let before = match closure {
                Some(closure) => told.insert(scope.clone(), closure),
                None => told.remove(&scope),
            };
            match (before, closure) {
                (before, Some(Closure { until, by })) if before != closure => {
                    let by = by.name();
                    match before {
                        None => info!(%scope, %until, by, "maintenance begins"),
                        Some(_) => info!(%scope, %until, by, "maintenance has another end"),
                    }
                }
                (Some(_), None) => info!(%scope, "maintenance ends"),
                (_, _) => {}
            }
        }
    }

    /// What is taken out by hand now. Each change is told once.
    pub fn lifted(&self, now: &[Lifted]) {
        let mut told = self.lifted.lock().unwrap_or_else(PoisonError::into_inner);
        let bypass = now.iter().any(|lifted| lifted.scope == Scope::Everything);
        with_local_recorder(&self.recorder, || {
            gauge!(names::BYPASS).set(f64::from(u8::from(bypass)));
            for (lifted, taken_out) in
                told.iter().map(|it| (it, 0.0)).chain(now.iter().map(|it| (it, 1.0)))
            {
                if let Scope::Rule(rule) = &lifted.scope {
                    gauge!(names::SHADOWED_BY_HAND, "rule" => rule.to_string()).set(taken_out);
                }
            }
        });
        let lasts = |of: &Lifted| now.iter().any(|lifted| lifted.scope == of.scope);
        for Lifted { scope, .. } in told.iter().filter(|before| !lasts(before)) {
            match scope {
                Scope::Everything => warn!("bypass ends: the rules are in force again"),
                Scope::Rule(rule) => {
                    info!(%rule, "shadow by hand ends: the rule is in force again")
                }
            }
        }
        for Lifted { scope, until, .. } in now.iter().filter(|lifted| !told.contains(lifted)) {
            match scope {
                Scope::Everything => warn!(%until, "bypass: everything passes"),
                Scope::Rule(rule) => {
                    info!(%rule, %until, "shadow by hand: the rule refuses no client")
                }
            }
        }
        *told = now.to_vec();
    }

    /// All counts, as of now.
    pub fn totals(&self) -> Totals {
        self.counts.totals()
    }

    /// Whether what was kept is being read back.
    pub fn state_loading(&self, loading: bool) {
        self.counts.state.loading.store(loading, Ordering::Relaxed);
        with_local_recorder(&self.recorder, || {
            gauge!(names::STATE_LOADING).set(if loading { 1.0 } else { 0.0 });
        });
    }

    /// How many entries have been read back.
    pub fn state_loaded(&self, entries: u64) {
        self.counts.state.loaded.store(entries, Ordering::Relaxed);
        with_local_recorder(&self.recorder, || {
            gauge!(names::STATE_LOADED).set(entries as f64);
        });
    }

    /// So many entries were written down.
    pub fn state_wrote(&self, entries: usize) {
        with_local_recorder(&self.recorder, || {
            counter!(names::STATE_WRITTEN).increment(entries as u64);
        });
    }

    /// Every change before this moment has been written down, and it takes so many bytes.
    pub fn state_written(&self, bytes: u64, up_to: Time) {
        self.counts.state.bytes.store(bytes, Ordering::Relaxed);
        self.counts.state.written_up_to.store(up_to.as_nanos(), Ordering::Relaxed);
        with_local_recorder(&self.recorder, || {
            gauge!(names::STATE_BYTES).set(bytes as f64);
        });
    }

    /// How far what is written down is behind, where anything is.
    pub fn state_behind(&self, entries: usize, now: Time) {
        let Some(up_to) = self.totals().written_up_to else { return };
        let late = if entries == 0 { Duration::ZERO } else { now.since(up_to) };
        with_local_recorder(&self.recorder, || {
            gauge!(names::STATE_BEHIND).set(entries as f64);
            gauge!(names::STATE_BEHIND_SECONDS).set(late.as_secs_f64());
        });
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let Totals { passes, failures, sessions, .. } = self.totals();
        self.passes.absolute(passes);
        self.failures.iter().zip(failures).for_each(|(metric, count)| metric.absolute(count));
        self.sessions.set(sessions as f64);
        let mut text = in_order(&self.recorder.handle().render());
        self.latency.render(&mut text);
        text
    }

    /// Folds recorded latencies into their buckets. Every few seconds, or they pile up.
    pub fn upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

/// The exporter's text by name and labels: it comes in the order of its hash maps, another one at
/// each start.
fn in_order(text: &str) -> String {
    let mut families: Vec<_> = text
        .split("\n\n")
        .map(|family| {
            let (mut samples, mut head): (Vec<_>, Vec<_>) =
                family.lines().partition(|line| !line.starts_with('#'));
            samples.sort_unstable();
            head.retain(|line| !line.is_empty());
            (head, samples)
        })
        .filter(|(head, samples)| !head.is_empty() || !samples.is_empty())
        .collect();
    families.sort_unstable();
    let lines = families.into_iter().flat_map(|(head, samples)| head.into_iter().chain(samples));
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn count_refusal(metric: &'static str, refusal: &Refusal) {
    let (action, reason) = (refusal.action().name(), refusal.why.reason().name());
    let limit = refusal.limit.as_deref().unwrap_or("none").to_owned();
    counter!(metric, "action" => action, "reason" => reason, "limit" => limit).increment(1);
}

/// The client begins the line. What it chose stands last, and is recorded as a string, never
/// formatted into one, so that the subscriber quotes it.
fn line(told: &Told<'_>, refusal: &Refusal, mode: &str, wait: Duration, others: &[Refusal]) {
    let others: Vec<_> = others.iter().map(Refusal::rule).collect();
    let acts = mode == Mode::Enforce.name();
    let reply = told.reply.filter(|_| acts).map(ToString::to_string);
    info!(
        client = %told.client,
        action = %told.decision.action().name(),
        would = (!acts).then(|| display(refusal.action().name())),
        reason = %refusal.why.reason().name(),
        limit = refusal.limit.as_deref().map(display),
        mode = %mode,
        event = %told.event.name(),
        value = refusal.why.value().to_string(),
        threshold = refusal.why.threshold().to_string(),
        wait_ms = wait.as_nanos().div_ceil(1_000_000) as u64,
        also = (!others.is_empty()).then(|| others.join(",")),
        id = %told.id,
        name = told.name.map(harmless).as_deref(),
        user = told.user.map(harmless).as_deref(),
        helo = told.helo.map(harmless).as_deref(),
        sender = told.sender.map(harmless).as_deref(),
        recipient = told.recipient.map(harmless).as_deref(),
        reply,
    );
}

/// Names of metrics.
mod names {
    pub(super) const EVENTS: &str = "postpone_events_total";
    pub(super) const DECISIONS: &str = "postpone_decisions_total";
    pub(super) const SHADOWED: &str = "postpone_shadowed_total";
    pub(super) const SPARED: &str = "postpone_spared_total";
    pub(super) const LATENCY: &str = "postpone_decision_seconds";
    pub(super) const SESSIONS: &str = "postpone_sessions_open";
    pub(super) const ENTRIES: &str = "postpone_table_entries";
    pub(super) const MAX_ENTRIES: &str = "postpone_table_max_entries";
    pub(super) const BYTES: &str = "postpone_table_bytes";
    pub(super) const TURNED_AWAY: &str = "postpone_table_turned_away_total";
    pub(super) const EVICTED: &str = "postpone_table_evicted_total";
    pub(super) const LOAD_LEVEL: &str = "postpone_load_level";
    pub(super) const LOAD_ADMITTED: &str = "postpone_load_admitted_ratio";
    pub(super) const SENSOR: &str = "postpone_load_sensor";
    pub(super) const SENSOR_ON: &str = "postpone_load_sensor_on";
    pub(super) const SENSOR_LEVEL: &str = "postpone_load_sensor_level";
    pub(super) const CROSSINGS: &str = "postpone_load_crossings_total";
    pub(super) const MAINTENANCE: &str = "postpone_maintenance";
    pub(super) const BYPASS: &str = "postpone_bypass";
    pub(super) const SHADOWED_BY_HAND: &str = "postpone_shadowed_by_hand";
    pub(super) const STATE_LOADING: &str = "postpone_state_loading";
    pub(super) const STATE_LOADED: &str = "postpone_state_loaded_entries";
    pub(super) const STATE_WRITTEN: &str = "postpone_state_written_total";
    pub(super) const STATE_BYTES: &str = "postpone_state_bytes";
    pub(super) const STATE_BEHIND: &str = "postpone_state_behind_entries";
    pub(super) const STATE_BEHIND_SECONDS: &str = "postpone_state_behind_seconds";
    pub(super) const FAILURES: &str = "postpone_failures_total";
    pub(super) const STRESS: &str = "postpone_policy_requests_under_stress_total";
    pub(super) const SUSPENDED: &str = "postpone_greylist_suspended";
    pub(super) const DOUBTED: &str = "postpone_clock_doubted";
    pub(super) const RELOADS: &str = "postpone_reloads_total";
    pub(super) const BUILD: &str = "postpone_build_info";
    /// As Prometheus's own clients call it.
    pub(super) const STARTED: &str = "process_start_time_seconds";
}

fn describe() {
    describe_counter!(names::EVENTS, "SMTP events reported by MTAs");
    describe_counter!(names::DECISIONS, "Decisions by action, reason and limit");
    describe_counter!(names::SHADOWED, "Refusals that rules in shadow mode would have made");
    describe_counter!(names::SPARED, "Refusals spared because the MTA would have hung up");
    describe_gauge!(names::SESSIONS, "SMTP sessions open now");
    describe_gauge!(names::ENTRIES, "Entries of each table");
    describe_gauge!(names::MAX_ENTRIES, "Entries that each table may hold");
    describe_gauge!(names::BYTES, "Memory that each table takes, spare capacity included");
    describe_counter!(names::TURNED_AWAY, "New entries a full table did not store");
    describe_counter!(names::EVICTED, "Entries of a full table that made room for new ones");
    describe_gauge!(names::LOAD_LEVEL, "0 normal, 1 elevated, 2 high, 3 critical");
    describe_gauge!(names::LOAD_ADMITTED, "The part of new sessions that load accepts");
    describe_gauge!(names::SENSOR, "The reading of a sensor of the load, in its own unit");
    describe_gauge!(names::SENSOR_ON, "0 if a sensor of the load cannot be read");
    describe_gauge!(names::SENSOR_LEVEL, "The level that a sensor asks for");
    describe_counter!(
        names::CROSSINGS,
        "Changes of the load's level, and the sensor that caused it"
    );
    describe_gauge!(names::MAINTENANCE, "1 while new sessions are refused for maintenance");
    describe_gauge!(names::BYPASS, "1 while everything passes by `ctl bypass on`");
    describe_gauge!(names::SHADOWED_BY_HAND, "1 while a rule refuses no client by `ctl shadow`");
    describe_gauge!(names::STATE_LOADING, "1 while saved state is being read back");
    describe_gauge!(names::STATE_LOADED, "Entries that were read back at the start");
    describe_counter!(names::STATE_WRITTEN, "Entries written to disk");
    describe_gauge!(names::STATE_BYTES, "Bytes that state takes on disk");
    describe_gauge!(names::STATE_BEHIND, "Changed entries that are not on disk yet");
    describe_gauge!(names::STATE_BEHIND_SECONDS, "The longest time that such a change has waited");
    describe_counter!(names::FAILURES, "Internal errors, in which mail passes");
    describe_counter!(names::STRESS, "Policy requests of a Postfix that is short of processes");
    describe_gauge!(
        names::SUSPENDED,
        "1 while first contacts pass because triplets are dropped before their retry"
    );
    describe_gauge!(names::DOUBTED, "1 while the wall clock has jumped and nothing expires");
    describe_counter!(names::RELOADS, "Reloads of the settings");
    describe_gauge!(names::BUILD, "The running version");
    describe_gauge!(names::STARTED, "When the process was started, in seconds since 1970");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn latencies_are_counted_up_to_each_bound() {
        let telemetry = Telemetry::new();
        for nanos in [500, 501, 1_000, 200_000_000] {
            telemetry.event(Kind::Mail, Duration::from_nanos(nanos));
        }
        let text = telemetry.render();
        for line in [
            "# TYPE postpone_decision_seconds histogram",
            "postpone_decision_seconds_bucket{le=\"0.0000005\"} 1",
            "postpone_decision_seconds_bucket{le=\"0.000001\"} 3",
            "postpone_decision_seconds_bucket{le=\"0.1\"} 3",
            "postpone_decision_seconds_bucket{le=\"+Inf\"} 4",
            "postpone_decision_seconds_sum 0.200002001",
            "postpone_decision_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn greylisting_that_comes_and_goes_is_told_once_a_minute_and_in_the_end_as_it_is() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let written = lines.clone();
        let writer = move || Written(written.clone());
        let log = tracing_subscriber::fmt().with_writer(writer).finish();
        let told = |telemetry: &Telemetry, secs: u64, suspended| {
            telemetry.greylisting(suspended, Time::from_secs(1_800_000_000 + secs));
            let text = String::from_utf8(std::mem::take(&mut *lines.lock().unwrap())).unwrap();
            text.split("greylisting is ").nth(1).map(|word| word[..7].to_owned())
        };
        tracing::subscriber::with_default(log, || {
            let telemetry = Telemetry::new();
            assert_eq!(told(&telemetry, 0, false), None, "nothing has happened");
            assert_eq!(told(&telemetry, 1, true).as_deref(), Some("suspend"));
            assert!(telemetry.render().contains("postpone_greylist_suspended 1"));
            for secs in 2..61 {
                assert_eq!(told(&telemetry, secs, secs % 2 == 0), None);
            }
            assert_eq!(told(&telemetry, 61, false).as_deref(), Some("resumed"));
            assert_eq!(told(&telemetry, 62, true), None);
            assert_eq!(told(&telemetry, 130, true).as_deref(), Some("suspend"), "it still is");
            assert_eq!(told(&telemetry, 200, true), None, "it has been told");
            assert_eq!(told(&telemetry, 201, false).as_deref(), Some("resumed"));
            assert!(telemetry.render().contains("postpone_greylist_suspended 0"));
        });
    }

    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_bound_is_written_as_what_it_is() {
        for (nanos, text) in LATENCY_BUCKETS {
            assert_eq!(text.parse::<f64>().map(|secs| (secs * 1e9).round() as u64), Ok(nanos));
        }
    }
}
