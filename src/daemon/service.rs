//! What a service manager hears of us, by sd_notify(3), and how it learns that we hang.
//!
//! Where nobody listens nothing is said, and what goes wrong here is our manager's loss, never the
//! mail's. The words are `sd-notify`'s. The socket is ours: the crate's would wait for a manager
//! that is stuck, and finds none with an abstract address.

use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::fmt::{Display, Write};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::{debug, error, info};

use super::sampler::delay::Lateness;
use crate::engine::Engine;
use crate::front::control::status::whole;
use crate::policy::by_hand::Scope;

/// What a manager gives its service to find it; our children have no business with it.
pub(super) const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// How long saving state may take after the last session has ended, before the manager may think
/// that we hang. Ten million entries take some seconds.
const SAVING: Duration = Duration::from_secs(120);

/// The longest time between two signs of life of a worker, while there is a watchdog.
const LONGEST_BEAT: Duration = Duration::from_secs(1);

/// The manager of this process, if it has one that listens.
pub(super) struct Service {
    socket: Option<Socket>,
    watchdog: Option<Duration>,
    /// The status that was said last.
    said: Mutex<String>,
    /// Whether the settings of the file are not those in force.
    refused: AtomicBool,
}

struct Socket {
    address: SocketAddr,
    socket: UnixDatagram,
}

impl Service {
    /// As the environment says it. Before the process is confined: afterwards an abstract address
    /// could not be reached.
    pub(super) fn of_environment() -> Self {
        let named = env::var_os("NOTIFY_SOCKET");
        let socket = named.and_then(|name| Socket::connect(&name).ok());
        let watchdog = sd_notify::watchdog_enabled().filter(|_| socket.is_some());
        Self { socket, watchdog, said: Mutex::default(), refused: AtomicBool::new(false) }
    }

    /// It starts, and has not got as far as to serve.
    pub(super) fn starting(&self) {
        self.say("starting: reading state", &[]);
    }

    /// From now on who comes is served.
    pub(super) fn serving(&self, engine: &Engine, listeners: &[Arc<str>]) {
        if self.socket.is_some() {
            self.say(&self.status(engine, listeners), &[NotifyState::Ready]);
        }
    }

    /// How it is now; said only when it is not what was said last.
    pub(super) fn tell(&self, engine: &Engine, listeners: &[Arc<str>]) {
        if self.socket.is_none() {
            return;
        }
        let status = self.status(engine, listeners);
        let news = *self.said.lock().unwrap_or_else(PoisonError::into_inner) != status;
        if news {
            self.say(&status, &[]);
        }
    }

    /// Other settings are read. [`Service::reloaded`] says how that ended.
    pub(super) fn reloading(&self) {
        // Since version 253 systemd wants to know when it began; without that it would wait for
        // nothing, so better not to say it at all.
        if let Ok(begun) = NotifyState::monotonic_usec_now() {
            self.say("reading the settings again", &[NotifyState::Reloading, begun]);
        }
    }

    /// They are in force, or the old ones still are.
    pub(super) fn reloaded(&self, done: bool, engine: &Engine, listeners: &[Arc<str>]) {
        self.refused.store(!done, Ordering::Relaxed);
        self.serving(engine, listeners);
    }

    /// It stops, and sessions may go on for so long.
    pub(super) fn stopping(&self, engine: &Engine, grace: Duration) {
        let sessions = sessions(engine.telemetry().totals().sessions);
        let status = format!("stopping: {sessions} may finish within {} s", grace.as_secs());
        self.say(&status, &[NotifyState::Stopping, extended(grace.saturating_add(SAVING))]);
    }

    /// The last session has ended.
    pub(super) fn saving(&self) {
        self.say("stopping: saving state", &[extended(SAVING)]);
    }

    /// It cannot serve, or could not any more.
    pub(super) fn failed(&self, trouble: &dyn Display) {
        self.say(&trouble.to_string(), &[]);
    }

    /// Waits for this, and keeps the watchdog content meanwhile.
    pub(super) async fn alive_while<T>(
        &self,
        lateness: &Lateness,
        waited_for: impl Future<Output = T>,
    ) -> T {
        tokio::select! {
            ended = waited_for => ended,
            never = self.kept_alive(lateness) => match never {},
        }
    }

    /// Tells the watchdog that we live, twice as often as it wants to hear it, while every worker
    /// does. One that hangs leaves it without a word, and the manager starts us again.
    async fn kept_alive(&self, lateness: &Lateness) -> Infallible {
        let Some(interval) = self.watchdog.map(|limit| limit / 2).filter(|half| !half.is_zero())
        else {
            return std::future::pending().await;
        };
        lateness.watch((interval / 4).min(LONGEST_BEAT));
        let mut ticks = tokio::time::interval(interval);
        let mut hung = false;
        loop {
            ticks.tick().await;
            match (lives(lateness.overdue(), interval), hung) {
                (true, _) => {
                    if hung {
                        info!("all workers answer again");
                    }
                    hung = false;
                    self.send(&[NotifyState::Watchdog]);
                }
                (false, false) => {
                    error!(
                        "a worker hangs: no keep-alive is sent to the watchdog until it answers"
                    );
                    hung = true;
                }
                (false, true) => {}
            }
        }
    }

    fn status(&self, engine: &Engine, listeners: &[Arc<str>]) -> String {
        let (totals, load) = (engine.telemetry().totals(), engine.memory().load.level());
        let mut status = String::new();
        if let Some(bypass) = engine.lifted().iter().find(|it| it.scope == Scope::Everything) {
            let _ = write!(status, "bypass until {}: everything passes; ", whole(bypass.until));
        }
        for (listener, closure) in engine.closures(listeners) {
            let of = listener.map_or_else(String::new, |listener| format!(" of {listener}"));
            let _ = write!(status, "maintenance{of} until {}; ", whole(closure.until));
        }
        let _ = write!(status, "serving: {}, load {}", sessions(totals.sessions), load.name());
        if totals.loading {
            status.push_str("; state is still being read");
        }
        if self.refused.load(Ordering::Relaxed) {
            status.push_str("; the settings in the file were refused, see the log");
        }
        status
    }

    fn say(&self, status: &str, states: &[NotifyState<'_>]) {
        // What comes after the end of a line would be another message.
        let status = &status.replace(char::is_control, " ");
        let states: Vec<_> = states.iter().cloned().chain([NotifyState::Status(status)]).collect();
        self.send(&states);
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone_from(status);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let words: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send(&words) {
            debug!(%error, "the service manager cannot be notified");
        }
    }
}

impl Socket {
    fn connect(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // Whoever is not there yet may come.
        let _ = socket.connect_addr(&address);
        Ok(Self { address, socket })
    }

    fn send(&self, words: &str) -> io::Result<()> {
        // A manager that was started again has another socket of the same name.
        if self.socket.send(words.as_bytes()).is_err() {
            self.socket.connect_addr(&self.address)?;
            self.socket.send(words.as_bytes())?;
        }
        Ok(())
    }
}

fn sessions(open: u64) -> String {
    if open == 1 { "1 session".into() } else { format!("{open} sessions") }
}

fn extended(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

/// Whether workers that are overdue by so much still live. It is asked every `interval`, which is
/// half of what the manager waits: so it starts us again once one has hung for that long.
fn lives(overdue: Duration, interval: Duration) -> bool {
    overdue < interval
}
