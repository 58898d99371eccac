//! The milter front against indymilter: the same frames, in any order and torn anywhere, are
//! answered the same, byte for byte, and leave the same behind.
//!
//! Where the two are meant to differ no frame is made: a length of zero or of more than 64 KiB, an
//! address that indymilter cannot read, macros of one stage in another's frame, and a frame of
//! macros without any.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use postpone::engine::Door;
use postpone::front::listen;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::front::Front;
use support::milter::*;
use support::{Folder, PATIENCE, oracle};

/// Every kind of refusal, and texts that do not differ from one session to the next.
const POLICY: &str = r#"
[server]
hostname = "throttle.example.org"
[[limit]]
name = "at-once"
count = "sessions"
max = 1
reply = "421 4.7.0 {hostname} One of {client} at a time"
when = { network = ["198.51.100.0/24"] }
[[limit]]
name = "connections"
count = "connections"
quota = "2/1h"
reply = "421 4.7.0 {hostname} Too often"
when = { network = ["198.51.100.0/24"] }
[[limit]]
name = "recipients"
count = "recipients"
quota = "8/1h"
reply = "452 4.5.3 {hostname} Enough for {network}"
[[limit]]
name = "messages"
count = "messages"
quota = "3/1h"
reply = "421 4.7.0 {hostname} 100% of {sender}"
[[limit]]
name = "unknown"
count = "unknown_recipients"
quota = "2/1h"
reply = "421 4.7.0 {hostname} Too many unknown"
[[limit]]
name = "bytes"
count = "bytes"
quota = "1MiB/1h"
reply = "450 4.7.0 {hostname} Too large"
[greylist]
mode = "enforce"
"#;
const AT_RCPT: &str = "reply = \"451 4.7.1 {hostname} Not yet, {recipient}\"\n";
const AT_DATA: &str = "reply = \"421 4.7.1 {hostname} Not yet, {sender}\"\n";

/// A frame, mostly one that may come next or soon.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let client = prop::sample::select(vec!["192.0.2.7", "2001:db8::7", "198.51.100.7"]);
    let sender = prop::sample::select(vec!["a@example.net", "50%@example.net", ""]);
    let to = prop::sample::select(vec!["b@example.org", "c@example.org", "postmaster@example.org"]);
    let size = prop::sample::select(vec!["SIZE=1000", "size=900000", "SIZE=x", "BODY=8BITMIME"]);
    let resolved = prop::sample::select(vec!["OK", "TEMP", "FAIL"]);
    let fate = prop::sample::select(vec![["local", "x"], ["error", "5.1.1"], ["error", "5.7.1"]]);
    let number = prop::sample::select(vec!["7", "800000", "much"]);
    let user = prop::sample::select(vec!["", "alice"]);
    prop_oneof![
        2 => Just(negotiate()),
        1 => (0..8_u32, any::<u32>(), any::<u32>()).prop_map(|(v, a, o)| offer(v, a, o)),
        3 => client.clone().prop_map(connect),
        2 => client.prop_map(|at| macros(b'C', &["j", "mx", "{client_addr}", at])),
        1 => resolved.prop_map(|how| macros(b'C', &["{client_resolve}", how])),
        1 => Just(frame(b'C', b"mx.example.net\0U")),
        4 => Just(helo("mx.example.net")),
        6 => (sender, size).prop_map(|(from, size)| mail_with(from, &[size])),
        2 => user.prop_map(|user| macros(b'M', &["{auth_authen}", user, "{tls_version}"])),
        8 => to.prop_map(rcpt),
        3 => fate.prop_map(|[mailer, host]| {
            macros(b'R', &["{rcpt_mailer}", mailer, "{rcpt_mailer}", "twice", "{rcpt_host}", host])
        }),
        4 => Just(data()),
        4 => Just(end_of_message()),
        2 => number.prop_map(|size| macros(b'E', &["i", "4ABC", "{msg_size}", size])),
        3 => Just(abort()),
        1 => Just(quit()),
        2 => Just(frame(b'K', b"")),
        1 => Just(frame(b'U', b"XYZZY\0")),
        1 => Just(frame(b'L', b"Subject\0Hello\0")),
        1 => Just(frame(b'N', b"")),
        1 => Just(frame(b'B', b"Hello")),
        1 => Just(frame(b'T', b"unasked")),
        // What cannot be read.
        1 => prop::sample::select(b"ABCDEHKLMNOQRTUz".to_vec()).prop_map(|c| frame(c, b"")),
        1 => prop::sample::select(b"CHMRLU".to_vec()).prop_map(|c| frame(c, b"no end")),
    ]
}

