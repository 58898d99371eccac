//! Mailboxes and names as clients give them: forgeable, hostile, and bounded here.

use std::borrow::Cow;
use std::fmt::{self, Debug, Formatter};

use super::domain;
use super::mailbox::{self, Mailbox};

/// The longest text of a client that is kept, in bytes. RFC 5321 section 4.5.3.1 allows 256
/// octets for a path and 255 for a domain; what is longer is cut, since it is kept for as long
/// as the session lasts.
pub const LONGEST: usize = 512;

/// A text the client chose: its HELO name, the name of its login. Cut to [`LONGEST`] bytes,
/// otherwise as given.
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

    /// As the name of a host, in the form in which names are compared.
    pub fn host_name(&self) -> Cow<'_, str> {
        domain::canonical(&self.0)
    }

    /// As the name of a login, which hardly any system tells apart by its case.
    pub fn login(&self) -> Cow<'_, str> {
        folded(&self.0)
    }
}

/// A text in lower case.
pub fn folded(text: &str) -> Cow<'_, str> {
    let lower = text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    if lower { Cow::Borrowed(text) } else { Cow::Owned(text.to_lowercase()) }
}

impl Debug for ClientText {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.0, f)
    }
}

/// A mailbox of an envelope: `local@domain`, or the null sender `<>`.
///
/// However the client has written it, and whatever the MTA makes of it, one mailbox is one text: no
/// route, no comment, no quotes but where they are needed, the domain as
/// [`domain::canonical`] has it. The local part is left in its case (RFC 5321 section 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    text: Box<str>,
    /// The length of the local part, which a dozen questions about an address begin with.
    local: usize,
    place: Place,
}

/// What is known of where mail to an address goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// To the domain that it names.
    Named,
    /// By the domain that it names to this other one, as the MTA tells.
    Mapped(Box<str>),
    /// To this host.
    Here,
    /// Only the MTA knows.
    Unknown,
}

/// Where mail to an address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination<'a> {
    /// To this domain.
    Known(&'a str),
    /// To the first, which is the one that was written; the MTA has a rule of its own that makes it
    /// the second.
    Mapped(&'a str, &'a str),
    /// To the host itself, by whatever name: the address has no domain, or an address literal.
    Here,
    /// It is written so that only the MTA could say: what is asked of any domain is asked here, and
    /// what any is spared is not spared here.
    Unknown,
}

impl Address {
    /// Takes the argument of `MAIL FROM:` or `RCPT TO:` as the client has written it, with or
    /// without its angle brackets.
    pub fn new(path: &[u8]) -> Self {
        Self::of(Mailbox::written(&bounded(path)))
    }

    /// Takes an address that is free from quotes already: Postfix tells it so to a policy service.
    pub fn unquoted(text: &[u8]) -> Self {
        Self::of(Mailbox::unquoted(&bounded(text)))
    }

    /// Takes the argument of `RCPT TO:`, and the mailbox that the MTA delivers it to.
    ///
    /// Postfix tells it with the domain at which it has arrived, and only a literal is left;
    /// Sendmail tells users of the host itself without a domain, and what its tables have made of
    /// others.
    pub fn resolved(path: &[u8], by_mta: &[u8]) -> Self {
        let written = Self::new(path);
        let told = bounded(by_mta);
        if written.place == Place::Named && *told == *written.text {
            return written;
        }
        let told = Mailbox::written(&told);
        let end = told.domain.as_deref().map(domain::canonical);
        let (written_to, told_to) = (written.place.clone(), Place::of(&told, end.as_deref()));
        match (written_to, told_to) {
            _ if told.local.is_empty() => written,
            // A backslash is left of what the client has written, if anything.
            (Place::Unknown, _) if told.domain.is_none() && !mailbox::encloses(&told.local) => {
                Self::at(&told.local, None, Place::Here)
            }
            // It is what the MTA has arrived at: it looks for no other address within.
            (Place::Unknown | Place::Here, Place::Named | Place::Unknown) => {
                match end.filter(|name| !told.odd && domain::is_qualified(name)) {
                    Some(name) => Self::at(&told.local, Some(&name), Place::Named),
                    None => written,
                }
            }
            (Place::Named, Place::Named | Place::Unknown) => {
                let end = end.unwrap_or_default();
                match end == written.domain() || !domain::is_qualified(&end) {
                    true => written,
                    false => Self { place: Place::Mapped(end.into()), ..written },
                }
            }
            _ => written,
        }
    }

