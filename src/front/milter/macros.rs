//! Macros: what the MTA tells beside a command, in a frame before it.
//!
//! They are read as they come, each in its own stage only, since an old value lingers in later
//! ones; what was not asked for is passed over, so that nothing is kept of it.

use std::net::IpAddr;

use super::wire::strings;
use crate::smtp::address::ClientText;
use crate::smtp::event::Fate;
use crate::smtp::template::is_host_name;

/// What macros have told. All of it together is less than two kilobytes, whatever was sent.
#[derive(Debug, Default)]
pub(super) struct Macros {
    /// At connect.
    pub(super) client: OfClient,
    /// At MAIL.
    pub(super) sender: OfSender,
    /// At RCPT.
    pub(super) recipient: OfRecipient,
    /// At the end of a message: its size in bytes.
    pub(super) size: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct OfClient {
    /// `j`: what the MTA calls the host.
    pub(super) host: Option<Box<str>>,
    /// `{client_addr}`
    pub(super) address: Option<IpAddr>,
    /// `{client_resolve}`
    pub(super) resolved: Resolved,
}

/// What came of looking the client's name up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Resolved {
    /// The MTA does not say.
    #[default]
    Untold,
    /// The name leads to the address.
    Confirmed,
    /// It does not, or there is none.
    Unconfirmed,
    /// The look-up failed, which says nothing.
    Unsure,
}

#[derive(Debug, Default)]
pub(super) struct OfSender {
    /// `{auth_authen}`: the name the client has authenticated as. Postfix names the macro and gives
    /// it no value where nobody has.
    pub(super) user: Option<ClientText>,
    /// Whether there is a `{tls_version}`.
    pub(super) tls: bool,
}

#[derive(Debug, Default)]
pub(super) struct OfRecipient {
    /// What `{rcpt_mailer}` and `{rcpt_host}` say of it.
    pub(super) fate: Option<Fate>,
    /// `{rcpt_addr}`: the mailbox that the MTA delivers to, whatever the client has written. Nothing
    /// of one that it has refused, where it tells the reply in place of it.
    pub(super) mailbox: Option<ClientText>,
}

impl Macros {
    /// Takes the macros of a stage; those of it that were known before are forgotten.
    pub(super) fn take(&mut self, payload: &[u8]) {
        let Some((stage, payload)) = payload.split_first() else { return };
        match stage {
            b'C' => self.client = OfClient::read(payload),
            b'M' => self.sender = OfSender::read(payload),
            b'R' => self.recipient = OfRecipient::read(payload),
            b'E' => {
                let [size] = values(payload, [b"{msg_size}"]);
                self.size = size.and_then(|size| std::str::from_utf8(size).ok()?.parse().ok());
            }
            _ => {}
        }
    }

    /// A client comes, or greets: what was said of a message concerns another.
    pub(super) fn forget_message(&mut self) {
        self.sender = OfSender::default();
        self.forget_recipient();
    }

    /// A message begins: what was said of a recipient concerns another.
    pub(super) fn forget_recipient(&mut self) {
        self.recipient = OfRecipient::default();
        self.size = None;
    }
}

impl OfClient {
    fn read(payload: &[u8]) -> Self {
        let [host, address, resolved] =
            values(payload, [b"j", b"{client_addr}", b"{client_resolve}"]);
        let host = host.and_then(|host| std::str::from_utf8(host).ok());
        let resolved = match resolved {
            None => Resolved::Untold,
            Some(b"OK") => Resolved::Confirmed,
            Some(b"TEMP") => Resolved::Unsure,
            Some(_) => Resolved::Unconfirmed,
        };
        Self {
            host: host.filter(|host| is_host_name(host)).map(Into::into),
            address: address.and_then(address_of),
            resolved,
        }
    }
}

impl OfSender {
    fn read(payload: &[u8]) -> Self {
        let [user, tls] = values(payload, [b"{auth_authen}", b"{tls_version}"]);
        Self {
            user: user.filter(|user| !user.is_empty()).map(ClientText::new),
            tls: tls.is_some_and(|version| !version.is_empty()),
        }
    }
}

