//! Lists as they stand in main.cf, and what in them is ours. Text to text, no file and no process.
//!
//! Words are separated by commas and blanks; inside braces, which nest, neither separates
//! (postconf(5), mystrtok(3) of Postfix). What is not ours is never written anew: it is cut out of
//! the old text, or the old text goes on behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::front::address::Address;

/// How a list names what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `inet:host:port` in `smtpd_milters`.
    Milter,
    /// `check_policy_service inet:host:port` in a restriction list.
    Policy,
}

/// Where our listeners are, as Postfix may spell it.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) addresses: Vec<Address>,
    /// What Postfix means by a relative path, and the root of a service that is chrooted.
    pub(super) queue: PathBuf,
}

/// An entry of a list that names one of our listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// Where it stands, all its words.
    pub(super) range: Range<usize>,
    endpoint: String,
    attributes: Vec<(String, String)>,
}

impl Kind {
    /// The action that lets mail pass while nobody answers.
    pub(super) fn harmless(self) -> &'static str {
        match self {
            Self::Milter => "accept",
            Self::Policy => "DUNNO",
        }
    }

    /// The parameter that says so for entries that say nothing.
    pub(super) fn general(self) -> &'static str {
        match self {
            Self::Milter => "milter_default_action",
            Self::Policy => "smtpd_policy_service_default_action",
        }
    }

    /// Postfix would wait for 30 and 100 seconds, which a sending host need not bear.
    fn timeouts(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Milter => &[("connect_timeout", "5s"), ("command_timeout", "5s")],
            Self::Policy => &[("timeout", "5s")],
        }
    }

    /// The entry that asks this endpoint.
    pub(super) fn entry(self, endpoint: &str) -> String {
        self.with(endpoint, &[])
    }

    /// The same entry, with an action that lets mail pass.
    pub(super) fn mended(self, own: &Own) -> String {
        self.moved(own, &own.endpoint)
    }

    /// That entry for another endpoint.
    pub(super) fn moved(self, own: &Own, endpoint: &str) -> String {
        let kept = own.attributes.iter().filter(|(name, _)| name != "default_action");
        self.with(endpoint, &kept.cloned().collect::<Vec<_>>())
    }

    fn with(self, endpoint: &str, kept: &[(String, String)]) -> String {
        let word = match self {
            Self::Milter => "",
            Self::Policy => "check_policy_service ",
        };
        let mut entry = format!("{word}{{ {endpoint}, default_action={}", self.harmless());
        for (name, value) in kept {
            let spaced = value.contains(SEPARATORS);
            entry += &if spaced {
                format!(", {{ {name} = {value} }}")
            } else {
                format!(", {name}={value}")
            };
        }
        for (name, value) in self.timeouts() {
            if !kept.iter().any(|(kept, _)| kept == name) {
                entry += &format!(", {name}={value}");
            }
        }
        entry + " }"
    }
}

impl Own {
    /// What Postfix does when nobody answers, if the entry itself says.
    pub(super) fn default_action(&self) -> Option<&str> {
        let action = self.attributes.iter().rev().find(|(name, _)| name == "default_action");
        action.map(|(_, value)| value.as_str())
    }
}

const SEPARATORS: [char; 5] = [',', ' ', '\t', '\r', '\n'];

/// The places of the words.
pub(super) fn words(list: &str) -> Vec<Range<usize>> {
    let (mut words, mut start, mut depth) = (Vec::new(), None, 0_usize);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 && SEPARATORS.contains(&c) => {
                words.extend(start.take().map(|start| start..at));
                continue;
            }
            _ => {}
        }
        start = start.or(Some(at));
    }
    words.extend(start.map(|start| start..list.len()));
    words
}

/// The list with this entry behind all others.
pub(super) fn appended(list: &str, entry: &str) -> String {
    let comma = if list.ends_with(',') { "" } else { "," };
    if words(list).is_empty() { entry.to_owned() } else { format!("{list}{comma} {entry}") }
}

/// The list with this entry before its last word, separated as that word is.
pub(super) fn put_before_last(list: &str, entry: &str) -> String {
    match words(list)[..] {
        [.., ref before, ref last] => {
            let separator = &list[before.end..last.start];
            format!("{}{entry}{separator}{}", &list[..last.start], &list[last.start..])
        }
        [ref last] => format!("{entry}, {}", &list[last.start..]),
        [] => entry.to_owned(),
    }
}

