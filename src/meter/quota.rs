//! A quota as one says it: `"60/1m burst 120"`. Never zero, by its types.

use std::fmt::{self, Display, Formatter};
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use super::units::{Size, Span};
use crate::setting::{Expected, as_text};

/// So much in so long, with a burst on top of an even flow.
///
/// ```
/// use postpone::meter::quota::Quota;
/// let quota: Quota = "60/1m burst 120".parse().unwrap();
/// assert_eq!(quota.to_string(), "60/1m burst 120");
/// let volume: Quota = "10MiB/1m burst 50MiB".parse().unwrap();
/// assert_eq!(volume.to_string(), "10MiB/1m burst 50MiB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    unit: Unit,
    count: NonZeroU64,
    period: NonZeroU64,
    burst: NonZeroU64,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Plain numbers: connections, messages, recipients.
    Events,
    /// Bytes, written as sizes.
    Bytes,
}

impl Quota {
    /// So many events in so long; the burst equals the count. For constants.
    ///
    /// # Panics
    /// If `count` or `period_secs` is zero.
    pub const fn events(count: u64, period_secs: u64) -> Self {
        let count = NonZeroU64::new(count).expect("a quota counts something");
        let period = NonZeroU64::new(period_secs * 1_000_000_000).expect("a quota has a period");
        Self { unit: Unit::Events, count, period, burst: count }
    }

    /// The same with another burst. For constants.
    ///
    /// # Panics
    /// If `burst` is zero.
    pub const fn with_burst(self, burst: u64) -> Self {
        let burst = NonZeroU64::new(burst).expect("a burst is at least one");
        Self { burst, ..self }
    }

    /// So much of it: fewer in the same time, and a smaller burst, each one at least.
    #[must_use]
    pub fn times(&self, factor: f32) -> Self {
        if !(factor > 0.0 && factor < 1.0) {
            return *self;
        }
        let part = |whole: NonZeroU64, by: f64| {
            NonZeroU64::new((whole.get() as f64 * by) as u64).unwrap_or(NonZeroU64::MIN)
        };
        let factor = f64::from(factor);
        Self { period: part(self.period, 1.0 / factor), burst: part(self.burst, factor), ..*self }
    }

    /// The time after which one has flowed off.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.cost_ns(1))
    }

    /// Whether it counts events or bytes.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// How much may come at once after a long silence.
    pub fn burst(&self) -> u64 {
        self.burst.get()
    }

    /// Whether what passes this quota always passes the other.
    pub fn is_at_least_as_strict_as(&self, other: &Self) -> bool {
        let rate =
            |quota: &Self, per: &Self| u128::from(quota.count.get()) * u128::from(per.period.get());
        rate(self, other) <= rate(other, self) && self.burst <= other.burst
    }

    /// The time after which `amount` has flowed off, in nanoseconds, rounded up.
    pub(super) fn cost_ns(&self, amount: u64) -> u64 {
        let exact = u128::from(amount) * u128::from(self.period.get());
        u64::try_from(exact.div_ceil(u128::from(self.count.get()))).unwrap_or(u64::MAX)
    }

    /// How far ahead of the present the meter may run, in nanoseconds.
    ///
    /// A burst may arrive as many charges, and the cost of each was rounded up: so many
    /// nanoseconds more, at most a millisecond, or the last event of a burst would be refused.
    pub(super) fn tolerance_ns(&self) -> u64 {
        self.cost_ns(self.burst()).saturating_add(self.burst().min(1_000_000))
    }

    /// What has flowed off after `ns` nanoseconds, rounded up: the reverse of [`Self::cost_ns`].
    pub(super) fn amount_in(&self, ns: u64) -> u64 {
        let exact = u128::from(ns) * u128::from(self.count.get());
        u64::try_from(exact.div_ceil(u128::from(self.period.get()))).unwrap_or(u64::MAX)
    }
}

fn expected() -> Expected {
    Expected::new(r#"a quota such as "60/1m", "60/1m burst 120" or "10MiB/1m burst 50MiB""#)
}

impl FromStr for Quota {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let (rate, burst) = match text.split_once(" burst ") {
            Some((rate, burst)) => (rate, Some(burst.trim())),
            None => (text, None),
        };
        let (count, period) = rate.split_once('/').ok_or_else(expected)?;
        let (unit, count) = amount(count.trim())?;
        let burst = match burst.map(amount).transpose()? {
            Some((other, _)) if other != unit => return Err(expected()),
            Some((_, burst)) => burst,
            None => count,
        };
        let period = period.trim().parse::<Span>().map_err(|_| expected())?.duration();
        let period = u64::try_from(period.as_nanos()).ok().and_then(NonZeroU64::new);
        Ok(Self { unit, count, period: period.ok_or_else(expected)?, burst })
    }
}

fn amount(text: &str) -> Result<(Unit, NonZeroU64), Expected> {
    let (unit, number) = match text.parse::<u64>() {
        Ok(number) => (Unit::Events, number),
        Err(_) => (Unit::Bytes, text.parse::<Size>().map_err(|_| expected())?.as_bytes()),
    };
    let number = NonZeroU64::new(number).ok_or_else(expected)?;
    Ok((unit, number))
}

impl Display for Quota {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let print = |f: &mut Formatter<'_>, amount: NonZeroU64| match self.unit {
            Unit::Events => write!(f, "{amount}"),
            Unit::Bytes => write!(f, "{}", Size::bytes(amount.get())),
        };
        print(f, self.count)?;
        let period = Duration::from_nanos(self.period.get());
        write!(f, "/{}", Span::from(period))?;
        if self.burst != self.count {
            f.write_str(" burst ")?;
            print(f, self.burst)?;
        }
        Ok(())
    }
}

as_text!(Quota);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zero_cannot_be_written() {
        for text in
            ["0/1m", "60/0s", "60/1m burst 0", "0B/1m", "60", "60/", "/1m", "6MiB/1m burst 3"]
        {
            assert_eq!(text.parse::<Quota>().unwrap_err(), expected(), "{text}");
        }
    }

    #[test]
    fn a_burst_that_equals_the_count_is_not_printed() {
        assert_eq!("60/60s burst 60".parse::<Quota>().unwrap().to_string(), "60/1m");
        assert_eq!("1024KiB/1h".parse::<Quota>().unwrap().to_string(), "1MiB/1h");
    }

    proptest! {
        #[test]
        fn whatever_prints_parses_to_the_same(
            count in 1..u64::MAX, secs in 1..100_000_u64, burst in 1..u64::MAX, bytes: bool
        ) {
            let unit = if bytes { Unit::Bytes } else { Unit::Events };
            let quota = Quota { unit, ..Quota::events(count, secs).with_burst(burst) };
            prop_assert_eq!(quota.to_string().parse::<Quota>().unwrap(), quota);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<Quota>();
        }
    }
}
