//! Names of hosts and domains, in the one form in which they are compared: A-labels in lower case
//! (RFC 5890, mapped as UTS 46 says), without the dot at the end.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

use crate::setting::{Expected, as_text};

/// The longest name in DNS as text, in bytes (RFC 1035 section 2.3.4). A longer one is no name.
const LONGEST: usize = 253;

/// The form in which a name is compared. What is no name is only put in lower case; an address
/// literal too.
pub fn canonical(name: &str) -> Cow<'_, str> {
    let name = name.trim_end_matches('.');
    let ready = |byte: u8| byte.is_ascii() && !byte.is_ascii_uppercase();
    if name.bytes().all(ready) && !has_a_label(name) {
        return Cow::Borrowed(name);
    }
    let ascii = match name.is_ascii() && !has_a_label(name) {
        true => Some(Cow::Owned(name.to_ascii_lowercase())),
        false => to_ascii(name),
    };
    ascii.unwrap_or_else(|| Cow::Owned(name.to_ascii_lowercase()))
}

/// A domain as it is written in settings: a name that mail can be addressed to, in the form in which
/// names are compared. What could never match (`.bank.example`, `@bank.example`, `*.bank.example`) is
/// none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Box<str>);

impl Domain {
    /// The name, in the form of [`canonical`].
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let name = canonical(text);
        // A single label is one of the host's own network.
        if is_qualified(&name) || is_qualified(&format!("{name}.example")) {
            return Ok(Self(name.into()));
        }
        let meant = text.trim_start_matches(['*', '.', '@', ' ']).trim_end();
        let meant = match meant != text && is_qualified(&canonical(meant)) {
            true => format!(": did you mean {:?}?", canonical(meant)),
            false => String::new(),
        };
        let expected = r#"the name of a domain, such as "example.org""#;
        Err(Expected::new(format!("{expected}, not {text:?}, which no address can have{meant}")))
    }
}

impl Display for Domain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(Domain);

/// Whether a canonical name is one of the Internet: labels of letters, digits, `-` and `_`, two at
/// least, the last one no number. A single label may become another name, since MTAs complete it,
/// and an address without brackets is an address literal to some.
pub fn is_qualified(name: &str) -> bool {
    let bytes = name.as_bytes();
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &[u8]| !label.is_empty() && label.iter().all(letter);
    let last_dot = bytes.iter().rposition(|byte| *byte == b'.');
    bytes.len() <= LONGEST
        && last_dot.is_some_and(|dot| !bytes[dot + 1..].iter().all(u8::is_ascii_digit))
        && bytes.split(|byte| *byte == b'.').all(label)
        && (!has_a_label(name) || to_ascii(name).is_some())
}

fn has_a_label(name: &str) -> bool {
    // Of nearly every name that is all there is to ask.
    if !name.as_bytes().windows(2).any(|pair| pair == b"--") {
        return false;
    }
    let begins = |label: &str| {
        label.get(..4).is_some_and(|beginning| beginning.eq_ignore_ascii_case("xn--"))
    };
    name.split('.').any(begins)
}

/// What UTS 46 makes of it; nothing if it is no name by that.
fn to_ascii(name: &str) -> Option<Cow<'_, str>> {
    let deny = AsciiDenyList::EMPTY;
    let mapped = Uts46::new().to_ascii(name.as_bytes(), deny, Hyphens::Allow, DnsLength::Ignore);
    let mapped = mapped.ok()?;
    // A dot of another script may have stood at the end.
    let trimmed = mapped.trim_end_matches('.').len();
    let mapped = match mapped {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..trimmed]),
        Cow::Owned(text) => Cow::Owned(text[..trimmed].to_owned()),
    };
    (mapped.len() <= LONGEST).then_some(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_spellings_of_a_name_are_one() {
        let all = [
            ("bank.example", &["BANK.Example", "bank.example.", "ｂａｎｋ。example"][..]),
            (
                "xn--bcher-kva.example",
                &[
                    "bücher.example",
                    "BÜCHER.example.",
                    "XN--BCHER-KVA.Example",
                    "bu\u{308}cher.example",
                ],
            ),
            ("[192.0.2.1]", &["[192.0.2.1]"]),
            ("[ipv6:2001:db8::1]", &["[IPv6:2001:DB8::1]"]),
        ];
        for (name, spellings) in all {
            for spelling in spellings {
                assert_eq!(canonical(spelling), name, "{spelling}");
            }
            assert_eq!(canonical(name), name);
        }
    }

    #[test]
    fn a_domain_in_settings_is_one_that_an_address_can_have() {
        for (text, name) in [("Bank.Example.", "bank.example"), ("localhost", "localhost")] {
            assert_eq!(text.parse::<Domain>().unwrap().as_str(), name);
        }
        for text in [".bank.example", "@bank.example", "*.bank.example", "bank .example", "", "*"] {
            let why = text.parse::<Domain>().expect_err(text).to_string();
            assert!(why.starts_with("expected the name of a domain"), "{why}");
            let near = text.len() > 2 && !text.contains(' ');
            assert_eq!(why.contains(r#"did you mean "bank.example"?"#), near, "{why}");
        }
    }

    #[test]
    fn what_is_no_name_of_the_internet_is_known_as_such() {
        for name in ["bank.example", "xn--bcher-kva.example", "a_b.example", "1.example"] {
            assert!(is_qualified(name), "{name}");
        }
        let others = ["", "localhost", "a..example", ".example", "a .example", "xn--a.example"];
        for name in others.into_iter().chain(["192.0.2.1", "[192.0.2.1]"]) {
            assert!(!is_qualified(&canonical(name)), "{name}");
        }
        assert!(!is_qualified(&canonical(&"ü.".repeat(200))));
    }

    proptest! {
        #[test]
        fn the_form_of_a_form_is_itself(name in "(\\PC{0,12}|[a-zA-ZüÜßİ。-]{0,9}|xn--[a-z0-9-]{0,9}|\\.){0,5}") {
            let once = canonical(&name).into_owned();
            prop_assert_eq!(canonical(&once), &*once);
        }
    }
}
