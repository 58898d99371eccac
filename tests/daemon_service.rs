//! What a service manager hears of the daemon, and the sockets it passes on: sd_notify(3) and
//! sd_listen_fds(3). The manager is a socket of the test; once, it is systemd's own
//! `systemd-socket-activate`.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::Signal;
use support::daemon::Daemon;
use support::milter::*;
use support::policy::{DUNNO, Smtpd};
use support::{Folder, PATIENCE, free_port, wait_until};

/// A service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: Folder,
}

/// The shell that is to become the daemon has its number.
const WATCHED: &str = r#"WATCHDOG_PID=$$ exec "$@""#;

impl Manager {
    fn new() -> Self {
        let folder = Folder::new("manager");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path, _folder: folder }
    }

    /// A service of this manager.
    fn start(&self, policy: &str) -> Daemon {
        Daemon::run_by(&[], &[("NOTIFY_SOCKET", self.path.to_str().unwrap())], policy)
    }

    /// One that is to say every so many microseconds that it lives.
    fn watch(&self, microseconds: &str, command: &[&str], policy: &str) -> Daemon {
        let variables =
            [("NOTIFY_SOCKET", self.path.to_str().unwrap()), ("WATCHDOG_USEC", microseconds)];
        Daemon::run_by(command, &variables, policy)
    }

    /// The next thing it is told, in lines.
    #[track_caller]
    fn next(&self) -> Vec<String> {
        let mut words = [0; 4096];
        let length = self.socket.recv(&mut words).expect("the daemon to say something");
        String::from_utf8(words[..length].to_vec()).unwrap().lines().map(Into::into).collect()
    }

    /// Everything up to what has a line that begins like this, that included.
    #[track_caller]
    fn until(&self, beginning: &str) -> Vec<Vec<String>> {
        let mut told = Vec::new();
        loop {
            let words = self.next();
            let found = words.iter().any(|line| line.starts_with(beginning));
            told.push(words);
            if found {
                return told;
            }
        }
    }

    /// Everything that it has been told by now.
    fn rest(&self) -> Vec<Vec<String>> {
        self.socket.set_nonblocking(true).unwrap();
        let mut words = [0; 4096];
        let mut told = Vec::new();
        loop {
            match self.socket.recv(&mut words) {
                Ok(length) => {
                    let words = str::from_utf8(&words[..length]).unwrap();
                    told.push(words.lines().map(Into::into).collect());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.socket.set_nonblocking(false).unwrap();
        told
    }
}

/// The last of what was told, as it is.
#[track_caller]
fn is(told: &[Vec<String>], expected: &[&str]) {
    assert_eq!(told.last().unwrap(), expected);
}

const REFUSED: &str =
    "STATUS=serving: 0 sessions, load normal; the settings in the file were refused, see the log";
const IDLE: &str = "STATUS=serving: 0 sessions, load normal";

#[test]
fn a_manager_hears_when_the_daemon_serves_how_it_is_and_that_it_stops() {
    let manager = Manager::new();
    let mut daemon = manager.start("limit = []\n");
    assert_eq!(manager.next(), ["STATUS=starting: reading state"]);
    assert_eq!(manager.next(), ["READY=1", IDLE]);

    let session = Mta::with_client(&daemon.endpoint, "192.0.2.1");
    is(&manager.until("STATUS=serving: 1"), &["STATUS=serving: 1 session, load normal"]);
    let told = daemon.told(&["maintenance", "on", "--for", "30m"]);
    let told_status = manager.until("STATUS=maintenance");
    let [status] = &told_status.last().unwrap()[..] else { panic!("{told_status:?}") };
    let until = status.strip_prefix("STATUS=maintenance until ").unwrap();
    let (until, rest) = until.split_once("; ").unwrap();
    assert!(told.contains(until.trim_end_matches('Z')), "{told} says not {until}");
    assert_eq!(rest, "serving: 1 session, load normal");
    daemon.told(&["maintenance", "off"]);
    drop(session);
    is(&manager.until(IDLE), &[IDLE]);

    daemon.signal(Signal::TERM);
    let [stopping, extended, status] = &manager.next()[..] else { panic!("three lines") };
    assert_eq!(stopping, "STOPPING=1");
    // Thirty seconds for sessions, two minutes to save.
    assert_eq!(extended, "EXTEND_TIMEOUT_USEC=150000000");
    assert_eq!(status, "STATUS=stopping: 0 sessions may finish within 30 s");
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(manager.rest().is_empty(), "nothing is left to say, and nothing was kept");
}

#[test]
fn a_manager_hears_of_a_reload_and_that_it_was_refused() {
    let manager = Manager::new();
    let daemon = manager.start("limit = []\n");
    manager.until("READY=1");
    for (policy, status) in [("limit = 7\n", REFUSED), ("limit = []\n", IDLE)] {
        daemon.reload(policy);
        let [reloading, begun, _] = &manager.next()[..] else { panic!("three lines") };
        assert_eq!(reloading, "RELOADING=1");
        let begun: u64 = begun.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(begun > 0);
        assert_eq!(manager.next(), ["READY=1", status]);
    }
    // By `ctl` it is the same.
    daemon.told(&["reload"]);
    assert_eq!(manager.next()[0], "RELOADING=1");
    assert_eq!(manager.next(), ["READY=1", IDLE]);
}

#[test]
fn what_is_kept_is_saved_before_the_manager_thinks_that_we_hang() {
    let (manager, state) = (Manager::new(), Folder::new("state"));
    let policy = format!("limit = []\n[state]\npath = \"{}\"\n", state.path().display());
    let mut daemon = manager.start(&policy);
    manager.until("READY=1");
    daemon.signal(Signal::TERM);
    let told = manager.until("STATUS=stopping: saving state");
    is(&told, &["EXTEND_TIMEOUT_USEC=120000000", "STATUS=stopping: saving state"]);
    assert_eq!(daemon.exit_code(), Some(0));
}

#[test]
fn a_manager_hears_why_a_daemon_cannot_serve() {
    let (manager, folder) = (Manager::new(), Folder::new("taken"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("inet:{}", taken.local_addr().unwrap());
    let config = folder.write("postpone.toml", &format!("[[listen]]\nmilter = \"{address}\"\n"));
    let ended = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_postpone"), "serve", "--config"])
        .arg(config)
        .env("NOTIFY_SOCKET", &manager.path)
        .output()
        .expect("timeout (coreutils)");
    assert_eq!(ended.status.code(), Some(73), "sysexits.h: EX_CANTCREAT");
    let [status] = &manager.next()[..] else { panic!("one line") };
    assert!(status.starts_with(&format!("STATUS=cannot listen on {address}: ")), "{status}");
    assert!(manager.rest().is_empty(), "it was never ready");
}

/// A manager that takes nothing any more: its queue is full.
#[test]
fn a_manager_that_is_stuck_stops_nothing() {
    let manager = Manager::new();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"full", &manager.path).is_ok() {}
    let mut daemon = manager.watch("20000", &[], "limit = []\n");
    let mut mta = Mta::with_client(&daemon.endpoint, "192.0.2.1");
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    mta.tell(&quit());
    daemon.told(&["status"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
}

#[test]
fn a_manager_that_is_not_there_is_none() {
    let variables = [("NOTIFY_SOCKET", "/nonexistent/notify"), ("WATCHDOG_USEC", "20000")];
    let mut daemon = Daemon::run_by(&[], &variables, "limit = []\n");
    daemon.told(&["status"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
}

#[test]
fn the_watchdog_hears_us_twice_as_often_as_it_wants_to() {
    let manager = Manager::new();
    let daemon = manager.watch("200000", &["sh", "-c", WATCHED, "sh"], "limit = []\n");
    manager.until("READY=1");
    for _ in 0..5 {
        is(&manager.until("WATCHDOG=1"), &["WATCHDOG=1"]);
    }
    drop(daemon);
}

#[test]
fn a_watchdog_of_another_process_is_not_ours() {
    let manager = Manager::new();
    let other = r#"WATCHDOG_PID=1 exec "$@""#;
    let daemon = manager.watch("20000", &["sh", "-c", other, "sh"], "limit = []\n");
    let session = Mta::with_client(&daemon.endpoint, "192.0.2.1");
    // Told in a sweep, by when a watchdog of ours would have been told many times.
    let mut told = manager.until("STATUS=serving: 1 session");
    drop(session);
    told.extend(manager.until(IDLE));
    assert!(!told.concat().contains(&"WATCHDOG=1".into()), "{told:?}");
}

/// Somebody who stops one thread of a process, and nothing else of it, as long as he lives.
struct Hold(Child);

impl Hold {
    fn thread(number: &str) -> Self {
        // ptrace(2): PTRACE_SEIZE, PTRACE_INTERRUPT.
        let script = "my ($call, $thread) = @ARGV; $| = 1;
            $! = 0; syscall($call + 0, 0x4206, $thread + 0, 0, 0) == 0 or die \"seize: $!\";
            syscall($call + 0, 0x4207, $thread + 0, 0, 0) == 0 or die \"interrupt: $!\";
            waitpid($thread, 0x40000000) == $thread or die \"wait: $!\";
            print \"held\\n\"; <STDIN>;";
        let ptrace = if cfg!(target_arch = "x86_64") { "101" } else { "117" };
        let mut child = Command::new("perl")
            .args(["-e", script, ptrace, number])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("apt-get install perl-base");
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n", "the thread is held");
        Self(child)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_worker_that_hangs_leaves_the_watchdog_without_a_word() {
    let manager = Manager::new();
    let two = "limit = []\n[server]\nworkers = 2\n";
    let daemon = manager.watch("400000", &["sh", "-c", WATCHED, "sh"], two);
    manager.until("WATCHDOG=1");
    let is_worker = |thread: &fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "worker-1\n")
    };
    let worker = wait_until("the worker to have its name", || {
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        threads.map(|thread| thread.unwrap()).find(is_worker)
    });
    let hold = Hold::thread(worker.file_name().to_str().unwrap());
    daemon.line("the watchdog to be left alone", |line| line.contains("a worker hangs"));
    // All that was said before is read; what comes now is said of a daemon that hangs.
    manager.rest();
    daemon.told(&["maintenance", "on"]);
    let mut told = manager.until("STATUS=maintenance");
    daemon.told(&["maintenance", "off"]);
    told.extend(manager.until("STATUS=serving"));
    assert!(!told.concat().contains(&"WATCHDOG=1".into()), "{told:?}");
    drop(hold);
    manager.until("WATCHDOG=1");
    daemon.line("the workers to answer", |line| line.contains("all workers answer again"));
}

/// A session that came while nobody was there to serve it: in the backlog.
fn waiting(endpoint: &str) -> Mta {
    let mut mta = Mta::dial(endpoint);
    mta.write(&negotiate());
    mta.write(&connect("192.0.2.1"));
    mta
}

#[track_caller]
fn is_served(mut mta: Mta) {
    assert!(said(&mta.reply().expect("negotiation")).contains("OptNeg"), "negotiation");
    assert_eq!(said(&mta.reply().expect("an answer")), "continue");
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    mta.tell(&quit());
}

fn was_passed(daemon: &Daemon) -> bool {
    let line = daemon.line("where it listens", |line| line.contains("listening"));
    line.contains("passed=true")
}

#[test]
fn a_restart_with_a_port_that_was_passed_loses_no_session() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("inet:{}", listener.local_addr().unwrap());
    let early = waiting(&endpoint);
    let pass = || Daemon::passed(&endpoint, listener.try_clone().unwrap(), "limit = []\n");
    let mut daemon = pass();
    assert!(was_passed(&daemon));
    is_served(early);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    let between = waiting(&endpoint);
    let daemon = pass();
    is_served(between);
    is_served(waiting(&endpoint));
    drop(daemon);
}

/// While postpone is away another user may answer the MTA at a port, unless the manager holds it.
#[test]
fn a_port_that_any_local_user_can_take_is_told_of_once_and_one_that_is_passed_is_not() {
    let told_of = |daemon: &mut Daemon| {
        let warned = |line: &&String| line.contains("any local user can take");
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.exit_code(), Some(0));
        daemon.lines().iter().filter(warned).map(|line| line.contains(" WARN ")).collect::<Vec<_>>()
    };
    assert_eq!(told_of(&mut Daemon::start("limit = []\n")), [true]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("inet:{}", listener.local_addr().unwrap());
    assert_eq!(told_of(&mut Daemon::passed(&endpoint, listener, "limit = []\n")), [false; 0]);
    assert_eq!(told_of(&mut Daemon::on_unix_socket("limit = []\n")), [false; 0]);
}

#[test]
fn a_unix_socket_that_was_passed_stays_as_the_manager_has_made_it() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = Folder::new("passed");
    let path = folder.path().join("milter.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // Not as the settings would have it, which the manager does not read.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let made = || fs::metadata(&path).map(|file| (file.ino(), file.gid(), file.mode())).unwrap();
    let before = made();
    let endpoint = format!("unix:{}", path.display());
    let pass = || Daemon::passed(&endpoint, listener.try_clone().unwrap(), "limit = []\n");
    let mut daemon = pass();
    assert!(was_passed(&daemon));
    is_served(waiting(&endpoint));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    assert_eq!(made(), before);
    let between = waiting(&endpoint);
    let daemon = pass();
    is_served(between);
    drop(daemon);
}

#[test]
fn several_workers_serve_one_socket_that_was_passed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("inet:{}", listener.local_addr().unwrap());
    let workers = "limit = []\n[server]\nworkers = 3\n";
    let daemon = Daemon::passed(&endpoint, listener, workers);
    let sessions: Vec<_> = (0..12).map(|_| waiting(&endpoint)).collect();
    sessions.into_iter().for_each(is_served);
    drop(daemon);
}

#[test]
fn a_socket_that_no_section_names_is_told_and_closed_and_the_rest_is_bound() {
    let stray = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("inet:{}", stray.local_addr().unwrap());
    let endpoint = format!("inet:127.0.0.1:{}", free_port());
    let daemon = Daemon::passed(&endpoint, stray, "limit = []\n");
    assert!(!was_passed(&daemon));
    let line = daemon.line("the stray socket", |line| line.contains("no [[listen]] names"));
    assert!(line.contains(&address) && line.contains("WARN"), "{line}");
    is_served(waiting(&endpoint));
    wait_until("it to be closed", || {
        TcpStream::connect(address.strip_prefix("inet:").unwrap()).is_err().then_some(())
    });
}

/// Not what the settings want: they win, and who reads the log sees why.
#[test]
fn a_socket_of_a_narrower_address_is_not_taken_and_told_though_the_port_is_not_to_be_had() {
    let narrow = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = narrow.local_addr().unwrap();
    let folder = Folder::new("narrow");
    let settings = format!("[[listen]]\nmilter = \"inet:0.0.0.0:{}\"\n", address.port());
    let config = folder.write("postpone.toml", &settings);
    let moved = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve --config "$1""#;
    let ended = Command::new("timeout")
        .args(["60", "sh", "-c", moved, env!("CARGO_BIN_EXE_postpone")])
        .arg(config)
        .stdin(Stdio::from(OwnedFd::from(narrow.try_clone().unwrap())))
        .output()
        .expect("timeout (coreutils)");
    assert_eq!(ended.status.code(), Some(73), "sysexits.h: EX_CANTCREAT");
    let log = String::from_utf8(ended.stderr).unwrap();
    for words in [
        &format!("no [[listen]] names: it is closed address=\"inet:{address}\""),
        &format!("cannot listen on inet:0.0.0.0:{}", address.port()),
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[test]
fn what_is_no_listening_socket_is_told_and_the_daemon_serves() {
    let (datagrams, _) = UnixDatagram::pair().unwrap();
    let endpoint = format!("inet:127.0.0.1:{}", free_port());
    let daemon = Daemon::passed(&endpoint, datagrams, "limit = []\n");
    let line = daemon.line("the stray socket", |line| line.contains("cannot be served"));
    assert!(line.contains("descriptor 3: it is neither"), "{line}");
    is_served(waiting(&endpoint));
}

/// Both fronts, in the other order than the settings have them: what is spoken on a socket is said
/// by its address.
#[test]
fn systemd_passes_its_sockets_to_us_with_the_session_that_asked_for_it() {
    let endpoints = [(); 2].map(|()| format!("inet:127.0.0.1:{}", free_port()));
    let [milter, policy_service] = &endpoints;
    let [for_milter, for_policy] =
        [milter, policy_service].map(|it| it.trim_start_matches("inet:"));
    let first = thread::spawn({
        let (milter, address) = (milter.clone(), for_milter.to_owned());
        move || {
            // Who knocks first is gone by the time the daemon serves.
            wait_until("systemd to listen", || TcpStream::connect(&address).ok());
            waiting(&milter)
        }
    });
    let activated =
        ["systemd-socket-activate", "--listen", for_policy, "--listen", for_milter, "--"];
    let daemon = Daemon::at(milter, policy_service, &activated, "limit = []\n");
    daemon.line("both to be served", |line| line.contains("INFO serving"));
    let listening: Vec<_> =
        daemon.lines().into_iter().filter(|line| line.contains("listening")).collect();
    assert_eq!(listening.len(), 2, "{listening:?}");
    assert!(listening.iter().all(|line| line.contains("passed=true")), "{listening:?}");
    is_served(first.join().unwrap());
    assert_eq!(Smtpd::dial(policy_service).ask("192.0.2.1", "anna"), DUNNO);
}
