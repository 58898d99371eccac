//! Listening sockets that survive trouble.
//!
//! An error of accept is counted, and accept tried again after a pause; told to stop, the port is
//! closed at once while the connections go on.

use std::fs;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;

use super::address::Address;
use super::listen::Permissions;
use crate::engine::Engine;
use crate::setting::OrNone;
use crate::telemetry::Failure;

/// Who may use a unix socket. Unset: the daemon's user and group.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    /// The name of its owner.
    pub owner: Option<String>,
    /// The name of its group.
    pub group: Option<String>,
    /// Its permission bits.
    pub mode: u32,
}

/// A bound socket, which several workers may serve.
pub enum Bound {
    /// A TCP port.
    Inet(std::net::TcpListener),
    /// A unix socket.
    Unix(unix::UnixListener),
}

impl Bound {
    /// Binds an address. The socket file of a daemon that is gone is replaced; that of one that
    /// still answers is an error.
    pub fn bind(address: &Address, ownership: &Ownership) -> io::Result<Self> {
        match address {
            Address::Inet(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Inet(listener))
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                if let Some(parent) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
                }
                // Until it has its owner and mode, nobody else may use it. We may: should it be left
                // behind, that is how we see that nobody serves it.
                let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
                let listener = unix::UnixListener::bind(path);
                rustix::process::umask(before);
                let listener = listener?;
                ownership.apply(path).inspect_err(|_| {
                    let _ = fs::remove_file(path);
                })?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
        }
    }

    /// Makes accept return at once, as the runtime wants it.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Inet(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// Another handle of the same socket, for another worker.
    pub fn share(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Inet(listener) => Self::Inet(listener.try_clone()?),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Inet(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "exists and is no socket"));
    }
    // Without waiting: whoever holds it may be stuck, with a full backlog.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Ok(()) | Err(Errno::AGAIN) => {
            Err(io::Error::new(ErrorKind::AddrInUse, "another process serves this socket"))
        }
        Err(error) => Err(error.into()),
    }
}

impl Ownership {
    /// As the settings say it.
    pub fn new(owner: &OrNone<String>, group: &OrNone<String>, mode: Permissions) -> Self {
        let name = |name: &OrNone<String>| name.as_option().cloned();
        Self { owner: name(owner), group: name(group), mode: mode.0 }
    }

    fn apply(&self, path: &Path) -> io::Result<()> {
        let unknown = |what: &str, name: &str| {
            io::Error::new(ErrorKind::NotFound, format!("there is no {what} {name:?}"))
        };
        let owner = self.owner.as_deref().map(|name| match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            _ => Err(unknown("user", name)),
        });
        let group = self.group.as_deref().map(|name| match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            _ => Err(unknown("group", name)),
        });
        let given = std::os::unix::fs::chown(path, owner.transpose()?, group.transpose()?);
        given.map_err(|error| match (error.kind(), &self.group) {
            (ErrorKind::PermissionDenied, Some(group)) => io::Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "it may not be given to group {group:?}, as this user is not in it: a unit says \
                     SupplementaryGroups={group}"
                ),
            ),
            _ => error,
        })?;
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode))
    }
}

/// Accepts connections until told to stop.
pub struct Acceptor {
    socket: Option<Socket>,
    pause: Option<Pin<Box<Sleep>>>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    engine: Arc<Engine>,
    /// Held, never used: when the last is dropped, the last connection has ended.
    alive: Alive,
}

enum Socket {
    Inet(TcpListener),
    Unix(UnixListener),
}

/// Kept by whatever must end before the front has ended.
pub type Alive = mpsc::Sender<()>;

/// How long accept rests after an error that another attempt would meet again at once: as a rule
/// EMFILE, until a session has ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Acceptor {
    /// Serves a bound socket on the current runtime until `stopping` becomes true. The receiver
    /// returned ends when the port is closed and the last connection has ended.
    pub fn new(
        bound: Bound,
        engine: Arc<Engine>,
        mut stopping: watch::Receiver<bool>,
    ) -> io::Result<(Self, mpsc::Receiver<()>)> {
        let socket = match bound {
            Bound::Inet(listener) => Socket::Inet(TcpListener::from_std(listener)?),
            Bound::Unix(listener) => Socket::Unix(UnixListener::from_std(listener)?),
        };
        let (alive, ended) = mpsc::channel(1);
        let stop = Box::pin(async move {
            // An error means that the daemon itself is gone.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        });
        Ok((Self { socket: Some(socket), pause: None, stop, engine, alive }, ended))
    }

    /// The next connection. Pending for ever once it is told to stop.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<(Transport, Alive)> {
        let Some(socket) = &self.socket else { return Poll::Pending };
        if self.stop.as_mut().poll(cx).is_ready() {
            self.socket = None;
            // A sender that nobody waits for takes the place of ours.
            self.alive = mpsc::channel(1).0;
            return Poll::Pending;
        }
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let accepted = match socket {
                Socket::Inet(listener) => {
                    ready!(listener.poll_accept(cx)).map(|(stream, _)| Transport::inet(stream))
                }
                Socket::Unix(listener) => {
                    ready!(listener.poll_accept(cx)).map(|(stream, _)| Transport::Unix(stream))
                }
            };
            match accepted {
                Ok(transport) => return Poll::Ready((transport, self.alive.clone())),
                Err(error) => {
                    self.engine.failed(Failure::Accept, &error);
                    // What the peer did is over; what we lack is still lacking.
                    if error.kind() != ErrorKind::ConnectionAborted {
                        self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    }
                }
            }
        }
    }
}

/// A connection of either kind.
pub enum Transport {
    /// Over TCP.
    Inet(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Transport {
    fn inet(stream: TcpStream) -> Self {
        // Every reply is one small write that the MTA waits for.
        let _ = stream.set_nodelay(true);
        Self::Inet(stream)
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Inet(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Inet(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has it; there is nothing of ours to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Inet(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
