//! What the policy service costs: against an empty one, and in memory.
//!
//! ```text
//! cargo bench --bench policy                # all of it, about three minutes
//! cargo bench --bench policy -- rate        # requests a second and processor time
//! cargo bench --bench policy -- growth      # a decision with a thousand keys and with a million
//! cargo bench --bench policy -- memory      # bytes a key
//! ```
//!
//! **Rate.** Two processes take turns under the same load: the daemon as it is shipped, and `null`
//! (this program, run again), which reads a request up to its empty line and answers `DUNNO`, on
//! the same single-threaded runtime. The load comes from one thread here over connections that
//! stay: each sends a request as Postfix 3.7 does, waits for the answer, and sends the next. Ten
//! thousand clients take turns, all known to greylisting; five limits, four meters among them, are
//! asked for each and nobody is refused, so no line is logged. The requests are
//!
//! - `message`: what the documented set-up asks about a message, at RCPT and at its end; each comes
//!   in a session of its own;
//! - `first`: the first half of that alone: CONNECT, HELO, MAIL and RCPT are judged in one;
//! - `further`: another recipient of the same message;
//! - `repeat`: the one before again, as from a second restriction list.
//!
//! `of null` is the daemon's rate by that of `null` in the same round, `cpu` the user and system
//! time for a request, and its ratio likewise: the median of the rounds, the lowest and the
//! highest. The machine's other work disturbs both alike, so trust the ratios.
//!
//! **Growth.** The same `first` requests, decided in this process without a socket, the clients in
//! random order. The sizes take turns; the median of the rounds, the lowest and the highest. What
//! a million costs more is cold memory: a thousand clients stay in the processor's cache.
//!
//! **Memory.** A process for each kind of record, so that nothing freed is used again: resident
//! memory before and after, by the number of keys. Tables grow by doubling, so the figure swings
//! between once and twice its least; it is taken at two sizes, before and after a doubling.

#![allow(clippy::print_stdout, reason = "a benchmark tells its figures to whoever ran it")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::{Clock, Stopwatch};
use postpone::config::Settings;
use postpone::engine::{Door, Engine, Speak};
use postpone::front::policyd::Desk;
use postpone::front::policyd::request::{Action, Request};
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::policy::signal::Ends;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use support::{Ahead, Random};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::runtime;

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            rate();
            println!();
            growth();
            println!();
            memory();
        }
        ["rate"] => rate(),
        ["growth"] => growth(),
        ["memory"] => memory(),
        ["memory", kind, keys] => {
            println!("{}", memory_of(kind, keys.parse().expect("a number of keys")));
        }
        ["null", address] => null(address),
        // For a profiler.
        ["decide", rounds] => {
            let mut office = Office::new(FEW);
            let rounds: usize = rounds.parse().expect("a number of rounds");
            println!("{:?}", (0..rounds).map(|_| office.round() as u64).collect::<Vec<_>>());
        }
        _ => println!("usage: cargo bench --bench policy [-- rate | growth | memory]"),
    }
    ExitCode::SUCCESS
}

/// The policy, as an administrator would write it, with quotas that nobody reaches.
const POLICY: &str = r#"
    [[limit]]
    name = "sessions"
    count = "sessions"
    max = 40
    [[limit]]
    name = "connections"
    count = "connections"
    quota = "10000000/1m"
    [[limit]]
    name = "messages"
    count = "messages"
    quota = "10000000/1m"
    [[limit]]
    name = "recipients"
    count = "recipients"
    quota = "10000000/1m"
    [[limit]]
    name = "bytes"
    count = "bytes"
    quota = "100GiB/1m"
    [access]
    allow = []
    [greylist]
    mode = "enforce"
    delay = "1s"
    [state]
    max_clients = 4_000_000
"#;

// --- Requests -----------------------------------------------------------------------------------

/// What is asked about.
#[derive(Clone, Copy)]
enum What {
    Message,
    First,
    Further,
    Repeat,
}

/// A request whose client, session, message and recipient can be changed where they stand.
struct Form {
    text: Vec<u8>,
    address: usize,
    port: usize,
    helo: usize,
    sender: usize,
    recipient: usize,
    instance: usize,
}

