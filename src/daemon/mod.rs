//! The daemon: prepare, confine, serve, reload, drain.
//!
//! It begins as one thread that may do everything: that one binds sockets and opens the state,
//! gives up what it does not need any more, and only then starts others, the log's first. Each
//! worker is a thread with a runtime of its own, which serves MTAs and nothing else. The main
//! thread has signals, metrics, the control socket, the sweep and the service manager, so that none
//! of them delays a decision.

mod attend;
mod confine;
pub mod log;
mod prepare;
mod reload;
mod sampler;
mod service;
mod trouble;
mod worker;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

pub use self::attend::Early;
use self::attend::{Attendant, SWEEP_EVERY, Signals, Told};
use self::confine::{Confined, Needs};
use self::log::Logging;
use self::prepare::{Notes, Prepared};
use self::reload::reload;
use self::sampler::Sampler;
use self::sampler::delay::Lateness;
use self::service::Service;
use self::trouble::Trouble;
use self::worker::Worker;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Named, Settings};
use crate::engine::Engine;
use crate::front::control::status;
use crate::front::{control, http, listener, policyd};
use crate::store::folder::Folder;
use crate::store::keeper::Keeper;

/// Descriptors kept for what is no session: sockets, logs, lists, metrics, control.
const SPARE_DESCRIPTORS: u64 = 192;

/// How long the first sessions wait until it is known again whether there is maintenance. It is
/// the first thing that is read of state; MTAs wait for five seconds.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);

/// Serves until told to stop.
pub fn serve(early: Early, settings: Settings, named: Named, file: PathBuf) -> ExitCode {
    let max_sessions = raise_descriptors();
    let service = Service::of_environment();
    let mut notes = Notes::default();
    let prepared = Prepared::new(&settings, named, &mut notes);
    let confined = Confined::new(&Needs {
        state: prepared.as_ref().ok().and_then(|it| it.folder.as_ref()).map(Folder::path),
        sockets: &prepared.as_ref().map_or(Vec::new(), |prepared| {
            prepared.files.iter().map(|file| file.path().to_owned()).collect()
        }),
        load: &settings.load,
    });
    let logging = Logging::start(&settings.log);
    notes.tell();
    let told = prepared.and_then(|prepared| {
        confined.tell();
        let service = &service;
        Daemon { settings, file, max_sessions, service, confined }.run(early, prepared, &logging)
    });
    let code = match told {
        Ok(()) => 0,
        Err(trouble) => {
            error!("{trouble}");
            service.failed(&trouble);
            trouble.code()
        }
    };
    logging.finish();
    code.into()
}

/// What holds for the whole of its life.
struct Daemon<'a> {
    settings: Settings,
    file: PathBuf,
    max_sessions: usize,
    service: &'a Service,
    confined: Confined,
}

