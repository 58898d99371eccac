//! Does a client do more of something than it may: at once, or in a time?
//!
//! Sessions at once are counted by gauges that the end of the session gives back; everything else
//! by one GCRA meter for each rule and key.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Bounds;
use super::decision::{Decision, Refusal, Urgency, Why};
use super::signal::{Context, Ledger, Round, Signal};
use crate::clock::Time;
use crate::meter::gcra::Gcra;
use crate::meter::key::{Key, KeyMaker, Secret};
use crate::meter::quota::{Quota, Unit};
use crate::meter::record::Record;
use crate::meter::table::Table;
use crate::meter::units::Span;
use crate::setting::{Complaint, Mode};
use crate::smtp::event::{Event, Fate};
use crate::smtp::template::Template;

/// `[[limit]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Its name in logs and metrics, unique.
    pub name: String,
    /// What is counted.
    pub count: Count,
    /// What it is counted under.
    #[serde(default = "per_network")]
    pub per: Vec<Dimension>,
    /// How many at once; for sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<NonZeroU32>,
    /// How much in a time; for everything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// The wait told where none can be computed; for sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Span>,
    /// What is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Template>,
    /// Whether it acts.
    #[serde(default)]
    pub mode: Mode,
}

fn per_network() -> Vec<Dimension> {
    vec![Dimension::Network]
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// Sessions open at once.
    Sessions,
    /// New sessions.
    Connections,
    /// Messages: charged at MAIL, given back if no message came.
    Messages,
    /// Recipients that we and the MTA accept.
    Recipients,
    /// Bytes: the declared size at MAIL, the true one at the end of the message if it is told.
    Bytes,
}

impl Count {
    /// Its name in settings.
    const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Connections => "connections",
            Self::Messages => "messages",
            Self::Recipients => "recipients",
            Self::Bytes => "bytes",
        }
    }

    /// How much of it an event amounts to; nothing at events where it is not counted.
    fn amount(self, event: &Event) -> Option<u64> {
        match (self, event) {
            (Self::Sessions | Self::Connections, Event::Connect)
            | (Self::Messages, Event::Mail { .. })
            | (Self::Recipients, Event::Recipient { fate: Fate::Offered, .. }) => Some(1),
            (Self::Bytes, Event::Mail { size, .. }) => Some(size.unwrap_or(0)),
            _ => None,
        }
    }

    const fn default_reply(self) -> &'static str {
        match self {
            Self::Sessions => {
                "421 4.7.0 {hostname} Too many concurrent connections from your network; \
                 retry in {wait} seconds"
            }
            Self::Connections => {
                "421 4.7.0 {hostname} Too many connections from your network; \
                 retry in {wait} seconds"
            }
            Self::Messages => {
                "421 4.7.0 {hostname} Too many messages from your network; \
                 retry in {wait} seconds"
            }
            Self::Recipients => {
                "452 4.5.3 {hostname} Too many recipients from your network; \
                 retry in {wait} seconds"
            }
            Self::Bytes => {
                "421 4.7.0 {hostname} Too much data from your network; \
                 retry in {wait} seconds"
            }
        }
    }
}

/// What a limit counts under. Several make one key; none is the whole host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The client's network.
    Network,
}

/// The wait told by a limit of sessions that names none.
const SESSIONS_RETRY: Span = Span::secs(60);

impl Params {
    fn of(name: &str, count: Count) -> Self {
        Self {
            name: name.into(),
            count,
            per: per_network(),
            max: None,
            quota: None,
            retry: None,
            reply: None,
            mode: Mode::Enforce,
        }
    }

    /// The limits that hold where none are set. Each is several times what large senders allow
    /// themselves towards one host, as their published shaping says.
    pub fn built_in() -> Vec<Self> {
        let rate = |name, count, quota| Self { quota: Some(quota), ..Self::of(name, count) };
        vec![
            Self { max: NonZeroU32::new(50), ..Self::of("sessions", Count::Sessions) },
            rate("connections", Count::Connections, Quota::events(600, 60).with_burst(1_200)),
            rate("messages", Count::Messages, Quota::events(6_000, 60).with_burst(12_000)),
            rate("recipients", Count::Recipients, Quota::events(30_000, 60).with_burst(60_000)),
        ]
    }

