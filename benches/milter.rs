//! What a milter session costs: against an empty filter over indymilter, against the least that a
//! filter can cost, and in memory.
//!
//! ```text
//! cargo bench --bench milter                    # all but the instructions, about two minutes
//! cargo bench --bench milter -- sessions        # rate, latency and processor time
//! cargo bench --bench milter -- memory          # bytes a held session
//! cargo bench --bench milter -- instructions    # of the program itself, by valgrind
//! ```
//!
//! The subjects are processes of their own (this program, run again), the load comes from one
//! thread here, over a unix socket, in frames as Postfix 3.7 sends them when our steps are
//! negotiated: the macros of a stage and its command in one write, then a wait for the answer.
//! A session is the negotiation, connect, HELO, MAIL, RCPT and end of message, which are six round
//! trips, and then ABORT twice and QUIT. Ten thousand clients take turns, all known: nobody is
//! refused and no line is logged. All subjects negotiate the same steps and macros.
//!
//! - `null`: indymilter with callbacks that all say Continue, on one single-threaded runtime. What
//!   the library costs.
//! - `empty`: `benches/milter/empty.c`, one thread over epoll that knows no session and no rule.
//!   What the protocol costs; it needs `cc`.
//! - `postpone-1`, `postpone-2`: the daemon with its default settings and one or two workers.
//! - `unruled`: the same with one worker and no rule but `[access]`. What the loop and the engine cost.
//! - `null-pool`, `postpone-pool`: the same on tokio's pool of two threads.
//!
//! **Sessions.** `to null` and `to empty` are a subject's rate by that of the other in the same round:
//! the median of the rounds, and the quartiles. `cpu` is user and system time of the subject for
//! each session, and beside it by that of `null`; where the machine has other work to do, this is
//! the one to trust. On two cores the load takes one, so a subject of two threads cannot show twice
//! the rate; its `cpu` tells what its threads cost each other.
//!
//! **Memory.** Sessions that have come as far as MAIL and stay there: resident memory of the
//! subject before and after, by their number.
//!
//! **Instructions.** Those of the program for each session, without the kernel's: a run under
//! callgrind less a shorter one.

#![allow(clippy::print_stdout, reason = "a benchmark tells its figures to whoever ran it")]

use std::convert::Infallible;
use std::ffi::{CStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use indymilter::{Actions, Callbacks, Config, MacroStage, ProtoOpts, Status};
use postpone::clock::{Stopwatch, SystemClock};
use postpone::config::{Named, Settings};
use postpone::daemon;
use postpone::engine::Engine;
use postpone::front::address::Address;
use postpone::front::listener::Serving;
use postpone::front::{listen, milter};
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::setting::{Mode, OrNone};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::net::UnixListener;
use tokio::runtime;

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            sessions();
            println!();
            memory();
        }
        ["sessions"] => sessions(),
        ["memory"] => memory(),
        ["instructions"] => instructions(),
        ["subject", name, socket] => return subject(name, Path::new(socket)),
        _ => println!("usage: cargo bench --bench milter [-- sessions | memory | instructions]"),
    }
    ExitCode::SUCCESS
}

// --- Sessions -----------------------------------------------------------------------------------

const SUBJECTS: [&str; 7] =
    ["null", "empty", "unruled", "postpone-1", "null-pool", "postpone-2", "postpone-pool"];
const CONNECTIONS: [usize; 3] = [1, 16, 128];
/// Many and short, so that what else the machine does falls on all subjects alike.
const ROUNDS: usize = 18;
/// How long one subject is under load in a round.
const SLICE: Duration = Duration::from_millis(200);

/// What a subject did under one load.
struct Slice {
    took: Duration,
    /// User and system time of the subject.
    cpu: Duration,
    /// From the connection to the answer at the end of message, of each session.
    latencies: Vec<Duration>,
}

impl Slice {
    /// Sessions a second.
    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// Processor time for each session.
    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies.len() as f64
    }
}

