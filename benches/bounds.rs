//! What it costs when memory is large, and when it is full.
//!
//! ```text
//! cargo bench --bench bounds              # all of it, under a minute
//! cargo bench --bench bounds -- expiry    # decisions while ten million triplets are swept
//! cargo bench --bench bounds -- flood     # decisions when every key is new and tables are full
//! cargo bench --bench bounds -- memory    # bytes a triplet, bytes a client, bytes after churn
//! ```
//!
//! **Expiry.** Five million triplets that wait and five million that have passed. One thread asks
//! for recipients it knows, another sweeps without a pause, which a daemon does once a second; they
//! take turns with rounds without sweeping, and with rounds in which the other thread is only busy:
//! on a machine whose processors have other work, being busy is enough to make a thread wait for
//! milliseconds. Then those that wait expire, all at once, and are
//! dropped while the first thread goes on. What a thread waits for the other is seen in the last
//! quantiles; the maximum is mostly the system's, which takes a processor away for milliseconds. So
//! how long a shard is locked is also measured by itself: a sweep of one shard after another, by
//! one thread.
//!
//! **Flood.** Sessions of clients that have never been here, up to a first contact that is put off:
//! with tables that are full, so that each new key takes the place of another, and with tables that
//! hold as much and are half empty or more. In the last row all come to full tables from one IPv6
//! /48, which is then over its quota.
//!
//! **Memory.** Resident memory, in a process of its own for each figure. Changes that are noted for
//! a disk are taken away as they come. A client has what a busy one has: it is proven, has a gauge,
//! two meters, a penalty and a crowd; its triplet is not counted.

#![allow(clippy::print_stdout, reason = "a benchmark tells its figures to whoever ran it")]

mod support;

use std::mem::ManuallyDrop;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use postpone::clock::{Clock, Moment, Stopwatch, Time};
use postpone::config::Settings;
use postpone::engine::{Answer, Door, Engine, Session};
use postpone::front::listen;
use postpone::meter::changes::Changes;
use postpone::meter::distinct::Distinct;
use postpone::meter::gcra::Gcra;
use postpone::meter::key::{Key, Secret};
use postpone::meter::quota::Quota;
use postpone::meter::record::{Record, Worth};
use postpone::meter::table::{Kept, Restored, Table};
use postpone::policy::Memory;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use support::{Ahead, Random};

/// As the daemon does it.
const SWEEP_PARTS: usize = 32;

fn main() {
    // Cargo adds `--bench`.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            expiry();
            println!();
            flood();
            println!();
            memory();
        }
        ["expiry"] => expiry(),
        ["flood"] => flood(),
        ["memory"] => memory(),
        ["memory", "triplet"] => memory_of_triplets(),
        ["memory", "client"] => memory_of_clients(Sketch::Without),
        ["memory", "client-with-sketch"] => memory_of_clients(Sketch::With),
        ["memory", "churn"] => memory_after_churn(),
        _ => println!("usage: cargo bench --bench bounds [-- expiry | flood | memory]"),
    }
}

// --- Expiry -------------------------------------------------------------------------------------

const TRIPLETS: usize = 10_000_000;
/// So many of them are asked for.
const ASKED: u32 = 50_000;
const ROUNDS: usize = 8;
const PER_ROUND: usize = 100_000;

/// A little more room than there are triplets, since shards do not fill evenly.
const GREYLIST: &str = r#"
    limit = []
    [greylist]
    mode = "enforce"
    max_pending_per_network = 4_000_000_000
    [state]
    max_triplets = 10_500_000
"#;

