//! Listening sockets that survive trouble.
//!
//! An error of accept is counted, and accept tried again after a pause; told to stop, the port is
//! closed at once while the connections go on, until the grace is over.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net as unix;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{self, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::address::Address;
use super::socket_file::{self, Ownership};
use crate::engine::Engine;
use crate::telemetry::Failure;

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
                // As long as the system allows; what is said a second time holds.
                net::listen(&listener, i32::MAX)?;
                Self::Inet(listener).prepared()
            }
            Address::Unix(path) => {
                socket_file::remove_stale(path)?;
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
                Self::Unix(listener).prepared()
            }
        }
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
    /// Becomes true when the daemon is about to end.
    pub stopping: watch::Receiver<bool>,
    /// How long connections may go on then.
    pub grace: Duration,
}

impl Serving {
    /// One that goes on until it is told, with so many places.
    pub fn new(places: usize, stopping: watch::Receiver<bool>, grace: Duration) -> Self {
        let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Self { places, stopping, grace }
    }

    /// Serves a bound socket on the current runtime. Told to stop, it closes the port, waits for the
    /// connections until the grace is over, and drops those that are left.
    pub(super) async fn accept<C>(
        self,
        bound: Bound,
        engine: Arc<Engine>,
        converse: impl Fn(Transport, watch::Receiver<bool>) -> C,
    ) -> io::Result<()>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let Self { places, mut stopping, grace } = self;
        let socket = Socket::new(bound)?;
        let mut connections = JoinSet::new();
        let told = stopping.clone();
        let mut stop = pin!(stopping.wait_for(|stopping| *stopping));
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
            let conversation = converse(transport, told.clone());
            connections.spawn(async move {
                conversation.await;
                drop(place);
            });
            while connections.try_join_next().is_some() {}
        }
        drop(socket);
        let _ = timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
        Ok(())
    }
}

enum Socket {
    Inet(TcpListener),
    Unix(UnixListener),
}

/// How long accept rests after an error that another attempt would meet again at once: as a rule
/// EMFILE, until a session has ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// A connection of either kind.
pub enum Transport {
    /// Over TCP.
    Inet(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Transport {
    /// Writes as much as the kernel takes now.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Inet(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
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