fn sessions() {
    let clients: Vec<_> = (0..10_000).map(Frames::of).collect();
    let mut subjects: Vec<_> = SUBJECTS.iter().map(|name| Subject::start(name)).collect();
    subjects.iter_mut().for_each(|subject| subject.meet(&clients));
    let load = fs::read_to_string("/proc/loadavg").expect("Linux has it");
    println!("load average before: {load}");
    for connections in CONNECTIONS {
        let mut slices: Vec<Vec<Slice>> = SUBJECTS.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for (subject, slices) in subjects.iter_mut().zip(&mut slices) {
                slices.push(subject.slice(&clients, connections));
            }
        }
        println!(
            "{connections:3} connections       a second  to null           to empty          cpu µs  \
             to null           p50 µs  p99 µs"
        );
        for (name, of_subject) in SUBJECTS.iter().zip(&slices) {
            report(name, of_subject, &slices[0], &slices[1]);
        }
    }
}

fn report(name: &str, slices: &[Slice], null: &[Slice], empty: &[Slice]) {
    let rates = sorted(slices.iter().map(Slice::rate));
    let mut latencies: Vec<_> = slices.iter().flat_map(|slice| &slice.latencies).collect();
    latencies.sort_unstable();
    let latency = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "  {name:16} {:11.0}  {}  {}  {:6.1}  {}  {:6}  {:6}",
        rates[rates.len() / 2],
        ratio(slices, null, Slice::rate),
        ratio(slices, empty, Slice::rate),
        cpu_micros(slices),
        ratio(slices, null, Slice::cpu_micros),
        latency(0.5).as_micros(),
        latency(0.99).as_micros(),
    );
}

/// One figure by another of the same round: the median, and the quartiles.
fn ratio(slices: &[Slice], others: &[Slice], figure: impl Fn(&Slice) -> f64) -> String {
    let ratios = sorted(slices.iter().zip(others).map(|(one, other)| figure(one) / figure(other)));
    let at = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
    format!("{:4.2} ({:4.2}-{:4.2})", at(2), at(1), at(3))
}

/// Processor time for each session.
fn cpu_micros(slices: &[Slice]) -> f64 {
    let sessions: usize = slices.iter().map(|slice| slice.latencies.len()).sum();
    slices.iter().map(|slice| slice.cpu).sum::<Duration>().as_secs_f64() * 1e6 / sessions as f64
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable_by(f64::total_cmp);
    numbers
}

// --- Memory -------------------------------------------------------------------------------------

const HELD: usize = 10_000;

fn memory() {
    raise_descriptors();
    let clients: Vec<_> = (0..HELD).map(Frames::of).collect();
    println!("resident bytes a session, {HELD} held after MAIL");
    for name in ["null", "empty", "postpone-1"] {
        let mut subject = Subject::start(name);
        // What it remembers of the clients is not the sessions' cost.
        subject.meet(&clients);
        let before = subject.resident_bytes();
        let hold = |client| {
            let mut session = Session::begin(&subject.socket, client);
            // The negotiation, connect and HELO answered, MAIL asked; and its answer.
            (0..3).for_each(|_| assert!(session.step().is_none()));
            session.wait();
            session
        };
        let held: Vec<_> = clients.iter().map(hold).collect();
        let after = subject.resident_bytes();
        println!("  {name:16} {:8}", (after - before) / held.len() as u64);
    }
}

// --- Instructions -------------------------------------------------------------------------------

/// Sessions of the shorter run; the longer one has twice as many. Both meet all clients before.
const COUNTED: usize = 5_000;

fn instructions() {
    let clients: Vec<_> = (0..COUNTED).map(Frames::of).collect();
    println!("instructions a session, of {COUNTED}");
    for name in ["null", "empty", "unruled", "postpone-1"] {
        let [short, long] = [1, 2].map(|times| {
            let mut subject = Subject::start_under(Some("valgrind"), name);
            (0..1 + times).for_each(|_| subject.meet(&clients));
            subject.instructions()
        });
        println!("  {name:16} {:8}", (long - short) / COUNTED as u64);
    }
}

/// Every session needs a descriptor on both sides.
fn raise_descriptors() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .expect("a soft limit may be as high as the hard one");
}

// --- The load -----------------------------------------------------------------------------------

/// What Postfix sends in a session of one client, a piece for each round trip and one for the end.
struct Frames {
    steps: [Vec<u8>; 6],
    end: Vec<u8>,
}

