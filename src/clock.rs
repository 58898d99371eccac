//! The time, and who may read it.
//!
//! This is the only file that asks the system what time it is; everywhere else `now` is an
//! argument, so that serving mail, explaining and replaying are the same code.

mod trust;

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::ops::Add;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::trust::{Moment, Watch};

/// A moment of the wall clock, in nanoseconds since the Unix epoch (until the year 2554).
///
/// The wall clock and not a monotonic one, because what is learned must mean the same after a
/// restart and on another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The moment that lies `nanos` nanoseconds after the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The moment that lies `secs` seconds after the Unix epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies ahead (the clock may have stepped back).
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// A stored moment that is to come, as seen from `now`: no further away than `longest`, the
    /// longest that whoever stored it can have meant. One that lies further ahead was stored by a
    /// clock that was ahead.
    #[must_use]
    pub fn at_most(self, longest: Duration, now: Self) -> Self {
        self.min(now + longest)
    }

    /// Whether `earlier` was less than `span` ago. One that lies ahead was not: it was stored by a
    /// clock that was ahead, and would hold until the clock comes there again.
    pub fn is_within(self, span: Duration, earlier: Self) -> bool {
        earlier <= self && self.since(earlier) < span
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// RFC 3339, to the nanosecond: `2026-11-21T22:07:20.000000001Z`.
impl Time {
    /// As people read it: to the second.
    pub fn whole(self) -> String {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(self.0)).to_string()
    }
}

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let moment = UNIX_EPOCH + Duration::from_nanos(self.0);
        humantime::format_rfc3339_nanos(moment).fmt(f)
    }
}

/// RFC 3339; a blank may stand for the `T`, and the fraction, and `Z`, may be missing.
impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (local, ahead) = zone(text)?;
            let moment = humantime::parse_rfc3339_weak(local).ok()?;
            let since_epoch = moment.duration_since(UNIX_EPOCH).ok()?.as_nanos();
            let nanos = i128::try_from(since_epoch).ok()? - i128::from(ahead) * 1_000_000_000;
            u64::try_from(nanos).ok().map(Self)
        };
        read().ok_or_else(|| format!("expected a time such as 2026-11-21T22:07:20Z, not {text:?}"))
    }
}

/// A time without its zone, and by how many seconds that is ahead of UTC.
fn zone(text: &str) -> Option<(&str, i64)> {
    let at = text.len().checked_sub("+01:00".len());
    let Some((local, zone)) = at.and_then(|at| text.split_at_checked(at)) else {
        return Some((text, 0));
    };
    let sign = match zone.as_bytes()[0] {
        b'+' => 1,
        b'-' if local.contains(':') => -1,
        _ => return Some((text, 0)),
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    let number = |digits: &str| digits.parse::<u8>().ok().filter(|_| digits.len() == 2);
    let (hours, minutes) = (number(hours)?, number(minutes).filter(|minutes| *minutes < 60)?);
    Some((local, sign * i64::from(u32::from(hours) * 3_600 + u32::from(minutes) * 60)))
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <Cow<'de, str>>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Time;

    /// For how long the host has run, suspended time included, whatever is done to the wall clock;
    /// nothing if only the wall clock is known, which is then believed.
    fn running(&self) -> Option<Duration> {
        None
    }
}

/// A clock that several hold: whoever moves it, and whoever reads it.
impl<C: Clock> Clock for Arc<C> {
    fn now(&self) -> Time {
        (**self).now()
    }

    fn running(&self) -> Option<Duration> {
        (**self).running()
    }
}

/// The system's wall clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    fn now(&self) -> Time {
        // A clock before 1970 reads as the epoch.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time::default() + since_epoch
    }

    fn running(&self) -> Option<Duration> {
        // By the C library: rustix looks for the kernel's page of clocks itself, and ends the process
        // where there is none, as under valgrind.
        let boottime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
        boottime.ok().map(Duration::from)
    }
}

/// A clock that a test or a replay moves by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicU64,
    /// What [`Clock::running`] says.
    running: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn at(now: Time) -> Self {
        Self { now: AtomicU64::new(now.0), running: AtomicU64::default() }
    }

    /// Puts the clock to `now`, forward or back, because time has passed or is told anew: it is
    /// believed.
    pub fn set(&self, now: Time) {
        let moved = now.0.wrapping_sub(self.now.swap(now.0, Ordering::AcqRel));
        self.running.fetch_add(moved, Ordering::AcqRel);
    }

    /// Moves the clock forward.
    pub fn advance(&self, span: Duration) {
        self.set(self.now() + span);
    }

    /// Steps the wall clock alone, as somebody does who puts it right or wrong.
    pub fn step_to(&self, now: Time) {
        self.now.store(now.0, Ordering::Release);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time(self.now.load(Ordering::Acquire))
    }

    fn running(&self) -> Option<Duration> {
        // Far from zero, so that it can go back as `set` may.
        let running = self.running.load(Ordering::Acquire).wrapping_add(u64::MAX / 2);
        Some(Duration::from_nanos(running))
    }
}

/// Measures how long something takes, unmoved by steps of the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins to measure.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Says of something that goes on how long it has not moved; each side may be another thread.
#[derive(Debug)]
pub struct Pulse {
    since: Stopwatch,
    /// The last beat, in milliseconds from then on.
    beaten_ms: AtomicU64,
}

impl Pulse {
    /// Begins with a beat.
    pub fn start() -> Self {
        Self { since: Stopwatch::start(), beaten_ms: AtomicU64::new(0) }
    }

    /// It moves.
    pub fn beat(&self) {
        self.beaten_ms.store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// For how long it has not moved.
    pub fn silent(&self) -> Duration {
        let beaten = Duration::from_millis(self.beaten_ms.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(beaten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_is_written() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1_795_298_840_000_000_001, "2026-11-21T22:07:20.000000001Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(Time::from_nanos(nanos).to_string(), text);
            assert_eq!(text.parse(), Ok(Time::from_nanos(nanos)));
        }
        assert_eq!("2026-11-21 22:07:20".parse(), Ok(Time::from_secs(1_795_298_840)));
        assert_eq!("2026-11-21T23:07:20+01:00".parse(), Ok(Time::from_secs(1_795_298_840)));
        assert_eq!("2026-11-21T19:37:20-02:30".parse(), Ok(Time::from_secs(1_795_298_840)));
    }

    #[test]
    fn what_is_no_time_or_cannot_be_held_is_refused() {
        for text in [
            "",
            "now",
            "2026-11-21",
            "1969-12-31T23:59:59Z",
            "2555-01-01T00:00:00Z",
            "2026-11-21T23:07:20+1:00",
            "é+01:00",
        ] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }
}
