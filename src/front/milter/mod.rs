//! The milter front: Sendmail's mail filter protocol (libmilter's mfdef.h, version 6).
//!
//! A connection is one task: one read takes all frames that came, `talk` turns them into events
//! and answers, one write says the answers. Between two frames a connection has nothing but its
//! session; a frame that came in half is kept as far as it has come.
//!
//! The words are indymilter's; its run loop is not used: `src/lib.rs` says why, and
//! `tests/milter_oracle.rs` holds ours against it.

mod macros;
mod negotiation;
mod order;
mod overheard;
mod talk;
mod wire;

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::yield_now;
use tokio::time::sleep;

#[doc(hidden)]
pub use self::overheard::overheard;
use self::talk::{Heard, House, Talk};
use self::wire::Nonsense;
use super::listener::{Bound, Serving};
use super::transport::Transport;
use crate::engine::{Door, Engine};
use crate::telemetry::Failure;

/// Serves a socket until the service stops.
pub async fn serve(
    bound: Bound,
    engine: Arc<Engine>,
    door: Door,
    serving: Serving,
) -> io::Result<()> {
    let house = Arc::new(House { engine: engine.clone(), door, called: Mutex::default() });
    serving.accept(bound, engine, move |transport, _| converse(transport, house.clone())).await
}

/// How long an MTA may say nothing: its own time for a command is five minutes, for a message an
/// hour or two. libmilter's time.
const LONGEST_SILENCE: Duration = Duration::from_secs(2 * 3_600);

/// How often it is looked whether a connection is silent: not a timer a frame.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// What is read at once: more than an MTA says at a step.
const READ: usize = 4 << 10;

/// By how much the room for half a frame grows.
const STEP: usize = 4 << 10;

/// Room for answers that a connection keeps: those of nearly every step.
const KEPT: usize = 256;

/// The most memory that one connection takes, in bytes, whatever its MTA says: half of the longest
/// frame (72 KiB), answers that wait to be written (20 KiB), what macros have told (1 KiB), and the
/// session with what it must give back, above all 1,024 charges of a message for many domains.
pub const WORST_SESSION: usize = 192 << 10;

/// The MTA that says no more, or to which nothing more is said.
#[derive(Debug)]
enum End {
    /// It has said so, or is gone.
    Gone,
    /// It has sent what makes no sense.
    Nonsense(Nonsense),
    /// It does not read what it is told.
    Stalled,
    /// It has been silent for two hours.
    Silent,
}

async fn converse(transport: Transport, house: Arc<House>) {
    let mut connection = Connection {
        talk: Talk::new(house.clone()),
        transport,
        rest: Vec::new(),
        out: Vec::with_capacity(KEPT),
        pours: false,
    };
    let failed = |detail: &dyn std::fmt::Display| house.engine.failed(Failure::Frame, detail);
    match connection.run().await {
        End::Gone => {}
        End::Nonsense(nonsense) => failed(&nonsense),
        End::Stalled => failed(&"an MTA has not read its answers for ten seconds"),
        End::Silent => failed(&"an MTA has been silent for two hours"),
    }
}

struct Connection {
    /// The first to be dropped: who sees the connection end finds its session given back.
    talk: Talk,
    transport: Transport,
    /// What came and has not been heard: half a frame, or what waits until answers are written. At
    /// most the longest frame and one read.
    rest: Vec<u8>,
    /// Answers to be written.
    out: Vec<u8>,
    /// Whether there was more to read than is read at once.
    pours: bool,
}

impl Connection {
    async fn run(&mut self) -> End {
        let (mut looks, mut silent) = (pin!(sleep(LOOK_EVERY)), Duration::ZERO);
        loop {
            let heard = tokio::select! {
                biased;
                heard = poll_fn(|cx| self.poll_hear(cx)) => heard,
                () = &mut looks => {
                    silent += LOOK_EVERY;
                    if silent > LONGEST_SILENCE {
                        return End::Silent;
                    }
                    let next = looks.deadline() + LOOK_EVERY;
                    looks.as_mut().reset(next);
                    continue;
                }
            };
            silent = Duration::ZERO;
            let Some(mut heard) = heard else { return End::Gone };
            loop {
                if let Err(end) = self.write().await {
                    return end;
                }
                match heard {
                    Heard::All => break,
                    Heard::Enough => heard = self.hear(&[]),
                    Heard::TheEnd => return End::Gone,
                    Heard::Nonsense(nonsense) => return End::Nonsense(nonsense),
                }
            }
            // Others have their turn, and the time is looked at, however much this one says.
            if self.pours {
                yield_now().await;
            }
        }
    }

    /// Reads what came, and hears it; nothing, if the MTA is gone.
    fn poll_hear(&mut self, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        let mut room = [MaybeUninit::uninit(); READ];
        let mut came = ReadBuf::uninit(&mut room);
        let read = ready!(Pin::new(&mut self.transport).poll_read(cx, &mut came));
        let came = came.filled();
        self.pours = came.len() == READ;
        Poll::Ready((read.is_ok() && !came.is_empty()).then(|| self.hear(came)))
    }

    fn hear(&mut self, came: &[u8]) -> Heard {
        if self.rest.is_empty() {
            let mut rest = came;
            let heard = self.talk.hear(&mut rest, &mut self.out);
            self.rest.extend_from_slice(rest);
            return heard;
        }
        if self.rest.capacity() < self.rest.len() + came.len() {
            self.rest.reserve_exact(came.len().max(STEP));
        }
        self.rest.extend_from_slice(came);
        let mut rest = &self.rest[..];
        let heard = self.talk.hear(&mut rest, &mut self.out);
        match rest.len() {
            0 => self.rest = Vec::new(),
            left => drop(self.rest.drain(..self.rest.len() - left)),
        }
        heard
    }

    async fn write(&mut self) -> Result<(), End> {
        let written = self.transport.write_all(&self.out).await;
        self.out.clear();
        self.out.shrink_to(KEPT);
        written.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => End::Stalled,
            _ => End::Gone,
        })
    }
}
