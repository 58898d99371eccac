//! What serves by one engine: the workers, and beside them metrics, control and the sensors.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle as Task;

use super::prepare;
use super::sampler::Sampler;
use super::sampler::delay::Lateness;
use super::trouble::Trouble;
use super::worker::Worker;
use crate::clock::Time;
use crate::config::Settings;
use crate::engine::Engine;
use crate::front::control::desk::Reloads;
use crate::front::control::protocol::Reloaded;
use crate::front::control::status;
use crate::front::listener::Serving;
use crate::front::{control, http, policyd};

/// As long as an MTA may be silent.
const LONGEST_SESSION: Duration = Duration::from_secs(2 * 3_600);

/// Where requests come in.
pub(super) struct Sockets {
    /// Of the MTA.
    pub(super) served: Vec<prepare::Socket>,
    /// Their addresses.
    pub(super) listeners: Arc<[Arc<str>]>,
    /// Where metrics are asked for.
    pub(super) metrics: Option<TcpListener>,
    /// Where `postpone ctl` asks.
    pub(super) control: Option<control::Socket>,
    /// A place for each connection of an MTA.
    pub(super) places: Arc<Semaphore>,
}

/// What serves now.
pub(super) struct Running {
    pub(super) engine: Arc<Engine>,
    pub(super) sampler: Sampler,
    pub(super) lateness: Arc<Lateness>,
    pub(super) workers: Vec<JoinHandle<io::Result<()>>>,
    /// What status tells of the settings.
    pub(super) told: Arc<Mutex<status::Settings>>,
    /// Reloads that are asked for.
    pub(super) asked: mpsc::Receiver<oneshot::Sender<Reloaded>>,
    reloads: Reloads,
    /// When it began.
    since: Time,
    stop: watch::Sender<Option<Duration>>,
    /// Metrics and control.
    pub(super) beside: Beside,
}

impl Running {
    /// Serves these sockets from now on, the connections that come next. Inside the main runtime.
    pub(super) fn start(
        engine: &Arc<Engine>,
        sockets: &Sockets,
        settings: &Settings,
        file: &Path,
    ) -> Result<Self, Trouble> {
        let system = |what| move |error| Trouble::System(what, error);
        let lateness = Lateness::new(settings.server.workers);
        let sampler = Sampler::new(engine, lateness.clone());
        let (stop, stopping) = watch::channel(None);
        let serving = Serving { places: sockets.places.clone(), stopping };
        let desk = Arc::new(policyd::Desk::new(engine.memory().secret()));
        let mut workers = Vec::new();
        for number in 0..settings.server.workers {
            let share =
                |socket: &prepare::Socket| Ok((socket.bound.share()?, socket.listen.clone()));
            let shared: io::Result<_> = sockets.served.iter().map(share).collect();
            let worker = Worker {
                engine: engine.clone(),
                desk: desk.clone(),
                lateness: lateness.clone(),
                sockets: shared.map_err(system("cannot share a socket"))?,
                serving: serving.clone(),
            };
            workers.push(worker.start(number).map_err(system("cannot start a worker"))?);
        }
        let since = engine.now();
        engine.telemetry().started(since);
        let told = Arc::new(Mutex::new(status::Settings {
            file: if file.exists() { file.display().to_string() } else { String::new() },
            loaded: since,
            replaced: settings.replaced(),
            ..status::Settings::default()
        }));
        let (reloads, asked) = mpsc::channel(1);
        let desk = control::desk::Desk {
            engine: engine.clone(),
            since,
            settings: told.clone(),
            listeners: sockets.listeners.clone(),
            reloads: reloads.clone(),
        };
        let beside = beside(sockets, engine, desk).map_err(system("cannot share a socket"))?;
        sampler.watch(&settings.load).map_err(system("cannot start the sensors' thread"))?;
        let engine = engine.clone();
        Ok(Self { engine, sampler, lateness, workers, told, asked, reloads, since, stop, beside })
    }

    /// Whether its settings have been replaced since it began.
    pub(super) fn was_reloaded(&self) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).loaded != self.since
    }

    /// Asks for a reload in nobody's name.
    pub(super) fn ask_for_a_reload(&self) {
        // If there is no room, somebody else has asked already.
        let _ = self.reloads.try_send(oneshot::channel().0);
    }

    /// Takes no more connections; those that are there may go on for so long. Who asks for a reload
    /// is told that nobody reloads any more.
    pub(super) fn stop(&mut self, grace: Duration) {
        self.asked.close();
        while self.asked.try_recv().is_ok() {}
        let _ = self.stop.send(Some(grace));
    }

    /// Takes no more connections, since somebody else does; those that are there go on until their
    /// MTA ends them.
    pub(super) fn hand_over(&mut self) {
        self.stop(LONGEST_SESSION);
        self.beside.iter().for_each(|(_, task)| task.abort());
    }
}

/// Which of them has ended.
pub(super) fn ended<'a>(
    workers: &'a [JoinHandle<io::Result<()>>],
    beside: &Beside,
) -> Option<&'a str> {
    let worker = workers.iter().find(|worker| worker.is_finished());
    let beside = beside.iter().find(|(_, task)| task.is_finished());
    let worker = worker.map(|worker| worker.thread().name().unwrap_or("worker"));
    worker.or(beside.map(|(name, _)| *name))
}

/// What is served on the main thread, by name.
pub(super) type Beside = Vec<(&'static str, Task<io::Result<()>>)>;

fn beside(
    sockets: &Sockets,
    engine: &Arc<Engine>,
    desk: control::desk::Desk,
) -> io::Result<Beside> {
    let mut beside = Vec::new();
    if let Some(listener) = &sockets.metrics {
        let serve = http::serve(listener.try_clone()?, engine.clone());
        beside.push(("http", tokio::spawn(serve)));
    }
    if let Some(socket) = &sockets.control {
        beside.push(("control", tokio::spawn(control::serve(socket.share()?, desk))));
    }
    Ok(beside)
}
