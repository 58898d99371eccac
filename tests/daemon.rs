//! The life of the daemon: what it listens on and leaves behind, what it survives, how many
//! sessions it holds. With an MTA of our own; the stories with a real Postfix are in
//! `tests/postfix_*.rs`.

mod support;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use support::daemon::Daemon;
use support::milter::*;
use support::{Folder, as_root, wait_until};

const SESSIONS_OPEN: &str = "postpone_sessions_open";
/// sysexits.h: EX_CANTCREAT.
const NO_SOCKET: i32 = 73;

/// A daemon with a unix socket beside its port. `more` are keys of the same `[[listen]]`.
fn on_socket(path: &Path, more: &str) -> Daemon {
    Daemon::start(&listen(path, more))
}

fn listen(path: &Path, more: &str) -> String {
    format!("limit = []\n[[listen]]\nmilter = \"unix:{}\"\n{more}\n", path.display())
}

/// A daemon that cannot serve: what it said, and how it ended.
fn refused(settings: &str) -> Output {
    let folder = Folder::new("refused");
    let file = folder.write("postpone.toml", settings);
    // One that serves after all is not waited for.
    let serve = ["60", env!("CARGO_BIN_EXE_postpone"), "serve", "--config"];
    Command::new("timeout").args(serve).arg(file).output().expect("timeout (coreutils)")
}

#[track_caller]
fn says(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
}

/// A whole session on this socket is answered.
fn answers(endpoint: &str) {
    let mut mta = Mta::with_client(endpoint, "192.0.2.7");
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    mta.tell(&quit());
    mta.closed();
}

fn endpoint(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[test]
fn the_socket_of_a_daemon_that_is_gone_is_replaced_and_ours_is_removed_at_the_end() {
    let folder = Folder::new("stale");
    // The folder it stands in is made as well.
    let path = folder.path().join("run/postpone/milter.sock");
    let mut daemon = on_socket(&path, "");
    answers(&endpoint(&path));
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.exit_code(), None);
    assert!(fs::metadata(&path).unwrap().file_type().is_socket(), "it was killed");

    let mut daemon = on_socket(&path, "");
    answers(&endpoint(&path));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(!path.exists(), "it stopped in order");
}

