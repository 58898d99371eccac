//! The control front: what `postpone ctl` asks the daemon, over a unix socket.
//!
//! It shares the main thread with signals and metrics, so whatever a peer does is bounded: who it
//! is, the length of a line, how long a line and its answer may take, and how many there are. The
//! mail path never sees it. [`protocol`] has the words.

pub mod desk;
pub mod protocol;
pub mod status;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, User};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::warn;

use self::desk::Desk;
use self::protocol::{Answer, Kind, Trouble};
use super::guests::Guests;
use super::listener::{ACCEPT_PAUSE, Bound};
use crate::clock::Time;
use crate::telemetry::Failure;

/// Connections at once.
const CONNECTIONS: usize = 64;

/// How long a request may take to come, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest line taken, in bytes; a request is some hundred. What is wrong with one is answered in
/// its own words, which are up to eight times as long when they are escaped.
const LONGEST_LINE: usize = 4 << 10;

/// How often a line tells of peers that were turned away at most.
const REFUSAL_LINE_EVERY: Duration = Duration::from_secs(10);

/// Who may ask.
#[derive(Clone, Debug)]
pub struct Peers {
    /// Users by their number.
    users: Vec<u32>,
    /// The group of the socket.
    group: u32,
}

impl Peers {
    /// Root, the daemon's own user, the owner of this socket, and members of its group, as they
    /// are now.
    pub fn of(socket: &Path) -> io::Result<Self> {
        let socket = fs::metadata(socket)?;
        let members = Group::from_gid(Gid::from_raw(socket.gid())).ok().flatten();
        let members = members.map(|group| group.mem).unwrap_or_default();
        let members = members.iter().filter_map(|name| User::from_name(name).ok().flatten());
        let mut users: Vec<_> = members.map(|user| user.uid.as_raw()).collect();
        users.extend([0, rustix::process::geteuid().as_raw(), socket.uid()]);
        Ok(Self { users, group: socket.gid() })
    }

    fn admit(&self, peer: &UCred) -> bool {
        self.users.contains(&peer.uid()) || self.group == peer.gid()
    }
}

/// The bound socket, and who may ask there.
pub struct Socket {
    listener: std::os::unix::net::UnixListener,
    peers: Peers,
}

impl Socket {
    /// Another handle of the same socket.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self { listener: self.listener.try_clone()?, peers: self.peers.clone() })
    }

    /// Takes what was bound at this path. Who asks before it is served waits.
    pub fn new(bound: Bound, path: &Path) -> io::Result<Self> {
        bound.listen()?;
        match bound {
            Bound::Unix(listener) => Ok(Self { listener, peers: Peers::of(path)? }),
            Bound::Inet(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "no unix socket")),
        }
    }
}

/// Serves until the runtime ends.
pub async fn serve(socket: Socket, desk: Desk) -> io::Result<()> {
    let Socket { listener, peers } = socket;
    let (listener, desk) = (UnixListener::from_std(listener)?, Arc::new(desk));
    let mut guests = Guests::new(CONNECTIONS, desk.engine.clone());
    let mut refusals = Refusals::default();
    loop {
        let accepted = listener.accept().await;
        let peer = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream)));
        match peer {
            Ok((peer, stream)) if peers.admit(&peer) => {
                guests.take(converse(stream, peer, desk.clone())).await;
            }
            Ok((peer, stream)) => refusals.refuse(&stream, &peer, desk.engine.now()),
            Err(error) => {
                desk.engine.failed(Failure::Accept, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Peers that were turned away.
#[derive(Default)]
struct Refusals {
    last_told: Option<Time>,
    untold: u64,
}

impl Refusals {
    /// Says so, without waiting for anything, and logs it once in a while.
    fn refuse(&mut self, stream: &UnixStream, peer: &UCred, now: Time) {
        let message = format!(
            "user {} may not use the control socket: only root, the daemon's user, its owner and \
             its group may",
            peer.uid()
        );
        // It has never been written to, so there is room; or its peer is gone.
        let _ =
            stream.try_write(&line(&Answer::Error(Trouble { kind: Kind::Permission, message })));
        self.untold += 1;
        let quiet = |told: Time| now.is_within(REFUSAL_LINE_EVERY, told);
        if !self.last_told.is_some_and(quiet) {
            let (uid, gid, pid) = (peer.uid(), peer.gid(), peer.pid());
            warn!(uid, gid, pid, times = self.untold, "control: access denied");
            *self = Self { last_told: Some(now), untold: 0 };
        }
    }
}

async fn converse(stream: UnixStream, peer: UCred, desk: Arc<Desk>) {
    let mut stream = BufReader::new(stream);
    let mut text = Vec::new();
    loop {
        text.clear();
        let mut bounded = (&mut stream).take(LONGEST_LINE as u64);
        match timeout(PATIENCE, bounded.read_until(b'\n', &mut text)).await {
            Ok(Ok(1..)) => {}
            // It has hung up, or says nothing.
            Ok(Ok(0) | Err(_)) | Err(_) => return,
        }
        let ends = text.ends_with(b"\n");
        let answer = match ends || text.len() < LONGEST_LINE {
            true => desk.answer(&text, &peer).await,
            false => Answer::Error(Trouble {
                kind: Kind::Request,
                message: format!("expected a line of less than {LONGEST_LINE} bytes"),
            }),
        };
        let written = timeout(PATIENCE, stream.write_all(&line(&answer))).await;
        // Without its end nobody knows where the next line begins.
        if !ends || !matches!(written, Ok(Ok(()))) {
            return;
        }
        // Others have their turn, however fast this one asks.
        yield_now().await;
    }
}

fn line(answer: &Answer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}
