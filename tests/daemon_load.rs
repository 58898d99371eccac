//! What the daemon makes of its host: sensors whose files, folders and servers belong to the story,
//! the log and the metrics that tell of them, and what a client of a milter hears meanwhile.
//!
//! How long a queue is counted, and that probes and workers are measured rightly, is tested where
//! it is done, in `src/daemon/sampler`.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::Signal;
use support::daemon::{Daemon, field};
use support::milter::*;
use support::{Folder, as_root, free_port, wait_until};

const LEVEL: &str = "postpone_load_level";
const SENSOR: &str = "postpone_load_sensor";
const SENSOR_ON: &str = "postpone_load_sensor_on";
const CROSSINGS: &str = "postpone_load_crossings_total";
const ADMITTED: &str = "postpone_load_admitted_ratio";

/// Sensors are read ten times a second, and what they say holds at once; the rest says the story.
fn load(more: &str) -> String {
    format!(
        "limit = []\n[load]\nperiod = \"100ms\"\nhold = \"1ms\"\nramp = \"1ms\"\nmax_share = 1.0\n\
         retry = \"2m\"\n{more}"
    )
}

/// Sensors of a kernel that this folder plays, with these marks.
fn kernel(proc: &Folder, marks: &str) -> String {
    load(&format!("proc = \"{}\"\n{marks}", proc.path().display()))
}

/// Writes a file whole, or not at all, as the kernel does.
fn put(folder: &Folder, name: &str, text: &str) {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let written = folder.write("written", text);
    fs::rename(written, path).unwrap();
}

fn pressure(proc: &Folder, percent: f64) {
    let line = format!("avg10={percent:.2} avg60=0.00 avg300=0.00 total=0");
    put(proc, "pressure/cpu", &format!("some {line}\nfull {line}\n"));
}

const CPU: &str = "[load.pressure.cpu]\nelevated = 40\nhigh = 60\ncritical = 85\n";

#[track_caller]
fn reads(daemon: &Daemon, sensor: &str, reading: f64) {
    wait_until(&format!("{sensor} to read {reading}"), || {
        (daemon.metric(SENSOR, &[("sensor", sensor)]) == reading).then_some(())
    });
}

fn is_on(daemon: &Daemon, sensor: &str, on: bool) {
    wait_until(&format!("{sensor} to be on: {on}"), || {
        let labels = [("sensor", sensor)];
        let known = daemon.get("/metrics").contains(&format!("{SENSOR_ON}{{sensor=\"{sensor}\"}}"));
        (known && (daemon.metric(SENSOR_ON, &labels) == 1.0) == on).then_some(())
    });
}

fn level(daemon: &Daemon, level: f64) {
    wait_until(&format!("level {level}"), || (daemon.metric(LEVEL, &[]) == level).then_some(()));
}

/// Waits until so many strangers are let in.
fn gate(daemon: &Daemon, wanted: impl Fn(f64) -> bool) {
    wait_until("the gate to move", || {
        wanted(daemon.metric(ADMITTED, &[("standing", "unknown")])).then_some(())
    });
}

/// The line that tells of a level.
#[track_caller]
fn told(daemon: &Daemon, level: &str, sensor: &str) -> String {
    daemon.line(&format!("level {level} by {sensor}"), |line| {
        field(line, "level") == Some(level) && field(line, "sensor") == Some(sensor)
    })
}

/// The log says this of a sensor so many times and no more. Its lines come by a pipe: what follows
/// from a reading may be seen before they are.
#[track_caller]
fn said(daemon: &Daemon, sensor: &str, words: &str, times: usize) {
    let of = |line: &&String| field(line, "sensor") == Some(sensor) && line.contains(words);
    let found = || daemon.lines().iter().filter(of).count();
    wait_until(words, || (found() >= times).then_some(()));
    assert_eq!(found(), times, "{words}");
}

const OFF: &str = "a sensor of the load is off";
const ON: &str = "a sensor of the load is on again";
const FAILS: &str = "a probe fails";

