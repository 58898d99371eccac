//! What those who ask the policy service can take of the daemon's memory. The real daemon.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use postpone::front::policyd::MOST_MEMORY;
use support::daemon::Daemon;

fn dial(daemon: &Daemon) -> TcpStream {
    TcpStream::connect(daemon.policy_endpoint.strip_prefix("inet:").unwrap()).unwrap()
}

/// A request about a client of this number, with texts as long as any that are kept, and longer.
fn longest(number: u32, recipient: u32, context: &str) -> String {
    let long = "x".repeat(600);
    let [_, a, b, c] = number.to_be_bytes();
    format!(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=203.{a}.{b}.{c}\n\
         client_port=1025\nclient_name={long}.example.net\nhelo_name={long}\nsender={long}@{long}\n\
         sasl_username={long}\nrecipient={recipient}{long}@{long}\ninstance={number:x}\n\
         policy_context={context}\n\n"
    )
}

/// Asks all of these, so many at a time, and reads what is answered.
fn ask(daemon: &Daemon, requests: impl Iterator<Item = String>) {
    let mut stream = dial(daemon);
    let mut reader = stream.try_clone().unwrap();
    let mut answers = 0;
    let mut read = |until: usize| {
        let mut room = [0; 64 << 10];
        while answers < until {
            let came = reader.read(&mut room).unwrap();
            assert_ne!(came, 0, "it has hung up");
            answers += room[..came].windows(2).filter(|end| end == b"\n\n").count();
        }
    };
    for (number, request) in requests.enumerate() {
        stream.write_all(request.as_bytes()).unwrap();
        read(number + 1);
    }
}

#[test]
fn half_a_request_costs_what_has_come_of_it() {
    const CONNECTIONS: usize = 300;
    const HALF: usize = 30 << 10;
    let daemon = Daemon::policy_service("limit = []\n");
    ask(&daemon, (0..100).map(|number| longest(number, 0, "")));
    let before = daemon.resident();
    let text = format!("helo_name={}", "x".repeat(HALF));
    let begun = |_| {
        let mut stream = dial(&daemon);
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let half: Vec<_> = (0..CONNECTIONS).map(begun).collect();
    // It has read all that came before.
    ask(&daemon, (0..100).map(|number| longest(number, 1, "")));
    let each = daemon.resident().saturating_sub(before) / CONNECTIONS;
    assert!((HALF / 2..HALF + (8 << 10)).contains(&each), "{each} bytes a connection");
    drop(half);
}

#[test]
fn an_idle_connection_costs_nearly_nothing() {
    const CONNECTIONS: usize = 300;
    let daemon = Daemon::policy_service("limit = []\n");
    ask(&daemon, (0..100).map(|number| longest(number, 0, "")));
    let before = daemon.resident();
    let idle = |_| {
        let mut stream = dial(&daemon);
        stream.write_all(longest(1, 0, "").as_bytes()).unwrap();
        assert!(stream.read(&mut [0; 64]).unwrap() > 0);
        stream
    };
    let idle: Vec<_> = (0..CONNECTIONS).map(idle).collect();
    let each = daemon.resident().saturating_sub(before) / CONNECTIONS;
    assert!(each < 8 << 10, "{each} bytes a connection");
    drop(idle);
}

/// `policy_context` was kept uncut: 60 KiB for each of thirty thousand sessions.
#[test]
fn the_desk_at_its_worst_takes_no_more_than_is_said() {
    // What is remembered of clients has its own bound, and reaches it first.
    let policy = "limit = []\n[behaviour]\nmode = \"off\"\n[state]\npath = \"none\"\n\
                  max_clients = 1000\nmax_triplets = 1000\n";
    let daemon = Daemon::policy_service(policy);
    let context = "y".repeat(30 << 10);
    ask(&daemon, (0..2_000).map(|number| longest(number, 0, "")));
    let before = daemon.resident();
    ask(&daemon, (0..40_000).map(|number| longest(number, 0, &context)));
    let taken = daemon.resident() - before;
    assert!(taken < MOST_MEMORY, "{taken} bytes");
    assert!(taken > MOST_MEMORY / 8, "{taken} bytes: the bound is far away");
}
