//! A mail host in the stories: the engine with its policy, a clock moved by hand, and the keeper over
//! a shelf that outlives it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::shelf::{Entries, Shelf};
use crate::support::daemon::metric;
use crate::support::wait_until;
use postpone::clock::{ManualClock, Time};
use postpone::config::{Settings, Unusable};
use postpone::engine::{Answer, Engine, Refused, Session};
use postpone::meter::key::{Key, Secret};
use postpone::meter::table::Kept;
use postpone::policy::Memory;
use postpone::policy::decision::Reason;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use postpone::store::Fault;
use postpone::store::keeper::Keeper;

pub(crate) const START: Time = Time::from_secs(1_800_000_000);
pub(crate) const DELAY: Duration = Duration::from_secs(300);

/// Nothing but greylisting.
pub(crate) const GREYLIST: &str =
    "limit = []\n[behaviour]\nmode = \"off\"\n[greylist]\nmode = \"enforce\"\nproven_after = 2\n";

/// One life of the process.
pub(crate) struct Host {
    pub(crate) engine: Arc<Engine>,
    pub(crate) clock: Arc<ManualClock>,
    settings: Settings,
    keeper: Keeper,
}

impl Host {
    /// Starts at the time of this clock, over what is on the shelf.
    pub(crate) fn start(shelf: &Shelf, clock: &Arc<ManualClock>, policy: &str) -> Self {
        let checked = Settings::parse("the policy", &format!("{policy}\n[access]\nallow = []\n"));
        let settings = checked.unwrap_or_else(|Unusable(report)| panic!("{report}")).settings;
        let memory = Memory::new(&Secret::new([5; 16]), settings.bounds());
        let policy = settings.policy(&memory).expect("it names no files");
        let engine = Engine::new(Box::new(clock.clone()), memory, policy);
        let flush = Duration::from_millis(1);
        let keeper = Keeper::start(Box::new(shelf.clone()), engine.clone(), flush);
        let keeper = keeper.expect("a thread");
        Self { engine, clock: clock.clone(), settings, keeper }
    }

    /// The same, and waits until everything is known again.
    pub(crate) fn started(shelf: &Shelf, clock: &Arc<ManualClock>, policy: &str) -> Self {
        let host = Self::start(shelf, clock, policy);
        host.loaded(shelf);
        host
    }

    /// Waits until everything is known again, or the process is dead.
    #[track_caller]
    pub(crate) fn loaded(&self, shelf: &Shelf) {
        wait_until("state to be loaded", || (self.is_whole() || shelf.is_dead()).then_some(()));
    }

    /// Whether it has read what there is to read. Before it has begun to, this metric is missing.
    pub(crate) fn is_whole(&self) -> bool {
        self.engine.metrics().lines().any(|line| line == "postpone_state_loading 0")
    }

    /// Waits until nothing is behind any more, or the process is dead.
    #[track_caller]
    pub(crate) fn flushed(&self, shelf: &Shelf) {
        wait_until("changes to be written", || {
            (self.behind() == 0.0 || shelf.is_dead()).then_some(())
        });
    }

    /// Looks after it, as the daemon does once a second.
    pub(crate) fn tend(&self) {
        self.keeper.tend();
    }

    /// Told to stop, it writes the rest.
    pub(crate) fn stop(self) -> Result<(), Fault> {
        self.keeper.finish()
    }

    pub(crate) fn tell_to_stop(&self) {
        self.keeper.stop();
    }

