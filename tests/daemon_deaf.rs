//! Peers that ask and never read, or begin to ask and never end: nobody else waits for them, nor does
//! the end of the daemon.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use support::daemon::Daemon;
use support::milter::*;
use support::wait_until;

/// Asks until nobody listens any more: the answers fill what the kernel holds for us.
fn ask_in_vain(stream: &mut impl Write, question: &[u8]) {
    // A part of a question that was taken is the end of a question, or of a line.
    while let Ok(1..) = stream.write(question) {}
}

/// Somebody who asks for metrics over and over, and never reads.
fn deaf_reader(daemon: &Daemon) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.http()).unwrap();
    stream.set_nonblocking(true).unwrap();
    ask_in_vain(&mut stream, &b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1_000));
    stream
}

/// The same at the control socket.
fn deaf_administrator(daemon: &Daemon) -> UnixStream {
    let mut stream = UnixStream::connect(&daemon.control).unwrap();
    stream.set_nonblocking(true).unwrap();
    ask_in_vain(&mut stream, &b"{\"request\":\"status\"}\n".repeat(1_000));
    stream
}

#[test]
fn readers_that_never_read_take_metrics_from_nobody() {
    let daemon = Daemon::start("limit = []\n");
    let deaf: Vec<_> = (0..64).map(|_| deaf_reader(&daemon)).collect();
    assert_eq!(daemon.metric("postpone_sessions_open", &[]), 0.0);
    drop(deaf);
}

#[test]
fn a_request_for_metrics_that_does_not_end_takes_them_from_nobody() {
    let daemon = Daemon::start("limit = []\n");
    let begun = |_| {
        let mut stream = TcpStream::connect(daemon.http()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
        stream
    };
    let slow: Vec<_> = (0..64).map(begun).collect();
    assert_eq!(daemon.metric("postpone_sessions_open", &[]), 0.0);
    drop(slow);
}

#[test]
fn administrators_that_never_read_take_the_control_socket_from_nobody() {
    let daemon = Daemon::start("limit = []\n");
    let deaf: Vec<_> = (0..100).map(|_| deaf_administrator(&daemon)).collect();
    assert!(daemon.told(&["status"]).contains("last asked"));
    drop(deaf);
}

/// Every place is taken by somebody who does not read or does not end what it has begun.
#[test]
fn sigterm_ends_the_daemon_when_the_grace_is_over_whatever_every_peer_does() {
    let policy = "[server]\ngrace = \"1s\"\nhostname = \"mx.example.org\"\n";
    let (milter, policy_service) = (support::free_port(), support::free_port());
    let [milter, policy_service] =
        [milter, policy_service].map(|port| format!("inet:127.0.0.1:{port}"));
    let few = ["prlimit", "--nofile=256:256"];
    let mut daemon = Daemon::at(&milter, &policy_service, &few, policy);
    let dial = |endpoint: &str| {
        let stream = TcpStream::connect(endpoint.strip_prefix("inet:").unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let request = "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.7\n\
                   recipient=b@example.org\n\n";
    let mut peers = Vec::new();
    for _ in 0..16 {
        let (mut deaf, mut half) = (dial(&policy_service), dial(&policy_service));
        ask_in_vain(&mut deaf, &request.repeat(1_000).into_bytes());
        half.write_all(&request.as_bytes()[..40]).unwrap();
        let (mut mta, mut halfway) = (dial(&milter), dial(&milter));
        mta.write_all(&[negotiate(), connect("203.0.113.7")].concat()).unwrap();
        ask_in_vain(&mut mta, &helo("mx.example.net").repeat(1_000));
        halfway.write_all(&negotiate()[..7]).unwrap();
        peers.extend([deaf, half, mta, halfway]);
    }
    peers.extend((0..64).map(|_| deaf_reader(&daemon)));
    let administrators: Vec<_> = (0..64).map(|_| deaf_administrator(&daemon)).collect();
    wait_until("sessions to be open", || {
        (daemon.metric("postpone_sessions_open", &[]) > 0.0).then_some(())
    });
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    drop((peers, administrators));
}