fn expiry() {
    let ahead = Ahead::default();
    let engine = engine(GREYLIST, ahead.clone());
    let mut session = guest(&engine, 0);
    // Put off, and let in when they come back.
    (0..ASKED).for_each(|n| assert_ne!(ask(&mut session, n), Answer::Pass));
    ahead.go(Duration::from_secs(600));
    (0..ASKED).for_each(|n| assert_eq!(ask(&mut session, n), Answer::Pass));
    fill_with_triplets(&engine, TRIPLETS);

    let mut random = Random(1);
    let (mut alone, mut busy, mut swept) = (Vec::new(), Vec::new(), Vec::new());
    let mut steps = Vec::new();
    for _ in 0..ROUNDS {
        alone.extend(asked(&mut session, &mut random, PER_ROUND));
        busy.extend(while_busy(|| asked(&mut session, &mut random, PER_ROUND)).0);
        let (samples, took) = while_swept(&engine, || asked(&mut session, &mut random, PER_ROUND));
        swept.extend(samples);
        steps.extend(took);
    }
    // Those that wait expire; those that have passed are remembered for longer.
    ahead.go(Duration::from_secs(3 * 86_400));
    let before = entries(&engine);
    let (mut expiring, mut dropping) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        if entries(&engine) > before - TRIPLETS / 2 {
            let (samples, took) =
                while_swept(&engine, || asked(&mut session, &mut random, PER_ROUND / 2));
            expiring.extend(samples);
            dropping.extend(took);
        }
    }
    let watch = Stopwatch::start();
    engine.metrics();
    println!("a page of metrics takes {} µs", watch.elapsed().as_micros());
    println!("a known recipient, of {before} triplets, {} left after", entries(&engine));
    println!("ns                          median       p99     p99.9    p99.99       max");
    let row = |name: &str, samples: &mut Vec<u64>| {
        print!("{name:24}");
        for share in [0.5, 0.99, 0.999, 0.9999, 1.0] {
            print!("  {:8}", quantile(samples, share));
        }
        println!("   ({} of them)", samples.len());
    };
    row("decision, no sweep", &mut alone);
    row("decision, busy thread", &mut busy);
    row("decision, sweep", &mut swept);
    row("decision, all expires", &mut expiring);
    row("step of a sweep", &mut steps);
    row("the same, all expires", &mut dropping);
    drop((session, engine));
    for (name, faded) in [("nothing", Faded::Nothing), ("all", Faded::All)] {
        row(&format!("lock, {name} fades"), &mut shard_locks(faded, 2_000_000, charge));
        row("the same, sketches", &mut shard_locks(faded, 250_000, see));
    }
}

/// Runs something while another thread sweeps; what it returns, and how long each step has taken.
fn while_swept<T>(engine: &Engine, run: impl FnOnce() -> T) -> (T, Vec<u64>) {
    while_another(|| engine.sweep(SWEEP_PARTS), run)
}

/// The same, but the other thread has nothing to do with it.
fn while_busy<T>(run: impl FnOnce() -> T) -> (T, Vec<u64>) {
    while_another(|| (0..1_000_000).for_each(|n| _ = std::hint::black_box(n)), run)
}

fn while_another<T>(step: impl Fn() + Sync, run: impl FnOnce() -> T) -> (T, Vec<u64>) {
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut steps = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let watch = Stopwatch::start();
                step();
                steps.push(watch.elapsed().as_nanos() as u64);
                begun.store(true, Ordering::Relaxed);
            }
            steps
        });
        while !begun.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let result = run();
        done.store(true, Ordering::Relaxed);
        (result, other.join().expect("a step does not panic"))
    })
}

fn asked(session: &mut Session, random: &mut Random, times: usize) -> Vec<u64> {
    let mut ask_once = || {
        let event = recipient(random.below(ASKED.into()) as u32);
        let watch = Stopwatch::start();
        let answer = session.on(event);
        let took = watch.elapsed().as_nanos() as u64;
        assert_eq!(answer, Answer::Pass, "it is an acquaintance");
        took
    };
    (0..times).map(|_| ask_once()).collect()
}

/// Half of them waiting, half passed, as a start reads them from disk.
fn fill_with_triplets(engine: &Engine, number: usize) {
    let now = engine.now();
    let nanos = |time: Time| time.as_nanos().to_le_bytes();
    let day = Duration::from_secs(86_400);
    let pending = [nanos(now), nanos(now + day)].concat();
    let passed = nanos(now + 36 * day);
    fill(engine, "pending", &pending, number / 2);
    fill(engine, "passed", &passed, number / 2);
}

fn fill(engine: &Engine, table: &str, bytes: &[u8], number: usize) {
    let table = kept(engine, table);
    let mut random = Random(number as u64);
    for _ in 0..number {
        let restored = table.restore(key(&mut random), bytes, engine.moment());
        assert_eq!(restored, Restored::Kept);
    }
}

fn kept(engine: &Engine, name: &str) -> Arc<dyn Kept> {
    let found = engine.memory().kept().find(|(table, _)| *table == name);
    found.expect("a table of that name").1
}

/// What a disk would have taken away.
fn take_changes(engine: &Engine) {
    for (_, table) in engine.memory().kept() {
        table.changes().map(|changes| changes.take(usize::MAX));
    }
}