    pub(crate) fn tables(&self) -> BTreeMap<&'static str, Arc<dyn Kept>> {
        self.engine.memory().kept().collect()
    }

    /// Everything that is remembered of what is kept there, as it would be written down.
    pub(crate) fn remembered(&self, of: &Entries) -> Entries {
        let tables = self.tables();
        let written = |(table, key): &(String, [u8; 16])| {
            let value = tables.get(table.as_str())?.written(Key::from_bytes(*key))?;
            Some(((table.clone(), *key), value))
        };
        of.keys().filter_map(written).collect()
    }

    /// Everything that is remembered.
    pub(crate) fn memory(&self) -> Entries {
        let mut all = Entries::new();
        for (name, table) in self.tables() {
            for key in (0..table.parts()).flat_map(|part| table.keys(part)) {
                if let Some(value) = table.written(key) {
                    all.insert((name.to_owned(), key.to_bytes()), value);
                }
            }
        }
        all
    }

    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(&self.engine.metrics(), name, labels)
    }

    pub(crate) fn behind(&self) -> f64 {
        self.metric("postpone_state_behind_entries", &[])
    }

    pub(crate) fn failures(&self) -> f64 {
        self.metric("postpone_failures_total", &[("kind", "state")])
    }

    /// A session of this client, as far as its MAIL.
    fn session(&self, client: Client, sender: &str) -> Result<Session, Told> {
        let door = self.settings.listen[0].door();
        let mut session = self.engine.session(client, door);
        for event in [
            Event::Connect,
            Event::Helo { name: ClientText::new(b"mx.example.net") },
            Event::Mail {
                sender: Address::new(sender.as_bytes()),
                size: None,
                user: None,
                tls: false,
            },
        ] {
            if let Answer::Refuse(refused) = session.on(event) {
                return Err(Told::of(&refused));
            }
        }
        Ok(session)
    }

    /// What a client hears that has a message for this recipient. Each client is a mail system of its
    /// own.
    pub(crate) fn offer(&self, client: u8, recipient: &str) -> Result<(), Told> {
        self.offer_of(Client::new(Ipv4Addr::new(198, 18, client, 7).into()), recipient)
    }

    /// The same of any client.
    pub(crate) fn offer_of(&self, client: Client, recipient: &str) -> Result<(), Told> {
        let mut session = self.session(client, "sender@example.net")?;
        let address = Address::new(format!("{recipient}@example.org").as_bytes());
        match session.on(Event::Recipient { address, fate: Fate::Offered }) {
            Answer::Pass => {
                session.on(Event::Data { unseen: 0 });
                session.on(Event::EndOfMessage { size: None });
                Ok(())
            }
            Answer::Refuse(refused) => Err(Told::of(&refused)),
        }
    }

    /// A first contact, and the same once more when it has waited.
    pub(crate) fn gets_to_know(&self, client: u8, recipient: &str) {
        assert_eq!(self.offer(client, recipient), Err(waits(DELAY)));
        self.clock.advance(DELAY);
        assert_eq!(self.offer(client, recipient), Ok(()));
    }
}

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) reason: Reason,
    pub(crate) wait: Duration,
}

impl Told {
    /// Quotas reckon to the nanosecond and round; nobody is told more than milliseconds.
    fn of(refused: &Refused) -> Self {
        let wait_ms = refused.wait.as_nanos().div_ceil(1_000_000) as u64;
        Self { reason: refused.reason, wait: Duration::from_millis(wait_ms) }
    }
}

/// Refused as a first contact, with this rest of its wait.
pub(crate) fn waits(wait: Duration) -> Told {
    Told { reason: Reason::Greylist, wait }
}

pub(crate) fn over_limit(wait: Duration) -> Told {
    Told { reason: Reason::Rate, wait }
}

pub(crate) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(START))
}

/// The entries of one table.
pub(crate) fn of<'a>(entries: &'a Entries, table: &str) -> Vec<&'a Vec<u8>> {
    entries.iter().filter(|((name, _), _)| name == table).map(|(_, value)| value).collect()
}

/// The lines of the log that have all of these words. All stories of this file share one log.
pub(crate) fn logged(words: &[&str]) -> Vec<String> {
    let text = log().0.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    lines.map(str::to_owned).collect()
}

struct Log(Mutex<Vec<u8>>);

/// Begins to listen to what is logged.
fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| Log(Mutex::default()))
}

struct ToLog;

impl Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        log().0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// From now on [`logged`] knows what is logged.
pub(crate) fn listen_to_the_log() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| ToLog).finish();
        tracing::subscriber::set_global_default(subscriber).expect("only this one is set");
    });
}