#[test]
fn a_socket_that_somebody_serves_is_left_alone() {
    let folder = Folder::new("live");
    let path = folder.path().join("milter.sock");
    let theirs = UnixListener::bind(&path).unwrap();
    says(&refused(&listen(&path, "")), NO_SOCKET, "another process serves this socket");
    theirs.set_nonblocking(true).unwrap();
    assert!(theirs.accept().is_ok(), "it knocked, and the socket is still there");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = Folder::new("file");
    let path = folder.write("milter.sock", "precious");
    says(&refused(&listen(&path, "")), NO_SOCKET, "it exists and is not a socket");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_has_the_owner_group_and_mode_that_are_set() {
    let folder = Folder::new("owner");
    let path = folder.path().join("milter.sock");
    let seen = |more| {
        let daemon = on_socket(&path, more);
        let metadata = fs::metadata(&path).unwrap();
        drop(daemon);
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
    };
    as_root(); // nobody else can give a file away
    let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_eq!(seen(""), (ours.0, ours.1, 0o660));
    assert_eq!(seen("socket_mode = \"0600\""), (ours.0, ours.1, 0o600));
    let (owner, group) = (id("-u"), id("-g"));
    let all = "socket_owner = \"nobody\"\nsocket_group = \"nogroup\"\nsocket_mode = \"0622\"";
    assert_eq!(seen(all), (owner, group, 0o622));

    let unknown = refused(&listen(&path, "socket_group = \"no-such-group\""));
    says(&unknown, NO_SOCKET, "there is no group \"no-such-group\"");
}

/// The number of `nobody`, or of its group.
fn id(which: &str) -> u32 {
    let output = Command::new("id").args([which, "nobody"]).output().expect("id (coreutils)");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

#[test]
fn a_port_that_is_taken_is_named() {
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = theirs.local_addr().unwrap().port();
    let settings = format!("[[listen]]\nmilter = \"inet:127.0.0.1:{port}\"\n");
    says(&refused(&settings), NO_SOCKET, &format!("cannot listen on inet:127.0.0.1:{port}"));
}

#[test]
fn metrics_that_cannot_be_had_are_fatal_where_the_settings_name_their_address() {
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = theirs.local_addr().unwrap();
    let folder = Folder::new("metrics");
    let unix = listen(&folder.path().join("milter.sock"), "");
    let settings = format!("{unix}[control]\nhttp = \"{address}\"\n");
    says(&refused(&settings), NO_SOCKET, &format!("control.http {address}"));
}

#[test]
fn metrics_that_cannot_be_had_at_their_default_address_leave_mail_served() {
    // If this fails somebody has it already, which is as good.
    let _theirs = TcpListener::bind("127.0.0.1:7423");
    let daemon = Daemon::start("[control]\nsocket = \"none\"\n");
    daemon.line("a warning", |line| line.contains("WARN") && line.contains("no metrics"));
    answers(&daemon.endpoint);
}

#[test]
fn http_has_metrics_and_health_and_nothing_else() {
    let daemon = Daemon::start("");
    answers(&daemon.endpoint);
    let health = daemon.get("/health");
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n") && health.ends_with("serving\n"), "{health}");
    let metrics = daemon.get("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    for event in ["connect", "helo"] {
        assert_eq!(daemon.metric("postpone_events_total", &[("event", event)]), 1.0);
    }
    for path in ["/", "/metrics/", "/../etc/passwd", "/health?x"] {
        let expected = if path == "/health?x" { "200 OK" } else { "404 Not Found" };
        let answer = daemon.get(path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{path}: {answer}");
    }
}

#[test]
fn without_sessions_it_ends_at_once_on_sigterm_and_on_interrupt() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start("");
        daemon.signal(signal);
        assert_eq!(daemon.exit_code(), Some(0));
        daemon.line("its parting", |line| line.contains("stopped"));
    }
}

/// More MTAs than file descriptors: those that find none wait, and the others are served.
#[test]
fn running_out_of_file_descriptors_is_survived() {
    let few = ["prlimit", "--nofile=48:48"];
    let mut daemon = Daemon::run_by(&few, &[], "");
    let crowd: Vec<_> = (0..60)
        .map(|_| {
            let mut mta = Mta::dial(&daemon.endpoint);
            mta.write(&[negotiate(), connect("192.0.2.7")].concat());
            mta
        })
        .collect();
    let trouble = |line: &str| line.contains("Too many open files");
    let line = daemon.line("that descriptors have run out", trouble);
    assert!(line.contains("WARN") && line.contains("kind=\"accept\""), "{line}");
    drop(crowd);
    for _ in 0..3 {
        answers(&daemon.endpoint);
    }
    wait_until("every session to end", || (daemon.metric(SESSIONS_OPEN, &[]) == 0.0).then_some(()));
    assert!(daemon.metric("postpone_failures_total", &[("kind", "accept")]) >= 1.0);
    let told = daemon.lines().into_iter().filter(|line| trouble(line)).count();
    assert_eq!(told, 1, "once in a while, not at every attempt");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
}

/// Daemon and MTA are processes of their own here, so each needs a descriptor for every session.
#[test]
fn holds_ten_thousand_sessions() {
    const SESSIONS: u32 = 10_000;
    const AT_ONCE: u32 = 100;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let folder = Folder::new("crowd");
    let path = folder.path().join("milter.sock");
    // With the limits that are built in: each of these clients is a network of its own.
    let daemon = Daemon::start(&listen(&path, "").replace("limit = []", ""));
    let greeted = |client: &str| {
        let mut mta = Mta::dial(&endpoint(&path));
        mta.write(&[negotiate(), connect(client), helo("mx.example.net")].concat());
        mta
    };
    let mut held = Vec::new();
    for first in (0..SESSIONS).step_by(AT_ONCE as usize) {
        let clients = (first..first + AT_ONCE).map(|n| format!("2001:db8:0:{n:x}::1"));
        let mut batch: Vec<_> = clients.map(|client| greeted(&client)).collect();
        for mta in &mut batch {
            assert!(mta.reply().is_some(), "negotiated");
            for _ in ["connect", "helo"] {
                assert_eq!(said(&mta.reply().unwrap()), "continue");
            }
        }
        held.append(&mut batch);
    }
    assert_eq!(daemon.metric(SESSIONS_OPEN, &[]), f64::from(SESSIONS));
    // One more is served, and so is the first of them.
    answers(&endpoint(&path));
    assert_eq!(held[0].ask(&mail("a@example.net")), "continue");
    drop(held);
    wait_until("every session to end", || (daemon.metric(SESSIONS_OPEN, &[]) == 0.0).then_some(()));
    assert_eq!(daemon.metric("postpone_failures_total", &[]), 0.0);
}

#[test]
fn signals_that_mean_no_end_do_not_end_a_daemon_that_has_not_begun_to_serve() {
    let folder = Folder::new("early");
    let file = folder.path().join("postpone.toml");
    mknodat(CWD, &file, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut daemon =
        Command::new("setpriv") // so that it ends even when we are killed
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                env!("CARGO_BIN_EXE_postpone"),
                "serve",
                "--config",
            ])
            .arg(&file)
            .env_remove("NOTIFY_SOCKET")
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv (util-linux) starts postpone");
    // Opened once the daemon opens it, which then waits for the settings.
    let mut pipe = OpenOptions::new().write(true).open(&file).unwrap();
    let settings = "limit = []\n[[listen]]\nmilter = \"inet:127.0.0.1:0\"\n[state]\npath = \
                    \"none\"\n\
                    [control]\nhttp = \"none\"\nsocket = \"none\"\n";
    fs::remove_file(&file).unwrap();
    folder.write("postpone.toml", settings);
    let pid = Pid::from_child(&daemon);
    let timers = [Signal::ALARM, Signal::VTALARM, Signal::PROF];
    let others = [Signal::HUP, Signal::USR1, Signal::USR2, Signal::IO, Signal::POWER];
    for signal in timers.into_iter().chain(others) {
        kill_process(pid, signal).unwrap();
    }
    pipe.write_all(settings.as_bytes()).expect("the daemon still reads");
    drop(pipe);
    let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("serving")), "it serves");
    assert!(log.any(|line| line.contains("reloaded")), "the reload that was asked for is done");
    kill_process(pid, Signal::TERM).unwrap();
    assert!(log.any(|line| line.contains("stopped")), "it stops when told to");
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}
