//! How a mailbox is written (RFC 5321 section 4.1.2), and how MTAs read what is written otherwise.
//!
//! A client may write one mailbox in many ways that every MTA takes for the same: quotes and
//! backslashes that are not needed, comments, blanks, a source route, angle brackets too many. Here
//! they are taken apart as Postfix does it (its tok822_parse.c). What no simple address needs is
//! noted as [odd](Mailbox::odd), since MTAs differ in what they make of it.

use std::borrow::Cow;

/// A mailbox, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox<'a> {
    /// What stands before the last `@`, without quotes.
    pub local: Cow<'a, str>,
    /// What stands behind it; nothing if there is none.
    pub domain: Option<Cow<'a, str>>,
    /// Whether it is written in a way that may mean more than it seems to.
    pub odd: bool,
}

impl<'a> Mailbox<'a> {
    /// Takes apart the argument of MAIL or RCPT as the client has written it, with or without its
    /// angle brackets.
    pub fn written(path: &'a str) -> Self {
        let path = path.trim_ascii();
        let inner = path.strip_prefix('<').and_then(|path| path.strip_suffix('>')).unwrap_or(path);
        let inner = without_route(inner.trim_ascii());
        let simple = |byte: u8| !byte.is_ascii() || is_atext(byte) || matches!(byte, b'.' | b'@');
        if inner.bytes().all(simple) {
            return Self::unquoted(inner);
        }
        let mut reader = Reader::default();
        inner.chars().for_each(|c| reader.take(c));
        reader.end()
    }

    /// Takes apart a mailbox that somebody has freed from quotes already, as Postfix does for a
    /// policy service.
    pub fn unquoted(text: &'a str) -> Self {
        let text = without_route(text);
        let (local, domain) = match text.rsplit_once('@') {
            Some((local, domain)) => (local, Some(domain)),
            None => (text, None),
        };
        let literal = domain.is_some_and(|domain| domain.starts_with('['));
        let special = |byte: u8| is_special(byte.into());
        let odd = !literal && domain.is_some_and(|domain| domain.bytes().any(special));
        Self { local: local.into(), domain: domain.map(Cow::from), odd }
    }

    /// Where the innermost of the addresses leads that the local part encloses: `user@c` for
    /// `b!user%c@a`, `"user@c"@a` and the like. Postfix reads them so where `a` and `b` are itself
    /// and nothing says otherwise (`swap_bangpath`, `allow_percent_hack`,
    /// `resolve_dequoted_address`); others may lead elsewhere.
    #[must_use]
    pub fn innermost(self) -> Self {
        let Self { local, domain, odd } = self;
        let (mut rest, mut domain) = (&*local, domain);
        loop {
            let (inner, behind) = if let Some((inner, behind)) = rest.rsplit_once('@') {
                (inner, behind)
            } else if let Some((before, inner)) = rest.split_once('!') {
                (inner, before)
            } else if let Some((inner, behind)) = rest.rsplit_once('%') {
                (inner, behind)
            } else {
                break;
            };
            (rest, domain) = (inner, Some(behind.to_owned().into()));
        }
        Self { local: rest.to_owned().into(), domain, odd }
    }
}

/// Whether a local part may enclose another address.
pub fn encloses(local: &str) -> bool {
    local.bytes().any(|byte| matches!(byte, b'@' | b'!' | b'%'))
}

/// A local part as it is written with the fewest quotes.
pub fn quoted(local: &str) -> Cow<'_, str> {
    let plain = |byte: u8| !byte.is_ascii() || is_atext(byte) || byte == b'.';
    if local.bytes().all(plain) {
        return local.into();
    }
    let mut quoted = String::with_capacity(local.len() + 2);
    quoted.push('"');
    for c in local.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted.into()
}

/// A path that begins with a source route, without it: `@a.example,@b.example:user@c.example` is
/// `user@c.example`.
///
/// RFC 5321, 4.1.1.3: "Receiving systems MUST recognize source route syntax but SHOULD strip off
/// the source route specification". A route to nowhere is left as it is, else it would be the
/// null sender.
fn without_route(path: &str) -> &str {
    if !path.starts_with('@') {
        return path;
    }
    let mut in_literal = false;
    let end = path.find(|c| {
        in_literal = (in_literal || c == '[') && c != ']';
        c == ':' && !in_literal
    });
    match end.map(|end| &path[end + 1..]) {
        Some(mailbox) if !mailbox.is_empty() => mailbox,
        _ => path,
    }
}

/// RFC 5322 section 3.2.3.
fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'/' | b'=' | b'?' | b'^'..=b'`')
        || matches!(byte, b'{'..=b'~')
}

fn is_special(c: char) -> bool {
    c.is_ascii() && !is_atext(c as u8) && c != '.'
}

/// Reads a mailbox that is not simple, a character after the other.
#[derive(Default)]
struct Reader {
    read: String,
    /// Where the last `@` outside of quotes is.
    at: Option<usize>,
    place: Place,
    odd: bool,
}

