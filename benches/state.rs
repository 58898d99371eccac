//! What it costs to keep memory on disk: for mail, for the start, for the disk, and in memory.
//!
//! ```text
//! cargo bench --bench state                  # all of it but ten million entries, some three minutes
//! cargo bench --bench state -- start         # how soon it serves and knows again: 0 and 1 M entries
//! cargo bench --bench state -- start 10      # and with ten million
//! cargo bench --bench state -- decisions     # what a decision takes beside it, and its threads
//! cargo bench --bench state -- disk          # bytes written for a byte kept, and given back
//! cargo bench --bench state -- memory 10     # resident memory of the store alone, so many million
//! ```
//!
//! **Start.** The daemon as it is released, over a folder with so many entries: from its spawn to the
//! first answer of its policy service, and until its log says that everything is read. *Warm* is
//! with the files in the system's cache, as after a restart; *cold* without, as after a boot. *Journal*
//! is after a kill: what was written last, some forty megabytes, must be sorted first; *sorted* is
//! with everything sorted. Of ten entries nine are triplets, half of which have passed, and one is a
//! client. Three starts of each: the median, and in brackets the least and the most. What the log
//! says of the time it took to read stands last; it begins when the files are open.
//!
//! **Decisions.** Two engines in one process, one with its state on disk and one without, take turns:
//! 5,000 sessions a second with a new triplet each, at an even pace, for two seconds. Timed is the
//! recipient, which is looked up in three tables and stored in two. Each turn begins when all of the
//! last is on disk. Ratios are of both in the same turn, and what is shown is their median and
//! spread. Then the first engine alone for a while: what its threads take of a processor, by their
//! names. The load's own thread is not shown.
//!
//! **Disk.** What the system says has gone to the device for each byte of key and value, when three
//! million new entries are written in batches as large as after a stall, with everything that is
//! sorted and merged meanwhile; what they take on disk; and what is left when all have been removed
//! and the space was given back. Where the temporary folder is in memory, nothing goes to a device:
//! set `TMPDIR`.
//!
//! **Memory.** A process of its own that opens the folder, reads all of it and keeps nothing.

#![allow(clippy::print_stdout, reason = "a benchmark tells its figures to whoever ran it")]
#![allow(clippy::unwrap_used, reason = "and ends where something is not as it must be")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use postpone::clock::{Clock, Stopwatch, SystemClock};
use postpone::config::Settings;
use postpone::engine::{Answer, Engine};
use postpone::front::listen;
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use postpone::store::folder::Folder;
use postpone::store::keeper::Keeper;
use postpone::store::{Backend, Change, Home};
use rustix::fs::{Advice, fadvise};

const MILLION: u64 = 1_000_000;
const TABLES: [&str; 7] =
    ["penalties", "meters", "sketches", "proven", "passed", "pending", "crowds"];
/// Changes of one commit, as many as the keeper makes of it at most.
const BATCH: u64 = 16_384;

fn main() {
    // Cargo adds `--bench`.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] | ["start" | "decisions" | "disk", ..] => {
            let load = fs::read_to_string("/proc/loadavg").unwrap();
            println!("load average before: {load}");
        }
        _ => {}
    }
    match words[..] {
        [] => {
            start(1);
            println!();
            decisions();
            println!();
            disk();
            println!();
            memory(1);
        }
        ["start"] => start(1),
        ["start", "10"] => start(10),
        ["decisions"] => decisions(),
        ["disk"] => disk(),
        ["memory", millions] => memory(millions.parse().expect("a number of millions")),
        ["memory-of", folder] => memory_of(Path::new(folder)),
        _ => println!(
            "usage: cargo bench --bench state [-- start [10] | decisions | disk | memory N]"
        ),
    }
}

/// A folder that is removed with its contents.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("postpone-bench-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(folder: &Path) -> Box<dyn Backend> {
    let home = Folder::open(folder, SystemClock.now());
    let home = home.unwrap_or_else(|refused| panic!("{refused}")).with_tables(TABLES.into());
    home.open().unwrap_or_else(|fault| panic!("{fault}"))
}

/// Entry number so and so: of ten, nine are triplets, half of them waiting, and one is a client.
fn entry(secret: &Secret, number: u64) -> Change {
    let tomorrow = (SystemClock.now() + Duration::from_secs(86_400)).as_nanos().to_le_bytes();
    let key = secret.key("bench").part(&number.to_le_bytes()).finish().to_bytes();
    let (table, value) = match number % 20 {
        0 | 10 => ("proven", [&tomorrow[..], &9_u32.to_le_bytes(), &[1]].concat()),
        odd if odd % 2 == 1 => ("pending", [tomorrow, tomorrow].concat()),
        _ => ("passed", tomorrow.to_vec()),
    };
    Change { table, key, value: Some(value) }
}