impl OfRecipient {
    fn read(payload: &[u8]) -> Self {
        let [mailer, host, mailbox] =
            values(payload, [b"{rcpt_mailer}", b"{rcpt_host}", b"{rcpt_addr}"]);
        match mailer {
            Some(b"error") => {
                // Of one that it refuses, Postfix tells its reply in place of the mailbox.
                let fate = match host {
                    Some(b"4.1.1") if mailbox.is_some_and(is_in_doubt) => Fate::Rejected,
                    host => host.map_or(Fate::Rejected, refused_for),
                };
                Self { fate: Some(fate), mailbox: None }
            }
            _ => {
                // Without a domain it is a user of the host, but only where the host delivers it.
                let whole = |mailbox: &&[u8]| mailer == Some(b"local") || mailbox.contains(&b'@');
                Self { fate: None, mailbox: mailbox.filter(whole).map(ClientText::new) }
            }
        }
    }
}

/// What the MTA's enhanced code says of a recipient that it has refused (RFC 3463 section 3.2).
///
/// With `soft_bounce`, or `unknown_local_recipient_reject_code = 450`, an unknown recipient is
/// 4.1.1, and as unknown as ever.
fn refused_for(enhanced: &[u8]) -> Fate {
    match enhanced {
        // These speak of the sender, or of a name that cannot be looked up just now.
        b"5.1.7" | b"5.1.8" | b"4.1.7" | b"4.1.8" | b"4.1.2" => Fate::Rejected,
        // Sendmail 8.18 tells no code of a user it has not found; of what its rules refuse it does.
        b"" => Fate::Unknown,
        _ if enhanced.starts_with(b"5.1.") || enhanced.starts_with(b"4.1.") => Fate::Unknown,
        _ => Fate::Rejected,
    }
}

/// Whether Postfix only could not find out if there is such a user (`reject_unverified_recipient`):
/// while the host behind it is away all of its users are refused so, by the code of an unknown one.
///
/// A client that puts these words into a recipient of its own still meets those that tell of an
/// unknown user, so that nobody guesses uncounted.
fn is_in_doubt(reply: &[u8]) -> bool {
    let says = |words: &[u8]| memchr::memmem::find(reply, words).is_some();
    let known: [&[u8]; 3] = [b"said: 5", b"User unknown", b"unknown user"];
    reply.starts_with(b"Recipient address rejected: unverified address: ")
        && !known.into_iter().any(says)
}

/// An address as MTAs write it: Sendmail with `IPv6:` before it.
pub(super) fn address_of(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let prefix = text.get(..5).filter(|prefix| prefix.eq_ignore_ascii_case("IPv6:"));
    text[prefix.map_or(0, str::len)..].parse().ok()
}

