//! Mailboxes and names as clients give them: forgeable, hostile, and bounded here.

use std::fmt::{self, Debug, Formatter};

/// The longest text of a client that is kept, in bytes. RFC 5321 section 4.5.3.1 allows 256
/// octets for a path and 255 for a domain; what is longer is cut, since it is kept for as long
/// as the session lasts.
pub const LONGEST: usize = 512;

/// A text the client chose: its HELO name. Cut to [`LONGEST`] bytes, otherwise as given.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientText(Box<str>);

impl ClientText {
    /// Takes the text as it came; bytes that are no UTF-8 become U+FFFD.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bounded(bytes).into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Debug for ClientText {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.0, f)
    }
}

/// A mailbox of an envelope: `local@domain`, or the null sender `<>`.
///
/// The domain is in lower case (RFC 5321 section 2.4: only the local part may depend on case).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Box<str>);

impl Address {
    /// Takes the argument of `MAIL FROM:` or `RCPT TO:`, with or without its angle brackets.
    pub fn new(path: &[u8]) -> Self {
        let text = bounded(path);
        let text = text.trim();
        let text = text.strip_prefix('<').unwrap_or(text);
        let text = text.strip_suffix('>').unwrap_or(text);
        match text.rsplit_once('@') {
            Some((local, domain)) => {
                Self(format!("{local}@{}", domain.to_ascii_lowercase()).into())
            }
            None => Self(text.into()),
        }
    }

    /// `local@domain`; empty for the null sender.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the null sender of bounces (RFC 5321 section 4.5.5).
    pub fn is_null(&self) -> bool {
        self.0.is_empty()
    }

    /// What stands before the last `@`; all of it if there is none.
    pub fn local(&self) -> &str {
        self.0.rsplit_once('@').map_or(&self.0, |(local, _)| local)
    }

    /// What stands behind the last `@`, in lower case; empty if there is none.
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

fn bounded(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(LONGEST)];
    String::from_utf8_lossy(cut).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_mailbox_with_its_domain_in_lower_case() {
        let address = Address::new(b"<First.Last@Example.ORG>");
        assert_eq!(address.as_str(), "First.Last@example.org");
        assert_eq!((address.local(), address.domain()), ("First.Last", "example.org"));
        assert!(Address::new(b"<>").is_null());
        assert_eq!(Address::new(b"<postmaster>").local(), "postmaster");
        assert_eq!(Address::new(b"\"a@b\"@example.org").local(), "\"a@b\"");
    }

    #[test]
    fn whatever_a_client_sends_stays_small_and_printable_as_text() {
        let address = Address::new(&[0xff; 4096]);
        assert!(address.as_str().chars().count() <= LONGEST);
    }
}
