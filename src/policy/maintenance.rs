//! Is the host being worked on?
//!
//! Then new sessions are put off until it is over, whoever comes; running ones finish. A policy
//! service is not told when a session begins: what it has not been asked about before counts as
//! new, unless a milter of ours holds the session and has let it in.

use std::sync::Arc;

use super::access::Lists;
use super::decision::{Decision, Refusal, Why};
use super::signal::{Context, Ends, Ledger, Round, Signal};
use crate::clock::{Moment, Time};
use crate::meter::key::{Key, Secret};
use crate::meter::record::Said;
use crate::meter::table::{Full, Kept, Size, Table};
use crate::meter::units::Span;
use crate::setting::Mode;
use crate::smtp::event::Event;
use crate::smtp::template::Template;

/// Who is served all the same, and until when it lasts by the settings.
pub struct Params {
    /// When it is over, if the settings say that there is any.
    pub until: Option<Time>,
    /// Clients that are served.
    pub allow: Lists,
    /// What is said.
    pub reply: Arc<Template>,
}

/// That a listener is closed, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closure {
    /// When it is over.
    pub until: Time,
    /// Who has said so.
    pub by: By,
}

/// Who has closed a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// An administrator, by `ctl`.
    Hand,
    /// `[maintenance] until`.
    Settings,
}

impl By {
    /// Its one name in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hand => "hand",
            Self::Settings => "settings",
        }
    }
}

/// What was said by hand. It outlives the process.
#[derive(Clone)]
pub struct Memory {
    secret: Secret,
    /// By listener; bound: [`MOST_CLOSED`].
    closed: Arc<Table<Said>>,
}

/// One for each listener of ours, one for all, and one for what was lifted; who asks for more is
/// told so.
const MOST_CLOSED: usize = 256;

/// The longest that can be asked for: by then every sender has given its mail back.
pub const LONGEST: Span = Span::secs(7 * 86_400);

impl Memory {
    pub(super) fn new(secret: &Secret) -> Self {
        let closed = Arc::new(Table::noting_changes(MOST_CLOSED));
        closed.lasts_at_most(LONGEST.duration());
        Self { secret: secret.clone(), closed }
    }

    pub(super) fn signal(&self, params: Params) -> Maintenance {
        Maintenance { params, memory: self.clone() }
    }

    pub(super) fn sweep(&self, at: Moment) {
        self.closed.sweep(at, 1);
    }

    pub(super) fn size(&self) -> (&'static str, Size) {
        ("maintenance", self.closed.size())
    }

    pub(super) fn kept(&self) -> (&'static str, Arc<dyn Kept>) {
        ("maintenance", self.closed.clone())
    }

    /// Begins maintenance of one listener, or of all of them, or changes its end.
    pub fn begin(&self, listener: Option<&str>, until: Time, now: Time) -> Result<(), Full> {
        let said = Said::until(until, now);
        self.closed.write(self.key(listener), Moment::of(now), |closed| *closed = said)
    }

    /// Ends what was begun by hand for this listener, or for all of them together.
    pub fn end(&self, listener: Option<&str>) {
        self.closed.forget(self.key(listener));
    }

    /// Ends everything, that of single listeners too; and that of the settings, where they say
    /// that there is any until this moment.
    pub fn end_everything(&self, by_settings: Option<Time>, now: Time) -> Result<(), Full> {
        let keys = (0..self.closed.parts()).flat_map(|part| self.closed.keys(part));
        keys.for_each(|key| _ = self.closed.forget(key));
        let Some(until) = by_settings else { return Ok(()) };
        let said = Said::moment(until);
        self.closed.write(self.lifted(), Moment::of(now), |lifted| *lifted = said)
    }

    /// Whether everything is known again that was said before a restart.
    pub fn is_whole(&self) -> bool {
        self.closed.is_whole()
    }

    /// Until when a listener is closed by hand, or all of them together.
    fn until(&self, listener: Option<&str>, now: Time) -> Option<Time> {
        if self.closed.is_empty() {
            return None;
        }
        let closed = |closed: &&Said| !closed.is_moment();
        let until = |said: Option<&Said>| said.filter(closed).map(|closed| closed.until);
        self.closed.read(self.key(listener), Moment::of(now), until)
    }

    /// Whether what the settings say until this moment was ended by hand. If they come to name
    /// another moment, that holds.
    fn is_lifted(&self, until: Time, now: Time) -> bool {
        !self.closed.is_empty()
            && self.closed.read(self.lifted(), Moment::of(now), |lifted| {
                lifted.is_some_and(|lifted| lifted.until == until)
            })
    }