impl Form {
    fn new(state: &str) -> Self {
        let text = format!(
            "request=smtpd_access_policy\nprotocol_state={state}\nprotocol_name=ESMTP\n\
            client_address=010.000.000.000\nclient_name=unknown\nclient_port=00000\n\
            reverse_client_name=unknown\nserver_address=192.0.2.1\nserver_port=25\n\
            helo_name=mx0000000.example.net\nsender=someone@mx0000000.example.net\n\
            recipient=user0000000@example.org\nrecipient_count=0\nqueue_id=\n\
            instance=2f0f.6b01f63d.00000000.0\nsize=20000\netrn_domain=\nstress=\n\
            sasl_method=\nsasl_username=\nsasl_sender=\nccert_subject=\nccert_issuer=\n\
            ccert_fingerprint=\nccert_pubkey_fingerprint=\nencryption_protocol=\n\
            encryption_cipher=\nencryption_keysize=0\npolicy_context=\n\n"
        );
        let at = |label: &str| text.find(label).expect("a label of the text") + label.len();
        Self {
            address: at("client_address="),
            port: at("client_port="),
            helo: at("helo_name=mx"),
            sender: at("someone@mx"),
            recipient: at("recipient=user"),
            instance: at("6b01f63d."),
            text: text.into(),
        }
    }

    fn number(&mut self, at: usize, digits: usize, mut number: usize) {
        for place in (at..at + digits).rev() {
            self.text[place] = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }

    /// The client's address, in 10.0.0.0/8, so that there can be a million of them. Its parts have
    /// no leading zeros, so the text moves.
    fn client(&mut self, client: usize) {
        let address = Ipv4Addr::from(0x0a00_0000 + client as u32).to_string();
        let end = self.text[self.address..].iter().position(|byte| *byte == b'\n');
        let old = end.expect("a line ends");
        self.text.splice(self.address..self.address + old, address.bytes());
        let moved = |place: usize| place + address.len() - old;
        self.port = moved(self.port);
        (self.helo, self.sender) = (moved(self.helo), moved(self.sender));
        (self.recipient, self.instance) = (moved(self.recipient), moved(self.instance));
        self.number(self.helo, 7, client);
        self.number(self.sender, 7, client);
        self.number(self.recipient, 7, client % 500);
    }

    /// A session that no request has been about for long.
    fn session(&mut self, session: usize) {
        self.number(self.port, 5, 1_024 + session / 7 % 64_000);
        self.number(self.instance, 8, session);
    }
}

/// What a load asks, one after the other on each connection.
struct Requests {
    rcpt: Form,
    end: Form,
    sessions: usize,
}

/// Where a connection is.
#[derive(Default)]
struct Turn {
    session: usize,
    asked: usize,
}

impl Requests {
    fn new() -> Self {
        Self { rcpt: Form::new("RCPT"), end: Form::new("END-OF-MESSAGE"), sessions: 0 }
    }

    fn next(&mut self, what: What, turn: &mut Turn) -> &[u8] {
        let anew = match what {
            What::First => true,
            What::Message => turn.asked.is_multiple_of(2),
            // As many recipients a message as Postfix takes.
            What::Further => turn.asked.is_multiple_of(1_000),
            What::Repeat => turn.asked == 0,
        };
        if anew {
            self.sessions += 1;
            turn.session = self.sessions;
        }
        let ends = matches!(what, What::Message) && !anew;
        let form = if ends { &mut self.end } else { &mut self.rcpt };
        form.client(turn.session % CLIENTS);
        form.session(turn.session);
        if matches!(what, What::Further) {
            form.number(form.recipient, 7, turn.asked % 1_000);
        }
        turn.asked += 1;
        &form.text
    }
}

// --- Rate ---------------------------------------------------------------------------------------

const CLIENTS: usize = 10_000;
const CONNECTIONS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 9;
/// How long one subject is under load in a round.
const SLICE: Duration = Duration::from_millis(500);

/// What a subject did under one load.
struct Slice {
    requests_per_second: f64,
    cpu_us: f64,
}

fn rate() {
    println!("requests, {ROUNDS} rounds of {SLICE:?} each");
    println!(
        "                      null   postpone  of null             cpu µs: null  postpone  ratio"
    );
    for transport in ["inet", "unix"] {
        let mut subjects = [Subject::null(transport), Subject::postpone(transport)];
        subjects[1].meet();
        for connections in CONNECTIONS {
            compare(&mut subjects, transport, "message", What::Message, connections);
        }
        compare(&mut subjects, transport, "first", What::First, 16);
        compare(&mut subjects, transport, "further", What::Further, 16);
        compare(&mut subjects, transport, "repeat", What::Repeat, 16);
    }
}

fn compare(
    subjects: &mut [Subject; 2],
    transport: &str,
    name: &str,
    what: What,
    connections: usize,
) {
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| subjects.each_mut().map(|subject| subject.slice(what, connections)))
        .collect();
    let median = |of: &dyn Fn(&[Slice; 2]) -> f64| sorted(rounds.iter().map(of))[ROUNDS / 2];
    let spread = |of: &dyn Fn(&[Slice; 2]) -> f64| {
        let all = sorted(rounds.iter().map(of));
        format!("{:4.2} ({:4.2}-{:4.2})", all[ROUNDS / 2], all[0], all[ROUNDS - 1])
    };
    println!(
        "{transport} {name:8} {connections:2} {:9.0}  {:9.0}  {}  {:10.1}  {:8.1}  {}",
        median(&|[null, _]| null.requests_per_second),
        median(&|[_, ours]| ours.requests_per_second),
        spread(&|[null, ours]| ours.requests_per_second / null.requests_per_second),
        median(&|[null, _]| null.cpu_us),
        median(&|[_, ours]| ours.cpu_us),
        spread(&|[null, ours]| ours.cpu_us / null.cpu_us),
    );
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable_by(f64::total_cmp);
    numbers
}

