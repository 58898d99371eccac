//! Which recipients are the same mailbox, and in which domains may it be?
//!
//! A rule about a domain must hold however the recipient is spelled, and so must a count by
//! recipient. Where the spelling leaves it open, a rule that asks something of a domain applies,
//! and a rule that spares a domain something does not.

use std::borrow::Cow;

use crate::smtp::address::{Address, Destination, folded};
use crate::smtp::domain::{self, Domain};

/// What `[server]` says of recipients.
#[derive(Clone, Debug, Default)]
pub struct Recipients {
    /// Names the MTA delivers to users of the host itself. To all of them the same users belong.
    own: Vec<Box<str>>,
    /// What stands for all of these in keys, and for no name at all.
    here: Box<str>,
    /// Each of these begins a detail.
    delimiters: Box<str>,
}

impl Recipients {
    /// Of a host of this name, with these names that are delivered locally; none where they are not
    /// known.
    pub fn new(host: &str, own: &[Domain], delimiters: &str) -> Self {
        let own: Vec<Box<str>> = own.iter().map(|name| name.as_str().into()).collect();
        let here = own.first().cloned().unwrap_or_else(|| domain::canonical(host).into());
        Self { own, here, delimiters: delimiters.into() }
    }

    /// The mailbox by which an address counts: without case and detail, at one of the host's own
    /// names if it is there.
    pub fn mailbox<'a>(&self, address: &'a Address) -> Cow<'a, str> {
        let likely = address.likely();
        let local = self.without_detail(likely.local());
        let at = self.name_of(&likely);
        let same = at == likely.domain() && local.len() == likely.local().len();
        match likely {
            Cow::Borrowed(address) if same && is_folded(local) => Cow::Borrowed(address.as_str()),
            _ if at.is_empty() => Cow::Owned(folded(local).into_owned()),
            _ => Cow::Owned(format!("{}@{at}", folded(local))),
        }
    }

    /// The domain by which an address counts.
    pub fn domain<'a>(&'a self, address: &'a Address) -> Cow<'a, str> {
        match address.likely() {
            Cow::Borrowed(address) => Cow::Borrowed(self.name_of(address)),
            Cow::Owned(address) => Cow::Owned(self.name_of(&address).to_owned()),
        }
    }

    /// Whether mail to this address may go to a domain, by its canonical name: so that what the
    /// domain asks applies.
    pub fn may_be_at(&self, address: &Address, domain: &str) -> bool {
        let same = |named: &str| named == domain || (self.owns(named) && self.owns(domain));
        match address.destination() {
            Destination::Known(named) => same(named),
            Destination::Mapped(named, end) => same(named) || same(end),
            Destination::Here => self.own.is_empty() || self.owns(domain),
            Destination::Unknown => true,
        }
    }

    /// Whether mail to this address certainly goes to one of these domains, by their canonical
    /// names: so that what they are spared is spared.
    pub fn is_at(&self, address: &Address, domains: &[Box<str>]) -> bool {
        let named = |name: &str| domains.iter().any(|domain| **domain == *name);
        match address.destination() {
            Destination::Known(name) => named(name),
            Destination::Mapped(name, end) => named(name) && named(end),
            Destination::Here => !self.own.is_empty() && self.own.iter().all(|own| named(own)),
            Destination::Unknown => false,
        }
    }

    fn owns(&self, name: &str) -> bool {
        self.own.iter().any(|own| **own == *name)
    }

    fn name_of<'a>(&'a self, address: &'a Address) -> &'a str {
        match address.destination() {
            Destination::Here => &self.here,
            Destination::Known(name) | Destination::Mapped(name, _) if self.owns(name) => {
                &self.here
            }
            Destination::Known(_) | Destination::Mapped(..) | Destination::Unknown => {
                address.domain()
            }
        }
    }

    fn without_detail<'a>(&self, local: &'a str) -> &'a str {
        match local.split_once(|c| self.delimiters.contains(c)) {
            Some((user, _)) if !user.is_empty() => user,
            _ => local,
        }
    }
}

