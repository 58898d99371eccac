//! What postgrey or sqlgrey knew, so that a site can switch without greylisting its known senders
//! again.
//!
//! Their databases know clients by address or network only, and senders in a form of their own.
//! So what they knew is kept as they knew it, under keys made from that, and asked for when a
//! triplet would have to wait: a hit counts as having come back, and from then on the triplet and
//! its client are known under our own keys. Entries are not renewed and fade; when the last one
//! has, nothing is asked any more.
//!
//! The forms of senders follow postgrey 1.37 and sqlgrey 1.8.0, whose own functions have made the
//! examples in the tests below.

use std::net::IpAddr;
use std::sync::Arc;

use super::signal::Context;
use crate::clock::Moment;
use crate::meter::key::{Key, Secret};
use crate::meter::record::Until;
use crate::meter::table::Table;
use crate::smtp::client::{Network, Prefixes};

/// What is kept under one of the keys: until when it is remembered.
pub type Imported = Until<false>;

/// Something that was known, in the words of who knew it. Letters are in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// A client that postgrey has whitelisted by itself.
    Client(Network),
    /// A triplet that has passed postgrey: its client, and `sender/recipient`.
    Triplet(Network, &'a str),
    /// A sender that has passed sqlgrey, `name@domain`.
    Sender(Network, &'a str),
    /// A domain of which several senders have passed sqlgrey.
    Domain(Network, &'a str),
}

impl Known<'_> {
    /// Its key.
    pub fn key(self, secret: &Secret) -> Key {
        let (kind, network, text) = match self {
            Self::Client(network) => ("client", network, ""),
            Self::Triplet(network, triplet) => ("triplet", network, triplet),
            Self::Sender(network, sender) => ("sender", network, sender),
            Self::Domain(network, domain) => ("domain", network, domain),
        };
        let key = secret.key("imported").part(kind.as_bytes()).part(&network.octets());
        key.part(text.as_bytes()).finish()
    }
}

/// Both of them know a client by its address, or by these first bits of it.
const SUBNET: Prefixes = Prefixes { ipv4: 24, ipv6: 64 };

/// A single address.
pub fn host(address: IpAddr) -> Network {
    Network::of(address.to_canonical(), Prefixes { ipv4: 32, ipv6: 128 })
}

/// The /24 or /64 around it.
pub fn subnet(address: IpAddr) -> Network {
    Network::of(address.to_canonical(), SUBNET)
}

/// What sqlgrey writes for the name or the domain of a sender that has none.
pub const UNDEFINED: &str = "-undef-";

/// The table of what was known, and what its keys are made with.
pub(super) struct Imports {
    pub(super) secret: Secret,
    pub(super) table: Arc<Table<Imported>>,
}

impl Imports {
    /// Whether this client, or its triplet, was known. Asks nothing while there is nothing.
    pub(super) fn know(&self, cx: &Context<'_>) -> bool {
        if self.table.is_empty() {
            return false;
        }
        let (Some(sender), Some(recipient)) = (cx.sender(), cx.recipient()) else { return false };
        // They were told by Postfix, without quotes.
        let sender = sender.without_quotes().to_ascii_lowercase();
        let recipient = recipient.without_quotes().to_ascii_lowercase();
        let triplet = format!("{}/{recipient}", postgrey_sender(&sender));
        let (name, domain) = sqlgrey_sender(&sender, &recipient);
        let address = format!("{name}@{domain}");
        let networks = [host(cx.client.address()), subnet(cx.client.address())];
        self.has(Known::Client(networks[0]), cx.at)
            || networks.into_iter().any(|network| {
                self.has(Known::Triplet(network, &triplet), cx.at)
                    || self.has(Known::Domain(network, domain), cx.at)
                    || self.has(Known::Sender(network, &address), cx.at)
            })
    }

    fn has(&self, known: Known<'_>, at: Moment) -> bool {
        self.table.read(known.key(&self.secret), at, |entry| entry.is_some())
    }
}

/// A sender as postgrey knows it: without the tag of BATV, without an extension, and with `#` for
/// numbers.
fn postgrey_sender(sender: &str) -> String {
    let Some((name, domain)) = sender.split_once('@') else { return sender.to_owned() };
    let parts: Vec<_> = name.split('=').collect();
    let is_tag = |part: &str| {
        part.len() >= 10 && part.bytes().take(10).all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z'))
    };
    let name = match parts[..] {
        ["prvs", one, other] if is_tag(other) && !is_tag(one) => one,
        ["prvs", _, other] => other,
        _ => name,
    };
    let name = before_extension(name);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut known = String::with_capacity(sender.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_word(c) != is_word(first)).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(end);
        let number = run.bytes().all(|byte| byte.is_ascii_digit());
        known.push_str(if number { "#" } else { run });
        rest = behind;
    }
    known + "@" + domain
}