/// A policy service in a process of its own.
struct Subject {
    address: String,
    child: Child,
    folder: PathBuf,
    requests: Requests,
}

impl Subject {
    fn null(transport: &str) -> Self {
        let (folder, address) = place(transport, "null");
        let myself = std::env::current_exe().expect("this program has a file");
        let child = Command::new(myself).args(["null", &address]).spawn();
        let child = child.expect("this program can be run again");
        Self::listening(address, child, folder)
    }

    fn postpone(transport: &str) -> Self {
        let (folder, address) = place(transport, "postpone");
        let file = folder.join("postpone.toml");
        let control = "[control]\nhttp = \"none\"\nsocket = \"none\"";
        let settings = format!("{POLICY}\n{control}\n[[listen]]\npolicy = \"{address}\"\n");
        fs::write(&file, settings).expect("the folder is ours");
        let child = Command::new(env!("CARGO_BIN_EXE_postpone"))
            .args(["serve", "--config"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .expect("Cargo has built it");
        Self::listening(address, child, folder)
    }

    fn listening(address: String, child: Child, folder: PathBuf) -> Self {
        let subject = Self { address, child, folder, requests: Requests::new() };
        while subject.connect().is_none() {
            pause(Duration::from_millis(10));
        }
        subject
    }

    fn connect(&self) -> Option<Box<dyn Stream>> {
        match self.address.split_once(':').expect("transport and place") {
            ("unix", path) => Some(Box::new(UnixStream::connect(path).ok()?)),
            (_, address) => {
                let stream = TcpStream::connect(address).ok()?;
                stream.set_nodelay(true).ok()?;
                Some(Box::new(stream))
            }
        }
    }

    /// Each client comes, is put off, and comes again.
    fn meet(&mut self) {
        let mut stream = self.connect().expect("it listens");
        for put_off in [true, false] {
            for client in 0..CLIENTS {
                let request = self.requests.next(What::First, &mut Turn::default());
                let answer = ask(&mut *stream, request);
                assert_eq!(answer.starts_with(b"action=451"), put_off, "{client} {answer:?}");
            }
            pause(Duration::from_millis(1_100));
        }
    }

    fn slice(&mut self, what: What, connections: usize) -> Slice {
        let connect = |_| (self.connect().expect("it listens"), Turn::default());
        let mut streams: Vec<_> = (0..connections).map(connect).collect();
        let (watch, cpu) = (Stopwatch::start(), self.cpu_ns());
        let mut answered = 0;
        for (stream, turn) in &mut streams {
            send(&mut **stream, self.requests.next(what, turn));
        }
        while watch.elapsed() < SLICE {
            for (stream, turn) in &mut streams {
                let answer = receive(&mut **stream);
                // Only what passes is measured.
                assert_eq!(answer, b"action=DUNNO\n\n");
                send(&mut **stream, self.requests.next(what, turn));
                answered += 1;
            }
        }
        for (stream, _) in &mut streams {
            receive(&mut **stream);
        }
        answered += connections;
        let (took, cpu) = (watch.elapsed(), self.cpu_ns() - cpu);
        Slice {
            requests_per_second: answered as f64 / took.as_secs_f64(),
            cpu_us: cpu as f64 / 1_000.0 / answered as f64,
        }
    }

    /// What all threads together have spent, in nanoseconds.
    fn cpu_ns(&self) -> u64 {
        let tasks = format!("/proc/{}/task", self.child.id());
        let tasks = fs::read_dir(tasks).expect("it runs");
        let spent = |task: std::io::Result<fs::DirEntry>| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        tasks.filter_map(spent).sum()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

fn send(stream: &mut dyn Stream, request: &[u8]) {
    stream.write_all(request).expect("the subject reads");
}

fn receive(stream: &mut dyn Stream) -> Vec<u8> {
    let mut bytes = [0; 1_024];
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n\n") {
        let read = stream.read(&mut bytes).expect("the subject answers");
        assert!(read > 0, "the subject hung up");
        answer.extend_from_slice(&bytes[..read]);
    }
    answer
}

fn ask(stream: &mut dyn Stream, request: &[u8]) -> Vec<u8> {
    send(stream, request);
    receive(stream)
}

/// A folder for a subject, and an address that is free.
fn place(transport: &str, name: &str) -> (PathBuf, String) {
    let name = format!("postpone-bench-{}-{name}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).expect("the temporary folder can be written");
    let address = match transport {
        "unix" => format!("unix:{}/policy.sock", folder.display()),
        _ => {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            format!("inet:{}", free.expect("a port is free"))
        }
    };
    (folder, address)
}

#[allow(clippy::disallowed_methods, reason = "a real wait of real programs")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// The empty policy service.
fn null(address: &str) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        match address.split_once(':').expect("transport and place") {
            ("unix", path) => {
                let listener = tokio::net::UnixListener::bind(path).expect("a socket");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(say_dunno(stream));
                }
            }
            (_, address) => {
                let address: SocketAddr = address.parse().expect("address and port");
                let listener = tokio::net::TcpListener::bind(address).await.expect("a port");
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(say_dunno(stream));
                }
            }
        }
    });
}