fn entries(engine: &Engine) -> usize {
    let greylist =
        engine.memory().sizes().filter(|(name, _)| matches!(*name, "pending" | "passed"));
    greylist.map(|(_, size)| size.entries).sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Faded {
    Nothing,
    All,
}

/// How long a sweep locks each shard of a table of such records, which last for a minute.
fn shard_locks<R: Record + Default>(
    faded: Faded,
    entries: usize,
    change: fn(&mut R, Time),
) -> Vec<u64> {
    let table = Table::<R>::new(entries + entries / 20);
    let mut random = Random(7);
    let begin = Time::from_secs(1_000);
    for _ in 0..entries {
        table
            .write(key(&mut random), Moment::of(begin), |record| change(record, begin))
            .expect("there is room");
    }
    let now = if faded == Faded::All { begin + Duration::from_secs(3_600) } else { begin };
    let sweep_one = |_| {
        let watch = Stopwatch::start();
        // The next of so many parts is one shard.
        table.sweep(Moment::of(now), usize::MAX);
        watch.elapsed().as_nanos() as u64
    };
    (0..entries / 2_000).map(sweep_one).collect()
}

/// Sketches as limits keep them, but for giving back their memory, which a sweep does when the
/// shard is no longer locked.
#[derive(Default)]
struct Unfreed(ManuallyDrop<Box<Distinct>>);

impl Record for Unfreed {
    const APART: usize = Box::<Distinct>::APART;
    const FAVOURS: bool = false;

    fn forgettable(&self, now: Time) -> bool {
        self.0.forgettable(now)
    }

    fn worth(&self) -> Worth {
        self.0.worth()
    }

    fn seen_from(&self, _: Time, _: Duration) -> Option<Self> {
        None
    }
}

fn charge(meter: &mut Gcra, now: Time) {
    *meter = meter.charged(&Quota::events(1, 60), now, 1);
}

fn see(sketch: &mut Unfreed, now: Time) {
    sketch.0.add(7 << 32, Duration::from_secs(60), now);
}

// --- Flood --------------------------------------------------------------------------------------

/// Limits as an administrator who is under attack may set them: what they count is remembered for
/// hours, so that what makes room in a full table is never what has faded.
const FLOODED: &str = r#"
    [[limit]]
    name = "connections"
    count = "connections"
    quota = "10/1d"
    [[limit]]
    name = "messages"
    count = "messages"
    quota = "10/1d"
    [greylist]
    mode = "enforce"
    [state]
"#;

/// Clients, each with an entry in the table of crowds, two meters, and a triplet that waits.
const CLIENTS: u32 = 500_000;
const FLOOD_ROUNDS: u32 = 8;
const FLOOD_PER_ROUND: u32 = 10_000;

fn flood() {
    // Four meters for each of `max_clients`, half of `max_triplets` for those that wait.
    let bounds = |clients: u32, triplets: u32| {
        format!("{FLOODED}max_clients = {clients}\nmax_triplets = {triplets}\n")
    };
    let most = CLIENTS / 2;
    let mut scenes = [
        ("with room", bounds(4 * most, 4 * CLIENTS), ever_new as fn(u32) -> IpAddr),
        ("full", bounds(most, CLIENTS), ever_new),
        ("full, one /48", bounds(most, CLIENTS), of_one_site),
    ]
    .map(|(name, bounds, address)| {
        let ahead = Ahead::default();
        let engine = engine(&bounds, ahead.clone());
        for n in 0..CLIENTS {
            visit(&engine, ever_new(n), n);
        }
        // Those that wait could have come back by now, so that more are put off.
        ahead.go(Duration::from_secs(1_800));
        take_changes(&engine);
        (name, engine, address, Flooded::default())
    });
    for round in 0..FLOOD_ROUNDS {
        for (_, engine, address, flooded) in &mut scenes {
            let first = CLIENTS + round * FLOOD_PER_ROUND;
            for n in first..first + FLOOD_PER_ROUND {
                let [mail, recipient, whole] = visit(engine, address(n), n);
                flooded.mail.push(mail);
                flooded.recipient.push(recipient);
                flooded.whole.push(whole);
            }
            take_changes(engine);
            engine.telemetry().upkeep();
        }
    }
    println!("ns, new clients             MAIL       p99      RCPT       p99   session       p99");
    for (name, engine, _, flooded) in &mut scenes {
        print!("{name:22}");
        for samples in [&mut flooded.mail, &mut flooded.recipient, &mut flooded.whole] {
            print!("  {:8}  {:8}", quantile(samples, 0.5), quantile(samples, 0.99));
        }
        println!("   {}", fullness(engine));
    }
    let [room, full, site] = scenes.map(|(.., mut flooded)| quantile(&mut flooded.whole, 0.5));
    let ratio = |of: u64| of as f64 / room as f64;
    println!(
        "a session to full tables: {:.2} of one to tables with room, from one /48 {:.2}",
        ratio(full),
        ratio(site)
    );
}

#[derive(Default)]
struct Flooded {
    mail: Vec<u64>,
    recipient: Vec<u64>,
    whole: Vec<u64>,
}

fn fullness(engine: &Engine) -> String {
    let sizes = engine
        .memory()
        .sizes()
        .filter(|(name, _)| matches!(*name, "meters" | "pending" | "crowds"));
    let told = sizes.map(|(name, size)| {
        format!("{name} {}% evicted {}", 100 * size.entries / size.max_entries, size.evicted)
    });
    told.collect::<Vec<_>>().join(", ")
}

fn ever_new(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

/// A /64 of its own, in one /48.
fn of_one_site(number: u32) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, (number % 0x1_0000) as u16, 0, 0, 0, 7).into()
}