/// What a stranger is told as it connects, and if that is nothing, at HELO.
fn stranger(daemon: &Daemon) -> (&'static str, String) {
    let mut mta = Mta::dial(&daemon.endpoint);
    mta.ask(&negotiate());
    let (at, said) = match mta.ask(&connect("192.0.2.7")) {
        said if said == "continue" => ("helo", mta.ask(&helo("mx.example.net"))),
        said => ("connect", said),
    };
    mta.tell(&quit());
    (at, said)
}

#[test]
fn the_level_rises_and_falls_with_what_the_kernel_says() {
    let proc = Folder::new("proc");
    pressure(&proc, 10.0);
    let daemon = Daemon::start(&kernel(&proc, CPU));
    reads(&daemon, "pressure.cpu", 10.0);
    assert_eq!(stranger(&daemon), ("helo", "continue".into()));

    pressure(&proc, 45.0);
    told(&daemon, "elevated", "pressure.cpu");
    assert_eq!(stranger(&daemon), ("helo", "continue".into()), "only quotas shrink");

    pressure(&proc, 84.9); // as near to critical as can be
    let line = told(&daemon, "high", "pressure.cpu");
    assert_eq!(
        [field(&line, "value"), field(&line, "mark")],
        [Some("84.9"), Some("60.0")],
        "{line}"
    );
    gate(&daemon, |share| share < 0.01);
    let (at, reply) = stranger(&daemon);
    assert_eq!(at, "helo");
    let words = "421 4.3.2 throttle.example.org Too much load, try again later; retry in 1";
    assert!(reply.starts_with(words), "{reply}"); // 120 seconds, and a quarter of them at most
    let line = daemon.decision(&[("reason", "load"), ("event", "helo"), ("wait_ms", "120000")]);
    assert_eq!(field(&line, "value"), Some("pressure.cpu 84.90"), "{line}");
    assert_eq!(field(&line, "threshold"), Some("high at 60"), "{line}");

    pressure(&proc, 99.0);
    told(&daemon, "critical", "pressure.cpu");
    let (at, reply) = stranger(&daemon);
    assert_eq!((at, reply.starts_with("421 4.3.2 ")), ("connect", true), "{reply}");

    pressure(&proc, 0.0);
    daemon.line("the level to be normal", |line| field(line, "level") == Some("normal"));
    level(&daemon, 0.0);
    gate(&daemon, |share| share == 1.0);
    assert_eq!(stranger(&daemon), ("helo", "continue".into()));
    let crossed = |level| daemon.metric(CROSSINGS, &[("level", level), ("sensor", "pressure.cpu")]);
    assert_eq!(["elevated", "high", "critical"].map(crossed), [1.0; 3]);
}

#[test]
fn each_file_of_the_kernel_is_read_in_its_own_unit() {
    let (proc, cgroup) = (Folder::new("proc"), Folder::new("cgroup"));
    pressure(&proc, 12.5);
    put(&proc, "loadavg", "6.00 3.72 3.16 6/147 23274\n");
    put(&proc, "stat", "cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\ncpu2 1 2 3\ncpu3 1 2 3\nintr 5 1\n");
    put(&proc, "meminfo", "MemTotal: 4096 kB\nMemAvailable:    1024 kB\n");
    put(&cgroup, "memory.pressure", "some avg10=1.50 total=0\nfull avg10=0.25 total=0\n");
    let daemon = Daemon::start(&kernel(
        &proc,
        &format!(
            "[load.cpu_per_core]\nhigh = 50\n[load.memory_available]\nhigh = \"1KiB\"\n\
             [load.pressure.cpu]\nfull = {{ high = 99 }}\n\
             [[load.cgroup]]\npath = \"{path}\"\nmemory = {{ high = 50, full = {{ high = 50 }} }}\n\
             [[load.disk]]\npath = \"{path}\"\nhigh = \"1B\"\n\
             [load.sessions]\nmax = 8\nhigh = 0.9\n[load.delay]\nhigh = \"20s\"\n",
            path = cgroup.path().display()
        ),
    ));
    reads(&daemon, "cpu_per_core", 1.5);
    reads(&daemon, "memory_available", 1_048_576.0);
    reads(&daemon, "pressure.cpu.full", 12.5);
    let path = cgroup.path().display();
    reads(&daemon, &format!("cgroup {path}: memory"), 1.5);
    reads(&daemon, &format!("cgroup {path}: memory.full"), 0.25);
    let sensor = format!("disk {path}");
    is_on(&daemon, &sensor, true);
    assert!(daemon.metric(SENSOR, &[("sensor", &sensor)]) > 0.0);
    is_on(&daemon, "delay", true);
    reads(&daemon, "sessions", 0.0);
    let sessions = ["192.0.2.1", "192.0.2.2"].map(|a| Mta::with_client(&daemon.endpoint, a));
    reads(&daemon, "sessions", 0.25);
    drop(sessions);
    reads(&daemon, "sessions", 0.0);
    assert_eq!(daemon.metric(SENSOR, &[("sensor", "pressure.cpu")]), 0.0, "it has no mark");
    assert!(!daemon.lines().iter().any(|line| line.contains(OFF)));
}

