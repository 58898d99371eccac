//! Where a front listens, as MTAs write it: `inet:127.0.0.1:7421`, `inet6:[::1]:7421`,
//! `unix:/run/postpone/milter.sock`.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::setting::{Expected, as_text};

/// The longest path that the kernel takes for a unix socket, in bytes (unix(7), `sun_path`).
const LONGEST_PATH: usize = 107;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Inet(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let expected = || {
            let example = r#""inet:127.0.0.1:7421", "inet6:[::1]:7421" or "unix:/path""#;
            Expected::new(format!("an address such as {example}, not {text:?}"))
        };
        let (kind, rest) = text.split_once(':').ok_or_else(expected)?;
        match kind {
            "inet" | "inet6" => {
                let address: SocketAddr = rest.parse().map_err(|_| expected())?;
                let fits = kind == "inet" || address.is_ipv6();
                fits.then_some(Self::Inet(address)).ok_or_else(expected)
            }
            "unix" if rest.len() > LONGEST_PATH => Err(Expected::new(format!(
                "a path of at most {LONGEST_PATH} bytes for a unix socket, not of {}",
                rest.len()
            ))),
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            _ => Err(expected()),
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) if address.is_ipv6() => write!(f, "inet6:{address}"),
            Self::Inet(address) => write!(f, "inet:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

as_text!(Address);

/// The path of a unix socket, where nothing else can stand: `unix:/run/postpone/control.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixPath(PathBuf);

impl UnixPath {
    /// The socket at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for UnixPath {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        match text.parse() {
            Ok(Address::Unix(path)) => Ok(Self(path)),
            Err(too_long) if text.len() > LONGEST_PATH => Err(too_long),
            Ok(Address::Inet(_)) | Err(_) => {
                Err(Expected::new(format!("a unix socket such as \"unix:/path\", not {text:?}")))
            }
        }
    }
}

impl Display for UnixPath {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

as_text!(UnixPath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_back_and_others_say_what_was_expected() {
        for text in ["inet:127.0.0.1:7421", "inet6:[::1]:7421", "unix:/run/postpone/milter.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("inet:[::1]:25".parse::<Address>().unwrap().to_string(), "inet6:[::1]:25");
        let long = format!("unix:/{}", "a".repeat(107));
        assert!(long.parse::<Address>().unwrap_err().0.contains("at most 107 bytes"));
        assert!(long.parse::<UnixPath>().unwrap_err().0.contains("at most 107 bytes"));
        assert!(long[..long.len() - 1].parse::<Address>().is_ok());
        for text in
            ["127.0.0.1:7421", "inet:7421", "inet6:127.0.0.1:1", "inet:127.0.0.1:99999", "unix:x"]
        {
            assert!(text.parse::<Address>().unwrap_err().0.contains("inet:127.0.0.1:7421"));
        }
    }

    #[test]
    fn where_only_a_unix_socket_can_stand_nothing_else_does() {
        let text = "unix:/run/postpone/control.sock";
        assert_eq!(text.parse::<UnixPath>().unwrap().to_string(), text);
        for text in ["inet:127.0.0.1:7421", "/run/postpone/control.sock", "unix:x", ""] {
            assert!(text.parse::<UnixPath>().unwrap_err().0.contains("unix:/path"));
        }
    }
}