async fn say_dunno(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while let Ok(1..) = stream.read_until(b'\n', &mut line).await {
        if line == b"\n" && stream.write_all(b"action=DUNNO\n\n").await.is_err() {
            return;
        }
        line.clear();
    }
}

// --- Growth -------------------------------------------------------------------------------------

const FEW: usize = 1_000;
const MANY: usize = 1_000_000;
const GROWTH_ROUNDS: usize = 11;
/// Decisions of each size in a round.
const DECISIONS: usize = 50_000;

fn growth() {
    let mut offices = [Office::new(FEW), Office::new(MANY)];
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..GROWTH_ROUNDS {
        for (office, rounds) in offices.iter_mut().zip(&mut rounds) {
            rounds.push(office.round());
        }
    }
    let rounds = rounds.map(|rounds| sorted(rounds.into_iter()));
    println!("one `first` request, ns      median      spread");
    for (keys, rounds) in [FEW, MANY].iter().zip(&rounds) {
        let (low, high) = (rounds[0], rounds[GROWTH_ROUNDS - 1]);
        println!(
            "{keys:9} clients          {:9.0}  {low:5.0}-{high:.0}",
            rounds[GROWTH_ROUNDS / 2]
        );
    }
    let middle = |rounds: &[f64]| rounds[GROWTH_ROUNDS / 2];
    println!("growth                       {:9.2}", middle(&rounds[1]) / middle(&rounds[0]));
}

/// A desk, an engine, and the clients they know.
struct Office {
    engine: Arc<Engine>,
    desk: Desk,
    door: Door,
    clients: usize,
    form: Form,
    sessions: usize,
    random: Random,
}

impl Office {
    fn new(clients: usize) -> Self {
        let ahead = Ahead::default();
        let engine = engine(POLICY, ahead.clone());
        let desk = Desk::new(&Secret::new([7; 16]));
        let (form, door) = (Form::new("RCPT"), door(Ends::Unseen));
        let mut office = Self { engine, desk, door, clients, form, sessions: 0, random: Random(1) };
        // The first visit is put off, the second passes, and then the client is no stranger.
        for put_off in [true, false] {
            if !put_off {
                ahead.go(Duration::from_secs(2));
            }
            for client in 0..clients {
                assert_eq!(office.ask(client) != Action::Dunno, put_off);
            }
        }
        office
    }

    fn ask(&mut self, client: usize) -> Action {
        self.sessions += 1;
        self.form.client(client);
        self.form.session(self.sessions);
        if self.sessions.is_multiple_of(10_000) {
            self.engine.telemetry().upkeep();
        }
        let request = Request::parse(&self.form.text).expect("it is a request");
        self.desk.answer(&request, &self.engine, &self.door)
    }

    /// The nanoseconds of one decision, the making of the request among them.
    fn round(&mut self) -> f64 {
        let watch = Stopwatch::start();
        for _ in 0..DECISIONS {
            let client = self.random.below(self.clients as u64) as usize;
            assert_eq!(self.ask(client), Action::Dunno, "only what passes is measured");
        }
        watch.elapsed().as_nanos() as f64 / DECISIONS as f64
    }
}

