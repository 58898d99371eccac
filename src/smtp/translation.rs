//! IPv4 addresses that stand in IPv6 addresses, so that a client is known by one address, whatever
//! it has come through: mapped by the host's own sockets (RFC 4291 section 2.5.5.2), translated by a
//! SIIT (`::ffff:0:0:0/96`, RFC 7915 section 5.1), or by a NAT64 of somebody's own (RFC 6052).

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::Ipv6Net;

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
        let octets = address.octets();
        let begin = usize::from(self.0.prefix_len()) / 8;
        if !self.0.contains(&address) || (begin <= UNUSED && octets[UNUSED] != 0) {
            return None;
        }
        let mut behind = (begin..).filter(|at| *at != UNUSED);
        let [a, b, c, d] = std::array::from_fn(|_| behind.next().map_or(0, |at| octets[at]));
        let address = Ipv4Addr::new(a, b, c, d);
        let local = address.is_loopback()
            || address.is_unspecified()
            || address.is_link_local()
            || address.is_multicast()
            || address.is_broadcast()
            || (self == Self::WELL_KNOWN && address.is_private());
        (!local).then_some(address)
    }
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
