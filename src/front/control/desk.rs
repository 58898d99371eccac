//! What is answered, request by request.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::unix::UCred;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, timeout};
use tracing::info;

use super::protocol::{
    AllowedNow, Answer, Forgot, LiftedNow, Maintained, OfSender, Reloaded, Request, Told, Trouble,
};
use super::status::{Closed, Settings, Status, shown, whole};
use crate::clock::Time;
use crate::engine::Engine;
use crate::engine::recent::{self, Recalled};
use crate::front::address::Address;
use crate::meter::units::Span;
use crate::policy::by_hand::Scope;
use crate::policy::explain::{Explained, Forgotten};
use crate::policy::standing::Standing;
use crate::setting::Mode;

/// How long maintenance lasts where nobody says it: as long as most work takes, and short enough
/// that it does no harm if it is forgotten.
pub const USUAL_MAINTENANCE: Span = Span::secs(3_600);

/// The longest that can be asked for: by then every sender has given its mail back.
pub const LONGEST_MAINTENANCE: Span = crate::policy::maintenance::LONGEST;

/// From here on senders' users notice.
const LONG_MAINTENANCE: Span = Span::secs(4 * 3_600);

/// How long a client is allowed where nobody says it: until the next week of work.
pub const USUALLY_ALLOWED: Span = Span::secs(7 * 86_400);

/// The longest that can be asked for: by then it belongs into the settings.
pub const LONGEST_ALLOWED: Span = crate::policy::allowed::LONGEST;

/// Decisions about a sender that are told.
const MOST_ABOUT_A_SENDER: usize = 20;

/// How long a rule is taken out, or all are, where nobody says it.
pub const USUALLY_LIFTED: Span = Span::secs(3_600);

/// The longest bypass: one that is forgotten must not outlive the day.
pub const LONGEST_BYPASS: Span = Span::secs(86_400);

/// The longest shadow: for longer, the settings are the place.
pub const LONGEST_SHADOW: Span = Span::secs(7 * 86_400);

/// How long to wait for a change to be on disk: some flushes of the default, and shorter than
/// whoever asks waits for an answer.
const LONGEST_WRITE: Duration = Duration::from_secs(3);

/// Where a reload is asked for: by whoever has the settings, one after the other.
pub type Reloads = mpsc::Sender<oneshot::Sender<Reloaded>>;

/// What answers are made of.
pub struct Desk {
    /// Everything that is known.
    pub engine: Arc<Engine>,
    /// When the daemon began to serve.
    pub since: Time,
    /// What it goes by, as it was read last.
    pub settings: Arc<Mutex<Settings>>,
    /// The addresses of its listeners.
    pub listeners: Arc<[Arc<str>]>,
    /// Where a reload is asked for.
    pub reloads: Reloads,
}

impl Desk {
    pub(super) async fn answer(&self, text: &[u8], peer: &UCred) -> Answer {
        let answer = match Request::parse(text) {
            Ok(request) => self.serve(request, peer).await,
            Err(trouble) => Err(trouble),
        };
        answer.unwrap_or_else(Answer::Error)
    }