    /// What makes no sense.
    pub fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut error = |key, message: String| complaints.push(Complaint::error(key, message));
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(word) {
            let expected = "expected 1 to 64 letters, digits, `-`, `_` or `.`";
            error("name", format!("{expected}, not {:?}", self.name));
        }
        let count = self.count.name();
        match (self.count, self.max, self.quota) {
            (Count::Sessions, None, _) => error("count", "sessions need `max`".into()),
            (Count::Sessions, Some(_), Some(_)) => {
                error("quota", "sessions take `max`, not `quota`".into());
            }
            (Count::Sessions, Some(_), None) => {}
            (_, Some(_), _) => {
                error("max", format!("{count} take `quota`, not `max`"));
            }
            (_, None, None) => error("count", format!("{count} need `quota`")),
            (Count::Bytes, None, Some(quota)) if quota.unit() == Unit::Events => {
                error("quota", r#"expected sizes, such as "10MiB/1m burst 50MiB""#.into());
            }
            (_, None, Some(quota)) if quota.unit() == Unit::Bytes && self.count != Count::Bytes => {
                error(
                    "quota",
                    format!(r#"expected a number of {count}, such as "60/1m burst 120""#),
                );
            }
            (_, None, Some(_)) => {}
        }
        if self.retry.is_some() && self.count != Count::Sessions {
            error("retry", format!("{count} compute their wait; `retry` is for sessions"));
        }
        let misgiving = self.reply.as_ref().and_then(Template::misgiving);
        complaints.extend(misgiving.map(|message| Complaint::warning("reply", message)));
        complaints
    }
}

/// What all limits remember. Meters and gauges are kept under the name and count of their limit,
/// so that they survive a reload.
pub struct Memory {
    secret: Secret,
    /// Bound: four for each of `max_clients`. Beyond it a client not known yet is not counted.
    meters: Arc<Table<Gcra>>,
    /// Bound: `max_clients`. Beyond it sessions of a client not known yet are not counted.
    gauges: Arc<Table<Gauge>>,
}

impl Memory {
    pub(super) fn new(secret: &Secret, bounds: Bounds) -> Self {
        Self {
            secret: secret.clone(),
            meters: Arc::new(Table::new(bounds.max_clients.saturating_mul(4))),
            gauges: Arc::new(Table::new(bounds.max_clients)),
        }
    }

    pub(super) fn signal(&self, limits: &[Params]) -> Limits {
        let limits = limits.iter().filter(|params| params.mode != Mode::Off);
        Limits {
            limits: limits.map(|params| Limit::new(params, &self.secret)).collect(),
            meters: self.meters.clone(),
            gauges: self.gauges.clone(),
        }
    }

    pub(super) fn sweep(&self, now: Time) {
        self.meters.sweep(now);
        self.gauges.sweep(now);
    }