    fn of(mailbox: Mailbox<'_>) -> Self {
        let name = mailbox.domain.as_deref().map(domain::canonical);
        let place = Place::of(&mailbox, name.as_deref());
        Self::at(&mailbox.local, name.as_deref(), place)
    }

    /// With the canonical name of its domain.
    fn at(local: &str, name: Option<&str>, place: Place) -> Self {
        let (local, name) = (mailbox::quoted(local), name.filter(|name| !name.is_empty()));
        let length = local.len() + name.map_or(0, |name| 1 + name.len());
        let mut text = String::with_capacity(length);
        text += &local;
        let end = text.len();
        if let Some(name) = name {
            text.push('@');
            text += name;
        }
        match text.len() <= LONGEST {
            true => Self::whole(text, place),
            // Longer than any mailbox may be. What is left names no domain.
            false => {
                text.truncate(text.floor_char_boundary(LONGEST - 1));
                if text.starts_with('"') && text.len() < end {
                    text.push('"');
                }
                Self::whole(text, Place::Unknown)
            }
        }
    }

    fn whole(text: String, place: Place) -> Self {
        // An `@` within quotes ends nothing.
        let parts = text.rsplit_once('@').filter(|(_, domain)| !domain.ends_with('"'));
        let local = parts.map_or(text.len(), |(local, _)| local.len());
        Self { text: text.into(), local, place }
    }

    /// `local@domain`; empty for the null sender.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As it is shown to people: `<>` for the null sender.
    pub fn shown(&self) -> &str {
        if self.is_null() { "<>" } else { &self.text }
    }

    /// Whether it is the null sender of bounces (RFC 5321 section 4.5.5).
    pub fn is_null(&self) -> bool {
        self.text.is_empty()
    }

    /// The local part; all of the address if it has no domain.
    pub fn local(&self) -> &str {
        &self.text[..self.local]
    }

    /// The domain; empty if it has none.
    pub fn domain(&self) -> &str {
        self.text.get(self.local + 1..).unwrap_or_default()
    }

    /// The same without quotes, as Postfix tells it to a policy service.
    pub fn without_quotes(&self) -> Cow<'_, str> {
        if !self.text.starts_with('"') {
            return Cow::Borrowed(&self.text);
        }
        let Mailbox { local, domain, .. } = Mailbox::written(&self.text);
        Cow::Owned(domain.map_or(local.to_string(), |domain| format!("{local}@{domain}")))
    }

    /// Where mail to it goes.
    pub fn destination(&self) -> Destination<'_> {
        match &self.place {
            Place::Named => Destination::Known(self.domain()),
            Place::Mapped(end) => Destination::Mapped(self.domain(), end),
            Place::Here => Destination::Here,
            Place::Unknown => Destination::Unknown,
        }
    }

    /// The mailbox it most likely leads to, where that is not known: for keys, so that a mailbox is
    /// counted as one as far as can be told.
    pub fn likely(&self) -> Cow<'_, Self> {
        match self.place {
            Place::Named | Place::Mapped(_) | Place::Here => Cow::Borrowed(self),
            Place::Unknown => Cow::Owned(Self::of(Mailbox::written(&self.text).innermost())),
        }
    }

    /// The address without what changes from message to message, so that greylisting knows a
    /// sender again. For its keys only: the result need not be an address of anybody.
    ///
    /// In lower case, and
    ///
    /// - without the tag of BATV (draft-levine-smtp-batv: `prvs=0123456789=user`, in its first
    ///   versions `prvs=user=0123456789`; Barracuda's `btv1==…==user`; SparkPost's
    ///   `msprvs1=…=user`);
    /// - with `#` for the hash and the day of SRS (`SRS0=HHH=TT=domain=user` and `SRS1=…`, with
    ///   `+` or `-` behind the name, too), what it encloses treated likewise;
    /// - without what follows a `+`: a detail (RFC 5233), or the recipient and the counters of a
    ///   variable envelope return path (VERP);
    /// - with `#` for counters and hashes as mailing lists and bulk senders use them:
    ///   - a number that stands by itself (`bounce-123456-user=example.org`), but not if it is the
    ///     whole local part: there are providers whose users are numbers;
    ///   - five digits or more next to letters (`msg123456`); fewer are part of a name more often
    ///     than not (`john1985`), and spam from one network with ever new names like that must
    ///     not look like one sender that has come back;
    ///   - eight or more letters and digits that are hexadecimal (`1a2b3c4d5e`) or have digits in
    ///     two places or more (`x7kq2lmw9`), and UUIDs.
    ///
    /// The recipient that a VERP address names otherwise is left where it is: it stands in the
    /// same key a second time.
    pub fn without_tags(&self) -> Cow<'_, str> {
        let local = self.local();
        let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'.' | b'-' | b'_');
        if local.bytes().all(is_plain) {
            return Cow::Borrowed(&self.text);
        }
        let domain = &self.text[local.len()..];
        Cow::Owned(untagged(&local.to_ascii_lowercase()) + domain)
    }
}

