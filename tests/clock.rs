//! A clock that is wrong, and put right: what it has written is worth no more than what is written
//! by a clock that is right, and what was known before does not fade by it. By a clock that is moved
//! by hand; the real daemon under a clock that jumps is in `tests/daemon_clock.rs`.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::{ManualClock, Time};
use postpone::config::{Checked, Settings};
use postpone::engine::{Answer, Engine, Refused};
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::policy::load::{Level, Marks, Sample, Scarce, Worse};
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use proptest::prelude::*;

const START: Time = Time::from_secs(1_800_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(31_536_000);

/// Every rule that stores a moment. None of them makes anybody wait for longer than two hours (and what is rounded): a
/// burst of two in an hour and as many overrun.
const SETTINGS: &str = r#"
[access]
allow = []
[[limit]]
name = "velocity"
count = "connections"
mode = "enforce"
per = ["network"]
quota = "2/1h"
penalty = { factor = 2, cap = "1h", decay = "1h" }
[[limit]]
name = "many"
count = "distinct_recipients"
mode = "enforce"
per = ["network"]
max = 6
window = "1h"
[greylist]
mode = "enforce"
"#;
/// The tables in which a busy hour leaves something: all that store a moment but what is imported.
const STORED: [&str; 14] = [
    "allowed",
    "contacts",
    "crowds",
    "maintenance",
    "meters",
    "names",
    "neighbourhoods",
    "passed",
    "penalties",
    "pending",
    "proven",
    "returns",
    "senders",
    "sketches",
];
const LONGEST: Duration = Duration::from_secs(2 * 3_600 + 1);

struct Host {
    engine: Arc<Engine>,
    clock: Arc<ManualClock>,
    settings: Settings,
}

impl Host {
    fn new(settings: &str) -> Self {
        let Ok(Checked { settings, .. }) = Settings::parse("clock.toml", settings) else {
            panic!("settings that can be read")
        };
        let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
        let Ok(policy) = settings.policy(&memory) else { panic!("a policy that check accepts") };
        let clock = Arc::new(ManualClock::at(START));
        let engine = Engine::new(Box::new(clock.clone()), memory, policy);
        let _ = engine.moment();
        Self { engine, clock, settings }
    }

    /// One message of a client, and how it is refused if it is: at MAIL, or at its recipient.
    fn message(&self, client: u8, recipient: &str) -> Result<(), Refused> {
        let client = Client::new([192, 0, 2, client].into()).named("mx.sender.example");
        let mut session = self.engine.session(client, self.settings.listen[0].door());
        let mut on = |event| match session.on(event) {
            Answer::Pass => Ok(()),
            Answer::Refuse(refused) => Err(refused),
        };
        on(Event::Connect)?;
        on(Event::Helo { name: ClientText::new(b"mx.sender.example") })?;
        let sender = Address::new(b"<anna@sender.example>");
        on(Event::Mail { sender, size: None, user: None, tls: false })?;
        let address = Address::new(format!("<{recipient}@example.org>").as_bytes());
        on(Event::Recipient { address, fate: Fate::Offered })?;
        on(Event::Data { unseen: 0 })?;
        on(Event::EndOfMessage { size: None })
    }

    /// Time passes, and what has faded is forgotten.
    fn pass(&self, span: Duration) {
        self.clock.advance(span);
        self.engine.sweep(1);
    }

    /// How many entries each table has that has any.
    fn entries(&self) -> BTreeMap<&'static str, usize> {
        let sizes = self.engine.memory().sizes().map(|(name, size)| (name, size.entries));
        sizes.filter(|(_, entries)| *entries > 0).collect()
    }

    /// Clients of every kind do whatever makes a record.
    fn busy(&self) -> Vec<Refused> {
        let mut refused = Vec::new();
        for number in 0..8 {
            refused.extend(self.message(7, &format!("user{number}")).err());
            refused.extend(self.message(number, "bert").err());
        }
        refused.extend(self.message(20, "carl").err());
        self.clock.advance(MINUTE * 6);
        refused.extend(self.message(20, "carl").err());
        self.engine.close(None, self.engine.now() + MINUTE * 5).unwrap();
        refused.extend(self.message(9, "bert").err());
        self.engine.reopen(None).unwrap();
        self.engine.close(Some("inet:127.0.0.1:7"), self.engine.now() + MINUTE * 5).unwrap();
        self.engine.allow("198.51.100.0/24".parse().unwrap(), self.engine.now() + DAY).unwrap();
        refused
    }
}

