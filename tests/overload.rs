//! An overload by ten times what the host can serve, in virtual time: the real engine and the real
//! controller, a model of the MTA and of those who send.
//!
//! **The MTA** has 100 smtpd processes, two cores and a backlog of 100. A whole session takes 4 s of a
//! process and 80 ms of a core, so it serves 25 a second either way. A session that is refused at
//! HELO holds a process for half a second, since the client speaks in between; one that is closed as
//! it connects, for a tenth. When the cores have too much to do, everything takes longer.
//!
//! **Strangers** come 250 a second for five minutes, each from a network of its own, whether they are
//! served or not. Who is told a wait comes back after it; who is told nothing (no process, or closed
//! as it connects), after five minutes. Most of a flood is junk that comes once; those who come back
//! do it three times.
//!
//! **Proven clients** come five times a second, which is 20 % of what can be served, and come back
//! after what they are told, or after a minute.
//!
//! **Sensors** are open sessions and the pressure on the cores, with the marks of
//! `conf/large-mx.toml`.

// It prints its figures: cargo test --test overload -- --nocapture
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::{Clock, ManualClock, Time};
use postpone::config::load::{Sensor, Source};
use postpone::config::{Settings, Unusable};
use postpone::engine::{Answer, Engine, Session};
use postpone::front::listen;
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::policy::load::{Level, Sample};
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};

const START: Time = Time::from_secs(1_800_000_000);

const PROCESSES: usize = 100;
const BACKLOG: usize = 100;
const CORES: f64 = 2.0;
/// How long a client waits for a greeting.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a session takes: time of a process, and of a core.
#[derive(Clone, Copy)]
struct Price(Duration, Duration);

const WHOLE: Price = Price(Duration::from_millis(4_000), Duration::from_millis(80));
const AT_HELO: Price = Price(Duration::from_millis(500), Duration::from_millis(3));
const AT_CONNECT: Price = Price(Duration::from_millis(100), Duration::from_millis(2));

const STRANGERS_PER_SECOND: u64 = 250;
const PROVEN_PER_SECOND: u64 = 5;
/// When mail still comes in time for those who wait for it.
const IN_TIME: Duration = Duration::from_secs(300);
const PROVEN_NETWORKS: u64 = 50;

/// When the first one comes, when the flood begins and ends, and for how long it is looked at.
const OPEN: Time = Time::from_secs(1_800_000_010);
const FLOOD: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(360)];
const LAST: Duration = Duration::from_secs(3_600);

const PROVEN: &str = "mode = \"enforce\"\nproven_after = 1\ndelay = \"1s\"";
const SENSORS: &str = "
[load.sessions]
max = 100
elevated = 0.6
high = 0.75
critical = 0.9
[load.pressure.cpu]
elevated = 70
high = 85
critical = 95
";

fn settings(text: &str) -> Settings {
    match Settings::parse("overload", text) {
        Ok(checked) => checked.settings,
        Err(Unusable(report)) => panic!("{report}"),
    }
}

/// Numbers that are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Up to a quarter less or more.
    fn about(&mut self, span: Duration) -> Duration {
        span * (750 + self.below(501) as u32) / 1_000
    }
}

/// A message that somebody wants to send.
#[derive(Clone, Copy)]
struct Message {
    proven: bool,
    number: u64,
    first: Time,
    attempt: u32,
    /// Attempts after which it is given up.
    most: u32,
}

enum Happens {
    Comes(Message),
    GivesUp(u64),
    /// A process is free again; the session that it held ends.
    Ends(Box<Session>, Option<Message>),
    Second,
}

struct Event_(Time, u64, Happens);