/// The list with another text in this place.
pub(super) fn replaced(list: &str, place: &Range<usize>, text: &str) -> String {
    format!("{}{text}{}", &list[..place.start], &list[place.end..])
}

/// The list without what stands in these places, which follow one another, and without the
/// separators that led to it.
pub(super) fn without(list: &str, places: &[Range<usize>]) -> String {
    let mut left = list.to_owned();
    for place in places.iter().rev() {
        let before = left[..place.start].trim_end_matches(SEPARATORS);
        let behind = &left[place.end..];
        left = match before {
            "" => behind.trim_start_matches(SEPARATORS).to_owned(),
            before => format!("{before}{behind}"),
        };
    }
    left
}

/// The entries that name one of our listeners, however they spell it.
pub(super) fn own(list: &str, kind: Kind, places: &Places) -> Vec<Own> {
    let words = words(list);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let Some((endpoint, attributes)) = entry(&list[word.clone()]) else { continue };
        if !places.addresses.iter().any(|address| reaches(&endpoint, address, &places.queue)) {
            continue;
        }
        let start = match (kind, at.checked_sub(1).map(|at| &words[at])) {
            (Kind::Milter, _) => word.start,
            (Kind::Policy, Some(asks)) if &list[asks.clone()] == "check_policy_service" => {
                asks.start
            }
            (Kind::Policy, _) => continue,
        };
        found.push(Own { range: start..word.end, endpoint, attributes });
    }
    found
}

/// What one word names, and what it says of it.
fn entry(word: &str) -> Option<(String, Vec<(String, String)>)> {
    let Some(inside) = braced(word) else { return Some((word.to_owned(), Vec::new())) };
    let mut words = words(inside).into_iter().map(|place| &inside[place]);
    let endpoint = words.next()?.to_owned();
    let attributes = words.filter_map(|word| {
        let (name, value) = braced(word).unwrap_or(word).split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    });
    Some((endpoint, attributes.collect()))
}

fn braced(word: &str) -> Option<&str> {
    word.strip_prefix('{')?.strip_suffix('}').map(str::trim)
}

/// How Postfix is told of this address; nothing where its lists could not hold it.
pub(super) fn endpoint(address: &Address, queue: &Path) -> Option<String> {
    match address {
        // Any port: the daemon picks another one at each start.
        Address::Inet(address) if address.port() == 0 => None,
        // It listens on all addresses; the nearest will do.
        Address::Inet(address) if address.ip().is_unspecified() => {
            let loopback = match address.ip() {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
            };
            Some(format!("inet:{}", SocketAddr::new(loopback, address.port())))
        }
        // For Postfix, an IPv6 address is `inet` as well.
        Address::Inet(address) => Some(format!("inet:{address}")),
        Address::Unix(path) => {
            // A path below the queue is told relative to it: so it is right chrooted or not.
            let path = path.strip_prefix(queue).unwrap_or(path).to_str()?;
            let plain = !path.contains(SEPARATORS) && !path.contains(['{', '}', '$']);
            plain.then(|| format!("unix:{path}"))
        }
    }
}

/// Whether an endpoint in Postfix's words is this address.
fn reaches(endpoint: &str, address: &Address, queue: &Path) -> bool {
    let Some((kind, rest)) = endpoint.split_once(':') else { return false };
    match address {
        Address::Inet(own) if kind.eq_ignore_ascii_case("inet") => {
            // Without a host it is this one.
            let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
            port.parse() == Ok(own.port()) && is_host(host, own.ip())
        }
        Address::Unix(own) if ["unix", "local"].iter().any(|k| kind.eq_ignore_ascii_case(k)) => {
            let path = Path::new(rest);
            path == own || queue.join(path.strip_prefix("/").unwrap_or(path)) == *own
        }
        Address::Inet(_) | Address::Unix(_) => false,
    }
}