/// What an MTA says, and where it is torn.
#[derive(Debug)]
struct Session {
    bytes: Vec<u8>,
    torn: Vec<usize>,
}

/// Some frames, most often behind a proper beginning.
fn any_session() -> impl Strategy<Value = Session> {
    let beginning = prop_oneof![
        1 => Just(vec![]),
        1 => Just(vec![negotiate()]),
        6 => Just(vec![negotiate(), connect("192.0.2.7"), helo("mx.example.net")]),
        4 => Just(vec![
            negotiate(),
            connect("192.0.2.7"),
            helo("mx.example.net"),
            mail("a@example.net"),
            rcpt("b@example.org"),
        ]),
    ];
    let frames = prop::collection::vec(any_frame(), 0..20);
    let torn = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    (beginning, frames, torn).prop_map(|(beginning, frames, torn)| {
        let bytes = [beginning, frames].concat().concat();
        let mut torn: Vec<_> = torn.iter().map(|at| at.index(bytes.len() + 1)).collect();
        torn.sort_unstable();
        Session { bytes, torn }
    })
}

/// A filter at a path, with another connection to it.
struct Filter {
    path: PathBuf,
    witness: Mta,
}

impl Filter {
    fn at(path: PathBuf) -> Self {
        let witness = Mta::with_client(&format!("unix:{}", path.display()), "203.0.113.9");
        Self { path, witness }
    }

    /// Says this piece by piece, each read before the next comes, and then nothing more. All that
    /// is answered until the other hangs up.
    fn answers(&mut self, Session { bytes, torn }: &Session) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes it");
        let mut begin = 0;
        for end in torn.iter().copied().chain([bytes.len()]) {
            // It may have hung up.
            let _ = stream.write_all(&bytes[begin..end]);
            begin = end;
            // One thread serves both connections.
            assert_eq!(self.witness.ask(&helo("witness.example.net")), "continue");
        }
        let _ = stream.shutdown(Shutdown::Write);
        let (mut answers, mut room) = (Vec::new(), [0; 4096]);
        loop {
            match stream.read(&mut room) {
                Ok(0) => return answers,
                Ok(more) => answers.extend_from_slice(&room[..more]),
                // It has hung up before it had read everything.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return answers,
                Err(error) => panic!("no end of answers: {error}"),
            }
        }
    }
}

/// What is remembered and was decided.
fn left(front: &Front) -> Vec<String> {
    front.engine.sweep(1);
    let told = ["postpone_table_entries", "postpone_decisions_total", "postpone_sessions_open"];
    let metrics = front.engine.metrics();
    let lines = metrics.lines().filter(|line| told.iter().any(|name| line.starts_with(name)));
    lines.map(ToOwned::to_owned).collect()
}

/// Both filters hear these sessions one after the other, each a quarter of an hour after the last.
fn agree(policy: &str, wanted: u32, sessions: &[Session]) -> Result<(), TestCaseError> {
    let folder = Folder::new("oracle");
    let (ours, theirs) = (Folder::within(folder.path(), "ours"), folder.path().join("theirs.sock"));
    let front = Front::on_unix_socket(&ours, policy);
    let model = Front::start(policy);
    let _oracle = oracle::serve(&theirs, model.engine.clone(), door(), wanted);
    let mut us = Filter::at(ours.path().join("milter.sock"));
    let mut them = Filter::at(theirs);
    for session in sessions {
        let (us, them) = (us.answers(session), them.answers(session));
        prop_assert_eq!(us.escape_ascii().to_string(), them.escape_ascii().to_string());
        prop_assert_eq!(left(&front), left(&model));
        front.clock.advance(Duration::from_secs(900));
        model.clock.advance(Duration::from_secs(900));
    }
    drop(us);
    front.ended();
    Ok(())
}

fn door() -> Door {
    listen::Params::default().door()
}

/// Cases for each policy.
const CASES: u32 = 150;

fn hold(policy: &str, wanted: u32) {
    let sessions = prop::collection::vec(any_session(), 1..5);
    let mut runner =
        TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    runner.run(&sessions, |sessions| agree(policy, wanted, &sessions)).expect("both agree");
}

#[test]
fn whatever_comes_is_answered_as_indymilter_would_where_greylisting_speaks_at_data() {
    hold(&format!("{POLICY}{AT_DATA}"), 0x970);
}

#[test]
fn whatever_comes_is_answered_as_indymilter_would_where_data_is_left_out() {
    hold(&format!("{POLICY}{AT_RCPT}"), 0xb70);
}