/// Where in the text a reader is.
#[derive(Clone, Copy, Default)]
enum Place {
    #[default]
    Outside,
    Quoted,
    QuotedPair,
    /// Behind a backslash that nobody needs.
    Pair,
    /// So deep in comments.
    Comment(usize),
    CommentPair(usize),
    Literal,
}

impl Reader {
    fn take(&mut self, c: char) {
        self.place = match (self.place, c) {
            (Place::Outside, '"') => Place::Quoted,
            (Place::Outside, '\\') => Place::Pair,
            (Place::Outside, '(') => Place::Comment(0),
            (Place::Outside, '[') if self.at.is_some_and(|at| at + 1 == self.read.len()) => {
                self.read.push(c);
                Place::Literal
            }
            (Place::Outside, c) => self.outside(c),
            (Place::Quoted, '"') => Place::Outside,
            (Place::Quoted, '\\') => Place::QuotedPair,
            (Place::Quoted | Place::QuotedPair, c) => {
                // Behind the `@` nothing needs quotes.
                self.odd |= self.at.is_some();
                self.read.push(c);
                Place::Quoted
            }
            (Place::Pair, c) => {
                self.odd = true;
                self.read.push(c);
                Place::Outside
            }
            (Place::Comment(depth), '\\') => Place::CommentPair(depth),
            (Place::Comment(depth), '(') => Place::Comment(depth + 1),
            (Place::Comment(0), ')') => {
                self.odd = true;
                Place::Outside
            }
            (Place::Comment(depth), ')') => Place::Comment(depth - 1),
            (Place::Comment(depth) | Place::CommentPair(depth), _) => Place::Comment(depth),
            (Place::Literal, c) => {
                self.read.push(c);
                if c == ']' { Place::Outside } else { Place::Literal }
            }
        };
    }

    fn outside(&mut self, c: char) -> Place {
        match c {
            '@' => {
                self.at = Some(self.read.len());
                self.read.push(c);
            }
            '<' | '>' => self.odd = true,
            c if c.is_ascii_whitespace() || c.is_ascii_control() => self.odd = true,
            c => {
                self.odd |= is_special(c);
                self.read.push(c);
            }
        }
        Place::Outside
    }

    fn end(self) -> Mailbox<'static> {
        let odd = self.odd || !matches!(self.place, Place::Outside);
        let Self { mut read, at, .. } = self;
        let domain = at.map(|at| read.split_off(at + 1));
        if domain.is_some() {
            read.pop();
        }
        Mailbox { local: read.into(), domain: domain.map(Cow::from), odd }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_mtas_take_for_the_same_is_taken_apart_the_same() {
        let all = [
            ("<user@d.example>", "user", Some("d.example"), false),
            ("user@d.example", "user", Some("d.example"), false),
            ("<\"user\"@d.example>", "user", Some("d.example"), false),
            ("<\"a b\\\"c\"@d.example>", "a b\"c", Some("d.example"), false),
            ("<@a.example,@b.example:user@d.example>", "user", Some("d.example"), false),
            ("<user>", "user", None, false),
            ("<user@[IPv6:2001:db8::1]>", "user", Some("[IPv6:2001:db8::1]"), false),
            ("<user@d.example>>", "user", Some("d.example"), true),
            ("<<user@d.example>", "user", Some("d.example"), true),
            ("<user(a (b\\) c))@d.example>", "user", Some("d.example"), true),
            ("<us\\er@d.example>", "user", Some("d.example"), true),
            ("<user @ d.example>", "user", Some("d.example"), true),
            ("<a@b@d.example>", "a@b", Some("d.example"), false),
            ("<\"a@b\"@d.example>", "a@b", Some("d.example"), false),
            ("<user@\"d.example\">", "user", Some("d.example"), true),
            ("<\"user@d.example>", "user@d.example", None, true),
            ("<>", "", None, false),
        ];
        for (path, local, domain, odd) in all {
            let domain = domain.map(Cow::from);
            assert_eq!(
                Mailbox::written(path),
                Mailbox { local: local.into(), domain, odd },
                "{path}"
            );
        }
    }

    #[test]
    fn the_innermost_address_is_found_as_postfix_does_it() {
        for written in ["user@c", "c!user", "user%c@a", "b!user%c@a", "user%c%b@a", "user@c@a"] {
            let innermost = Mailbox::written(written).innermost();
            let found = (&*innermost.local, innermost.domain.as_deref());
            assert_eq!(found, ("user", Some("c")), "{written}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_with_fewest_quotes_is_read_the_same(local in "\\PC{0,30}") {
            let path = format!("<{}@d.example>", quoted(&local));
            let read = Mailbox::written(&path);
            // A route is no local part.
            prop_assume!(!path.starts_with("<@"));
            prop_assert_eq!(&*read.local, &*local);
            prop_assert!(!read.odd);
        }

        #[test]
        fn no_text_makes_it_panic(path in "\\PC{0,60}|[<>@!%:,()\"\\\\\\[\\] a.]{0,40}") {
            let _ = Mailbox::written(&path).innermost();
            let _ = Mailbox::unquoted(&path).innermost();
        }
    }
}