/// The values of these macros, which come as name, value, name, value. Of one that is told twice
/// the first holds.
fn values<'a, const N: usize>(payload: &'a [u8], names: [&[u8]; N]) -> [Option<&'a [u8]>; N] {
    let (mut found, mut told) = ([None; N], strings(payload));
    while let (Some(name), Some(value)) = (told.next(), told.next()) {
        if let Some(at) = names.iter().position(|asked| *asked == name) {
            found[at].get_or_insert(value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(stage: u8, words: &[&str]) -> Macros {
        let mut macros = Macros::default();
        let payload = words.iter().flat_map(|word| word.bytes().chain([0]));
        macros.take(&std::iter::once(stage).chain(payload).collect::<Vec<_>>());
        macros
    }

    #[test]
    fn a_macro_is_read_in_its_own_stage_only() {
        let words =
            ["{auth_authen}", "alice", "{tls_version}", "TLSv1.3", "{rcpt_mailer}", "error"];
        let sender = told(b'M', &words);
        assert_eq!(sender.sender.user.unwrap().as_str(), "alice");
        assert!(sender.sender.tls && sender.recipient.fate.is_none());
        for stage in *b"CHRTNE\0" {
            let other = told(stage, &words);
            assert!(other.sender.user.is_none() && !other.sender.tls, "{stage}");
        }
    }

    #[test]
    fn what_the_mta_calls_the_host_is_a_host_name_or_nothing() {
        let host = |name: &str| told(b'C', &["j", name]).client.host;
        assert_eq!(host("mx1.example.org").as_deref(), Some("mx1.example.org"));
        for name in ["", "two words", "a\u{e9}.example", "%s", &"a".repeat(81)] {
            assert_eq!(host(name), None, "{name}");
        }
    }

    #[test]
    fn of_a_macro_that_is_told_twice_the_first_holds_and_half_a_pair_is_none() {
        let macros = told(b'E', &["{msg_size}", "7", "{msg_size}", "8", "x"]);
        assert_eq!(macros.size, Some(7));
        assert_eq!(told(b'E', &["{msg_size}"]).size, None);
    }

    /// Sendmail sends such a frame where none of its macros has a value.
    #[test]
    fn a_frame_without_any_forgets_those_of_its_stage() {
        let mut macros = told(b'M', &["{auth_authen}", "alice"]);
        macros.take(b"M");
        assert!(macros.sender.user.is_none());
    }

    #[test]
    fn the_mailbox_is_told_of_a_recipient_that_the_mta_accepts() {
        let mailbox = |mailer| {
            let words = ["{rcpt_mailer}", mailer, "{rcpt_addr}", "user@example.org"];
            told(b'R', &words).recipient.mailbox
        };
        assert_eq!(mailbox("virtual").unwrap().as_str(), "user@example.org");
        assert_eq!(mailbox("error"), None);
        let user = |mailer| {
            told(b'R', &["{rcpt_mailer}", mailer, "{rcpt_addr}", "user"]).recipient.mailbox
        };
        assert_eq!(user("local").unwrap().as_str(), "user");
        assert_eq!(user("uucp"), None);
    }

    #[test]
    fn a_recipient_that_the_mta_refused_is_unknown_or_rejected_by_its_code() {
        let fate =
            |host| told(b'R', &["{rcpt_mailer}", "error", "{rcpt_host}", host]).recipient.fate;
        assert_eq!(fate("5.1.1"), Some(Fate::Unknown));
        assert_eq!(fate("4.1.1"), Some(Fate::Unknown));
        assert_eq!(fate(""), Some(Fate::Unknown), "Sendmail 8.18");
        for of_the_sender in ["5.1.7", "5.1.8", "4.1.7", "4.1.8"] {
            assert_eq!(fate(of_the_sender), Some(Fate::Rejected));
        }
        assert_eq!(fate("4.1.2"), Some(Fate::Rejected), "DNS has failed");
        assert_eq!(fate("5.7.1"), Some(Fate::Rejected));
        assert_eq!(told(b'R', &["{rcpt_mailer}", "local"]).recipient.fate, None);
    }

    #[test]
    fn a_recipient_that_could_not_be_verified_is_unknown_only_if_the_host_behind_says_so() {
        let fate = |why: &str| {
            let reply = format!("Recipient address rejected: {why}");
            let words = ["{rcpt_mailer}", "error", "{rcpt_host}", "4.1.1", "{rcpt_addr}", &reply];
            told(b'R', &words).recipient.fate
        };
        for why in ["Address verification in progress", "host mx said: 451 4.3.0 later"] {
            assert_eq!(fate(&format!("unverified address: {why}")), Some(Fate::Rejected), "{why}");
        }
        for why in [
            "unverified address: host mx said: 550 5.1.1 no such user",
            "unverified address: unknown user: \"info\"",
            "User unknown in virtual mailbox table",
            "unverified address: @example.org>: Recipient address rejected: User unknown",
        ] {
            assert_eq!(fate(why), Some(Fate::Unknown), "{why}");
        }
    }
}
