//! The daemon: build, bind, serve, reload, drain.
//!
//! Each worker is a thread with a runtime of its own, which serves MTAs and nothing else. The main
//! thread has signals, metrics, the control socket and the sweep, so that none of them delays a
//! decision.

pub mod log;
mod sampler;

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use self::log::Logging;
use self::sampler::Sampler;
use self::sampler::delay::Lateness;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Control, Named, Settings, Unusable};
use crate::engine::Engine;
use crate::front::address::Address;
use crate::front::control::protocol::Reloaded;
use crate::front::listen::{self, Protocol};
use crate::front::listener::Bound;
use crate::front::{control, http, milter, policyd};
use crate::meter::key::Secret;
use crate::policy::Memory;
use crate::setting::{Complaint, OrNone, Severity};
use crate::store::Fault;
use crate::store::folder::{Folder, Refused, random_bytes};
use crate::store::keeper::Keeper;
use crate::telemetry::Failure;

/// Exit codes of sysexits.h.
pub mod exit {
    /// EX_DATAERR: what was read is damaged, or not what was expected.
    pub const DATA: u8 = 65;
    /// EX_NOINPUT: there is nothing to read.
    pub const INPUT: u8 = 66;
    /// EX_OSERR: the system would not give what every daemon needs.
    pub const SYSTEM: u8 = 71;
    /// EX_CANTCREAT: a socket could not be made.
    pub const SOCKET: u8 = 73;
    /// EX_CANTCREAT: what was asked for could not be written there.
    pub const OUTPUT: u8 = 73;
    /// EX_IOERR: the state cannot be used, or was not saved.
    pub const STATE: u8 = 74;
    /// EX_CONFIG: the settings cannot be used.
    pub const SETTINGS: u8 = 78;
}

