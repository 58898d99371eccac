//! What was a client called when its name could last be looked up?
//!
//! Pools, and all that is kept by them, hang on names that the MTA confirms. While its resolver
//! fails the name is unsure, which is no fault of the client: then the last confirmed one of the same
//! address counts, so that a passed triplet, a proven sender and a due retry are what they were. A
//! stranger has none, and stays a stranger: a reverse zone that fails is in the sender's own hands,
//! and must buy nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::signal::Context;
use super::standing::Standing;
use crate::clock::{Moment, Time};
use crate::meter::key::{Key, Secret};
use crate::meter::record::{Parts, Record, Stored, Worth, put_time};
use crate::meter::table::{Kept, Size, Table};
use crate::smtp::client::{Client, Network, Prefixes};
use crate::smtp::event::{Event, Fate};

/// What clients were called. It outlives every policy.
#[derive(Clone)]
pub struct Memory {
    secret: Secret,
    /// By address. Bound: half of `max_clients`, of [`LONGEST`] bytes each. When it is full, those
    /// go first that were strangers when they were last seen, and of those the ones not seen for
    /// longest.
    table: Arc<Table<Box<Named>>>,
}

/// The last confirmed name of one address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    /// Its end, if it is longer than [`LONGEST`]: that says whose it is.
    name: Box<str>,
    /// Whether the client was no stranger.
    earned: bool,
    until: Time,
}

/// What is kept of a name, in bytes.
const LONGEST: usize = 64;

/// How long a name is remembered after it was last confirmed; as long as what hangs on it by default.
const FORGET: Duration = Duration::from_secs(36 * 86_400);

/// The form of a record, its first byte.
const FORM: u8 = 1;

impl Record for Named {
    const APART: usize = LONGEST;
    const FAVOURS: bool = true;

    fn forgettable(&self, now: Time) -> bool {
        self.until <= now
    }

    fn worth(&self) -> Worth {
        Worth::Fleeting(u64::from(self.earned) << 63 | self.until.as_nanos() >> 1)
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        let until = self.until.at_most(longest, now);
        (until != self.until).then(|| Self { until, ..self.clone() })
    }
}

impl Stored for Named {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(FORM);
        put_time(bytes, self.until);
        bytes.push(self.earned.into());
        bytes.extend(self.name.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let [form] = parts.bytes()?;
        let (until, [earned]) = (parts.time()?, parts.bytes()?);
        let name = std::str::from_utf8(parts.rest()).ok()?;
        let known = form == FORM && name.len() <= LONGEST;
        known.then(|| Self { name: name.into(), earned: earned != 0, until })
    }

    fn fold(&mut self, other: Self) {
        let earned = self.earned || other.earned;
        if (other.until, &other.name) > (self.until, &self.name) {
            *self = other;
        }
        self.earned = earned;
    }
}

impl Memory {
    pub(super) fn new(secret: &Secret, max_clients: usize) -> Self {
        let table = Arc::new(Table::noting_changes(max_clients / 2));
        table.lasts_at_most(FORGET);
        Self { secret: secret.clone(), table }
    }

    pub(super) fn sweep(&self, at: Moment, parts: usize) {
        self.table.sweep(at, parts);
    }

    pub(super) fn size(&self) -> (&'static str, Size) {
        ("names", self.table.size())
    }

    pub(super) fn kept(&self) -> (&'static str, Arc<dyn Kept>) {
        ("names", self.table.clone())
    }

    /// The client by the name that it last had, if its own is unsure.
    pub(super) fn recall(&self, client: Client, at: Moment) -> Client {
        if !client.name_is_wanting() || self.table.is_empty() {
            return client;
        }
        let last = |named: Option<&Box<Named>>| {
            let named = named?;
            let same = client.claimed_name().is_none_or(|claimed| cut(claimed) == &*named.name);
            same.then(|| named.name.clone())
        };
        match self.table.read(self.key(client.address()), at, last) {
            Some(name) => client.last_named(name),
            None => client,
        }
    }