    async fn serve(&self, request: Request, peer: &UCred) -> Result<Answer, Trouble> {
        // What only reads is not told, and what has a line of its own not twice.
        if matches!(
            request,
            Request::Reload {}
                | Request::MaintenanceOn { .. }
                | Request::MaintenanceOff { .. }
                | Request::BypassOn { .. }
                | Request::BypassOff {}
                | Request::Shadow { .. }
                | Request::ShadowOff { .. }
        ) {
            info!(request = request.name(), uid = peer.uid(), pid = peer.pid(), "control");
        }
        match request {
            Request::Status {} => {
                // Nothing in there is left half-done by a panic.
                let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let status = Status::of(&self.engine, self.since, settings, &self.listeners);
                Ok(Answer::Status(Box::new(status)))
            }
            Request::Reload {} => self.reload().await.map(Answer::Reload),
            Request::MaintenanceOn { lasting, until, listener } => {
                let now = self.engine.now();
                let until = end(lasting, until, now)?;
                let maintained = self.close(listener.as_deref(), until, now)?;
                Ok(Answer::Maintenance(self.settled(maintained).await))
            }
            Request::MaintenanceOff { listener } => {
                let maintained = self.reopen(listener.as_deref())?;
                Ok(Answer::Maintenance(self.settled(maintained).await))
            }
            Request::Explain { what: Some(what), name, sender } => {
                let told = self.explain(&what, name.as_deref(), sender.as_deref())?;
                Ok(Answer::Explained(Box::new(told)))
            }
            Request::Explain { what: None, sender: Some(sender), .. } => {
                let (now, decisions) = self.about(&sender);
                Ok(Answer::Sender(OfSender { now, sender, decisions }))
            }
            Request::Explain { what: None, sender: None, .. } => {
                Err(Trouble::value("expected a client, the id of a decision, or a sender"))
            }
            Request::Forget { client } => {
                let client = client.to_canonical();
                let Forgotten { forgotten, left } = self.engine.forget(client);
                let (uid, pid, entries) = (peer.uid(), peer.pid(), forgotten.len());
                info!(%client, entries, uid, pid, "forgotten by hand");
                let warnings = self.warnings_of_disk(self.is_on_disk().await);
                Ok(Answer::Forgotten(Forgot { client, forgotten, left, warnings }))
            }
            Request::Allow { client, lasting, force } => {
                let network = self.engine.policy().known_by(network(&client)?);
                if !force && is_wide(network) {
                    return Err(Trouble::value(format!(
                        "{network} is a large part of the internet: --force allows it all the same"
                    )));
                }
                let until = self.engine.now() + allowed_for(lasting)?.duration();
                let full = |_| Trouble::unavailable("the table of clients allowed by hand is full");
                self.engine.allow(network, until).map_err(full)?;
                let (uid, pid) = (peer.uid(), peer.pid());
                info!(%network, %until, uid, pid, "allowed by hand");
                Ok(Answer::Allowed(self.allowed(network, Some(until)).await))
            }
            Request::AllowOff { client } => {
                let network = self.engine.policy().known_by(network(&client)?);
                if !self.engine.allow_no_more(network) {
                    let all = self.engine.allowed().into_iter().map(|entry| shown(entry.network));
                    let all: Vec<_> = all.collect();
                    let all = if all.is_empty() { "nobody is".into() } else { all.join(", ") };
                    let message = format!("{} is not allowed by hand: {all}", shown(network));
                    return Err(Trouble::value(message));
                }
                let (uid, pid) = (peer.uid(), peer.pid());
                info!(%network, uid, pid, "no longer allowed by hand");
                Ok(Answer::Allowed(self.allowed(network, None).await))
            }
            Request::BypassOn { lasting } => {
                let span = lifted_for(lasting, LONGEST_BYPASS)?;
                self.lift(Scope::Everything, span).map(Answer::Lifted)
            }
            Request::BypassOff {} => self.restore(Scope::Everything).map(Answer::Lifted),
            Request::Shadow { rule, lasting } => {
                let span = lifted_for(lasting, LONGEST_SHADOW)?;
                self.can_be_shadowed(&rule)?;
                self.lift(Scope::Rule(rule.into()), span).map(Answer::Lifted)
            }
            Request::ShadowOff { rule } => {
                self.restore(Scope::Rule(rule.into())).map(Answer::Lifted)
            }
        }
    }

    fn explain(
        &self,
        what: &str,
        name: Option<&str>,
        sender: Option<&str>,
    ) -> Result<Told, Trouble> {
        if let Ok(address) = what.parse::<IpAddr>() {
            let client = self.engine.explain(address.to_canonical(), name, sender);
            return Ok(self.told(None, client));
        }
        if name.is_some() || sender.is_some() {
            return Err(Trouble::value(format!(
                "--name and --sender need a client's address, and {what} is not one: a decision \
                 has its own name and sender"
            )));
        }
        let id = what.trim().trim_start_matches("id=");
        let Some((decision, client)) = self.engine.explain_decision(id) else {
            return Err(Trouble::value(format!(
                "{id} is neither an address nor the id of one of the last {} decisions; search \
                 the log for it",
                recent::MOST
            )));
        };
        Ok(self.told(Some(decision), client))
    }

