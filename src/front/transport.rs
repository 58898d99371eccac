//! A connection of a front, over TCP or a unix socket: it reads what came, and writes for no longer
//! than the peer takes it.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;

/// A connection of either kind.
pub enum Transport {
    /// Over TCP.
    Inet(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

/// How long a write may get no further. What a front says is so little that the kernel takes it at
/// once; a peer that lets it pile up does not read.
const LONGEST_STALL: Duration = Duration::from_secs(10);

/// How long a write rests that has found no room. It nearly never does, so no timer and no interest
/// in room is kept for it.
const PAUSE: Duration = Duration::from_millis(50);

impl Transport {
    /// Writes all of it. An error of kind [`ErrorKind::TimedOut`] says that the peer does not read.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stalled = Duration::ZERO;
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    stalled = Duration::ZERO;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stalled >= LONGEST_STALL {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    sleep(PAUSE).await;
                    stalled += PAUSE;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
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
