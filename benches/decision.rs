//! What one decision costs, and what a client costs to remember.
//!
//! ```text
//! cargo bench --bench decision                 # all of it, under a minute
//! cargo bench --bench decision -- time         # how long events take, with 1 k and 1 M clients
//! cargo bench --bench decision -- memory       # bytes a key
//! cargo bench --bench decision -- sessions 9   # only sessions, 9 thousand, for a profiler
//! ```
//!
//! **Time.** The policy is a full one: an access list of four thousand networks, limits on
//! sessions, connections, messages, recipients and bytes per network, and greylisting by mail
//! system that is enforced. Every client is a mail system of its own and has been here twice, so
//! each has an entry in every table; they come in random order, and what they do passes. A row is what [`postpone::engine::Session::on`] takes,
//! with the system's clock, less what reading the stopwatch takes (the first row). `begin` is the
//! making of a session, `any event` all from `connect` to `disconnect` together, and `session` one
//! from begin to end, timed as a whole. `deferred` is a recipient that is greylisted, its reply
//! written and counted, without a log line. The sizes take turns in one process, so that what else
//! the machine does meets both; in brackets the lowest and the highest median of a round. What
//! grows from 1 k to 1 M is the wait for memory: a thousand clients stay in the processor's cache,
//! a million in random order never are, which no real mail server sees.
//!
//! To count instructions instead, take the difference of two numbers of sessions under
//! `valgrind --tool=callgrind`; it does not depend on the machine.
//!
//! **Memory.** A process of its own for each kind of record, so that nothing freed is used again:
//! resident memory before and after, by the number of keys. Tables grow by doubling, so the figure
//! swings between once and twice its least; it is taken before and after a doubling.

#![allow(clippy::print_stdout, reason = "a benchmark tells its figures to whoever ran it")]

mod support;

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::{Clock, Stopwatch, SystemClock};
use postpone::config::Settings;
use postpone::engine::{Answer, Door, Engine, Session};
use postpone::front::listen;
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use support::{Ahead, Random};

const FEW: u32 = 1_000;
const MANY: u32 = 1_000_000;
const ROUNDS: usize = 10;
/// Sessions of each size in a round, once timed event by event and once as a whole.
const SESSIONS: usize = 20_000;
/// Clients that have been here once, a moment ago.
const STRANGERS: u32 = 1_000;

fn main() {
    // Cargo adds `--bench`.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    if let [] | ["time"] = words[..] {
        let load = std::fs::read_to_string("/proc/loadavg").expect("Linux has it");
        println!("load average before: {load}");
    }
    match words[..] {
        [] => {
            time();
            println!();
            memory();
        }
        ["time"] => time(),
        ["memory"] => memory(),
        ["memory", kind, keys] => {
            println!("{}", memory_of(kind, keys.parse().expect("a number of keys")));
        }
        ["sessions", thousands] => {
            let thousands: usize = thousands.parse().expect("how many thousand sessions");
            let mut scene = Scene::new(FEW);
            (0..thousands * 1_000).for_each(|_| scene.whole_session());
        }
        _ => {
            println!("usage: cargo bench --bench decision [-- time | memory | sessions THOUSANDS]")
        }
    }
}

// --- Time ---------------------------------------------------------------------------------------

/// The policy, as an administrator would write it, but for the list of networks.
const POLICY: &str = r#"
    [[limit]]
    name = "sessions"
    count = "sessions"
    max = 50
    [[limit]]
    name = "connections"
    count = "connections"
    quota = "6000/1m"
    [[limit]]
    name = "messages"
    count = "messages"
    quota = "6000/1m"
    [[limit]]
    name = "recipients"
    count = "recipients"
    quota = "60000/1m"
    [[limit]]
    name = "bytes"
    count = "bytes"
    quota = "10GiB/1m"
    [greylist]
    mode = "enforce"
    [state]
    max_clients = 2_000_000
"#;

