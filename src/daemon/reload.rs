//! A reload: other settings for the sessions that follow.
//!
//! They are read on a thread of their own, with a deadline: a list may lie on a disk that does not
//! answer, and signals, metrics and the control socket must not wait for it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::confine::Confined;
use super::log::Logging;
use super::sampler::Sampler;
use crate::config::{Checked, Settings, Unusable};
use crate::engine::Engine;
use crate::front::control::protocol::Reloaded;
use crate::policy::Policy;
use crate::setting::{Complaint, Severity};
use crate::telemetry::Failure;

/// How long reading may take. `postpone ctl reload` waits for fifteen seconds.
const LONGEST_READ: Duration = Duration::from_secs(10);

/// How settings are read again.
pub(super) struct Reloads<'a> {
    pub(super) running: &'a Settings,
    pub(super) file: &'a Path,
    pub(super) engine: &'a Arc<Engine>,
    pub(super) sampler: &'a Sampler,
    pub(super) logging: &'a Logging,
    pub(super) confined: &'a Confined,
    /// The thread that reads, or has read last.
    pub(super) reader: Mutex<Option<JoinHandle<()>>>,
}

/// What a file says, when it can be used.
type Read = Result<(Checked, Policy), Refused>;

/// Why it cannot.
enum Refused {
    Unusable(Unusable),
    Policy(Vec<Complaint>),
    Unread(String),
}

impl Reloads<'_> {
    /// Puts the settings of the file in force. A bad file changes nothing.
    pub(super) async fn reload(&self) -> Reloaded {
        match self.read().await {
            Ok((checked, policy)) => self.put_in_force(checked, policy),
            Err(refused) => {
                self.engine.telemetry().reloaded("refused");
                let file = self.file.display().to_string();
                let (report, why) = refused.tell();
                Reloaded { file, report, why, ..Reloaded::default() }
            }
        }
    }

    async fn read(&self) -> Read {
        let (read, told) = oneshot::channel();
        let (file, engine) = (self.file.to_owned(), self.engine.clone());
        {
            let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
            if reader.as_ref().is_some_and(|reader| !reader.is_finished()) {
                return Err(Refused::Unread("the reload before is still reading".into()));
            }
            let thread = thread::Builder::new().name("reload".into()).spawn(move || {
                // Nobody listens any more if it has taken too long.
                let _ = read.send(read_file(&file, &engine));
            });
            *reader = Some(thread.map_err(|why| Refused::Unread(format!("no thread: {why}")))?);
        }
        let seconds = LONGEST_READ.as_secs();
        match timeout(LONGEST_READ, told).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => {
                self.engine.failed(Failure::Panic, &"the settings could not be read");
                Err(Refused::Unread("a fault of ours, see the log".into()))
            }
            Err(_) => Err(Refused::Unread(format!(
                "the settings or a list they name could not be read within {seconds} s: does the \
                 disk answer?"
            ))),
        }
    }

    fn put_in_force(&self, checked: Checked, policy: Policy) -> Reloaded {
        let Checked { settings, report, .. } = checked;
        self.engine.replace_policy(policy);
        report.lines(Severity::Warning).for_each(|line| warn!("{line}"));
        if let Err(error) = self.sampler.watch(&settings.load) {
            error!(%error, "cannot start the sensors' thread");
        }
        self.logging.set_level(settings.log.level);
        let mut restart = settings.needs_restart(self.running);
        restart.extend(self.confined.refuses(&settings.load));
        if !restart.is_empty() {
            warn!("takes effect only at a restart: {}", restart.join(", "));
        }
        self.engine.telemetry().reloaded("done");
        info!(file = %self.file.display(), "reloaded");
        Reloaded {
            done: true,
            file: self.file.display().to_string(),
            report: report.to_string(),
            why: String::new(),
            in_force: settings.in_force(&self.engine.rules()),
            replaced: settings.replaced(),
            restart: restart.into_iter().map(Into::into).collect(),
        }
    }
}

fn read_file(file: &Path, engine: &Engine) -> Read {
    let checked = Settings::load(file).map_err(Refused::Unusable)?;
    let policy = checked.settings.policy(engine.memory()).map_err(Refused::Policy)?;
    Ok((checked, policy))
}

impl Refused {
    /// Says so in the log, and returns what is told to whoever has asked: all of it, and the first
    /// of it.
    fn tell(self) -> (String, String) {
        let messages = match self {
            Self::Unusable(Unusable(report)) => {
                report.lines(Severity::Error).for_each(|line| error!("not reloaded: {line}"));
                report.lines(Severity::Warning).for_each(|line| warn!("{line}"));
                return (report.to_string(), report.first_error().unwrap_or_default());
            }
            Self::Policy(complaints) => complaints.into_iter().map(|it| it.message).collect(),
            Self::Unread(why) => vec![why],
        };
        messages.iter().for_each(|message| error!("not reloaded: {message}"));
        let report = messages.iter().map(|message| format!("error: {message}\n")).collect();
        (report, messages.into_iter().next().unwrap_or_default())
    }
}
