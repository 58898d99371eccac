//! Decisions: values, until the front makes text of them.

use std::cmp::Reverse;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use super::behaviour::Evidence;
use super::behaviour::evidence::Score;
use super::load::{Cause, Level, Rounded};
use super::patience::{self, Bent};
use crate::clock::Time;
use crate::meter::quota::Quota;
use crate::meter::units::{Size, Span};
use crate::setting::Mode;
use crate::smtp::reply::{Action, Code, Enhanced};
use crate::smtp::template::Template;

/// Why an event was refused: one stable word, the same in logs, metrics, replies and the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The client stands on the denylist, or a recipient domain asks for more.
    Access,
    /// Too many sessions at once.
    Sessions,
    /// More in a time than a quota allows.
    Rate,
    /// First contact.
    Greylist,
    /// The host bears no more.
    Load,
    /// The host is being worked on.
    Maintenance,
    /// It sends like no person and like no established machine.
    Behaviour,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Access,
        Self::Sessions,
        Self::Rate,
        Self::Greylist,
        Self::Load,
        Self::Maintenance,
        Self::Behaviour,
    ];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Sessions => "sessions",
            Self::Rate => "rate",
            Self::Greylist => "greylist",
            Self::Load => "load",
            Self::Maintenance => "maintenance",
            Self::Behaviour => "behaviour",
        }
    }
}

/// Why nobody asks about a client or a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exemption {
    /// The client stands on the allowlist.
    Allowlisted,
    /// The client has authenticated.
    Authenticated,
    /// The recipient must always be reachable.
    Recipient,
}

/// What a recipient domain can ask of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// An encrypted session.
    Tls,
    /// To be on the domain's list.
    Listed,
}

/// The facts behind a refusal: what was measured, and against what.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// An entry of the denylist.
    Denied {
        /// The entry that matched.
        entry: super::access::Entry,
    },
    /// A gauge of sessions.
    Sessions {
        /// Sessions admitted, this one not among them.
        admitted: u32,
        /// All sessions that are open, refused ones too.
        open: u32,
        /// How many may be admitted.
        max: u32,
    },
    /// A quota.
    Rate {
        /// What was in use, with this event.
        used: u64,
        /// The quota.
        quota: Quota,
    },
    /// Different values.
    Distinct {
        /// How many there were, with this one; an estimate.
        count: u32,
        /// How many there may be.
        max: u32,
        /// In which time.
        window: Duration,
    },
    /// A quota has room again, but the wait for earlier offences is not over.
    Penalty {
        /// How many offences are remembered.
        offences: u8,
    },
    /// A recipient domain that asks for more than this client offers.
    Required {
        /// What it asks for.
        what: Requirement,
        /// The domain.
        recipient_domain: Box<str>,
    },
    /// A triplet that must wait.
    Greylist {
        /// How long ago it was first seen.
        age: Duration,
        /// How long it must wait.
        delay: Duration,
    },
    /// A host that bears no more of such clients.
    Load {
        /// How it is.
        level: Level,
        /// The sensor that says so.
        cause: Cause,
    },
    /// A network that holds its part of the sessions while the host is short.
    Share {
        /// Sessions it holds.
        held: u32,
        /// How many it may hold.
        most: u32,
        /// All sessions that are open, with this one.
        open: u32,
    },
    /// A host that is being worked on.
    Maintenance {
        /// When it is over.
        until: Time,
    },
    /// A client whose sending is out of the ordinary.
    Behaviour {
        /// What speaks against it.
        score: Score,
        /// The score from which on this holds.
        from: f64,
        /// Whether its whole network keeps one pace.
        shared: bool,
    },
}

impl Why {
    /// The reason it amounts to.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Denied { .. } | Self::Required { .. } => Reason::Access,
            Self::Sessions { .. } => Reason::Sessions,
            Self::Rate { .. } | Self::Distinct { .. } | Self::Penalty { .. } => Reason::Rate,
            Self::Greylist { .. } => Reason::Greylist,
            Self::Load { .. } | Self::Share { .. } => Reason::Load,
            Self::Maintenance { .. } => Reason::Maintenance,
            Self::Behaviour { .. } => Reason::Behaviour,
        }
    }

    /// What speaks against the client, in words; empty where it is one number.
    pub fn evidence(&self) -> String {
        match self {
            Self::Behaviour { score, .. } => Evidence(score).to_string(),
            _ => String::new(),
        }
    }

    /// What was measured.
    pub fn value(&self) -> impl Display {
        Measured(self.clone(), Side::Value)
    }

    /// What it was measured against.
    pub fn threshold(&self) -> impl Display {
        Measured(self.clone(), Side::Threshold)
    }
}