fn before_extension(name: &str) -> &str {
    name.split_once('+').map_or(name, |(name, _)| name)
}

/// Longer ones are cut: sqlgrey's tables hold no more.
const LONGEST_NAME: usize = 64;
const LONGEST_DOMAIN: usize = 255;

/// Name and domain of a sender as sqlgrey knows them: the name without what changes from message
/// to message.
fn sqlgrey_sender<'a>(sender: &'a str, recipient: &str) -> (String, &'a str) {
    if sender.is_empty() {
        return (UNDEFINED.to_owned(), UNDEFINED);
    }
    let (name, domain) = sender.split_once('@').unwrap_or((sender, UNDEFINED));
    let name = without_srs_hash(name);
    let name = without_recipient(before_extension(&name), recipient);
    let name = without_hexadecimal(&without_bounce_mask(&name));
    (name.chars().take(LONGEST_NAME).collect(), cut(domain, LONGEST_DOMAIN))
}

fn cut(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

/// With `#` for hash and day of SRS: `srs0=#=#=domain=user`, `srs1=#=forwarder==#=#=domain=user`.
fn without_srs_hash(name: &str) -> String {
    let parts: Vec<_> = name.split('=').collect();
    match parts[..] {
        ["srs0", hash, day, domain, user]
            if [hash, day, domain, user].iter().all(|part| !part.is_empty()) =>
        {
            format!("srs0=#=#={domain}={user}")
        }
        ["srs1", hash, forwarder, ref between @ .., inner, day, domain, user]
            if between.iter().all(|part| part.is_empty())
                && [hash, forwarder, inner, day, domain, user].iter().all(|p| !p.is_empty()) =>
        {
            let equals = "=".repeat(between.len() + 1);
            format!("srs1=#={forwarder}{equals}#=#={domain}={user}")
        }
        _ => name.to_owned(),
    }
}

/// With `RCPT` for the recipient, or what stands before its `@`, where a separator is beside it.
fn without_recipient(name: &str, recipient: &str) -> String {
    let (local, domain) = recipient.split_once('@').unwrap_or((recipient, ""));
    let separates = |c: char| matches!(c, '*' | '=' | '.' | '-');
    let is_at = |c: char| matches!(c, '=' | '?' | '*' | '~' | '.');
    // How far a text reaches that begins with this; for its dots several signs may stand.
    let dotted = |text: &str, wanted: &str| {
        let mut at = 0;
        for (number, part) in wanted.split('.').enumerate() {
            if number > 0 {
                let dots = text[at..].chars().take_while(|c| matches!(c, '.' | '*' | '-')).count();
                at += dots;
                if dots == 0 {
                    return None;
                }
            }
            at += text[at..].starts_with(part).then_some(part.len())?;
        }
        Some(at)
    };
    let joined = |text: &str, one: &str, other: &str| {
        let end = dotted(text, one)?;
        let signs = text[end..].chars().take_while(|c| is_at(*c)).count();
        let end = (signs > 0).then_some(end + signs)?;
        Some(end + dotted(&text[end..], other)?)
    };
    if local.is_empty() {
        return name.to_owned();
    }
    for (start, _) in name.char_indices() {
        let text = &name[start..];
        let ends = [joined(text, local, domain), joined(text, domain, local), dotted(text, local)];
        let behind_one = name[..start].ends_with(separates);
        let fits = |end: &usize| behind_one || text[*end..].starts_with(separates);
        if let Some(end) = ends.into_iter().flatten().find(fits) {
            return format!("{}RCPT{}", &name[..start], &text[end..]);
        }
    }
    name.to_owned()
}

/// With `#` for what follows the word for a bounce, if nothing else comes behind it.
fn without_bounce_mask(name: &str) -> String {
    const WORDS: [&str; 4] = ["bo", "bounce", "notice-return", "notice-reply"];
    let masks = |rest: &str| {
        !rest.is_empty()
            && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'-' | b'_' | b'.'))
    };
    for (start, _) in name.char_indices() {
        for word in WORDS {
            let rest = name[start..].strip_prefix(word);
            let rest = rest.and_then(|rest| rest.strip_prefix(['.', '_', '-']));
            if let Some(rest) = rest.filter(|rest| masks(rest)) {
                return name[..name.len() - rest.len()].to_owned() + "#";
            }
        }
    }
    name.to_owned()
}