    fn told(&self, decision: Option<Recalled>, client: Explained) -> Told {
        let lifted = self.engine.lifted();
        let bypass = lifted.iter().find(|lifted| lifted.scope == Scope::Everything);
        let closed = Closed::all(&self.engine, &self.listeners);
        let closed = closed.iter().find(|closed| closed.listener.is_none());
        let shares = match self.engine.load_mode() {
            Mode::Enforce => self.engine.memory().load.shares(),
            Mode::Shadow | Mode::Off => [1.0; 3],
        };
        let admitted = match client.standing {
            Standing::Suspect => shares[0],
            Standing::Unknown => shares[1],
            Standing::Proven => shares[2],
            Standing::Trusted => 1.0,
        };
        Told {
            now: self.engine.now(),
            decision,
            bypass: bypass.map(|bypass| bypass.until),
            maintenance: closed.map(|closed| closed.until),
            admitted: f64::from(admitted),
            client,
        }
    }

    fn about(&self, sender: &str) -> (Time, Vec<Recalled>) {
        (self.engine.now(), self.engine.decisions_about(sender, MOST_ABOUT_A_SENDER))
    }

    fn lift(&self, scope: Scope, span: Span) -> Result<LiftedNow, Trouble> {
        if !self.engine.lift(&scope, span.duration()) {
            return Err(Trouble::unavailable("too many rules are in shadow mode by hand already"));
        }
        Ok(self.lifted(scope))
    }

    fn restore(&self, scope: Scope) -> Result<LiftedNow, Trouble> {
        if self.engine.restore(&scope) {
            return Ok(self.lifted(scope));
        }
        Err(Trouble::value(match scope {
            Scope::Everything => "there is no bypass: the rules are in force".to_owned(),
            Scope::Rule(rule) => format!("{rule} is not in shadow mode by `ctl shadow`"),
        }))
    }

    fn lifted(&self, scope: Scope) -> LiftedNow {
        let all = self.engine.lifted();
        let until = all.iter().find(|lifted| lifted.scope == scope).map(|lifted| lifted.until);
        let bypass = all.iter().find(|lifted| lifted.scope == Scope::Everything);
        let rule = match scope {
            Scope::Everything => None,
            Scope::Rule(rule) => Some((*rule).to_owned()),
        };
        let warning = bypass.filter(|_| rule.is_some()).map(|bypass| {
            format!("a bypass still lets everything pass until {}", whole(bypass.until))
        });
        LiftedNow { rule, until, now: self.engine.now(), warnings: warning.into_iter().collect() }
    }

    fn can_be_shadowed(&self, rule: &str) -> Result<(), Trouble> {
        let rules = self.engine.rules();
        let by_hand = |name: &str| {
            let scope = Scope::Rule(name.into());
            self.engine.lifted().iter().any(|lifted| lifted.scope == scope)
        };
        match rules.iter().find(|(name, _)| **name == *rule) {
            Some((_, Mode::Enforce)) => Ok(()),
            Some(_) if by_hand(rule) || self.is_bypassed() => Ok(()),
            Some((_, mode)) => Err(Trouble::value(format!(
                "{rule} refuses no client anyway: its mode is {}",
                mode.name()
            ))),
            None => {
                let names: Vec<_> = rules.iter().map(|(name, _)| &**name).collect();
                let known = names.join(", ");
                Err(Trouble::value(format!("there is no rule {rule:?}; there are: {known}")))
            }
        }
    }

    fn is_bypassed(&self) -> bool {
        self.engine.lifted().iter().any(|lifted| lifted.scope == Scope::Everything)
    }

    async fn allowed(&self, network: IpNet, until: Option<Time>) -> AllowedNow {
        let kept = self.is_on_disk().await;
        let warnings = self.warnings_of_disk(kept);
        AllowedNow { network: shown(network), until, kept: kept == Some(true), warnings }
    }

    fn warnings_of_disk(&self, kept: Option<bool>) -> Vec<String> {
        let late = (kept == Some(false))
            .then(|| "it is not on disk yet: a restart now would lose it".to_owned());
        let loading = self.engine.telemetry().totals().loading.then(|| {
            "state is still being read: what was known before the restart may come back".to_owned()
        });
        late.into_iter().chain(loading).collect()
    }

