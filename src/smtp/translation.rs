//! IPv4 addresses that stand in IPv6 addresses, so that a client is known by one address, whatever
//! it has come through: mapped by the host's own sockets (RFC 4291 section 2.5.5.2), translated by a
//! SIIT (`::ffff:0:0:0/96`, RFC 7915 section 5.1), or by a NAT64 of somebody's own (RFC 6052).

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::setting::{Expected, as_text};

/// A network of IPv6 in which IPv4 addresses stand, as RFC 6052 section 2.2 places them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation(Ipv6Net);

/// The lengths that a prefix may have.
const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// Bits 64 to 71 are zero in every such address: they meant something in older interfaces. The
/// prefix of a SIIT is older than that.
const UNUSED: usize = 8;

impl Translation {
    /// The one that everybody may use (RFC 6052 section 2.1).
    pub const WELL_KNOWN: Self =
        Self(Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96));

    const SIIT: Self = Self(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96));

    /// The IPv4 address in this one, if there is any.
    ///
    /// Addresses that no client on another host can have are left alone: a loopback address that is
    /// read out of one that came over the network would be trusted. In the well-known prefix only
    /// public addresses may stand (RFC 6052 section 3.1).
    pub fn ipv4_in(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        if !self.0.contains(&address) || (self.begin() <= UNUSED && address.octets()[UNUSED] != 0) {
            return None;
        }
        let octets = address.octets();
        let [a, b, c, d] = self.places().map(|place| place.map_or(0, |at| octets[at]));
        let address = Ipv4Addr::new(a, b, c, d);
        let local = address.is_loopback()
            || address.is_unspecified()
            || address.is_link_local()
            || address.is_multicast()
            || address.is_broadcast()
            || (self == Self::WELL_KNOWN && address.is_private());
        (!local).then_some(address)
    }

    /// The first octet behind the prefix.
    fn begin(self) -> usize {
        usize::from(self.0.prefix_len()) / 8
    }

    /// Where the four octets stand.
    fn places(self) -> [Option<usize>; 4] {
        let mut behind = (self.begin()..16).filter(|at| *at != UNUSED);
        std::array::from_fn(|_| behind.next())
    }

    /// The IPv4 network that all of this one stands for, but for local addresses.
    fn network_in(self, network: Ipv6Net) -> Option<Ipv4Net> {
        if !self.0.contains(&network) {
            return None;
        }
        let ends = [network.network(), network.broadcast()];
        if network != self.0 && ends.into_iter().all(|end| self.ipv4_in(end).is_none()) {
            return None;
        }
        let (octets, length) = (network.network().octets(), usize::from(network.prefix_len()));
        let places = self.places();
        let [a, b, c, d] = places.map(|place| place.map_or(0, |at| octets[at]));
        let known = places.into_iter().flatten().map(|at| length.saturating_sub(at * 8).min(8));
        Ipv4Net::new(Ipv4Addr::new(a, b, c, d), known.sum::<usize>() as u8).ok()
    }
}

/// The IPv4 network by which all clients in this one are known, if it stands for one: none is known
/// by an address in it.
pub fn known_by(network: Ipv6Net, translators: &[Translation]) -> Option<Ipv4Net> {
    let mapped = network.network().to_ipv4_mapped().zip(network.prefix_len().checked_sub(96));
    let mapped = mapped.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok());
    let mut all = translators.iter().copied().chain([Translation::SIIT]);
    mapped.or_else(|| all.find_map(|translator| translator.network_in(network)))
}

/// The address by which a client is known, with these translators.
pub fn canonical(address: IpAddr, translators: &[Translation]) -> IpAddr {
    let address = address.to_canonical();
    let IpAddr::V6(v6) = address else { return address };
    let mut all = translators.iter().copied().chain([Translation::SIIT]);
    all.find_map(|translator| translator.ipv4_in(v6)).map_or(address, IpAddr::V4)
}

impl FromStr for Translation {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let network = text.parse::<Ipv6Net>().ok().filter(|network| {
            let whole = network.trunc() == *network;
            let unused = network.addr().octets()[UNUSED] == 0;
            whole && unused && LENGTHS.contains(&network.prefix_len())
        });
        network.map(Self).ok_or_else(|| {
            let lengths = "of 32, 40, 48, 56, 64 or 96 bits";
            let example = r#"such as "64:ff9b::/96""#;
            Expected::new(format!("an IPv6 network {lengths} {example}, not {text:?}"))
        })
    }
}

