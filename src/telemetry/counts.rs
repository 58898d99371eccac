//! What a status tells of, in plain numbers. Metrics are made of them when somebody asks, so that
//! nothing is counted twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Failure;
use crate::clock::Time;
use crate::policy::decision::{Reason, Refusal};
use crate::setting::Mode;

/// A number for each reason.
pub type ByReason = [u64; Reason::ALL.len()];

/// What has been counted since the start.
#[derive(Default)]
pub(super) struct Counts {
    passes: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    shadowed: [AtomicU64; Reason::ALL.len()],
    failures: [AtomicU64; Failure::ALL.len()],
    sessions: AtomicU64,
    /// When an MTA last asked; zero: never.
    asked: AtomicU64,
    /// By rule, since the start. Bound: the rules that the settings have named since.
    rules: Mutex<BTreeMap<Arc<str>, Spoken>>,
    /// How it was at the end of each of the last [`MINUTES`] minutes, the oldest first.
    minutes: Mutex<VecDeque<Minute>>,
    pub(super) state: State,
}

/// How many minutes are looked back: an hour.
const MINUTES: usize = 60;

/// How often a rule has spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    /// So often it has refused.
    pub refused: u64,
    /// So often it would have, in shadow.
    pub shadowed: u64,
}

/// What had been counted at a moment.
#[derive(Clone, Default)]
struct Minute {
    at: Time,
    passes: u64,
    rules: BTreeMap<Arc<str>, Spoken>,
}

/// How far what is written down has come.
#[derive(Default)]
pub(super) struct State {
    pub(super) loading: AtomicBool,
    pub(super) loaded: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Up to when every change has been written down; zero where nothing is.
    pub(super) written_up_to: AtomicU64,
}

impl Counts {
    pub(super) fn passed(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn shadowed(&self, reason: Reason) {
        self.shadowed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session_begun(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session_ended(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    /// An MTA asks.
    pub(super) fn asked(&self, now: Time) {
        self.asked.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// A rule has spoken: the one that is told, or a shadow.
    pub(super) fn spoke(&self, refusal: &Refusal) {
        let mut rules = lock(&self.rules);
        if !rules.contains_key(refusal.rule()) {
            rules.insert(refusal.rule().into(), Spoken::default());
        }
        if let Some(spoken) = rules.get_mut(refusal.rule()) {
            match refusal.mode {
                Mode::Enforce => spoken.refused += 1,
                Mode::Shadow | Mode::Off => spoken.shadowed += 1,
            }
        }
    }

    /// Notes how it is once a minute.
    pub(super) fn note(&self, now: Time) {
        let mut minutes = lock(&self.minutes);
        let quiet = |last: &Minute| now.is_within(Duration::from_secs(60), last.at);
        if minutes.back().is_some_and(quiet) {
            return;
        }
        if minutes.len() > MINUTES {
            minutes.pop_front();
        }
        let passes = self.passes.load(Ordering::Relaxed);
        minutes.push_back(Minute { at: now, passes, rules: lock(&self.rules).clone() });
    }

    /// What has been counted in the last hour, to the minute, and since the start.
    pub(super) fn lately(&self) -> Lately {
        let before = lock(&self.minutes).front().cloned().unwrap_or_default();
        let passes = self.passes.load(Ordering::Relaxed);
        let rule = |(rule, all): (&Arc<str>, &Spoken)| {
            let then = before.rules.get(rule).copied().unwrap_or_default();
            let hour = Spoken {
                refused: all.refused - then.refused,
                shadowed: all.shadowed - then.shadowed,
            };
            (rule.clone(), OfRule { hour, all: *all })
        };
        Lately {
            asked: match self.asked.load(Ordering::Relaxed) {
                0 => None,
                nanos => Some(Time::from_nanos(nanos)),
            },
            passed_in_hour: passes - before.passes,
            passed: passes,
            rules: lock(&self.rules).iter().map(rule).collect(),
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            passes: read(&self.passes),
            refused: self.refused.each_ref().map(read),
            shadowed: self.shadowed.each_ref().map(read),
            failures: self.failures.each_ref().map(read),
            sessions: read(&self.sessions),
            loading: self.state.loading.load(Ordering::Relaxed),
            loaded: read(&self.state.loaded),
            bytes: read(&self.state.bytes),
            written_up_to: match read(&self.state.written_up_to) {
                0 => None,
                nanos => Some(Time::from_nanos(nanos)),
            },
        }
    }
}

/// Nothing in here is left half-done by a panic.
fn lock<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has been counted in the last hour, to the minute, and since the start.
#[derive(Clone, Debug, Default)]
pub struct Lately {
    /// When an MTA last asked.
    pub asked: Option<Time>,
    /// Events that passed in the last hour.
    pub passed_in_hour: u64,
    /// Events that passed since the start.
    pub passed: u64,
    /// Rules that have spoken since the start.
    pub rules: BTreeMap<Arc<str>, OfRule>,
}

/// How often a rule has spoken.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfRule {
    /// In the last hour.
    pub hour: Spoken,
    /// Since the start.
    pub all: Spoken,
}

/// All counts, as of a moment.
#[derive(Clone, Debug)]
pub struct Totals {
    /// Events that passed.
    pub passes: u64,
    /// Refusals by their reason, in the order of [`Reason::ALL`].
    pub refused: ByReason,
    /// What shadows would have refused, likewise.
    pub shadowed: ByReason,
    /// Our own trouble by its kind, in the order of [`Failure::ALL`].
    pub failures: [u64; Failure::ALL.len()],
    /// Sessions open now, as milters see them.
    pub sessions: u64,
    /// Whether what was kept is being read back.
    pub loading: bool,
    /// How many entries have been read back.
    pub loaded: u64,
    /// Bytes that state takes on disk.
    pub bytes: u64,
    /// Up to when every change has been written down; nothing where nothing is kept.
    pub written_up_to: Option<Time>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hour_is_what_came_since_the_minute_that_is_an_hour_old() {
        let counts = Counts::default();
        let after = |minutes: u64| Time::from_secs(1_800_000_000 + 60 * minutes);
        counts.note(after(0));
        (0..3).for_each(|_| counts.passed());
        counts.note(after(1));
        counts.passed();
        for minute in 2..60 {
            counts.note(after(minute));
            // A second look within the minute notes nothing.
            counts.note(after(minute) + Duration::from_secs(30));
        }
        assert_eq!((counts.lately().passed_in_hour, counts.lately().passed), (4, 4));
        counts.note(after(60));
        counts.note(after(61));
        assert_eq!((counts.lately().passed_in_hour, counts.lately().passed), (1, 4));
        // A clock that has stepped back is one more minute.
        counts.note(after(0));
        assert_eq!(counts.lately().passed_in_hour, 0);
    }
}
