//! Is the wall clock to be believed?
//!
//! Somebody may put it to another year for a minute: NTP, a hypervisor, a script. What has been
//! learned would fade at once, in memory and on disk. So the wall clock is held against the time
//! for which the host has run: while the two disagree by more than [`DISAGREEMENT`], nothing
//! fades. After [`LONGEST_DOUBT`] the wall clock has been put right, and is believed.
//!
//! A clock that is wrong from the start on is held against the last moment at which we ran: we may
//! have been away for [`LONGEST_AWAY`], and for longer only as long as that is doubted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Clock, Time};

/// By how much the wall clock may be off before it is doubted.
const DISAGREEMENT: Duration = Duration::from_secs(5 * 60);

/// For how long we may not have run: longer than for a restart, a repair or a night, and far shorter
/// than what has been learned lasts.
const LONGEST_AWAY: Duration = Duration::from_secs(86_400);

/// For how long it is doubted at most; and for how long it must have been believed before it may
/// shorten what has been learned.
const LONGEST_DOUBT: Duration = Duration::from_secs(3_600);

/// Within this time both clocks are not looked at again: a step of the wall clock leads out of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The present moment, and what may be done by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What the wall clock says.
    pub now: Time,
    trust: Trust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// The wall clock and the time that has passed disagree.
    Doubted,
    /// They agree, but not for long enough to tell that the host did not start with a wrong clock.
    Fresh,
    /// They have agreed for an hour.
    Settled,
}

impl Moment {
    /// A moment of a clock that is believed.
    pub const fn of(now: Time) -> Self {
        Self { now, trust: Trust::Settled }
    }

    /// Whether the wall clock is not believed: nothing fades by it.
    pub fn is_doubted(self) -> bool {
        self.trust == Trust::Doubted
    }

    /// Whether it has been right for so long that what lies ahead of it is wrong.
    pub fn is_settled(self) -> bool {
        self.trust == Trust::Settled
    }

    /// How long ago `earlier` was; no time at all while nobody knows.
    pub fn since(self, earlier: Time) -> Duration {
        if self.is_doubted() { Duration::ZERO } else { self.now.since(earlier) }
    }

    /// Whether something that lasts until then is over.
    pub fn is_past(self, until: Time) -> bool {
        until <= self.now && !self.is_doubted()
    }
}

/// Holds the wall clock against the time for which the host has run.
#[derive(Debug, Default)]
pub struct Watch {
    state: Mutex<State>,
    /// What the last look found, for all who ask until the next one: when it was, in nanoseconds
    /// since the Unix epoch, its last two bits being how far the clock is believed. Zero: nobody has
    /// looked.
    found: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Both clocks when they were last believed together; nothing before the first look.
    agreed: Option<(Time, Duration)>,
    /// How much more time may have passed since than the host has run.
    away: Duration,
    /// Since when the host has run with a clock that is believed.
    believed_since: Duration,
    /// Since when it is doubted.
    doubted_since: Option<Duration>,
}

impl Watch {
    /// We last ran then, as we know when we begin to read what we knew.
    pub fn last_ran(&self, clock: &dyn Clock, then: Time) {
        let Some(running) = clock.running() else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.found.store(0, Ordering::Relaxed);
        *state = State {
            agreed: Some((then, running)),
            away: LONGEST_AWAY,
            believed_since: running,
            ..State::default()
        };
    }

    /// The present moment.
    pub fn moment(&self, clock: &dyn Clock) -> Moment {
        let now = clock.now();
        let found = self.found.load(Ordering::Relaxed);
        if now.is_within(LOOK_EVERY, Time::from_nanos(found & !TRUST))
            && let Some(trust) = Trust::of_bits(found & TRUST)
        {
            return Moment { now, trust };
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let trust = clock.running().map_or(Trust::Settled, |running| state.look(now, running));
        self.found.store(now.as_nanos() & !TRUST | trust.bits(), Ordering::Relaxed);
        Moment { now, trust }
    }
}

/// The bits of a moment that hold how far it is believed; four nanoseconds matter to nobody.
const TRUST: u64 = 0b11;

impl Trust {
    const fn bits(self) -> u64 {
        match self {
            Self::Doubted => 1,
            Self::Fresh => 2,
            Self::Settled => 3,
        }
    }

