//! The SMTP client: who connects to the MTA, and what it counts under.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use ipnet::IpNet;

use super::address::ClientText;
use super::translation::{self, Translation};

/// A client and what it has told about itself in this session.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address, the one of IPv4 where it stands in one of IPv6.
    address: IpAddr,
    /// The port it comes from, where that is known.
    pub port: Option<u16>,
    /// What is known of its name.
    name: Name,
    /// The argument of its last HELO or EHLO.
    pub helo: Option<ClientText>,
    /// The name it has authenticated as.
    pub user: Option<ClientText>,
    /// Whether the session is encrypted. Known from MAIL on.
    pub tls: bool,
}

/// What is known of a client's name.
#[derive(Clone, Debug)]
enum Name {
    /// It is forward-confirmed; in lower case.
    Confirmed(Box<str>),
    /// It cannot be looked up now; this is what it was when it last could.
    Last(Box<str>),
    /// It has none that is.
    None,
    /// It could not be looked up.
    Unsure,
    /// It has none that is, or could not be looked up: the front is not told which. Perhaps this is
    /// the name that its address leads to, unconfirmed.
    Untold(Option<Box<str>>),
}

impl Client {
    /// A client by its address.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address: translation::canonical(address, &[]),
            port: None,
            name: Name::None,
            helo: None,
            user: None,
            tls: false,
        }
    }

    /// The same with a forward-confirmed name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Name::Confirmed(canonical_name(name).into());
        self
    }

    /// The same, its name not known for now: the look-up failed, which says nothing about it.
    #[must_use]
    pub fn of_unsure_name(self) -> Self {
        Self { name: Name::Unsure, ..self }
    }

    /// The same, of which only is told that it has no confirmed name now, and perhaps the name that
    /// its address leads to.
    #[must_use]
    pub fn of_untold_name(self, claimed: Option<&str>) -> Self {
        let claimed = claimed.map(|name| canonical_name(name).into());
        Self { name: Name::Untold(claimed), ..self }
    }

    /// The same under the name that it last had.
    #[must_use]
    pub fn last_named(self, name: Box<str>) -> Self {
        Self { name: Name::Last(name), ..self }
    }

    /// The same where these translators stand between IPv4 and us.
    #[must_use]
    pub fn translated_by(self, translators: &[Translation]) -> Self {
        Self { address: translation::canonical(self.address, translators), ..self }
    }

    /// Its address, never an IPv4-mapped one.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its forward-confirmed name; while that is unsure the last one, if it is known.
    pub fn name(&self) -> Option<&str> {
        match &self.name {
            Name::Confirmed(name) | Name::Last(name) => Some(name),
            Name::None | Name::Unsure | Name::Untold(_) => None,
        }
    }

    /// Its name, if it is confirmed now.
    pub fn confirmed_name(&self) -> Option<&str> {
        match &self.name {
            Name::Confirmed(name) => Some(name),
            Name::Last(_) | Name::None | Name::Unsure | Name::Untold(_) => None,
        }
    }

    /// The name that its address leads to, where no more is told.
    pub fn claimed_name(&self) -> Option<&str> {
        match &self.name {
            Name::Untold(claimed) => claimed.as_deref(),
            Name::Confirmed(_) | Name::Last(_) | Name::None | Name::Unsure => None,
        }
    }

    /// Whether the name that it last had may count.
    pub fn name_is_wanting(&self) -> bool {
        matches!(self.name, Name::Unsure | Name::Untold(_))
    }

    /// Whether it may have a name that could not be looked up.
    pub fn name_is_unsure(&self) -> bool {
        matches!(self.name, Name::Unsure)
    }

    /// Whether it has authenticated (RFC 4954).
    pub fn authenticated(&self) -> bool {
        self.user.is_some()
    }
}

/// A name of a client, bounded.
fn canonical_name(name: &str) -> String {
    let name = ClientText::new(name.trim_end_matches('.').as_bytes());
    name.as_str().to_ascii_lowercase()
}

/// How many leading bits of an address make the network under which a client counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// For IPv4, at most 32.
    pub ipv4: u8,
    /// For IPv6, at most 128. A site gets a /64 at least, so single addresses say nothing.
    pub ipv6: u8,
}

/// The prefix a client counts under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

/// The prefix of an IPv6 site.
pub const SITE: u8 = 48;

impl Network {
    /// The network of an address.
    pub fn of(address: IpAddr, prefixes: Prefixes) -> Self {
        let bits = match address {
            IpAddr::V4(_) => prefixes.ipv4.min(32),
            IpAddr::V6(_) => prefixes.ipv6.min(128),
        };
        Self(IpNet::new_assert(address, bits).trunc())
    }

    /// The IPv6 site it lies in, if it is narrower than that.
    ///
    /// A site is a /48, the most that one customer is usually given (RFC 6177) and the least that
    /// is routed by itself: whoever has one can come from 65,536 networks of /64.
    pub fn site(&self) -> Option<Self> {
        match self.0 {
            IpNet::V6(network) if network.prefix_len() > SITE => {
                Some(Self(IpNet::new_assert(self.0.addr(), SITE).trunc()))
            }
            IpNet::V4(_) | IpNet::V6(_) => None,
        }
    }

    /// Bytes that differ for any two networks.
    pub fn octets(&self) -> [u8; 18] {
        let mut octets = [0; 18];
        octets[1] = self.0.prefix_len();
        match self.0.addr() {
            IpAddr::V4(v4) => {
                octets[0] = 4;
                octets[2..6].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                octets[0] = 6;
                octets[2..].copy_from_slice(&v6.octets());
            }
        }
        octets
    }
}

impl Display for Network {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_counts_under_its_network_whatever_its_address_was_written_as() {
        let prefixes = Prefixes { ipv4: 24, ipv6: 64 };
        let network = |text: &str| {
            Network::of(Client::new(text.parse().unwrap()).address(), prefixes).to_string()
        };
        assert_eq!(network("192.0.2.7"), "192.0.2.0/24");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.0/24");
        assert_eq!(network("2001:db8:0:1:2::3"), "2001:db8:0:1::/64");
    }

    #[test]
    fn only_a_narrower_network_of_ipv6_lies_in_a_site() {
        let site = |text: &str| Network(text.parse().unwrap()).site().map(|site| site.to_string());
        assert_eq!(site("2001:db8:1:2::/64").as_deref(), Some("2001:db8:1::/48"));
        assert_eq!(site("2001:db8:1:2::3/128").as_deref(), Some("2001:db8:1::/48"));
        for wide in ["2001:db8:1::/48", "2001:db8::/32", "192.0.2.7/32"] {
            assert_eq!(site(wide), None, "{wide}");
        }
    }

    #[test]
    fn networks_of_both_families_have_octets_of_their_own() {
        let octets = |text: &str| Network(text.parse().unwrap()).octets();
        let all = ["0.0.0.0/0", "0.0.0.0/32", "::/0", "::/128", "192.0.2.1/32", "::c000:201/128"];
        let distinct: std::collections::HashSet<_> = all.iter().map(|t| octets(t)).collect();
        assert_eq!(distinct.len(), all.len());
    }
}