/// A moment that lies ahead, or behind, as far as clocks go wrong.
fn wrong() -> impl Strategy<Value = (bool, u64)> {
    (any::<bool>(), prop_oneof![1..600_u64, 600..100_000_u64, 100_000..1_500_000_000_u64])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever was stored, at whatever moment, seen from whatever other: no wait is longer than
    /// the longest that a rule knows, a client that waits as told gets on, and after the longest
    /// span of all nothing is left.
    #[test]
    fn what_is_stored_is_worth_no_more_than_its_own_span(
        (ahead, secs) in wrong(), before in 0..10_000_u64, doubted: bool,
    ) {
        let host = Host::new(SETTINGS);
        host.pass(Duration::from_secs(before));
        let right = host.engine.now();
        let off = Duration::from_secs(secs);
        let wrong = match ahead {
            true => right + off,
            false => Time::from_nanos(right.as_nanos() - off.as_nanos() as u64),
        };
        let put = |to| if doubted { host.clock.step_to(to) } else { host.clock.set(to) };
        put(wrong);
        for refused in host.busy() {
            prop_assert!(refused.wait <= LONGEST, "{refused:?} while the clock was wrong");
        }
        let stored: Vec<_> = host.entries().into_keys().collect();
        prop_assert_eq!(stored, STORED);
        put(right);
        for refused in host.busy() {
            prop_assert!(refused.wait <= LONGEST, "{refused:?} when it was put right");
        }
        let mut comes = (0..20).map(|_| match host.message(1, "new") {
            Ok(()) => true,
            Err(refused) => {
                host.pass(refused.wait);
                false
            }
        });
        prop_assert!(comes.any(|came| came), "a client that waits as it is told comes through");
        // Until the clock is believed again, and has been for an hour.
        (0..4).for_each(|_| host.pass(HOUR));
        host.pass(DAY * 91);
        host.pass(MINUTE);
        prop_assert_eq!(host.entries(), BTreeMap::new(), "{}", host.engine.now());
    }
}

#[test]
fn a_clock_that_is_ahead_for_a_moment_wipes_nothing() {
    for (ahead, lasts) in [(YEAR * 10, 40), (DAY * 70, 36)] {
        let host = Host::new("limit = []\n[greylist]\nmode = \"enforce\"\nproven_after = 1\n");
        let refused = host.message(7, "anna").unwrap_err();
        host.pass(refused.wait);
        host.message(7, "anna").unwrap();
        let network = "198.51.100.0/24".parse().unwrap();
        host.engine.allow(network, host.engine.now() + DAY).unwrap();
        let known = host.entries();
        assert!(known.contains_key("passed") && known.contains_key("proven"), "{known:?}");

        let right = host.engine.now();
        host.clock.step_to(right + ahead);
        for _ in 0..lasts {
            host.pass(Duration::from_secs(1));
        }
        assert_eq!(host.entries(), known, "{ahead:?}");
        assert!(host.engine.metrics().contains("postpone_clock_doubted 1"));
        assert_eq!(host.message(7, "anna"), Ok(()), "it is known while the clock is wrong");
        assert_eq!(host.message(7, "bert"), Ok(()), "and proven");
        assert_eq!(host.engine.allowed().len(), 1);

        host.clock.step_to(right + Duration::from_secs(lasts));
        host.pass(MINUTE);
        assert!(host.engine.metrics().contains("postpone_clock_doubted 0"));
        assert_eq!(host.message(7, "anna"), Ok(()));
        let [allowed] = host.engine.allowed()[..] else { panic!("it is still allowed") };
        assert!(allowed.until <= right + DAY);
    }
}