/// What is timed, in the order of a session.
#[derive(Clone, Copy)]
enum Row {
    Begin,
    Connect,
    Helo,
    Mail,
    Recipient,
    Data,
    EndOfMessage,
    Disconnect,
    Any,
    Session,
    Deferred,
}

impl Row {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Begin, "begin"),
        (Self::Connect, "connect"),
        (Self::Helo, "helo"),
        (Self::Mail, "mail"),
        (Self::Recipient, "rcpt"),
        (Self::Data, "data"),
        (Self::EndOfMessage, "end-of-message"),
        (Self::Disconnect, "disconnect"),
        (Self::Any, "any event"),
        (Self::Session, "session"),
        (Self::Deferred, "deferred"),
    ];
}

/// The samples of each row, in nanoseconds, round after round.
#[derive(Default)]
struct Samples([Vec<Vec<u64>>; Row::ALL.len()]);

impl Samples {
    fn next_round(&mut self) {
        self.0.iter_mut().for_each(|rounds| rounds.push(Vec::with_capacity(SESSIONS)));
    }

    fn add(&mut self, rows: &[Row], watch: Stopwatch) {
        let took = watch.elapsed().as_nanos() as u64;
        for row in rows {
            self.0[*row as usize].last_mut().expect("a round has begun").push(took);
        }
    }

    fn median_of_rounds(&self, row: Row) -> Vec<u64> {
        let rounds = self.0[row as usize].iter();
        let mut medians: Vec<_> = rounds.map(|round| quantile(&mut round.clone(), 0.5)).collect();
        medians.sort_unstable();
        medians
    }

    fn quantile(&self, row: Row, share: f64) -> u64 {
        quantile(&mut self.0[row as usize].concat(), share)
    }
}

