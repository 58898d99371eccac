//! How fast a client whose sending is out of the ordinary may go on.
//!
//! A bucket: it fills by a rate and every message takes one out. The rate of a mere suspect doubles
//! with each quiet hour and halves at a relapse, so that who was wronged is soon free again. It
//! never is zero, and no wait is longer than a queue bears.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Time;

/// Rates, in messages a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of a suspect, at first.
    pub slow: f64,
    /// Of one whose sending is abnormal.
    pub quota: f64,
    /// Of one whose sending is extremely so.
    pub probes: f64,
}

/// What a score amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing.
    Calm,
    /// New triplets wait, and it starts slowly.
    Suspect,
    /// It has a small quota.
    Abnormal,
    /// It may try now and then.
    Extreme,
}

/// The bucket of one client, or of one network: 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// Messages that may come at once.
    level: f32,
    /// Messages a second while it is a mere suspect; 0: never asked.
    slow: f32,
    /// As of when, in seconds.
    at: u32,
    /// Since when it has been no worse than a suspect, in seconds.
    calm: u32,
}

/// What a bucket holds at first.
const FIRST: f64 = 10.0;
/// What it holds at least when it is full, and for how long it fills beyond.
const LEAST: f64 = 3.0;
const FULL_AFTER: f64 = 600.0;
/// As fast as a suspect may become again.
const FASTEST: f64 = 1.0;
const HOUR: u32 = 3_600;

impl Pace {
    /// As of now, at this stage. A network that is shared by a swarm does not recover by itself.
    #[must_use]
    pub fn at(self, stage: Stage, shared: bool, rates: &Rates, now: Time) -> Self {
        let second = u32::try_from(now.as_nanos() / 1_000_000_000).unwrap_or(u32::MAX);
        let Self { level, slow, at, calm } = match self.slow > 0.0 {
            true => self,
            false => {
                Self { level: FIRST as f32, slow: rates.slow as f32, at: second, calm: second }
            }
        };
        // What lies ahead was written by a clock that was.
        let calm = calm.min(second);
        let hours = second.saturating_sub(calm) / HOUR;
        let (slow, calm) = if stage >= Stage::Abnormal || shared {
            (f64::from(slow / 2.0).max(rates.slow), second)
        } else if hours >= 1 {
            ((f64::from(slow) * f64::from(1_u32 << hours.min(12))).min(FASTEST), second)
        } else {
            (f64::from(slow), calm)
        };
        let rate = rate(stage, slow, rates);
        let full = (rate * FULL_AFTER).max(LEAST);
        let filled = f64::from(second.saturating_sub(at)) * rate;
        let level = (f64::from(level) + filled).min(full);
        Self { level: level as f32, slow: slow as f32, at: second, calm }
    }

    /// How long the next message must wait; `self` is as of now, at this stage.
    pub fn wait(&self, stage: Stage, rates: &Rates) -> Duration {
        let missing = 1.0 - f64::from(self.level);
        if missing <= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(missing / rate(stage, f64::from(self.slow), rates))
    }

    /// Messages an hour that may come in the long run, at this stage; `self` is as of now.
    pub fn per_hour(&self, stage: Stage, rates: &Rates) -> f64 {
        rate(stage, f64::from(self.slow), rates) * 3_600.0
    }

    /// A message has passed.
    pub fn take(&mut self) {
        self.level = (self.level - 1.0).max(-1.0);
    }

    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let parts =
            [self.level.to_bits(), self.slow.to_bits(), self.at, self.calm].map(u32::to_le_bytes);
        bytes.copy_from_slice(parts.as_flattened());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        let [level, slow, at, calm] = [0, 4, 8, 12].map(|from| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[from..from + 4]);
            u32::from_le_bytes(number)
        });
        let (level, slow) = (f32::from_bits(level), f32::from_bits(slow));
        // What cannot be meant is a bucket that nobody has asked for.
        let sound = (-1.0..=1e6).contains(&level) && (1e-6..=1e6).contains(&slow);
        if sound { Self { level, slow, at, calm } } else { Self::default() }
    }
}

