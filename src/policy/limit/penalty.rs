//! A longer wait for who keeps coming over the limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::meter::record::{Parts, Record, Stored, Worth, put_time};
use crate::meter::units::Span;
use crate::setting::Complaint;

/// `penalty = { factor = 2, cap = "1h", decay = "1h" }`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// By how much each further offence multiplies the wait.
    pub factor: u8,
    /// The longest wait it can make.
    pub cap: Span,
    /// The time without an offence after which one is forgotten.
    pub decay: Span,
}

impl Params {
    /// What makes no sense.
    pub(super) fn check(&self) -> Option<Complaint> {
        let message = match self {
            Self { factor: 0 | 1, .. } => "expected a factor of at least 2",
            Self { cap, .. } if cap.duration().is_zero() => "expected a cap longer than zero",
            Self { decay, .. } if decay.duration().is_zero() => "expected a decay longer than zero",
            Self { .. } => return None,
        };
        Some(Complaint::error("penalty", message))
    }
}

/// The offences under one key. An offence is a refusal after the wait of the last one has passed:
/// who comes back early, or with many connections at once, is refused and not punished again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Penalty {
    offences: u8,
    /// Until when everything is refused.
    until: Time,
    /// When all offences are forgotten.
    forgotten: Time,
}

impl Penalty {
    /// It as a limit reads it whose longest wait this is: a clock that was ahead may have stored more.
    #[must_use]
    pub(super) fn at_most(self, longest: Duration, now: Time) -> Self {
        let until = self.until.at_most(longest, now);
        // As long after the end as it was meant to be.
        let forgotten = self.forgotten.at_most(self.forgotten.since(self.until), until);
        Self { until, forgotten, ..self }
    }

    /// How long the wait of an earlier offence still lasts.
    pub(super) fn rest(&self, now: Time) -> Duration {
        self.until.since(now)
    }

    /// How many offences are remembered.
    pub(super) fn offences(&self) -> u8 {
        self.offences
    }

    /// How long another offence waits that alone would wait for `wait`.
    ///
    /// The first offence waits no longer than it must; the wait never falls below that of the
    /// limit itself, whatever the cap.
    pub(super) fn lengthened(&self, wait: Duration, params: &Params, now: Time) -> Duration {
        let factor = u32::from(params.factor).saturating_pow(u32::from(self.earlier(params, now)));
        wait.saturating_mul(factor).min(params.cap.duration()).max(wait)
    }

    /// The penalty after an offence that must wait for `wait`, lengthened already.
    pub(super) fn after_offence(&self, wait: Duration, params: &Params, now: Time) -> Self {
        let offences = self.earlier(params, now).saturating_add(1);
        let decay = params.decay.duration().saturating_mul(u32::from(offences));
        let until = now + wait;
        Self { offences, until, forgotten: until + decay }
    }

    /// The earlier offences that are not forgotten yet.
    fn earlier(&self, params: &Params, now: Time) -> u8 {
        let decay = params.decay.duration().as_nanos().max(1);
        let remembered = self.forgotten.since(now).as_nanos().div_ceil(decay);
        u8::try_from(remembered).unwrap_or(u8::MAX).min(self.offences)
    }
}

impl Record for Penalty {
    const FAVOURS: bool = false;

    fn forgettable(&self, now: Time) -> bool {
        self.forgotten <= now
    }

    fn worth(&self) -> Worth {
        Worth::Fleeting(self.forgotten.as_nanos())
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        let seen = self.at_most(longest, now);
        (seen != *self).then_some(seen)
    }
}

impl Stored for Penalty {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until);
        put_time(bytes, self.forgotten);
        bytes.push(self.offences);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let (until, forgotten, [offences]) = (parts.time()?, parts.time()?, parts.bytes()?);
        parts.end(Self { offences, until, forgotten })
    }

    fn fold(&mut self, other: Self) {
        *self = Self {
            offences: self.offences.max(other.offences),
            until: self.until.max(other.until),
            forgotten: self.forgotten.max(other.forgotten),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_secs(1_800_000_000);

    fn params() -> Params {
        Params { factor: 2, cap: Span::secs(600), decay: Span::secs(3_600) }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn each_offence_after_the_wait_doubles_it_up_to_the_cap() {
        let (mut penalty, mut now, mut waits) = (Penalty::default(), NOW, Vec::new());
        for _ in 0..6 {
            let wait = penalty.lengthened(secs(60), &params(), now);
            penalty = penalty.after_offence(wait, &params(), now);
            waits.push(penalty.rest(now).as_secs());
            now = now + penalty.rest(now);
        }
        assert_eq!(waits, [60, 120, 240, 480, 600, 600]);
    }

    #[test]
    fn offences_are_forgotten_one_by_one_and_then_all() {
        let offence = |penalty: Penalty, now| {
            let wait = penalty.lengthened(secs(60), &params(), now);
            penalty.after_offence(wait, &params(), now)
        };
        let twice = offence(offence(Penalty::default(), NOW), NOW + secs(60));
        let end = NOW + secs(60) + secs(120);
        assert_eq!(offence(twice, end).rest(end), secs(240));
        let hour_later = end + secs(3_601);
        assert_eq!(offence(twice, hour_later).rest(hour_later), secs(120));
        let day_later = end + secs(86_400);
        assert!(twice.forgettable(day_later));
        assert_eq!(offence(twice, day_later).rest(day_later), secs(60));
    }

    #[test]
    fn the_wait_is_never_shorter_than_the_limit_itself_asks_for() {
        assert_eq!(Penalty::default().lengthened(secs(7_200), &params(), NOW), secs(7_200));
    }
}
