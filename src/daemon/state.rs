//! The folder of state is opened on a thread of its own, since a disk may hang.
//!
//! Keys are made with a secret that lies in the folder, so nothing that is remembered means
//! anything before it has been read. The daemon waits for it as long as an MTA hardly notices, and
//! then serves without: everybody is new, greylisting lets pass whom it does not find, and the rest
//! of the policy holds. When the disk answers, whoever comes from then on meets all that was kept.
//!
//! The thread has the rights of the folder's owner and is confined to the folder, and so is the one
//! that keeps state, which it starts. No other thread writes there.

use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{interval, timeout};
use tracing::{error, warn};

use super::confine::{Confined, Needs};
use super::end::hear_no_signals;
use super::prepare::Notes;
use super::trouble::Trouble;
use crate::clock::{Clock, SystemClock, Time};
use crate::config::load::Load;
use crate::config::{self, Named};
use crate::engine::Engine;
use crate::meter::key::Secret;
use crate::setting::OrNone;
use crate::store::folder::{Folder, Refused, random_bytes};
use crate::store::keeper::Keeper;
use crate::store::owner::Owner;

/// How long nothing is served while state does not answer, or while it is not known again whether
/// there is maintenance and who is allowed by hand, which is the first thing that is read of it.
/// MTAs wait for five seconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// What is kept on disk.
pub(super) enum State {
    /// Nothing.
    None,
    /// Nothing yet: the folder has not answered.
    Awaited(Opening),
    /// Nothing yet: it has just answered.
    Open(Opening, Identity),
    /// What outlives the process.
    Kept(Keeper),
}

impl State {
    /// Begins to open the folder of the settings, if they name one, and waits for it a little.
    pub(super) async fn of(
        state: &config::State,
        named: Named,
        notes: &mut Notes,
    ) -> Result<Self, Trouble> {
        let OrNone::Some(path) = &state.path else { return Ok(Self::None) };
        let opening = Opening::begin(path.path(), state.flush.duration());
        let mut opening = opening.map_err(|why| Trouble::System("cannot start a thread", why))?;
        match timeout(ANSWERS_WITHIN, opening.answer()).await {
            Err(_) => Ok(Self::Awaited(opening)),
            Ok(Ok(identity)) => Ok(Self::Open(opening, identity)),
            Ok(Err(refused)) => {
                let why = opening.dispensable(refused, named)?;
                notes.take(move || warn!("no state is kept: {why}"));
                Ok(Self::None)
            }
        }
    }

    /// From now on root has no more rights than the folder's owner.
    pub(super) fn take_rights(&self) -> Result<(), Trouble> {
        let Self::Open(opening, Identity { owner: Some(owner), .. }) = self else { return Ok(()) };
        owner.take_rights().map_err(|why| opening.trouble(Refused::Unable(AS_OWNER, why)))
    }

    /// What keys are made with, and since when it is the same database. Where none is known it is a
    /// new one, for as long as this process lives.
    pub(super) fn secret(&self) -> io::Result<(Secret, Time)> {
        match self {
            Self::Open(_, identity) => Ok((identity.secret.clone(), identity.begun)),
            Self::None | Self::Awaited(_) | Self::Kept(_) => {
                Ok((Secret::new(random_bytes()?), SystemClock.now()))
            }
        }
    }

    /// Keeps there from now on what this engine remembers, or lets it wait for that.
    pub(super) async fn serve(self, engine: &Arc<Engine>) -> Result<Self, Trouble> {
        match self {
            Self::Open(opening, identity) => {
                identity.tell(&opening.path);
                let keeper = opening.keep(engine.clone())?;
                maintenance_is_known(engine).await;
                Ok(Self::Kept(keeper))
            }
            Self::Awaited(opening) => {
                engine.awaits_state(&opening.path.display());
                Ok(Self::Awaited(opening))
            }
            Self::None | Self::Kept(_) => Ok(self),
        }
    }

    /// Who keeps it, if anybody does, and the folder's answer, where that is awaited.
    pub(super) fn keeper_or_answer(
        &mut self,
    ) -> (Option<&Keeper>, impl Future<Output = Result<Identity, Refused>>) {
        let (keeper, opening) = match self {
            Self::Kept(keeper) => (Some(&*keeper), None),
            Self::Awaited(opening) => (None, Some(opening)),
            Self::None | Self::Open(..) => (None, None),
        };
        let answer = async {
            match opening {
                Some(opening) => opening.answer().await,
                None => pending().await,
            }
        };
        (keeper, answer)
    }
}

/// The thread that opens the folder, until it has started the one that keeps it.
pub(super) struct Opening {
    path: PathBuf,
    told: oneshot::Receiver<Result<Identity, Refused>>,
    engine: mpsc::Sender<Arc<Engine>>,
    thread: JoinHandle<io::Result<Option<Keeper>>>,
}