/// Why the daemon could not serve.
#[derive(Debug)]
enum Trouble {
    Settings(String),
    Socket(String, io::Error),
    State(String, Refused),
    Unsaved(Fault),
    System(&'static str, io::Error),
}

impl Trouble {
    fn code(&self) -> u8 {
        match self {
            Self::Settings(_) => exit::SETTINGS,
            Self::Socket(..) => exit::SOCKET,
            Self::State(..) | Self::Unsaved(_) => exit::STATE,
            Self::System(..) => exit::SYSTEM,
        }
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(what) => write!(f, "{what}"),
            Self::Socket(address, error) => write!(f, "cannot listen on {address}: {error}"),
            Self::State(path, refused) => write!(f, "cannot keep state in {path}: {refused}"),
            Self::Unsaved(fault) => write!(f, "state was not saved to its end: {fault}"),
            Self::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

/// How often some of what has faded is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// In how many steps all of memory is swept: at ten million entries, each takes some five
/// milliseconds of the main thread, and locks none of it for more than some microseconds.
const SWEEP_PARTS: usize = 32;

/// Descriptors kept for what is no session: sockets, logs, lists, metrics, control.
const SPARE_DESCRIPTORS: u64 = 192;

/// How long the first sessions wait until it is known again whether there is maintenance. It is
/// the first thing that is read of state; MTAs wait for five seconds.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);

/// Serves until told to stop.
pub fn serve(settings: Settings, named: Named, file: PathBuf) -> ExitCode {
    let logging = Logging::start(&settings.log);
    let code = match run(settings, named, &file, &logging) {
        Ok(()) => 0,
        Err(trouble) => {
            error!("{trouble}");
            trouble.code()
        }
    };
    logging.finish();
    code.into()
}

fn run(settings: Settings, named: Named, file: &Path, logging: &Logging) -> Result<(), Trouble> {
    let system = |what| move |error| Trouble::System(what, error);
    let max_sessions = raise_descriptors();
    let sockets = bind(&settings)?;
    let metrics = bind_metrics(&settings.control, named)?;
    let socket = bind_control(&settings.control, named)?;
    let folder = open_state(&settings.state, named)?;
    let secret = match &folder {
        Some(folder) => folder.secret().clone(),
        None => Secret::new(random_bytes().map_err(system("no random numbers"))?),
    };
    let engine = build(&settings, &secret)?;
    let begun = folder.as_ref().map_or_else(|| SystemClock.now(), Folder::begun);
    engine.memory().behaviour.begun(begun);
    let desk = Arc::new(policyd::Desk::new(&secret));
    let main = runtime::Builder::new_current_thread().enable_all().build();
    let main = main.map_err(system("cannot start a runtime"))?;
    let _inside = main.enter();
    let mut signals = Signals::new().map_err(system("cannot watch signals"))?;
    let keeper = folder.map(|folder| keep(folder, &engine, &settings.state)).transpose();
    let keeper = keeper.map_err(system("cannot start the state's thread"))?;
    let listeners: Arc<[Arc<str>]> =
        settings.listen.iter().map(|listen| listen.door().address).collect();
    main.block_on(maintenance_is_known(&engine));
    engine.tell_maintenance(&listeners);
    engine.tell_learning();
    let lateness = Lateness::new(settings.server.workers);
    let sampler = Sampler::new(&engine, lateness.clone());
    let (stop, stopping) = watch::channel(false);
    let mut workers = Vec::new();
    for number in 0..settings.server.workers {
        let sockets: io::Result<Vec<_>> =
            sockets.iter().map(|(bound, listen)| Ok((bound.share()?, listen.clone()))).collect();
        let worker = Worker {
            engine: engine.clone(),
            desk: desk.clone(),
            lateness: lateness.clone(),
            sockets: sockets.map_err(system("cannot share a socket"))?,
            max_sessions,
            stopping: stopping.clone(),
            grace: settings.server.grace.duration(),
        };
        workers.push(worker.start(number).map_err(system("cannot start a worker"))?);
    }
    drop(sockets);
    if let Some(listener) = metrics {
        main.spawn(http::serve(listener, engine.clone()));
    }
    let (reloads, mut asked) = mpsc::channel(1);
    let serves_control = socket.is_some();
    if let Some(socket) = socket {
        let (engine, since, listeners) = (engine.clone(), engine.now(), listeners.clone());
        main.spawn(control::serve(socket, control::Desk { engine, since, listeners, reloads }));
    }
    for (address, protocol) in settings.listen.iter().filter_map(listen::Params::address) {
        info!(%address, ?protocol, "listening");
    }
    info!(version = env!("CARGO_PKG_VERSION"), file = %file.display(), max_sessions, "serving");
    sampler.watch(&settings.load).map_err(system("cannot start the sensors' thread"))?;
    let told = main.block_on(async {
        let reload = || reload(&settings, file, &engine, &sampler, logging);
        let attend =
            attend(&mut signals, &mut asked, reload, &engine, &listeners, logging, &workers);
        tokio::select! {
            told = attend => told,
            never = sampler.tended(SWEEP_EVERY) => match never {},
        }
    });
    // Nobody reloads any more; who asks is told so.
    drop(asked);
    info!("stopping: running sessions may finish within {}", settings.server.grace);
    let _ = stop.send(true);
    main.block_on(until(&mut signals, || workers.iter().all(JoinHandle::is_finished)));
    if let Some(keeper) = keeper {
        keeper.stop();
        main.block_on(until(&mut signals, || keeper.is_finished()));
        if keeper.is_finished() {
            keeper.finish().map_err(Trouble::Unsaved)?;
        } else {
            warn!("state was not saved to its end: told to stop once more");
        }
    }
    for worker in workers.into_iter().filter(JoinHandle::is_finished) {
        match worker.join() {
            Ok(Ok(())) if told == Told::ByAWorker => {
                let error = io::Error::other("it ended by itself");
                return Err(Trouble::System("a worker failed", error));
            }
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Trouble::System("a worker failed", error)),
            Err(_) => {
                let error = io::Error::other("it panicked");
                return Err(Trouble::System("a worker failed", error));
            }
        }
    }
    for (address, _) in settings.listen.iter().filter_map(listen::Params::address) {
        if let Address::Unix(path) = address {
            // A file that is gone already is what we want.
            let _ = std::fs::remove_file(path);
        }
    }
    if let (true, OrNone::Some(socket)) = (serves_control, &settings.control.socket) {
        let _ = std::fs::remove_file(socket.path());
    }
    info!("stopped");
    Ok(())
}

/// Takes the folder of state, if there is to be one.
fn open_state(state: &config::State, named: Named) -> Result<Option<Folder>, Trouble> {
    let OrNone::Some(path) = &state.path else { return Ok(None) };
    match Folder::open(path.path(), SystemClock.now()) {
        Ok(folder) => {
            for aside in folder.was_set_aside() {
                error!(aside, "state is damaged and was set aside");
            }
            Ok(Some(folder))
        }
        // At its default it can be done without; but never beside another daemon, or over what a
        // later version knows.
        Err(Refused::Unable(what, why)) if !named.state => {
            warn!(%path, "no state is kept: cannot {what}: {why}");
            Ok(None)
        }
        Err(refused) => Err(Trouble::State(path.to_string(), refused)),
    }
}

fn keep(folder: Folder, engine: &Arc<Engine>, state: &config::State) -> io::Result<Keeper> {
    let tables = engine.memory().kept().map(|(name, _)| name).collect();
    let home = Box::new(folder.with_tables(tables));
    Keeper::start(home, engine.clone(), state.flush.duration())
}

fn build(settings: &Settings, secret: &Secret) -> Result<Arc<Engine>, Trouble> {
    let memory = Memory::new(secret, settings.bounds());
    match settings.policy(&memory) {
        Ok(policy) => Ok(Engine::new(Box::new(SystemClock), memory, policy)),
        Err(complaints) => {
            let messages: Vec<_> = complaints.into_iter().map(|c| c.message).collect();
            Err(Trouble::Settings(messages.join("; ")))
        }
    }
}

fn bind(settings: &Settings) -> Result<Vec<(Bound, listen::Params)>, Trouble> {
    let bind = |listen: &listen::Params| match listen.bind() {
        Ok(bound) => Ok((bound, listen.clone())),
        Err(error) => Err(Trouble::Socket(listen.door().listener.to_string(), error)),
    };
    settings.listen.iter().map(bind).collect()
}

fn bind_metrics(control: &Control, named: Named) -> Result<Option<std::net::TcpListener>, Trouble> {
    let OrNone::Some(address) = control.http else { return Ok(None) };
    match http::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !named.http => {
            warn!(http = %address, %error, "no metrics: the default address cannot be had");
            Ok(None)
        }
        Err(error) => Err(Trouble::Socket(format!("control.http {address}"), error)),
    }
}

fn bind_control(control: &Control, named: Named) -> Result<Option<control::Socket>, Trouble> {
    let OrNone::Some(socket) = &control.socket else { return Ok(None) };
    let path = socket.path();
    let bound = Bound::bind(&Address::Unix(path.into()), &control.ownership());
    match bound.and_then(|bound| control::Socket::new(bound, path)) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if !named.socket => {
            warn!(%socket, %error, "no control: the default socket cannot be had");
            Ok(None)
        }
        Err(error) => Err(Trouble::Socket(format!("control.socket {socket}"), error)),
    }
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
            "state is slow: maintenance and who is allowed from before the restart hold once they have been read"
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

/// A thread that serves MTAs.
struct Worker {
    engine: Arc<Engine>,
    desk: Arc<policyd::Desk>,
    lateness: Arc<Lateness>,
    sockets: Vec<(Bound, listen::Params)>,
    max_sessions: usize,
    stopping: watch::Receiver<bool>,
    grace: Duration,
}

impl Worker {
    fn start(self, number: u8) -> io::Result<JoinHandle<io::Result<()>>> {
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || self.serve(number))
    }

