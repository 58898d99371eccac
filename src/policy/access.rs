//! Who is never asked, and who is never served?
//!
//! Networks and names on the allowlist, authenticated clients, and recipients that must always be
//! reachable are exempt. A client on the denylist is put off, at every attempt.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use serde::{Deserialize, Serialize};

use super::decision::{Decision, Exemption, Refusal, Why};
use super::signal::{Context, Ledger, Round, Signal};
use crate::meter::units::Span;
use crate::setting::{Complaint, Expected, Mode, as_text};
use crate::smtp::address::Address;
use crate::smtp::client::Client;
use crate::smtp::event::Event;
use crate::smtp::template::Template;

/// `[access]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Clients that are never refused.
    pub allow: Vec<Entry>,
    /// Clients that are always put off.
    pub deny: Vec<Entry>,
    /// Whether authenticated clients are exempt.
    pub exempt_authenticated: bool,
    /// Recipients that are exempt: a local part for every domain, or a whole address.
    pub exempt_recipients: Vec<String>,
    /// The wait told where none can be computed.
    pub retry: Span,
}

impl Default for Params {
    fn default() -> Self {
        let network = |text: &str| text.parse().map(Entry::Network);
        Self {
            allow: ["127.0.0.0/8", "::1/128"].iter().filter_map(|n| network(n).ok()).collect(),
            deny: Vec::new(),
            exempt_authenticated: true,
            exempt_recipients: vec!["postmaster".into(), "abuse".into()],
            retry: Span::secs(900),
        }
    }
}

/// An entry of a list of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A network or an address.
    Network(IpNet),
    /// `.example.org`: the forward-confirmed name `example.org` and every name below it.
    Suffix(Box<str>),
    /// `file:/path`: a file with an entry a line; `#` begins a comment.
    File(PathBuf),
}

impl FromStr for Entry {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        if let Some(path) = text.strip_prefix("file:") {
            return Ok(Self::File(path.into()));
        }
        if let Some(name) = text.strip_prefix('.').filter(|name| !name.is_empty()) {
            return Ok(Self::Suffix(name.trim_end_matches('.').to_ascii_lowercase().into()));
        }
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(|network| Self::Network(network.trunc())).map_err(|_| {
            let mut expected =
                r#"a network such as "192.0.2.0/24", a name suffix such as "#.to_owned();
            expected += r#"".example.org", or "file:/path"; not "#;
            Expected::new(format!("{expected}{text:?}"))
        })
    }
}

