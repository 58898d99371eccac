//! A reload: other settings for the sessions that follow.

use std::path::Path;

use tracing::{error, info, warn};

use super::confine::Confined;
use super::log::Logging;
use super::sampler::Sampler;
use crate::config::{Settings, Unusable};
use crate::engine::Engine;
use crate::front::control::protocol::Reloaded;
use crate::setting::{Complaint, Severity};

/// Puts the settings of the file in force. A bad file changes nothing.
pub(super) fn reload(
    running: &Settings,
    file: &Path,
    engine: &Engine,
    sampler: &Sampler,
    logging: &Logging,
    confined: &Confined,
) -> Reloaded {
    let refused = |report: String, why: Option<String>| {
        engine.telemetry().reloaded("refused");
        let why = why.unwrap_or_default();
        Reloaded { file: file.display().to_string(), report, why, ..Reloaded::default() }
    };
    let checked = match Settings::load(file) {
        Ok(checked) => checked,
        Err(Unusable(report)) => {
            report.lines(Severity::Error).for_each(|line| error!("not reloaded: {line}"));
            report.lines(Severity::Warning).for_each(|line| warn!("{line}"));
            return refused(report.to_string(), report.first_error());
        }
    };
    match checked.settings.policy(engine.memory()) {
        Ok(policy) => engine.replace_policy(policy),
        Err(complaints) => {
            complaints.iter().for_each(|complaint| error!("not reloaded: {}", complaint.message));
            let why = complaints.first().map(|complaint| complaint.message.clone());
            let line = |complaint: Complaint| format!("error: {}\n", complaint.message);
            return refused(complaints.into_iter().map(line).collect(), why);
        }
    }
    checked.report.lines(Severity::Warning).for_each(|line| warn!("{line}"));
    if let Err(error) = sampler.watch(&checked.settings.load) {
        error!(%error, "cannot start the sensors' thread");
    }
    logging.set_level(checked.settings.log.level);
    let mut restart = checked.settings.needs_restart(running);
    restart.extend(confined.refuses(&checked.settings.load));
    if !restart.is_empty() {
        warn!("takes effect only at a restart: {}", restart.join(", "));
    }
    engine.telemetry().reloaded("done");
    info!(file = %file.display(), "reloaded");
    Reloaded {
        done: true,
        file: file.display().to_string(),
        report: checked.report.to_string(),
        why: String::new(),
        in_force: checked.settings.in_force(&engine.rules()),
        replaced: checked.settings.replaced(),
        restart: restart.into_iter().map(Into::into).collect(),
    }
}