fn is_folded(text: &str) -> bool {
    matches!(folded(text), Cow::Borrowed(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recipients(own: &[&str]) -> Recipients {
        let own: Vec<_> = own.iter().map(|name| name.parse().unwrap()).collect();
        Recipients::new("mx.example.org", &own, "+-")
    }

    fn address(text: &str) -> Address {
        Address::new(text.as_bytes())
    }

    #[test]
    fn a_mailbox_counts_as_one_however_it_is_spelled() {
        let recipients = recipients(&["bank.example", "mx.bank.example"]);
        let spellings = [
            "<user@bank.example>",
            "<USER@BANK.Example.>",
            "<\"user\"@bank.example>",
            "<@a.example:user@bank.example>",
            "<user+tag@bank.example>",
            "<user-tag@bank.example>",
            "<user>",
            "<user@[192.0.2.1]>",
            "<user@mx.bank.example>",
            "<user@localhost>",
            "<user%bank.example@mx.bank.example>",
            "<bank.example!user>",
            "<\"user@bank.example\"@mx.bank.example>",
            "<user(comment)@bank.example>",
        ];
        for spelling in spellings {
            let address = address(spelling);
            assert_eq!(recipients.mailbox(&address), "user@bank.example", "{spelling}");
            assert_eq!(recipients.domain(&address), "bank.example", "{spelling}");
            assert!(recipients.may_be_at(&address, "bank.example"), "{spelling}");
        }
        for other in ["<user@a.example>", "<user.b@bank.example>", "<-user@bank.example>", "<>"] {
            assert_ne!(recipients.mailbox(&address(other)), "user@bank.example", "{other}");
        }
    }

    #[test]
    fn what_is_not_known_is_asked_everything_and_spared_nothing() {
        let spared = ["bank.example".into()];
        let certain = |own: &[&str], text: &str| {
            let recipients = recipients(own);
            let address = address(text);
            (recipients.may_be_at(&address, "bank.example"), recipients.is_at(&address, &spared))
        };
        assert_eq!(certain(&[], "<user@bank.example>"), (true, true));
        assert_eq!(certain(&[], "<user@other.example>"), (false, false));
        for text in ["<user%bank.example@other.example>", "<other.example!user>", "<user@bank>"] {
            assert_eq!(certain(&["bank.example"], text), (true, false), "{text}");
        }
        for text in ["<user>", "<user@[192.0.2.1]>", "<user@localhost>"] {
            assert_eq!(certain(&[], text), (true, false), "{text}");
            assert_eq!(certain(&["bank.example"], text), (true, true), "{text}");
            assert_eq!(certain(&["bank.example", "a.example"], text), (true, false), "{text}");
            assert_eq!(certain(&["a.example"], text), (false, false), "{text}");
        }
        // The same users, whichever of the names is written.
        assert_eq!(certain(&["bank.example", "a.example"], "<user@a.example>"), (true, false));
    }

    #[test]
    fn what_the_mta_makes_of_an_address_by_its_tables_is_asked_for_both() {
        let mapped = Address::resolved(b"<user@a.example>", b"other@bank.example");
        let recipients = recipients(&[]);
        assert_eq!(recipients.mailbox(&mapped), "user@a.example");
        assert!(recipients.may_be_at(&mapped, "a.example"));
        assert!(recipients.may_be_at(&mapped, "bank.example"));
        assert!(!recipients.is_at(&mapped, &["a.example".into()]));
    }

    proptest! {
        #[test]
        fn a_mailbox_is_its_own_mailbox(path in "\\PC{0,40}|[<>@!%:,()\"\\\\\\[\\] a.+-]{0,30}") {
            let recipients = recipients(&["bank.example"]);
            let once = recipients.mailbox(&Address::unquoted(path.as_bytes())).into_owned();
            let again = address(&once);
            if matches!(again.destination(), Destination::Known(_)) {
                prop_assert_eq!(&*recipients.mailbox(&again), &once);
            }
        }

        #[test]
        fn equal_destinations_have_equal_keys(
            user in "[a-zA-Z]{1,9}(\\.[a-z]{1,5})?", tag in "[a-z%!@ \"]{0,5}", spelling in 0..10_usize
        ) {
            let recipients = recipients(&["mx.example.org"]);
            let written = match spelling {
                0 => format!("<{user}@bank.example>"),
                1 => format!("<\"{user}\"@Bank.Example.>"),
                2 => format!("{user}@bank.example"),
                3 => format!("<{}@bank.example>", user.to_ascii_uppercase()),
                4 => format!("<bank.example!{user}>"),
                5 => format!("<{user}%bank.example@mx.example.org>"),
                6 => format!("<@[192.0.2.1],@a.example:{user}@bank.example>"),
                7 => format!("<{user}(){}@bank.example>>", ""),
                8 => format!("< {user} @ bank.example >"),
                _ => format!("<{user}+{}@bank.example>", tag.replace(['%', '!', '@', ' ', '"'], "")),
            };
            let expected = format!("{}@bank.example", user.to_ascii_lowercase());
            let address = address(&written);
            prop_assert_eq!(&*recipients.mailbox(&address), &*expected, "{}", written);
            prop_assert!(recipients.may_be_at(&address, "bank.example"));
        }
    }
}