impl Place {
    /// Of a mailbox and the canonical name of its domain.
    fn of(mailbox: &Mailbox<'_>, name: Option<&str>) -> Self {
        if mailbox.odd || mailbox::encloses(&mailbox.local) {
            return Self::Unknown;
        }
        match name {
            None | Some("" | "localhost") => Self::Here,
            Some(name) if name.starts_with('[') && name.ends_with(']') => Self::Here,
            Some(name) if domain::is_qualified(name) => Self::Named,
            Some(_) => Self::Unknown,
        }
    }
}

/// A local part in lower case, as [`Address::without_tags`] says.
fn untagged(local: &str) -> String {
    if let Some(local) = without_batv(local) {
        return untagged(local);
    }
    if let Some(Srs { first, domain, local }) = srs(local) {
        let first = first.map_or("srs0=".to_owned(), |first| format!("srs1=#={first}=="));
        return format!("{first}#=#={domain}={}", untagged(local));
    }
    let local = match local.split_once('+') {
        Some((local, _)) if !local.is_empty() => local,
        _ => local,
    };
    let is_number = !local.is_empty() && local.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { local.to_owned() } else { without_counters(local) }
}

/// Who is behind the tag.
fn without_batv(local: &str) -> Option<&str> {
    let behind = |scheme: &str, end: &str| local.strip_prefix(scheme)?.split_once(end);
    // A digit for the key, three for the day, six hexadecimal ones of a hash; some have fewer.
    let is_tag = |text: &str| {
        text.len() >= 8
            && text.bytes().all(|byte| byte.is_ascii_hexdigit())
            && text.starts_with(|c: char| c.is_ascii_digit())
    };
    let user = match behind("prvs=", "=") {
        Some((tag, user)) if is_tag(tag) => user,
        // The first drafts had them the other way round.
        Some((user, tag)) => is_tag(tag.split('+').next()?).then_some(user)?,
        None => behind("msprvs1=", "=").or_else(|| behind("btv1==", "=="))?.1,
    };
    (!user.is_empty()).then_some(user)
}

/// What a forwarder has made of a sender's address, so that SPF holds (libsrs2, postsrsd).
struct Srs<'a> {
    /// The first of several forwarders.
    first: Option<&'a str>,
    domain: &'a str,
    local: &'a str,
}

