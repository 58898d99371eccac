//! What one MTA, or what pretends to be one, can take of the daemon: memory, descriptors, and time
//! at its end. The real daemon, at its defaults but where a story says otherwise.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use postpone::front::milter::WORST_SESSION;
use rustix::process::Signal;
use support::daemon::{Daemon, field};
use support::milter::*;
use support::mx::no_session_is_left;
use support::{free_port, wait_until};

const FAILURES: &str = "postpone_failures_total";

/// The longest frame of macros, none of which anybody has asked for.
fn unasked(command: u8) -> Vec<u8> {
    let value = "x".repeat(100);
    let words: Vec<String> = (0..600).flat_map(|n| [format!("{{m{n}}}"), value.clone()]).collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    while macros(command, &words).len() > 65_540 {
        words.truncate(words.len() - 2);
    }
    macros(command, &words)
}

/// A session that has told as much as it can and is in the middle of a frame.
fn at_its_worst(daemon: &Daemon) -> Mta {
    let mut mta = Mta::with_client(&daemon.endpoint, "203.0.113.7");
    for stage in *b"CHMRTNE" {
        mta.tell(&unasked(stage));
    }
    let long = "x".repeat(2_000);
    assert_eq!(mta.ask(&helo(&long)), "continue");
    mta.tell(&macros(b'M', &["{auth_authen}", &long, "{tls_version}", &long]));
    assert_eq!(mta.ask(&mail(&format!("{long}@{long}"))), "continue");
    // Each is charged for by itself until the message is complete.
    for number in 0..1_200 {
        let to = format!("b@{number}.example");
        assert_eq!(mta.ask(&rcpt(&to)), "continue");
    }
    let half = unasked(b'R');
    mta.write(&half[..half.len() - 1]);
    mta
}

#[test]
fn a_session_at_its_worst_costs_no_more_than_is_said() {
    let policy = r#"
[access]
allow = []
exempt_authenticated = false
[[limit]]
name = "domains"
count = "recipients"
per = ["recipient_domain", "network"]
quota = "100000/1h"
[behaviour]
mode = "off"
[state]
path = "none"
max_clients = 1000
"#;
    const SESSIONS: usize = 100;
    let daemon = Daemon::start(policy);
    // What is remembered of domains has its own bound, and reaches it first.
    drop((0..5).map(|_| at_its_worst(&daemon)).collect::<Vec<_>>());
    no_session_is_left(&daemon);
    let before = daemon.resident();
    let sessions: Vec<_> = (0..SESSIONS).map(|_| at_its_worst(&daemon)).collect();
    let each = daemon.resident().saturating_sub(before) / SESSIONS;
    assert!(each < WORST_SESSION, "{each} bytes a session");
    // That is what a test of the bound is worth: it was nearly reached.
    assert!(each > WORST_SESSION / 4, "{each} bytes a session");
    drop(sessions);
    no_session_is_left(&daemon);
    assert_eq!(daemon.metric(FAILURES, &[]), 0.0);
}

/// Every place is taken by a session at its worst, every table is full, nobody reads the log.
#[test]
fn a_daemon_at_its_worst_takes_no_more_than_it_says() {
    const SESSIONS: usize = 64;
    let policy = r#"
[access]
allow = []
deny = ["198.51.100.0/24"]
exempt_authenticated = false
[[limit]]
name = "domains"
count = "recipients"
per = ["recipient_domain", "network"]
quota = "100000/1h"
[state]
path = "none"
max_clients = 10_000
max_triplets = 10_000
[greylist]
mode = "shadow"
"#;
    let few = ["prlimit", "--nofile=256:256"];
    let daemon = Daemon::run_by(&few, &[], policy);
    let line = daemon.line("what it may take", |line| line.contains("serving"));
    assert_eq!(field(&line, "max_sessions"), Some("64"), "{line}");
    let most =
        field(&line, "most_memory").and_then(|most| most.trim_matches('"').strip_suffix("MiB"));
    let most: usize = most.unwrap().parse().unwrap();
    daemon.log_is_read(false);
    // More clients than are remembered, each with a line of the log.
    for number in 0..12_000_u32 {
        let mut mta = Mta::with_client(&daemon.endpoint, &format!("2001:db8:{:x}::7", number));
        let to = rcpt("b@example.org");
        mta.write(&[helo("mx.example.net"), mail("a@example.net"), to, quit()].concat());
        mta.replies();
    }
    no_session_is_left(&daemon);
    let sessions: Vec<_> = (0..SESSIONS).map(|_| at_its_worst(&daemon)).collect();
    let taken = daemon.resident() >> 20;
    assert!(taken < most, "{taken} MiB, and it says {most}");
    assert!(taken > most / 4, "{taken} MiB: what it says, {most}, is far away");
    drop(sessions);
    daemon.log_is_read(true);
}