    async fn reload(&self) -> Result<Reloaded, Trouble> {
        let stopping = || Trouble::unavailable("the daemon is stopping");
        let (answer, answered) = oneshot::channel();
        self.reloads.send(answer).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())
    }

    fn close(&self, listener: Option<&str>, until: Time, now: Time) -> Result<Maintained, Trouble> {
        let listener = listener.map(|name| self.listener(name)).transpose()?;
        let full = |_| Trouble::unavailable("too many listeners are closed already");
        self.engine.close(listener.as_deref(), until).map_err(full)?;
        let mut maintained = self.maintained(Vec::new());
        if until.since(now) > LONG_MAINTENANCE.duration() {
            maintained.warnings.push(format!(
                "after {LONG_MAINTENANCE} sending hosts warn their users, and after four or five \
                 days they bounce mail"
            ));
        }
        let longer = maintained.now.iter().find(|closed| closed.until > until);
        let longer = longer.filter(|closed| match &closed.listener {
            Some(closed) => listener.as_deref() == Some(closed),
            None => true,
        });
        if let Some(longer) = longer {
            let by = if longer.by_settings {
                "the settings say so"
            } else {
                "an earlier command said so"
            };
            let warning = format!("maintenance lasts longer, until {}: {by}", longer.end());
            maintained.warnings.push(warning);
        }
        Ok(maintained)
    }

    fn reopen(&self, listener: Option<&str>) -> Result<Maintained, Trouble> {
        let listener = listener.map(|name| self.listener(name)).transpose()?;
        let before = Closed::all(&self.engine, &self.listeners);
        let full = |_| Trouble::unavailable("too many listeners are closed already");
        self.engine.reopen(listener.as_deref()).map_err(full)?;
        let mut maintained = self.maintained(before);
        let of_all = maintained.now.iter().find(|closed| closed.listener.is_none());
        if let Some((listener, of_all)) = listener.zip(of_all) {
            let still = format!(
                "{listener} stays closed until {}, as all listeners are: `maintenance off` \
                 without --listener ends that",
                of_all.end()
            );
            if maintained.ended.is_empty() {
                return Err(Trouble::value(still));
            }
            maintained.warnings.push(still);
        }
        Ok(maintained)
    }

    /// How it is after a change; `before` is what was closed.
    fn maintained(&self, before: Vec<Closed>) -> Maintained {
        self.engine.tell_maintenance(&self.listeners);
        let now = Closed::all(&self.engine, &self.listeners);
        let lasts = |was: &Closed| now.iter().any(|closed| closed.listener == was.listener);
        let ended = before.into_iter().filter(|was| !lasts(was)).collect();
        let mut warnings = Vec::new();
        if !self.engine.memory().maintenance.is_whole() {
            warnings.push(
                "state is still being read: maintenance from before the restart may come back"
                    .to_owned(),
            );
        }
        Maintained { now, ended, kept: false, warnings }
    }

    /// Waits until a change is on disk, if anything is kept there.
    async fn settled(&self, mut maintained: Maintained) -> Maintained {
        let Some(kept) = self.is_on_disk().await else { return maintained };
        maintained.kept = kept;
        if !maintained.kept {
            let warning = "it is not on disk yet: a restart now would lose it";
            maintained.warnings.push(warning.to_owned());
        }
        maintained
    }

    /// Waits until everything up to now is on disk; nothing if nothing is kept there.
    async fn is_on_disk(&self) -> Option<bool> {
        let said = self.engine.now();
        let written = || self.engine.telemetry().totals().written_up_to;
        written()?;
        let mut look = interval(Duration::from_millis(20));
        let kept = async {
            while written().is_none_or(|up_to| up_to <= said) {
                look.tick().await;
            }
        };
        Some(timeout(LONGEST_WRITE, kept).await.is_ok())
    }

    /// A listener of ours, as it is known; it may be named in another way: `inet:[::1]:7421`, or a
    /// plain path.
    fn listener(&self, name: &str) -> Result<Arc<str>, Trouble> {
        let address = match name.starts_with('/') {
            true => format!("unix:{name}").parse::<Address>(),
            false => name.parse::<Address>(),
        };
        let written = address.map_or_else(|_| name.to_owned(), |address| address.to_string());
        let known = self.listeners.iter().find(|listener| ***listener == *written);
        known.cloned().ok_or_else(|| {
            let known = self.listeners.join(", ");
            Trouble::value(format!("there is no listener {name:?}; there are: {known}"))
        })
    }
}

