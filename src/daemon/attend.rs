//! What the main thread does while workers serve: signals, reloads, the sweep.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal as Number;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::log::Logging;
use super::reload::Reloads;
use super::service::Service;
use crate::engine::Engine;
use crate::front::control::protocol::Reloaded;
use crate::front::control::status::{Refused, Settings};
use crate::store::keeper::Keeper;
use crate::telemetry::Failure;

/// How often some of what has faded is forgotten.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// In how many steps all of memory is swept: at ten million entries, each takes some five
/// milliseconds of the main thread, and locks none of it for more than some microseconds.
const SWEEP_PARTS: usize = 32;

/// Signals that would end the process by default, and that nobody sends to end it. Those that tell of
/// a fault of ours, and the real-time ones, stay as they are.
const MEANINGLESS: [Number; 7] = [
    Number::SIGUSR1,
    Number::SIGUSR2,
    Number::SIGALRM,
    Number::SIGVTALRM,
    Number::SIGPROF,
    Number::SIGIO,
    Number::SIGPWR,
];

/// What is watched before anything is read: a signal that means no end must not be one because it
/// comes early. A reload that is asked for then is done once the daemon serves.
pub struct Early {
    pub(super) runtime: Runtime,
    pub(super) hangup: Signal,
}

impl Early {
    /// Watches from now on, with the main thread's runtime. No thread is started.
    pub fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let hangup = signal(SignalKind::hangup())?;
        // Tokio's handler stays when nobody listens any more.
        for number in MEANINGLESS {
            drop(signal(SignalKind::from_raw(number as i32))?);
        }
        drop(inside);
        Ok(Self { runtime, hangup })
    }
}

/// Signals that mean something to us.
pub(super) struct Signals {
    hangup: Signal,
    deadly: Deadly,
}

impl Signals {
    /// Watches those too that end a daemon, from now on: before it serves, nothing is to be saved.
    pub(super) fn new(hangup: Signal) -> io::Result<Self> {
        Ok(Self { hangup, deadly: Deadly::new()? })
    }
}

/// Signals that end the daemon.
pub(super) struct Deadly {
    terminate: Signal,
    interrupt: Signal,
}

impl Deadly {
    pub(super) fn new() -> io::Result<Self> {
        let [terminate, interrupt] = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt? })
    }

    /// Waits for the next.
    pub(super) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Why it is time to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Somebody wants it.
    BySignal,
    /// What was to run as long as the daemon does has ended: something is badly wrong.
    ByEnd(String),
}

/// What is looked after.
pub(super) struct Attendant<'a> {
    pub(super) engine: &'a Engine,
    pub(super) listeners: &'a [Arc<str>],
    /// What status tells of the settings.
    pub(super) settings: &'a Mutex<Settings>,
    pub(super) logging: &'a Logging,
    pub(super) reloads: &'a Reloads<'a>,
    /// Who keeps state, if anybody does.
    pub(super) keeper: Option<&'a Keeper>,
    /// Which part of what runs as long as the daemon does has ended.
    pub(super) ended: &'a (dyn Fn() -> Option<String> + 'a),
    pub(super) service: &'a Service,
}

impl Attendant<'_> {
    /// Reloads and sweeps until it is time to stop.
    pub(super) async fn attend(
        &self,
        signals: &mut Signals,
        asked: &mut mpsc::Receiver<oneshot::Sender<Reloaded>>,
    ) -> Told {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut lost_lines = 0;
        let (mut reload, mut answer) = (None, None);
        loop {
            tokio::select! {
                () = signals.deadly.recv() => return Told::BySignal,
                _ = signals.hangup.recv(), if reload.is_none() => {
                    reload = Some(Box::pin(self.reload()));
                }
                Some(to) = asked.recv(), if reload.is_none() => {
                    (reload, answer) = (Some(Box::pin(self.reload())), Some(to));
                }
                reloaded = ended(&mut reload) => {
                    reload = None;
                    if let Some(to) = answer.take() {
                        // Who asked may have gone.
                        let _: Result<(), Reloaded> = to.send(reloaded);
                    }
                }
                _ = sweep.tick() => {
                    self.engine.tell_maintenance(self.listeners);
                    self.engine.sweep(SWEEP_PARTS);
                    self.tell_lost_lines(&mut lost_lines);
                    // Until it is done, a reload is what there is to tell.
                    if reload.is_none() {
                        self.service.tell(self.engine, self.listeners);
                    }
                    self.keeper.inspect(|keeper| keeper.tend());
                    if let Some(name) = (self.ended)() {
                        return Told::ByEnd(name);
                    }
                }
            }
        }
    }

    async fn reload(&self) -> Reloaded {
        self.service.reloading();
        let reloaded = self.reloads.reload().await;
        self.note(&reloaded);
        self.engine.tell_maintenance(self.listeners);
        self.service.reloaded(reloaded.done, self.engine, self.listeners);
        reloaded
    }

    fn note(&self, reloaded: &Reloaded) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.engine.now();
        if reloaded.done {
            (settings.loaded, settings.refused) = (at, None);
            settings.replaced.clone_from(&reloaded.replaced);
            settings.file.clone_from(&reloaded.file);
        } else {
            settings.refused = Some(Refused { at, why: reloaded.why.clone() });
        }
    }

    fn tell_lost_lines(&self, known: &mut usize) {
        let lost = self.logging.lost_lines();
        if lost > *known {
            let detail = format_args!("{} lines could not be written", lost - *known);
            self.engine.failed(Failure::Log, &detail);
            *known = lost;
        }
    }
}

/// Waits for what is under way, for ever if there is nothing.
async fn ended<F: Future + Unpin>(under_way: &mut Option<F>) -> F::Output {
    match under_way {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}
