//! Listening sockets that survive trouble.
//!
//! An error of accept is counted, and accept tried again after a pause; told to stop, the port is
//! closed at once while the connections go on, until the grace is over.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net as unix;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::address::Address;
use super::counted::counted;
use super::socket_file::{self, Ownership};
use super::transport::Transport;
use crate::engine::Engine;
use crate::telemetry::Failure;

/// A bound socket, which several workers may serve.
pub enum Bound {
    /// A TCP port.
    Inet(std::net::TcpListener),
    /// A unix socket.
    Unix(unix::UnixListener),
}

/// What a listener on an IPv6 address takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// IPv4 connections to the port too, where the address is `::`.
    Both,
    /// IPv6 connections only.
    Ipv6Only,
}

impl Bound {
    /// Binds an address; who connects is refused until [`Bound::listen`]. The socket file of a daemon
    /// that is gone is replaced; that of one that still answers is an error.
    pub fn bind(address: &Address, stack: Stack, ownership: &Ownership) -> io::Result<Self> {
        match address {
            Address::Inet(address) => Self::Inet(bind_tcp(*address, stack)?).prepared(),
            Address::Unix(path) => {
                socket_file::remove_stale(path)?;
                if let Some(parent) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
                }
                // Until it has its owner and mode, nobody else may use it. We may: should it be left
                // behind, that is how we see that nobody serves it.
                let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
                let socket = bind_unix(path);
                rustix::process::umask(before);
                let socket = socket?;
                ownership.apply(path).inspect_err(|_| {
                    let _ = fs::remove_file(path);
                })?;
                Self::Unix(socket).prepared()
            }
        }
    }

    /// From now on who connects waits for accept, as many as the system allows.
    pub fn listen(&self) -> io::Result<()> {
        Ok(net::listen(self, i32::MAX)?)
    }

    /// The same, as the fronts want it: accept returns at once, and over TCP the connections, which
    /// inherit it (tcp(7)), send every answer at once, since the MTA waits for it, and notice a
    /// host that is gone.
    pub(super) fn prepared(self) -> io::Result<Self> {
        match &self {
            Self::Inet(listener) => {
                listener.set_nonblocking(true)?;
                sockopt::set_tcp_nodelay(listener, true)?;
                sockopt::set_socket_keepalive(listener, true)?;
                sockopt::set_tcp_keepidle(listener, LOOK_AFTER)?;
                sockopt::set_tcp_keepintvl(listener, LOOK_EVERY)?;
                sockopt::set_tcp_user_timeout(listener, GONE_AFTER.as_millis() as u32)?;
            }
            Self::Unix(listener) => listener.set_nonblocking(true)?,
        }
        Ok(self)
    }

    /// Another handle of the same socket, for another worker.
    pub fn share(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Inet(listener) => Self::Inet(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }
}

fn bind_tcp(address: SocketAddr, stack: Stack) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if stack == Stack::Ipv6Only && address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<unix::UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Inet(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// A host that lost power says nothing more. It is asked after this time of silence, then as often,
/// and given up after so long without an answer, whether it is asked or told something: 30 seconds,
/// and at most one interval more.
const LOOK_AFTER: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(5);
const GONE_AFTER: Duration = Duration::from_secs(30);

/// How a daemon's listeners serve.
#[derive(Clone)]
pub struct Serving {
    /// A place for each connection, of all listeners and workers together: every one takes a
    /// descriptor. Where there is none, the next wait in the backlog.
    pub places: Arc<Semaphore>,
    /// Whether it goes on.
    pub stopping: Stopping,
}

/// So many places.
pub fn places(most: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))
}

/// Nothing, while connections are taken. Then how long those that are there may go on, from when
/// that was said last.
pub type Stopping = watch::Receiver<Option<Duration>>;

impl Serving {
    /// One that goes on until it is told, with so many places.
    pub fn new(places: usize, stopping: Stopping) -> Self {
        Self { places: self::places(places), stopping }
    }

    /// Serves a bound socket on the current runtime. Told to stop, it closes the port, waits for the
    /// connections until the grace is over, and drops those that are left.
    pub(super) async fn accept<C>(
        self,
        bound: Bound,
        engine: Arc<Engine>,
        converse: impl Fn(Transport, Stopping) -> C,
    ) -> io::Result<()>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let Self { places, mut stopping } = self;
        let socket = Socket::new(bound)?;
        let mut connections = JoinSet::new();
        let (told, mut asked) = (stopping.clone(), stopping.clone());
        let mut stop = pin!(asked.wait_for(Option::is_some));
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
                io::Result::Ok((place, socket.accept(&engine).await))
            };
            let (place, transport) = tokio::select! {
                next = next => next?,
                // An error means that the daemon itself is gone.
                _ = &mut stop => break,
            };
            let conversation = counted(engine.clone(), converse(transport, told.clone()));
            connections.spawn(async move {
                conversation.await;
                drop(place);
            });
            while connections.try_join_next().is_some() {}
        }
        drop(socket);
        let mut ended = pin!(async { while connections.join_next().await.is_some() {} });
        loop {
            let grace = stopping.borrow_and_update().unwrap_or_default();
            tokio::select! {
                () = &mut ended => return Ok(()),
                () = sleep(grace) => return Ok(()),
                Ok(()) = stopping.changed() => {}
            }
        }
    }
}

