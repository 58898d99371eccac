//! What a limit counts under: `per = ["network", "recipient_domain"]`.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

use crate::meter::key::Key;
use crate::policy::signal::Context;
use crate::setting::{Expected, as_text};
use crate::smtp::client::{Network, Prefixes};
use crate::smtp::event::Kind;

/// What a limit counts under. Several make one key; none is the whole host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// The whole client network, as `[client]` has it.
    Network,
    /// `network/24`: a wider one. Up to 32 bits it applies to IPv4 clients, beyond to IPv6 ones;
    /// those of the other family count under their own network.
    Wider(u8),
    /// The mail system the client belongs to.
    Pool,
    /// The listener by which the client came.
    Listener,
    /// The client's HELO name.
    Helo,
    /// The name the client has authenticated as.
    User,
    /// The envelope sender.
    Sender,
    /// Its domain.
    SenderDomain,
    /// The envelope recipient.
    Recipient,
    /// Its domain.
    RecipientDomain,
}

const WORDS: [(&str, Dimension); 9] = [
    ("network", Dimension::Network),
    ("pool", Dimension::Pool),
    ("listener", Dimension::Listener),
    ("helo", Dimension::Helo),
    ("user", Dimension::User),
    ("sender", Dimension::Sender),
    ("sender_domain", Dimension::SenderDomain),
    ("recipient", Dimension::Recipient),
    ("recipient_domain", Dimension::RecipientDomain),
];

impl Dimension {
    /// The first event at which it is known.
    pub fn known_at(self) -> Kind {
        match self {
            Self::Network | Self::Wider(_) | Self::Pool | Self::Listener => Kind::Connect,
            Self::Helo => Kind::Helo,
            Self::User | Self::Sender | Self::SenderDomain => Kind::Mail,
            Self::Recipient | Self::RecipientDomain => Kind::Recipient,
        }
    }

    /// Whether a client that is not who it says could make it another client's.
    pub fn forgeable(self) -> bool {
        matches!(self, Self::Helo | Self::Sender | Self::SenderDomain)
    }

    /// Whether it holds clients apart by what they cannot choose.
    pub fn identifies(self) -> bool {
        matches!(self, Self::Network | Self::Wider(_) | Self::Pool | Self::User)
    }

    /// The key of its value; nothing while it is not known.
    pub(super) fn key(self, cx: &Context<'_>) -> Option<Key> {
        Some(match self {
            Self::Network => cx.network_key(),
            Self::Wider(bits) => cx.key_of(wider(cx, bits)),
            Self::Pool => cx.pool_key(),
            Self::Listener => cx.key("listener", cx.listener.as_bytes()),
            Self::Helo => cx.key("helo", cx.client.helo.as_ref()?.host_name().as_bytes()),
            Self::User => cx.key("user", cx.client.user.as_ref()?.login().as_bytes()),
            Self::Sender => cx.sender_key()?,
            Self::SenderDomain => cx.key("sender_domain", cx.sender()?.domain().as_bytes()),
            Self::Recipient => cx.recipient_key()?,
            Self::RecipientDomain => {
                let domain = cx.policy.recipients().domain(cx.recipient()?);
                cx.key("recipient_domain", domain.as_bytes())
            }
        })
    }

    /// The same, but of the IPv6 site where its value is a network within one.
    pub(super) fn site_key(self, cx: &Context<'_>) -> Option<Key> {
        let network = match self {
            Self::Network => cx.network,
            Self::Wider(bits) => wider(cx, bits),
            _ => return self.key(cx),
        };
        network.site().map_or_else(|| self.key(cx), |site| Some(cx.key_of(site)))
    }

    /// Whom it is about, as the default replies say it.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Network | Self::Wider(_) | Self::Pool => "from your network",
            Self::Listener => "at this server",
            Self::Helo => "from a host of your name",
            Self::User => "from your account",
            Self::Sender => "from {sender}",
            Self::SenderDomain => "from {sender_domain}",
            Self::Recipient => "to {recipient}",
            Self::RecipientDomain => "to {recipient_domain}",
        }
    }
}

fn wider(cx: &Context<'_>, bits: u8) -> Network {
    match cx.client.address() {
        address @ IpAddr::V4(_) if bits <= 32 => {
            Network::of(address, Prefixes { ipv4: bits, ipv6: 128 })
        }
        address @ IpAddr::V6(_) if bits > 32 => {
            Network::of(address, Prefixes { ipv4: 32, ipv6: bits })
        }
        _ => cx.network,
    }
}

impl FromStr for Dimension {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        if let Some((_, dimension)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*dimension);
        }
        let bits = text.strip_prefix("network/").and_then(|bits| bits.parse().ok());
        bits.filter(|bits| (1..=128).contains(bits)).map(Self::Wider).ok_or_else(|| {
            let words: Vec<_> = WORDS.iter().map(|(word, _)| *word).collect();
            Expected::new(format!("one of {}, or network/24; not {text:?}", words.join(", ")))
        })
    }
}

impl Display for Dimension {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Self::Wider(bits) = self {
            return write!(f, "network/{bits}");
        }
        let word = WORDS.iter().find(|(_, dimension)| dimension == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

as_text!(Dimension);
