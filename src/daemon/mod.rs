//! The daemon: prepare, confine, serve, reload, drain.
//!
//! It begins as one thread that may do everything: that one binds sockets, has another one open the
//! state, gives up what it does not need any more, and only then starts the rest, the log's first.
//! Ports open last: when the first answer can be given. Each worker is a thread with a runtime of
//! its own, which serves MTAs and nothing else. The main thread has signals, metrics, the control
//! socket, the sweep and the service manager, so that none of them delays a decision.

mod attend;
mod confine;
mod end;
pub mod log;
mod prepare;
mod reload;
mod running;
mod sampler;
mod service;
mod state;
mod trouble;
mod worker;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::timeout;
use tracing::{error, info, warn};

pub use self::attend::Early;
use self::attend::{Attendant, SWEEP_EVERY, Signals, Told};
use self::confine::{Confined, Needs};
use self::end::{End, WORKERS_HANG, until};
use self::log::Logging;
use self::prepare::{Notes, Prepared, build};
use self::reload::Reloads;
use self::running::{Running, Sockets};
use self::service::Service;
use self::state::{Identity, State};
use self::trouble::Trouble;
use crate::config::{Named, Settings};
use crate::engine::Engine;
use crate::front::listener;
use crate::store::folder::Refused;
use crate::store::keeper::Keeper;
use crate::store::owner::keep_private;

/// Descriptors kept for what is no session: sockets, logs, lists, metrics, control.
const SPARE_DESCRIPTORS: u64 = 192;

