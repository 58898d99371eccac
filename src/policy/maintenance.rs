//! Is the host being worked on?
//!
//! Then new sessions are put off until it is over, whoever comes; running ones finish.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::access::Lists;
use super::decision::{Decision, Refusal, Why};
use super::signal::{Context, Ledger, Round, Signal};
use crate::clock::Time;
use crate::meter::key::{Key, Secret};
use crate::meter::record::{Parts, Record, Stored, Worth, put_time};
use crate::meter::table::{Kept, Size, Table};
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

/// Maintenance that was begun by hand. It outlives the process.
#[derive(Clone)]
pub struct Memory {
    secret: Secret,
    /// By listener; bound: [`MOST_LISTENERS`].
    closed: Arc<Table<Closed>>,
}

/// One for each listener of ours and one for all; who asks for more is told so.
const MOST_LISTENERS: usize = 256;

/// Until when a listener is closed.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Closed {
    until: Time,
}

impl Record for Closed {
    fn forgettable(&self, now: Time) -> bool {
        self.until <= now
    }

    fn worth(&self) -> Worth {
        Worth::Lasting
    }
}

impl Stored for Closed {
    fn encode(&self, bytes: &mut Vec<u8>) {
        put_time(bytes, self.until);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(bytes);
        let read = Self { until: parts.time()? };
        parts.end(read)
    }

    fn fold(&mut self, other: Self) {
        self.until = self.until.max(other.until);
    }
}

impl Memory {
    pub(super) fn new(secret: &Secret) -> Self {
        let closed = Arc::new(Table::noting_changes(MOST_LISTENERS));
        Self { secret: secret.clone(), closed }
    }

    pub(super) fn signal(&self, params: Params) -> Maintenance {
        Maintenance { params, memory: self.clone() }
    }

    pub(super) fn sweep(&self, now: Time) {
        self.closed.sweep(now, 1);
    }

    pub(super) fn size(&self) -> (&'static str, Size) {
        ("maintenance", self.closed.size())
    }

    pub(super) fn kept(&self) -> (&'static str, Arc<dyn Kept>) {
        ("maintenance", self.closed.clone())
    }

    fn key(&self, listener: Option<&str>) -> Key {
        let key = self.secret.key("maintenance");
        listener.map_or(key.clone(), |listener| key.part(listener.as_bytes())).finish()
    }

    /// Begins maintenance of one listener, or of all of them. False if there are too many.
    pub fn begin(&self, listener: Option<&str>, until: Time, now: Time) -> bool {
        self.closed.write(self.key(listener), now, |closed| closed.until = until).is_ok()
    }

    /// Ends it; says whether there was any.
    pub fn end(&self, listener: Option<&str>, now: Time) -> bool {
        self.closed.take(self.key(listener)).is_some_and(|closed| !closed.forgettable(now))
    }

    /// Until when a listener is closed, or all of them.
    pub fn until(&self, listener: Option<&str>, now: Time) -> Option<Time> {
        if self.closed.is_empty() {
            return None;
        }
        let until = |closed: Option<&Closed>| closed.map(|closed| closed.until);
        self.closed.read(self.key(listener), until).filter(|until| *until > now)
    }
}

/// The signal.
pub struct Maintenance {
    params: Params,
    memory: Memory,
}

impl Maintenance {
    fn over(&self, cx: &Context<'_>) -> Option<Time> {
        let by_settings = self.params.until.filter(|until| *until > cx.now);
        let by_hand = [Some(cx.listener), None].map(|l| self.memory.until(l, cx.now));
        by_hand.into_iter().chain([by_settings]).flatten().max()
    }
}

impl Signal for Maintenance {
    fn name(&self) -> &'static str {
        "maintenance"
    }

    fn binds_exempt(&self) -> bool {
        true
    }

    fn assess(&self, cx: &Context<'_>, _: &Ledger, round: &mut Round) {
        if !matches!(cx.event, Event::Connect) {
            return;
        }
        if let Some(until) = self.over(cx).filter(|_| !self.params.allow.names(cx.client)) {
            let why = Why::Maintenance { until };
            let refusal =
                Refusal::new(Mode::Enforce, &self.params.reply, why).waiting(until.since(cx.now));
            round.refuse(Refusal { binds_exempt: true, ..refusal });
        }
    }

    fn settle(&self, _: &Context<'_>, _: &Decision, _: &mut Ledger) {}
}