#[test]
fn a_sensor_that_cannot_be_read_is_off_and_told_once() {
    let proc = Folder::new("proc");
    put(&proc, "loadavg", "0.50 0 0\n");
    put(&proc, "stat", "cpu0 1\n");
    let daemon = Daemon::start(&kernel(&proc, &format!("{CPU}[load.cpu_per_core]\nhigh = 50\n")));
    is_on(&daemon, "pressure.cpu", false);
    let line = daemon.line("that it is off", |line| line.contains(OFF));
    assert!(line.contains("pressure/cpu: No such file"), "{line}");
    // Many periods, as another sensor shows.
    for load in 1..=5 {
        put(&proc, "loadavg", &format!("{load}.00 0 0\n"));
        reads(&daemon, "cpu_per_core", f64::from(load));
    }
    said(&daemon, "pressure.cpu", OFF, 1);
    assert_eq!(stranger(&daemon), ("helo", "continue".into()), "the others decide");

    put(&proc, "pressure/cpu", "nonsense\n");
    daemon.line("the other reason", |line| line.contains("it has no `avg10` in a line `some`"));
    said(&daemon, "pressure.cpu", OFF, 2);
    pressure(&proc, 99.0);
    told(&daemon, "critical", "pressure.cpu");
    said(&daemon, "pressure.cpu", ON, 1);
    // What it has asked for does not hold for ever.
    fs::remove_file(proc.path().join("pressure/cpu")).unwrap();
    level(&daemon, 0.0);
    said(&daemon, "pressure.cpu", OFF, 3);
    // A reload is no reason to say it once more.
    daemon.reload(&kernel(&proc, &format!("{CPU}[load.cpu_per_core]\nhigh = 60\n")));
    daemon.line("the reload", |line| line.contains("reloaded"));
    put(&proc, "loadavg", "7.00 0 0\n");
    reads(&daemon, "cpu_per_core", 7.0);
    said(&daemon, "pressure.cpu", OFF, 3);
}

/// Even a file that hangs the thread which reads all of them does not hold a level for ever, nor
/// the daemon's end.
#[test]
fn when_nothing_reads_the_sensors_all_of_them_are_off() {
    let proc = Folder::new("proc");
    pressure(&proc, 99.0);
    let mut daemon = Daemon::start(&kernel(&proc, CPU));
    told(&daemon, "critical", "pressure.cpu");
    // Whoever opens a pipe waits for somebody at its other end.
    let pipe = proc.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::rename(&pipe, proc.path().join("pressure/cpu")).unwrap();
    is_on(&daemon, "pressure.cpu", false);
    level(&daemon, 0.0);
    daemon.line("what is wrong", |line| {
        line.contains(
            "the thread that reads the sensors hangs or \
                 has ended",
        )
    });
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
}

