//! The seam: clock, policy, memory and telemetry, and the sessions that use them.
//!
//! From event to answer everything is synchronous, waits for nothing, and fails open: in our own
//! trouble the mail passes. That is decided in one place, `Engine::or_pass`.

mod awaiting;
mod by_hand;
mod explain;
pub mod recent;
mod session;

use std::any::Any;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::recent::Recent;
use self::session::Id;
pub use self::session::Session;
use crate::clock::{Clock, Moment, Time, Watch};
use crate::meter::key::{Key, Secret};
use crate::meter::record::{Record, Worth};
use crate::meter::table::{Full, Table};
use crate::policy::decision::Reason;
use crate::policy::load::{Crossing, Sample};
use crate::policy::maintenance::Closure;
use crate::policy::signal::{Arrival, Ends};
use crate::policy::{Memory, Policy};
use crate::setting::Mode;
use crate::smtp::address::Address;
use crate::smtp::client::{Client, Network, Prefixes};
use crate::smtp::event::Kind;
use crate::smtp::reply::Reply;
use crate::telemetry::{Failure, Telemetry};

/// When a session that is refused at its beginning hears of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speak {
    /// At HELO or EHLO, or at MAIL if that is skipped: both MTAs send our text whole.
    #[default]
    Helo,
    /// At MAIL, so that who authenticates in between can be exempt.
    Mail,
    /// At once: both MTAs send a text of their own instead of ours.
    Connect,
}

/// What the front tells the MTA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go on.
    Pass,
    /// Say this; its code says whether the session is closed.
    Refuse(Refused),
}

/// A refusal, and the facts behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is said.
    pub reply: Reply,
    /// Why.
    pub reason: Reason,
    /// The limit that spoke, if it was one.
    pub limit: Option<Arc<str>>,
    /// The true wait, without the jitter of the one that is told.
    pub wait: Duration,
    /// The id of the decision, the same as in the log.
    pub id: String,
}

/// The door by which a session comes.
#[derive(Clone, Debug)]
pub struct Door {
    /// What the listener is called: its address, or the `policy_context` that Postfix has told.
    pub listener: Arc<str>,
    /// The listener's address, as it is set.
    pub address: Arc<str>,
    /// What the MTA calls the host, if it says so at this door.
    pub hostname: Option<Arc<str>>,
    /// When a refused session hears of it.
    pub speak: Speak,
    /// Whether the front reports what ends.
    pub ends: Ends,
    /// Whether what is answered has no consequences: a trace that is only to be scored.
    pub rehearsal: bool,
}

/// Everything a front needs.
pub struct Engine {
    clock: Box<dyn Clock>,
    /// Whether it is to be believed.
    watch: Watch,
    secret: Secret,
    /// Sessions whose end will be seen, by address and port of the client. Bound: [`MOST_HELD`];
    /// a session beyond it is not known to the policy service, which then counts it as well.
    held: Table<Held>,
    /// Whether anybody asks what is held.
    asked: AtomicBool,
    policy: ArcSwap<Policy>,
    memory: Memory,
    telemetry: Telemetry,
    decisions: AtomicU64,
    /// What the MTA calls the host, where it does not say so at each session.
    mta: OnceLock<Box<str>>,
    /// The last decisions, to be explained.
    recent: Recent,
    /// Until when it was told that behaviour only watches; zero: it was not.
    told_learning: AtomicU64,
}