impl Frames {
    fn of(client: usize) -> Self {
        // Each in a neighbourhood of its own, or behaviour would tell of many new hosts in one.
        let address = format!("10.{}.{}.7", client / 256, client % 256);
        // A mail system of its own; without digits, since they could be those of the address.
        let letters = (0..4).map(|place| char::from(b'a' + (client >> (4 * place) & 15) as u8));
        let name = format!("mx.{}.example", letters.collect::<String>());
        let sender = format!("someone@{name}");
        let recipient = format!("user{}@example.org", client % 500);
        let id = format!("1CC4F{client:05X}");
        let step = |command: u8, macros: &[&str], payload: &[&[u8]]| {
            let macros: Vec<_> = macros.iter().map(|word| word.as_bytes()).collect();
            let mut bytes = Vec::new();
            if command != b'O' {
                let text = macros.iter().flat_map(|word| [*word, b"\0"]).collect::<Vec<_>>();
                frame(&mut bytes, b'D', &[&[command][..], &text.concat()].concat());
            }
            frame(&mut bytes, command, &payload.concat());
            bytes
        };
        let steps = [
            step(b'O', &[], &[&[0, 0, 0, 6, 0, 0, 1, 0xff, 0, 0x1f, 0xff, 0xff]]),
            step(
                b'C',
                &[
                    "j",
                    "mx.example.org",
                    "{client_addr}",
                    &address,
                    "{client_ptr}",
                    &name,
                    "{client_resolve}",
                    "OK",
                    "{client_connections}",
                    "0",
                    "{daemon_name}",
                    "mx.example.org",
                    "{daemon_port}",
                    "25",
                ],
                &[name.as_bytes(), b"\0", b"4", &[0xd4, 0xf7], address.as_bytes(), b"\0"],
            ),
            step(b'H', &[], &[name.as_bytes(), b"\0"]),
            step(
                b'M',
                &["{mail_addr}", &sender],
                &[b"<", sender.as_bytes(), b">\0", b"size=20000\0"],
            ),
            step(
                b'R',
                &[
                    "{rcpt_mailer}",
                    "virtual",
                    "{rcpt_host}",
                    "example.org",
                    "{rcpt_addr}",
                    &recipient,
                ],
                &[b"<", recipient.as_bytes(), b">\0"],
            ),
            step(b'E', &["i", &id], &[]),
        ];
        let mut end = Vec::new();
        for command in *b"AAQ" {
            frame(&mut end, command, &[]);
        }
        Self { steps, end }
    }
}

fn frame(to: &mut Vec<u8>, command: u8, payload: &[u8]) {
    to.extend_from_slice(&(payload.len() as u32 + 1).to_be_bytes());
    to.push(command);
    to.extend_from_slice(payload);
}

/// What our defaults ask for: no DATA, headers, body and unknown commands, but refused recipients.
const STEPS: u32 = 0xb70;

/// A session under way: always one step asked and not yet answered.
struct Session<'a> {
    stream: UnixStream,
    frames: &'a Frames,
    asked: usize,
    watch: Stopwatch,
}

impl<'a> Session<'a> {
    fn begin(socket: &Path, frames: &'a Frames) -> Self {
        let watch = Stopwatch::start();
        let stream = UnixStream::connect(socket).expect("the subject listens");
        let mut session = Self { stream, frames, asked: 0, watch };
        session.ask();
        session
    }

    fn ask(&mut self) {
        self.stream.write_all(&self.frames.steps[self.asked]).expect("the subject listens");
    }

    /// Waits for the answer, and asks the next step. Says at the last how long the session took.
    fn step(&mut self) -> Option<Duration> {
        self.wait();
        self.asked += 1;
        if self.asked < self.frames.steps.len() {
            self.ask();
            return None;
        }
        let took = self.watch.elapsed();
        self.stream.write_all(&self.frames.end).expect("the subject listens");
        Some(took)
    }

    /// Waits for the answer.
    fn wait(&mut self) {
        let mut answer = [0; 512];
        let mut have = 0;
        loop {
            let more = self.stream.read(&mut answer[have..]).expect("the subject answers");
            assert_ne!(more, 0, "the subject closed a session that it should have let pass");
            have += more;
            if have >= 5 && have >= 4 + u32::from_be_bytes([0, 0, answer[2], answer[3]]) as usize {
                break;
            }
        }
        if self.asked == 0 {
            assert_eq!(answer[4], b'O', "the negotiation is answered");
            assert_eq!(answer[13..17], STEPS.to_be_bytes(), "all negotiate the same steps");
        } else {
            assert_eq!(answer[4], b'c', "every step passes");
        }
    }
}

// --- The subjects -------------------------------------------------------------------------------

/// A subject that runs; killed when dropped.
struct Subject {
    child: Child,
    socket: PathBuf,
    next_client: usize,
}