struct Measured(Why, Side);

enum Side {
    Value,
    Threshold,
}

impl Display for Measured {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (&self.0, &self.1) {
            (Why::Denied { .. }, Side::Value) => f.write_str("listed"),
            (Why::Denied { entry }, Side::Threshold) => write!(f, "{entry}"),
            (Why::Sessions { admitted, open, max }, Side::Value) => match open / 2 >= *max {
                true => write!(f, "{open} open"),
                false => write!(f, "{admitted}"),
            },
            (Why::Sessions { max, .. }, Side::Threshold) => write!(f, "{max}"),
            (Why::Rate { used, quota }, Side::Value) => match quota.unit() {
                crate::meter::quota::Unit::Events => write!(f, "{used}"),
                crate::meter::quota::Unit::Bytes => write!(f, "{}", Size::bytes(*used)),
            },
            (Why::Rate { quota, .. }, Side::Threshold) => write!(f, "{quota}"),
            (Why::Distinct { count, .. }, Side::Value) => write!(f, "{count}"),
            (Why::Distinct { max, window, .. }, Side::Threshold) => {
                write!(f, "{max} in {}", Span::from(*window))
            }
            (Why::Penalty { offences: 1 }, Side::Value) => f.write_str("1 offence"),
            (Why::Penalty { offences }, Side::Value) => write!(f, "{offences} offences"),
            (Why::Penalty { .. }, Side::Threshold) => f.write_str("penalty"),
            (Why::Required { what: Requirement::Tls, .. }, Side::Value) => f.write_str("plain"),
            (Why::Required { what: Requirement::Listed, .. }, Side::Value) => {
                f.write_str("not listed")
            }
            (Why::Required { recipient_domain, .. }, Side::Threshold) => {
                f.write_str(recipient_domain)
            }
            (Why::Greylist { age, .. }, Side::Value) => write!(f, "{}", Span::from(*age)),
            (Why::Greylist { delay, .. }, Side::Threshold) => write!(f, "{}", Span::from(*delay)),
            (Why::Load { cause, .. }, Side::Value) => write!(f, "{cause}"),
            (Why::Load { level, cause }, Side::Threshold) => {
                write!(f, "{} at {}", level.name(), Rounded(cause.mark))
            }
            (Why::Share { held, .. }, Side::Value) => write!(f, "{held} sessions"),
            (Why::Share { most, open, .. }, Side::Threshold) => write!(f, "{most} of {open}"),
            (Why::Maintenance { .. }, Side::Value) => f.write_str("closed"),
            (Why::Maintenance { until }, Side::Threshold) => write!(f, "{until}"),
            (Why::Behaviour { score, .. }, Side::Value) => {
                write!(f, "{:.1} ({})", score.total, Evidence(score))
            }
            (Why::Behaviour { from, .. }, Side::Threshold) => write!(f, "{from:.1}"),
        }
    }
}

/// One signal's word against an event.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The limit that spoke, by its name, if it was one.
    pub limit: Option<Arc<str>>,
    /// Whether the rule acts.
    pub mode: Mode,
    /// The facts.
    pub why: Why,
    /// How long the same event must wait to pass this rule.
    pub wait: Duration,
    /// What to say.
    pub template: Arc<Template>,
    /// The code to say it with: the template's own, unless that would do harm here.
    pub code: Code,
    /// The enhanced code that belongs to it.
    pub enhanced: Enhanced,
    /// When to say it.
    pub urgency: Urgency,
    /// Whether it holds for exempt clients as well.
    pub binds_exempt: bool,
    /// Whether it speaks against the recipient for being one too many.
    pub surplus: bool,
}

/// When a refusal is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// At the first command that lets the client see our text.
    Spoken,
    /// At once, though the MTA may drop our text: such sessions would hold its processes.
    AtOnce,
}

impl Refusal {
    /// A refusal as its template says it.
    pub fn new(mode: Mode, template: &Arc<Template>, why: Why) -> Self {
        Self {
            limit: None,
            mode,
            why,
            wait: Duration::ZERO,
            code: template.code(),
            enhanced: template.enhanced(),
            template: template.clone(),
            urgency: Urgency::Spoken,
            binds_exempt: false,
            surplus: false,
        }
    }

    /// The same with a time to wait.
    #[must_use]
    pub fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// What it does to the session, if its rule acts.
    pub fn action(&self) -> Action {
        self.code.action()
    }

    /// The rule that speaks: the limit by its name, else the signal by its reason.
    pub fn rule(&self) -> &str {
        self.limit.as_deref().unwrap_or(self.why.reason().name())
    }
}