fn rate(stage: Stage, slow: f64, rates: &Rates) -> f64 {
    match stage {
        Stage::Calm | Stage::Suspect => slow,
        Stage::Abnormal => rates.quota,
        Stage::Extreme => rates.probes,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const START: Time = Time::from_secs(1_800_000_000);
    const RATES: Rates =
        Rates { slow: 30.0 / 3_600.0, quota: 12.0 / 3_600.0, probes: 2.0 / 3_600.0 };

    fn stage() -> impl Strategy<Value = Stage> {
        let all = [Stage::Calm, Stage::Suspect, Stage::Abnormal, Stage::Extreme];
        proptest::sample::select(all.to_vec())
    }

    /// The pace after messages at these times, each of which is let in where there is room.
    fn kept(events: &[(u64, Stage, bool)]) -> (Pace, Time, Vec<(Stage, Duration)>) {
        let (mut pace, mut now, mut waits) = (Pace::default(), START, Vec::new());
        for (after, stage, shared) in events {
            now = now + Duration::from_secs(*after);
            pace = pace.at(*stage, *shared, &RATES, now);
            let wait = pace.wait(*stage, &RATES);
            waits.push((*stage, wait));
            if wait.is_zero() {
                pace.take();
            }
        }
        (pace, now, waits)
    }

    proptest! {
        /// The slowest brings every queue through.
        #[test]
        fn no_wait_is_longer_than_the_slowest_interval(
            events in vec((0..100_000_u64, stage(), any::<bool>()), 1..60),
        ) {
            for (stage, wait) in kept(&events).2 {
                let slowest = match stage {
                    Stage::Calm | Stage::Suspect => RATES.slow,
                    Stage::Abnormal => RATES.quota,
                    Stage::Extreme => RATES.probes,
                };
                prop_assert!(wait.as_secs_f64() <= 1.0 / slowest + 1e-3, "{:?} {:?}", stage, wait);
            }
        }

        /// Who comes back as told is let in, if it has not become worse meanwhile.
        #[test]
        fn who_waits_as_told_is_let_in(
            events in vec((0..100_000_u64, stage(), any::<bool>()), 1..60),
            stage in stage(),
        ) {
            let (pace, now, _) = kept(&events);
            let pace = pace.at(stage, false, &RATES, now);
            // Seconds are counted as whole ones.
            let wait = pace.wait(stage, &RATES) + Duration::from_secs(1);
            let later = pace.at(stage, false, &RATES, now + wait);
            prop_assert_eq!(later.wait(stage, &RATES), Duration::ZERO);
        }

        #[test]
        fn what_is_written_down_is_read_the_same(
            events in vec((0..100_000_u64, stage(), any::<bool>()), 0..20),
        ) {
            let (pace, ..) = kept(&events);
            prop_assert_eq!(Pace::from_bytes(pace.to_bytes()), pace);
        }

        #[test]
        fn no_more_passes_than_the_rate_and_what_was_saved(
            events in vec(0..600_u64, 1..200),
        ) {
            let events: Vec<_> =
                events.into_iter().map(|after| (after, Stage::Abnormal, false)).collect();
            let seconds: u64 = events.iter().map(|(after, ..)| after).sum();
            let passed = kept(&events).2.iter().filter(|(_, wait)| wait.is_zero()).count();
            let most = LEAST + seconds as f64 * RATES.quota;
            prop_assert!(passed as f64 <= most + 1e-3, "{} of {}", passed, most);
        }

        /// No bytes make it panic, or wait for something that is no time.
        #[test]
        fn no_bytes_make_it_panic(bytes in any::<[u8; 16]>(), stage in stage()) {
            let pace = Pace::from_bytes(bytes).at(stage, false, &RATES, START);
            let _ = pace.wait(stage, &RATES);
        }
    }

    #[test]
    fn quiet_hours_double_it_and_a_relapse_halves_it() {
        let hours = |count: u64| Duration::from_secs(count * 3_600);
        let begun = Pace::default().at(Stage::Suspect, false, &RATES, START);
        let first = f64::from(begun.slow);
        let is = |pace: Pace, times: f64| (f64::from(pace.slow) / first - times).abs() < 1e-3;
        let calm = begun.at(Stage::Suspect, false, &RATES, START + hours(3));
        assert!(is(calm, 8.0), "{calm:?}");
        let relapsed = calm.at(Stage::Abnormal, false, &RATES, START + hours(3));
        assert!(is(relapsed, 4.0), "{relapsed:?}");
        // Not below what it began with, and a swarm does not recover.
        let shared = (4..100)
            .fold(begun, |pace, hour| pace.at(Stage::Suspect, true, &RATES, START + hours(hour)));
        assert!(is(shared, 1.0), "{shared:?}");
    }
}
