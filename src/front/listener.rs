//! Listening sockets that survive trouble, and streams that are watched.
//!
//! indymilter ends its service at the first error of accept and drops sessions at shutdown. Here
//! an error is counted and accept tried again after a pause; and told to stop, a listener closes
//! its port at once while its streams go on.

use std::fs;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::fs::Mode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;

use super::address::Address;
use super::frames::Frames;
use crate::engine::Engine;
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
                // Until it has its owner and mode, nobody may use it.
                let before = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
                let listener = unix::UnixListener::bind(path);
                rustix::process::umask(before);
                let listener = listener?;
                ownership.apply(path)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
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

fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "exists and is no socket"));
    }
    match unix::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another process serves this socket")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

impl Ownership {
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
        std::os::unix::fs::chown(path, owner.transpose()?, group.transpose()?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode))
    }
}

/// A listener for indymilter.
pub struct Listener {
    socket: Option<Socket>,
    pause: Option<Pin<Box<Sleep>>>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    watched: Watched,
}

enum Socket {
    Inet(TcpListener),
    Unix(UnixListener),
}

/// What every stream of a listener knows of the daemon.
#[derive(Clone)]
struct Watched {
    engine: Arc<Engine>,
    stopping: watch::Receiver<bool>,
    /// Held, never used: when the last is dropped, the last stream has ended.
    alive: mpsc::Sender<()>,
}

/// How long accept rests after an error that another attempt would meet again at once: as a rule
/// EMFILE, until a session has ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Listener {
    /// Serves a bound socket on the current runtime until `stopping` becomes true. The receiver
    /// returned ends when the port is closed and the last stream has ended.
    pub fn new(
        bound: Bound,
        engine: Arc<Engine>,
        stopping: watch::Receiver<bool>,
    ) -> io::Result<(Self, mpsc::Receiver<()>)> {
        let socket = match bound {
            Bound::Inet(listener) => Socket::Inet(TcpListener::from_std(listener)?),
            Bound::Unix(listener) => Socket::Unix(UnixListener::from_std(listener)?),
        };
        let mut stop = stopping.clone();
        let (alive, ended) = mpsc::channel(1);
        let listener = Self {
            socket: Some(socket),
            pause: None,
            stop: Box::pin(async move {
                // An error means that the daemon itself is gone.
                let _ = stop.wait_for(|stopping| *stopping).await;
            }),
            watched: Watched { engine, stopping, alive },
        };
        Ok((listener, ended))
    }
}

impl indymilter::Listener for Listener {
    type Io = Stream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let Some(socket) = &self.socket else { return Poll::Pending };
        if self.stop.as_mut().poll(cx).is_ready() {
            self.socket = None;
            // No more streams: a sender that can never be used takes the place of ours.
            self.watched.alive = mpsc::channel(1).0;
            return Poll::Pending;
        }
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let accepted = match socket {
                Socket::Inet(listener) => {
                    ready!(listener.poll_accept(cx)).map(|(stream, _)| Transport::Inet(stream))
                }
                Socket::Unix(listener) => {
                    ready!(listener.poll_accept(cx)).map(|(stream, _)| Transport::Unix(stream))
                }
            };
            match accepted {
                Ok(transport) => {
                    return Poll::Ready(Ok(Stream::new(transport, self.watched.clone())));
                }
                Err(error) => {
                    self.watched.engine.failed(Failure::Accept, &error);
                    // What the peer did is over; what we lack is still lacking.
                    if error.kind() != ErrorKind::ConnectionAborted {
                        self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    }
                }
            }
        }
    }
}

enum Transport {
    Inet(TcpStream),
    Unix(UnixStream),
}

/// The stream of one milter connection, its frames watched.
pub struct Stream {
    transport: Transport,
    frames: Frames,
    /// What came and has not been read yet.
    came: Vec<u8>,
    read: usize,
    over: Over,
    watched: Watched,
}

/// Who ended the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Nobody yet; dropped now, it was us.
    NotYet,
    /// The MTA, or an error that has been counted.
    Done,
}

impl Stream {
    fn new(transport: Transport, watched: Watched) -> Self {
        if let Transport::Inet(stream) = &transport {
            // Every reply is one small write that the MTA waits for.
            let _ = stream.set_nodelay(true);
        }
        let (frames, came) = (Frames::default(), Vec::new());
        Self { transport, frames, came, read: 0, over: Over::NotYet, watched }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let ended_by_us = self.over == Over::NotYet && !self.frames.quit();
        if ended_by_us && !*self.watched.stopping.borrow() {
            let detail = "a command that could not be read, or none for two hours";
            self.watched.engine.failed(Failure::Frame, &detail);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read == this.came.len() {
            this.came.clear();
            this.read = 0;
            let mut bytes = [0; 2048];
            let mut part = ReadBuf::new(&mut bytes);
            let polled = match &mut this.transport {
                Transport::Inet(stream) => Pin::new(stream).poll_read(cx, &mut part),
                Transport::Unix(stream) => Pin::new(stream).poll_read(cx, &mut part),
            };
            if let Err(error) = ready!(polled) {
                this.over = Over::Done;
                return Poll::Ready(Err(error));
            }
            if part.filled().is_empty() {
                this.over = Over::Done;
                return Poll::Ready(Ok(()));
            }
            if let Err(nonsense) = this.frames.pass(part.filled(), &mut this.came) {
                this.over = Over::Done;
                this.watched.engine.failed(Failure::Frame, &nonsense);
                return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, nonsense)));
            }
        }
        let unread = &this.came[this.read..];
        let part = &unread[..unread.len().min(buf.remaining())];
        buf.put_slice(part);
        this.read += part.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(match &mut this.transport {
            Transport::Inet(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        });
        if written.is_err() {
            this.over = Over::Done;
        }
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has it; there is nothing of ours to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Inet(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
