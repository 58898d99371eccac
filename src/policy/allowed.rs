//! Has an administrator let this client through by hand?
//!
//! Who is allowed is exempt as if it stood on the allowlist, until a moment, and across restarts.
//! It comes before the denylist: what is said by hand is said later, and ends by itself.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::decision::{Decision, Exemption};
use super::signal::{Context, Ledger, Round, Signal};
use super::standing::Standing;
use crate::clock::{Moment, Time};
use crate::meter::key::{Key, Secret};
use crate::meter::record::{Lasting, Parts, Record, Said, Stored, Worth, put_time};
use crate::meter::table::{Full, Kept, Size, Table};
use crate::meter::units::Span;

/// Entries at once; who asks for more is told so.
pub const MOST: usize = 1_024;

/// The longest that can be asked for: by then it belongs into the settings.
pub const LONGEST: Span = Span::secs(90 * 86_400);

/// Who is allowed by hand. It outlives the process.
#[derive(Clone)]
pub struct Memory {
    secret: Secret,
    /// By network; bound: [`MOST`].
    table: Arc<Table<Allowed>>,
    /// The same, to be looked through by every event while it is not empty.
    list: Arc<ArcSwap<Vec<Listed>>>,
}

/// One network that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The network, or a single address.
    pub network: IpNet,
    /// Until when.
    pub until: Time,
}

/// One network, and what was said of it.
#[derive(Clone, Copy)]
struct Listed {
    network: IpNet,
    said: Said,
}

impl Listed {
    /// It as of a moment, while it holds.
    fn at(&self, at: Moment) -> Option<Entry> {
        let until = self.said.ends(at.now, LONGEST.duration());
        (!at.is_past(until)).then_some(Entry { network: self.network, until })
    }
}

/// The same as it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    network: Option<IpNet>,
    until: Time,
    /// For how long it was said. Nothing where an earlier version has written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lasting: Option<Lasting>,
}

impl Allowed {
    fn said(self) -> Said {
        Said { until: self.until, lasting: self.lasting }
    }
}

impl Record for Allowed {
    const FAVOURS: bool = true;

    fn forgettable(&self, now: Time) -> bool {
        self.until <= now
    }

    fn worth(&self) -> Worth {
        Worth::Lasting
    }

    fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
        let until = self.said().ends(now, longest);
        (until != self.until).then_some(Self { until, ..*self })
    }
}

impl Stored for Allowed {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until);
        let (family, address, bits) = match self.network {
            None => (0, Ipv6Addr::UNSPECIFIED, 0),
            Some(IpNet::V4(net)) => (4, net.addr().to_ipv6_mapped(), net.prefix_len()),
            Some(IpNet::V6(net)) => (6, net.addr(), net.prefix_len()),
        };
        bytes.extend([family, bits]);
        bytes.extend(address.octets());
        self.lasting.inspect(|lasting| lasting.encode(bytes));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let (until, [family, bits]) = (parts.time()?, parts.bytes()?);
        let address = Ipv6Addr::from(parts.bytes::<16>()?);
        let network = match family {
            0 => None,
            4 => Some(IpNet::new(address.to_ipv4_mapped()?.into(), bits).ok()?),
            6 => Some(IpNet::new(address.into(), bits).ok()?),
            _ => return None,
        };
        let lasting = Lasting::decode(&mut parts);
        parts.end(Self { network, until, lasting })
    }

    fn fold(&mut self, other: Self) {
        self.network = self.network.max(other.network);
        let until = (self.until, self.lasting).max((other.until, other.lasting));
        (self.until, self.lasting) = until;
    }
}

impl Memory {
    pub(super) fn new(secret: &Secret) -> Self {
        let table = Arc::new(Table::noting_changes(MOST));
        table.lasts_at_most(LONGEST.duration());
        Self { secret: secret.clone(), table, list: Arc::default() }
    }

    pub(super) fn sweep(&self, at: Moment) {
        if !self.table.is_empty() {
            self.table.sweep(at, 1);
            self.list_anew();
        }
    }

    pub(super) fn size(&self) -> (&'static str, Size) {
        ("allowed", self.table.size())
    }

    pub(super) fn kept(&self) -> (&'static str, Arc<dyn Kept>) {
        ("allowed", self.table.clone())
    }

    /// Allows a network until that moment, or gives it another end.
    pub fn begin(&self, network: IpNet, until: Time, now: Time) -> Result<(), Full> {
        let network = network.trunc();
        let lasting = Some(Lasting::from(now, until));
        let allowed = Allowed { network: Some(network), until, lasting };
        let at = Moment::of(now);
        let done = self.table.write(self.key(network), at, |entry| *entry = allowed);
        self.list_anew();
        done
    }

