//! Where postpone listens while no `[[listen]]` says it.
//!
//! The packages install `postpone.socket`, which makes systemd hold unix sockets in folders that
//! belong to root: no other user can bind them, whether the daemon runs, is being upgraded, or is
//! stopped. A port above 1023 belongs to whoever binds it first, and the MTA would ask that user and
//! pass the answers on. A privileged port was the other choice: but every local user could still
//! connect to it, and one setting of the kernel (`ip_unprivileged_port_start`) opens it to all.

use std::path::Path;

use super::address::Address;
use super::listen::Params;

/// The socket for Postfix: in the folder that Debian's smtpd is chrooted to.
pub const FOR_POSTFIX: &str = "/var/spool/postfix/postpone/milter.sock";

/// The socket for Sendmail, which refuses sockets in folders that are not root's.
pub const FOR_SENDMAIL: &str = "/run/postpone-sendmail/milter.sock";

/// Exists where systemd also holds the port that MTAs were told before there were these sockets.
const KEEPS_PORT: &str = "/etc/systemd/system/sockets.target.wants/postpone-port.socket";

/// What this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Those of the packages' sockets that are held.
    sockets: Vec<&'static str>,
    /// Whether the port is served: without any socket, or for an MTA that was set up before.
    port: bool,
}

impl Listening {
    /// As this host is now.
    pub fn here() -> Self {
        Self::at(Path::new("/"))
    }

    fn at(root: &Path) -> Self {
        let has = |path: &str| root.join(&path[1..]).symlink_metadata().is_ok();
        let sockets: Vec<_> =
            [FOR_POSTFIX, FOR_SENDMAIL].into_iter().filter(|path| has(path)).collect();
        Self { port: sockets.is_empty() || has(KEEPS_PORT), sockets }
    }

    /// The listeners, the one that Postfix is to be told first.
    pub fn listeners(&self) -> Vec<Params> {
        let port = self.port.then(Params::default);
        self.sockets.iter().copied().map(on).chain(port).collect()
    }

    /// Whether systemd holds this address by a unit of the packages.
    pub fn holds(&self, address: &Address) -> bool {
        match address {
            Address::Unix(path) => self.sockets.iter().any(|held| path == Path::new(held)),
            port @ Address::Inet(_) => {
                self.port
                    && !self.sockets.is_empty()
                    && Params::default().milter.as_ref() == Some(port)
            }
        }
    }

    /// What an administrator should know.
    pub fn warning(&self) -> Option<String> {
        let why = match (self.port, self.sockets.is_empty()) {
            (false, _) => return None,
            (true, false) => {
                "inet:127.0.0.1:7421 is served for an MTA that was set up before there was \
                 postpone.socket. While neither postpone nor systemd holds this port, any local user \
                 can take it and answer the MTA. `postpone setup postfix --apply` moves Postfix to \
                 the unix socket; then run `systemctl disable --now postpone-port.socket`"
            }
            (true, true) => {
                "no [[listen]], so the milter is on inet:127.0.0.1:7421: while postpone is away, any \
                 local user can take this port and answer the MTA. Start postpone.socket, or listen \
                 on a unix socket in a folder where no other user may write"
            }
        };
        Some(why.into())
    }
}

/// Whether an address, as it is shown, is one of the packages' sockets.
pub fn is_packaged(address: &str) -> bool {
    [FOR_POSTFIX, FOR_SENDMAIL].iter().any(|path| address.strip_prefix("unix:") == Some(path))
}

fn on(path: &str) -> Params {
    Params { milter: Some(Address::Unix(path.into())), ..Params::default() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_sockets_are_used_where_they_are_held_and_the_port_is_never_used_without_a_word() {
        let root = std::env::temp_dir().join(format!("postpone-packaged-{}", std::process::id()));
        let addresses = |here: &Listening| {
            let listeners = here.listeners();
            listeners.iter().map(|it| it.door().address.to_string()).collect::<Vec<_>>()
        };
        let make = |path: &str| {
            let path = root.join(&path[1..]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        let port = "inet:127.0.0.1:7421";
        let (postfix, sendmail) = (format!("unix:{FOR_POSTFIX}"), format!("unix:{FOR_SENDMAIL}"));

        make("/etc/passwd");
        let bare = Listening::at(&root);
        assert_eq!(addresses(&bare), [port]);
        assert!(bare.warning().unwrap().contains(port));

        make(FOR_SENDMAIL);
        assert_eq!(addresses(&Listening::at(&root)), [sendmail.as_str()]);
        make(FOR_POSTFIX);
        let packaged = Listening::at(&root);
        assert_eq!(addresses(&packaged), [postfix.as_str(), &sendmail]);
        assert_eq!(packaged.warning(), None);

        make(KEEPS_PORT);
        let upgraded = Listening::at(&root);
        assert_eq!(addresses(&upgraded), [postfix.as_str(), &sendmail, port]);
        assert!(upgraded.warning().unwrap().contains(port));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_units_hold_what_is_listened_on() {
        let unit = include_str!("../../packaging/systemd/postpone.socket");
        let held: Vec<_> =
            unit.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
        assert_eq!(held, [FOR_POSTFIX, FOR_SENDMAIL]);
        let port = include_str!("../../packaging/systemd/postpone-port.socket");
        assert!(port.contains("\nListenStream=127.0.0.1:7421\n"));
    }
}