/// A first contact: what MAIL, RCPT and all of the session have taken.
fn visit(engine: &Arc<Engine>, address: IpAddr, number: u32) -> [u64; 3] {
    let client = Client::new(address);
    let name = Event::Helo { name: ClientText::new(b"mx.example.net") };
    let (mail, recipient) = (mail(number), recipient(number));
    let whole = Stopwatch::start();
    let mut session = engine.session(client, door());
    session.on(Event::Connect);
    session.on(name);
    let watch = Stopwatch::start();
    session.on(mail);
    let mail = watch.elapsed().as_nanos() as u64;
    let watch = Stopwatch::start();
    session.on(recipient);
    let recipient = watch.elapsed().as_nanos() as u64;
    drop(session);
    [mail, recipient, whole.elapsed().as_nanos() as u64]
}

// --- Memory -------------------------------------------------------------------------------------

fn memory() {
    for what in ["triplet", "client", "client-with-sketch", "churn"] {
        let myself = std::env::current_exe().expect("this program has a file");
        let child = Command::new(myself).args(["memory", what]).output();
        let output = child.expect("this program can be run again").stdout;
        print!("{}", String::from_utf8_lossy(&output));
    }
}

fn memory_of_triplets() {
    let before = resident_bytes();
    let engine = engine(GREYLIST, Ahead::default());
    fill_with_triplets(&engine, TRIPLETS);
    let bytes = resident_bytes() - before;
    println!(
        "triplet             {:4} bytes resident, {} of them, tables say {}",
        bytes / TRIPLETS as u64,
        entries(&engine),
        told_bytes(&engine) / TRIPLETS as u64,
    );
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sketch {
    With,
    Without,
}

const STANDING: &str = r#"
    [[limit]]
    name = "sessions"
    count = "sessions"
    max = 9
    [[limit]]
    name = "connections"
    count = "connections"
    quota = "10/1d"
    [[limit]]
    name = "messages"
    count = "messages"
    quota = "1/1d"
    penalty = { factor = 2, cap = "1h", decay = "1h" }
"#;

const SENDERS: &str = r#"
    [[limit]]
    name = "senders"
    count = "distinct_senders"
    max = 100
    window = "1d"
"#;

const PROVEN_SOON: &str = r#"
    [greylist]
    mode = "enforce"
    per = ["network", "sender", "recipient"]
    proven_after = 1
    [state]
    max_clients = 250_000
"#;

fn memory_of_clients(sketch: Sketch) {
    // As many as the tables hold, but for what shards do not fill evenly.
    const NUMBER: u32 = 240_000;
    let senders = if sketch == Sketch::With { SENDERS } else { "" };
    let ahead = Ahead::default();
    let engine = engine(&format!("{STANDING}{senders}{PROVEN_SOON}"), ahead.clone());
    let meet = |from, to| {
        for number in from..to {
            visit(&engine, ever_new(number), number);
            tidy(&engine, number);
        }
        ahead.go(Duration::from_secs(400));
        for number in from..to {
            let mut session = guest(&engine, number);
            assert_eq!(ask(&mut session, number), Answer::Pass, "it has come back");
            session.on(Event::EndOfMessage { size: None });
            assert_ne!(session.on(mail(number)), Answer::Pass, "one too many makes a penalty");
            tidy(&engine, number);
        }
    };
    meet(0, 10_000);
    let passed =
        |engine: &Engine| bytes_of(engine, |table| table == "passed" || table == "pending");
    let (before, passed_before) = (resident_bytes(), passed(&engine));
    meet(10_000, NUMBER);
    let bytes = resident_bytes() - before - (passed(&engine) - passed_before);
    let each = |table| {
        let size = engine.memory().sizes().find(|(name, _)| *name == table);
        size.map_or(0, |(_, size)| size.entries)
    };
    println!(
        "client, {}  {:4} bytes resident, of {NUMBER}: {} proven, {} gauges, {} meters, \
         {} penalties, {} crowds, {} sketches",
        if sketch == Sketch::With { "sketch" } else { "none  " },
        bytes / u64::from(NUMBER - 10_000),
        each("proven"),
        each("gauges"),
        each("meters"),
        each("penalties"),
        each("crowds"),
        each("sketches"),
    );
}

/// As the daemon does it beside the mail path.
fn tidy(engine: &Engine, number: u32) {
    if number.is_multiple_of(1_000) {
        take_changes(engine);
        engine.telemetry().upkeep();
    }
}

fn memory_after_churn() {
    const MOST: u32 = 500_000;
    let ahead = Ahead::default();
    let engine = engine(
        &format!("{FLOODED}max_clients = {}\nmax_triplets = {MOST}\n", MOST / 4),
        ahead.clone(),
    );
    let come = |from: u32, to: u32| {
        for number in from..to {
            visit(&engine, ever_new(number), number);
            tidy(&engine, number);
            if number.is_multiple_of(1_000) {
                // Slowly enough for greylisting to go on.
                ahead.go(Duration::from_secs(20));
            }
        }
        (resident_bytes(), told_bytes(&engine))
    };
    let (full, told) = come(0, MOST);
    let (churned, told_later) = come(MOST, 4 * MOST);
    println!(
        "after churn         {:.2} of what full tables take ({:.2} as they tell): {} MB and {} MB; {}",
        churned as f64 / full as f64,
        told_later as f64 / told as f64,
        full >> 20,
        churned >> 20,
        fullness(&engine),
    );
}

fn told_bytes(engine: &Engine) -> u64 {
    bytes_of(engine, |_| true)
}

fn bytes_of(engine: &Engine, which: fn(&str) -> bool) -> u64 {
    let sizes = engine.memory().sizes().filter(|(name, _)| which(name));
    sizes.map(|(_, size)| size.bytes as u64).sum()
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("a line of it is `VmRSS: 1234 kB`") * 1024
}

// --- What all of them need ----------------------------------------------------------------------

/// A key that nobody has drawn before.
fn key(random: &mut Random) -> Key {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random.next().to_le_bytes());
    bytes[8..].copy_from_slice(&random.next().to_le_bytes());
    Key::from_bytes(bytes)
}

