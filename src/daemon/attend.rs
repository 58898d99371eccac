//! What the main thread does while workers serve: signals, reloads, the sweep.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::log::Logging;
use super::service::Service;
use crate::engine::Engine;
use crate::front::control::protocol::Reloaded;
use crate::front::control::status::{Refused, Settings};
use crate::telemetry::Failure;

/// How often some of what has faded is forgotten.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// In how many steps all of memory is swept: at ten million entries, each takes some five
/// milliseconds of the main thread, and locks none of it for more than some microseconds.
const SWEEP_PARTS: usize = 32;

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
        let meaningless = [SignalKind::user_defined1(), SignalKind::user_defined2()];
        for kind in meaningless.into_iter().chain([SignalKind::alarm(), SignalKind::io()]) {
            drop(signal(kind)?);
        }
        drop(inside);
        Ok(Self { runtime, hangup })
    }
}

/// Signals that mean something to us.
pub(super) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Watches those too that end a daemon, from now on: before it serves, nothing is to be saved.
    pub(super) fn new(hangup: Signal) -> io::Result<Self> {
        Ok(Self {
            hangup,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for an end. Metrics are still served; told to stop once more, nothing is waited for.
    pub(super) async fn until(&mut self, ended: impl Fn() -> bool) {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while !ended() {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = look.tick() => {}
            }
        }
    }
}

/// Why it is time to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Somebody wants it.
    BySignal,
    /// A worker ended before it was told to: something is badly wrong. The whole daemon ends, and
    /// the service manager starts it again.
    ByAWorker,
}

/// What is looked after.
pub(super) struct Attendant<'a> {
    pub(super) engine: &'a Engine,
    pub(super) listeners: &'a [Arc<str>],
    /// What status tells of the settings.
    pub(super) settings: &'a Mutex<Settings>,
    pub(super) logging: &'a Logging,
    pub(super) workers: &'a [JoinHandle<io::Result<()>>],
    pub(super) service: &'a Service,
}

impl Attendant<'_> {
    /// Reloads and sweeps until it is time to stop.
    pub(super) async fn attend(
        &self,
        signals: &mut Signals,
        asked: &mut mpsc::Receiver<oneshot::Sender<Reloaded>>,
        reload: impl Fn() -> Reloaded,
    ) -> Told {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut lost_lines = 0;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return Told::BySignal,
                _ = signals.interrupt.recv() => return Told::BySignal,
                _ = signals.hangup.recv() => drop(self.reload(&reload)),
                Some(answer) = asked.recv() => {
                    // Who asked may have gone.
                    let _ = answer.send(self.reload(&reload));
                }
                _ = sweep.tick() => {
                    self.engine.tell_maintenance(self.listeners);
                    self.engine.sweep(SWEEP_PARTS);
                    self.tell_lost_lines(&mut lost_lines);
                    self.service.tell(self.engine, self.listeners);
                    if self.workers.iter().any(JoinHandle::is_finished) {
                        return Told::ByAWorker;
                    }
                }
            }
        }
    }

    fn reload(&self, reload: impl Fn() -> Reloaded) -> Reloaded {
        self.service.reloading();
        let reloaded = reload();
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
