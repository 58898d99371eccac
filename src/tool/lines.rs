//! Lines for people: names in a column, texts wrapped at the width of a terminal, amounts in units
//! that are read at a glance.

use std::fmt::{self, Formatter};
use std::time::Duration;

use crate::clock::Time;
use crate::front::control::status::whole;
use crate::smtp::harmless::harmless;

/// Names stand in a column of this width.
pub(super) const NAME: usize = 14;

/// A terminal's width.
pub(super) const WIDTH: usize = 80;

/// A name and what is said of it. A text that is longer than the terminal is wide goes on below. What
/// a client chose may be in it.
pub(super) fn row(f: &mut Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    let text = harmless(text);
    let (mut line, mut used) = (format!("{name:NAME$}"), NAME);
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let wide = word.chars().count();
        if used > NAME && used + 1 + wide > WIDTH {
            writeln!(f, "{line}")?;
            (line, used) = (" ".repeat(NAME), NAME);
        }
        if used > NAME {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += wide;
    }
    writeln!(f, "{}", line.trim_end())
}

/// A span of time in its two largest units, rounded up to seconds.
pub(super) fn span(span: Duration) -> String {
    let secs = span.as_nanos().div_ceil(1_000_000_000) as u64;
    let units = [("d", 86_400, u64::MAX), ("h", 3_600, 24), ("m", 60, 60), ("s", 1, 60)];
    let parts = units.map(|(unit, length, most)| (unit, secs / length % most));
    let told: Vec<_> = parts.into_iter().skip_while(|(_, amount)| *amount == 0).take(2).collect();
    let told = told.into_iter().filter(|(_, amount)| *amount > 0);
    let words: Vec<_> = told.map(|(unit, amount)| format!("{amount} {unit}")).collect();
    if words.is_empty() { "0 s".into() } else { words.join(" ") }
}

/// When something ends, and how long that is from now.
pub(super) fn ending(until: Time, now: Time) -> String {
    format!("until {} ({} left)", whole(until), span(until.since(now)))
}

/// How long ago something was.
pub(super) fn ago(then: Time, now: Time) -> String {
    let passed = Duration::from_secs(now.since(then).as_secs());
    if passed.is_zero() { "just now".into() } else { format!("{} ago", span(passed)) }
}

/// A number with its thousands apart.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups = groups.map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

/// So many bytes, in the largest unit of which there is one.
pub(super) fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (0..units.len() - 1).take_while(|power| bytes >= 1024_f64.powi(*power as i32 + 1));
    let power = power.count();
    let amount = bytes / 1024_f64.powi(power as i32);
    match power > 0 && amount < 10.0 {
        true => format!("{amount:.1} {}", units[power]),
        false => format!("{amount:.0} {}", units[power]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_at_a_glance() {
        let of = |secs: f64| span(Duration::from_secs_f64(secs));
        assert_eq!([of(0.0), of(0.2), of(599.999), of(3_725.0)], ["0 s", "1 s", "10 m", "1 h 2 m"]);
        assert_eq!([of(86_400.0), of(90_061.0)], ["1 d", "1 d 1 h"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 1e3, 5.4e6, 4e10].map(bytes), ["0 B", "1000 B", "5.1 MiB", "37 GiB"]);
    }

    struct Row(&'static str);

    impl fmt::Display for Row {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            row(f, "name", self.0)
        }
    }

    #[test]
    fn a_text_goes_on_below_its_beginning() {
        let text = "a text of more words than there is room for in one line of a terminal, by far";
        let lines = Row(text).to_string();
        assert!(lines.lines().count() == 2 && lines.lines().all(|line| line.len() <= WIDTH));
        assert!(lines.lines().nth(1).unwrap().starts_with("              "), "{lines}");
        assert_eq!(Row("x\u{202e}\ny").to_string(), "name          x\u{fffd}\u{fffd}y\n");
    }
}