#[test]
fn macros_that_nobody_asked_for_cost_nothing() {
    const SESSIONS: usize = 50;
    let daemon = Daemon::start("limit = []\n");
    let talk = || {
        let mut mta = Mta::with_client(&daemon.endpoint, "203.0.113.7");
        b"CHMRTNE".iter().for_each(|stage| mta.tell(&unasked(*stage)));
        assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
        mta
    };
    drop((0..5).map(|_| talk()).collect::<Vec<_>>());
    no_session_is_left(&daemon);
    let before = daemon.resident();
    let sessions: Vec<_> = (0..SESSIONS).map(|_| talk()).collect();
    let each = daemon.resident().saturating_sub(before) / SESSIONS;
    assert!(each < 16 << 10, "{each} bytes a session");
    drop(sessions);
}

/// An MTA that asks and asks, and does not read what it is told.
struct Deaf {
    stream: TcpStream,
    question: Vec<u8>,
    /// How much of it has been written.
    asked: usize,
}

impl Deaf {
    fn dial(daemon: &Daemon) -> Self {
        let port = daemon.endpoint.strip_prefix("inet:").unwrap();
        let mut stream = TcpStream::connect(port).unwrap();
        stream.write_all(&[negotiate(), connect("203.0.113.7")].concat()).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, question: helo("mx.example.net").repeat(1_000), asked: 0 }
    }

    /// Asks until nobody listens any more, or the other has hung up; whether anybody has listened.
    fn ask(&mut self) -> bool {
        let mut heard = false;
        while let Ok(more @ 1..) = self.stream.write(&self.question[self.asked..]) {
            self.asked = (self.asked + more) % self.question.len();
            heard = true;
        }
        heard
    }

    fn until_nobody_listens(&mut self) {
        let mut unheard = 0;
        wait_until("answers to pile up", || {
            unheard = if self.ask() { 0 } else { unheard + 1 };
            (unheard == 20).then_some(())
        });
    }
}

#[test]
fn an_mta_that_does_not_read_is_let_go() {
    let daemon = Daemon::start("limit = []\n");
    let mut deaf = Deaf::dial(&daemon);
    wait_until("it to be let go", || {
        deaf.ask();
        (daemon.metric(FAILURES, &[("kind", "frame")]) == 1.0).then_some(())
    });
    no_session_is_left(&daemon);
    daemon.line("why", |line| line.contains("has not read its answers"));
}

#[test]
fn sigterm_ends_the_daemon_when_the_grace_is_over_whatever_an_mta_does() {
    let mut daemon = Daemon::start("[server]\ngrace = \"1s\"\nhostname = \"mx.example.org\"\n");
    let idle = Mta::with_client(&daemon.endpoint, "203.0.113.7");
    let mut halfway = Mta::with_client(&daemon.endpoint, "203.0.113.8");
    halfway.write(&mail("a@example.net")[..7]);
    let mut deaf = Deaf::dial(&daemon);
    deaf.until_nobody_listens();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    // It has hung up on all of them.
    for mut mta in [idle, halfway] {
        mta.closed();
    }
    deaf.stream.set_nonblocking(false).unwrap();
    let mut rest = Vec::new();
    match deaf.stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn descriptors_kept_for_metrics_and_control_are_left_by_all_listeners_and_workers_together() {
    let endpoint = || format!("inet:127.0.0.1:{}", free_port());
    let (milter, policy_service) = (endpoint(), endpoint());
    let policy = "[server]\nworkers = 4\nhostname = \"mx.example.org\"\n";
    let command = ["prlimit", "--nofile=288:288"];
    let daemon = Daemon::at(&milter, &policy_service, &command, policy);
    let ports = [&milter, &policy_service].map(|at| at.strip_prefix("inet:").unwrap());
    let connect = |n: usize| TcpStream::connect(ports[n % 2]).unwrap();
    let many: Vec<_> = (0..600).map(connect).collect();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    wait_until("places to be taken", || (descriptors() > 100).then_some(()));
    for _ in 0..20 {
        assert_eq!(daemon.metric(FAILURES, &[("kind", "accept")]), 0.0);
        daemon.told(&["status"]);
    }
    drop(many);
}
