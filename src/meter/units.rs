//! Spans of time and sizes as an administrator writes them: `"5m"`, `"10MiB"`.
//!
//! A value is one whole number and one unit, and prints back in the largest unit that keeps it
//! whole.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Duration;

use crate::setting::{Expected, as_text};

/// A span of time: `"500ms"`, `"30s"`, `"5m"`, `"12h"`, `"36d"`. At most 100 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// A span of whole seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// A span of milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// The span as the standard library's type.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Span {
    /// Cut to whole milliseconds, the smallest unit that can be written.
    fn from(duration: Duration) -> Self {
        Self(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

const SPAN_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const LONGEST_SPAN_MS: u64 = 36_525 * 86_400_000;

impl FromStr for Span {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        number_with_unit(text, &SPAN_UNITS)
            .filter(|ms| *ms <= LONGEST_SPAN_MS)
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| Expected::new(r#"a time such as "500ms", "30s", "5m", "12h" or "2d""#))
    }
}

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        print_with_unit(f, ms, &SPAN_UNITS, "s")
    }
}

as_text!(Span);

/// A number of bytes: `"512B"`, `"64KiB"`, `"10MiB"`, `"2GiB"`, `"1TiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// A size of so many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for Size {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        number_with_unit(text, &SIZE_UNITS)
            .map(Self)
            .ok_or_else(|| Expected::new(r#"a size such as "512B", "64KiB", "10MiB" or "2GiB""#))
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        print_with_unit(f, self.0, &SIZE_UNITS, "B")
    }
}

as_text!(Size);

fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn print_with_unit(
    f: &mut Formatter<'_>,
    value: u64,
    units: &[(&str, u64)],
    zero_unit: &str,
) -> fmt::Result {
    match units.iter().find(|(_, factor)| value > 0 && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", value / factor),
        None => write!(f, "0{zero_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_span_prints_back_in_its_largest_whole_unit() {
        for (text, printed) in
            [("60s", "1m"), ("90s", "90s"), ("36d", "36d"), ("1500ms", "1500ms"), ("0m", "0s")]
        {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_span_or_size_says_what_was_expected() {
        for text in ["", "5", "m", "5 m", "-5m", "1.5h", "5M", "99999999999d", "1h30m"] {
            assert!(text.parse::<Span>().unwrap_err().to_string().starts_with("expected a time"));
        }
        for text in ["", "5", "5MB", "5mib", "99999999TiB"] {
            assert!(text.parse::<Size>().unwrap_err().to_string().starts_with("expected a size"));
        }
    }

    proptest! {
        #[test]
        fn whatever_prints_parses_to_the_same(ms in 0..LONGEST_SPAN_MS, bytes: u64) {
            let span = Span(Duration::from_millis(ms));
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
            prop_assert_eq!(Size(bytes).to_string().parse::<Size>().unwrap(), Size(bytes));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = text.parse::<Span>();
            let _ = text.parse::<Size>();
        }
    }
}