impl Engine {
    /// An engine over this memory. The policy must have been built over the same.
    pub fn new(clock: Box<dyn Clock>, memory: Memory, policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            clock,
            watch: Watch::default(),
            secret: memory.secret().clone(),
            held: Table::new(MOST_HELD),
            asked: AtomicBool::new(false),
            policy: ArcSwap::from_pointee(policy),
            memory,
            telemetry: Telemetry::new(),
            decisions: AtomicU64::new(0),
            mta: OnceLock::new(),
            recent: Recent::default(),
            told_learning: AtomicU64::new(0),
        })
    }

    /// The policy in force now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Begins a session. It keeps the policy that is in force now.
    pub fn session(self: &Arc<Self>, client: Client, door: Door) -> Session {
        self.session_under(self.policy(), client, door)
    }

    /// The same under this policy: in whose name something was agreed on with the MTA.
    pub fn session_under(
        self: &Arc<Self>,
        policy: Arc<Policy>,
        client: Client,
        door: Door,
    ) -> Session {
        Session::begin(self, policy, client, door)
    }

    /// Notes a session whose end will be seen; where it is noted, and whether its connection still
    /// counts.
    fn take(&self, client: &Client, ends: Ends, at: Moment) -> Option<(Key, Arrival)> {
        if ends != Ends::Seen || !self.asked.load(Ordering::Relaxed) {
            return None;
        }
        let key = self.endpoint(client)?;
        let arrival = self.held.write(key, at, |held| held.take(at.now)).ok()?;
        Some((key, arrival))
    }

    /// A policy service begins, which will ask what sessions are held. Until then none is noted,
    /// since that takes a tenth of a session.
    pub fn will_be_asked(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether a session of this client, by address and port, is held whose end will be seen.
    pub fn holds(&self, client: &Client) -> bool {
        let at = self.moment();
        let known =
            |key| self.held.read(key, at, |held| held.is_some_and(|held| held.sessions > 0));
        self.endpoint(client).is_some_and(known)
    }

    /// What was refused since its last delivery in the session of this client whose end will be seen.
    pub fn refused_elsewhere(&self, client: &Client) -> u32 {
        let refused = |held: Option<&Held>| held.map_or(0, |held| held.refused);
        self.endpoint(client).map_or(0, |key| self.held.read(key, self.moment(), refused))
    }

    /// The policy service was asked about this connection and has counted it. If a milter is asked
    /// as well, it is asked next.
    pub fn counted(&self, client: &Client) {
        let at = self.moment();
        if let Some(key) = self.endpoint(client) {
            // When the table is full, it counts twice.
            let _ = self.held.write(key, at, |held| held.counted = at.now);
        }
    }

    /// Of no use without the port: many sessions of one address are open at once.
    fn endpoint(&self, client: &Client) -> Option<Key> {
        let port = client.port?.to_be_bytes();
        let address = Network::of(client.address(), Prefixes { ipv4: 32, ipv6: 128 });
        Some(self.secret.key("endpoint").part(&address.octets()).part(&port).finish())
    }

    /// The present moment, for what a front must forget in time.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// The same, and whether it is to be believed.
    pub fn moment(&self) -> Moment {
        self.watch.moment(&*self.clock)
    }

    /// We last ran then: by that the clock we have started with is believed or not.
    pub fn last_ran(&self, then: Time) {
        self.watch.last_ran(&*self.clock, then);
    }

    /// The MTA calls the host so. Once, before it serves.
    pub fn called(&self, hostname: &str) {
        // The first holds.
        let _ = self.mta.set(hostname.into());
    }

    /// Puts another policy in force for sessions that begin from now on.
    pub fn replace_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// Our own trouble has let mail pass.
    pub fn failed(&self, failure: Failure, detail: &dyn Display) {
        self.telemetry.failed(failure, self.clock.now(), detail);
    }

    /// Forgets what has faded in the next of so many parts of memory, and folds latencies into
    /// their buckets. Beside the mail path.
    pub fn sweep(&self, parts: usize) {
        let at = self.moment();
        let now = at.now;
        self.memory.sweep(at, parts);
        self.held.sweep(at, parts);
        self.telemetry.clock(at);
        self.tell_of_greylisting(now);
        self.tell_learning();
        self.tell_lifted();
        self.telemetry.note(now);
        self.telemetry.upkeep();
    }

    /// Somebody has written to somebody else: an answer will be no first contact.
    pub fn has_written(&self, from: &Address, to: &Address) {
        self.policy.load().has_written(from, to, self.moment());
    }

    /// Takes in what the sensors of the load say now. Beside the mail path, and by one only.
    pub fn observe(&self, samples: Vec<Sample>) -> Option<Crossing> {
        let (load, policy) = (&self.memory.load, self.policy.load());
        let crossing = load.observe(samples, policy.load(), self.clock.now());
        self.telemetry.sensors(&load.sensors(), load.level(), load.shares());
        if let Some(crossing) = &crossing {
            self.telemetry.crossed(crossing);
        }
        crossing
    }

    /// Only these sensors of the load count from now on.
    pub fn count_only(&self, sensors: Vec<Arc<str>>) {
        let load = &self.memory.load;
        let crossing = load.count_only(sensors);
        self.telemetry.sensors(&load.sensors(), load.level(), load.shares());
        if let Some(crossing) = &crossing {
            self.telemetry.crossed(crossing);
        }
    }

    /// Whether the load acts.
    pub fn load_mode(&self) -> Mode {
        self.policy.load().load().mode
    }

    /// Puts off new sessions of one listener, or of all of them, until that moment.
    pub fn close(&self, listener: Option<&str>, until: Time) -> Result<(), Full> {
        self.memory.maintenance.begin(listener, until, self.clock.now())
    }

    /// Ends what was closed by hand for this listener; without one, everything, also what the
    /// settings have closed.
    pub fn reopen(&self, listener: Option<&str>) -> Result<(), Full> {
        let (now, memory) = (self.clock.now(), &self.memory.maintenance);
        match listener {
            Some(_) => {
                memory.end(listener);
                Ok(())
            }
            None => memory.end_everything(self.policy.load().maintenance().by_settings(now), now),
        }
    }

    /// What is closed now: all listeners together, first, and these by themselves.
    pub fn closures(&self, listeners: &[Arc<str>]) -> Vec<(Option<Arc<str>>, Closure)> {
        let (now, policy) = (self.clock.now(), self.policy.load());
        let scopes = std::iter::once(None).chain(listeners.iter().cloned().map(Some));
        let closure = |scope: Option<Arc<str>>| {
            let closure = policy.maintenance().closure(scope.as_deref(), now)?;
            Some((scope, closure))
        };
        scopes.filter_map(closure).collect()
    }

    /// Tells what has begun or ended of maintenance. Beside the mail path.
    pub fn tell_maintenance(&self, listeners: &[Arc<str>]) {
        let closed = self.closures(listeners);
        let scopes = std::iter::once(None).chain(listeners.iter().map(Some));
        self.telemetry.maintenance(scopes.map(|scope| {
            let closure = closed.iter().find(|(closed, _)| closed.as_ref() == scope);
            let name = scope.map_or_else(|| "all".into(), Arc::clone);
            (name, closure.map(|(_, closure)| *closure))
        }));
    }

    /// All metrics, as of now.
    pub fn metrics(&self) -> String {
        self.tell_of_greylisting(self.clock.now());
        self.telemetry.table_sizes(self.memory.sizes());
        self.telemetry.state_behind(self.memory.behind(), self.clock.now());
        self.telemetry.render()
    }

    fn tell_of_greylisting(&self, now: Time) {
        self.telemetry.greylisting(self.policy.load().greylist_is_suspended(now), now);
    }

    /// What the signals remember.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What counts and tells.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The answer, or a pass where deciding has panicked.
    ///
    /// Whatever a panic leaves half-done in a session or in memory is at worst a count that is
    /// off; every table stays a table.
    fn or_pass(&self, kind: Kind, answer: Result<Answer, Box<dyn Any + Send>>) -> Answer {
        answer.unwrap_or_else(|_| {
            self.failed(Failure::Panic, &format_args!("deciding at {} panicked", kind.name()));
            Answer::Pass
        })
    }

    fn next_id(&self, now: Time) -> Id {
        let serial = self.decisions.fetch_add(1, Ordering::Relaxed);
        Id(((now.as_nanos() / 1_000_000) << 12) | (serial & 0xfff))
    }
}