/// What is done about one event, and everything that spoke for it.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    exemption: Option<Exemption>,
    reasons: Vec<Refusal>,
    shadowed: Vec<Refusal>,
    spared: Vec<Refusal>,
    at_data: Option<Refusal>,
}

impl Decision {
    /// Sorts what was said: the strongest first, then the longest wait.
    pub(super) fn new(exemption: Option<Exemption>, mut refusals: Vec<Refusal>) -> Self {
        if refusals.is_empty() {
            return Self { exemption, ..Self::default() };
        }
        refusals.sort_by_key(|refusal| Reverse((refusal.action(), refusal.wait)));
        let (reasons, shadowed) = refusals.into_iter().partition(|r| r.mode == Mode::Enforce);
        Self { exemption, reasons, shadowed, ..Self::default() }
    }

    /// The same for a session that the MTA would hang up on at the next refusal: what each of them
    /// becomes there.
    pub(super) fn bent(
        exemption: Option<Exemption>,
        refusals: Vec<Refusal>,
        bend: impl Fn(Refusal) -> Bent,
    ) -> Self {
        let (mut said, mut spared, mut at_data) = (Vec::new(), Vec::new(), None);
        for refusal in refusals {
            match bend(refusal) {
                Bent::Said(refusal) => said.push(refusal),
                Bent::Spared(refusal) => spared.push(refusal),
                Bent::AtData(refusal) => at_data = Some(refusal),
            }
        }
        Self { spared, at_data, ..Self::new(exemption, said) }
    }

    /// What happens.
    pub fn action(&self) -> Action {
        self.strongest().map_or(Action::Pass, Refusal::action)
    }

    /// Whether the event may go on.
    pub fn passes(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The refusal that is spoken.
    pub fn strongest(&self) -> Option<&Refusal> {
        self.reasons.first()
    }

    /// Every refusal that counts, the strongest first.
    pub fn reasons(&self) -> &[Refusal] {
        &self.reasons
    }

    /// What rules in shadow mode would have said, the strongest first.
    pub fn shadowed(&self) -> &[Refusal] {
        &self.shadowed
    }

    /// What would have been refused, but that the MTA would have hung up on those accepted before.
    pub fn spared(&self) -> &[Refusal] {
        &self.spared
    }

    /// What the transaction is refused for at DATA, since it could not be said here.
    pub(super) fn at_data(&self) -> Option<&Refusal> {
        self.at_data.as_ref()
    }

    /// The same, and whatever is refused closes the session.
    #[must_use]
    pub(super) fn closing(mut self) -> Self {
        self.reasons = self.reasons.into_iter().map(patience::closing).collect();
        self
    }

    /// How long to wait so that none of the reasons holds any more.
    pub fn wait(&self) -> Duration {
        self.reasons.iter().map(|refusal| refusal.wait).max().unwrap_or_default()
    }

    /// Whether it is more than a plain pass: a refusal, or what a shadow would have refused.
    pub fn is_worth_telling(&self) -> bool {
        !self.reasons.is_empty() || !self.shadowed.is_empty() || !self.spared.is_empty()
    }

    /// The same without what shadows said, which is told once.
    #[must_use]
    pub fn without_shadows(self) -> Self {
        Self { shadowed: Vec::new(), ..self }
    }

    /// What is left of it for a client that has turned out to be exempt.
    #[must_use]
    pub fn for_exempt(mut self) -> Self {
        self.reasons.retain(|refusal| refusal.binds_exempt);
        self
    }

    /// What is left of it when rules are taken out by hand.
    #[must_use]
    pub(super) fn lifted(mut self, is_lifted: impl Fn(&Refusal) -> bool) -> Self {
        self.reasons.retain(|refusal| !is_lifted(refusal));
        self
    }

    /// What is left of it when maintenance ends at another moment than was known at `since`, or
    /// has ended.
    #[must_use]
    pub(super) fn in_maintenance(mut self, over: Option<Time>, since: Time) -> Self {
        self.reasons.retain_mut(|refusal| match (&mut refusal.why, over) {
            (Why::Maintenance { until }, Some(over)) => {
                *until = over;
                refusal.wait = over.since(since);
                true
            }
            (Why::Maintenance { .. }, None) => false,
            _ => true,
        });
        self
    }

    /// Why nobody asked, if nobody did.
    pub fn exemption(&self) -> Option<Exemption> {
        self.exemption
    }

    /// Whether the session is to be closed without waiting for a command.
    pub fn at_once(&self) -> bool {
        self.reasons.iter().any(|refusal| refusal.urgency == Urgency::AtOnce)
    }
}
