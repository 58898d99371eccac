//! The generic cell rate algorithm: one number a key, exact, and it tells the wait.
//!
//! ITU-T I.371 (virtual scheduling). The meter keeps its theoretical arrival time: the moment at
//! which everything charged so far has flowed off. A meter whose time has passed is equal to a
//! new one, so forgetting it loses nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::quota::{Quota, Unit};
use super::record::{Parts, Record, Stored, Worth, put_time};
use crate::clock::Time;

/// What one key has used of its quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gcra {
    /// The moment at which all that was charged has flowed off.
    empty_at: Time,
}

/// What charges have added to a meter, so that it can be given back: no more than the meter has
/// kept of them, since a cap may have cut it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    /// The meter as the last of them left it.
    then: Gcra,
    cost_ns: u64,
}

impl Charged {
    /// What has made `before` into `then` by `now`.
    pub fn between(before: Gcra, then: Gcra, now: Time) -> Self {
        let cost = then.empty_at.since(before.empty_at.max(now));
        Self { then, cost_ns: cost.as_nanos() as u64 }
    }

    /// This and what was charged to the same meter after it.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        Self { then: later.then, cost_ns: self.cost_ns.saturating_add(later.cost_ns) }
    }
}

/// The largest amount a single charge counts for: 256 MiB.
///
/// Only bytes come so large, and the client declares them. It bounds the debt that one message
/// can leave, and so the longest wait: the time of the burst and of this amount together.
pub const LARGEST_CHARGE: u64 = 256 << 20;

/// By how many events a meter may be overrun and still tell the exact wait, though never by more
/// than a burst: assessing only reads, so several threads may pass at once; and where the MTA would
/// hang up at one more refusal, the rest of a message passes as a debt. Postfix takes a thousand
/// recipients a message (`smtpd_recipient_limit`).
const LARGEST_OVERRUN: u64 = 1_000;

impl Gcra {
    /// How long `amount` more must wait; zero if it may pass now.
    ///
    /// An amount larger than the burst passes when the meter is empty and leaves a debt: else it
    /// could never pass, and any wait told would be a lie.
    pub fn wait(self, quota: &Quota, now: Time, amount: u64) -> Duration {
        let needed = quota.cost_ns(amount.min(quota.burst()));
        let ahead = self.clamped(quota, now).since(now).as_nanos() as u64;
        Duration::from_nanos(ahead.saturating_add(needed).saturating_sub(quota.tolerance_ns()))
    }

    /// The meter after `amount` has been charged, whether the quota had room for it or not.
    pub fn charged(self, quota: &Quota, now: Time, amount: u64) -> Self {
        let cost = Duration::from_nanos(quota.cost_ns(amount.min(LARGEST_CHARGE)));
        Self { empty_at: self.empty_at.max(now) + cost }
    }

    /// The meter after what was charged before is given back.
    ///
    /// What has flowed off since is not given back a second time: only what would be left by `now`
    /// of that charge, which is the last to flow off of what there was then.
    pub fn given_back(self, charged: Charged, now: Time) -> Self {
        let left = charged.then.empty_at.since(now).as_nanos() as u64;
        let cost_ns = charged.cost_ns.min(left);
        Self { empty_at: Time::from_nanos(self.empty_at.as_nanos().saturating_sub(cost_ns)) }
    }

    /// How much of the quota is in use: what has been charged and has not flowed off.
    pub fn used(self, quota: &Quota, now: Time) -> u64 {
        quota.amount_in(self.empty_at.since(now).as_nanos() as u64)
    }

    /// The meter as an enforced limit keeps it, which attempts cannot make run away.
    pub fn capped(self, quota: &Quota, now: Time) -> Self {
        Self { empty_at: self.clamped(quota, now) }
    }

    /// The arrival time as an enforced limit reads it: at most a burst and the largest debt
    /// ahead, so that a clock which stepped back, or a shadow which becomes enforced, locks
    /// nobody out.
    ///
    /// Events owe only what they may overrun a limit by: see [`LARGEST_OVERRUN`].
    fn clamped(self, quota: &Quota, now: Time) -> Time {
        self.empty_at.at_most(Self::longest(quota), now)
    }

    /// How far ahead a meter of an enforced limit runs at most, and so the longest wait.
    pub fn longest(quota: &Quota) -> Duration {
        let largest_debt = match quota.unit() {
            Unit::Events => {
                let overrun = quota.burst().min(LARGEST_OVERRUN);
                quota.cost_ns(1).saturating_mul(overrun)
            }
            Unit::Bytes => quota.cost_ns(LARGEST_CHARGE),
        };
        Duration::from_nanos(quota.tolerance_ns().saturating_add(largest_debt))
    }
}

impl Record for Gcra {
    const FAVOURS: bool = false;

    fn forgettable(&self, now: Time) -> bool {
        self.empty_at <= now
    }

    /// The sooner it would be forgotten anyway, the less.
    fn worth(&self) -> Worth {
        Worth::Fleeting(self.empty_at.as_nanos())
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        let empty_at = self.empty_at.at_most(longest, now);
        (empty_at != self.empty_at).then_some(Self { empty_at })
    }
}

