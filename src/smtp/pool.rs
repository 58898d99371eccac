//! The mail system a client belongs to, told from its forward-confirmed name.
//!
//! Large senders send from many addresses, and a retry may come from another one. What their
//! hosts have in common is the organisational domain of their names (by the public suffix list,
//! private section included, so that customers of a hoster are strangers to each other). That
//! says nothing where the name was made from the address by whoever runs the network: such a name
//! is [generic](NameKind::Generic), and its client belongs to its neighbourhood only.
//!
//! The name has to be forward-confirmed, which the MTA has done: whoever owns only the reverse
//! zone could claim any pool otherwise.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::client::{Client, Network, Prefixes, SITE};

/// What a client's forward-confirmed name says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameKind {
    /// Somebody has named this host.
    Known,
    /// It has no forward-confirmed name.
    None,
    /// The name carries the address or its parts, as access networks and clouds name their hosts.
    Generic,
}

impl NameKind {
    /// What the name of this client says.
    ///
    /// Generic is a name that carries
    ///
    /// - most of the address: all four octets, or three in a row (decimal, padded or not, in
    ///   either direction, apart or joined), all of it in hexadecimal or as one number; for IPv6
    ///   half of its digits, or four groups in a row. Not so if it calls itself a mail host and
    ///   nothing in it speaks of an access network: some of the largest mail systems number
    ///   their hosts by address (`mail-oln192000002007.outbound.protection.outlook.com`,
    ///   `192-0-2-7.mail-mail.facebook.com`).
    /// - two octets in a row, if it also speaks of an access network and not of mail. Two octets
    ///   alone prove nothing: mail systems like to number their hosts so (Amazon SES:
    ///   `a2-7.smtp-out.amazonses.com` is 192.0.2.7).
    pub fn of(client: &Client) -> Self {
        let Some(name) = client.name().filter(|name| !name.is_empty()) else {
            return Self::None;
        };
        let generic = match carried(name, client.address()) {
            Carried::Most => !is_mail_host(name) || is_access_host(name),
            Carried::Pair => !is_mail_host(name) && is_access_host(name),
            Carried::Nothing => false,
        };
        if generic { Self::Generic } else { Self::Known }
    }
}

/// The mail system a client belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pool {
    /// All hosts with names under this organisational domain.
    Domain(Box<str>),
    /// All hosts in this network: what is left where the name says nothing.
    Network(Network),
}

/// The neighbourhood of a client without a name of its own: the smallest networks that the
/// Internet routes by themselves, so each has one operator at least.
const NEIGHBOURHOOD: Prefixes = Prefixes { ipv4: 24, ipv6: SITE };

/// The neighbourhood of an address.
pub fn neighbourhood(address: IpAddr) -> Network {
    Network::of(address, NEIGHBOURHOOD)
}

impl Pool {
    /// The pool of this client: its organisational domain, or its neighbourhood if the name is
    /// generic, missing, or a public suffix itself.
    pub fn of(client: &Client) -> Self {
        Self::of_kind(client, NameKind::of(client))
    }

    /// The same where it is known what the client's name says.
    pub fn of_kind(client: &Client, kind: NameKind) -> Self {
        let domain = match kind {
            NameKind::Known => client.name().and_then(psl::domain_str),
            NameKind::None | NameKind::Generic => None,
        };
        match domain {
            Some(domain) => Self::Domain(domain.into()),
            None => Self::Network(neighbourhood(client.address())),
        }
    }

    /// Bytes that differ for any two pools.
    pub fn octets(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Domain(domain) => Cow::Borrowed(domain.as_bytes()),
            // No text in UTF-8 has a byte 0xff, so no domain can look like a network.
            Self::Network(network) => Cow::Owned([&[0xff][..], &network.octets()].concat()),
        }
    }
}

impl Display for Pool {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => f.write_str(domain),
            Self::Network(network) => Display::fmt(network, f),
        }
    }
}

/// How much of its address a name carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Most,
    /// Two octets in a row.
    Pair,
    Nothing,
}

fn carried(name: &str, address: IpAddr) -> Carried {
    match address {
        IpAddr::V4(v4) if carries_whole(name, v4) => Carried::Most,
        IpAddr::V4(v4) => carried_octets(name, v4),
        IpAddr::V6(v6) if carries_digits(name, v6) || carries_groups(name, v6) => Carried::Most,
        IpAddr::V6(_) => Carried::Nothing,
    }
}

/// Fewer digits than these are more likely somebody's number than a joined address.
const SHORTEST_JOINED: usize = 6;