impl Subject {
    fn start(name: &str) -> Self {
        Self::start_under(None, name)
    }

    fn start_under(valgrind: Option<&str>, name: &str) -> Self {
        let file = format!("postpone-bench-{}-{name}", std::process::id());
        let socket = std::env::temp_dir().join(file);
        let mut words = vec![std::env::current_exe().expect("this program has a file").into()];
        words.extend(["subject".into(), name.into(), socket.clone().into_os_string()]);
        if name == "empty" {
            words = vec![compiled(), socket.clone().into_os_string()];
        }
        if let Some(valgrind) = valgrind {
            let out = format!("--callgrind-out-file={}", callgrind_out(&socket).display());
            let before = [valgrind.into(), "--tool=callgrind".into(), out.into()];
            words.splice(0..0, before);
        }
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", words[0].display()));
        let mut subject = Self { child, socket, next_client: 0 };
        while UnixStream::connect(&subject.socket).is_err() {
            let ended = subject.child.try_wait().expect("it is our child");
            assert_eq!(ended, None, "{name} should serve");
            std::thread::yield_now();
        }
        subject
    }

    /// What valgrind has counted, once the subject has ended.
    fn instructions(&mut self) -> u64 {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it is our child");
        self.child.wait().expect("it is our child");
        let out = callgrind_out(&self.socket);
        let text = fs::read_to_string(&out).expect("valgrind writes it at the end");
        let _ = fs::remove_file(out);
        let total = text.lines().find_map(|line| line.strip_prefix("summary: "));
        total.and_then(|total| total.trim().parse().ok()).expect("a line of it is `summary: 1234`")
    }

    /// One session with each client, so that none is a stranger any more.
    fn meet(&mut self, clients: &[Frames]) {
        for client in clients {
            let mut session = Session::begin(&self.socket, client);
            while session.step().is_none() {}
        }
    }

    /// Keeps so many sessions under way for the time of a slice, and waits for the last of them.
    ///
    /// One after another, each session's answer is waited for and its next step asked; meanwhile
    /// the subject works on the others.
    fn slice(&mut self, clients: &[Frames], connections: usize) -> Slice {
        let mut latencies = Vec::new();
        let cpu_before = self.cpu();
        let watch = Stopwatch::start();
        let mut sessions: Vec<_> =
            (0..connections).map(|_| Some(self.next_session(clients))).collect();
        while sessions.iter().any(Option::is_some) {
            for slot in &mut sessions {
                let Some(took) = slot.as_mut().and_then(Session::step) else { continue };
                latencies.push(took);
                *slot = (watch.elapsed() < SLICE).then(|| self.next_session(clients));
            }
        }
        Slice { took: watch.elapsed(), cpu: self.cpu() - cpu_before, latencies }
    }

    fn next_session<'a>(&mut self, clients: &'a [Frames]) -> Session<'a> {
        self.next_client = (self.next_client + 1) % clients.len();
        Session::begin(&self.socket, &clients[self.next_client])
    }

    /// User and system time of its threads so far: the first number of each `schedstat`, in
    /// nanoseconds.
    fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let tasks = tasks.expect("Linux has it as long as the child runs");
        let spent = tasks.filter_map(|task| {
            let stat = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            stat.split_ascii_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }

    fn resident_bytes(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("a line of it is `VmRSS: 1234 kB`") * 1024
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(path).expect("Linux has it as long as the child runs")
    }
}

fn callgrind_out(socket: &Path) -> PathBuf {
    socket.with_extension("callgrind")
}