    /// Takes note of a confirmed name, once a message.
    pub(super) fn note(&self, cx: &Context<'_>) {
        let Event::Recipient { fate: Fate::Offered | Fate::Doomed, .. } = cx.event else { return };
        let Some(name) = cx.client.confirmed_name().filter(|_| cx.asked.in_message == 0) else {
            return;
        };
        let name = cut(name);
        let earned = cx.standing() >= Standing::Proven;
        let until = cx.now + FORGET;
        // Written anew some thirty times until it is forgotten at most.
        let stale = |named: Option<&Box<Named>>| {
            named.is_none_or(|named| {
                *named.name != *name
                    || named.earned != earned
                    || named.until + FORGET / 32 < until
                    || named.until > until
            })
        };
        let key = self.key(cx.client.address());
        if self.table.read(key, cx.at, stale) {
            // A full table counts what it turns away.
            let _ = self.table.write(key, cx.at, |named| {
                **named = Named { name: name.into(), earned, until };
            });
        }
    }

    fn key(&self, address: IpAddr) -> Key {
        let host = Network::of(address, Prefixes { ipv4: 32, ipv6: 128 });
        self.secret.key("name").part(&host.octets()).finish()
    }
}

/// The end of a name, by whole labels: its domain is there, and what kind of name it is.
fn cut(name: &str) -> &str {
    let Some(over) = name.len().checked_sub(LONGEST).filter(|over| *over > 0) else { return name };
    let rest = &name[name.ceil_char_boundary(over)..];
    rest.split_once('.').map_or(rest, |(_, labels)| labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::record::written;
    use proptest::prelude::*;

    const NOW: Time = Time::from_secs(1_800_000_000);

    fn named(name: &str, earned: bool, secs: u64) -> Named {
        Named { name: name.into(), earned, until: Time::from_secs(secs) }
    }

    #[test]
    fn what_the_first_form_has_written_is_read_for_ever() {
        let bytes = b"\x01\x00\x00\x64\xa7\xb3\xb6\xe0\x0d\x01mx.example.net";
        let until = Time::from_nanos(1_000_000_000_000_000_000);
        let read = Named::decode(bytes).unwrap();
        assert_eq!(read, Named { name: "mx.example.net".into(), earned: true, until });
        assert_eq!(written(&read), bytes);
        for broken in [&bytes[..9], b"", b"\x02\x00\x00\x64\xa7\xb3\xb6\xe0\x0d\x01mx.example.net"]
        {
            assert_eq!(Named::decode(broken), None);
        }
        let long = [&bytes[..10], &[b'a'; LONGEST + 1]].concat();
        assert_eq!(Named::decode(&long), None);
    }

    #[test]
    fn of_a_long_name_the_end_is_kept() {
        assert_eq!(cut("mx.example.net"), "mx.example.net");
        let long = format!("{}.{}.mail.example.net", "a".repeat(60), "b".repeat(20));
        assert_eq!(cut(&long), format!("{}.mail.example.net", "b".repeat(20)));
        assert!(cut(&"é".repeat(60)).len() <= LONGEST);
    }

    #[test]
    fn only_the_address_that_had_the_name_is_known_by_it() {
        let memory = Memory::new(&Secret::new([7; 16]), 1_000);
        let [one, other] = ["192.0.2.7", "192.0.2.8"].map(|a| Client::new(a.parse().unwrap()));
        let entry = named("mx.example.net", false, 1_900_000_000);
        let _ =
            memory.table.write(memory.key(one.address()), Moment::of(NOW), |named| **named = entry);
        let name =
            |client: Client| memory.recall(client, Moment::of(NOW)).name().map(str::to_owned);
        let is_it = Some("mx.example.net".to_owned());
        assert_eq!(name(one.clone().of_unsure_name()), is_it);
        assert_eq!(name(one.clone().of_untold_name(None)), is_it);
        assert_eq!(name(one.clone().of_untold_name(Some("MX.example.net."))), is_it);
        // It calls itself otherwise by now, or is known to have no name.
        assert_eq!(name(one.clone().of_untold_name(Some("mx.example.com"))), None);
        assert_eq!(name(one), None);
        assert_eq!(name(other.of_unsure_name()), None);
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written_and_fold_in_any_order(
            names in ["[a-zé.]{0,30}", "[a-z.]{0,30}"], earned: [bool; 2], secs in [0..9_u64, 0..9]
        ) {
            let [one, other] =
                [0, 1].map(|n: usize| named(&names[n], earned[n], secs[n]));
            prop_assert_eq!(Named::decode(&written(&one)), Some(one.clone()));
            let folded = |mut one: Named, other: &Named| { one.fold(other.clone()); one };
            let both = folded(one.clone(), &other);
            prop_assert_eq!(&both, &folded(other.clone(), &one));
            prop_assert_eq!(&folded(both.clone(), &other), &both);
        }
    }
}