fn srs(address: &str) -> Option<Srs<'_>> {
    const SEPARATORS: [char; 3] = ['=', '+', '-'];
    let (first, rest) = match address.strip_prefix("srs1") {
        None => (None, address.strip_prefix("srs0")?),
        Some(rest) => {
            let (_hash, rest) = rest.strip_prefix(SEPARATORS)?.split_once('=')?;
            let (first, rest) = rest.split_once('=')?;
            (Some(first), rest)
        }
    };
    let (_hash, rest) = rest.strip_prefix(SEPARATORS)?.split_once('=')?;
    let (_day, rest) = rest.split_once('=')?;
    let (domain, local) = rest.split_once('=')?;
    Some(Srs { first, domain, local })
}

/// A number this long next to letters is a counter rather than part of a name.
const LONG_NUMBER: usize = 5;

/// Letters and digits this long may be a hash.
const SHORTEST_HASH: usize = 8;

fn without_counters(local: &str) -> String {
    let mut out = String::with_capacity(local.len());
    let mut rest = local;
    while let Some(next) = rest.chars().next() {
        let word = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let taken = if let Some(uuid) = uuid(rest) {
            out.push('#');
            uuid
        } else if word > 0 {
            counted_out(&rest[..word], &mut out);
            word
        } else {
            out.push(next);
            next.len_utf8()
        };
        rest = &rest[taken..];
    }
    out
}

/// The length of the UUID that the text begins with (RFC 9562 section 4).
fn uuid(text: &str) -> Option<usize> {
    const SHAPE: &[u8] = b"xxxxxxxx-xxxx-Vxxx-xxxx-xxxxxxxxxxxx";
    let (text, after) = text.as_bytes().split_at_checked(SHAPE.len())?;
    let fits = text.iter().zip(SHAPE).all(|(byte, shape)| match shape {
        b'-' => *byte == b'-',
        b'V' => byte.is_ascii_digit(),
        _ => byte.is_ascii_hexdigit(),
    });
    let ends = !after.first().is_some_and(u8::is_ascii_alphanumeric);
    (fits && ends).then_some(SHAPE.len())
}

/// Writes a word of letters and digits, with `#` for what counts.
fn counted_out(word: &str, out: &mut String) {
    let is_digit = |c: char| c.is_ascii_digit();
    let numbers = word.split(|c| !is_digit(c)).filter(|number| !number.is_empty()).count();
    let is_number = word.chars().all(is_digit);
    let is_hex = numbers > 0 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_number || word.len() >= SHORTEST_HASH && (is_hex || numbers > 1) {
        out.push('#');
        return;
    }
    let mut rest = word;
    while !rest.is_empty() {
        let (letters, others) = rest.split_at(rest.find(is_digit).unwrap_or(rest.len()));
        let (number, others) =
            others.split_at(others.find(|c| !is_digit(c)).unwrap_or(others.len()));
        out.push_str(letters);
        out.push_str(if number.len() < LONG_NUMBER { number } else { "#" });
        rest = others;
    }
}