    /// Ends that; whether there was anything to end.
    pub fn end(&self, network: IpNet) -> bool {
        let ended = self.table.forget(self.key(network.trunc()));
        self.list_anew();
        ended
    }

    /// Everything that is allowed now, by network.
    pub fn all(&self, at: Moment) -> Vec<Entry> {
        self.list_anew();
        let list = self.list.load();
        let mut all: Vec<_> = list.iter().filter_map(|listed| listed.at(at)).collect();
        all.sort_by_key(|entry| entry.network);
        all
    }

    /// Until when an address is allowed, if it is.
    pub fn until(&self, address: IpAddr, at: Moment) -> Option<Time> {
        if self.table.is_empty() {
            return None;
        }
        // What is read back from disk comes into the table by itself.
        if self.list.load().len() != self.table.len() {
            self.list_anew();
        }
        let list = self.list.load();
        let of_it = list.iter().filter(|listed| listed.network.contains(&address));
        of_it.filter_map(|listed| listed.at(at)).map(|entry| entry.until).max()
    }

    /// Whether everything is known again that was said before a restart.
    pub fn is_whole(&self) -> bool {
        self.table.is_whole()
    }

    fn list_anew(&self) {
        let keys = (0..self.table.parts()).flat_map(|part| self.table.keys(part));
        // As they are stored: whoever looks them through knows the moment.
        let listed = |key| {
            let allowed = self.table.copied(key)?;
            Some(Listed { network: allowed.network?, said: allowed.said() })
        };
        self.list.store(Arc::new(keys.filter_map(listed).collect()));
    }

    fn key(&self, network: IpNet) -> Key {
        let key = self.secret.key("allowed");
        key.part(network.to_string().as_bytes()).finish()
    }
}

impl Signal for Memory {
    fn name(&self) -> &'static str {
        "allowed"
    }

    fn standing(&self, cx: &Context<'_>) -> Option<Standing> {
        self.until(cx.client.address(), cx.at).map(|_| Standing::Trusted)
    }

    fn assess(&self, cx: &Context<'_>, _: &Ledger, round: &mut Round) {
        if self.until(cx.client.address(), cx.at).is_some() {
            round.exempt(Exemption::Allowlisted);
        }
    }

    fn settle(&self, _: &Context<'_>, _: &Decision, _: &mut Ledger) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meter::record::written;

    const NOW: Time = Time::from_secs(1_800_000_000);

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_allowed_until_its_time_or_until_it_is_ended() {
        let memory = Memory::new(&Secret::new([0; 16]));
        let until = NOW + Duration::from_secs(60);
        let within = |address: &str, now| memory.until(address.parse().unwrap(), now);
        memory.begin(network("192.0.2.7/24"), until, NOW).unwrap();
        memory.begin(network("2001:db8::1/128"), until, NOW).unwrap();
        assert_eq!(within("192.0.2.200", Moment::of(NOW)), Some(until));
        assert_eq!(within("2001:db8::1", Moment::of(NOW)), Some(until));
        assert_eq!(within("198.51.100.1", Moment::of(NOW)), None);
        assert_eq!(within("192.0.2.200", Moment::of(until)), None, "it ends by itself");
        assert!(memory.end(network("192.0.2.0/24")) && !memory.end(network("192.0.2.0/24")));
        assert_eq!(within("192.0.2.200", Moment::of(NOW)), None);
        memory.sweep(Moment::of(until));
        assert_eq!(memory.all(Moment::of(NOW)), []);
    }

    #[test]
    fn what_is_read_back_holds_at_once() {
        let [before, after] = [0; 2].map(|_| Memory::new(&Secret::new([0; 16])));
        let until = NOW + Duration::from_secs(60);
        for text in ["192.0.2.0/24", "2001:db8::/32"] {
            before.begin(network(text), until, NOW).unwrap();
            let key = before.key(network(text));
            let bytes = before.table.written(key).unwrap();
            after.table.restore(key, &bytes, Moment::of(NOW));
        }
        assert_eq!(before.all(Moment::of(NOW)), after.all(Moment::of(NOW)));
        assert_eq!(after.until("192.0.2.1".parse().unwrap(), Moment::of(NOW)), Some(until));
        let none = Allowed::default();
        assert_eq!(Allowed::decode(&written(&none)), Some(none));
    }
}