fn quantile(samples: &mut [u64], share: f64) -> u64 {
    let place = (samples.len().saturating_sub(1) as f64 * share) as usize;
    if samples.is_empty() { 0 } else { *samples.select_nth_unstable(place).1 }
}

fn engine(settings: &str, clock: impl Clock + 'static) -> Arc<Engine> {
    let checked = Settings::parse("bench", settings);
    let settings = checked.expect("the settings of this file can be used").settings;
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("it names no files that could be missing");
    // As if a disk kept it.
    for (_, table) in memory.kept() {
        table.changes().into_iter().for_each(Changes::begin);
    }
    Engine::new(Box::new(clock), memory, policy)
}

/// The milter of the default settings.
fn door() -> Door {
    listen::Params::default().door()
}

/// A session that has come as far as RCPT.
fn guest(engine: &Arc<Engine>, number: u32) -> Session {
    let mut session = engine.session(Client::new(ever_new(number)), door());
    session.on(Event::Connect);
    session.on(mail(number));
    session
}

fn ask(session: &mut Session, number: u32) -> Answer {
    session.on(recipient(number))
}

fn mail(number: u32) -> Event {
    let sender = Address::new(format!("<sender{number}@example.net>").as_bytes());
    Event::Mail { sender, size: None, user: None, tls: false }
}

fn recipient(number: u32) -> Event {
    let address = Address::new(format!("<user{number}@example.org>").as_bytes());
    Event::Recipient { address, fate: Fate::Offered }
}