/// What is known of a folder once it is open.
pub(super) struct Identity {
    /// What keys are made with.
    secret: Secret,
    /// Since when it is the same database.
    begun: Time,
    /// The user that it belongs to, where that is another than root, who serves.
    owner: Option<Owner>,
    was_open_to_others: bool,
    set_aside: Vec<String>,
}

impl Opening {
    fn begin(path: &Path, flush: Duration) -> io::Result<Self> {
        let (tell, told) = oneshot::channel();
        let (engine, engines) = mpsc::channel();
        let folder = path.to_owned();
        let open = move || {
            hear_no_signals();
            keep(&folder, flush, tell, &engines)
        };
        let thread = thread::Builder::new().name("open-state".into()).spawn(open)?;
        Ok(Self { path: path.into(), told, engine, thread })
    }

    /// What the folder is. Once: it does not answer again.
    async fn answer(&mut self) -> Result<Identity, Refused> {
        let panicked = |_| Refused::Unable("open it", io::Error::other("its thread has panicked"));
        (&mut self.told).await.map_err(panicked).and_then(|opened| opened)
    }

    /// Why nothing is kept, where the daemon may serve without: at its default state can be done
    /// without, but never beside another daemon, or over what a later version knows.
    pub(super) fn dispensable(&self, refused: Refused, named: Named) -> Result<String, Trouble> {
        match refused {
            Refused::Unable(..) if !named.state => {
                Ok(format!("{}: {refused}", self.path.display()))
            }
            refused => Err(self.trouble(refused)),
        }
    }

    fn trouble(&self, refused: Refused) -> Trouble {
        Trouble::State(self.path.display().to_string(), refused)
    }

    /// Keeps what this engine remembers in the folder, which has answered.
    fn keep(self, engine: Arc<Engine>) -> Result<Keeper, Trouble> {
        let failed = |why| Trouble::System("cannot start the state's thread", why);
        let panicked = || failed(io::Error::other("it panicked"));
        self.engine.send(engine).map_err(|_| panicked())?;
        let keeper = self.thread.join().map_err(|_| panicked())?;
        keeper.map_err(failed)?.ok_or_else(panicked)
    }
}

const AS_OWNER: &str = "act as its owner";

/// Opens the folder, says so, and keeps there what the engine remembers that is told then.
fn keep(
    path: &Path,
    flush: Duration,
    tell: oneshot::Sender<Result<Identity, Refused>>,
    engine: &mpsc::Receiver<Arc<Engine>>,
) -> io::Result<Option<Keeper>> {
    let (folder, owner) = match open(path) {
        Ok(opened) => opened,
        Err(refused) => {
            // The daemon has ended if nobody listens.
            let _ = tell.send(Err(refused));
            return Ok(None);
        }
    };
    Confined::new(&Needs { state: Some(path), sockets: &[], load: &Load::default() });
    let _ = tell.send(Ok(Identity::of(&folder, owner)));
    let Ok(engine) = engine.recv() else { return Ok(None) };
    let tables = engine.memory().kept().map(|(name, _)| name).collect();
    Keeper::start(Box::new(folder.with_tables(tables)), engine, flush).map(Some)
}

fn open(path: &Path) -> Result<(Folder, Option<Owner>), Refused> {
    let unable = |why| Refused::Unable(AS_OWNER, why);
    let owner = Owner::of(path).map_err(unable)?;
    owner.as_ref().map_or(Ok(()), Owner::take_rights).map_err(unable)?;
    Ok((Folder::open(path, SystemClock.now())?, owner))
}

impl Identity {
    fn of(folder: &Folder, owner: Option<Owner>) -> Self {
        Self {
            secret: folder.secret().clone(),
            begun: folder.begun(),
            owner,
            was_open_to_others: folder.was_open_to_others(),
            set_aside: folder.was_set_aside().to_vec(),
        }
    }

    /// Tells what a postmaster should know of it.
    fn tell(&self, path: &Path) {
        let path = path.display();
        if let Some(owner) = &self.owner {
            warn!(%path, %owner, "root serves with the rights of another user, who owns the state");
        }
        if self.was_open_to_others {
            warn!(%path, "the state folder was writable by other users: it is now closed to them");
        }
        for aside in &self.set_aside {
            error!(aside, "state is damaged and was set aside");
        }
    }
}

/// Waits until what was said of maintenance before the restart, and who was allowed by hand, has
/// been read again, so that it holds from the first session on. Where the disk is slow, mail does
/// not wait for it.
async fn maintenance_is_known(engine: &Engine) {
    let mut look = interval(Duration::from_millis(2));
    let memory = engine.memory();
    let known = async {
        while !memory.maintenance.is_whole() || !memory.allowed.is_whole() {
            look.tick().await;
        }
    };
    if timeout(ANSWERS_WITHIN, known).await.is_err() {
        warn!(
            "state is slow to load: maintenance and exemptions from before the restart hold once they are read"
        );
    }
}