#[test]
fn a_reload_changes_marks_and_takes_sensors_away() {
    let proc = Folder::new("proc");
    pressure(&proc, 70.0);
    let daemon = Daemon::start(&kernel(&proc, "[load.pressure.cpu]\ncritical = 90\n"));
    reads(&daemon, "pressure.cpu", 70.0);
    assert_eq!(stranger(&daemon), ("helo", "continue".into()));
    daemon.reload(&kernel(&proc, "[load.pressure.cpu]\ncritical = 50\n"));
    told(&daemon, "critical", "pressure.cpu");
    assert_eq!(stranger(&daemon).0, "connect");
    daemon.reload(&load(""));
    level(&daemon, 0.0);
    wait_until("strangers to be served", || {
        (stranger(&daemon) == ("helo", "continue".into())).then_some(())
    });
    assert!(!daemon.lines().iter().any(|line| line.contains("only at a restart")));
}

/// Whoever takes a sensor away does so because it errs, and does not want to wait for it.
#[test]
fn a_sensor_that_a_reload_takes_away_refuses_nobody_from_then_on() {
    let proc = Folder::new("proc");
    pressure(&proc, 99.0);
    let slow = |marks: &str| {
        kernel(&proc, marks).replace("\"1ms\"\nramp = \"1ms\"", "\"1h\"\nramp = \"1h\"")
    };
    let daemon = Daemon::start(&slow(CPU));
    told(&daemon, "critical", "pressure.cpu");
    assert_eq!(stranger(&daemon).0, "connect");
    daemon.reload(&slow(""));
    daemon.line("the reload", |line| line.contains("reloaded"));
    assert_eq!(stranger(&daemon), ("helo", "continue".into()));
    assert_eq!(daemon.metric(LEVEL, &[]), 0.0);
    assert_eq!(daemon.metric(ADMITTED, &[("standing", "unknown")]), 1.0);
    is_on(&daemon, "pressure.cpu", false);
    assert!(!daemon.told(&["status", "--all"]).contains("critical"));
}

#[test]
fn what_is_watched_only_from_a_reload_on_is_watched() {
    let proc = Folder::new("proc");
    pressure(&proc, 99.0);
    let daemon = Daemon::start(&load(""));
    assert!(!daemon.get("/metrics").contains(SENSOR_ON), "no thread, no sensors");
    assert_eq!(stranger(&daemon), ("helo", "continue".into()));
    daemon.reload(&kernel(&proc, CPU));
    told(&daemon, "critical", "pressure.cpu");
    // The gate moves from one reading to the next, and this was the first.
    gate(&daemon, |share| share == 0.0);
    assert_eq!(stranger(&daemon).0, "connect");
}

/// A queue as Postfix makes it.
fn queue(messages: usize) -> Folder {
    let queue = Folder::new("queue");
    let active = queue.path().join("active");
    fs::create_dir_all(&active).unwrap();
    (0..messages).for_each(|n| fs::write(active.join(format!("4Z{n:06}")), "").unwrap());
    queue
}

fn counting(queue: &Path) -> String {
    let path = queue.display();
    load(&format!("[load.queue]\npath = \"{path}\"\nactive = {{ high = 400, critical = 800 }}\n"))
}

#[test]
fn a_queue_is_counted_as_far_as_its_marks_go() {
    let queue = queue(3_000);
    let daemon = Daemon::start(&counting(queue.path()));
    reads(&daemon, "queue.active", 1_001.0);
    told(&daemon, "critical", "queue.active");
    fs::remove_dir_all(queue.path().join("active")).unwrap();
    is_on(&daemon, "queue.active", false);
    level(&daemon, 0.0);
    fs::create_dir(queue.path().join("active")).unwrap();
    reads(&daemon, "queue.active", 0.0);
}