    /// One thread for all sessions: tokio's pool would wake a second one for most frames, which
    /// costs a milter more than it brings. See benches/milter.rs.
    fn serve(self, number: u8) -> io::Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::spawn(self.lateness.beat(number));
            let mut fronts = tokio::task::JoinSet::new();
            for (bound, listen) in self.sockets {
                let (engine, stopping) = (self.engine.clone(), self.stopping.clone());
                let (door, desk) = (listen.door(), self.desk.clone());
                let (most, grace) = (self.max_sessions, self.grace);
                match listen.address() {
                    Some((_, Protocol::Policy)) => fronts
                        .spawn(policyd::serve(bound, engine, door, desk, most, stopping, grace)),
                    _ => fronts.spawn(milter::serve(bound, engine, door, most, stopping, grace)),
                };
            }
            while let Some(ended) = fronts.join_next().await {
                ended.map_err(io::Error::other)??;
            }
            Ok(())
        })
    }
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Why it is time to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Somebody wants it.
    BySignal,
    /// A worker ended before it was told to: something is badly wrong. The whole daemon ends, and
    /// the service manager starts it again.
    ByAWorker,
}

/// Reloads and sweeps until it is time to stop.
async fn attend(
    signals: &mut Signals,
    asked: &mut mpsc::Receiver<oneshot::Sender<Reloaded>>,
    reload: impl Fn() -> Reloaded,
    engine: &Engine,
    listeners: &[Arc<str>],
    logging: &Logging,
    workers: &[JoinHandle<io::Result<()>>],
) -> Told {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut lost_lines = 0;
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Told::BySignal,
            _ = signals.interrupt.recv() => return Told::BySignal,
            _ = signals.hangup.recv() => {
                reload();
                engine.tell_maintenance(listeners);
            }
            Some(answer) = asked.recv() => {
                // Who asked may have gone.
                let _ = answer.send(reload());
                engine.tell_maintenance(listeners);
            }
            _ = sweep.tick() => {
                engine.tell_maintenance(listeners);
                engine.sweep(SWEEP_PARTS);
                let lost = logging.lost_lines();
                if lost > lost_lines {
                    let detail = format_args!("{} lines could not be written", lost - lost_lines);
                    engine.failed(Failure::Log, &detail);
                    lost_lines = lost;
                }
                if workers.iter().any(JoinHandle::is_finished) {
                    return Told::ByAWorker;
                }
            }
        }
    }
}

