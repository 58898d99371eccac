//! What a service of master.cf is there for, known by what it says: a name or a port says little.

use std::net::IpAddr;

use super::installed::{Installed, Service};
use super::list::words;

/// Where a list can say who may go on.
const RESTRICTIONS: [&str; 5] = [
    "smtpd_client_restrictions",
    "smtpd_helo_restrictions",
    "smtpd_sender_restrictions",
    "smtpd_relay_restrictions",
    "smtpd_recipient_restrictions",
];

/// What hands mail to a content filter.
const FILTERS: [&str; 2] = ["content_filter", "smtpd_proxy_filter"];

impl Service {
    /// What a parameter is for it.
    fn says<'a>(&'a self, main: &'a Installed, name: &str) -> &'a str {
        self.options.get(name).map_or(main.expanded(name), String::as_str)
    }

    /// A port where people log in, and nobody else is served.
    pub(super) fn is_submission(&self, main: &Installed) -> bool {
        let service = self.name.split('/').next().unwrap_or_default();
        let port = service.rsplit(':').next().unwrap_or_default();
        let only_logins = |name: &&str| {
            let list = words_of(self.says(main, name));
            list.contains(&"permit_sasl_authenticated") && list.last() == Some(&"reject")
        };
        let is_closed = RESTRICTIONS.iter().any(only_logins)
            || self.says(main, "smtpd_tls_wrappermode") == "yes";
        matches!(port, "submission" | "submissions" | "smtps" | "587" | "465")
            || self.says(main, "smtpd_sasl_auth_enable") == "yes" && is_closed
    }

    /// Where a content filter on this host gives mail back that was taken before: what we refused
    /// there would wait in Postfix's own queue.
    pub(super) fn takes_back(&self, main: &Installed) -> bool {
        let only_own =
            |name: &&str| words_of(self.says(main, name)) == ["permit_mynetworks", "reject"];
        // It hands mail to no filter, as the others do, or it would come round for ever.
        let ends_the_way = |name: &&str| {
            let elsewhere = main.smtpd().any(|other| !other.says(main, name).is_empty());
            elsewhere && self.says(main, name).is_empty()
        };
        self.is_local(main)
            && (RESTRICTIONS.iter().any(only_own) || FILTERS.iter().any(ends_the_way))
    }

    /// Whether only this host can reach it.
    fn is_local(&self, main: &Installed) -> bool {
        let service = self.name.split('/').next().unwrap_or_default();
        match service.rsplit_once(':') {
            Some((host, _)) => is_loopback(host),
            None => {
                let interfaces = words_of(self.says(main, "inet_interfaces"));
                let local = |word: &&str| *word == "loopback-only" || is_loopback(word);
                !interfaces.is_empty() && interfaces.iter().all(local)
            }
        }
    }
}

/// The hosts of content filters that are not this one, as they are named, each once.
pub(super) fn filters_elsewhere(main: &Installed) -> Vec<String> {
    let named = main.smtpd().flat_map(|service| FILTERS.map(|name| service.says(main, name)));
    let mut hosts: Vec<_> = named.filter_map(host_of).filter(|host| !is_loopback(host)).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// `transport:nexthop` of a content filter, or `[inet:]host:port` of one that stands before the
/// queue.
fn host_of(destination: &str) -> Option<String> {
    let host_and_port = match destination.split_once(':') {
        Some((transport, rest)) if rest.contains([':', ']']) && !transport.contains('[') => rest,
        _ => destination,
    };
    let (host, _) = host_and_port.rsplit_once(':').unwrap_or((host_and_port, ""));
    let host = host.strip_prefix("inet:").unwrap_or(host);
    // In brackets it is a host however short its name is: that of a container beside this one.
    let bracketed = host.starts_with('[') || host.ends_with(']');
    let host = host.strip_prefix('[').unwrap_or(host);
    let host = host.strip_suffix(']').unwrap_or(host);
    let is_host = bracketed || host.contains('.') || host.parse::<IpAddr>().is_ok();
    is_host.then(|| host.to_owned())
}

fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|host| host.to_canonical().is_loopback())
}

fn words_of(list: &str) -> Vec<&str> {
    words(list).into_iter().map(|word| &list[word]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_content_filter_is_read_in_every_spelling() {
        for (destination, host) in [
            ("smtp:[127.0.0.1]:10024", Some("127.0.0.1")),
            ("smtp-amavis:[192.0.2.9]:10024", Some("192.0.2.9")),
            ("lmtp:inet:filter.example.org:10024", Some("filter.example.org")),
            ("inet:192.0.2.9:10025", Some("192.0.2.9")),
            ("smtp:filter.example.org:10024", Some("filter.example.org")),
            ("smtp:[2001:db8::9]:10024", Some("2001:db8::9")),
            ("192.0.2.9:10025", Some("192.0.2.9")),
            ("smtp:[amavis]:10024", Some("amavis")),
            ("spamassassin:dummy", None),
            ("spamassassin", None),
            ("", None),
        ] {
            assert_eq!(host_of(destination).as_deref(), host, "{destination}");
        }
    }
}