#[test]
fn a_clock_that_was_put_right_is_believed_after_an_hour() {
    let host = Host::new("limit = []\n[greylist]\nmode = \"enforce\"\n");
    let refused = host.message(7, "anna").unwrap_err();
    host.pass(refused.wait);
    host.message(7, "anna").unwrap();
    host.clock.step_to(START + DAY * 70);
    host.pass(MINUTE * 58);
    assert_eq!(host.message(7, "anna"), Ok(()));
    let host = Host::new("limit = []\n[greylist]\nmode = \"enforce\"\n");
    let refused = host.message(7, "anna").unwrap_err();
    host.pass(refused.wait);
    host.message(7, "anna").unwrap();
    host.clock.step_to(START + DAY * 70);
    host.engine.sweep(1);
    host.pass(MINUTE * 61);
    host.pass(MINUTE);
    assert!(host.message(7, "anna").is_err(), "70 days have really passed");
}

/// 5 messages an hour, whatever the clock was when the first came.
#[test]
fn behaviour_goes_on_to_fade_after_the_clock_was_put_back() {
    let host = Host::new("limit = []\n[behaviour]\nlearn_for = \"0s\"\n");
    let right = host.engine.now();
    host.clock.set(right + DAY * 5);
    host.message(7, "anna").unwrap();
    host.clock.set(right);
    let mut refused = 0;
    for hour in 0..72 {
        for number in 0..5 {
            refused += usize::from(host.message(7, &format!("user{hour}{number}")).is_err());
            host.pass(MINUTE * 12);
        }
    }
    let client = [192, 0, 2, 7].into();
    let explained = host.engine.explain(client, Some("mx.sender.example"), None);
    let velocity = explained.behaviour.unwrap();
    let velocity = velocity.terms.iter().find(|spoken| spoken.term == "velocity").unwrap();
    assert!(velocity.adds < 0.01, "{velocity:?} after {refused} refusals");
}

#[test]
fn load_is_not_held_for_as_long_as_the_clock_was_ahead() {
    let host = Host::new("[load]\nmode = \"enforce\"\nhold = \"30s\"\n");
    let marks = Marks { levels: [None, Some(2.0), None], down: 0.9, worse: Worse::Higher };
    let marks = Arc::new(marks);
    let read = |reading| {
        let (sensor, marks) = ("cpu".into(), marks.clone());
        let scarce = Scarce::Capacity;
        host.engine.observe(vec![Sample {
            sensor,
            scarce,
            marks,
            reading: Ok(reading),
            why: None,
        }]);
        host.engine.memory().load.level()
    };
    let right = host.engine.now();
    host.clock.step_to(right + YEAR);
    assert_eq!(read(2.5), Level::High);
    host.clock.step_to(right);
    assert_eq!(read(0.0), Level::High, "it is held");
    host.clock.advance(Duration::from_secs(30));
    assert_eq!(read(0.0), Level::Normal);
}

#[test]
fn maintenance_and_what_is_allowed_end_as_they_were_said_to() {
    let host = Host::new("limit = []\n");
    let right = host.engine.now();
    host.clock.step_to(right + DAY);
    host.engine.close(None, host.engine.now() + MINUTE * 5).unwrap();
    host.clock.step_to(right);
    let refused = host.message(7, "anna").unwrap_err();
    assert!(refused.wait <= MINUTE * 5, "{refused:?}");
    host.engine.sweep(1);
    host.pass(MINUTE * 5);
    assert_eq!(host.message(7, "anna"), Ok(()));
}

#[test]
fn behaviour_that_was_begun_by_a_clock_ahead_does_not_watch_for_years() {
    let host = Host::new("limit = []\n");
    host.engine.memory().behaviour.begun(START + YEAR * 10);
    assert!(host.engine.learning_until().unwrap() <= START + DAY * 7, "what status tells");
    host.pass(HOUR);
    host.pass(DAY * 7);
    assert_eq!(host.engine.learning_until(), None);
}