/// Waits for an end. Metrics are still served; told to stop once more, nothing is waited for.
async fn until(signals: &mut Signals, ended: impl Fn() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    while !ended() {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = look.tick() => {}
        }
    }
}

/// Puts the settings of the file in force. A bad file changes nothing.
fn reload(
    running: &Settings,
    file: &Path,
    engine: &Engine,
    sampler: &Sampler,
    logging: &Logging,
) -> Reloaded {
    let refused = |report: String| {
        engine.telemetry().reloaded("refused");
        Reloaded { file: file.display().to_string(), report, ..Reloaded::default() }
    };
    let checked = match Settings::load(file) {
        Ok(checked) => checked,
        Err(Unusable(report)) => {
            report.lines(Severity::Error).for_each(|line| error!("not reloaded: {line}"));
            report.lines(Severity::Warning).for_each(|line| warn!("{line}"));
            return refused(report.to_string());
        }
    };
    match checked.settings.policy(engine.memory()) {
        Ok(policy) => engine.replace_policy(policy),
        Err(complaints) => {
            complaints.iter().for_each(|complaint| error!("not reloaded: {}", complaint.message));
            let line = |complaint: Complaint| format!("error: {}\n", complaint.message);
            return refused(complaints.into_iter().map(line).collect());
        }
    }
    checked.report.lines(Severity::Warning).for_each(|line| warn!("{line}"));
    if let Err(error) = sampler.watch(&checked.settings.load) {
        error!(%error, "cannot start the sensors' thread");
    }
    logging.set_level(checked.settings.log.level);
    let restart = checked.settings.needs_restart(running);
    if !restart.is_empty() {
        warn!("takes effect only at a restart: {}", restart.join(", "));
    }
    engine.telemetry().reloaded("done");
    info!(file = %file.display(), "reloaded");
    Reloaded {
        done: true,
        file: file.display().to_string(),
        report: checked.report.to_string(),
        restart: restart.into_iter().map(Into::into).collect(),
    }
}