/// Whether the name has the address other than as decimal numbers of their own: `c0000207`,
/// `c0-00-02-07`, `192027`, `3221225991`.
fn carries_whole(name: &str, address: Ipv4Addr) -> bool {
    let both = [address, Ipv4Addr::from(u32::from(address).swap_bytes())];
    // Most names have fewer digits than the address has, which is quickly seen.
    let nibbles = (0..8).map(|place| u32::from(address) >> (4 * place) & 0xf);
    let needed = nibbles.filter(|nibble| *nibble < 10).count();
    if name.bytes().filter(u8::is_ascii_digit).count() >= needed {
        let joined: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let has = |address| joined.contains(&format!("{:08x}", u32::from(address)));
        if both.into_iter().any(has) {
            return true;
        }
    }
    let mut long = digits(name).filter(|run| run.len() >= SHORTEST_JOINED);
    long.any(|run| {
        both.into_iter().any(|address| {
            let [a, b, c, d] = address.octets();
            run == format!("{a}{b}{c}{d}") || run == u32::from(address).to_string()
        })
    })
}

/// How many octets the name has as decimal numbers.
fn carried_octets(name: &str, address: Ipv4Addr) -> Carried {
    let mut numbers = Vec::with_capacity(8);
    digits(name).for_each(|run| octets_in(run, &mut numbers));
    let forward = address.octets().map(Some);
    let mut backward = forward;
    backward.reverse();
    let in_a_row = |many: usize| {
        let mut windows = numbers.windows(many);
        windows.any(|window| {
            [forward, backward].iter().any(|octets| octets.windows(many).any(|o| o == window))
        })
    };
    if in_a_row(3) || has_each(&numbers, &forward) {
        Carried::Most
    } else if in_a_row(2) {
        Carried::Pair
    } else {
        Carried::Nothing
    }
}

fn digits(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty())
}

/// Adds the octets in a run of digits: several if they are padded and joined, as in
/// `192000002007`; none in its place if it is no octet.
fn octets_in(run: &str, numbers: &mut Vec<Option<u8>>) {
    let before = numbers.len();
    if run.len() > 3 && run.len().is_multiple_of(3) {
        let octets = (0..run.len()).step_by(3).map(|at| run[at..at + 3].parse().ok());
        numbers.extend(octets);
        if numbers[before..].iter().all(Option::is_some) {
            return;
        }
        numbers.truncate(before);
    }
    numbers.push(run.parse().ok());
}

/// Whether each of the octets is there, in whatever order, as often as it is needed.
fn has_each(numbers: &[Option<u8>], octets: &[Option<u8>; 4]) -> bool {
    let times = |list: &[Option<u8>], octet| list.iter().filter(|o| **o == octet).count();
    octets.iter().all(|octet| times(numbers, *octet) >= times(octets, *octet))
}

/// Whether the name has the first or the last half of the address as hexadecimal digits, in
/// either direction, joined or apart.
fn carries_digits(name: &str, address: Ipv6Addr) -> bool {
    let joined: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let forward = format!("{:032x}", u128::from(address));
    let backward: String = forward.chars().rev().collect();
    [&forward, &backward].into_iter().any(|digits| {
        let (first, last) = digits.split_at(16);
        joined.contains(first) || joined.contains(last)
    })
}

/// Whether the name has four groups of the address in a row, or all if there are only three.
///
/// Groups of zeros do not count, here nor there: `2001-db8--7` leaves them out.
fn carries_groups(name: &str, address: Ipv6Addr) -> bool {
    let groups: Vec<_> = address.segments().into_iter().filter(|group| *group != 0).collect();
    let numbers: Vec<_> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|group| !group.is_empty())
        .map(|group| u16::from_str_radix(group, 16).ok())
        .filter(|number| *number != Some(0))
        .collect();
    let many = groups.len().clamp(3, 4);
    let mut rows = groups.windows(many);
    rows.any(|row| {
        let forward: Vec<_> = row.iter().copied().map(Some).collect();
        let backward: Vec<_> = forward.iter().copied().rev().collect();
        numbers.windows(many).any(|window| window == forward || window == backward)
    })
}

/// The words in the labels before the organisational domain: what its owner calls itself is not
/// what it calls this host. All words, if there are no such labels.
fn words(name: &str) -> impl Iterator<Item = &str> {
    let domain = psl::domain_str(name).unwrap_or_default();
    let labels = name.strip_suffix(domain).filter(|labels| !labels.is_empty()).unwrap_or(name);
    labels.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty())
}

fn is_access_host(name: &str) -> bool {
    words(name).any(|word| ACCESS.binary_search(&word).is_ok())
}

