//! `[[limit]]`: how a limit is written, and what makes no sense.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::dimension::Dimension;
use super::penalty;
use crate::meter::quota::{Quota, Unit};
use crate::meter::units::Span;
use crate::policy::when::When;
use crate::setting::{Complaint, Mode};
use crate::smtp::event::Kind;
use crate::smtp::reply::{Action, Code};
use crate::smtp::template::{Placeholder, Template};

/// One `[[limit]]`.
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
    /// How many at once, or how many different values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<NonZeroU32>,
    /// The time in which different values are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// How much in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// The wait told where none can be computed; for sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Span>,
    /// What is charged.
    #[serde(default)]
    pub charge: Charging,
    /// A longer wait for who keeps coming over the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty: Option<penalty::Params>,
    /// To whom and to what it applies.
    #[serde(default, skip_serializing_if = "When::is_always")]
    pub when: When,
    /// Whether it acts.
    #[serde(default)]
    pub mode: Mode,
    /// What is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Template>,
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
    /// Recipients that the MTA has refused as unknown.
    UnknownRecipients,
    /// Different envelope senders.
    DistinctSenders,
    /// Different envelope recipients.
    DistinctRecipients,
    /// Different HELO names.
    DistinctHelos,
}

/// How a count is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured {
    /// `max` at once.
    AtOnce,
    /// A `quota` in a time.
    InTime,
    /// `max` different values in a `window`.
    Distinct,
}

/// What is charged to a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Charging {
    /// What passes.
    #[default]
    Accepted,
    /// What is refused as well: who keeps trying keeps itself out.
    Attempts,
}

impl Count {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Sessions,
        Self::Connections,
        Self::Messages,
        Self::Recipients,
        Self::Bytes,
        Self::UnknownRecipients,
        Self::DistinctSenders,
        Self::DistinctRecipients,
        Self::DistinctHelos,
    ];

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Connections => "connections",
            Self::Messages => "messages",
            Self::Recipients => "recipients",
            Self::Bytes => "bytes",
            Self::UnknownRecipients => "unknown_recipients",
            Self::DistinctSenders => "distinct_senders",
            Self::DistinctRecipients => "distinct_recipients",
            Self::DistinctHelos => "distinct_helos",
        }
    }

    /// How it is measured.
    pub const fn measured(self) -> Measured {
        match self {
            Self::Sessions => Measured::AtOnce,
            Self::DistinctSenders | Self::DistinctRecipients | Self::DistinctHelos => {
                Measured::Distinct
            }
            Self::Connections
            | Self::Messages
            | Self::Recipients
            | Self::Bytes
            | Self::UnknownRecipients => Measured::InTime,
        }
    }

    /// The event at which it is counted, if the whole key is known by then.
    pub(super) const fn counted_at(self) -> Kind {
        match self {
            Self::Sessions | Self::Connections => Kind::Connect,
            Self::DistinctHelos => Kind::Helo,
            Self::Messages | Self::Bytes | Self::DistinctSenders => Kind::Mail,
            Self::Recipients | Self::DistinctRecipients | Self::UnknownRecipients => {
                Kind::Recipient
            }
        }
    }

    /// Whether it can be counted later, at the event at which its whole key is known.
    const fn can_be_late(self) -> bool {
        matches!(self, Self::Messages | Self::Bytes | Self::DistinctSenders)
    }

    /// What there is too much of, in words.
    const fn phrase(self) -> &'static str {
        match self {
            Self::Sessions => "Too many concurrent connections",
            Self::Connections => "Too many connections",
            Self::Messages => "Too many messages",
            Self::Recipients => "Too many recipients",
            Self::Bytes => "Too much data",
            Self::UnknownRecipients => "Too many errors (unknown recipients)",
            Self::DistinctSenders => "Too many different senders",
            Self::DistinctRecipients => "Too many different recipients",
            Self::DistinctHelos => "Too many different HELO names",
        }
    }
}

impl Params {
    /// A limit with nothing but its name, what it counts, and `per = ["network"]`.
    pub fn of(name: &str, count: Count) -> Self {
        Self {
            name: name.into(),
            count,
            per: per_network(),
            max: None,
            window: None,
            quota: None,
            retry: None,
            charge: Charging::Accepted,
            penalty: None,
            when: When::default(),
            mode: Mode::Enforce,
            reply: None,
        }
    }

