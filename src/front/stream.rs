//! What indymilter listens on, and reads from.
//!
//! indymilter 0.3 ends its service at the first error of accept and drops sessions at shutdown,
//! which [`Acceptor`] does not; and it gives up at some frames, which [`Frames`] rewrites or names.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::frames::Frames;
use super::listener::{Acceptor, Alive, Transport};
use crate::engine::Engine;
use crate::telemetry::Failure;

/// A listener for indymilter.
pub struct Listener {
    /// Accepts.
    pub acceptor: Acceptor,
    /// Where what is wrong with a stream is counted.
    pub engine: Arc<Engine>,
    /// Whether the daemon is about to end.
    pub stopping: watch::Receiver<bool>,
}

impl indymilter::Listener for Listener {
    type Io = Stream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let (transport, alive) = ready!(self.acceptor.poll_accept(cx));
        Poll::Ready(Ok(Stream {
            transport,
            frames: Frames::default(),
            came: Vec::new(),
            read: 0,
            over: Over::NotYet,
            engine: self.engine.clone(),
            stopping: self.stopping.clone(),
            _alive: alive,
        }))
    }
}

/// The stream of one milter connection, its frames watched.
pub struct Stream {
    transport: Transport,
    frames: Frames,
    /// What came and has not been read yet.
    came: Vec<u8>,
    read: usize,
    over: Over,
    engine: Arc<Engine>,
    stopping: watch::Receiver<bool>,
    _alive: Alive,
}

/// Who ended the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Nobody yet; dropped now, it was us.
    NotYet,
    /// The MTA, or an error that has been counted.
    Done,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let ended_by_us = self.over == Over::NotYet && !self.frames.quit();
        if ended_by_us && !*self.stopping.borrow() {
            let detail = "a command that could not be read, or none for two hours";
            self.engine.failed(Failure::Frame, &detail);
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
            // It is used for the connect frame only, and for frames that came torn.
            this.came = Vec::new();
            this.read = 0;
            let before = buf.filled().len();
            if let Err(error) = ready!(Pin::new(&mut this.transport).poll_read(cx, buf)) {
                this.over = Over::Done;
                return Poll::Ready(Err(error));
            }
            let came = &buf.filled()[before..];
            if came.is_empty() {
                this.over = Over::Done;
                return Poll::Ready(Ok(()));
            }
            // Nearly always there is nothing to change, and so nothing to copy.
            if this.frames.pass_whole(came) {
                return Poll::Ready(Ok(()));
            }
            if let Err(nonsense) = this.frames.pass(came, &mut this.came) {
                this.over = Over::Done;
                this.engine.failed(Failure::Frame, &nonsense);
                return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, nonsense)));
            }
            buf.set_filled(before);
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
        let written = ready!(Pin::new(&mut this.transport).poll_write(cx, bytes));
        if written.is_err() {
            this.over = Over::Done;
        }
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}