/// The empty filter, compiled.
fn compiled() -> OsString {
    let program = std::env::temp_dir().join(format!("postpone-bench-{}-cc", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/milter/empty.c");
    let compiled = Command::new("cc").arg("-O2").arg("-o").arg(&program).arg(source).status();
    assert!(compiled.expect("the empty filter needs cc").success());
    program.into_os_string()
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Runs as the subject of this name until killed, or until whoever started it is gone.
fn subject(name: &str, socket: &Path) -> ExitCode {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    let one = runtime::Builder::new_current_thread;
    let pool = || {
        let mut builder = runtime::Builder::new_multi_thread();
        builder.worker_threads(2);
        builder
    };
    let served: io::Result<Infallible> = match name {
        "postpone-1" => return serve_daemon(settings(socket, 1)),
        "postpone-2" => return serve_daemon(settings(socket, 2)),
        "unruled" => return serve_daemon(without_rules(settings(socket, 1))),
        "null" => serve_null(&mut one(), socket),
        "null-pool" => serve_null(&mut pool(), socket),
        "postpone-pool" => serve_postpone(&mut pool(), &settings(socket, 1)),
        _ => panic!("a subject: one of {SUBJECTS:?}"),
    };
    match served {
        Err(error) => panic!("{name} does not serve: {error}"),
        Ok(never) => match never {},
    }
}

/// The defaults on this socket, with loopback asked like everybody else.
fn settings(socket: &Path, workers: u8) -> Settings {
    let mut settings = Settings::default();
    let address = Some(Address::Unix(socket.to_owned()));
    settings.listen = vec![listen::Params { milter: address, ..listen::Params::default() }];
    settings.control.http = OrNone::None;
    settings.control.socket = OrNone::None;
    settings.state.path = OrNone::None;
    settings.access.allow.clear();
    settings.server.workers = workers;
    settings
}

fn without_rules(mut settings: Settings) -> Settings {
    settings.limit.clear();
    (settings.greylist.mode, settings.behaviour.mode) = (Mode::Off, Mode::Off);
    settings
}

fn serve_daemon(settings: Settings) -> ExitCode {
    // No settings name it, so no metrics are served, and no file is read.
    let early = daemon::Early::new().expect("signals can be watched");
    daemon::serve(
        early,
        settings,
        Named { listen: true, socket: true, http: true, state: true },
        PathBuf::new(),
    )
}

fn serve_postpone(runtime: &mut runtime::Builder, settings: &Settings) -> io::Result<Infallible> {
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("the defaults name no files");
    let engine = Engine::new(Box::new(SystemClock), memory, policy);
    let (bound, door) = (settings.listen[0].bind(&[])?, settings.listen[0].door());
    bound.listen()?;
    let (_stop, stopping) = tokio::sync::watch::channel(None);
    let upkeep = engine.clone();
    runtime.enable_all().build()?.block_on(async move {
        tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_secs(5));
            loop {
                every.tick().await;
                upkeep.sweep(1);
            }
        });
        let serving = Serving::new(MOST, stopping);
        milter::serve(bound, engine, door, serving).await
    })?;
    Err(io::Error::other("nobody told it to stop"))
}

/// More sessions than are ever held.
const MOST: usize = 19_000;

fn serve_null(runtime: &mut runtime::Builder, socket: &Path) -> io::Result<Infallible> {
    runtime.enable_all().build()?.block_on(async {
        let config = Config { max_connections: MOST, ..Config::default() };
        let listener = UnixListener::bind(socket)?;
        indymilter::run(listener, null(), config, std::future::pending::<()>()).await
    })?;
    Err(io::Error::other("nobody told it to stop"))
}

/// A filter that does nothing, at the steps where ours does something, over the macros ours has.
fn null() -> Callbacks<()> {
    const MACROS: [(MacroStage, &CStr); 5] = [
        (
            MacroStage::Connect,
            c"j {client_addr} {client_ptr} {client_resolve} {client_connections} {daemon_name} {daemon_port}",
        ),
        (MacroStage::Mail, c"{auth_authen} {auth_type} {mail_addr} {tls_version}"),
        (MacroStage::Rcpt, c"{rcpt_mailer} {rcpt_host} {rcpt_addr}"),
        (MacroStage::Eoh, c"i"),
        (MacroStage::Eom, c"i {msg_size}"),
    ];
    Callbacks::new()
        .on_negotiate(|cx, _, _| {
            cx.requested_actions = Actions::empty();
            cx.requested_opts = ProtoOpts::from_bits_truncate(STEPS);
            cx.requested_macros = MACROS.map(|(stage, names)| (stage, names.to_owned())).into();
            Box::pin(async { Status::Continue })
        })
        .on_connect(|_, _, _| Box::pin(async { Status::Continue }))
        .on_helo(|_, _| Box::pin(async { Status::Continue }))
        .on_mail(|_, _| Box::pin(async { Status::Continue }))
        .on_rcpt(|_, _| Box::pin(async { Status::Continue }))
        .on_data(|_| Box::pin(async { Status::Continue }))
        .on_eom(|_| Box::pin(async { Status::Continue }))
        .on_abort(|_| Box::pin(async { Status::Continue }))
        .on_close(|_| Box::pin(async { Status::Continue }))
}
