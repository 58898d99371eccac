//! Replies that cannot be wrong.
//!
//! Only temporary refusals exist here (RFC 5321 section 4.2.1, 4yz), with an enhanced code of the
//! same class (RFC 3463), in one line: a policy service has no more, and Sendmail does not see a
//! 421 of several lines as one.

use std::fmt::{self, Display, Formatter};

/// The longest reply line in bytes, its CR LF included (RFC 5321 section 4.5.3.1.5).
pub const LONGEST_LINE: usize = 512;

/// A reply code that puts off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// 450: the mailbox is unavailable for now.
    Code450,
    /// 451: local error in processing.
    Code451,
    /// 452: insufficient storage, or too many recipients (RFC 5321 section 4.5.3.1.10).
    Code452,
    /// 421: the service closes the connection.
    Code421,
}

/// What a refusal does to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// The event may go on.
    Pass,
    /// This command is put off, the session goes on: 450, 451, 452.
    Defer,
    /// The session is closed: 421.
    Close,
}

impl Action {
    /// Its one name in logs, metrics and tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Defer => "defer",
            Self::Close => "close",
        }
    }
}

impl Code {
    /// The code of these three digits.
    pub fn from_digits(digits: &str) -> Option<Self> {
        Some(match digits {
            "421" => Self::Code421,
            "450" => Self::Code450,
            "451" => Self::Code451,
            "452" => Self::Code452,
            _ => return None,
        })
    }

    /// Its three digits.
    pub const fn digits(self) -> &'static str {
        match self {
            Self::Code421 => "421",
            Self::Code450 => "450",
            Self::Code451 => "451",
            Self::Code452 => "452",
        }
    }

    /// What it does to the session: 421 and hanging up are one thing.
    pub const fn action(self) -> Action {
        match self {
            Self::Code421 => Action::Close,
            Self::Code450 | Self::Code451 | Self::Code452 => Action::Defer,
        }
    }
}

/// An enhanced status code of the class 4, persistent transient failure (RFC 3463).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enhanced {
    /// The second number, at most 999.
    subject: u16,
    /// The third number, at most 999.
    detail: u16,
}

impl Enhanced {
    /// 4.5.3: too many recipients.
    pub const TOO_MANY_RECIPIENTS: Self = Self { subject: 5, detail: 3 };

    /// Reads `4.x.y`.
    pub fn parse(text: &str) -> Option<Self> {
        let (subject, detail) = text.strip_prefix("4.")?.split_once('.')?;
        let number = |digits: &str| -> Option<u16> {
            // RFC 3463 section 2: one to three digits, no leading zeros.
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            let number = digits.parse().ok().filter(|_| plain && digits.len() <= 3)?;
            (digits.len() == 1 || !digits.starts_with('0')).then_some(number)
        };
        Some(Self { subject: number(subject)?, detail: number(detail)? })
    }
}

impl Display for Enhanced {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "4.{}.{}", self.subject, self.detail)
    }
}

/// A reply line: one temporary code, an enhanced code of its class, printable ASCII, and together
/// with its CR LF no longer than [`LONGEST_LINE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    code: Code,
    enhanced: Enhanced,
    text: Box<str>,
}

impl Reply {
    /// How long the text may be: what the codes, two blanks and CR LF leave.
    pub const LONGEST_TEXT: usize = LONGEST_LINE - "421 4.999.999 \r\n".len();

    /// A reply of these parts. What cannot stand in a reply line becomes `?`, what does not fit is
    /// cut.
    pub fn new(code: Code, enhanced: Enhanced, text: &str) -> Self {
        let text: String = text.chars().map(printable).take(Self::LONGEST_TEXT).collect();
        Self { code, enhanced, text: text.into() }
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Its enhanced code.
    pub fn enhanced(&self) -> Enhanced {
        self.enhanced
    }

    /// Its text, without the codes.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The character itself if it is printable ASCII, else `?`.
pub(super) fn printable(c: char) -> char {
    if matches!(c, ' '..='~') { c } else { '?' }
}

impl Display for Reply {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.code.digits(), self.enhanced, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_enhanced_code_is_of_class_four() {
        assert_eq!(Enhanced::parse("4.7.0").unwrap().to_string(), "4.7.0");
        for text in ["5.7.0", "4.7", "4.7.0.1", "4.07.0", "4.1000.0", "4..0", "4.+7.0", ""] {
            assert_eq!(Enhanced::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_bad_line(text in "(?s).{0,900}") {
            let reply = Reply::new(Code::Code421, Enhanced::parse("4.7.0").unwrap(), &text);
            let line = reply.to_string();
            prop_assert!(line.len() + 2 <= LONGEST_LINE);
            prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)));
            prop_assert!(line.starts_with("421 4.7.0 "));
        }
    }
}
