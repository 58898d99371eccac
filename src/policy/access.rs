//! Who is never asked, and who is never served?
//!
//! Networks and names on the allowlist, authenticated clients, and recipients that must always be
//! reachable are exempt. A client on the denylist is put off, at every attempt.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use serde::{Deserialize, Serialize};

use super::decision::{Decision, Exemption, Refusal, Requirement, Why};
use super::signal::{Context, Ledger, Round, Signal};
use super::standing::Standing;
use crate::meter::units::Span;
use crate::setting::{Complaint, Expected, Mode, Step, as_text};
use crate::smtp::address::{Address, Destination, folded};
use crate::smtp::client::Client;
use crate::smtp::domain::Domain;
use crate::smtp::event::Event;
use crate::smtp::template::Template;
use crate::smtp::translation::{self, Translation};

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
    /// What recipient domains ask of their clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<Require>,
}

/// `[[access.require]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Require {
    /// The domain that asks.
    pub recipient_domain: Domain,
    /// Whether the session must be encrypted.
    #[serde(default)]
    pub tls: bool,
    /// Who may send to it; nobody named: everybody.
    #[serde(default)]
    pub clients: Vec<Entry>,
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
            require: Vec::new(),
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
        if let Some(name) = text.strip_prefix('.').and_then(|name| name.parse::<Domain>().ok()) {
            return Ok(Self::Suffix(name.as_str().into()));
        }
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match network.map(|network| network.trunc()) {
            Ok(network) if let Some(why) = is_known_by_another(&network, &[]) => Err(why),
            Ok(network) => Ok(Self::Network(network)),
            Err(_) => {
                let mut expected =
                    r#"a network such as "192.0.2.0/24", a name suffix such as "#.to_owned();
                expected += r#"".example.org", or "file:/path"; not "#;
                Err(Expected::new(format!("{expected}{text:?}")))
            }
        }
    }
}