impl Stored for Gcra {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.empty_at);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let read = Self { empty_at: parts.time()? };
        parts.end(read)
    }

    fn fold(&mut self, other: Self) {
        self.empty_at = self.empty_at.max(other.empty_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Time = Time::from_secs(1_800_000_000);
    const MS: Duration = Duration::from_millis(1);

    fn quota(text: &str) -> Quota {
        text.parse().unwrap()
    }

    /// Charges as long as there is room, and says how much passed.
    fn pass(meter: &mut Gcra, quota: &Quota, now: Time, tries: usize, amount: u64) -> u64 {
        let mut passed = 0;
        for _ in 0..tries {
            if meter.wait(quota, now, amount).is_zero() {
                *meter = meter.charged(quota, now, amount);
                passed += amount;
            }
        }
        passed
    }

    #[test]
    fn a_burst_passes_and_the_next_waits_for_one_share_of_the_period() {
        let quota = quota("60/1m burst 3");
        let mut meter = Gcra::default();
        assert_eq!(pass(&mut meter, &quota, NOW, 9, 1), 3);
        let wait = meter.wait(&quota, NOW, 1);
        assert_eq!(wait.as_millis(), 999, "a burst of three has three nanoseconds to spare");
        assert!(!meter.wait(&quota, NOW + (wait - MS), 1).is_zero());
        assert!(meter.wait(&quota, NOW + wait, 1).is_zero());
    }

    #[test]
    fn a_message_larger_than_the_burst_passes_when_nothing_is_owed_and_leaves_a_debt() {
        let quota = quota("1MiB/1s burst 10MiB");
        let mut meter = Gcra::default().charged(&quota, NOW, 1 << 20);
        assert!(!meter.wait(&quota, NOW, 40 << 20).is_zero());
        let later = NOW + Duration::from_secs(1);
        assert!(meter.wait(&quota, later, 40 << 20).is_zero());
        meter = meter.charged(&quota, later, 40 << 20);
        assert_eq!(meter.wait(&quota, later, 0).as_secs(), 29, "30 s less the slack of rounding");
    }

    #[test]
    fn what_never_came_is_given_back_once() {
        let quota = quota("60/1m burst 2");
        let first = Gcra::default().charged(&quota, NOW, 1);
        let both = first.charged(&quota, NOW, 1);
        let second = Charged::between(first, both, NOW);
        assert_eq!(both.given_back(second, NOW), first);
        let later = NOW + Duration::from_secs(60);
        let next = both.charged(&quota, later, 1);
        assert_eq!(next.given_back(second, later), next, "it had flowed off by itself");
    }

    #[test]
    fn what_has_flowed_off_in_part_is_given_back_in_part() {
        let quota = quota("60/1m burst 2");
        let first = Gcra::default().charged(&quota, NOW, 1);
        let (soon, later) = (NOW + MS * 900, NOW + MS * 950);
        let another = first.charged(&quota, soon, 1);
        let charged = Charged::between(Gcra::default(), first, NOW);
        let left = another.given_back(charged, later);
        assert_eq!(left.empty_at, later + MS * 1_000, "the other is charged whole");
    }

    #[test]
    fn no_more_is_given_back_than_a_cap_has_left() {
        let quota = quota("60/1m burst 2");
        let full =
            (0..9).fold(Gcra::default(), |m, _| m.charged(&quota, NOW, 1).capped(&quota, NOW));
        let another = full.charged(&quota, NOW, 1).capped(&quota, NOW);
        let charged = Charged::between(full, another, NOW);
        assert_eq!(another.given_back(charged, NOW), full, "nothing of it was kept");
    }

    #[test]
    fn a_clock_that_steps_back_a_year_locks_nobody_out() {
        let quota = quota("60/1m burst 60");
        let meter = Gcra::default().charged(&quota, NOW + Duration::from_secs(31_536_000), 1);
        assert!(meter.wait(&quota, NOW, 1) <= Duration::from_secs(61));
    }

    fn quotas() -> impl Strategy<Value = Quota> {
        (1..100_000_u64, 1..100_000_u64, 1..1_000_u64)
            .prop_map(|(count, secs, burst)| Quota::events(count, secs).with_burst(burst))
    }

    proptest! {
        #[test]
        fn no_more_than_burst_plus_rate_times_time_passes(
            quota in quotas(), steps in prop::collection::vec((0..2_000_u64, 0..50_usize), 1..50)
        ) {
            let (mut meter, mut now, mut passed) = (Gcra::default(), NOW, 0);
            for (ms, tries) in steps {
                now = now + Duration::from_millis(ms);
                passed += pass(&mut meter, &quota, now, tries, 1);
            }
            let flowed_off = quota.amount_in(now.since(NOW).as_nanos() as u64);
            prop_assert!(passed <= quota.burst() + flowed_off);
        }

        #[test]
        fn the_whole_burst_passes_at_once(quota in quotas()) {
            let tries = quota.burst() as usize + 10;
            prop_assert_eq!(pass(&mut Gcra::default(), &quota, NOW, tries, 1), quota.burst());
        }

        #[test]
        fn waiting_as_told_passes_and_a_millisecond_less_does_not(
            quota in quotas(), charges in 1..1_000_u64, amount in 1..1_000_u64
        ) {
            let charges = charges.min(quota.burst() + quota.burst().min(LARGEST_OVERRUN));
            let meter = (0..charges).fold(Gcra::default(), |m, _| m.charged(&quota, NOW, 1));
            let wait = meter.wait(&quota, NOW, amount);
            prop_assert!(meter.wait(&quota, NOW + wait, amount).is_zero());
            if let Some(less) = wait.checked_sub(MS) {
                prop_assert!(!meter.wait(&quota, NOW + less, amount).is_zero());
            }
        }

        #[test]
        fn no_wait_exceeds_the_burst_and_its_overrun_however_wild_the_meter(quota in quotas(), tat: u64, amount: u64) {
            let meter = Gcra { empty_at: Time::from_nanos(tat) };
            let longest = quota.cost_ns(1) * 2 * quota.burst();
            prop_assert!(meter.wait(&quota, NOW, amount).as_nanos() as u64 <= longest);
        }
    }
}