    pub(super) fn sizes(&self) -> [(&'static str, usize, u64); 2] {
        [
            ("meters", self.meters.len(), self.meters.turned_away()),
            ("gauges", self.gauges.len(), self.gauges.turned_away()),
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
    fn forgettable(&self, _: Time) -> bool {
        self.open == 0
    }
}

/// A place in a gauge.
#[derive(Debug)]
pub(super) struct Hold {
    key: Key,
    admitted: bool,
}

/// A charge that a message will confirm.
#[derive(Debug)]
pub(super) struct Charge {
    key: Key,
    quota: Quota,
    amount: u64,
    /// The meter as the charge left it.
    then: Gcra,
}

/// The signal: every limit in force.
pub struct Limits {
    limits: Vec<Limit>,
    meters: Arc<Table<Gcra>>,
    gauges: Arc<Table<Gauge>>,
}

struct Limit {
    name: Arc<str>,
    mode: Mode,
    count: Count,
    per: Vec<Dimension>,
    measure: Measure,
    template: Arc<Template>,
    /// Key maker that has the limit's name and count in it already.
    keys: KeyMaker,
}

enum Measure {
    AtOnce { max: u32, retry: Duration },
    InTime(Quota),
}

impl Limit {
    fn new(params: &Params, secret: &Secret) -> Self {
        let measure = match params.quota {
            Some(quota) => Measure::InTime(quota),
            None => Measure::AtOnce {
                max: params.max.map_or(u32::MAX, NonZeroU32::get),
                retry: params.retry.unwrap_or(SESSIONS_RETRY).duration(),
            },
        };
        let template = params.reply.clone().unwrap_or_else(|| {
            params.count.default_reply().parse().expect("a test reads every default reply")
        });
        Self {
            name: params.name.as_str().into(),
            mode: params.mode,
            count: params.count,
            per: params.per.clone(),
            measure,
            template: Arc::new(template),
            keys: secret.key(&params.name).part(params.count.name().as_bytes()),
        }
    }

    fn key(&self, cx: &Context<'_>) -> Key {
        let add = |maker: KeyMaker, dimension: &Dimension| match dimension {
            Dimension::Network => maker.part(b"network").part(&cx.network.octets()),
        };
        self.per.iter().fold(self.keys.clone(), add).finish()
    }

    /// Whether it holds even for exempt clients: it protects the host and not its mailboxes.
    fn whole_host(&self) -> bool {
        self.per.is_empty()
    }

    fn refusal(&self, why: Why, wait: Duration) -> Refusal {
        let refusal = Refusal::new(self.mode, &self.template, why).waiting(wait);
        let binds_exempt = self.whole_host();
        Refusal { limit: Some(self.name.clone()), binds_exempt, ..refusal }
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

    fn assess_rate(&self, meter: Gcra, quota: &Quota, now: Time, amount: u64) -> Option<Refusal> {
        let wait = meter.wait(quota, now, amount);
        let used = meter.used(quota, now).saturating_add(amount);
        (!wait.is_zero()).then(|| self.refusal(Why::Rate { used, quota: *quota }, wait))
    }
}

impl Limits {
    /// The limits that count this event, with what it amounts to.
    fn counting(&self, cx: &Context<'_>, exempt: bool) -> impl Iterator<Item = (&Limit, u64)> {
        self.limits
            .iter()
            .filter(move |limit| !exempt || limit.whole_host())
            .filter_map(|limit| Some((limit, limit.count.amount(cx.event)?)))
    }

    fn charge(
        &self,
        limit: &Limit,
        quota: &Quota,
        amount: u64,
        cx: &Context<'_>,
    ) -> Option<Charge> {
        let key = limit.key(cx);
        let then = self.meters.write(key, |meter| {
            *meter = meter.charged(quota, cx.now, amount);
            *meter
        });
        // A full table counts itself; the event passes uncounted.
        then.ok().map(|then| Charge { key, quota: *quota, amount, then })
    }

    fn give_back(&self, charge: Charge, now: Time) {
        let Charge { key, quota, amount, then } = charge;
        self.meters.write_known(key, |meter| *meter = meter.given_back(&quota, now, amount, then));
    }

    fn hold(&self, limit: &Limit, admitted: bool, cx: &Context<'_>) -> Option<Hold> {
        let key = limit.key(cx);
        let held = self.gauges.write(key, |gauge| {
            gauge.open += 1;
            gauge.admitted += u32::from(admitted);
        });
        held.ok().map(|()| Hold { key, admitted })
    }

    fn release(&self, hold: Hold) {
        self.gauges.write_known(hold.key, |gauge| {
            gauge.open -= 1;
            gauge.admitted -= u32::from(hold.admitted);
        });
    }

    /// The message has come: what it was charged stands, bytes by their true size.
    fn confirm(&self, charges: Vec<Charge>, size: Option<u64>, now: Time) {
        let Some(size) = size else { return };
        for charge in charges.into_iter().filter(|charge| charge.quota.unit() == Unit::Bytes) {
            let Charge { key, quota, amount, then } = charge;
            self.meters.write_known(key, |meter| {
                *meter = meter.given_back(&quota, now, amount, then).charged(&quota, now, size);
            });
        }
    }
}

impl Signal for Limits {
    fn name(&self) -> &'static str {
        "limit"
    }

    fn binds_exempt(&self) -> bool {
        self.limits.iter().any(Limit::whole_host)
    }

    fn assess(&self, cx: &Context<'_>, _: &Ledger, round: &mut Round) {
        for (limit, amount) in self.counting(cx, round.exemption().is_some()) {
            let key = limit.key(cx);
            let refusal = match &limit.measure {
                Measure::AtOnce { max, retry } => self.gauges.read(key, |gauge| {
                    gauge.and_then(|gauge| limit.assess_sessions(gauge, *max, *retry))
                }),
                Measure::InTime(quota) => {
                    let meter = self.meters.read(key, |meter| meter.copied().unwrap_or_default());
                    limit.assess_rate(meter, quota, cx.now, amount)
                }
            };
            if let Some(refusal) = refusal {
                round.refuse(refusal);
            }
        }
    }

    fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        match cx.event {
            Event::EndOfMessage { size } => {
                self.confirm(std::mem::take(&mut ledger.charges), *size, cx.now);
            }
            Event::Abort | Event::Disconnect => {
                ledger.charges.drain(..).for_each(|charge| self.give_back(charge, cx.now));
            }
            Event::Connect
            | Event::Helo { .. }
            | Event::Mail { .. }
            | Event::Recipient { .. }
            | Event::Data => {}
        }
        if matches!(cx.event, Event::Disconnect) {
            ledger.holds.drain(..).for_each(|hold| self.release(hold));
        }
        for (limit, amount) in self.counting(cx, decision.exemption().is_some()) {
            match &limit.measure {
                // Closed at once, a session is gone before it counts.
                Measure::AtOnce { .. } if decision.at_once() => {}
                Measure::AtOnce { .. } => {
                    ledger.holds.extend(self.hold(limit, decision.passes(), cx));
                }
                // Nothing is charged for what is refused.
                Measure::InTime(_) if !decision.passes() => {}
                Measure::InTime(quota) => {
                    let charge = self.charge(limit, quota, amount, cx);
                    let returnable = matches!(limit.count, Count::Messages | Count::Bytes);
                    ledger.charges.extend(charge.filter(|_| returnable));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_reply_can_be_read_and_the_built_in_limits_make_sense() {
        for count in
            [Count::Sessions, Count::Connections, Count::Messages, Count::Recipients, Count::Bytes]
        {
            let template = count.default_reply().parse::<Template>().unwrap();
            assert_eq!(template.misgiving(), None);
        }
        for limit in Params::built_in() {
            assert_eq!(limit.check(), []);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_an_error_at_its_key() {
        let quota = |text: &str| Some(text.parse().unwrap());
        let limit = |count| Params::of("test", count);
        for (params, key) in [
            (limit(Count::Sessions), "count"),
            (limit(Count::Messages), "count"),
            (Params { max: NonZeroU32::new(1), ..limit(Count::Messages) }, "max"),
            (Params { quota: quota("6/1m"), ..limit(Count::Bytes) }, "quota"),
            (Params { quota: quota("6MiB/1m"), ..limit(Count::Messages) }, "quota"),
            (
                Params {
                    quota: quota("6/1m"),
                    retry: Some(SESSIONS_RETRY),
                    ..limit(Count::Messages)
                },
                "retry",
            ),
            (
                Params { max: NonZeroU32::new(1), quota: quota("6/1m"), ..limit(Count::Sessions) },
                "quota",
            ),
            (Params { name: "a b".into(), quota: quota("6/1m"), ..limit(Count::Messages) }, "name"),
        ] {
            let complaints = params.check();
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert_eq!(complaints[0].key, key, "{complaints:?}");
        }
    }
}