fn engine(policy: &str, clock: impl Clock + 'static) -> Arc<Engine> {
    let checked = Settings::parse("bench", policy);
    let settings = checked.expect("the policies of this file can be used").settings;
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("it names no files that could be missing");
    Engine::new(Box::new(clock), memory, policy)
}

fn door(ends: Ends) -> Door {
    let address: Arc<str> = "inet:127.0.0.1:7422".into();
    Door {
        listener: address.clone(),
        address,
        hostname: None,
        speak: Speak::Connect,
        ends,
        rehearsal: false,
    }
}

// --- Memory -------------------------------------------------------------------------------------

/// Each kind of record, with the limit that makes it.
const KINDS: [(&str, &str); 8] = [
    ("meter", r#"count = "connections", quota = "60/1m""#),
    ("gauge", r#"count = "sessions", max = 9"#),
    ("sketch", r#"count = "distinct_helos", max = 9, window = "1h""#),
    (
        "meter and penalty",
        r#"count = "connections", quota = "1/1h", penalty = { factor = 2, cap = "1d", decay = "1d" }"#,
    ),
    ("triplet, pending", ""),
    ("triplet, passed", ""),
    ("client with triplet", ""),
    ("policy session", ""),
];

fn memory() {
    println!("resident bytes a key      800 k keys   1 M keys");
    for (kind, _) in KINDS {
        print!("{kind:22}");
        for keys in [800_000, MANY] {
            // No more of these than the desk remembers.
            let keys = if kind == "policy session" { keys / 40 } else { keys };
            let myself = std::env::current_exe().expect("this program has a file");
            let child = Command::new(myself).args(["memory", kind, &keys.to_string()]).output();
            let output = child.expect("this program can be run again").stdout;
            print!("  {:>10}", String::from_utf8_lossy(&output).trim());
        }
        println!();
    }
}

/// What a record of one kind takes, in bytes, with so many of them.
fn memory_of(kind: &str, keys: usize) -> u64 {
    let (_, limit) = KINDS.iter().find(|(name, _)| *name == kind).expect("a kind of record");
    let limit = match *limit {
        "" => "limit = []".to_owned(),
        limit => format!("limit = [{{ name = \"x\", per = [\"network\"], {limit} }}]"),
    };
    let greylist = match kind {
        "triplet, pending" | "triplet, passed" | "client with triplet" => {
            "mode = \"enforce\"\ndelay = \"1s\"\nmax_pending_per_network = 4_000_000\n\
             proven_after = 4_000_000"
        }
        _ => "mode = \"off\"",
    };
    let policy = format!(
        "{limit}\n[access]\nallow = []\n[greylist]\n{greylist}\n[state]\nmax_clients = 8_000_000\n"
    );
    let ahead = Ahead::default();
    let engine = engine(&policy, ahead.clone());
    let desk = Desk::new(&Secret::new([7; 16]));
    let mut form = Form::new("RCPT");
    let mut fill = |keys: std::ops::Range<usize>| {
        for key in keys {
            match kind {
                "policy session" => {
                    form.client(key);
                    let request = Request::parse(&form.text).expect("it is a request");
                    desk.answer(&request, &engine, &door(Ends::Unseen));
                }
                "triplet, pending" => visit(&engine, 0, key),
                "triplet, passed" | "client with triplet" => {
                    let client = if kind == "triplet, passed" { 0 } else { key };
                    visit(&engine, client, key);
                    ahead.go(Duration::from_secs(2));
                    visit(&engine, client, key);
                }
                "meter and penalty" => {
                    visit(&engine, key, key);
                    visit(&engine, key, key);
                }
                _ => visit(&engine, key, key),
            }
            if key.is_multiple_of(1_000) {
                engine.telemetry().upkeep();
            }
        }
    };
    // What is not there for the keys is there by now.
    let first = keys / 100;
    fill(0..first);
    let before = resident_bytes();
    fill(first..keys);
    (resident_bytes() - before) / (keys - first) as u64
}

/// A session of a client as a milter sees it, with one recipient.
fn visit(engine: &Arc<Engine>, client: usize, recipient: usize) {
    let client = Client::new(Ipv4Addr::from(0x0a00_0000 + client as u32).into());
    let mut session = engine.session(client, door(Ends::Seen));
    session.on(Event::Connect);
    session.on(Event::Helo { name: ClientText::new(b"mx.example.net") });
    let sender = Address::new(b"<someone@example.net>");
    session.on(Event::Mail { sender, size: None, user: None, tls: false });
    let address = Address::new(format!("<user{recipient}@example.org>").as_bytes());
    session.on(Event::Recipient { address, fate: Fate::Offered });
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("a line of it is `VmRSS: 1234 kB`") * 1_024
}
