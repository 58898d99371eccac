//! The policy front: Postfix's SMTPD_POLICY delegation protocol.
//!
//! A request is a list of `name=value` lines that ends with an empty one, and so is the answer.
//! A connection belongs to an smtpd process and serves many SMTP sessions, one after the other.
//! [`request`] reads what is asked; [`desk`] knows what was asked before and answers.

pub mod desk;
pub mod request;

use std::fmt::Write;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::time::interval;

pub use self::desk::Desk;
use self::request::{Action, Garbage, Request};
use super::listener::{Bound, Serving, Stopping};
use super::transport::Transport;
use crate::engine::{Door, Engine};

/// The longest request taken, in bytes. Postfix's own are below 4 KiB.
const LONGEST_REQUEST: usize = 64 << 10;

/// How often a connection may send what is no request, before it is closed. A few are forgiven:
/// Postfix waits for a second before it connects again.
const MOST_GARBAGE: u8 = 8;

/// How long a connection may be silent. Postfix closes an idle one after minutes; what is silent
/// for longer belongs to a host that is gone.
const LONGEST_SILENCE: Duration = Duration::from_secs(2 * 3_600);

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
    let mut stream = BufReader::new(transport);
    let (mut text, mut answer) = (Vec::new(), String::new());
    let (mut garbage, mut stopped, mut heard) = (0, false, true);
    // These last as long as the connection: to begin them anew for each request would cost as much
    // as to decide it.
    let mut stop = pin!(stopping.wait_for(Option::is_some));
    let mut look = interval(LONGEST_SILENCE);
    loop {
        text.clear();
        let came = loop {
            tokio::select! {
                biased;
                came = next(&mut stream, &mut text) => break came,
                _ = &mut stop, if !stopped => {
                    // Between two requests nothing is lost: Postfix connects again.
                    if text.is_empty() {
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
            Ok(Came::Request) => Request::parse(&text),
            Ok(Came::TooMuch) => Err(Garbage::TooLong),
            Ok(Came::Nothing) | Err(_) => return,
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
        let written = stream.get_ref().write_all(answer.as_bytes()).await;
        if written.is_err() || garbage >= MOST_GARBAGE || stopped {
            return;
        }
    }
}

/// What came before the connection fell silent.
enum Came {
    /// A request, whole.
    Request,
    /// The end.
    Nothing,
    /// More than any request has.
    TooMuch,
}

/// Reads up to the empty line, behind what an earlier call has left in `text`.
async fn next(stream: &mut BufReader<Transport>, text: &mut Vec<u8>) -> io::Result<Came> {
    loop {
        let room = LONGEST_REQUEST - text.len();
        let read = (&mut *stream).take(room as u64).read_until(b'\n', text).await?;
        if ends(text) {
            return Ok(Came::Request);
        }
        if text.len() >= LONGEST_REQUEST {
            return Ok(Came::TooMuch);
        }
        if read == 0 || text.last() != Some(&b'\n') {
            return Ok(Came::Nothing);
        }
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