/// Serves until told to stop.
pub fn serve(early: Early, settings: Settings, named: Named, file: PathBuf) -> ExitCode {
    let max_sessions = raise_descriptors();
    let service = Arc::new(Service::of_environment());
    let mut notes = Notes::default();
    let prepared = prepare(&early, &settings, named, &mut notes);
    let confined = Confined::new(&Needs {
        state: None,
        sockets: &prepared.as_ref().map_or(Vec::new(), |(prepared, ..)| {
            prepared.files.iter().map(|file| file.path().to_owned()).collect()
        }),
        load: &settings.load,
    });
    let logging = match Logging::start(&settings.log) {
        Ok(logging) => Arc::new(logging),
        Err(why) => {
            let trouble = Trouble::System("cannot start the log's thread", why);
            // Where nobody reads standard error, the exit code must do.
            let _ = writeln!(io::stderr(), "error: {trouble}");
            service.failed(&trouble);
            return trouble.code().into();
        }
    };
    notes.tell();
    let told = prepared.and_then(|(prepared, state, engine)| {
        confined.tell();
        let Prepared { sockets, metrics, control, files, called } = prepared;
        let listeners = settings.listen.iter().map(|listen| listen.door().address).collect();
        let places = listener::places(max_sessions);
        let sockets = Sockets { served: sockets, listeners, metrics, control, places };
        let (service, logging) = (&service, &logging);
        let daemon = Daemon {
            settings,
            named,
            file,
            max_sessions,
            service,
            confined,
            logging,
            sockets,
            called,
        };
        // A panic of the main thread ends the daemon with a word, too.
        catch_unwind(AssertUnwindSafe(|| daemon.run(early, state, engine)))
            .unwrap_or_else(|_| Err(Trouble::Ended("main".into())))?;
        for file in files {
            // One that is left is replaced at the next start.
            let _ = file.remove();
        }
        info!("stopped");
        Ok(())
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

/// What needs rights that are given up afterwards: sockets, the state folder if it answers, and the
/// policy with its lists.
fn prepare(
    early: &Early,
    settings: &Settings,
    named: Named,
    notes: &mut Notes,
) -> Result<(Prepared, State, Arc<Engine>), Trouble> {
    let prepared = Prepared::new(settings, named, notes)?;
    keep_private();
    let state = early.runtime.block_on(State::of(&settings.state, named, notes))?;
    state.take_rights()?;
    let engine = build(settings, &state, prepared.called.as_deref())?;
    Ok((prepared, state, engine))
}

/// What holds for the whole of its life.
struct Daemon<'a> {
    settings: Settings,
    named: Named,
    file: PathBuf,
    max_sessions: usize,
    service: &'a Arc<Service>,
    confined: Confined,
    logging: &'a Arc<Logging>,
    sockets: Sockets,
    called: Option<String>,
}

impl Daemon<'_> {
    fn run(mut self, early: Early, state: State, engine: Arc<Engine>) -> Result<(), Trouble> {
        let Early { runtime: main, hangup } = early;
        let _inside = main.enter();
        let signals = Signals::new(hangup);
        let mut signals = signals.map_err(|why| Trouble::System("cannot watch signals", why))?;
        let grace = self.settings.server.grace.duration();
        let end = End::watch(grace, self.logging.clone(), self.service.clone());
        let end = end.map_err(|why| Trouble::System("cannot watch over the end", why))?;
        self.service.starting();
        let mut state = main.block_on(state.serve(&engine))?;
        self.tell(&engine);
        for socket in &self.sockets.served {
            socket.listen()?;
        }
        let mut running = self.start(&engine)?;
        for socket in &self.sockets.served {
            let Some((address, protocol)) = socket.listen.address() else { continue };
            info!(%address, protocol = %protocol.name(), passed = socket.passed, "listening");
        }
        let (file, max_sessions) = (self.file.display(), self.max_sessions);
        let most_memory = format!("{}MiB", self.settings.most_memory(max_sessions) >> 20);
        info!(version = env!("CARGO_PKG_VERSION"), %file, max_sessions, most_memory, "serving");
        // Those who came before state had answered are served by what ran then.
        let mut before = Vec::new();
        let told = loop {
            match main.block_on(self.attend(&mut running, &mut signals, &mut state, &end)) {
                Event::Told(told) => break told,
                Event::Answered(answer) => {
                    let (next, now) = main.block_on(self.take_over(&running, state, answer))?;
                    state = now;
                    if let Some(next) = next {
                        running.hand_over();
                        before.push(std::mem::replace(&mut running, next));
                    }
                }
            }
        };
        end.begin();
        // Ports close once the workers close theirs: nobody is to wait for who does not come.
        self.sockets.served.clear();
        before.push(running);
        main.block_on(self.stop(&mut before, state, &end))?;
        ended_well(before, told)
    }

    /// Lets sessions end, and saves state; `all` that has run, the last being what runs now.
    async fn stop(&self, all: &mut [Running], state: State, end: &End) -> Result<(), Trouble> {
        let grace = self.settings.server.grace;
        info!("stopping: running sessions may finish within {grace}");
        all.iter_mut().for_each(|running| running.stop(grace.duration()));
        let Some(running) = all.last() else { return Ok(()) };
        self.service.stopping(&running.engine, grace.duration());
        let ended = || all.iter().flat_map(|it| &it.workers).all(JoinHandle::is_finished);
        let grace = grace.duration().saturating_add(WORKERS_HANG);
        let workers = async { drop(timeout(grace, until(ended)).await) };
        self.service.alive_while(&running.lateness, workers).await;
        if !ended() {
            error!("the grace is over, and a worker hangs: state is saved without it");
        }
        match state {
            State::Kept(keeper) => {
                self.service.saving();
                end.saving(keeper.pulse());
                keeper.stop();
                let saved = until(|| keeper.is_finished());
                self.service.alive_while(&running.lateness, saved).await;
                keeper.finish().map_err(Trouble::Unsaved)?;
            }
            State::Awaited(_) => warn!("the state folder does not answer: nothing is saved"),
            State::None | State::Open(..) => {}
        }
        end.last();
        Ok(())
    }

    fn tell(&self, engine: &Engine) {
        engine.tell_maintenance(&self.sockets.listeners);
        engine.tell_learning();
    }

    fn start(&self, engine: &Arc<Engine>) -> Result<Running, Trouble> {
        let running = Running::start(engine, &self.sockets, &self.settings, &self.file)?;
        self.service.serving(engine, &self.sockets.listeners);
        Ok(running)
    }

    /// Looks after what runs until it is time to stop, or state has answered.
    async fn attend(
        &self,
        running: &mut Running,
        signals: &mut Signals,
        state: &mut State,
        end: &End,
    ) -> Event {
        let Running { engine, sampler, lateness, workers, beside, told, asked, .. } = running;
        let reloads = Reloads {
            running: &self.settings,
            file: &self.file,
            engine,
            sampler,
            logging: self.logging,
            confined: &self.confined,
            reader: Mutex::default(),
        };
        let (keeper, answer) = state.keeper_or_answer();
        let ended = || {
            let others =
                [("state", keeper.is_some_and(Keeper::is_finished)), ("end", end.is_over())];
            let other = others.into_iter().find_map(|(name, ended)| ended.then_some(name));
            running::ended(workers, beside).or(other).map(str::to_owned)
        };
        let attendant = Attendant {
            engine,
            listeners: &self.sockets.listeners,
            settings: told,
            logging: self.logging,
            reloads: &reloads,
            keeper,
            ended: &ended,
            service: self.service,
        };
        let look = async {
            tokio::select! {
                told = attendant.attend(signals, asked) => Event::Told(told),
                answer = answer => Event::Answered(answer),
                never = sampler.tended(SWEEP_EVERY) => match never {},
            }
        };
        self.service.alive_while(lateness, look).await
    }

    /// State has answered at last: who comes from now on is served by an engine that has what was
    /// kept, and what was said by hand meanwhile; nothing, if none is kept.
    async fn take_over(
        &self,
        before: &Running,
        state: State,
        answer: Result<Identity, Refused>,
    ) -> Result<(Option<Running>, State), Trouble> {
        let State::Awaited(opening) = state else { return Ok((None, state)) };
        let identity = match answer {
            Ok(identity) => identity,
            Err(refused) => {
                let why = opening.dispensable(refused, self.named)?;
                warn!("no state is kept: {why}");
                before.engine.awaits_nothing();
                return Ok((None, State::None));
            }
        };
        let state = State::Open(opening, identity);
        let engine = build(&self.settings, &state, self.called.as_deref())?;
        let state = state.serve(&engine).await?;
        engine.take_over(&before.engine, &self.sockets.listeners);
        self.tell(&engine);
        let running = self.start(&engine)?;
        info!("the state folder answers: saved state is in use from now on");
        if before.was_reloaded() {
            running.ask_for_a_reload();
        }
        Ok((Some(running), state))
    }
}

/// What the main thread has waited for.
enum Event {
    /// To stop.
    Told(Told),
    /// State, which had not answered when the daemon began to serve.
    Answered(Result<Identity, Refused>),
}

/// What became of the workers that have ended.
fn ended_well(all: Vec<Running>, told: Told) -> Result<(), Trouble> {
    let failed = |error| Err(Trouble::System("a worker thread failed", error));
    let mut all_ended = true;
    for worker in all.into_iter().flat_map(|it| it.workers) {
        if !worker.is_finished() {
            all_ended = false;
            continue;
        }
        match worker.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return failed(error),
            Err(_) => return failed(io::Error::other("it panicked")),
        }
    }
    match told {
        Told::ByEnd(name) => Err(Trouble::Ended(name)),
        Told::BySignal if all_ended => Ok(()),
        Told::BySignal => Err(Trouble::Hangs),
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
