//! `[[listen]]`: a socket, the protocol spoken on it, and who may use it.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::listener::{Bound, Stack};
use super::socket_file::Ownership;
use crate::engine::{Door, Speak};
use crate::policy::signal::Ends;
use crate::setting::{Complaint, Expected, OrNone, as_text};

/// One `[[listen]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Where the MTA finds the milter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milter: Option<Address>,
    /// Where Postfix finds the policy service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Address>,
    /// When a session that is refused at its beginning hears of it; for a milter.
    #[serde(default)]
    pub speak: Speak,
    /// Owner of a unix socket.
    #[serde(default)]
    pub socket_owner: OrNone<String>,
    /// Group of a unix socket.
    #[serde(default)]
    pub socket_group: OrNone<String>,
    /// Permission bits of a unix socket, in octal.
    #[serde(default)]
    pub socket_mode: Permissions,
}

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The mail filter protocol.
    Milter,
    /// Postfix's policy delegation protocol.
    Policy,
}

impl Protocol {
    /// Its one name in settings and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milter => "milter",
            Self::Policy => "policy",
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            milter: Some(Address::Inet(SocketAddr::from(([127, 0, 0, 1], 7421)))),
            policy: None,
            speak: Speak::default(),
            socket_owner: OrNone::None,
            socket_group: OrNone::None,
            socket_mode: Permissions::default(),
        }
    }
}

impl Params {
    /// The address, and what is spoken there; nothing if the settings name none or two.
    pub fn address(&self) -> Option<(&Address, Protocol)> {
        match (&self.milter, &self.policy) {
            (Some(address), None) => Some((address, Protocol::Milter)),
            (None, Some(address)) => Some((address, Protocol::Policy)),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// The door that sessions on this socket come by.
    pub fn door(&self) -> Door {
        let (address, protocol) =
            self.address().map_or((String::new(), Protocol::Milter), |(a, p)| (a.to_string(), p));
        let (speak, ends) = match protocol {
            Protocol::Milter => (self.speak, Ends::Seen),
            // Postfix sends the text of a policy service at every stage.
            Protocol::Policy => (Speak::Connect, Ends::Unseen),
        };
        let address: std::sync::Arc<str> = address.into();
        Door { listener: address.clone(), address, hostname: None, speak, ends, rehearsal: false }
    }

    /// What makes no sense.
    pub fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut error = |key, message: &str| complaints.push(Complaint::error(key, message));
        let Some((address, protocol)) = self.address() else {
            error("milter", "expected either `milter` or `policy`, with an address");
            return complaints;
        };
        let plain = Self::default();
        if protocol == Protocol::Policy && self.speak != plain.speak {
            error(
                "speak",
                "`speak` is for milters: a policy service always answers when it is \
                   asked",
            );
        }
        if let Address::Inet(_) = address {
            for (key, is_set) in [
                ("socket_owner", self.socket_owner != plain.socket_owner),
                ("socket_group", self.socket_group != plain.socket_group),
                ("socket_mode", self.socket_mode != plain.socket_mode),
            ] {
                if is_set {
                    error(key, "only a unix socket has an owner, group and mode");
                }
            }
        }
        complaints
    }

    /// Binds the socket, beside these other listeners.
    pub fn bind(&self, others: &[Self]) -> io::Result<Bound> {
        let ownership = Ownership::new(&self.socket_owner, &self.socket_group, self.socket_mode);
        let Some((address, _)) = self.address() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address"));
        };
        let is_ipv4 = |other: &Self| match (address, other.address()) {
            (Address::Inet(this), Some((Address::Inet(other), _))) => {
                other.is_ipv4() && other.port() == this.port()
            }
            _ => false,
        };
        // `inet6:[::]` takes the port for IPv4 too, unless another listener has it.
        let stack = if others.iter().any(is_ipv4) { Stack::Ipv6Only } else { Stack::Both };
        Bound::bind(address, stack, &ownership)
    }
}

/// Permission bits, written in octal: `"0660"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions(pub u32);

impl Default for Permissions {
    fn default() -> Self {
        Self(0o660)
    }
}

impl FromStr for Permissions {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777);
        bits.map(Self).ok_or_else(|| Expected::new(r#"permission bits in octal, such as "0660""#))
    }
}

impl Display for Permissions {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

as_text!(Permissions);