/// The text of these bytes, cut where a character ends.
fn bounded(bytes: &[u8]) -> Cow<'_, str> {
    let cut = &bytes[..bytes.len().min(LONGEST)];
    match std::str::from_utf8(cut) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let mut text = String::from_utf8_lossy(cut).into_owned();
            // What was no text has become three bytes each.
            text.truncate(text.floor_char_boundary(LONGEST));
            Cow::Owned(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn both_doors_know_a_mailbox_by_one_text() {
        // As the client writes it to a milter, and as Postfix tells it to a policy service.
        let doors = [
            ("<\"john\"@Example.net.>", "john@Example.net.", "john@example.net"),
            ("<\"john doe\"@example.net>", "john doe@example.net", "\"john doe\"@example.net"),
            ("<jo\\hn@example.net>", "john@example.net", "john@example.net"),
            ("<\"a\\\"b\"@example.net>", "a\"b@example.net", "\"a\\\"b\"@example.net"),
            ("<\"a@b\"@example.net>", "a@b@example.net", "\"a@b\"@example.net"),
            ("<john(is it)@example.net>", "john@example.net", "john@example.net"),
            ("<john@BÜCHER.example>", "john@bücher.example", "john@xn--bcher-kva.example"),
            ("<>", "", ""),
        ];
        for (milter, policy, text) in doors {
            assert_eq!(Address::new(milter.as_bytes()).as_str(), text, "{milter}");
            assert_eq!(Address::unquoted(policy.as_bytes()).as_str(), text, "{policy}");
        }
    }

    #[test]
    fn what_the_mta_has_arrived_at_is_taken_where_the_spelling_hides_it() {
        use Destination::{Here, Known, Mapped, Unknown};
        let bank = Known("bank.example");
        let told = [
            ("<user@bank.example>", "user@bank.example", "user@bank.example", bank),
            ("<User@Bank.Example.>", "User@bank.example", "User@bank.example", bank),
            ("<bank.example!user>", "user@bank.example", "user@bank.example", bank),
            ("<user%bank.example>", "user@bank.example.", "user@bank.example", bank),
            ("<user>", "user@bank.example", "user@bank.example", bank),
            ("<user@bank>", "user@bank.example", "user@bank.example", bank),
            ("<user@bank.example>>", "user@bank.example", "user@bank.example", bank),
            // Sendmail, of a user of the host.
            ("<user@bank.example>", "user", "user@bank.example", bank),
            ("<bank.example!user>", "user", "user", Here),
            ("<us\\er@bank.example>", "us\\er", "user", Here),
            // By a table of Sendmail's.
            (
                "<info@a.example>",
                "user@bank.example",
                "info@a.example",
                Mapped("a.example", "bank.example"),
            ),
            ("<user@[192.0.2.1]>", "user@[192.0.2.1]", "user@[192.0.2.1]", Here),
            // Nothing is told, or nothing that can be read.
            ("<user%bank.example>", "", "user%bank.example", Unknown),
            ("<user%bank.example>", "user@a b", "user%bank.example", Unknown),
            ("<user@bank.example>", "", "user@bank.example", bank),
        ];
        for (path, by_mta, text, destination) in told {
            let address = Address::resolved(path.as_bytes(), by_mta.as_bytes());
            assert_eq!((address.as_str(), address.destination()), (text, destination), "{path}");
        }
    }

    #[test]
    fn a_source_route_is_stripped() {
        let paths = [
            ("<@a.example:user@c.example>", "user@c.example"),
            ("<@a.example,@b.example:User@C.example>", "User@c.example"),
            ("@[IPv6:2001:db8::1],@b.example:user@c.example", "user@c.example"),
            ("<@a.example:postmaster>", "postmaster"),
            // These have none.
            ("<user:name@c.example>", "\"user:name\"@c.example"),
            ("<user@[IPv6:2001:db8::1]>", "user@[ipv6:2001:db8::1]"),
            ("<@c.example>", "@c.example"),
            ("<@a.example:>", "@a.example:"),
            ("<@[a:b>", "@[a:b"),
        ];
        for (path, mailbox) in paths {
            assert_eq!(Address::new(path.as_bytes()).as_str(), mailbox, "{path}");
        }
    }

    #[track_caller]
    fn without_tags(addresses: &[(&str, &str)]) {
        for (address, expected) in addresses {
            let address = Address::new(address.as_bytes());
            assert_eq!(address.without_tags(), *expected, "{address:?}");
        }
    }

    #[test]
    fn names_of_people_and_roles_stay() {
        without_tags(&[
            ("", ""),
            ("postmaster", "postmaster"),
            ("first.last@example.org", "first.last@example.org"),
            ("First.Last@Example.org", "first.last@example.org"),
            ("john1985@example.org", "john1985@example.org"),
            ("john1986@example.org", "john1986@example.org"),
            ("user7@example.org", "user7@example.org"),
            ("mp3player4u@example.org", "#@example.org"),
            ("b2b@example.org", "b2b@example.org"),
            ("feedback@example.org", "feedback@example.org"),
            ("deadbeef@example.org", "deadbeef@example.org"),
            ("440123456789@example.org", "440123456789@example.org"),
            ("12345@example.org", "12345@example.org"),
            ("list-bounces@example.org", "list-bounces@example.org"),
            ("\"John Doe\"@example.org", "\"john doe\"@example.org"),
            ("jürgen@example.org", "jürgen@example.org"),
            ("@example.org", "@example.org"),
            ("a@1234567.example", "a@1234567.example"),
        ]);
    }

    #[test]
    fn tags_of_batv_go() {
        without_tags(&[
            ("prvs=0123456789=user@example.org", "user@example.org"),
            ("prvs=1234c5d678=First.Last@example.org", "first.last@example.org"),
            ("PRVS=7012AB34CD=12345@example.org", "12345@example.org"),
            ("btv1==068a4dc14b7==user@example.org", "user@example.org"),
            ("prvs=john1985=0123456789@example.org", "john1985@example.org"),
            ("prvs=user=0123456789+tag@example.org", "user@example.org"),
            ("msprvs1=20676xgzi92p-=user@example.org", "user@example.org"),
            ("msprvs1=18291wlbkvyw2=bounces-245461-16@example.org", "bounces-#-#@example.org"),
            ("prvs=0123456789=prvs=1234567890=user+tag@example.org", "user@example.org"),
            // Not BATV.
            ("prvs=user@example.org", "prvs=user@example.org"),
            ("prvs=joe=smith@example.org", "prvs=joe=smith@example.org"),
            ("prvs=0123456789=@example.org", "prvs=#=@example.org"),
        ]);
    }

    #[test]
    fn hash_and_day_of_srs_go_and_the_sender_stays() {
        let hop = "srs0=#=#=example.org=user@forward.example";
        let hops = "srs1=#=forward.example==#=#=example.org=user@second.example";
        without_tags(&[
            ("SRS0=HHHH=TT=example.org=user@forward.example", hop),
            ("SRS0=a+/B=X7=Example.org=User@forward.example", hop),
            ("SRS0+HHHH=TT=example.org=user@forward.example", hop),
            ("SRS0-HHHH=TT=example.org=user+tag@forward.example", hop),
            ("srs0=hhhh=tt=example.org=prvs=0123456789=user@forward.example", hop),
            ("SRS1=GGGG=forward.example==HHHH=TT=example.org=user@second.example", hops),
            ("SRS1=GGGG=forward.example=+HHHH=TT=example.org=user@second.example", hops),
            ("SRS1-GGGG=forward.example=-HHHH=TT=example.org=user@second.example", hops),
            (
                "SRS0=HHHH=TT=163.example=list-return-77-a=b.example@forward.example",
                "srs0=#=#=163.example=list-return-#-a=b.example@forward.example",
            ),
            ("bounces+SRS=44ldt=IX@forward.example", "bounces@forward.example"),
            // Not SRS.
            ("srs0=hhhh=tt@forward.example", "srs0=hhhh=tt@forward.example"),
            ("srs0@forward.example", "srs0@forward.example"),
            ("srs1=gggg=a=b=c@forward.example", "srs1=gggg=a=b=c@forward.example"),
        ]);
    }

    #[test]
    fn details_and_what_lists_put_behind_a_plus_go() {
        without_tags(&[
            ("user+tag@example.org", "user@example.org"),
            ("User+Tag+More@example.org", "user@example.org"),
            ("12345+tag@example.org", "12345@example.org"),
            ("list-bounces+user=dest.example@lists.example.org", "list-bounces@lists.example.org"),
            ("bounces+9412345-ab12-user=dest.example@em.example", "bounces@em.example"),
            ("user+caf_=other=dest.example@example.org", "user@example.org"),
            ("+tag@example.org", "+tag@example.org"),
        ]);
    }

    #[test]
    fn counters_and_hashes_of_bulk_senders_go() {
        without_tags(&[
            (
                "bounce-123456-user=dest.example@example.org",
                "bounce-#-user=dest.example@example.org",
            ),
            (
                "list-return-7-user=dest.example@example.org",
                "list-return-#-user=dest.example@example.org",
            ),
            ("news-24-11-15@example.org", "news-#-#-#@example.org"),
            ("msg123456@example.org", "msg#@example.org"),
            (
                "bounce-12345_HTML-678901234-567890-7001234-27@example.org",
                "bounce-#_html-#-#-#-#@example.org",
            ),
            (
                "bounce-mc.us12_34567890.1234567-abcdef1234@example.org",
                "bounce-mc.us12_#.#-#@example.org",
            ),
            (
                "sentto-2242572-55012-1030020820-user=dest.example@example.org",
                "sentto-#-#-#-user=dest.example@example.org",
            ),
            (
                "0102018f2a3b4c5d-7a8b9c0d-1234-5678-9abc-def012345678-000000@example.org",
                "#-#-#@example.org",
            ),
            ("550e8400-e29b-41d4-a716-446655440000@example.org", "#@example.org"),
            ("s-2sBxvAb7CdEf9Gh@example.org", "s-#@example.org"),
            ("return_x7kq2lmw9_user@example.org", "return_#_user@example.org"),
        ]);
    }

    #[test]
    fn whatever_a_client_sends_stays_small_and_is_text() {
        assert!(Address::new(&[0xff; 4096]).as_str().len() <= LONGEST);
        assert!(ClientText::new(&[0xff; 4096]).as_str().len() <= LONGEST);
    }

    fn local_parts() -> impl Strategy<Value = String> {
        let parts = [
            "prvs=",
            "0123456789",
            "1a2b3c4d",
            "=",
            "==",
            "btv1==",
            "msprvs1=",
            "srs0",
            "srs1",
            "+",
            "-",
            "user",
            "example.org",
            "163",
            "12",
            "é",
            "_",
            "ab12345",
            "#",
            "550e8400-e29b-41d4-a716-446655440000",
        ];
        let of_parts = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..12);
        prop_oneof![".*", "[a-f0-9+=-]{0,60}", of_parts.prop_map(|parts| parts.concat())]
    }

    proptest! {
        #[test]
        fn what_has_no_tags_any_more_stays_as_it_is(local in local_parts()) {
            let once = untagged(&local.to_ascii_lowercase());
            prop_assert_eq!(untagged(&once), once);
        }

        #[test]
        fn the_canonical_form_of_a_canonical_form_is_itself(
            path in "\\PC{0,60}|[<>@!%:,()\"\\\\\\[\\] aÜ.]{0,40}"
        ) {
            for address in [Address::new(path.as_bytes()), Address::unquoted(path.as_bytes())] {
                if let Destination::Known(_) = address.destination() {
                    prop_assert_eq!(&Address::new(address.as_str().as_bytes()), &address);
                }
                let likely = address.likely();
                if let Destination::Known(_) = likely.destination() {
                    prop_assert_eq!(&Address::new(likely.as_str().as_bytes()), &*likely);
                }
            }
        }

        #[test]
        fn no_address_grows_or_keeps_its_capitals(path in prop::collection::vec(any::<u8>(), 0..600)) {
            let address = Address::new(&path);
            prop_assert!(address.as_str().len() <= LONGEST);
            let without = address.without_tags();
            prop_assert!(without.len() <= address.as_str().len());
            prop_assert!(!without.contains(|c: char| c.is_ascii_uppercase()));
        }

        #[test]
        fn tagged_or_not_it_is_the_same_address(
            local in "[A-Za-z]{1,20}(\\.[a-z]{1,9}){0,3}", tag in "[0-9]{4}[0-9a-f]{6}", day in "[A-Z2-7]{2}"
        ) {
            let key = |local: &str| {
                let address = Address::new(format!("<{local}@example.org>").as_bytes());
                address.without_tags().into_owned()
            };
            let untagged = key(&local);
            prop_assert_eq!(&key(&format!("prvs={tag}={local}")), &untagged);
            prop_assert_eq!(&key(&format!("{local}+{tag}")), &untagged);
            let srs = |tag: &str| key(&format!("SRS0={tag}={day}=example.net={local}"));
            prop_assert_eq!(srs(&tag), srs("AbCd"));
            let counted = |tag: &str| key(&format!("{local}-{tag}-x=y.example"));
            prop_assert_eq!(counted(&tag), counted("7"));
        }
    }
}