impl Display for Translation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

as_text!(Translation);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known_by(address: &str, translators: &[&str]) -> String {
        let translators: Vec<Translation> =
            translators.iter().map(|text| text.parse().unwrap()).collect();
        canonical(address.parse().unwrap(), &translators).to_string()
    }

    #[test]
    fn the_examples_of_rfc_6052_are_taken_apart() {
        let table = [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
        ];
        for (prefix, address) in table {
            assert_eq!(known_by(address, &[prefix]), "192.0.2.33", "{prefix}");
            assert_ne!(known_by(address, &[]), "192.0.2.33", "{prefix}");
        }
    }

    #[test]
    fn mapped_and_translated_addresses_need_no_setting() {
        assert_eq!(known_by("::ffff:192.0.2.33", &[]), "192.0.2.33");
        assert_eq!(known_by("::ffff:0:192.0.2.33", &[]), "192.0.2.33");
        for other in ["2001:db8::1", "::1", "::c000:221", "::fffe:0:c000:221"] {
            assert_eq!(known_by(other, &["64:ff9b::/96"]), other);
        }
    }

    #[test]
    fn nobody_becomes_a_local_address() {
        let local = ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "255.255.255.255"];
        for v4 in local {
            for prefix in ["64:ff9b::/96", "2001:db8::/96"] {
                let v6 = format!("{}{v4}", prefix.trim_end_matches("/96"));
                assert!(known_by(&v6, &[prefix]).contains("::"), "{v6}");
            }
            assert!(known_by(&format!("::ffff:0:{v4}"), &[]).contains("::"), "{v4}");
        }
        assert_eq!(known_by("64:ff9b::10.0.0.1", &["64:ff9b::/96"]), "64:ff9b::a00:1");
        assert_eq!(known_by("2001:db8::10.0.0.1", &["2001:db8::/96"]), "10.0.0.1");
    }

    #[test]
    fn a_network_that_stands_for_one_of_ipv4_is_known_by_it() {
        let table = [
            ("::ffff:192.0.2.0/120", "", "192.0.2.0/24"),
            ("::ffff:0:192.0.2.7/128", "", "192.0.2.7/32"),
            ("64:ff9b::192.0.2.33/128", "64:ff9b::/96", "192.0.2.33/32"),
            ("64:ff9b::192.0.2.0/120", "64:ff9b::/96", "192.0.2.0/24"),
            ("64:ff9b::/96", "64:ff9b::/96", "0.0.0.0/0"),
            ("2001:db8:c000:200::/56", "2001:db8::/32", "192.0.2.0/24"),
            ("2001:db8:1c0:2::/64", "2001:db8:100::/40", "192.0.2.0/24"),
            ("2001:db8:1c0:2:21::/80", "2001:db8:100::/40", "192.0.2.33/32"),
        ];
        for (network, prefix, known) in table {
            let translators: Vec<_> = prefix.parse().into_iter().collect();
            let network = network.parse().unwrap();
            let by = super::known_by(network, &translators).map(|by| by.to_string());
            assert_eq!(by.as_deref(), Some(known), "{network}");
        }
        for other in ["64:ff9b::/32", "64:ff9b::10.0.0.0/104", "2001:db8::/64", "::1/128", "::/0"] {
            let by = super::known_by(other.parse().unwrap(), &[Translation::WELL_KNOWN]);
            assert_eq!(by, None, "{other}");
        }
    }

    #[test]
    fn what_is_no_prefix_of_a_translator_is_told() {
        for text in ["64:ff9b::/95", "64:ff9b::1/96", "192.0.2.0/24", "2001:db8:0:0:100::/96", "x"]
        {
            assert!(text.parse::<Translation>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn to_take_apart_twice_changes_nothing(address: Ipv6Addr, within in 0..3_usize) {
            let translators: Vec<Translation> =
                ["64:ff9b::/96", "2001:db8::/32", "2001:db8:0:1::/64"].map(|t| t.parse().unwrap()).into();
            let prefix = translators[within].0;
            let host = u128::from(address) & u128::from(prefix.hostmask());
            let address = Ipv6Addr::from(u128::from(prefix.addr()) | host);
            let once = canonical(address.into(), &translators);
            prop_assert_eq!(canonical(once, &translators), once);
        }
    }
}