    /// The limits that hold where none are set. None is below what large senders allow themselves
    /// towards one host, as their published shaping says. Forty sessions, because at fifty a
    /// default Postfix hangs up by itself, without a time to come back.
    pub fn built_in() -> Vec<Self> {
        let rate = |name, count, quota| Self { quota: Some(quota), ..Self::of(name, count) };
        vec![
            Self { max: NonZeroU32::new(40), ..Self::of("sessions", Count::Sessions) },
            rate("connections", Count::Connections, Quota::events(600, 60).with_burst(1_200)),
            rate("messages", Count::Messages, Quota::events(6_000, 60).with_burst(12_000)),
            rate("recipients", Count::Recipients, Quota::events(30_000, 60).with_burst(60_000)),
        ]
    }

    /// What it says: its own reply, or one that names what is counted and under what.
    ///
    /// Recipients are told 452, the surplus alone (RFC 5321 section 4.5.3.1.10); what is refused
    /// at RCPT for one recipient 451; everything else 421.
    pub fn template(&self) -> Template {
        if let Some(reply) = &self.reply {
            return reply.clone();
        }
        let codes = match (self.count, self.counted_at()) {
            (Count::Recipients | Count::DistinctRecipients, _) => "452 4.5.3",
            (Count::UnknownRecipients, _) => "421 4.7.0",
            (_, Kind::Recipient) => "451 4.7.1",
            _ => "421 4.7.0",
        };
        let whom = self.per.iter().max().map_or("at this server", |dimension| dimension.phrase());
        let what = self.count.phrase();
        let text = format!("{codes} {{hostname}} {what} {whom}; retry in {{wait}} seconds");
        text.parse().expect("a test reads the default reply of every count and dimension")
    }

    /// The first event at which it is counted and its whole key is known.
    pub(super) fn counted_at(&self) -> Kind {
        let known = self.per.iter().map(|dimension| dimension.known_at());
        known.chain([self.count.counted_at()]).max().unwrap_or(Kind::Connect)
    }