/// Whether who connects to this host reaches the address. Other names are not looked up: their
/// answer may be another one tomorrow.
fn is_host(host: &str, own: IpAddr) -> bool {
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let near = own.is_loopback() || own.is_unspecified();
    match host.parse::<IpAddr>() {
        Ok(host) => {
            let host = host.to_canonical();
            host == own.to_canonical() || own.is_unspecified() && host.is_loopback()
        }
        Err(_) => near && (host.is_empty() || host.eq_ignore_ascii_case("localhost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: &str = "inet:127.0.0.1:7421";

    fn places(address: &str) -> Places {
        Places { addresses: vec![address.parse().unwrap()], queue: "/var/spool/postfix".into() }
    }

    fn texts(list: &str) -> Vec<&str> {
        words(list).into_iter().map(|place| &list[place]).collect()
    }

    #[test]
    fn words_are_separated_as_postfix_does() {
        for (list, expected) in [
            ("", &[][..]),
            (" ,\t", &[]),
            ("inet:a:1", &["inet:a:1"]),
            ("inet:a:1, inet:b:2 unix:c", &["inet:a:1", "inet:b:2", "unix:c"]),
            ("{ inet:a:1, default_action=accept }", &["{ inet:a:1, default_action=accept }"]),
            ("a,{ b, { c = d, e } },$f", &["a", "{ b, { c = d, e } }", "$f"]),
            ("${a?{b, c}:{d}} e", &["${a?{b, c}:{d}}", "e"]),
            ("a } b", &["a", "}", "b"]),
            ("a { b, c", &["a", "{ b, c"]),
        ] {
            assert_eq!(texts(list), expected, "{list}");
        }
    }

    #[test]
    fn an_entry_is_ours_in_every_spelling() {
        for (address, list, ours) in [
            (OURS, OURS, 1),
            (OURS, "INET:localhost:7421", 1),
            (OURS, "inet:[127.0.0.1]:7421", 1),
            (OURS, "inet:7421", 1),
            (OURS, "inet:[::ffff:127.0.0.1]:7421", 1),
            (
                OURS,
                "inet:a:1, {inet:127.0.0.1:7421, default_action=accept} {inet:localhost:7421}",
                2,
            ),
            (
                OURS,
                "inet:127.0.0.1:74210, inet:127.0.0.2:7421, inet:mx:7421, $inet:127.0.0.1:7421",
                0,
            ),
            (OURS, "unix:127.0.0.1:7421", 0),
            ("inet:192.0.2.7:7421", "inet:192.0.2.7:7421, inet:localhost:7421", 1),
            ("inet:0.0.0.0:7421", "inet:127.0.0.1:7421, inet:192.0.2.7:7421", 1),
            ("inet6:[::1]:7421", "inet:[::1]:7421", 1),
            ("inet6:[::1]:7421", "inet:[0:0::1]:7421, inet:localhost:7421", 2),
            ("unix:/var/spool/postfix/postpone/m", "unix:postpone/m", 1),
            ("unix:/var/spool/postfix/postpone/m", "unix:/postpone/m", 1),
            ("unix:/var/spool/postfix/postpone/m", "local:/var/spool/postfix/postpone//m", 1),
            ("unix:/var/spool/postfix/postpone/m", "unix:postpone/n", 0),
            ("unix:/run/postpone/m", "unix:/run/postpone/m", 1),
        ] {
            assert_eq!(own(list, Kind::Milter, &places(address)).len(), ours, "{address} {list}");
        }
        let lists = [
            ("permit_mynetworks, check_policy_service inet:localhost:7421 permit", 1),
            ("check_policy_service { inet:127.0.0.1:7421, timeout=9s }", 1),
            ("inet:127.0.0.1:7421", 0),
            ("check_client_access inet:127.0.0.1:7421", 0),
        ];
        for (list, ours) in lists {
            assert_eq!(own(list, Kind::Policy, &places(OURS)).len(), ours, "{list}");
        }
    }

    #[test]
    fn an_address_is_told_as_postfix_spells_it() {
        for (address, expected) in [
            (OURS, Some(OURS)),
            ("inet:0.0.0.0:7421", Some(OURS)),
            ("inet6:[::]:7421", Some("inet:[::1]:7421")),
            ("inet6:[2001:db8::7]:7421", Some("inet:[2001:db8::7]:7421")),
            ("inet:127.0.0.1:0", None),
            ("unix:/run/postpone/milter.sock", Some("unix:/run/postpone/milter.sock")),
            ("unix:/var/spool/postfix/postpone/m", Some("unix:postpone/m")),
            ("unix:/run/post pone/m", None),
        ] {
            let told = endpoint(&address.parse().unwrap(), Path::new("/var/spool/postfix"));
            assert_eq!(told.as_deref(), expected, "{address}");
            let found = told.map_or(1, |told| own(&told, Kind::Milter, &places(address)).len());
            assert_eq!(found, 1, "{address}");
        }
    }

    #[test]
    fn separators_that_stand_there_are_used() {
        for (list, behind, before) in [
            ("a", "a, X", "X, a"),
            ("a b", "a b, X", "a X b"),
            ("a,b", "a,b, X", "a,X,b"),
            ("a, b,", "a, b, X", "a, X, b,"),
            ("", "X", "X"),
        ] {
            assert_eq!(appended(list, "X"), behind);
            assert_eq!(put_before_last(list, "X"), before);
        }
    }

    #[test]
    fn the_entries_are_the_documented_ones() {
        let documented = include_str!("../../../conf/postfix-main.cf");
        let packaged = Address::Unix(crate::front::packaged::FOR_POSTFIX.into());
        let milter = endpoint(&packaged, Path::new("/var/spool/postfix")).unwrap();
        let milter = Kind::Milter.entry(&milter);
        assert!(documented.contains(&format!("\nsmtpd_milters = {milter}\n")), "{milter}");
        let policy = Kind::Policy.entry("inet:127.0.0.1:7422");
        assert!(documented.contains(&format!("smtpd_end_of_data_restrictions = {policy}\n")));
    }

    #[test]
    fn what_would_put_mail_off_is_mended_and_the_rest_of_it_stays() {
        for (kind, list, expected) in [
            (Kind::Milter, OURS, Kind::Milter.entry(OURS)),
            (
                Kind::Milter,
                "{inet:localhost:7421,{default_action = tempfail},command_timeout=9s,protocol=6}",
                "{ inet:localhost:7421, default_action=accept, command_timeout=9s, protocol=6, \
                 connect_timeout=5s }"
                    .into(),
            ),
            (
                Kind::Policy,
                "check_policy_service { inet:localhost:7421, timeout=9s, default_action=451 }",
                "check_policy_service { inet:localhost:7421, default_action=DUNNO, timeout=9s }"
                    .into(),
            ),
        ] {
            let found = own(list, kind, &places(OURS));
            assert_eq!(found.len(), 1, "{list}");
            assert_eq!(kind.mended(&found[0]), expected, "{list}");
        }
    }

    fn list() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            "(inet|unix):[a-z]{1,5}:[0-9]{1,4}",
            Just("$others".to_owned()),
            Just("{ inet:a:1, default_action=accept, { x = y, z } }".to_owned()),
            Just("${a?{b, c}}".to_owned()),
        ];
        let separator = prop_oneof![Just(", "), Just(","), Just(" "), Just(" , ")];
        proptest::collection::vec((word, separator), 0..6).prop_map(|parts| {
            let mut list = String::new();
            for (at, (word, separator)) in parts.iter().enumerate() {
                list += if at == 0 { "" } else { separator };
                list += word;
            }
            list
        })
    }

    proptest! {
        #[test]
        fn what_is_appended_and_taken_out_again_leaves_the_same_text(list in list()) {
            for kind in [Kind::Milter, Kind::Policy] {
                let with = appended(&list, &kind.entry(OURS));
                prop_assert!(with.starts_with(&list));
                let found = own(&with, kind, &places(OURS));
                prop_assert_eq!(found.len(), 1);
                prop_assert_eq!(found[0].range.end, with.len());
                prop_assert_eq!(without(&with, &[found[0].range.clone()]), list.clone());
                let with = put_before_last(&list, &kind.entry(OURS));
                let found = own(&with, kind, &places(OURS));
                prop_assert_eq!(found.len(), 1);
                prop_assert_eq!(without(&with, &[found[0].range.clone()]), list.clone());
            }
        }

        #[test]
        fn all_of_ours_go_and_all_others_stay(lists in proptest::collection::vec(list(), 1..4)) {
            let ours = Kind::Milter.entry(OURS);
            let mixed = lists.join(&format!(" ,{ours}, ")) + " " + &ours;
            let found = own(&mixed, Kind::Milter, &places(OURS));
            let ranges: Vec<_> = found.into_iter().map(|own| own.range).collect();
            let others: Vec<_> = lists.iter().flat_map(|list| texts(list)).collect();
            let left = without(&mixed, &ranges);
            prop_assert_eq!(texts(&left), others);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z{}=, :\\[\\]$é0-9]{0,60}") {
            for kind in [Kind::Milter, Kind::Policy] {
                let found = own(&text, kind, &places(OURS));
                let ranges: Vec<_> = found.iter().map(|own| own.range.clone()).collect();
                without(&text, &ranges);
            }
        }
    }
}
