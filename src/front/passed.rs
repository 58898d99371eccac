//! Sockets that a service manager has bound for us and passed on: sd_listen_fds(3).
//!
//! They stay open while the daemon is restarted, so that who connects meanwhile waits in the
//! backlog and is refused nothing. Each belongs to the `[[listen]]` of its address; what is spoken
//! there is said by the settings, never by the name that the manager has given it.
//!
//! Descriptors become sockets by `listenfd`: unlike `sd-listen-fds` it looks whether a descriptor
//! is what it is said to be, keeps it from our children, and takes the variables that tell of it
//! out of their environment.

use std::env;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use listenfd::ListenFd;
use rustix::net::sockopt;

use super::address::Address;
use super::listener::Bound;

/// Sockets that were passed to this process and have not been taken yet.
#[derive(Default)]
pub struct Passed(Vec<Bound>);

impl Passed {
    /// Those that were passed, and what is strange about the others. Once in a process, while it
    /// is one thread: it changes the environment.
    pub fn receive() -> (Self, Vec<String>) {
        // Without our number the variable is meant for somebody whose environment we have.
        let is_ours = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        let mut passed = if is_ours { ListenFd::from_env() } else { ListenFd::empty() };
        let (mut sockets, mut strange) = (Vec::new(), Vec::new());
        for number in 0..passed.len() {
            match bound(&mut passed, number) {
                Ok(socket) => sockets.push(socket),
                Err(why) => strange.push(format!("descriptor {}: {why}", number + FIRST)),
            }
        }
        (Self(sockets), strange)
    }

    /// The socket of this address, if there is one.
    pub fn take(&mut self, address: &Address) -> Option<Bound> {
        let found = self.0.iter().position(|socket| serves(socket, address))?;
        Some(self.0.swap_remove(found))
    }

    /// Where those are bound that nobody has taken.
    pub fn left(&self) -> Vec<String> {
        self.0.iter().map(shown).collect()
    }
}

/// The first descriptor that is passed: SD_LISTEN_FDS_START.
const FIRST: usize = 3;

fn bound(passed: &mut ListenFd, number: usize) -> Result<Bound, String> {
    let taken = match passed.take_unix_listener(number) {
        Ok(listener) => listener.map(Bound::Unix),
        Err(_) => match passed.take_tcp_listener(number) {
            Ok(listener) => listener.map(Bound::Inet),
            Err(_) => {
                // What can be taken is closed by that.
                let _ = passed.take_unix_datagram(number);
                let _ = passed.take_udp_socket(number);
                return Err("it is neither a TCP port nor a unix stream socket".into());
            }
        },
    };
    let bound = taken.ok_or("it is passed twice")?;
    match sockopt::socket_acceptconn(&bound) {
        Ok(true) => {}
        Ok(false) => return Err(format!("{} does not listen", shown(&bound))),
        Err(error) => return Err(error.to_string()),
    }
    bound.prepared().map_err(|error| error.to_string())
}

/// Whether who connects to this address comes by this socket, and nobody else does.
fn serves(socket: &Bound, address: &Address) -> bool {
    match (socket, address) {
        (Bound::Inet(listener), Address::Inet(wanted)) => listener
            .local_addr()
            .is_ok_and(|bound| is_same(bound, *wanted) || takes_both(listener, bound, *wanted)),
        (Bound::Unix(listener), Address::Unix(wanted)) => {
            let bound = listener.local_addr();
            bound.is_ok_and(|bound| bound.as_pathname().is_some_and(|path| is_file(path, wanted)))
        }
        (Bound::Inet(_), Address::Unix(_)) | (Bound::Unix(_), Address::Inet(_)) => false,
    }
}

/// A port is of its address; scope and flow have no place in the settings.
fn is_same(bound: SocketAddr, wanted: SocketAddr) -> bool {
    (bound.ip(), bound.port()) == (wanted.ip(), wanted.port())
}

/// `ListenStream=7421` is a port of all addresses of both kinds, and so serves `inet:0.0.0.0:7421`
/// too. Never one that the settings want on a single address: it would be open to everybody.
fn takes_both(listener: &impl AsFd, bound: SocketAddr, wanted: SocketAddr) -> bool {
    let all_of_both =
        |ip: IpAddr| ip.is_unspecified() && sockopt::ipv6_v6only(listener) == Ok(false);
    bound.is_ipv6()
        && all_of_both(bound.ip())
        && wanted.ip().is_unspecified()
        && bound.port() == wanted.port()
}

/// The same path, or another one to the same file: `/var/run` is `/run`.
fn is_file(bound: &Path, wanted: &Path) -> bool {
    let whole = |path: &Path| -> io::Result<_> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok((fs::canonicalize(folder)?, name.to_owned()))
    };
    bound == wanted || matches!((whole(bound), whole(wanted)), (Ok(one), Ok(other)) if one == other)
}

fn shown(socket: &Bound) -> String {
    match socket {
        Bound::Inet(listener) => listener
            .local_addr()
            .map_or_else(|error| error.to_string(), |bound| Address::Inet(bound).to_string()),
        Bound::Unix(listener) => match listener.local_addr() {
            Ok(bound) => match bound.as_pathname() {
                Some(path) => Address::Unix(path.into()).to_string(),
                None => "a unix socket without a path".into(),
            },
            Err(error) => error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_belongs_to_its_address_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut passed = Passed(vec![Bound::Inet(listener)]);
        for other in ["127.0.0.2", "0.0.0.0"] {
            assert!(passed.take(&address(&format!("inet:{other}:{port}"))).is_none(), "{other}");
        }
        assert!(passed.take(&address("inet:127.0.0.1:9")).is_none());
        assert_eq!(passed.left(), [format!("inet:127.0.0.1:{port}")]);
        assert!(passed.take(&address(&format!("inet:127.0.0.1:{port}"))).is_some());
        assert!(passed.left().is_empty());
    }

    /// Where there is no IPv6 there is nothing to see.
    #[test]
    fn a_port_of_all_addresses_serves_both_kinds_but_not_one_that_is_to_be_narrow() {
        let Ok(listener) = TcpListener::bind("[::]:0") else { return };
        let port = listener.local_addr().unwrap().port();
        let mut passed = Passed(vec![Bound::Inet(listener)]);
        assert!(passed.take(&address(&format!("inet:127.0.0.1:{port}"))).is_none());
        assert!(passed.take(&address(&format!("inet:0.0.0.0:{port}"))).is_some());
    }

    #[test]
    fn a_unix_socket_belongs_to_its_file_by_whatever_way() {
        let folder = env::temp_dir().join(format!("postpone-passed-{}", std::process::id()));
        fs::create_dir_all(folder.join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
        let at = |path: &str| Address::Unix(folder.join(path));
        let listener = UnixListener::bind(folder.join("real/milter.sock")).unwrap();
        let mut passed = Passed(vec![Bound::Unix(listener)]);
        assert!(passed.take(&at("real/policy.sock")).is_none());
        assert!(passed.take(&at("milter.sock")).is_none());
        assert!(passed.take(&at("link/milter.sock")).is_some());
        fs::remove_dir_all(&folder).unwrap();
    }
}