impl PartialEq for Event_ {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Event_ {}
impl PartialOrd for Event_ {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event_ {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    proven: u64,
    /// Of them: served by the first attempt; within five minutes; at all.
    at_once: u64,
    in_time: u64,
    ever: u64,
    /// Served strangers while the flood lasted.
    strangers: u64,
    /// From the end of the flood until the level was normal, and everybody let in, for good.
    recovery: Duration,
    crossings: u32,
}

struct World {
    engine: Arc<Engine>,
    clock: Arc<ManualClock>,
    sensors: Vec<Sensor>,
    dice: Dice,
    agenda: BinaryHeap<Reverse<Event_>>,
    serial: u64,
    busy: usize,
    waiting: VecDeque<(u64, Message)>,
    /// Time of cores asked for in this second, and what that amounted to in the last one.
    asked: Duration,
    strain: f64,
    pressure: f64,
    /// How many of ten strangers come back.
    of_ten_come_back: u64,
    outcome: Outcome,
    troubled: Time,
}

impl World {
    fn new(policy: &str, of_ten_come_back: u64) -> Self {
        let settings = settings(policy);
        let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
        let everybody = format!("limit = []\n[greylist]\n{PROVEN}\n");
        let learning = self::settings(&everybody).policy(&memory).unwrap();
        let policy = settings.policy(&memory).unwrap();
        let clock = Arc::new(ManualClock::at(START));
        let engine = Engine::new(Box::new(clock.clone()), memory, learning);
        let world = Self {
            engine,
            clock,
            sensors: settings.load.sensors(),
            dice: Dice(1),
            agenda: BinaryHeap::new(),
            serial: 0,
            busy: 0,
            waiting: VecDeque::new(),
            asked: Duration::ZERO,
            strain: 0.0,
            pressure: 0.0,
            of_ten_come_back,
            outcome: Outcome::default(),
            troubled: START,
        };
        // Who has come back from greylisting once is proven.
        for _ in 0..2 {
            for number in 0..PROVEN_NETWORKS {
                let message = Message { proven: true, number, first: START, attempt: 0, most: 1 };
                let mut session = world.session(message);
                speak(&mut session);
                session.on(Event::EndOfMessage { size: None });
            }
            world.clock.advance(Duration::from_secs(2));
        }
        world.engine.replace_policy(policy);
        world
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn at(&mut self, time: Time, what: Happens) {
        self.serial += 1;
        self.agenda.push(Reverse(Event_(time, self.serial, what)));
    }

    fn session(&self, message: Message) -> Session {
        let part = match message.proven {
            true => message.number % PROVEN_NETWORKS,
            false => 0x1000 + message.number % 0xe000,
        };
        let address = IpAddr::from([0x2001, 0xdb8, part as u16, 0, 0, 0, 0, 1]);
        self.engine.session(Client::new(address), listen::Params::default().door())
    }

    fn run(mut self) -> Outcome {
        let [begins, ends] = FLOOD;
        self.arrivals(PROVEN_PER_SECOND, Duration::ZERO, ends, true);
        self.arrivals(STRANGERS_PER_SECOND, begins, ends, false);
        for second in 1..LAST.as_secs() {
            self.at(OPEN + Duration::from_secs(second), Happens::Second);
        }
        while let Some(Reverse(Event_(time, _, what))) = self.agenda.pop() {
            self.clock.set(time);
            match what {
                Happens::Comes(message) => self.comes(message),
                Happens::GivesUp(serial) => {
                    if let Some(place) = self.waiting.iter().position(|(own, _)| *own == serial) {
                        let (_, message) = self.waiting.remove(place).unwrap();
                        self.unserved(message, None);
                    }
                }
                Happens::Ends(session, served) => self.ends(session, served),
                Happens::Second => self.second(),
            }
        }
        self.outcome.recovery = self.troubled.since(OPEN + ends);
        self.outcome
    }

    /// So many a second, at any moment of it.
    fn arrivals(&mut self, per_second: u64, from: Duration, until: Duration, proven: bool) {
        let seconds = (until - from).as_secs();
        for number in 0..per_second * seconds {
            let within = Duration::from_nanos(self.dice.below(seconds * 1_000_000_000));
            let first = OPEN + from + within;
            let comes_back = proven || self.dice.below(10) < self.of_ten_come_back;
            let most = match (proven, comes_back) {
                (true, _) => u32::MAX,
                (_, true) => 4,
                _ => 1,
            };
            self.outcome.proven += u64::from(proven && first >= OPEN + FLOOD[0]);
            let message = Message { proven, number, first, attempt: 0, most };
            self.at(first, Happens::Comes(message));
        }
    }

    fn comes(&mut self, message: Message) {
        if self.busy < PROCESSES {
            self.serve(message);
        } else if self.waiting.len() < BACKLOG {
            let gives_up = self.now() + PATIENCE;
            self.at(gives_up, Happens::GivesUp(self.serial + 1));
            self.waiting.push_back((self.serial, message));
        } else {
            self.unserved(message, None);
        }
    }

    /// A process takes the session.
    fn serve(&mut self, message: Message) {
        self.busy += 1;
        let mut session = self.session(message);
        let (price, served) = match session.on(Event::Connect) {
            // The MTA says a text of its own.
            Answer::Refuse(_) => {
                self.unserved(message, None);
                (AT_CONNECT, None)
            }
            Answer::Pass => match speak(&mut session) {
                Answer::Refuse(refused) => {
                    let words: Vec<_> = refused.reply.text().split(' ').collect();
                    let wait: u64 = words[words.len() - 2].parse().expect("seconds");
                    self.unserved(message, Some(Duration::from_secs(wait)));
                    (AT_HELO, None)
                }
                Answer::Pass => (WHOLE, Some(message)),
            },
        };
        self.asked += price.1;
        let ends = self.now() + price.0.mul_f64(self.strain.max(1.0));
        self.at(ends, Happens::Ends(Box::new(session), served));
    }

    fn ends(&mut self, mut session: Box<Session>, served: Option<Message>) {
        if let Some(message) = served {
            session.on(Event::EndOfMessage { size: None });
            let outcome = &mut self.outcome;
            if message.proven {
                if message.first < OPEN + FLOOD[0] {
                    return self.free(session);
                }
                let took = self.clock.now().since(message.first);
                outcome.ever += 1;
                outcome.at_once += u64::from(message.attempt == 0);
                outcome.in_time += u64::from(took <= IN_TIME);
            } else if self.clock.now() < OPEN + FLOOD[1] {
                outcome.strangers += 1;
            }
        }
        self.free(session);
    }

    fn free(&mut self, session: Box<Session>) {
        drop(session);
        self.busy -= 1;
        if let Some((_, next)) = self.waiting.pop_front() {
            self.serve(next);
        }
    }

    /// It comes back, as it is told or as it does by itself.
    fn unserved(&mut self, message: Message, wait: Option<Duration>) {
        let message = Message { attempt: message.attempt + 1, ..message };
        if message.attempt >= message.most {
            return;
        }
        let own = Duration::from_secs(if message.proven { 60 } else { 300 });
        let wait = wait.unwrap_or_else(|| self.dice.about(own));
        let back = self.now() + wait;
        self.at(back, Happens::Comes(message));
    }

    /// What was asked of the cores in the last second, what that makes of pressure, and what the
    /// controller makes of it.
    fn second(&mut self) {
        self.strain = self.asked.as_secs_f64() / CORES;
        self.asked = Duration::ZERO;
        // Tasks wait for a core from two thirds of their time on, and always beyond all of it.
        let waited = ((self.strain - 0.66) / 0.44).clamp(0.0, 1.0) * 100.0;
        self.pressure += (waited - self.pressure) * (1.0 - (-0.1_f64).exp());
        let load = &self.engine.memory().load;
        let reading = |sensor: &Sensor| match sensor.source {
            Source::Sessions { .. } => f64::from(load.open()) / PROCESSES as f64,
            _ => self.pressure,
        };
        let sample = |sensor: &Sensor| Sample {
            sensor: sensor.name.clone(),
            scarce: sensor.scarce,
            marks: sensor.marks.clone(),
            reading: Ok(reading(sensor)),
            why: None,
        };
        let samples = self.sensors.iter().map(sample).collect();
        self.outcome.crossings += u32::from(self.engine.observe(samples).is_some());
        let load = &self.engine.memory().load;
        let open_to_all = load.level() == Level::Normal && load.shares() == [1.0; 3];
        if !open_to_all || !self.waiting.is_empty() {
            self.troubled = self.now();
        }
        if std::env::var_os("OVERLOAD_TRACE").is_some() {
            println!(
                "{:>5} {:>8} {:?} open={} busy={} waiting={} cpu={:.0} strain={:.2}",
                self.now().since(START).as_secs(),
                load.level().name(),
                load.shares(),
                load.open(),
                self.busy,
                self.waiting.len(),
                self.pressure,
                self.strain
            );
        }
    }
}

/// From HELO to a recipient; the first refusal, if there is one.
fn speak(session: &mut Session) -> Answer {
    let mailbox = |name: &str| Address::new(name.as_bytes());
    let events = [
        Event::Helo { name: ClientText::new(b"mx.example.net") },
        Event::Mail { sender: mailbox("a@example.net"), size: None, user: None, tls: false },
        Event::Recipient { address: mailbox("b@example.org"), fate: Fate::Offered },
        Event::Data { unseen: 0 },
    ];
    let answers = events.into_iter().map(|event| session.on(event));
    answers.into_iter().find(|answer| *answer != Answer::Pass).unwrap_or(Answer::Pass)
}

fn told(name: &str, policy: &str, of_ten_come_back: u64) -> Outcome {
    let outcome = World::new(policy, of_ten_come_back).run();
    let part = |some: u64| 100.0 * some as f64 / outcome.proven as f64;
    println!(
        "{name:<28} proven mail: {:6.2} % at once, {:6.2} % within five minutes, {:6.2} % in the end; \
         strangers served in the flood: {}; recovery {:?}; {} crossings",
        part(outcome.at_once),
        part(outcome.in_time),
        part(outcome.ever),
        outcome.strangers,
        outcome.recovery,
        outcome.crossings
    );
    outcome
}

/// The same greylisting in all of them: it knows who is proven, and puts nobody off.
fn policy(more: &str) -> String {
    format!("{more}\n[greylist]\n{PROVEN}\nwhen = {{ standing = [\"suspect\"] }}\n")
}

#[test]
fn proven_mail_is_served_through_a_flood_of_ten_times_the_capacity() {
    let sessions = "[[limit]]\nname = \"sessions\"\ncount = \"sessions\"\nmax = 50\n";
    for of_ten_come_back in [0, 10] {
        println!("{of_ten_come_back} of 10 strangers come back");
        told("no throttle", &policy("limit = []"), of_ten_come_back);
        told("at most 50 sessions a client", &policy(sessions), of_ten_come_back);
        let load = format!("limit = []\n[load]\n{SENSORS}");
        let outcome = told("[load]", &policy(&load), of_ten_come_back);
        assert!(outcome.in_time * 100 >= outcome.proven * 99, "{outcome:?}");
        assert!(outcome.at_once * 100 >= outcome.proven * 98, "{outcome:?}");
    }
}