/// How long accept rests after an error that another attempt would meet again at once: as a rule
/// EMFILE, until a session has ended.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

enum Socket {
    Inet(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    fn new(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Inet(listener) => Self::Inet(TcpListener::from_std(listener)?),
            Bound::Unix(listener) => Self::Unix(UnixListener::from_std(listener)?),
        })
    }

    /// The next connection.
    async fn accept(&self, engine: &Engine) -> Transport {
        loop {
            let accepted = match self {
                Self::Inet(listener) => {
                    listener.accept().await.map(|(stream, _)| Transport::Inet(stream))
                }
                Self::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| Transport::Unix(stream))
                }
            };
            match accepted {
                Ok(transport) => return transport,
                Err(error) => {
                    engine.failed(Failure::Accept, &error);
                    // What the peer did is over; what we lack is still lacking.
                    if error.kind() != ErrorKind::ConnectionAborted {
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn bound() -> (std::net::TcpListener, SocketAddr) {
        let address = Address::Inet(SocketAddr::from(([127, 0, 0, 1], 0)));
        let bound = Bound::bind(&address, Stack::Both, &Ownership::default()).unwrap();
        bound.listen().unwrap();
        match bound {
            Bound::Inet(listener) => {
                let at = listener.local_addr().unwrap();
                (listener, at)
            }
            Bound::Unix(_) => panic!("a port was to be bound"),
        }
    }

    /// Else its sessions would be open, and counted, until the kernel gives up: two hours.
    #[test]
    fn a_host_that_lost_power_gives_its_sessions_back_within_40_seconds() {
        let (listener, at) = bound();
        let _mta = TcpStream::connect(at).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert!(sockopt::socket_keepalive(&accepted).unwrap());
        let user_timeout_ms = sockopt::tcp_user_timeout(&accepted).unwrap();
        let idle = sockopt::tcp_keepidle(&accepted).unwrap();
        let interval = sockopt::tcp_keepintvl(&accepted).unwrap();
        let gone = Duration::from_millis(user_timeout_ms.into()).max(idle) + interval;
        assert!(user_timeout_ms > 0 && gone < Duration::from_secs(40), "{gone:?}");
    }

    /// Rust's own backlog is 128, the kernel's bound 4,096 by default.
    #[test]
    fn more_than_a_few_hundred_connections_may_wait() {
        let (_listener, at) = bound();
        let soon = Duration::from_secs(5);
        let connect = |_| TcpStream::connect_timeout(&at, soon).expect("there is room to wait");
        let waiting: Vec<_> = (0..400).map(connect).collect();
        assert_eq!(waiting.len(), 400);
    }

    /// An MTA that is refused goes on without us at once; one that waits in the backlog does not.
    #[test]
    fn who_connects_before_anybody_can_answer_is_refused() {
        let folder = std::env::temp_dir().join(format!("postpone-bound-{}", std::process::id()));
        let ownership = Ownership { mode: 0o600, ..Ownership::default() };
        for address in [Address::Inet(([127, 0, 0, 1], 0).into()), Address::Unix(folder.clone())] {
            let bound = Bound::bind(&address, Stack::Both, &ownership).unwrap();
            let connect = || match &bound {
                Bound::Inet(listener) => {
                    TcpStream::connect(listener.local_addr().unwrap()).map(drop)
                }
                Bound::Unix(_) => unix::UnixStream::connect(&folder).map(drop),
            };
            assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
            bound.listen().unwrap();
            connect().unwrap();
        }
        fs::remove_file(&folder).unwrap();
    }

    #[test]
    fn one_port_is_two_listeners_where_one_is_for_ipv4() {
        let free = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let listen = |address: String| crate::front::listen::Params {
            milter: Some(address.parse().unwrap()),
            ..Default::default()
        };
        let both = [format!("inet6:[::]:{port}"), format!("inet:0.0.0.0:{port}")].map(listen);
        let bound = both.iter().map(|one| one.bind(&both).unwrap());
        let _listening: Vec<_> = bound.inspect(|bound| bound.listen().unwrap()).collect();
    }
}
