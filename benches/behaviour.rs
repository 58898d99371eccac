//! What a million scores cost: updates a second on one core, and bytes.
//!
//! ```text
//! cargo bench --bench behaviour                 # a million clients, under a minute
//! cargo bench --bench behaviour -- 10000        # another number of them
//! ```
//!
//! **evidence** is what one recipient costs by itself: the client and its network are faded, take in
//! what was seen, and are scored. They lie in two arrays and come in random order, so each is cold
//! memory once there are many. **engine** is the same in its place: [`Session::on`] at RCPT with
//! tables, keys and all, and behaviour the only rule; `off` is the same without behaviour, so the
//! difference is its price. Each client is a mail system of its own; four share a network.
//!
//! The bar is 500,000 updates a second, 256 bytes a client and 128 a network.

#![allow(clippy::print_stdout, reason = "a benchmark tells its figures to whoever ran it")]

mod support;

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::{Clock, ManualClock, Moment, Stopwatch, Time};
use postpone::config::Settings;
use postpone::engine::{Answer, Engine, Session};
use postpone::front::listen;
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::policy::behaviour::evidence::{
    Hygiene, Neighbourhood, Peer, Returns, Sender, Sighting, Weights,
};
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use support::Random;

const MANY: u32 = 1_000_000;
const ROUNDS: usize = 5;
const START: Time = Time::from_secs(1_800_000_000);
const HOSTS_OF_A_NETWORK: u32 = 4;

fn main() {
    // Cargo adds `--bench`.
    let words = std::env::args().skip(1).find(|word| word != "--bench");
    let clients = words.map_or(MANY, |word| word.parse().expect("a number of clients"));
    println!("bytes: client {}, network {}", size_of::<Sender>(), size_of::<Neighbourhood>());
    println!("{clients} clients     events/s  (rounds)");
    evidence(clients);
    engine("engine, rcpt", clients, "limit = []\n[behaviour]\nlearn_for = \"0s\"\n");
    engine("engine, off", clients, "limit = []\n[behaviour]\nmode = \"off\"\n");
}

fn report(name: &str, mut rounds: Vec<f64>) {
    rounds.sort_by(f64::total_cmp);
    let (lowest, highest) = (rounds[0], rounds[rounds.len() - 1]);
    let median = rounds[rounds.len() / 2];
    println!("{name:16} {median:12.0}  ({lowest:.0}-{highest:.0})");
}

fn evidence(clients: u32) {
    let mut senders = vec![Sender::default(); clients as usize];
    let networks = clients.div_ceil(HOSTS_OF_A_NETWORK) as usize;
    let mut networks = vec![Neighbourhood::default(); networks];
    let (weights, returns) = (Weights::default(), Returns::default());
    let (mut random, mut now) = (Random(1), START);
    let mut update = |random: &mut Random, place: usize, now: Time| {
        let (sender, network) =
            (&mut senders[place], &mut networks[place / HOSTS_OF_A_NETWORK as usize]);
        let sighting = sighting(random.next());
        let silence = now.since(sender.last());
        sender.fade(Moment::of(now));
        network.fade(Moment::of(now));
        sender.see(&sighting, silence, now);
        if sender.is_new() {
            network.see(&sighting);
        }
        let score = sender.score(network, &returns, &weights, now);
        sender.scored(score.total, sighting.exists);
        black_box(score);
    };
    // Everybody has been here.
    (0..clients).for_each(|client| update(&mut random, client as usize, START));
    let rounds = (0..ROUNDS).map(|_| {
        let watch = Stopwatch::start();
        for _ in 0..MANY {
            now = now + Duration::from_millis(2);
            let place = (random.next() % u64::from(clients)) as usize;
            update(&mut random, place, now);
        }
        f64::from(MANY) / watch.elapsed().as_secs_f64()
    });
    report("evidence", rounds.collect());
}

/// What a recipient shows, by so many random bits.
fn sighting(bits: u64) -> Sighting {
    Sighting {
        message: true,
        session: true,
        peer: Peer { hygiene: Hygiene::Good, helo: bits.rotate_left(8) },
        domain: bits,
        organisation: bits.rotate_left(16),
        stranger: bits & 3 != 0,
        exists: bits & 0x70 != 0,
        answered: bits & 0x380 == 0,
        awaited: None,
        known_by_size: false,
    }
}

fn engine(name: &str, clients: u32, policy: &str) {
    let more = "[access]\nallow = []\n[greylist]\nmode = \"off\"\n[state]\n\
                max_clients = 2_000_000\n";
    let settings = Settings::parse("bench", &format!("{policy}{more}"));
    let settings = settings.expect("the settings of this file can be used").settings;
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("it names no files that could be missing");
    let clock = Arc::new(ManualClock::at(START));
    let engine = Engine::new(Box::new(clock.clone()), memory, policy);
    let mut random = Random(1);
    for client in 0..clients {
        rcpt(&mut begun(&engine, client), 0);
    }
    // Only RCPT is timed: a thousand sessions begin, then each asks for one recipient.
    let rounds = (0..ROUNDS).map(|_| {
        let mut took = Duration::ZERO;
        let events = 200_u32;
        for _ in 0..events {
            clock.set(clock.now() + Duration::from_secs(2));
            let mut sessions: Vec<_> = (0..1_000)
                .map(|_| begun(&engine, (random.next() % u64::from(clients)) as u32))
                .collect();
            let watch = Stopwatch::start();
            for session in &mut sessions {
                rcpt(session, random.next());
            }
            took += watch.elapsed();
            drop(sessions);
            engine.telemetry().upkeep();
        }
        f64::from(events) * 1_000.0 / took.as_secs_f64()
    });
    report(name, rounds.collect());
}

/// A session as far as MAIL.
fn begun(engine: &Arc<Engine>, number: u32) -> Session {
    // Not as many new hosts in a network as make a swarm.
    let (network, host) = (number / HOSTS_OF_A_NETWORK, number % HOSTS_OF_A_NETWORK);
    let address = Ipv4Addr::from(0x0a00_0000 + (network << 8) + host);
    let client = Client::new(address.into()).named(&name(number));
    let mut session = engine.session(client, listen::Params::default().door());
    let sender = Address::new(format!("<someone@{}>", name(number)).as_bytes());
    for event in [
        Event::Connect,
        Event::Helo { name: ClientText::new(name(number).as_bytes()) },
        Event::Mail { sender, size: Some(20_000), user: None, tls: false },
    ] {
        assert_eq!(session.on(event), Answer::Pass, "only what passes is measured");
    }
    session
}

fn rcpt(session: &mut Session, bits: u64) {
    let address = Address::new(format!("<user{}@example.org>", bits % 500).as_bytes());
    black_box(session.on(Event::Recipient { address, fate: Fate::Offered }));
}

/// A client's name, in a domain of its own. Without digits, since they could be those of the address.
fn name(client: u32) -> String {
    let letters = (0..5).map(|place| char::from(b'a' + (client >> (4 * place) & 15) as u8));
    format!("mx.{}.example", letters.collect::<String>())
}