/// Postfix's folders are closed to every other user, and the daemon is one.
#[test]
fn a_closed_queue_is_off_and_told_once_with_what_opens_it() {
    as_root(); // nobody else can make the daemon another user's
    let queue = queue(10);
    let active = queue.path().join("active");
    let mode = |mode| fs::set_permissions(&active, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o700);
    let daemon = Daemon::run_by(&as_nobody(&[]), &[], &counting(queue.path()));
    is_on(&daemon, "queue.active", false);
    let line = daemon.line("that it is off", |line| line.contains(OFF));
    for words in ["active: closed to this user", "AmbientCapabilities=CAP_DAC_READ_SEARCH"] {
        assert!(line.contains(words), "{line}");
    }
    mode(0o755);
    reads(&daemon, "queue.active", 10.0);
    said(&daemon, "queue.active", OFF, 1);
    said(&daemon, "queue.active", ON, 1);
    mode(0o700);
    is_on(&daemon, "queue.active", false);
    let capable = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"];
    let daemon = Daemon::run_by(&as_nobody(&capable), &[], &counting(queue.path()));
    reads(&daemon, "queue.active", 10.0);
}

/// A command that runs another as an ordinary user.
fn as_nobody<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    // Its settings, the last word of the command, are in the folder in which it makes its socket.
    let opened = "for last; do :; done; chmod 0777 \"${last%/*}\"; exec \"$@\"";
    let command = ["sh", "-c", opened, "sh", "setpriv", "--pdeathsig", "KILL"].into_iter();
    command.chain(nobody).chain(more.iter().copied()).chain(["--"]).collect()
}

/// Asked where the queue is, and how many sessions it bears, Postfix is asked only once.
#[test]
fn what_postfix_knows_is_asked_once_and_again_at_a_reload() {
    let (bin, queue) = (Folder::new("bin"), queue(10));
    // Whom the daemon starts may write nowhere, but call.
    let calls = TcpListener::bind("127.0.0.1:0").unwrap();
    calls.set_nonblocking(true).unwrap();
    let answer = |most: u32| {
        let script = format!(
            "#!/bin/bash\n: <>/dev/tcp/127.0.0.1/{port}\ncase \"$*\" in\n\
             '-h queue_directory') echo {queue};;\n\
             '-h default_process_limit') echo 100;;\n\
             '-M') echo 'smtp inet n - y - 1 postscreen'; echo 'smtpd pass - - y - {most} \
             smtpd';;\n\
             *) exit 1;;\nesac\n",
            port = calls.local_addr().unwrap().port(),
            queue = queue.path().display(),
        );
        put(&bin, "postconf", &script);
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bin.path().join("postconf"), open).unwrap();
    };
    answer(4);
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap());
    let policy = load(
        "[load.queue]\nactive = { high = 400 }\n[load.sessions]\nfrom = \"mta\"\nhigh = 9.0\n",
    );
    let daemon = Daemon::run_by(&[], &[("PATH", &path)], &policy);
    reads(&daemon, "queue.active", 10.0);
    let session = Mta::with_client(&daemon.endpoint, "192.0.2.1");
    reads(&daemon, "sessions", 0.25);
    let asked = || std::iter::from_fn(|| calls.accept().ok()).count();
    assert_eq!(asked(), 3);
    answer(2);
    daemon.reload(&policy);
    reads(&daemon, "sessions", 0.5);
    let mut again = 0;
    wait_until("both to have been asked", || {
        again += asked();
        (again == 3).then_some(())
    });
    drop(session);
}

/// A server that mail is passed on to.
struct Downstream {
    address: SocketAddr,
    /// What it says to those who come, in turn.
    banners: Arc<Mutex<Vec<&'static str>>>,
    visits: Arc<AtomicUsize>,
    /// How many have said goodbye.
    farewells: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Downstream {
    fn new() -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut server = Self {
            address,
            banners: Arc::new(Mutex::new(vec!["220 lmtp.example.org ready\r\n"])),
            visits: Arc::default(),
            farewells: Arc::default(),
            stop: Arc::default(),
            serving: None,
        };
        server.start();
        server
    }