    /// What makes no sense.
    pub fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(word) {
            let expected = "expected 1 to 64 letters, digits, `-`, `_` or `.`";
            complaints.push(Complaint::error("name", format!("{expected}, not {:?}", self.name)));
        }
        complaints.extend(self.check_measure());
        complaints.extend(self.check_key());
        complaints.extend(self.check_when());
        complaints.extend(self.penalty.as_ref().and_then(penalty::Params::check));
        complaints.extend(self.check_reply());
        complaints
    }

    fn check_measure(&self) -> Vec<Complaint> {
        let count = self.count.name();
        let takes = |keys: [&'static str; 3]| {
            let given = [
                ("max", self.max.is_some()),
                ("window", self.window.is_some()),
                ("quota", self.quota.is_some()),
            ];
            let missing = keys.into_iter().find(|k| given.contains(&(k, false)));
            let missing =
                missing.map(|key| Complaint::error("count", format!("{count} need `{key}`")));
            let of_no_use = given.into_iter().filter(|(key, given)| *given && !keys.contains(key));
            let wanted = keys.iter().find(|key| !key.is_empty()).copied().unwrap_or_default();
            let of_no_use = of_no_use.map(|(key, _)| {
                Complaint::error(key, format!("{count} take `{wanted}`, not `{key}`"))
            });
            // What is there in place of what is missing says it all.
            let of_no_use: Vec<_> = of_no_use.collect();
            if of_no_use.is_empty() { missing.into_iter().collect() } else { of_no_use }
        };
        let mut complaints = match self.count.measured() {
            Measured::AtOnce => takes(["max", "", ""]),
            Measured::InTime => takes(["quota", "", ""]),
            Measured::Distinct => takes(["max", "window", ""]),
        };
        if self.retry.is_some() && self.count != Count::Sessions {
            let message = format!("{count} compute their wait; `retry` is for sessions");
            complaints.push(Complaint::error("retry", message));
        }
        if self.window.is_some_and(|window| window.duration().is_zero()) {
            complaints.push(Complaint::error("window", "expected a time longer than zero"));
        }
        let wrong_unit = self.quota.and_then(|quota| match (self.count, quota.unit()) {
            (Count::Bytes, Unit::Events) => {
                Some(r#"expected sizes, such as "10MiB/1m burst 50MiB""#.to_owned())
            }
            (Count::Bytes, Unit::Bytes) | (_, Unit::Events) => None,
            (_, Unit::Bytes) => {
                Some(format!(r#"expected a number of {count}, such as "60/1m burst 120""#))
            }
        });
        complaints.extend(wrong_unit.map(|message| Complaint::error("quota", message)));
        if self.charge == Charging::Attempts && self.count.measured() != Measured::InTime {
            let message = format!("{count} are not charged; `charge` is for limits with a quota");
            complaints.push(Complaint::error("charge", message));
        }
        complaints
    }

    fn check_key(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let count = self.count.name();
        if self.counted_at() > self.count.counted_at() && !self.count.can_be_late() {
            let late = self.per.iter().filter(|d| d.known_at() > self.count.counted_at());
            let late: Vec<_> = late.map(ToString::to_string).collect();
            let message = format!(
                "{} is not known yet at {}, when {count} are counted",
                late.join(", "),
                self.count.counted_at().name()
            );
            complaints.push(Complaint::error("per", message));
        }
        let forgeable = self.per.iter().any(|dimension| dimension.forgeable());
        if forgeable && !self.per.iter().any(|dimension| dimension.identifies()) {
            let message = "any client could use up this quota in another's name: expected \
                           network, pool or user as well";
            complaints.push(Complaint::error("per", message));
        }
        let mut sorted = self.per.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            complaints.push(Complaint::error("per", "expected each only once"));
        }
        for dimension in &self.per {
            if let Dimension::Wider(bits) = dimension {
                let (family, other) = if *bits <= 32 { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
                let message = format!(
                    "{dimension} is for {family} clients; {other} clients count under their own \
                     network"
                );
                complaints.push(Complaint::warning("per", message));
            }
        }
        complaints
    }

    fn check_when(&self) -> Option<Complaint> {
        let (known_at, condition) = self.when.known_at();
        (known_at > self.counted_at()).then(|| {
            let (count, event) = (self.count.name(), self.counted_at().name());
            let message =
                format!("{condition} is not known yet at {event}, when {count} are counted");
            Complaint::error("when", message)
        })
    }

    fn check_reply(&self) -> Option<Complaint> {
        let reply = self.reply.as_ref()?;
        let livelock = self.counted_at() == Kind::Recipient
            && self.count != Count::UnknownRecipients
            && reply.code().action() == Action::Close;
        let spoken_at = match self.count {
            Count::UnknownRecipients => Kind::Connect,
            _ => self.counted_at(),
        };
        let empty = [
            ("{sender}", Placeholder::Sender, Kind::Mail),
            ("{sender_domain}", Placeholder::SenderDomain, Kind::Mail),
            ("{recipient}", Placeholder::Recipient, Kind::Recipient),
            ("{recipient_domain}", Placeholder::RecipientDomain, Kind::Recipient),
        ]
        .into_iter()
        .find(|(_, place, known_at)| reply.asks_for(*place) && *known_at > spoken_at);
        let empty = empty.map(|(name, ..)| {
            format!("{name} can be empty: it is not known at {}", spoken_at.name())
        });
        let message = reply.misgiving().or(empty).or_else(|| {
            livelock.then(|| {
                let instead = match self.count {
                    Count::Recipients | Count::DistinctRecipients => Code::Code452,
                    _ => Code::Code451,
                };
                format!(
                    "421 at RCPT would discard the recipients accepted before, at every retry; \
                     once one is accepted, {} is sent instead",
                    instead.digits()
                )
            })
        });
        message.map(|message| Complaint::warning("reply", message))
    }

    /// Whether this one can never be the first to refuse, because the other counts the same and
    /// is at least as strict.
    pub fn is_shadowed_by(&self, other: &Self) -> bool {
        let key = |params: &Self| {
            let mut per = params.per.clone();
            per.sort_unstable();
            per
        };
        let same = self.count == other.count
            && key(self) == key(other)
            && self.when == other.when
            && self.charge == other.charge
            && other.mode == Mode::Enforce
            && self.mode != Mode::Off;
        let stricter = match (self.quota, other.quota) {
            (Some(quota), Some(other)) => other.is_at_least_as_strict_as(&quota),
            _ => other.window >= self.window && other.max <= self.max && other.max.is_some(),
        };
        same && stricter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(count: Count) -> Params {
        let template = Params::of("test", count);
        match count.measured() {
            Measured::AtOnce => Params { max: NonZeroU32::new(1), ..template },
            Measured::InTime if count == Count::Bytes => {
                Params { quota: "6MiB/1m".parse().ok(), ..template }
            }
            Measured::InTime => Params { quota: "6/1m".parse().ok(), ..template },
            Measured::Distinct => {
                Params { max: NonZeroU32::new(9), window: Some(Span::secs(3_600)), ..template }
            }
        }
    }

    fn per(dimensions: &[&str]) -> Vec<Dimension> {
        dimensions.iter().map(|dimension| dimension.parse().unwrap()).collect()
    }

    #[test]
    fn every_default_reply_can_be_read_and_hurts_no_good_sender() {
        let dimensions = "network network/24 pool listener helo user sender sender_domain \
                          recipient recipient_domain";
        for count in Count::ALL {
            for dimension in dimensions.split_whitespace() {
                let template = Params { per: per(&[dimension]), ..limit(count) }.template();
                assert_eq!(template.misgiving(), None);
            }
            Params { per: Vec::new(), ..limit(count) }.template();
        }
    }

    #[test]
    fn the_built_in_limits_and_the_plainest_of_every_count_make_sense() {
        for limit in Params::built_in().into_iter().chain(Count::ALL.map(limit)) {
            assert_eq!(limit.check(), []);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_an_error_at_its_key() {
        let quota = |text: &str| text.parse().ok();
        let max = NonZeroU32::new(1);
        for (params, key) in [
            (Params::of("test", Count::Sessions), "count"),
            (Params::of("test", Count::Messages), "count"),
            (Params { window: None, ..limit(Count::DistinctHelos) }, "count"),
            (Params { max, ..limit(Count::Messages) }, "max"),
            (Params { quota: quota("6/1m"), ..limit(Count::Bytes) }, "quota"),
            (Params { quota: quota("6MiB/1m"), ..limit(Count::Messages) }, "quota"),
            (Params { quota: quota("6/1m"), ..limit(Count::Sessions) }, "quota"),
            (Params { retry: Some(Span::secs(9)), ..limit(Count::Messages) }, "retry"),
            (Params { charge: Charging::Attempts, ..limit(Count::Sessions) }, "charge"),
            (Params { name: "a b".into(), ..limit(Count::Messages) }, "name"),
            (Params { per: per(&["pool", "pool"]), ..limit(Count::Messages) }, "per"),
            (Params { per: per(&["user"]), ..limit(Count::Connections) }, "per"),
            (Params { per: per(&["sender"]), ..limit(Count::Messages) }, "per"),
            (Params { per: per(&["sender", "recipient"]), ..limit(Count::Messages) }, "per"),
            (Params { per: per(&["helo", "listener"]), ..limit(Count::Messages) }, "per"),
            (
                Params {
                    when: When { tls: Some(true), ..When::default() },
                    ..limit(Count::Connections)
                },
                "when",
            ),
        ] {
            let complaints = params.check();
            assert_eq!(complaints.len(), 1, "{params:?} {complaints:?}");
            assert_eq!(complaints[0].key, key, "{complaints:?}");
            assert_eq!(complaints[0].severity, crate::setting::Severity::Error);
        }
    }

    #[test]
    fn keys_that_nobody_can_forge_are_welcome() {
        for dimensions in [
            &["recipient_domain"][..],
            &["recipient"],
            &["network", "sender"],
            &["pool", "helo"],
            &[],
        ] {
            let params = Params { per: per(dimensions), ..limit(Count::Messages) };
            assert_eq!(params.check(), [], "{dimensions:?}");
        }
    }

    #[test]
    fn what_may_surprise_is_a_warning() {
        let reply = "421 4.7.0 Too many; retry in {wait} seconds".parse().ok();
        for (params, words) in [
            (Params { per: per(&["network/24"]), ..limit(Count::Messages) }, "IPv6 clients count"),
            (Params { per: per(&["network/48"]), ..limit(Count::Messages) }, "IPv4 clients count"),
            (Params { reply: reply.clone(), ..limit(Count::Recipients) }, "452 is sent instead"),
            (
                Params { reply, per: per(&["recipient_domain"]), ..limit(Count::Messages) },
                "451 is sent instead",
            ),
        ] {
            let complaints = params.check();
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert!(complaints[0].message.contains(words), "{complaints:?}");
            assert_eq!(complaints[0].severity, crate::setting::Severity::Warning);
        }
    }

    #[test]
    fn a_limit_behind_a_stricter_one_is_found() {
        let quota = |text: &str| Params { quota: text.parse().ok(), ..limit(Count::Messages) };
        assert!(quota("60/1m").is_shadowed_by(&quota("60/1m burst 30")));
        assert!(quota("7200/1h burst 90").is_shadowed_by(&quota("60/1m")));
        assert!(!quota("60/1m burst 30").is_shadowed_by(&quota("30/1m burst 60")));
        assert!(!quota("60/1m").is_shadowed_by(&limit(Count::Recipients)));
    }
}