impl Display for Entry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "{network}"),
            Self::Suffix(name) => write!(f, ".{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

as_text!(Entry);

/// The signal: lists of clients, looked up by longest match.
pub struct Access {
    ipv4: PrefixMap<Ipv4Net, Listed>,
    ipv6: PrefixMap<Ipv6Net, Listed>,
    names: HashMap<Box<str>, Listed>,
    exempt_authenticated: bool,
    exempt_recipients: Vec<Box<str>>,
    retry: Span,
    template: Arc<Template>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Allowed,
    Denied,
}

const REPLY: &str =
    "421 4.7.0 {hostname} Mail from your network is not accepted now; retry in {wait} seconds";

impl Access {
    /// Builds the lists; `read` returns the text of a file they name.
    ///
    /// The longer match wins; where an entry stands on both lists, it is allowed.
    pub fn new(
        params: &Params,
        read: impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Self, Vec<Complaint>> {
        let mut access = Self {
            ipv4: PrefixMap::new(),
            ipv6: PrefixMap::new(),
            names: HashMap::new(),
            exempt_authenticated: params.exempt_authenticated,
            exempt_recipients: params
                .exempt_recipients
                .iter()
                .map(|recipient| recipient.to_ascii_lowercase().into())
                .collect(),
            retry: params.retry,
            template: Arc::new(REPLY.parse().expect("a test reads the default reply")),
        };
        let mut complaints = Vec::new();
        // Denied first: what stands on both lists is overwritten.
        for (key, list, listed) in
            [("deny", &params.deny, Listed::Denied), ("allow", &params.allow, Listed::Allowed)]
        {
            for entry in list {
                let result = access.add(entry, listed, &read);
                complaints.extend(result.err().map(|message| Complaint::error(key, message)));
            }
        }
        if complaints.is_empty() { Ok(access) } else { Err(complaints) }
    }

    fn add(
        &mut self,
        entry: &Entry,
        listed: Listed,
        read: &impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<(), String> {
        match entry {
            Entry::Network(IpNet::V4(network)) => {
                self.ipv4.insert(*network, listed);
            }
            Entry::Network(IpNet::V6(network)) => {
                self.ipv6.insert(*network, listed);
            }
            Entry::Suffix(name) => {
                self.names.insert(name.clone(), listed);
            }
            Entry::File(path) => {
                let shown = path.display();
                let text = read(path).map_err(|error| format!("{shown}: {error}"))?;
                for (number, line) in (1..).zip(text.lines()) {
                    let line = line.split('#').next().unwrap_or_default().trim();
                    if line.is_empty() {
                        continue;
                    }
                    match line.parse::<Entry>() {
                        Ok(Entry::File(_)) => {
                            return Err(format!("{shown}:{number}: a list cannot name a file"));
                        }
                        Ok(entry) => self.add(&entry, listed, read)?,
                        Err(expected) => return Err(format!("{shown}:{number}: {expected}")),
                    }
                }
            }
        }
        Ok(())
    }

    fn listed(&self, client: &Client) -> Option<(Listed, Entry)> {
        let by_address = match client.address() {
            IpAddr::V4(v4) => {
                self.ipv4.get_lpm(&v4.into()).map(|(network, listed)| (*listed, network.into()))
            }
            IpAddr::V6(v6) => {
                self.ipv6.get_lpm(&v6.into()).map(|(network, listed)| (*listed, network.into()))
            }
        };
        let by_address = by_address.map(|(listed, network)| (listed, Entry::Network(network)));
        match self.listed_name(client) {
            Some((Listed::Allowed, name)) => Some((Listed::Allowed, name)),
            by_name => by_address.or(by_name),
        }
    }

    fn listed_name(&self, client: &Client) -> Option<(Listed, Entry)> {
        if self.names.is_empty() {
            return None;
        }
        let mut rest = client.name()?;
        loop {
            if let Some((suffix, listed)) = self.names.get_key_value(rest) {
                return Some((*listed, Entry::Suffix(suffix.clone())));
            }
            rest = rest.split_once('.')?.1;
        }
    }

    fn exempts(&self, recipient: &Address) -> bool {
        let is = |text: &str| {
            self.exempt_recipients.iter().any(|known| known.eq_ignore_ascii_case(text))
        };
        is(recipient.local()) || is(recipient.as_str())
    }
}

impl Signal for Access {
    fn name(&self) -> &'static str {
        "access"
    }

    fn assess(&self, cx: &Context<'_>, _: &Ledger, round: &mut Round) {
        if self.exempt_authenticated && cx.client.authenticated() {
            return round.exempt(Exemption::Authenticated);
        }
        match self.listed(cx.client) {
            Some((Listed::Allowed, _)) => return round.exempt(Exemption::Allowlisted),
            Some((Listed::Denied, entry)) if matches!(cx.event, Event::Connect) => {
                let why = Why::Denied { entry };
                let refusal = Refusal::new(Mode::Enforce, &self.template, why);
                round.refuse(refusal.waiting(self.retry.duration()));
            }
            Some((Listed::Denied, _)) | None => {}
        }
        if let Event::Recipient { address, .. } = cx.event
            && self.exempts(address)
        {
            round.exempt(Exemption::Recipient);
        }
    }

    fn settle(&self, _: &Context<'_>, _: &Decision, _: &mut Ledger) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(params: &Params, address: &str, name: &str) -> Option<Listed> {
        let access = Access::new(params, |_| Ok("# ours\n198.51.100.7\n\n".into())).unwrap();
        let client = Client::new(address.parse().unwrap()).named(name);
        access.listed(&client).map(|(listed, _)| listed)
    }

    fn entries(texts: &[&str]) -> Vec<Entry> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_longer_match_wins_and_a_name_that_is_allowed_wins_over_all() {
        let params = Params {
            allow: entries(&["192.0.2.128/25", ".good.example", "203.0.113.9", "file:/list"]),
            deny: entries(&["192.0.2.0/24", "192.0.2.200", ".example", "203.0.113.9/32"]),
            ..Params::default()
        };
        for (address, name, expected) in [
            ("192.0.2.1", "a.test", Some(Listed::Denied)),
            ("192.0.2.129", "a.test", Some(Listed::Allowed)),
            ("192.0.2.200", "a.test", Some(Listed::Denied)),
            ("192.0.2.200", "mx.Good.Example.", Some(Listed::Allowed)),
            ("198.51.100.1", "notgood.example", Some(Listed::Denied)),
            ("203.0.113.9", "a.test", Some(Listed::Allowed)),
            ("198.51.100.7", "a.test", Some(Listed::Allowed)),
            ("198.51.100.8", "a.test", None),
        ] {
            assert_eq!(listed(&params, address, name), expected, "{address} {name}");
        }
    }

    #[test]
    fn a_bad_list_says_which_line_of_which_file() {
        let params = Params { deny: entries(&["file:/etc/list"]), ..Params::default() };
        let Err(complaints) = Access::new(&params, |_| Ok("192.0.2.1\n192.0.2.300\n".into()))
        else {
            panic!("a bad line was taken");
        };
        assert_eq!(complaints[0].key, "deny");
        assert!(complaints[0].message.starts_with("/etc/list:2: expected a network"));
    }

    #[test]
    fn postmaster_is_reached_at_every_domain_in_any_case() {
        let access = Access::new(&Params::default(), |_| Ok(String::new())).unwrap();
        assert!(access.exempts(&Address::new(b"<PostMaster@example.org>")));
        assert!(access.exempts(&Address::new(b"<postmaster>")));
        assert!(!access.exempts(&Address::new(b"<info@example.org>")));
    }
}