/// An address or a network, as it is said.
fn network(text: &str) -> Result<IpNet, Trouble> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    let network = address.or_else(|_| text.parse::<IpNet>()).map(|network| network.trunc());
    network.map_err(|_| {
        let such = r#"an address, or a network such as "192.0.2.0/24""#;
        Trouble::value(format!("expected {such}, not {text:?}"))
    })
}

/// Whether it is more than an administrator can mean without saying so: the internet's largest
/// registries give out such networks.
fn is_wide(network: IpNet) -> bool {
    let narrow = if network.addr().is_ipv4() { 8 } else { 19 };
    network.prefix_len() < narrow
}

/// How long a rule is taken out.
fn lifted_for(lasting: Option<Span>, longest: Span) -> Result<Span, Trouble> {
    let lasting = lasting.unwrap_or(USUALLY_LIFTED);
    if lasting.duration().is_zero() || lasting > longest {
        let message = format!(
            "expected a time of {longest} at most, not {lasting}: for longer, set `mode` in the \
             settings"
        );
        return Err(Trouble::value(message));
    }
    Ok(lasting)
}

/// How long a client is allowed.
fn allowed_for(lasting: Option<Span>) -> Result<Span, Trouble> {
    let lasting = lasting.unwrap_or(USUALLY_ALLOWED);
    if lasting.duration().is_zero() || lasting > LONGEST_ALLOWED {
        let message = format!(
            "expected a time of {LONGEST_ALLOWED} at most, not {lasting}: for longer, use \
             `[access] allow`"
        );
        return Err(Trouble::value(message));
    }
    Ok(lasting)
}

/// When maintenance is over that begins now.
fn end(lasting: Option<Span>, until: Option<Time>, now: Time) -> Result<Time, Trouble> {
    let until = match (lasting, until) {
        (Some(_), Some(_)) => return Err(Trouble::value("expected either `for` or `until`")),
        (None, Some(until)) => until,
        (lasting, None) => now + lasting.unwrap_or(USUAL_MAINTENANCE).duration(),
    };
    if until <= now {
        let message = format!(
            "expected a time in the future, not {}: it is {} now",
            whole(until),
            whole(now)
        );
        return Err(Trouble::value(message));
    }
    if until.since(now) > LONGEST_MAINTENANCE.duration() {
        let message = format!(
            "expected {LONGEST_MAINTENANCE} at most: before that, mail bounces at the senders"
        );
        return Err(Trouble::value(message));
    }
    Ok(until)
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Kind;
    use super::*;

    #[test]
    fn a_client_is_allowed_for_a_week_unless_it_is_said_and_for_ninety_days_at_most() {
        assert_eq!(allowed_for(None), Ok(Span::secs(7 * 86_400)));
        assert_eq!(allowed_for(Some(LONGEST_ALLOWED)), Ok(LONGEST_ALLOWED));
        for wrong in [0, 90 * 86_400 + 1] {
            assert_eq!(allowed_for(Some(Span::secs(wrong))).unwrap_err().kind, Kind::Value);
        }
        let text = |text: &str| network(text).map(shown);
        assert_eq!(text("::ffff:192.0.2.7").as_deref(), Ok("192.0.2.7"));
        assert_eq!(text("192.0.2.7/24").as_deref(), Ok("192.0.2.0/24"));
        assert_eq!(text("mx.example.org").unwrap_err().kind, Kind::Value);
    }

    #[test]
    fn maintenance_ends_as_it_is_said_or_after_an_hour_and_never_later_than_after_a_week() {
        let now = Time::from_secs(1_800_000_000);
        let after = |secs| now + Duration::from_secs(secs);
        assert_eq!(end(None, None, now), Ok(after(3_600)));
        assert_eq!(end(Some(Span::secs(60)), None, now), Ok(after(60)));
        assert_eq!(end(None, Some(after(60)), now), Ok(after(60)));
        assert_eq!(end(Some(LONGEST_MAINTENANCE), None, now), Ok(after(604_800)));
        for (lasting, until) in [
            (Some(Span::secs(60)), Some(after(60))),
            (Some(Span::secs(0)), None),
            (Some(Span::secs(604_801)), None),
            (None, Some(now)),
            (None, Some(after(604_801))),
        ] {
            assert_eq!(end(lasting, until, now).unwrap_err().kind, Kind::Value);
        }
    }
}