/// With `#` for hexadecimal numbers between separators; for the first one only if a word follows.
fn without_hexadecimal(name: &str) -> String {
    let separates = |c: char| matches!(c, '.' | '_' | '/' | '=' | '-');
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let (mut known, mut rest) = (String::with_capacity(name.len()), name);
    loop {
        let (part, behind) = rest.split_at(rest.find(separates).unwrap_or(rest.len()));
        let first = rest.len() == name.len();
        let counts = match first {
            true => part.len() >= 2 && has_a_word(behind),
            false => !part.is_empty(),
        };
        known.push_str(if counts && is_hex(part) { "#" } else { part });
        let Some(separator) = behind.chars().next() else { return known };
        known.push(separator);
        rest = &behind[1..];
    }
}

/// Whether four letters stand together.
fn has_a_word(text: &str) -> bool {
    text.as_bytes().windows(4).any(|four| four.iter().all(u8::is_ascii_lowercase))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sender and recipient; what postgrey made of the sender, and sqlgrey of its two parts.
    #[rustfmt::skip]
    const KNOWN_AS: &[(&str, &str, &str, &str, &str)] = &[
        ("bob@example.net", "anna@example.org", "bob@example.net", "bob", "example.net"),
        ("bob.smith@example.net", "anna@example.org", "bob.smith@example.net", "bob.smith", "example.net"),
        ("", "anna@example.org", "", "-undef-", "-undef-"),
        ("postmaster", "anna@example.org", "postmaster", "postmaster", "-undef-"),
        ("news+anna=example.org@lists.example.net", "anna@example.org", "news@lists.example.net", "news", "lists.example.net"),
        ("bounce-1234-5678@lists.example.net", "anna@example.org", "bounce-#-#@lists.example.net", "bounce-#", "lists.example.net"),
        ("list-4711-anna=example.org@example.net", "anna@example.org", "list-#-anna=example.org@example.net", "list-#-RCPT", "example.net"),
        ("list-return-anna.b=example.org@example.net", "anna.b@example.org", "list-return-anna.b=example.org@example.net", "list-return-RCPT", "example.net"),
        ("example.org=anna-x@example.net", "anna@example.org", "example.org=anna-x@example.net", "RCPT-x", "example.net"),
        ("prvs=0123456789=bob@example.net", "anna@example.org", "bob@example.net", "prvs=#=bob", "example.net"),
        ("prvs=bob=0123456789@example.net", "anna@example.org", "bob@example.net", "prvs=bob=#", "example.net"),
        ("prvs=0123456789=9876543210@example.net", "anna@example.org", "#@example.net", "prvs=#=#", "example.net"),
        ("prvs=a=b=c@example.net", "anna@example.org", "prvs=a=b=c@example.net", "prvs=#=#=#", "example.net"),
        ("srs0=hash=tt=example.com=bob@example.net", "anna@example.org", "srs0=hash=tt=example.com=bob@example.net", "srs0=#=#=example.com=bob", "example.net"),
        ("srs1=hhh=forward.example==hh=tt=example.com=bob@example.net", "anna@example.org", "srs1=hhh=forward.example==hh=tt=example.com=bob@example.net", "srs1=#=forward.example==#=#=example.com=bob", "example.net"),
        ("srs0=hhh=tt=example.com=@example.net", "anna@example.org", "srs0=hhh=tt=example.com=@example.net", "srs0=hhh=tt=example.com=", "example.net"),
        ("0a1b2c-newsletter@example.net", "anna@example.org", "0a1b2c-newsletter@example.net", "#-newsletter", "example.net"),
        ("0a1b2c-abc@example.net", "anna@example.org", "0a1b2c-abc@example.net", "0a1b2c-#", "example.net"),
        ("msg-0a1b_ff.00/x=12@example.net", "anna@example.org", "msg-0a1b_ff.#/x=#@example.net", "msg-#_#.#/x=#", "example.net"),
        ("bo-abc.def_1@example.net", "anna@example.org", "bo-abc.def_1@example.net", "bo-#", "example.net"),
        ("foobounce.x1@example.net", "anna@example.org", "foobounce.x1@example.net", "foobounce.#", "example.net"),
        ("notice-reply-22x@example.net", "anna@example.org", "notice-reply-22x@example.net", "notice-reply-#", "example.net"),
        ("a/b@example.net", "anna@example.org", "a/b@example.net", "a/#", "example.net"),
        ("x_12_y.34.5a@example.net", "anna@example.org", "x_12_y.#.5a@example.net", "x_#_y.#.#", "example.net"),
        ("de.info@example.net", "anna@example.org", "de.info@example.net", "#.info", "example.net"),
        ("bounces-anna--b=example.org@example.net", "anna.b@example.org", "bounces-anna--b=example.org@example.net", "bounces-RCPT", "example.net"),
        ("annabounce@example.net", "anna@example.org", "annabounce@example.net", "annabounce", "example.net"),
        ("anna-x-anna@example.net", "anna@example.org", "anna-x-anna@example.net", "RCPT-x-anna", "example.net"),
        ("bounce-anna@example.net", "anna@example.org", "bounce-anna@example.net", "bounce-RCPT", "example.net"),
        ("a@b@example.net", "anna@example.org", "a@b@example.net", "a", "b@example.net"),
        ("x=anna.@example.net", "anna@example.org", "x=anna.@example.net", "x=RCPT.", "example.net"),
    ];

    #[test]
    fn senders_are_known_as_postgrey_and_sqlgrey_knew_them() {
        for (sender, recipient, postgrey, name, domain) in KNOWN_AS {
            assert_eq!(postgrey_sender(sender), *postgrey);
            assert_eq!(
                sqlgrey_sender(sender, recipient),
                ((*name).to_owned(), *domain),
                "{sender}"
            );
        }
    }

    #[test]
    fn a_name_is_cut_to_what_the_table_of_sqlgrey_holds() {
        let (name, domain) = ("z".repeat(70), "d".repeat(300));
        let sender = format!("{name}@{domain}");
        let (name, domain) = sqlgrey_sender(&sender, "anna@example.org");
        assert_eq!((name.len(), domain.len()), (64, 255));
    }

    proptest! {
        #[test]
        fn no_sender_makes_it_panic(sender in ".*", recipient in ".*", more in "[-a-f0-9=.+é/@]*") {
            for sender in [&sender, &more] {
                let _ = (postgrey_sender(sender), sqlgrey_sender(sender, &recipient));
                let _ = sqlgrey_sender(sender, &more);
            }
        }
    }
}