    fn of_bits(bits: u64) -> Option<Self> {
        [Self::Doubted, Self::Fresh, Self::Settled].into_iter().find(|trust| trust.bits() == bits)
    }
}

impl State {
    fn look(&mut self, now: Time, running: Duration) -> Trust {
        let Some((then, ran)) = self.agreed else {
            (self.agreed, self.believed_since) = (Some((now, running)), running);
            return Trust::Fresh;
        };
        let expected = match running.checked_sub(ran) {
            Some(passed) => then + passed,
            // A clock of a test that goes back as a whole.
            None => {
                Time::from_nanos(then.as_nanos().saturating_sub((ran - running).as_nanos() as u64))
            }
        };
        if now.since(expected) > DISAGREEMENT + self.away || expected.since(now) > DISAGREEMENT {
            let since = *self.doubted_since.get_or_insert(running);
            if running.saturating_sub(since) < LONGEST_DOUBT {
                return Trust::Doubted;
            }
            (self.agreed, self.believed_since) = (Some((now, running)), running);
        } else if !self.away.is_zero() {
            self.agreed = Some((now, running));
        }
        (self.doubted_since, self.away) = (None, Duration::ZERO);
        match running.saturating_sub(self.believed_since) < LONGEST_DOUBT {
            true => Trust::Fresh,
            false => Trust::Settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ManualClock;
    use super::*;

    const START: Time = Time::from_secs(1_800_000_000);
    const MINUTE: Duration = Duration::from_secs(60);
    const YEAR: Duration = Duration::from_secs(31_536_000);

    fn started() -> (Watch, ManualClock) {
        let (watch, clock) = (Watch::default(), ManualClock::at(START));
        assert!(!watch.moment(&clock).is_doubted());
        (watch, clock)
    }

    #[test]
    fn a_clock_that_is_ahead_for_a_moment_makes_nothing_fade() {
        let (watch, clock) = started();
        clock.step_to(START + YEAR * 10);
        assert!(watch.moment(&clock).is_doubted());
        assert!(!watch.moment(&clock).is_past(START + YEAR));
        clock.advance(MINUTE);
        assert!(watch.moment(&clock).is_doubted());
        clock.step_to(START + MINUTE);
        assert!(!watch.moment(&clock).is_doubted());
    }

    #[test]
    fn one_that_was_put_right_is_believed_after_an_hour_and_settled_after_another() {
        let (watch, clock) = started();
        clock.step_to(START + YEAR);
        assert!(watch.moment(&clock).is_doubted());
        clock.advance(MINUTE * 59);
        assert!(watch.moment(&clock).is_doubted());
        clock.advance(MINUTE);
        assert!(!watch.moment(&clock).is_doubted() && !watch.moment(&clock).is_settled());
        clock.advance(MINUTE * 60);
        assert!(watch.moment(&clock).is_settled());
    }

    #[test]
    fn a_clock_that_is_wrong_from_the_start_on_is_held_against_the_last_run() {
        let doubted = |start: Time| {
            let (watch, clock) = (Watch::default(), ManualClock::at(start));
            watch.last_ran(&clock, START);
            watch.moment(&clock).is_doubted()
        };
        assert!(!doubted(START) && !doubted(START + LONGEST_AWAY));
        assert!(doubted(START + YEAR) && doubted(Time::default()));

        let (watch, clock) = (Watch::default(), ManualClock::at(START + YEAR));
        watch.last_ran(&clock, START);
        assert!(watch.moment(&clock).is_doubted());
        clock.advance(MINUTE);
        clock.step_to(START + MINUTE * 90);
        assert!(!watch.moment(&clock).is_doubted(), "put right");
        clock.step_to(START + LONGEST_AWAY);
        assert!(watch.moment(&clock).is_doubted(), "from then on as any other");

        let (watch, clock) = (Watch::default(), ManualClock::at(START + YEAR));
        watch.last_ran(&clock, START);
        assert!(watch.moment(&clock).is_doubted());
        clock.advance(LONGEST_DOUBT);
        assert!(!watch.moment(&clock).is_doubted(), "we were really away for a year");
    }

    #[test]
    fn a_host_that_was_suspended_and_steps_of_minutes_are_not_doubted() {
        let (watch, clock) = started();
        clock.advance(YEAR);
        assert!(!watch.moment(&clock).is_doubted());
        clock.step_to(clock.now() + MINUTE * 5);
        assert!(!watch.moment(&clock).is_doubted());
        clock.step_to(START);
        assert!(watch.moment(&clock).is_doubted(), "set back");
    }
}