fn quantile(samples: &mut [u64], share: f64) -> u64 {
    let place = ((samples.len() - 1) as f64 * share) as usize;
    *samples.select_nth_unstable(place).1
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Greylisted {
    Yet,
    NoMore,
}

/// An engine and the clients it knows.
struct Scene {
    engine: Arc<Engine>,
    clients: u32,
    random: Random,
}

impl Scene {
    fn new(clients: u32) -> Self {
        let ahead = Ahead::default();
        let engine = engine(&access_list(), POLICY, ahead.clone());
        let scene = Self { engine, clients, random: Random(1) };
        // At the first visit a client is put off, at the second it passes, and then it is known.
        (0..clients).for_each(|client| scene.visit(client, Greylisted::Yet));
        ahead.go(Duration::from_secs(10 * 60));
        (0..clients).for_each(|client| scene.visit(client, Greylisted::NoMore));
        (clients..clients + STRANGERS).for_each(|client| scene.visit(client, Greylisted::Yet));
        scene.engine.telemetry().upkeep();
        scene
    }

    fn visit(&self, client: u32, greylisted: Greylisted) {
        let mut session = self.engine.session(client_of(client), door());
        for event in events(client) {
            let waits = greylisted == Greylisted::Yet && matches!(event, Event::Recipient { .. });
            assert_eq!(session.on(event) == Answer::Pass, !waits, "what tables are filled with");
        }
        if client.is_multiple_of(10_000) {
            self.engine.telemetry().upkeep();
        }
    }

    fn next_client(&mut self) -> u32 {
        self.random.below(self.clients.into()) as u32
    }

    fn whole_session(&mut self) {
        let (client, events) = self.next();
        drop(session_of(&self.engine, client, door(), events));
    }

    fn next(&mut self) -> (Client, [Event; 6]) {
        let client = self.next_client();
        (client_of(client), events(client))
    }

    /// One session, each event timed by itself.
    fn time_events(&mut self, samples: &mut Samples) {
        let ((client, events), door) = (self.next(), door());
        let watch = Stopwatch::start();
        let mut session = self.engine.session(client, door);
        samples.add(&[Row::Begin], watch);
        for (event, (row, _)) in events.into_iter().zip(&Row::ALL[1..]) {
            let watch = Stopwatch::start();
            let answer = session.on(event);
            samples.add(&[*row, Row::Any], watch);
            assert_eq!(answer, Answer::Pass, "only what passes is measured");
        }
        let watch = Stopwatch::start();
        drop(session);
        samples.add(&[Row::Disconnect, Row::Any], watch);
    }

    /// One session, timed as a whole.
    fn time_session(&mut self, samples: &mut Samples) {
        let ((client, events), door) = (self.next(), door());
        let watch = Stopwatch::start();
        drop(session_of(&self.engine, client, door, events));
        samples.add(&[Row::Session], watch);
    }

    /// A recipient that has to wait.
    fn time_deferred(&mut self, samples: &mut Samples) {
        let stranger = self.clients + self.next_client() % STRANGERS;
        let [connect, helo, mail, recipient, ..] = events(stranger);
        let mut session = self.engine.session(client_of(stranger), door());
        for event in [connect, helo, mail] {
            assert_eq!(session.on(event), Answer::Pass, "greylisting speaks at RCPT");
        }
        let watch = Stopwatch::start();
        let answer = session.on(recipient);
        samples.add(&[Row::Deferred], watch);
        assert_ne!(answer, Answer::Pass, "strangers wait");
    }
}

fn session_of(engine: &Arc<Engine>, client: Client, door: Door, events: [Event; 6]) -> Session {
    let mut session = engine.session(client, door);
    for event in events {
        std::hint::black_box(session.on(event));
    }
    session
}

/// Four thousand networks that none of the clients is in.
fn access_list() -> String {
    let mut list = String::from("[access]\ndeny = [\n");
    for n in 0..4_096_u32 {
        let network = Ipv4Addr::from(0xac10_0000 + (n << 8));
        writeln!(list, "\"{network}/24\",").expect("a string takes all that is written");
    }
    list + "]\n"
}

fn engine(access: &str, policy: &str, clock: impl Clock + 'static) -> Arc<Engine> {
    let checked = Settings::parse("bench", &format!("{access}\n{policy}"));
    let settings = checked.expect("the policy of this file can be used").settings;
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("it names no files that could be missing");
    Engine::new(Box::new(clock), memory, policy)
}

/// The milter of the default settings.
fn door() -> Door {
    listen::Params::default().door()
}

/// A client, in 10.0.0.0/8, so that there can be a million of them.
fn client_of(number: u32) -> Client {
    let mut client = Client::new(Ipv4Addr::from(0x0a00_0000 + number).into());
    client.port = Some(32_768 + (number % 28_000) as u16);
    client.named(&name(number))
}

/// Its name, in a domain of its own. Without digits, since they could be those of the address.
fn name(client: u32) -> String {
    let letters = (0..5).map(|place| char::from(b'a' + (client >> (4 * place) & 15) as u8));
    format!("mx.{}.example", letters.collect::<String>())
}

/// What a client does from HELO to the end of its message.
fn events(client: u32) -> [Event; 6] {
    let name = name(client);
    let sender = format!("<someone@{name}>");
    let recipient = format!("<user{}@example.org>", client % 500);
    [
        Event::Connect,
        Event::Helo { name: ClientText::new(name.as_bytes()) },
        Event::Mail {
            sender: Address::new(sender.as_bytes()),
            size: Some(20_000),
            user: None,
            tls: false,
        },
        Event::Recipient { address: Address::new(recipient.as_bytes()), fate: Fate::Offered },
        Event::Data { unseen: 0 },
        Event::EndOfMessage { size: None },
    ]
}

fn time() {
    let mut scenes = [Scene::new(FEW), Scene::new(MANY)];
    let mut samples = [Samples::default(), Samples::default()];
    let mut stopwatch = Vec::new();
    for _ in 0..ROUNDS {
        let round = stopwatch_alone();
        stopwatch.push(quantile(&mut round.clone(), 0.5));
        for (scene, samples) in scenes.iter_mut().zip(&mut samples) {
            samples.next_round();
            for _ in 0..SESSIONS {
                scene.time_events(samples);
            }
            scene.engine.telemetry().upkeep();
            for _ in 0..SESSIONS {
                scene.time_session(samples);
            }
            for _ in 0..SESSIONS / 10 {
                scene.time_deferred(samples);
            }
            scene.engine.telemetry().upkeep();
        }
    }
    let stopwatch = quantile(&mut stopwatch, 0.5);
    println!("ns                       1 k clients                       1 M clients");
    println!(
        "                  median  (rounds)         p99     median  (rounds)         p99  growth"
    );
    println!("(stopwatch)       {stopwatch:6}");
    for (row, name) in Row::ALL {
        print!("{name:16}");
        let less = |nanos: u64| nanos.saturating_sub(stopwatch);
        let mut medians = [0; 2];
        for (samples, median) in samples.iter().zip(&mut medians) {
            let rounds = samples.median_of_rounds(row);
            let (lowest, highest) = (less(rounds[0]), less(rounds[rounds.len() - 1]));
            *median = less(samples.quantile(row, 0.5));
            let p99 = less(samples.quantile(row, 0.99));
            print!("  {median:6}  {:13} {p99:6}   ", format!("({lowest}-{highest})"));
        }
        println!("{:6.2}", medians[1] as f64 / medians[0] as f64);
    }
}

fn stopwatch_alone() -> Vec<u64> {
    (0..SESSIONS).map(|_| Stopwatch::start().elapsed().as_nanos() as u64).collect()
}

// --- Memory -------------------------------------------------------------------------------------

fn memory() {
    println!("resident bytes a key      800 k keys   1 M keys");
    for kind in ["meter", "gauge", "triplet"] {
        print!("{kind:22}");
        for keys in [800_000, MANY] {
            let myself = std::env::current_exe().expect("this program has a file");
            let child = Command::new(myself).args(["memory", kind, &keys.to_string()]).output();
            let output = child.expect("this program can be run again").stdout;
            let bytes = String::from_utf8_lossy(&output);
            print!("  {:>10}", bytes.trim());
        }
        println!();
    }
}

/// What a record of one kind takes, in bytes, with so many of them.
fn memory_of(kind: &str, keys: u32) -> u64 {
    let (policy, from): (_, fn(u32) -> u32) = match kind {
        "meter" => {
            (r#"limit = [{ name = "c", count = "connections", quota = "60/1m" }]"#, |key| key)
        }
        "gauge" => (r#"limit = [{ name = "s", count = "sessions", max = 9 }]"#, |key| key),
        // All from one client, whose own record then weighs nothing.
        "triplet" => ("limit = []", |_| 0),
        _ => panic!("a kind of record: meter, gauge or triplet"),
    };
    let greylist = match kind {
        "triplet" => "[greylist]\nmode = \"enforce\"\nmax_pending_per_network = 2_000_000",
        _ => "[greylist]\nmode = \"off\"",
    };
    let engine = engine(policy, greylist, SystemClock);
    let fill = |keys: std::ops::Range<u32>| {
        for key in keys {
            let mut session = engine.session(client_of(from(key)), door());
            session.on(Event::Connect);
            if kind == "triplet" {
                let [_, _, mail, ..] = events(key);
                session.on(mail);
                let recipient = format!("<user{key}@example.org>");
                let address = Address::new(recipient.as_bytes());
                session.on(Event::Recipient { address, fate: Fate::Offered });
            }
            if key.is_multiple_of(1_000) {
                engine.telemetry().upkeep();
            }
        }
    };
    // What is not there for the keys is there by now.
    fill(0..10_000);
    let before = resident_bytes();
    fill(10_000..keys);
    (resident_bytes() - before) / u64::from(keys - 10_000)
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("a line of it is `VmRSS: 1234 kB`") * 1024
}
