//! What an administrator does about one client of the real daemon: has it explained, forgotten, or
//! let through; and how a new database only watches.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::daemon::{Daemon, postpone};
use support::milter::*;
use support::{Folder, wait_until};

/// sysexits.h.
const USAGE: i32 = 64;
const VALUE: i32 = 65;

const BOT: &str = "192.0.2.7";

/// Behaviour acts at once, and a limit of which no more is known than the network.
const ACTS: &str = "[[limit]]\nname = \"velocity\"\ncount = \"messages\"\nquota = \"500/1h\"\n\
     [[limit]]\nname = \"of-one-sender\"\ncount = \"messages\"\nper = [\"network\", \
                         \"sender\"]\nquota = \"500/1h\"\n\
     [behaviour]\nlearn_for = \"0s\"\n";

fn kept_in(state: &Path) -> String {
    format!("[state]\npath = \"{}\"\nflush = \"50ms\"\n", state.display())
}

/// `postpone explain`, and its exit code.
fn asked(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String) {
    let socket = ["explain", "--socket", daemon.control.to_str().unwrap()];
    let output = postpone(&[&socket[..], arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[track_caller]
fn explained(daemon: &Daemon, what: &str) -> Value {
    let (code, said) = asked(daemon, &[what, "--json"]);
    assert_eq!(code, Some(0), "{said}");
    serde_json::from_str(&said).expect("one line of JSON")
}

fn status(daemon: &Daemon) -> Value {
    serde_json::from_str(&daemon.told(&["status", "--json"])).expect("one line of JSON")
}

/// A message to one recipient that does not exist; what was answered at MAIL.
fn guess(mta: &mut Mta, number: usize) -> String {
    let answer = mta.ask(&mail(&format!("bot{number}@example.net")));
    if answer == "continue" {
        mta.tell(&macros(b'R', &["{rcpt_mailer}", "error", "{rcpt_host}", "5.1.1"]));
        mta.ask(&rcpt(&format!("nobody{number}@example.org")));
        mta.tell(&abort());
    }
    answer
}

/// A bot that guesses recipients until it is put off; nothing if it never is. What it was told.
fn harvest(daemon: &Daemon) -> Option<String> {
    let mut mta = Mta::with_client(&daemon.endpoint, BOT);
    let greeted = mta.ask(&helo("[192.0.2.7]"));
    if greeted != "continue" {
        return Some(greeted);
    }
    (0..60).map(|number| guess(&mut mta, number)).find(|answer| answer != "continue")
}

fn id_of(reply: &str) -> &str {
    reply.rsplit_once("id=").expect("an id").1.trim()
}

/// Whether a session of this client may begin a message.
fn passes(daemon: &Daemon) -> bool {
    let mut mta = Mta::with_client(&daemon.endpoint, BOT);
    mta.ask(&helo("mx.example.net")) == "continue" && mta.ask(&mail("a@example.net")) == "continue"
}

#[test]
fn a_client_is_explained_by_what_it_did() {
    let daemon = Daemon::start(ACTS);
    let before = explained(&daemon, BOT);
    assert_eq!(before["client"]["standing"], "unknown");
    assert_eq!(before["client"]["behaviour"]["known"], false);
    assert_eq!(status(&daemon)["learning_until"], Value::Null);

    let reply = harvest(&daemon).expect("it is put off in the end");
    assert!(reply.contains("many unknown recipients"), "{reply}");
    let told = explained(&daemon, BOT);
    let behaviour = &told["client"]["behaviour"];
    assert_eq!(told["client"]["standing"], "suspect");
    assert_eq!(behaviour["terms"][0]["term"], "unknown_rcpt", "{told}");
    assert!(behaviour["terms"][0]["adds"].as_f64() > Some(2.0), "{told}");
    assert!(
        behaviour["terms"].as_array().unwrap().iter().any(|term| {
            term["term"] == "helo" && term["inputs"] == "its HELO is a bare address"
        })
    );
    assert!(behaviour["pace"]["per_hour"].as_f64() > Some(0.0), "{told}");
    assert!(behaviour["pace"]["wait_ms"].as_u64() > Some(0), "{told}");
    let limits = told["client"]["limits"].as_array().unwrap();
    let limit = |name| limits.iter().find(|limit| limit["name"] == name).unwrap();
    assert_eq!(limit("velocity")["needs"], json!([]));
    assert!(limit("velocity")["threshold"].as_str().unwrap().starts_with("500/1h"));
    assert_eq!(limit("of-one-sender")["needs"], json!(["sender"]));

    let (code, text) = asked(&daemon, &[BOT]);
    assert_eq!(code, Some(0), "{text}");
    for line in ["standing      suspect", "term          unknown_rcpt +", "would exempt  `postpone"]
    {
        assert!(text.lines().any(|told| told.starts_with(line)), "{line}: {text}");
    }
    // Asking changes nothing.
    let again = explained(&daemon, BOT);
    let counted = |told: &Value| told["client"]["behaviour"]["last"].clone();
    assert_eq!(counted(&again), counted(&told));
}

#[test]
fn a_decision_is_explained_by_the_id_in_its_reply() {
    let daemon = Daemon::start(ACTS);
    let reply = harvest(&daemon).expect("it is put off in the end");
    let told = explained(&daemon, id_of(&reply));
    let decision = &told["decision"];
    assert_eq!(decision["reason"], "behaviour");
    assert_eq!(decision["client"], BOT);
    assert_eq!(decision["helo"], "[192.0.2.7]");
    assert_eq!(decision["reply"], json!(reply));
    assert_eq!(decision["event"], "mail");
    assert!(decision["sender"].as_str().unwrap().starts_with("bot"), "{told}");
    assert!(decision["value"].as_str().unwrap().contains("many unknown recipients"), "{told}");
    assert!(decision["wait_ms"].as_u64() > Some(0), "{told}");
    assert_eq!(told["client"]["standing"], "suspect");
    let (_, text) = asked(&daemon, &[id_of(&reply)]);
    assert!(text.contains("\nclient        192.0.2.7, its name is not known\n"), "{text}");
    for more in [["--sender", "a@example.net"], ["--name", "mx.example.net"]] {
        let (code, said) = asked(&daemon, &[&[id_of(&reply)], &more[..]].concat());
        assert_eq!(code, Some(65), "{said}");
        assert!(said.contains("a decision has its own name and sender"), "{said}");
    }
    // With the sender that it had, what counts by senders can be told.
    let limits = told["client"]["limits"].as_array().unwrap();
    assert!(limits.iter().all(|limit| limit["needs"] == json!([])), "{told}");

    let (code, text) = asked(&daemon, &[&format!("id={}", id_of(&reply).to_uppercase())]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("answer        192.0.2.7 may send the next message in "), "{text}");
    assert!(text.contains("\ndecision      ") && text.contains("\nreply         421 4.7.0 "));
    for unknown in ["0123456789a", "nonsense"] {
        let (code, said) = asked(&daemon, &[unknown]);
        assert_eq!(code, Some(VALUE), "{said}");
        assert!(said.contains("nor the id of one of the last 4096 decisions"), "{said}");
    }
    assert_eq!(asked(&daemon, &[]).0, Some(USAGE));
}

/// The text as if the terminal were wide enough.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_answer_comes_first_and_what_says_nothing_is_left_out() {
    let daemon = Daemon::start(ACTS);
    let (_, text) = asked(&daemon, &[BOT]);
    assert!(text.starts_with("answer        192.0.2.7 may send now\n"), "{text}");
    assert!(text.contains("client        192.0.2.7, its name is not known: give it with --name\n"));
    assert!(
        text.contains("limits        nothing counted, or more must be known (--sender): velocity"),
        "{text}"
    );
    harvest(&daemon).expect("it is put off in the end");
    let (_, text) = asked(&daemon, &[BOT]);
    assert!(text.starts_with("answer        192.0.2.7 may send the next message in "), "{text}");
    assert!(unwrapped(&text).contains("because its behaviour is "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(!text.contains(" +0.0:"), "{text}");
    let (_, all) = asked(&daemon, &[BOT, "--all"]);
    assert!(all.contains(" +0.0:") && all.lines().count() > text.lines().count(), "{all}");
    daemon.told(&["maintenance", "on"]);
    let (_, text) = asked(&daemon, &[BOT]);
    assert!(unwrapped(&text).contains("may begin a session in 1 h, because of maint"), "{text}");
    daemon.told(&["bypass", "on"]);
    let (_, text) = asked(&daemon, &[BOT]);
    assert!(unwrapped(&text).contains("may send now: everything passes until "), "{text}");
}

#[test]
fn a_limit_is_the_answer_when_it_makes_the_client_wait() {
    let limit = "[[limit]]\nname = \"of-one-sender\"\ncount = \"messages\"\n\
                 per = [\"network\", \"sender\"]\nquota = \"1/1h\"\n[behaviour]\nmode = \"off\"\n";
    let daemon = Daemon::start(limit);
    let mut mta = Mta::with_client(&daemon.endpoint, BOT);
    for step in [mail("anna@example.net"), rcpt("b@example.org"), data(), end_of_message()] {
        mta.ask(&step);
    }
    assert!(mta.ask(&mail("anna@example.net")).starts_with("421 "));
    let (_, text) = asked(&daemon, &[BOT]);
    assert!(text.starts_with("answer        192.0.2.7 may send now\n"), "no sender said: {text}");
    let (_, text) = asked(&daemon, &[BOT, "--sender", "anna@example.net"]);
    let words = unwrapped(&text);
    assert!(words.contains("in 1 h, because limit of-one-sender has counted 1 of 1/1h"), "{text}");

    // The sender alone, in any words, and its domain.
    for sender in ["anna@example.net", "<anna@EXAMPLE.net>", "example.net", "@example.net"] {
        let (code, text) = asked(&daemon, &["--sender", sender]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with("answer        ") && text.contains(": refused "), "{text}");
        assert!(text.contains("from 192.0.2.7") && text.contains("of-one-sender"), "{text}");
    }
    let (code, text) = asked(&daemon, &["--sender", "bert@example.net"]);
    assert!(
        code == Some(0) && text.contains("no remembered decision is about bert@example.net"),
        "{text}"
    );
}

#[test]
fn a_name_that_nobody_has_told_can_be_said() {
    let daemon = Daemon::start(ACTS);
    let (_, text) = asked(&daemon, &[BOT, "--name", "mx1.example.net", "--json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["client"]["name"], "mx1.example.net");
    assert!(told["client"]["pool"].as_str().unwrap().contains("example.net"), "{told}");
}

#[test]
fn what_is_forgotten_is_unknown_again() {
    let daemon = Daemon::start(ACTS);
    harvest(&daemon).expect("it is put off in the end");
    assert!(!passes(&daemon));
    let said = daemon.told(&["forget", BOT]);
    assert!(said.contains("192.0.2.7: forgotten: behaviour: its score and history\n"), "{said}");
    assert!(
        said.contains("not forgotten: limit of-one-sender: it also counts by sender"),
        "{said}"
    );
    daemon.line("that it is forgotten", |line| line.contains("forgotten by hand"));
    let told = explained(&daemon, BOT);
    assert_eq!(told["client"]["standing"], "unknown");
    assert_eq!(told["client"]["behaviour"]["known"], false);
    assert!(passes(&daemon));
    let again = daemon.told(&["forget", BOT]);
    assert!(again.contains("behaviour: nothing was known"), "{again}");
}

#[test]
fn who_is_allowed_is_exempt_until_it_ends() {
    let daemon = Daemon::start(&format!("[access]\nallow = []\ndeny = [\"192.0.2.0/24\"]\n{ACTS}"));
    assert!(!passes(&daemon));
    let said = daemon.told(&["allow", "192.0.2.0/28"]);
    assert!(said.contains("192.0.2.0/28 is allowed until ") && said.contains("a restart ends it"));
    assert!(passes(&daemon));
    assert_eq!(status(&daemon)["allowed"][0]["network"], "192.0.2.0/28");
    assert!(daemon.told(&["status"]).contains("\nallowed       192.0.2.0/28 until "));
    let told = explained(&daemon, BOT);
    assert_eq!(told["client"]["standing"], "trusted");
    assert!(told["client"]["access"]["allowed_until"].is_string(), "{told}");
    assert_eq!(told["client"]["access"]["denied"], "192.0.2.0/24");
    daemon.line("that it is allowed", |line| line.contains("allowed by hand"));

    daemon.told(&["allow", "192.0.2.0/28", "--off"]);
    assert!(!passes(&daemon));
    assert_eq!(status(&daemon)["allowed"], json!([]));
    let nobody = daemon.ctl(&["allow", "192.0.2.0/28", "--off"]);
    assert_eq!(nobody.status.code(), Some(VALUE));

    // Clients behind a NAT64 are known by their IPv4 address.
    let said = daemon.told(&["allow", "64:ff9b::192.0.2.0/124"]);
    assert!(said.contains("192.0.2.0/28 is allowed until "), "{said}");
    assert!(passes(&daemon));
    daemon.told(&["allow", "::ffff:192.0.2.0/124", "--off"]);
    assert!(!passes(&daemon));

    daemon.told(&["allow", BOT, "--for", "2s"]);
    assert!(passes(&daemon));
    wait_until("it to end", || (!passes(&daemon)).then_some(()));
    for wrong in [&["mx.example.org"][..], &[BOT, "--for", "91d"], &[BOT, "--for", "0s"]] {
        let wrong = daemon.ctl(&[&["allow"], wrong].concat());
        assert_eq!(wrong.status.code(), Some(VALUE));
    }
    assert_eq!(daemon.ctl(&["allow", BOT, "--for", "1h", "--off"]).status.code(), Some(USAGE));
    for wide in ["0.0.0.0/0", "192.0.0.0/7", "::/0", "2001:db8::/18"] {
        assert_eq!(daemon.ctl(&["allow", wide]).status.code(), Some(VALUE), "{wide}");
    }
    daemon.told(&["allow", "192.0.0.0/8"]);
    daemon.told(&["allow", "::/0", "--force"]);
}

#[test]
fn who_is_allowed_is_so_after_a_restart() {
    let state = Folder::new("allowed");
    let policy =
        format!("[access]\nallow = []\ndeny = [\"192.0.2.0/24\"]\n{ACTS}{}", kept_in(state.path()));
    let mut daemon = Daemon::start(&policy);
    let said = daemon.told(&["allow", BOT, "--for", "1h"]);
    assert!(said.contains("a restart does not end it"), "{said}");
    daemon.signal(Signal::KILL);
    daemon.exit_code();
    let mut daemon = Daemon::start(&policy);
    assert!(passes(&daemon), "from the first session on");
    daemon.told(&["allow", BOT, "--off"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(!passes(&Daemon::start(&policy)));
}

#[test]
fn a_new_database_only_watches_and_an_old_one_acts() {
    let state = Folder::new("learning");
    let policy = format!("limit = []\n{}", kept_in(state.path()));
    let mut daemon = Daemon::start(&policy);
    let told = daemon.line("that it watches", |line| line.contains("behaviour only watches"));
    assert!(told.contains("until="), "{told}");
    assert!(status(&daemon)["learning_until"].is_string());
    assert!(daemon.told(&["status"]).contains("\nbehaviour     only watches until "));
    assert_eq!(harvest(&daemon), None, "it is told nothing");
    let told = explained(&daemon, BOT);
    assert_eq!(told["client"]["behaviour"]["mode"], "shadow");
    assert!(told["client"]["behaviour"]["score"].as_f64() > Some(4.0), "{told}");
    assert_eq!(told["client"]["standing"], "unknown");
    daemon.decision(&[("mode", "shadow"), ("reason", "behaviour")]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));

    let identity = state.path().join("identity");
    let text = fs::read_to_string(&identity).unwrap();
    let begun = text.lines().find(|line| line.starts_with("begun 20")).expect("when it was begun");
    // As an earlier version has written it: without a checksum.
    let older = text.replace(begun, "begun 2026-01-01T00:00:00Z");
    let unchecked = older.lines().filter(|line| !line.starts_with("check "));
    let older: String = unchecked.flat_map(|line| [line, "\n"]).collect();
    fs::write(&identity, older).unwrap();
    let daemon = Daemon::start(&policy);
    assert_eq!(status(&daemon)["learning_until"], Value::Null);
    assert!(harvest(&daemon).is_some(), "what was learned holds");
    assert!(!daemon.lines().iter().any(|line| line.contains("only watches")));
}

#[test]
fn that_it_watches_no_more_is_told() {
    let daemon = Daemon::start("limit = []\n[behaviour]\nlearn_for = \"2s\"\n");
    daemon.line("that it watches", |line| line.contains("behaviour only watches"));
    daemon.line("that it acts", |line| line.contains("behaviour no longer only watches"));
    assert!(harvest(&daemon).is_some());
}

/// A retry that is due, of which the answer must not say that it waits.
#[test]
fn who_has_waited_long_enough_is_told_so() {
    let daemon = Daemon::start("limit = []\n[greylist]\nmode = \"enforce\"\ndelay = \"1s\"\n");
    let mut mta = Mta::with_client(&daemon.endpoint, BOT);
    mta.ask(&mail("a@example.net"));
    let reply = mta.ask(&rcpt("b@example.org"));
    daemon.line("the decision", |line| line.contains("reason=greylist"));
    let id = daemon.line("its id", |line| line.contains(" id="));
    let id = support::daemon::field(&id, "id").unwrap();
    let text = wait_until("the wait to be over", || {
        let (_, text) = asked(&daemon, &[id]);
        text.contains("\ntriplet       has waited long enough: it passes\n").then_some(text)
    });
    assert!(text.starts_with("answer        192.0.2.7 may send now\n"), "{reply}{text}");
    // Of a sender and recipient that are not named, nobody knows.
    let (_, text) = asked(&daemon, &[BOT]);
    assert!(unwrapped(&text).contains("may send now; a first contact of its sender and"), "{text}");
}