    fn key(&self, listener: Option<&str>) -> Key {
        let key = self.secret.key("maintenance");
        listener.map_or(key.clone(), |listener| key.part(listener.as_bytes())).finish()
    }

    fn lifted(&self) -> Key {
        self.secret.key("maintenance lifted").finish()
    }
}

/// The signal.
pub struct Maintenance {
    params: Params,
    memory: Memory,
}

impl Maintenance {
    /// Until when the settings say that there is any, whether or not that was ended by hand.
    pub fn by_settings(&self, now: Time) -> Option<Time> {
        self.params.until.filter(|until| *until > now)
    }

    /// Whether this listener is closed, or all of them together, which includes it.
    pub fn closure(&self, listener: Option<&str>, now: Time) -> Option<Closure> {
        let by_hand = self.memory.until(listener, now);
        let by_hand = by_hand.map(|until| Closure { until, by: By::Hand });
        let by_settings = self.by_settings(now).filter(|_| listener.is_none());
        let by_settings = by_settings.filter(|until| !self.memory.is_lifted(*until, now));
        let by_settings = by_settings.map(|until| Closure { until, by: By::Settings });
        by_settings.into_iter().chain(by_hand).max_by_key(|closure| closure.until)
    }

    /// When it is over for those who come by this listener, if it is not.
    pub(super) fn over(&self, listener: &str, now: Time) -> Option<Time> {
        let closures = [Some(listener), None].map(|scope| self.closure(scope, now));
        closures.into_iter().flatten().map(|closure| closure.until).max()
    }
}

impl Signal for Arc<Maintenance> {
    fn name(&self) -> &'static str {
        "maintenance"
    }

    fn binds_exempt(&self) -> bool {
        true
    }

    fn assess(&self, cx: &Context<'_>, _: &Ledger, round: &mut Round) {
        // What a milter of ours holds has begun there, before it perhaps.
        if !matches!(cx.event, Event::Connect) || cx.ends == Ends::SeenElsewhere {
            return;
        }
        let over = self.over(cx.address, cx.now);
        if let Some(until) = over.filter(|_| !self.params.allow.names(cx.client)) {
            let why = Why::Maintenance { until };
            let refusal =
                Refusal::new(Mode::Enforce, &self.params.reply, why).waiting(until.since(cx.now));
            round.refuse(Refusal { binds_exempt: true, ..refusal });
        }
    }

    fn settle(&self, _: &Context<'_>, _: &Decision, _: &mut Ledger) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Time = Time::from_secs(1_800_000_000);
    const SOCKET: &str = "inet:127.0.0.1:7421";

    fn after(secs: u64) -> Time {
        NOW + Duration::from_secs(secs)
    }

    fn signal(memory: &Memory, until: Option<Time>) -> Maintenance {
        let reply = "421 4.3.2 Closed; retry in {wait} seconds".parse().unwrap();
        memory.signal(Params { until, allow: Lists::default(), reply: Arc::new(reply) })
    }

    #[test]
    fn the_longest_that_concerns_a_listener_holds() {
        let memory = Memory::new(&Secret::new([0; 16]));
        let signal = signal(&memory, Some(after(20)));
        assert_eq!(signal.over(SOCKET, NOW), Some(after(20)));
        memory.begin(Some(SOCKET), after(30), NOW).unwrap();
        assert_eq!(signal.over(SOCKET, NOW), Some(after(30)));
        assert_eq!(signal.over("another", NOW), Some(after(20)));
        memory.begin(None, after(40), NOW).unwrap();
        assert_eq!(signal.closure(None, NOW), Some(Closure { until: after(40), by: By::Hand }));
        memory.end(None);
        assert_eq!(signal.closure(None, NOW), Some(Closure { until: after(20), by: By::Settings }));
        assert_eq!(signal.over(SOCKET, after(30)), None);
    }

    #[test]
    fn what_the_settings_say_can_be_ended_by_hand_until_they_say_something_else() {
        let memory = Memory::new(&Secret::new([0; 16]));
        memory.begin(Some(SOCKET), after(30), NOW).unwrap();
        memory.end_everything(Some(after(20)), NOW).unwrap();
        assert_eq!(signal(&memory, Some(after(20))).over(SOCKET, NOW), None);
        assert_eq!(signal(&memory, Some(after(21))).over(SOCKET, NOW), Some(after(21)));
        memory.sweep(Moment::of(after(20)));
        assert!(memory.closed.is_empty(), "it is forgotten when it means nothing any more");
    }
}
