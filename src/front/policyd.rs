//! The policy front: Postfix's SMTPD_POLICY delegation protocol.
//!
//! A request is a list of `name=value` lines that ends with an empty one, and so is the answer.
//! A connection belongs to an smtpd process and serves many SMTP sessions, one after the other.
//! [`request`] reads what is asked; [`desk`] knows what was asked before and answers.

pub mod desk;
pub mod request;

use std::fmt::Write;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::yield_now;
use tokio::time::interval;

pub use self::desk::Desk;
use self::request::{Action, Garbage, Request};
use super::listener::{Bound, Serving, Stopping};
use super::transport::Transport;
use crate::engine::{Door, Engine};

/// The longest request taken, in bytes. Postfix's own are below 4 KiB.
const LONGEST_REQUEST: usize = 64 << 10;

/// What is read at once, in bytes: as a rule a whole request.
const READ: usize = 4 << 10;

/// How often a connection may send what is no request, before it is closed. A few are forgiven:
/// Postfix waits for a second before it connects again.
const MOST_GARBAGE: u8 = 8;

/// How long a connection may be silent. Postfix closes an idle one after minutes; what is silent
/// for longer belongs to a host that is gone.
const LONGEST_SILENCE: Duration = Duration::from_secs(2 * 3_600);

/// The most memory that the desk takes, in bytes, whatever is asked: answers (some 700 bytes each), and
/// sessions with the longest names (some 5 KiB each, of which there are half as many as questions).
pub const MOST_MEMORY: usize = 256 << 20;

/// Serves a socket until the service stops; requests under way are answered, unless the grace is
/// over.
pub async fn serve(
    bound: Bound,
    engine: Arc<Engine>,
    door: Door,
    desk: Arc<Desk>,
    serving: Serving,
) -> io::Result<()> {
    engine.will_be_asked();
    let asked = engine.clone();
    let converse = move |transport, stopping| {
        let (engine, door, desk) = (asked.clone(), door.clone(), desk.clone());
        async move { converse(transport, &engine, &door, &desk, stopping).await }
    };
    serving.accept(bound, engine, converse).await
}

async fn converse(
    transport: Transport,
    engine: &Arc<Engine>,
    door: &Door,
    desk: &Desk,
    mut stopping: Stopping,
) {
    let (mut incoming, mut answer) = (Incoming::new(transport), String::new());
    let (mut garbage, mut stopped, mut heard) = (0, false, true);
    // These last as long as the connection: to begin them anew for each request would cost as much
    // as to decide it.
    let mut stop = pin!(stopping.wait_for(Option::is_some));
    let mut look = interval(LONGEST_SILENCE);
    loop {
        let came = loop {
            tokio::select! {
                biased;
                came = poll_fn(|cx| incoming.poll_next(cx)) => break came,
                _ = &mut stop, if !stopped => {
                    // Between two requests nothing is lost: Postfix connects again.
                    if incoming.text.is_empty() {
                        return;
                    }
                    stopped = true;
                }
                _ = look.tick() => {
                    if !std::mem::take(&mut heard) {
                        return;
                    }
                }
            }
        };
        heard = true;
        let request = match came {
            Came::Request(end) => Request::parse(&incoming.text[..end]),
            Came::TooMuch => Err(Garbage::TooLong),
            Came::Nothing => return,
        };
        if request.as_ref().is_ok_and(|request| request.stress) {
            engine.telemetry().under_stress();
        }
        let action = request.map(|request| desk.answer(&request, engine, door));
        let action = action.unwrap_or_else(|what| {
            engine.failed(what.failure(), &what);
            garbage += match what {
                // Without an end nobody knows where the next one begins.
                Garbage::TooLong => MOST_GARBAGE,
                Garbage::NoAttribute | Garbage::NoRequest | Garbage::NoClient => 1,
                Garbage::UnknownClient => 0,
            };
            Action::Dunno
        });
        answer.clear();
        // A string takes everything.
        let _ = write!(answer, "action={action}\n\n");
        let written = incoming.transport.write_all(answer.as_bytes()).await;
        if written.is_err() || garbage >= MOST_GARBAGE || stopped {
            return;
        }
        if let Came::Request(end) = came {
            incoming.forget(end);
        }
        // Postfix waits for the answer. One that does not leaves others their turn.
        if !incoming.text.is_empty() {
            yield_now().await;
        }
    }
}

/// What came before the connection fell silent.
#[derive(Clone, Copy)]
enum Came {
    /// A request, whole, of so many bytes.
    Request(usize),
    /// The end.
    Nothing,
    /// More than any request has.
    TooMuch,
}

/// What comes on a connection. Between two requests it takes [`READ`] bytes, and half a request as
/// much as has come.
struct Incoming {
    transport: Transport,
    /// What has come and was not answered.
    text: Vec<u8>,
    /// Up to where it is known that no request ends.
    looked: usize,
}

impl Incoming {
    fn new(transport: Transport) -> Self {
        Self { transport, text: Vec::new(), looked: 0 }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        loop {
            let mut lines = memchr::memchr_iter(b'\n', &self.text[self.looked..]);
            let looked = self.looked;
            let end =
                lines.find_map(|at| Some(looked + at + 1).filter(|end| ends(&self.text[..*end])));
            if let Some(end) = end {
                return Poll::Ready(Came::Request(end));
            }
            self.looked = self.text.len();
            if self.text.len() >= LONGEST_REQUEST {
                return Poll::Ready(Came::TooMuch);
            }
            let mut room = [MaybeUninit::uninit(); READ];
            let mut came = ReadBuf::uninit(&mut room);
            let read = ready!(Pin::new(&mut self.transport).poll_read(cx, &mut came));
            let came = came.filled();
            if read.is_err() || came.is_empty() {
                return Poll::Ready(Came::Nothing);
            }
            if self.text.capacity() < self.text.len() + came.len() {
                self.text.reserve_exact(came.len());
            }
            self.text.extend_from_slice(came);
        }
    }

    /// The request of so many bytes is answered.
    fn forget(&mut self, end: usize) {
        self.text.drain(..end);
        if self.text.is_empty() && self.text.capacity() > READ {
            self.text = Vec::new();
        }
        self.looked = 0;
    }
}

/// Whether the last line is empty. People try it by hand, with tools that end lines as SMTP does.
fn ends(text: &[u8]) -> bool {
    let Some(text) = text.strip_suffix(b"\n") else { return false };
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    text.last().is_none_or(|last| *last == b'\n')
}

#[cfg(test)]
mod tests;