fn is_mail_host(name: &str) -> bool {
    words(name).any(|word| {
        word.contains("mail") || word.contains("smtp") || MAIL.binary_search(&word).is_ok()
    })
}

/// Words by which access networks and hosters call the hosts of their customers. Sorted.
const ACCESS: [&str; 62] = [
    "abo",
    "adsl",
    "broadband",
    "cable",
    "catv",
    "cgn",
    "cgnat",
    "client",
    "clients",
    "cm",
    "cpe",
    "cust",
    "customer",
    "customers",
    "dhcp",
    "dial",
    "dialin",
    "dialup",
    "dip",
    "dsl",
    "dslb",
    "dyn",
    "dynamic",
    "dynamicip",
    "dynip",
    "fiber",
    "fibra",
    "fibre",
    "fios",
    "fttb",
    "fttc",
    "ftth",
    "gpon",
    "gprs",
    "host",
    "hosts",
    "hsd",
    "hsi",
    "lte",
    "mobile",
    "modem",
    "nat",
    "node",
    "pool",
    "pools",
    "ppp",
    "pppoe",
    "res",
    "residential",
    "resnet",
    "static",
    "staticip",
    "subs",
    "unassigned",
    "unknown",
    "user",
    "users",
    "vdsl",
    "vps",
    "wifi",
    "wireless",
    "xdsl",
];