/// Sessions that can be known to the policy service at once.
const MOST_HELD: usize = 1 << 17;

/// What is known of one endpoint.
#[derive(Default)]
struct Held {
    /// How many sessions it has: one, but for a port that is used again at once.
    sessions: u32,
    /// Refusals in it since its last delivery.
    refused: u32,
    /// When the policy service has counted its connection.
    counted: Time,
}

/// How long after the policy service a milter is asked about the same connection at most.
const NEXT: Duration = Duration::from_secs(10);

impl Held {
    fn take(&mut self, now: Time) -> Arrival {
        self.sessions += 1;
        self.refused = 0;
        let counted = std::mem::take(&mut self.counted);
        if now.is_within(NEXT, counted) { Arrival::Counted } else { Arrival::Open }
    }
}

impl Record for Held {
    const FAVOURS: bool = false;

    fn forgettable(&self, now: Time) -> bool {
        self.sessions == 0 && !now.is_within(NEXT, self.counted)
    }

    fn worth(&self) -> Worth {
        if self.sessions == 0 { Worth::Fleeting(self.counted.as_nanos()) } else { Worth::Lasting }
    }

    fn seen_from(&self, now: Time, _: Duration) -> Option<Self> {
        // Counted by a clock that was ahead, it says nothing.
        (self.counted > now).then_some(Self { counted: Time::default(), ..*self })
    }
}

#[cfg(test)]
mod tests;