fn write(backend: &dyn Backend, from: u64, to: u64, change: impl Fn(u64) -> Change) {
    for begin in (from..to).step_by(BATCH as usize) {
        let batch: Vec<_> = (begin..to.min(begin + BATCH)).map(&change).collect();
        backend.commit(&batch).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

fn fill(folder: &Path, entries: u64) {
    let secret = Secret::new([3; 16]);
    let backend = open(folder);
    write(&*backend, 0, entries, |number| entry(&secret, number));
}

/// The middle one, the least and the most.
fn spread(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[0], samples[samples.len() - 1])
}

// --- Start --------------------------------------------------------------------------------------

const STARTS: usize = 3;

fn start(most: u64) {
    println!("start (s)          first answer             everything read          entries");
    for millions in [0, 1, 10].into_iter().filter(|millions| *millions <= most) {
        let scratch = Scratch::new("start");
        fill(&scratch.0, millions * MILLION);
        for (state, sorted) in [("journal", false), ("sorted", true)] {
            if sorted {
                open(&scratch.0).compact().unwrap_or_else(|fault| panic!("{fault}"));
            }
            for (name, cold) in [("warm", false), ("cold", true)] {
                starts(&format!("{millions:>2} M {state:<8} {name}"), &scratch.0, cold);
            }
        }
    }
}

fn starts(name: &str, folder: &Path, cold: bool) {
    let (mut answered, mut loaded, mut entries) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..STARTS {
        if cold {
            evict(folder);
        }
        let begun = begin(folder);
        answered.push(begun.0);
        loaded.push(begun.1);
        entries = begun.2;
    }
    let ((a, b, c), (d, e, f)) = (spread(answered), spread(loaded));
    println!("{name}  {a:>7.3} [{b:.3} {c:.3}]    {d:>7.3} [{e:.3} {f:.3}]    {entries}");
}

/// Starts the daemon over this folder: when it answered, when it had read everything, and how many.
fn begin(state: &Path) -> (f64, f64, String) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let config = state.with_extension("toml");
    let text = format!(
        "[[listen]]\npolicy = \"inet:{port}\"\n[control]\nhttp = \"none\"\nsocket = \"none\"\n\
         [state]\npath = \"{}\"\n[log]\nformat = \"text\"\n",
        state.display()
    );
    fs::write(&config, text).unwrap();
    let watch = Stopwatch::start();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_postpone"))
        .args(["serve", "--config"])
        .arg(&config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(daemon.stderr.take().unwrap());
    let reader = thread::spawn(move || {
        let line = log.lines().map(Result::unwrap).find(|line| line.contains("state loaded"));
        let loaded = watch.elapsed().as_secs_f64();
        let line = line.expect("it reads its state to the end");
        let entries = line.split("entries=").nth(1).unwrap_or_default();
        (loaded, entries.to_owned())
    });
    let mut postfix = loop {
        match TcpStream::connect(port) {
            Ok(stream) => break stream,
            Err(_) => pause(Duration::from_micros(200)),
        }
    };
    postfix
        .write_all(
            b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.7\n\
              client_port=4711\nsender=a@example.net\nrecipient=b@example.org\ninstance=1\n\n",
        )
        .unwrap();
    let mut answer = String::new();
    BufReader::new(&postfix).read_line(&mut answer).unwrap();
    let answered = watch.elapsed().as_secs_f64();
    assert_eq!(answer.trim(), "action=DUNNO", "shadow mode, or still reading");
    let (loaded, entries) = reader.join().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    fs::remove_file(config).unwrap();
    (answered, loaded, entries)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark keeps a pace")]
fn pause(span: Duration) {
    thread::sleep(span);
}

/// Takes the files out of the system's cache.
fn evict(folder: &Path) {
    for path in paths(folder) {
        let file = fs::File::open(path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, mut files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files.extend(folders.iter().flat_map(|folder| paths(folder)));
    files
}

// --- Decisions ----------------------------------------------------------------------------------

const A_SECOND: u32 = 5_000;
const TURN: Duration = Duration::from_secs(2);
const TURNS: usize = 12;
const ALONE: Duration = Duration::from_secs(30);

const POLICY: &str = "limit = []\n[access]\nallow = []\n[greylist]\nmode = \"enforce\"\n";

fn engine() -> Arc<Engine> {
    let settings = Settings::parse("bench", POLICY).expect("it can be used").settings;
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("it names no files");
    Engine::new(Box::new(SystemClock), memory, policy)
}

/// Sessions of ever new triplets.
struct Load {
    engine: Arc<Engine>,
    sessions: u32,
}

impl Load {
    fn new(engine: Arc<Engine>) -> Self {
        Self { engine, sessions: 0 }
    }

    /// At an even pace for so long: what each recipient took, in nanoseconds.
    fn run(&mut self, span: Duration) -> Vec<u64> {
        let (mut took, watch, mut done) = (Vec::new(), Stopwatch::start(), 0);
        while watch.elapsed() < span {
            let due = (watch.elapsed().as_secs_f64() * f64::from(A_SECOND)) as u32;
            while done < due {
                took.push(self.session());
                done += 1;
            }
            pause(Duration::from_micros(500));
        }
        self.engine.telemetry().upkeep();
        took
    }

    fn session(&mut self) -> u64 {
        self.sessions += 1;
        // Two hundred thousand clients, in no order that a cache could learn.
        let client = self.sessions.wrapping_mul(2_654_435_761) % 200_000;
        let client = Client::new(Ipv4Addr::from(0x0a00_0000 + (client << 6)).into());
        let mut session = self.engine.session(client, listen::Params::default().door());
        let name = ClientText::new(b"mx.example.net");
        let sender = Address::new(b"sender@example.net");
        session.on(Event::Connect);
        session.on(Event::Helo { name });
        session.on(Event::Mail { sender, size: None, user: None, tls: false });
        let address = Address::new(format!("r{}@example.org", self.sessions).as_bytes());
        let recipient = Event::Recipient { address, fate: Fate::Offered };
        let watch = Stopwatch::start();
        let answer = session.on(recipient);
        let took = watch.elapsed().as_nanos() as u64;
        assert_ne!(answer, Answer::Pass, "a first contact waits");
        took
    }
}

fn metric(engine: &Engine, name: &str) -> f64 {
    let page = engine.metrics();
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

fn until(engine: &Engine, name: &str, value: f64) {
    while metric(engine, name) != value {
        pause(Duration::from_millis(5));
    }
}

fn decisions() {
    let scratch = Scratch::new("decisions");
    let on_disk = engine();
    let home = Folder::open(&scratch.0, SystemClock.now());
    let home = home.unwrap_or_else(|refused| panic!("{refused}")).with_tables(TABLES.into());
    let keeper = Keeper::start(Box::new(home), on_disk.clone(), Duration::from_secs(1)).unwrap();
    until(&on_disk, "postpone_state_loading", 0.0);
    let (mut disk, mut memory) = (Load::new(on_disk.clone()), Load::new(engine()));

    const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
    let mut figures: BTreeMap<&str, [Vec<f64>; 3]> = BTreeMap::new();
    let mut all: [Vec<u64>; 2] = Default::default();
    for turn in 0..TURNS {
        // Who is first changes.
        let mut turns = [Vec::new(), Vec::new()];
        for which in [turn % 2, (turn + 1) % 2] {
            until(&on_disk, "postpone_state_behind_entries", 0.0);
            turns[which] = if which == 0 { disk.run(TURN) } else { memory.run(TURN) };
        }
        for (name, share) in SHARES {
            let [disk, memory] = [0, 1].map(|which| quantile(&mut turns[which], share));
            let row = figures.entry(name).or_default();
            row[0].push(disk / 1_000.0);
            row[1].push(memory / 1_000.0);
            row[2].push(disk / memory);
        }
        [0, 1].into_iter().for_each(|which| all[which].append(&mut turns[which]));
    }
    println!(
        "decision (µs)    on disk                  memory only              ratio in a turn        of all turns"
    );
    for (name, share) in SHARES {
        let [(a, b, c), (d, e, f), (g, h, i)] = figures[name].clone().map(spread);
        let whole = quantile(&mut all[0], share) / quantile(&mut all[1], share);
        println!(
            "{name:<6} {a:>14.2} [{b:.2} {c:.2}] {d:>14.2} [{e:.2} {f:.2}] {g:>12.2} [{h:.2} {i:.2}] {whole:>9.2}"
        );
    }

    until(&on_disk, "postpone_state_behind_entries", 0.0);
    let (before, io, written) = (threads(), write_bytes(), metric(&on_disk, WRITTEN));
    let watch = Stopwatch::start();
    disk.run(ALONE);
    let (took, after) = (watch.elapsed().as_secs_f64(), threads());
    let own = fs::read_to_string("/proc/thread-self/comm").unwrap().trim().to_owned();
    println!("\nthread             share of one processor");
    let mut sum = 0.0;
    for (name, ticks) in &after {
        let share = (ticks - before.get(name).unwrap_or(&0)) as f64 / TICKS_A_SECOND / took;
        if *name != own {
            sum += share;
            println!("{name:<18} {:>6.1} %", share * 100.0);
        }
    }
    println!("{:<18} {:>6.1} %", "together", sum * 100.0);
    until(&on_disk, "postpone_state_behind_entries", 0.0);
    let entries = metric(&on_disk, WRITTEN) - written;
    println!(
        "\n{entries} entries in {took:.0} s: {:.0} bytes to the device for each, of 32 bytes",
        (write_bytes() - io) / entries
    );
    keeper.finish().unwrap_or_else(|fault| panic!("{fault}"));
}

const WRITTEN: &str = "postpone_state_written_total";
/// Linux tells it in these since ever.
const TICKS_A_SECOND: f64 = 100.0;

fn quantile(samples: &mut [u64], share: f64) -> f64 {
    let place = ((samples.len() - 1) as f64 * share) as usize;
    *samples.select_nth_unstable(place).1 as f64
}

/// What the threads of this process have taken, by their names, in ticks.
fn threads() -> BTreeMap<String, u64> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        // One may have ended.
        let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (head, rest) = stat.rsplit_once(')').unwrap();
        let name = head.split_once('(').unwrap().1.to_owned();
        let fields: Vec<_> = rest.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        *threads.entry(name).or_default() += ticks;
    }
    threads
}

/// What this process has sent to a device.
fn write_bytes() -> f64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    bytes.parse().unwrap()
}

// --- Disk ---------------------------------------------------------------------------------------

fn disk() {
    const ENTRIES: u64 = 3 * MILLION;
    let (scratch, secret) = (Scratch::new("disk"), Secret::new([3; 16]));
    let backend = open(&scratch.0);
    let payload: usize = (0..20)
        .map(|n| entry(&secret, n))
        .map(|change| change.key.len() + change.value.unwrap().len())
        .sum();
    let payload = payload as f64 / 20.0 * ENTRIES as f64;
    let (before, watch) = (write_bytes(), Stopwatch::start());
    write(&*backend, 0, ENTRIES, |number| entry(&secret, number));
    let took = watch.elapsed().as_secs_f64();
    println!("disk: {ENTRIES} entries, {:.0} MB of keys and values, in {took:.1} s", payload / 1e6);
    println!("written to the device for each byte   {:.2}", (write_bytes() - before) / payload);
    println!("taken on disk for each byte           {:.2}", taken(&scratch.0) / payload);
    let watch = Stopwatch::start();
    backend.compact().unwrap_or_else(|fault| panic!("{fault}"));
    println!(
        "the same when space was given back    {:.2}   (in {:.1} s)",
        taken(&scratch.0) / payload,
        watch.elapsed().as_secs_f64()
    );
    write(&*backend, 0, ENTRIES, |number| Change { value: None, ..entry(&secret, number) });
    println!("when all were removed                 {:.2}", taken(&scratch.0) / payload);
    backend.compact().unwrap_or_else(|fault| panic!("{fault}"));
    println!("and space was given back              {:.2}", taken(&scratch.0) / payload);
    drop(backend);
    drop(open(&scratch.0));
    println!("and it was opened again               {:.2}", taken(&scratch.0) / payload);
}

/// What the files take, not how long they are: a journal's is made with its full length.
fn taken(folder: &Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    let blocks = |path: PathBuf| fs::metadata(path).map_or(0, |file| file.blocks());
    paths(folder).into_iter().map(blocks).sum::<u64>() as f64 * 512.0
}

// --- Memory -------------------------------------------------------------------------------------

fn memory(millions: u64) {
    let scratch = Scratch::new("memory");
    fill(&scratch.0, millions * MILLION);
    println!("resident memory of the store alone (MB), {millions} M entries");
    let own = std::env::current_exe().unwrap();
    let status = Command::new(own).args(["memory-of", scratch.0.to_str().unwrap()]).status();
    assert!(status.unwrap().success());
}

fn memory_of(folder: &Path) {
    let before = resident();
    let more = |what: &str| println!("{what:<37} {:.1}", resident() - before);
    let backend = open(folder);
    more("opened");
    let mut entries = 0_u64;
    for table in TABLES {
        for byte in 0..=u8::MAX {
            backend.scan(table, byte, &mut |_, _| entries += 1).unwrap_or_else(|f| panic!("{f}"));
        }
    }
    more("read from end to end");
    let secret = Secret::new([4; 16]);
    write(&*backend, 0, MILLION, |number| entry(&secret, number));
    more("a million more entries written");
    backend.compact().unwrap_or_else(|fault| panic!("{fault}"));
    more("space given back");
    assert!(entries > 0);
}

/// In MB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1_000.0
}