/// Why no client is known by an address in this network, with these translators: each is known by
/// its IPv4 address.
pub fn is_known_by_another(network: &IpNet, translators: &[Translation]) -> Option<Expected> {
    let IpNet::V6(network) = network else { return None };
    let ipv4 = translation::known_by(*network, translators)?;
    let none = format!("no client is known by an address in {network}");
    Some(Expected::new(format!("an IPv4 network written as IPv4, {ipv4}: {none}")))
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

/// The signal.
pub struct Access {
    clients: Lists,
    exempt_authenticated: bool,
    exempt_recipients: Vec<Address>,
    retry: Span,
    denied: Arc<Template>,
    /// By recipient domain, in the form in which names are compared.
    required: BTreeMap<Box<str>, Required>,
    /// Whether anybody is denied.
    denies: bool,
    /// Whether anybody is allowed.
    allows: bool,
    tls_required: Arc<Template>,
    not_listed: Arc<Template>,
}

/// What one recipient domain asks.
struct Required {
    tls: bool,
    clients: Option<Lists>,
}

/// Lists of clients, looked up by longest match.
#[derive(Default)]
pub struct Lists {
    ipv4: PrefixMap<Ipv4Net, Listed>,
    ipv6: PrefixMap<Ipv6Net, Listed>,
    names: HashMap<Box<str>, Listed>,
    /// Who is known by an IPv4 address is none of these.
    translators: Box<[Translation]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Allowed,
    Denied,
}

const DENIED: &str =
    "421 4.7.0 {hostname} Mail from your network is not accepted now; retry in {wait} seconds";
const TLS_REQUIRED: &str =
    "421 4.7.0 {hostname} TLS required for {recipient_domain}; retry in {wait} seconds";
const NOT_LISTED: &str = "421 4.7.0 {hostname} Your network is not in the allowlist for \
                          {recipient_domain}; retry in {wait} seconds";

impl Access {
    /// Builds the lists; `read` returns the text of a file they name.
    ///
    /// The longer match wins; where an entry stands on both lists, it is allowed.
    pub fn new(
        params: &Params,
        translators: &[Translation],
        read: impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Self, Vec<Complaint>> {
        let address = |text: &String| Address::new(text.as_bytes());
        let template = |text: &str| Arc::new(text.parse().expect("a test reads every reply here"));
        let mut access = Self {
            clients: Lists::behind(translators),
            exempt_authenticated: params.exempt_authenticated,
            exempt_recipients: params.exempt_recipients.iter().map(address).collect(),
            retry: params.retry,
            denied: template(DENIED),
            required: BTreeMap::new(),
            denies: !params.deny.is_empty(),
            allows: !params.allow.is_empty(),
            tls_required: template(TLS_REQUIRED),
            not_listed: template(NOT_LISTED),
        };
        let mut complaints = Vec::new();
        // Denied first: what stands on both lists is overwritten.
        for (key, list, listed) in
            [("deny", &params.deny, Listed::Denied), ("allow", &params.allow, Listed::Allowed)]
        {
            complaints.extend(access.clients.add_all(key, list, listed, &read));
        }
        complaints.extend(params.exempt_recipients.iter().enumerate().filter_map(can_be_nobody));
        for (number, require) in params.require.iter().enumerate() {
            let mut lists = Lists::behind(translators);
            let wrong = lists.add_all("require", &require.clients, Listed::Allowed, &read);
            let place = [Step::Entry(number), Step::Key("clients")];
            complaints.extend(wrong.into_iter().map(|complaint| complaint.at(place)));
            let domain: Box<str> = require.recipient_domain.as_str().into();
            if !require.tls && require.clients.is_empty() {
                let message = format!("expected `tls = true` or `clients` for {domain}");
                complaints.push(Complaint::error("require", message).at([Step::Entry(number)]));
            }
            let clients = (!require.clients.is_empty()).then_some(lists);
            let required = Required { tls: require.tls, clients };
            if access.required.insert(domain, required).is_some() {
                let message = format!("expected {} only once", require.recipient_domain);
                let place = [Step::Entry(number), Step::Key("recipient_domain")];
                complaints.push(Complaint::error("require", message).at(place));
            }
        }
        if complaints.is_empty() { Ok(access) } else { Err(complaints) }
    }

    /// A warning where the host itself could be refused because it was forgotten: an empty list
    /// says that nobody is meant.
    pub fn misses_loopback(&self) -> Option<Complaint> {
        if !self.allows {
            return None;
        }
        let host = [Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let listed = |address| {
            matches!(self.clients.find(&Client::new(address)), Some((Listed::Allowed, _)))
        };
        let missing: Vec<_> = host.into_iter().filter(|address| !listed(*address)).collect();
        let shown: Vec<_> = missing.iter().map(IpAddr::to_string).collect();
        (!missing.is_empty()).then(|| {
            let what = "mail that a content filter on this host returns could be refused";
            Complaint::warning("allow", format!("{} is not in it: {what}", shown.join(" or ")))
        })
    }

    /// Whether a recipient is exempt; never one that may be another than it seems.
    fn exempts(&self, recipient: &Address) -> bool {
        let same = |one: &str, other: &str| folded(one) == folded(other);
        recipient.destination() != Destination::Unknown
            && self.exempt_recipients.iter().any(|exempt| {
                let anywhere = exempt.domain().is_empty();
                same(exempt.local(), recipient.local())
                    && (anywhere || exempt.domain() == recipient.domain())
            })
    }

    /// The entries that allow and deny a client, and whether authenticating would exempt it.
    pub(super) fn explain(&self, client: &Client) -> (Option<Entry>, Option<Entry>, bool) {
        let (allowed, denied) = match self.clients.find(client) {
            Some((Listed::Allowed, entry)) => (Some(entry), None),
            Some((Listed::Denied, entry)) => (None, Some(entry)),
            None => (None, None),
        };
        (allowed, denied, self.exempt_authenticated)
    }

    /// What a client lacks, and which domain asks it.
    fn lacks(&self, cx: &Context<'_>, recipient: &Address) -> Option<(Requirement, &str)> {
        let recipients = cx.policy.recipients();
        let asks = |domain: &str| recipients.may_be_at(recipient, domain);
        let mut asking = self.required.iter().filter(|(domain, _)| asks(domain));
        asking.find_map(|(domain, required)| Some((required.lacks(cx.client)?, &**domain)))
    }
}

/// Why no recipient can ever be this exempt one.
fn can_be_nobody((number, text): (usize, &String)) -> Option<Complaint> {
    let (local, domain) = match text.rsplit_once('@') {
        Some((local, domain)) => (local, Some(domain)),
        None => (text.as_str(), None),
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '*');
    let possible = !local.is_empty() && !local.contains(odd);
    let at_a_domain = domain.is_none_or(|domain| domain.parse::<Domain>().is_ok());
    let expected = r#"a local part such as "postmaster", or a whole address"#;
    (!possible || !at_a_domain).then(|| {
        let message = format!("expected {expected}, not {text:?}, which no recipient can be");
        Complaint::error("exempt_recipients", message).at([Step::Entry(number)])
    })
}

impl Required {
    fn lacks(&self, client: &Client) -> Option<Requirement> {
        if self.tls && !client.tls {
            return Some(Requirement::Tls);
        }
        let listed = self.clients.as_ref()?.find(client);
        listed.is_none().then_some(Requirement::Listed)
    }
}

impl Lists {
    /// Clients that are named by these entries; `read` returns the text of a file they name.
    pub fn of(
        key: &'static str,
        entries: &[Entry],
        translators: &[Translation],
        read: impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Self, Vec<Complaint>> {
        let mut lists = Self::behind(translators);
        let complaints = lists.add_all(key, entries, Listed::Allowed, &read);
        if complaints.is_empty() { Ok(lists) } else { Err(complaints) }
    }

    /// Empty lists of clients between whom and us these translators stand.
    fn behind(translators: &[Translation]) -> Self {
        Self { translators: translators.into(), ..Self::default() }
    }

    /// Whether a client is named.
    pub fn names(&self, client: &Client) -> bool {
        self.find(client).is_some()
    }

    fn add_all(
        &mut self,
        key: &'static str,
        list: &[Entry],
        listed: Listed,
        read: &impl Fn(&Path) -> std::io::Result<String>,
    ) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for (number, entry) in list.iter().enumerate() {
            let wrong = self.add(entry, listed, read);
            let complaint = |what| Complaint::error(key, what).at([Step::Entry(number)]);
            complaints.extend(wrong.into_iter().map(complaint));
        }
        complaints
    }

    /// Adds an entry, and says what is wrong with it: with a file, perhaps more than one thing.
    fn add(
        &mut self,
        entry: &Entry,
        listed: Listed,
        read: &impl Fn(&Path) -> std::io::Result<String>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        match entry {
            Entry::Network(network)
                if let Some(why) = is_known_by_another(network, &self.translators) =>
            {
                wrong.push(why.to_string());
            }
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
                let text = match read(path) {
                    Ok(text) => text,
                    Err(error) => return vec![format!("{shown}: {error}")],
                };
                for (number, line) in (1..).zip(text.lines()) {
                    let line = line.split('#').next().unwrap_or_default().trim();
                    if line.is_empty() {
                        continue;
                    }
                    match line.parse::<Entry>() {
                        Ok(Entry::File(_)) => {
                            wrong.push(format!("{shown}:{number}: a list cannot name a file"));
                        }
                        Ok(entry) => {
                            let of_line = |what| format!("{shown}:{number}: {what}");
                            wrong.extend(self.add(&entry, listed, read).into_iter().map(of_line));
                        }
                        Err(expected) => wrong.push(format!("{shown}:{number}: {expected}")),
                    }
                }
            }
        }
        wrong
    }

    fn find(&self, client: &Client) -> Option<(Listed, Entry)> {
        let by_address = match client.address() {
            IpAddr::V4(v4) => {
                self.ipv4.get_lpm(&v4.into()).map(|(network, listed)| (*listed, network.into()))
            }
            IpAddr::V6(v6) => {
                self.ipv6.get_lpm(&v6.into()).map(|(network, listed)| (*listed, network.into()))
            }
        };
        let by_address = by_address.map(|(listed, network)| (listed, Entry::Network(network)));
        match self.find_name(client) {
            Some((Listed::Allowed, name)) => Some((Listed::Allowed, name)),
            by_name => by_address.or(by_name),
        }
    }

    fn find_name(&self, client: &Client) -> Option<(Listed, Entry)> {
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
}

impl Signal for Arc<Access> {
    fn name(&self) -> &'static str {
        "access"
    }

    fn standing(&self, cx: &Context<'_>) -> Option<Standing> {
        let listed = self.clients.find(cx.client).map(|(listed, _)| listed);
        (listed == Some(Listed::Allowed)).then_some(Standing::Trusted)
    }

    /// What cannot be refused at RCPT without costing the client its session is refused there.
    fn speaks_at_data(&self) -> bool {
        self.denies || !self.required.is_empty()
    }

    fn assess(&self, cx: &Context<'_>, _: &Ledger, round: &mut Round) {
        if self.exempt_authenticated && cx.client.authenticated() {
            return round.exempt(Exemption::Authenticated);
        }
        match self.clients.find(cx.client) {
            Some((Listed::Allowed, _)) => return round.exempt(Exemption::Allowlisted),
            Some((Listed::Denied, entry)) if matches!(cx.event, Event::Connect) => {
                let why = Why::Denied { entry };
                let refusal = Refusal::new(Mode::Enforce, &self.denied, why);
                round.refuse(refusal.waiting(self.retry.duration()));
            }
            Some((Listed::Denied, _)) | None => {}
        }
        if let Event::Recipient { address, .. } = cx.event
            && self.exempts(address)
        {
            return round.exempt(Exemption::Recipient);
        }
        if let Event::Recipient { address, .. } = cx.event
            && let Some((what, domain)) = self.lacks(cx, address)
        {
            let template = match what {
                Requirement::Tls => &self.tls_required,
                Requirement::Listed => &self.not_listed,
            };
            let why = Why::Required { what, recipient_domain: domain.into() };
            let refusal = Refusal::new(Mode::Enforce, template, why);
            round.refuse(refusal.waiting(self.retry.duration()));
        }
    }

    fn settle(&self, _: &Context<'_>, _: &Decision, _: &mut Ledger) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(params: &Params, address: &str, name: &str) -> Option<Listed> {
        let access = Access::new(params, &[], |_| Ok("# ours\n198.51.100.7\n\n".into())).unwrap();
        let client = Client::new(address.parse().unwrap()).named(name);
        access.clients.find(&client).map(|(listed, _)| listed)
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
        let Err(complaints) = Access::new(&params, &[], |_| Ok("192.0.2.1\n192.0.2.300\n".into()))
        else {
            panic!("a bad line was taken");
        };
        assert_eq!(complaints[0].key, "deny");
        assert!(complaints[0].message.starts_with("/etc/list:2: expected a network"));
    }

    #[test]
    fn postmaster_is_reached_at_every_domain_in_any_case() {
        let access = Access::new(&Params::default(), &[], |_| Ok(String::new())).unwrap();
        assert!(access.exempts(&Address::new(b"<PostMaster@example.org>")));
        assert!(access.exempts(&Address::new(b"<postmaster>")));
        assert!(!access.exempts(&Address::new(b"<info@example.org>")));
    }
}