impl Daemon<'_> {
    fn run(self, early: Early, prepared: Prepared, logging: &Logging) -> Result<(), Trouble> {
        let system = |what| move |error| Trouble::System(what, error);
        let Self { settings, file, max_sessions, service, confined } = self;
        let Early { runtime: main, hangup } = early;
        let Prepared { sockets, metrics, control, folder, files, secret, engine } = prepared;
        let begun = folder.as_ref().map_or_else(|| SystemClock.now(), Folder::begun);
        engine.memory().behaviour.begun(begun);
        let desk = Arc::new(policyd::Desk::new(&secret));
        let _inside = main.enter();
        let mut signals = Signals::new(hangup).map_err(system("cannot watch signals"))?;
        let keeper = folder.map(|folder| keep(folder, &engine, &settings.state)).transpose();
        let keeper = keeper.map_err(system("cannot start the state's thread"))?;
        let listeners: Arc<[Arc<str>]> =
            settings.listen.iter().map(|listen| listen.door().address).collect();
        service.starting();
        main.block_on(maintenance_is_known(&engine));
        engine.tell_maintenance(&listeners);
        engine.tell_learning();
        let lateness = Lateness::new(settings.server.workers);
        let sampler = Sampler::new(&engine, lateness.clone());
        let (stop, stopping) = watch::channel(false);
        let fronts =
            listener::Serving::new(max_sessions, stopping, settings.server.grace.duration());
        let mut workers = Vec::new();
        for number in 0..settings.server.workers {
            let shared =
                |socket: &prepare::Socket| Ok((socket.bound.share()?, socket.listen.clone()));
            let sockets: io::Result<Vec<_>> = sockets.iter().map(shared).collect();
            let worker = Worker {
                engine: engine.clone(),
                desk: desk.clone(),
                lateness: lateness.clone(),
                sockets: sockets.map_err(system("cannot share a socket"))?,
                serving: fronts.clone(),
            };
            workers.push(worker.start(number).map_err(system("cannot start a worker"))?);
        }
        if let Some(listener) = metrics {
            main.spawn(http::serve(listener, engine.clone()));
        }
        let since = engine.now();
        engine.telemetry().started(since);
        let (reloads, mut asked) = mpsc::channel(1);
        let told = Arc::new(Mutex::new(status::Settings {
            file: if file.exists() { file.display().to_string() } else { String::new() },
            loaded: since,
            in_force: settings.in_force(&engine.own_rules()),
            refused: None,
        }));
        if let Some(socket) = control {
            let (engine, listeners) = (engine.clone(), listeners.clone());
            let settings = told.clone();
            let desk = control::desk::Desk { engine, since, settings, listeners, reloads };
            main.spawn(control::serve(socket, desk));
        }
        for socket in sockets {
            let Some((address, protocol)) = socket.listen.address() else { continue };
            info!(%address, protocol = %protocol.name(), passed = socket.passed, "listening");
        }
        info!(version = env!("CARGO_PKG_VERSION"), file = %file.display(), max_sessions, "serving");
        sampler.watch(&settings.load).map_err(system("cannot start the sensors' thread"))?;
        service.serving(&engine, &listeners);
        let told = main.block_on(service.alive_while(&lateness, async {
            let reload = || reload(&settings, &file, &engine, &sampler, logging, &confined);
            let attendant = Attendant {
                engine: &engine,
                listeners: &listeners,
                settings: &told,
                logging,
                workers: &workers,
                service,
            };
            tokio::select! {
                told = attendant.attend(&mut signals, &mut asked, reload) => told,
                never = sampler.tended(SWEEP_EVERY) => match never {},
            }
        }));
        // Nobody reloads any more; who asks is told so.
        drop(asked);
        info!("stopping: running sessions may finish within {}", settings.server.grace);
        service.stopping(&engine, settings.server.grace.duration());
        let _ = stop.send(true);
        let ended = || workers.iter().all(JoinHandle::is_finished);
        main.block_on(service.alive_while(&lateness, signals.until(ended)));
        if let Some(keeper) = keeper {
            service.saving();
            keeper.stop();
            let saved = signals.until(|| keeper.is_finished());
            main.block_on(service.alive_while(&lateness, saved));
            if keeper.is_finished() {
                keeper.finish().map_err(Trouble::Unsaved)?;
            } else {
                warn!("state was not saved completely: told to stop once more");
            }
        }
        ended_well(workers, told)?;
        for file in files {
            // One that is left is replaced at the next start.
            let _ = file.remove();
        }
        info!("stopped");
        Ok(())
    }
}

/// What became of the workers that have ended.
fn ended_well(workers: Vec<JoinHandle<io::Result<()>>>, told: Told) -> Result<(), Trouble> {
    let failed = |error| Err(Trouble::System("a worker failed", error));
    for worker in workers.into_iter().filter(JoinHandle::is_finished) {
        match worker.join() {
            Ok(Ok(())) if told == Told::ByAWorker => {
                return failed(io::Error::other("it ended by itself"));
            }
            Ok(Ok(())) => {}
            Ok(Err(error)) => return failed(error),
            Err(_) => return failed(io::Error::other("it panicked")),
        }
    }
    Ok(())
}

fn keep(folder: Folder, engine: &Arc<Engine>, state: &config::State) -> io::Result<Keeper> {
    let tables = engine.memory().kept().map(|(name, _)| name).collect();
    let home = Box::new(folder.with_tables(tables));
    Keeper::start(home, engine.clone(), state.flush.duration())
}

/// Waits until what was said of maintenance before the restart, and who was allowed by hand, has
/// been read again, so that it holds from the first session on. Where the disk is slow, mail does not wait for it.
async fn maintenance_is_known(engine: &Engine) {
    let mut look = tokio::time::interval(Duration::from_millis(2));
    let memory = engine.memory();
    let known = async {
        while !memory.maintenance.is_whole() || !memory.allowed.is_whole() {
            look.tick().await;
        }
    };
    if tokio::time::timeout(KNOWN_WITHIN, known).await.is_err() {
        warn!(
            "state is slow to load: maintenance and exemptions from before the restart hold once they are read"
        );
    }
}

/// Every session needs a descriptor: takes as many as the system gives, and returns how many
/// sessions that allows. The next ones wait in the backlog.
fn raise_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let descriptors = now.unwrap_or(1 << 20);
    usize::try_from(descriptors.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(usize::MAX).max(64)
}