    fn start(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        let (banners, visits) = (self.banners.clone(), self.visits.clone());
        let (farewells, stop) = (self.farewells.clone(), self.stop.clone());
        self.stop.store(false, Ordering::SeqCst);
        self.serving = Some(thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                let visit = visits.fetch_add(1, Ordering::SeqCst);
                let banner = {
                    let banners = banners.lock().unwrap();
                    banners[visit % banners.len()]
                };
                let _ = stream.write_all(banner.as_bytes());
                let mut said = String::new();
                let mut word = [0; 6];
                while let Ok(1..) = stream.read(&mut word) {
                    said.push_str(&String::from_utf8_lossy(&word));
                    if said.contains("QUIT\r\n") {
                        farewells.fetch_add(1, Ordering::SeqCst);
                        let _ = stream.write_all(b"221 bye\r\n");
                        break;
                    }
                }
            }
        }));
    }

    fn says(&self, banners: &[&'static str]) {
        *self.banners.lock().unwrap() = banners.to_vec();
    }

    /// Lets some come from now on.
    fn visited(&self, times: usize) {
        let until = self.visits.load(Ordering::SeqCst) + times;
        wait_until("the probe", || (self.visits.load(Ordering::SeqCst) >= until).then_some(()));
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
        self.serving.take().unwrap().join().unwrap();
    }

    fn policy(&self) -> String {
        load(&format!(
            "[[load.probe]]\nname = \"lmtp\"\nconnect = \"inet:{}\"\nbanner = \"220 \"\n\
             deadline = \"5s\"\nlevel = \"critical\"\n",
            self.address
        ))
    }
}

const READY: &str = "220 lmtp.example.org ready\r\n";

#[test]
fn a_server_that_is_gone_puts_strangers_off_until_it_is_back() {
    let mut downstream = Downstream::new();
    let daemon = Daemon::start(&downstream.policy());
    reads(&daemon, "probe.lmtp", 0.0);
    downstream.visited(3);
    assert!(downstream.farewells.load(Ordering::SeqCst) >= 2, "it was hung up on");
    assert_eq!(stranger(&daemon), ("helo", "continue".into()));

    downstream.stop();
    told(&daemon, "critical", "probe.lmtp");
    let line = daemon.line("why", |line| line.contains(FAILS));
    assert!(line.contains("Connection refused"), "{line}");
    let (_, reply) = stranger(&daemon);
    let words = "421 4.4.1 throttle.example.org The server behind this one does not answer; retry";
    assert!(reply.starts_with(words), "{reply}");

    downstream.start();
    level(&daemon, 0.0);
    daemon.line("that it is back", |line| line.contains("a probe succeeds again"));
    assert_eq!(stranger(&daemon), ("helo", "continue".into()));

    downstream.says(&["421 lmtp.example.org out of memory\r\n"]);
    wait_until("what is said then", || stranger(&daemon).1.starts_with("421 4.3.0 ").then_some(()));
    let why = "it says \"421 lmtp.example.org out of memory\", not \"220 \"";
    daemon.line("why", |line| line.replace('\\', "").contains(why));
    downstream.says(&[READY]);
    level(&daemon, 0.0);
    downstream.stop();
}

#[test]
fn a_server_that_flaps_does_not_change_the_level() {
    let downstream = Downstream::new();
    downstream.says(&[READY, "421 not now\r\n"]);
    let daemon = Daemon::start(&downstream.policy());
    reads(&daemon, "probe.lmtp", 0.0);
    downstream.visited(12);
    assert_eq!(daemon.metric(LEVEL, &[]), 0.0);
    assert_eq!(daemon.metric(CROSSINGS, &[]), 0.0);
    said(&daemon, "probe.lmtp", FAILS, 0);
    // The same the other way round: it fails, and one success does not end it.
    downstream.says(&["421 not now\r\n"]);
    told(&daemon, "critical", "probe.lmtp");
    downstream.says(&[READY, "421 not now\r\n"]);
    downstream.visited(12);
    assert_eq!(daemon.metric(LEVEL, &[]), 3.0);
    assert_eq!(daemon.metric(CROSSINGS, &[]), 1.0);
    downstream.says(&[READY]);
    level(&daemon, 0.0);
}