/// Words by which mail hosts are called, besides those with `mail` or `smtp` in them. Sorted.
const MAIL: [&str; 8] = ["listserv", "mout", "mta", "mtaout", "mx", "mxout", "outbound", "relay"];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: &str = "192.0.2.7";
    const V6: &str = "2001:db8:a1b:2c::107";

    fn client(name: &str, address: &str) -> Client {
        Client::new(address.parse().unwrap()).named(name)
    }

    #[track_caller]
    fn all(kind: NameKind, address: &str, names: &[&str]) {
        let other: Vec<_> =
            names.iter().filter(|name| NameKind::of(&client(name, address)) != kind).collect();
        assert!(other.is_empty(), "expected {kind:?} for {address}: {other:#?}");
    }

    #[test]
    fn names_that_carry_all_of_the_address_are_generic() {
        let names = [
            // Dotted, dashed, reversed.
            "192.0.2.7.bc.googleusercontent.com",
            "7.2.0.192.bc.googleusercontent.com",
            "ec2-192-0-2-7.compute-1.amazonaws.com",
            "ec2-192-0-2-7.eu-west-1.compute.amazonaws.com",
            "ip-192-0-2-7.us-west-2.compute.internal",
            "static.7.2.0.192.clients.your-server.example",
            "192-0-2-7.ip.linodeusercontent.com",
            "192.0.2.7.vultrusercontent.example",
            "cpe-192-0-2-7.nyc.res.example.com",
            "pool-192-0-2-7.bstnma.fios.example.net",
            "c-192-0-2-7.hsd1.il.example.net",
            "host192-0-2-7.range192-0.example.com",
            "lns-bzn-51f-192-0-2-7.adsl.example.net",
            "lfbn-idf1-1-192-0-2-7.example.fr",
            "192_0_2_7.example.net",
            "x192y0z2w7.example.net",
            "abts-north-dynamic-007.2.0.192.airtelbroadband.example",
            "broadband-192-0-2-7.ip.moscow.example",
            "dsl-192-0-2-7.prod.example.com.mx",
            "mx-ll-192.0.2-7.dynamic.example.co.th",
            "smtp-192-0-2-7.customer.example.net",
            // In several places.
            "ip7.ip-192-0-2.example",
            "7.red-192-0-2.staticip.example.net",
            "host7-2-dynamic.0-192-r.retail.example.it",
            "host2-7.net192-0.example.it",
            // Padded.
            "dslb-192-000-002-007.192.000.pools.example.de",
            "dhcp192-000-002-007.example.com",
            "softbank192000002007.example.net",
            "kd192000002007.ppp-bb.example.ne.jp",
            "fl1-192000-002007.example.jp",
            // Joined, in hexadecimal, as a number.
            "ip192027.example.net",
            "pc720192.example.net",
            "pc0000207.dip0.example.de",
            "ipc0000207.dynamic.example.de",
            "xc0000207.dyn.example.de",
            "c-c0000207-74736162.cust.example.se",
            "070200c0.virtua.example.br",
            "c0-00-02-07.example.net",
            "07.02.00.c0.example.net",
            "ip3221225991.example.net",
        ];
        all(NameKind::Generic, V4, &names);
    }

    #[test]
    fn names_that_carry_three_octets_in_a_row_are_generic() {
        let names = [
            "ip-192-0-2.example.net",
            "2.0.192.example.net",
            "client-0-2-7.example.net",
            "7-2-0.example.net",
            "000-002-007.example.net",
            "host-000002007.example.net",
        ];
        all(NameKind::Generic, V4, &names);
    }

    #[test]
    fn names_that_carry_two_octets_and_speak_of_an_access_network_are_generic() {
        let names = [
            "dyn-2-7.example.net",
            "2-7.dynamic.example.net",
            "dhcp-7-2.example.edu",
            "host7.net2.dyn.example.net",
            "ppp7.2.pppoe.example.net",
            "dialup-002-007.example.net",
            "bor-1-123-7.w192-0.abo.example.fr",
            "cable-0-2.example.net",
            "client-2-7.example.net",
            "2-7.cust.example.net",
            "2-7.nat.example.net",
            "host-2-7.example.net",
            "vps-2-7.example.net",
            "dynamic2-7.example.net",
        ];
        all(NameKind::Generic, V4, &names);
    }

    #[test]
    fn names_of_mail_hosts_are_not_generic_even_if_their_numbers_are_the_address() {
        let names = [
            "example.org",
            "mail.example.org",
            "mx1.example.org",
            "mx7.example.org",
            "mail-7.example.org",
            "mx2-7.example.org",
            "smtp-out-2-7.example.com",
            "mail-oi1-f7.google.com",
            "mta3.e.example.com",
            "mta-2-7.pool.example.com",
            "o1.mail.example.com",
            "o7.ptr2.example.com",
            "a2-7.smtp-out.amazonses.com",
            "b2-7.smtp-out.eu-central-1.amazonses.com",
            "2-7.mta.dotmailer.com",
            "m2-7.mailgun.net",
            "mail2-7.atl131.mandrillapp.com",
            "mail2-7.dynamics.example.com",
            "out-7.smtp.github.com",
            "m192-7.mailjet.com",
            "sonic2-7.consmr.mail.gq1.yahoo.com",
            "mout-2-7.kundenserver.example",
            "outbound-ip7.ess.barracuda.com",
            "mx0a-c0002070.pphosted.com",
            "hosted-2-7.example.com",
            "s1-2-7.example.com",
            // They call themselves mail hosts, and nothing speaks against it.
            "mail-oln192000002007.outbound.protection.outlook.com",
            "192-0-2-7.mail-mail.facebook.com",
            "mta-192-0-2-7.example.com",
            // Words of an organisational domain are not words of the host.
            "s2-7.dialup.com",
            "2-7.hosts.org",
            // Other numbers.
            "cust-1-4.example.net",
            "dyn-192-7.example.net",
            "ip-198-51-100-9.example.net",
            "mail.163.com",
            "m12-16.163.com",
            "mail.4u2.example",
            "vmi192002.example.net",
        ];
        all(NameKind::Known, V4, &names);
    }

    #[test]
    fn small_numbers_are_no_address() {
        let names = ["mx1.example.org", "mx1234.example.org", "s3.r4.example.org", "dyn-1-3.a.b.c"];
        all(NameKind::Known, "1.2.3.4", &names);
        all(NameKind::Generic, "1.2.3.4", &["mx.example.dyn.1-2-3-4.example.org"]);
    }

    #[test]
    fn names_that_carry_an_ipv6_address_are_generic() {
        let generic = [
            "2001-db8-a1b-2c--107.example.net",
            "2001-db8-a1b-2c-0-0-0-107.example.net",
            "2001-0db8-0a1b-002c-0000-0000-0000-0107.dyn.example.net",
            "c-2001-db8-a1b-2c--107.hsd1.il.example.net",
            "dynamic-2001-0db8-0a1b-002c.pool.example.net",
            "107.2c.a1b.db8.2001.example.net",
            "p20010db80a1b002c0000000000000107.dip0.example.de",
            "20010db80a1b002c.example.net",
            "host0000000000000107.example.net",
            "7.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.c.2.0.0.b.1.a.0.8.b.d.0.1.0.0.2.ip6.example.net",
            "c200.b1a0.8bd0.1002.example.net",
        ];
        all(NameKind::Generic, V6, &generic);
        let known = [
            "mail.example.org",
            "mx107.example.org",
            "mail-ed1-x107.google.com",
            "mx-a1b-2c-107.example.org",
            "mta-2001.example.org",
            "mail-20010db80a1b002c0000000000000107.smtp.example.org",
            "out-2c-107.example.org",
        ];
        all(NameKind::Known, V6, &known);
        all(NameKind::Generic, "2001:db8::7", &["2001-db8--7.example.net"]);
        all(NameKind::Known, "2001:db8::7", &["mx7.example.net", "db8-7.example.net"]);
    }

    #[test]
    fn without_a_name_there_is_no_name() {
        let nameless = Client::new(V4.parse().unwrap());
        assert_eq!(NameKind::of(&nameless), NameKind::None);
        all(NameKind::None, V4, &["", "."]);
    }

    #[test]
    fn a_pool_is_the_organisational_domain_or_the_neighbourhood() {
        let pools = [
            ("mail-oi1-f52.google.com", V4, "google.com"),
            ("MX1.Example.ORG.", V4, "example.org"),
            ("mx.a.example.co.uk", V6, "example.co.uk"),
            ("example.org", V4, "example.org"),
            // The private section: customers of a hoster are strangers to each other.
            ("mail.alice.github.io", V4, "alice.github.io"),
            ("mx.xn--85x722f.xn--55qx5d.cn", V4, "xn--85x722f.xn--55qx5d.cn"),
            ("mx.食狮.公司.cn", V4, "食狮.公司.cn"),
            // A public suffix, or nothing a domain could be told from.
            ("github.io", V4, "192.0.2.0/24"),
            ("co.uk", V6, "2001:db8:a1b::/48"),
            ("localhost", V4, "192.0.2.0/24"),
            ("ec2-198-51-100-9.us-west-2.compute.amazonaws.com", "198.51.100.9", "198.51.100.0/24"),
            ("2001-db8-a1b-2c--107.example.net", V6, "2001:db8:a1b::/48"),
            ("", V4, "192.0.2.0/24"),
        ];
        for (name, address, pool) in pools {
            assert_eq!(Pool::of(&client(name, address)).to_string(), pool, "{name} {address}");
        }
        assert_eq!(Pool::of(&Client::new(V4.parse().unwrap())).to_string(), "192.0.2.0/24");
    }

    #[test]
    fn the_lists_of_words_can_be_searched() {
        assert!(ACCESS.is_sorted() && MAIL.is_sorted());
    }

    #[test]
    fn a_kind_is_written_as_in_settings() {
        #[derive(Serialize, Deserialize)]
        struct When {
            name: Vec<NameKind>,
        }
        let text = "name = [\"known\", \"none\", \"generic\"]\n";
        let when: When = toml::from_str(text).unwrap();
        assert_eq!(when.name, [NameKind::Known, NameKind::None, NameKind::Generic]);
        assert_eq!(toml::to_string(&when).unwrap(), text);
    }

    fn pools() -> impl Strategy<Value = Pool> {
        let domain = prop_oneof![".*", "[\u{4}\u{6}].{0,17}", "[a-z.-]{0,20}"];
        let network = (any::<IpAddr>(), 0..=32_u8, 0..=128_u8)
            .prop_map(|(address, ipv4, ipv6)| Network::of(address, Prefixes { ipv4, ipv6 }));
        prop_oneof![
            domain.prop_map(|domain| Pool::Domain(domain.into())),
            network.prop_map(Pool::Network),
        ]
    }

    proptest! {
        #[test]
        fn pools_have_octets_of_their_own(one in pools(), other in pools()) {
            prop_assert_eq!(one == other, one.octets() == other.octets());
        }

        #[test]
        fn no_name_makes_it_panic(
            name in prop_oneof![".*", "[0-9a-f.-]{0,80}", "[.-]*"], address: IpAddr
        ) {
            let client = Client::new(address).named(&name);
            let _ = (NameKind::of(&client), Pool::of(&client));
        }

        #[test]
        fn the_usual_ways_to_name_a_host_by_its_address_are_seen_for_any(address: Ipv4Addr) {
            let [a, b, c, d] = address.octets();
            for name in [
                format!("{a}-{b}-{c}-{d}.example.net"),
                format!("{d}.{c}.{b}.{a}.example.net"),
                format!("{a:03}{b:03}{c:03}{d:03}.example.net"),
                format!("p{a:02x}{b:02x}{c:02x}{d:02x}.example.net"),
                format!("{c}-{d}.dyn.example.net"),
            ] {
                let kind = NameKind::of(&Client::new(address.into()).named(&name));
                prop_assert_eq!(kind, NameKind::Generic, "{}", name);
            }
            for name in ["mx1.example.org", "mail.example.org"] {
                let kind = NameKind::of(&Client::new(address.into()).named(name));
                prop_assert_eq!(kind, NameKind::Known, "{}", name);
            }
        }
    }
}
