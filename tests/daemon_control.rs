//! The control socket of the real daemon, and `postpone ctl`: what it tells is true, what it does
//! is done, and nobody who comes there does harm. What a real Postfix's clients see of it is in
//! `tests/postfix_control.rs`.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use postpone::front::control::protocol::{Answer, Kind, Trouble};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};
use support::daemon::{Daemon, postpone};
use support::milter::*;
use support::{Folder, PATIENCE, as_root, wait_until};

/// sysexits.h.
const USAGE: i32 = 64;
const VALUE: i32 = 65;
const UNAVAILABLE: i32 = 69;
const NO_SOCKET: i32 = 73;
const PERMISSION: i32 = 77;
const BAD_SETTINGS: i32 = 78;

const ONE_MESSAGE: &str =
    "[[limit]]\nname = \"velocity\"\ncount = \"messages\"\nquota = \"1/1h\"\n";

fn status(daemon: &Daemon) -> Value {
    serde_json::from_str(&daemon.told(&["status", "--json"])).expect("one line of JSON")
}

#[track_caller]
fn ends(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
}

/// What a new session is told at HELO.
fn greeting(endpoint: &str) -> String {
    let mut mta = Mta::with_client(endpoint, "192.0.2.7");
    mta.ask(&helo("mx.example.net"))
}

#[track_caller]
fn is_closed(endpoint: &str) {
    let said = greeting(endpoint);
    let expected = "421 4.3.2 throttle.example.org Closed for maintenance; retry in ";
    assert!(said.starts_with(expected), "{said}");
}

#[track_caller]
fn is_open(endpoint: &str) {
    assert_eq!(greeting(endpoint), "continue");
}

fn maintenance_begins(line: &str) -> bool {
    line.contains("maintenance begins")
}

fn maintenance_ends(line: &str) -> bool {
    line.contains("maintenance ends")
}

#[test]
fn status_tells_what_has_happened() {
    let daemon = Daemon::start(ONE_MESSAGE);
    let before = status(&daemon);
    assert_eq!(before["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(before["listeners"], json!([daemon.endpoint]));
    assert_eq!(before["load"]["level"], "normal");
    assert_eq!(before["load"]["admitted"], json!({"suspect": 1.0, "unknown": 1.0, "proven": 1.0}));
    assert_eq!(before["decisions"]["pass"], 0);

    let mut mta = Mta::with_client(&daemon.endpoint, "192.0.2.7");
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    assert_eq!(mta.ask(&mail("a@example.net")), "continue");
    assert_eq!(mta.ask(&rcpt("b@example.org")), "continue");
    assert_eq!(mta.ask(&data()), "continue");
    mta.ask(&end_of_message());
    assert!(mta.ask(&mail("a@example.net")).starts_with("421 4.7.0"));

    let after = status(&daemon);
    assert_eq!(after["sessions_open"], 1);
    assert_eq!(after["decisions"]["rate"], 1);
    assert_eq!(after["decisions"]["access"], 0);
    let passed = daemon.metric("postpone_decisions_total", &[("action", "pass")]);
    assert_eq!(after["decisions"]["pass"].as_f64(), Some(passed));
    let tables = after["tables"].as_array().unwrap();
    let meters = tables.iter().find(|table| table["name"] == "meters").unwrap();
    assert_eq!((&meters["entries"], &meters["max"]), (&json!(1), &json!(4_000_000)));
    assert_eq!(after["state"]["kept"], false);
    assert_eq!(after["maintenance"], json!([]));
    assert_eq!(after["failures"]["frame"], 0);
    assert_eq!(after["since"], before["since"]);
    assert!(after["now"].as_str() > before["now"].as_str(), "{after}");

    mta.write(&frame(b'?', b""));
    mta.closed();
    wait_until("the session to end", || {
        let told = status(&daemon);
        (told["sessions_open"] == 0 && told["failures"]["frame"] == 1).then_some(())
    });
    let text = daemon.told(&["status"]);
    for line in ["sessions      0 open", "load          normal", "failures      frame 1"] {
        assert!(text.lines().any(|told| told == line), "{line}: {text}");
    }
    for begin in ["settings      /", "in force      enforced: access, ", "last asked    by an MTA "]
    {
        assert!(text.lines().any(|told| told.starts_with(begin)), "{begin}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

fn rule(told: &Value, name: &str) -> Value {
    let rules = told["rules"].as_array().unwrap();
    rules.iter().find(|rule| rule["name"] == name).unwrap_or(&Value::Null).clone()
}

#[test]
fn status_tells_whom_each_rule_has_refused_most_and_when_an_mta_last_asked() {
    let trial = "[[limit]]\nname = \"trial\"\ncount = \"messages\"\nquota = \"1/1h\"\n\
                 mode = \"shadow\"\n";
    let daemon = Daemon::start(&format!("{ONE_MESSAGE}{trial}"));
    assert_eq!(status(&daemon)["asked"], Value::Null);
    assert!(daemon.told(&["status"]).contains("\nlast asked    never: no MTA has asked "));
    assert_eq!(rule(&status(&daemon), "trial")["mode"], "shadow");
    for client in ["192.0.2.9", "192.0.2.7", "192.0.2.7", "192.0.2.7"] {
        let mut mta = Mta::with_client(&daemon.endpoint, client);
        let message = [mail("a@example.net"), rcpt("b@example.org"), data(), end_of_message()];
        assert!(message.iter().chain(&message).any(|step| mta.ask(step).starts_with("421 ")));
    }
    let told = status(&daemon);
    assert!(told["asked"].is_string());
    let velocity = rule(&told, "velocity");
    assert_eq!(velocity["refused"]["total"], velocity["refused"]["hour"]);
    assert_eq!(velocity["most"]["client"], "192.0.2.7", "{velocity}");
    assert_eq!(rule(&told, "trial")["refused"]["total"], 0);
    assert!(rule(&told, "trial")["shadowed"]["total"].as_u64() > Some(1));
    assert!(
        daemon
            .told(&["status"])
            .contains("\n              mostly 192.0.2.7: 3 of the 4 remembered")
    );
}

#[test]
fn status_tells_that_the_last_reload_was_refused_and_why_until_one_is_done() {
    let daemon = Daemon::start(ONE_MESSAGE);
    assert_eq!(status(&daemon)["settings"]["refused"], Value::Null);
    daemon.rewrite("[[limit]]\nname = \"velocity\"\ncount = \"letters\"\n");
    assert_eq!(daemon.ctl(&["reload"]).status.code(), Some(BAD_SETTINGS));
    let why = status(&daemon)["settings"]["refused"]["why"].clone();
    assert!(why.as_str().unwrap().contains("letters"), "{why}");
    assert!(daemon.told(&["status"]).contains("\n              RELOAD REFUSED "));
    let before = status(&daemon)["settings"]["loaded"].clone();
    let another = ONE_MESSAGE.replace("velocity", "speed");
    daemon.rewrite(&another);
    let said = daemon.told(&["reload"]);
    assert!(said.contains("\nenforced: access, maintenance, load, speed"), "{said}");
    let told = status(&daemon);
    assert_eq!(told["settings"]["refused"], Value::Null);
    assert!(told["settings"]["loaded"].as_str() > before.as_str(), "{told}");
}

#[test]
fn the_daemon_is_found_by_its_settings_and_by_its_socket_wherever_they_are_named() {
    let daemon = Daemon::start("");
    let (config, socket) = (daemon.config.to_str().unwrap(), daemon.control.to_str().unwrap());
    let unix = format!("unix:{socket}");
    for arguments in [
        ["--config", config, "ctl", "status"],
        ["ctl", "--config", config, "status"],
        ["ctl", "status", "--config", config],
        ["--socket", socket, "ctl", "status"],
        ["ctl", "--socket", &unix, "status"],
        ["ctl", "status", "--socket", &unix],
    ] {
        let output = postpone(&arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("postpone "), "{output:?}");
    }
}

#[test]
fn where_no_daemon_answers_and_where_the_command_is_wrong_it_says_so() {
    let folder = Folder::new("nobody");
    let nowhere = folder.path().join("control.sock");
    let nowhere = nowhere.to_str().unwrap();
    ends(&postpone(&["ctl", "status", "--socket", nowhere]), UNAVAILABLE, "no daemon answers at");
    drop(UnixListener::bind(nowhere).unwrap());
    ends(&postpone(&["ctl", "reload", "--socket", nowhere]), UNAVAILABLE, "refused");
    let none = folder.write("none.toml", "[control]\nsocket = \"none\"\n");
    let none = none.to_str().unwrap();
    ends(&postpone(&["ctl", "status", "--config", none]), UNAVAILABLE, "\"none\"");
    let missing = folder.path().join("missing.toml");
    let missing = missing.to_str().unwrap();
    ends(&postpone(&["ctl", "status", "--config", missing]), BAD_SETTINGS, "No such file");
    for (arguments, words) in [
        (&["ctl"][..], "Usage"),
        (&["ctl", "explode"], "unrecognized subcommand"),
        (&["ctl", "maintenance", "on", "--for", "long"], "expected a time such as"),
        (&["ctl", "maintenance", "on", "--until", "noon"], "expected a time such as 2026"),
        (
            &["ctl", "maintenance", "on", "--for", "5m", "--until", "2026-11-21T22:07:20Z"],
            "cannot be used with",
        ),
        (&["serve", "--socket", nowhere], "--socket"),
    ] {
        ends(&postpone(arguments), USAGE, words);
    }
}

#[test]
fn a_reload_does_what_sighup_does_and_says_what_came_of_it() {
    let daemon = Daemon::start("");
    is_open(&daemon.endpoint);
    daemon.rewrite(
        "[server]\ngrace = \"5s\"\nhostname = \"throttle.example.org\"\n[access]\ndeny \
                    = [\"192.0.2.7\"]\n",
    );
    let said = daemon.told(&["reload"]);
    assert!(said.contains("postpone.toml: reloaded\n"), "{said}");
    assert!(said.contains("only at a restart: server.grace"), "{said}");
    assert!(greeting(&daemon.endpoint).starts_with("421 4.7.0"), "it is in force");
    assert_eq!(daemon.metric("postpone_reloads_total", &[("outcome", "done")]), 1.0);

    // A bad file changes nothing, and what is wrong is told as `check` tells it.
    daemon.rewrite("[greylist]\ndelay = \"soon\"\n");
    let config = daemon.config.to_str().unwrap();
    let checked = String::from_utf8(postpone(&["check", "--config", config]).stderr).unwrap();
    assert!(checked.contains("greylist.delay: expected a time"), "{checked}");
    let refused = daemon.ctl(&["reload"]);
    ends(&refused, BAD_SETTINGS, &checked);
    ends(&refused, BAD_SETTINGS, "not reloaded, nothing has changed");
    assert!(greeting(&daemon.endpoint).starts_with("421 4.7.0"), "it still is");
    assert_eq!(daemon.metric("postpone_reloads_total", &[("outcome", "refused")]), 1.0);
    let refused = daemon.ctl(&["reload", "--json"]);
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&told["done"], &told["report"]), (&json!(false), &json!(checked)));
}

#[test]
fn maintenance_holds_for_new_sessions_and_ends_by_itself() {
    let daemon = Daemon::start(ONE_MESSAGE);
    let mut running = Mta::with_client(&daemon.endpoint, "192.0.2.8");
    assert_eq!(running.ask(&helo("mx.example.net")), "continue");
    let said = daemon.told(&["maintenance", "on", "--for", "2s"]);
    assert!(
        said.contains("maintenance of all listeners until ") && said.contains("left)"),
        "{said}"
    );
    assert!(said.contains("a restart ends it"), "no state is kept: {said}");
    is_closed(&daemon.endpoint);
    assert_eq!(running.ask(&mail("a@example.net")), "continue");
    let begun = daemon.line("that it begins", maintenance_begins);
    assert!(begun.contains("scope=all") && begun.contains("by=\"hand\""), "{begun}");
    assert_eq!(daemon.metric("postpone_maintenance", &[("scope", "all")]), 1.0);

    daemon.line("that it ends", maintenance_ends);
    is_open(&daemon.endpoint);
    assert_eq!(running.ask(&rcpt("b@example.org")), "continue");
    assert_eq!(daemon.metric("postpone_maintenance", &[]), 0.0);
    assert_eq!(status(&daemon)["maintenance"], json!([]));
    let told = |what: fn(&str) -> bool| daemon.lines().iter().filter(|line| what(line)).count();
    assert_eq!((told(maintenance_begins), told(maintenance_ends)), (1, 1), "one line each");
}

/// A message; the first refusal, if there is one.
fn sends(daemon: &Daemon) -> String {
    let mut mta = Mta::with_client(&daemon.endpoint, "192.0.2.7");
    let message = [mail("a@example.net"), rcpt("b@example.org"), data(), end_of_message()];
    let mut steps = [helo("mx.example.net")].into_iter().chain(message);
    let refused = steps.find_map(|step| Some(mta.ask(&step)).filter(|said| said != "continue"));
    refused.unwrap_or_else(|| "continue".to_owned())
}

#[test]
fn a_bypass_lets_everything_pass_whatever_refuses_and_is_visible_until_it_ends() {
    let daemon = Daemon::start(ONE_MESSAGE);
    daemon.told(&["maintenance", "on"]);
    assert!(sends(&daemon).starts_with("421 4.3.2 "));
    let said = daemon.told(&["bypass", "on", "--for", "10m"]);
    assert!(said.contains("(10 m left): everything passes"), "{said}");
    for _ in 0..3 {
        assert_eq!(sends(&daemon), "continue");
    }
    daemon.line("that it has begun", |line| line.contains("bypass: everything passes"));
    daemon.decision(&[("mode", "shadow"), ("reason", "maintenance"), ("action", "pass")]);
    assert_eq!(daemon.metric("postpone_bypass", &[]), 1.0);
    assert!(daemon.told(&["status"]).contains("\nbypass        until "));
    assert!(status(&daemon)["bypass"].is_string());

    daemon.told(&["maintenance", "off"]);
    assert!(daemon.told(&["bypass", "off"]).contains("the rules are in force again"));
    assert!(sends(&daemon).starts_with("421 4.7.0 "));
    assert_eq!(daemon.metric("postpone_bypass", &[]), 0.0);
    ends(&daemon.ctl(&["bypass", "off"]), VALUE, "there is no bypass");
    ends(&daemon.ctl(&["bypass", "on", "--for", "25h"]), VALUE, "1d at most");
    daemon.told(&["bypass", "on", "--for", "1s"]);
    daemon.line("that it has ended", |line| line.contains("bypass ends"));
    wait_until("the rule to hold", || sends(&daemon).starts_with("421 4.7.0 ").then_some(()));
    assert_eq!(status(&daemon)["bypass"], Value::Null);
}

#[test]
fn one_rule_is_taken_out_by_its_name() {
    let daemon = Daemon::start(ONE_MESSAGE);
    assert_eq!(sends(&daemon), "continue");
    assert!(sends(&daemon).starts_with("421 4.7.0 "));
    let said = daemon.told(&["shadow", "velocity", "--for", "1h"]);
    assert!(
        said.contains("velocity is in shadow mode until ") && said.contains("(1 h left)"),
        "{said}"
    );
    assert_eq!(sends(&daemon), "continue");
    daemon.decision(&[("mode", "shadow"), ("limit", "velocity"), ("would", "close")]);
    assert_eq!(daemon.metric("postpone_shadowed_by_hand", &[("rule", "velocity")]), 1.0);
    let shown = daemon.told(&["status"]);
    assert!(shown.contains("\nshadow        velocity until "), "{shown}");
    // What is in force is what is so now, also after a reload.
    let in_force = "enforced: access, maintenance, load; in shadow: velocity, behaviour";
    let told = status(&daemon)["settings"]["in_force"].clone();
    assert!(told.as_str().unwrap().starts_with(in_force), "{told}");
    assert!(daemon.told(&["reload"]).contains(in_force));
    let told = daemon.told(&["shadow", "velocity", "--off"]);
    assert!(told.contains("velocity is in force again"), "{told}");
    assert!(sends(&daemon).starts_with("421 4.7.0 "));
    ends(
        &daemon.ctl(&["shadow", "speed"]),
        VALUE,
        "there are: access, maintenance, load, velocity",
    );
    ends(
        &daemon.ctl(&["shadow", "behaviour"]),
        VALUE,
        "refuses no client anyway: its mode is shadow",
    );
    ends(&daemon.ctl(&["shadow", "velocity", "--off"]), VALUE, "is not in shadow mode by");
}

#[test]
fn maintenance_of_one_listener_leaves_the_others_open() {
    let folder = Folder::new("two");
    let path = folder.path().join("milter.sock");
    let other = format!("unix:{}", path.display());
    let daemon = Daemon::start(&format!("limit = []\n[[listen]]\nmilter = \"{other}\"\n"));
    // A path will do.
    daemon.told(&["maintenance", "on", "--listener", path.to_str().unwrap()]);
    is_closed(&other);
    is_open(&daemon.endpoint);
    let told = status(&daemon);
    assert_eq!(told["maintenance"][0]["listener"], json!(other));
    // Where nobody says how long, it is an hour.
    let remaining = told["maintenance"][0]["remaining_secs"].as_u64().unwrap();
    assert!((3_500..=3_600).contains(&remaining), "{told}");
    assert_eq!(daemon.metric("postpone_maintenance", &[("scope", "all")]), 0.0);
    assert_eq!(daemon.metric("postpone_maintenance", &[]), 1.0);

    // What is closed for all cannot be opened for one.
    daemon.told(&["maintenance", "on", "--for", "10m"]);
    let said = daemon.ctl(&["maintenance", "off", "--listener", &daemon.endpoint]);
    ends(&said, VALUE, "as all listeners are");
    let said = daemon.ctl(&["maintenance", "off", "--listener", &other]);
    ends(&said, 0, "as all listeners are");
    is_closed(&other);
    daemon.told(&["maintenance", "off"]);
    is_open(&other);
    is_open(&daemon.endpoint);

    let unknown = daemon.ctl(&["maintenance", "on", "--listener", "inet:127.0.0.1:1"]);
    ends(&unknown, VALUE, "there is no listener");
    ends(&unknown, VALUE, &daemon.endpoint);
    ends(&unknown, VALUE, &other);
    for past in [&["--until", "2026-01-01T00:00:00Z"], &["--for", "0s"], &["--for", "8d"]] {
        let wrong = daemon.ctl(&[&["maintenance", "on"], &past[..]].concat());
        ends(&wrong, VALUE, "expected");
    }
    let long = daemon.ctl(&["maintenance", "on", "--for", "5h"]);
    ends(&long, 0, "warning: after 4h sending hosts warn their users");
}

#[test]
fn a_policy_service_is_closed_by_its_address_whatever_postfix_calls_it() {
    let daemon = Daemon::policy_service("");
    assert_eq!(asked(&daemon, 40_001), "action=DUNNO\n\n");
    daemon.told(&["maintenance", "on", "--for", "10m", "--listener", &daemon.policy_endpoint]);
    assert!(asked(&daemon, 40_002).starts_with("action=421 4.3.2 "), "a new one is put off");
    assert_eq!(asked(&daemon, 40_001), "action=DUNNO\n\n", "the other goes on");
    daemon.told(&["maintenance", "off", "--listener", &daemon.policy_endpoint]);
    // The same question is answered anew.
    assert_eq!(asked(&daemon, 40_002), "action=DUNNO\n\n");
}

/// What Postfix is answered that asks about a recipient in the session of a client at this port.
fn asked(daemon: &Daemon, port: u16) -> String {
    let address = daemon.policy_endpoint.trim_start_matches("inet:");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n\
         client_address=192.0.2.7\nclient_name=unknown\nclient_port={port}\ninstance=1.{port}\n\
         sender=a@example.net\nrecipient=b@example.org\nhelo_name=mx.example.net\n\
         policy_context=submission\n\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// A policy service is not told when a session has begun, but a milter beside it is.
#[test]
fn a_session_that_a_milter_has_let_in_finishes_at_the_policy_service_too() {
    let daemon = Daemon::milter_and_policy_service("");
    // Its port is 40000.
    let mut running = Mta::with_client(&daemon.endpoint, "192.0.2.7");
    assert_eq!(running.ask(&helo("mx.example.net")), "continue");
    daemon.told(&["maintenance", "on"]);
    assert_eq!(running.ask(&mail("a@example.net")), "continue");
    assert_eq!(asked(&daemon, 40_000), "action=DUNNO\n\n");
    assert!(asked(&daemon, 40_001).starts_with("action=421 4.3.2 "));
}

#[test]
fn maintenance_outlives_the_daemon_however_it_ends() {
    let state = Folder::new("state");
    let policy = format!("[state]\npath = \"{}\"\n", state.path().join("state").display());
    let mut daemon = Daemon::start(&policy);
    let said = daemon.told(&["maintenance", "on", "--for", "30m"]);
    assert!(said.contains("a restart does not end it"), "{said}");
    for signal in [Signal::KILL, Signal::TERM] {
        daemon.signal(signal);
        daemon.exit_code();
        daemon = Daemon::start(&policy);
        // The very first session is closed.
        is_closed(&daemon.endpoint);
        daemon.line("that it goes on", maintenance_begins);
        let told = status(&daemon);
        assert_eq!(told["state"]["kept"], true);
        assert!(told["maintenance"][0]["remaining_secs"].as_u64() > Some(1_700), "{told}");
    }
    // So does its end.
    daemon.told(&["maintenance", "off"]);
    daemon.signal(Signal::KILL);
    daemon.exit_code();
    daemon = Daemon::start(&policy);
    is_open(&daemon.endpoint);
}

#[test]
fn what_the_settings_close_a_reload_and_a_word_open() {
    let closed = "[maintenance]\nuntil = \"2100-01-01T00:00:00Z\"\n";
    let daemon = Daemon::start("");
    is_open(&daemon.endpoint);
    daemon.rewrite(closed);
    daemon.told(&["reload"]);
    is_closed(&daemon.endpoint);
    let begun = daemon.line("that it begins", maintenance_begins);
    assert!(begun.contains("by=\"settings\""), "{begun}");
    let text = daemon.told(&["status"]);
    assert!(text.contains("all listeners until 2100-01-01T00:00:00Z"), "{text}");
    let said = daemon.ctl(&["maintenance", "on", "--for", "10m"]);
    ends(&said, 0, "maintenance lasts longer, until 2100-01-01T00:00:00");
    daemon.told(&["maintenance", "off"]);
    is_open(&daemon.endpoint);
    daemon.told(&["reload"]);
    is_open(&daemon.endpoint);
    daemon.rewrite(&closed.replace("2100", "2101"));
    daemon.told(&["reload"]);
    is_closed(&daemon.endpoint);
    daemon.rewrite("");
    daemon.told(&["reload"]);
    is_open(&daemon.endpoint);
}

fn control(socket: &Path, more: &str) -> String {
    format!("[control]\nhttp = \"none\"\nsocket = \"unix:{}\"\n{more}", socket.display())
}

#[test]
fn the_socket_has_the_mode_that_is_set_replaces_a_stale_one_and_is_removed_at_the_end() {
    let folder = Folder::new("socket");
    let socket = folder.path().join("run/postpone/control.sock");
    let mut daemon = Daemon::start(&control(&socket, ""));
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o660);
    assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
    daemon.signal(Signal::KILL);
    daemon.exit_code();
    assert!(socket.exists(), "it was killed");

    let mut daemon = Daemon::start(&control(&socket, "socket_mode = \"0600\"\n"));
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let socket_name = socket.to_str().unwrap();
    assert_eq!(postpone(&["ctl", "status", "--socket", socket_name]).status.code(), Some(0));

    // One that somebody serves is left alone; that is fatal where the file names it.
    let second = folder.write(
        "second.toml",
        &format!(
            "{}[[listen]]\nmilter = \"unix:{}/x.sock\"\n[state]\npath = \"none\"\n",
            control(&socket, ""),
            folder.path().display()
        ),
    );
    let second = postpone(&["serve", "--config", second.to_str().unwrap()]);
    ends(&second, NO_SOCKET, "cannot listen on control.socket unix:");
    assert_eq!(postpone(&["ctl", "status", "--socket", socket_name]).status.code(), Some(0));

    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(!socket.exists(), "it stopped in order");
}

#[test]
fn without_its_default_socket_the_daemon_serves_mail() {
    as_root(); // /run is root's
    let folder = Path::new("/run/postpone");
    let (is_new, path) = (!folder.exists(), folder.join("control.sock"));
    fs::create_dir_all(folder).unwrap();
    // If this fails somebody has it already, which is as good; but for one that nobody serves.
    if UnixStream::connect(&path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
        fs::remove_file(&path).unwrap();
    }
    let theirs = UnixListener::bind(&path);
    let daemon = Daemon::start("[control]\nhttp = \"none\"\n");
    daemon.line("a warning", |line| line.contains("WARN") && line.contains("no control"));
    is_open(&daemon.endpoint);
    if theirs.is_ok() {
        fs::remove_file(&path).unwrap();
    }
    if is_new {
        fs::remove_dir(folder).unwrap();
    }
}

/// As user and group `nobody`, which Debian calls `nogroup`.
fn as_nobody(socket: &Path) -> Output {
    Command::new("setpriv")
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--"])
        .args([env!("CARGO_BIN_EXE_postpone"), "ctl", "status", "--socket"])
        .arg(socket)
        .output()
        .expect("setpriv (util-linux)")
}

#[test]
fn others_are_turned_away() {
    as_root(); // who is not cannot be somebody else
    let folder = Folder::new("others");
    let socket = folder.path().join("control.sock");
    // By the file's mode,
    let daemon = Daemon::start(&control(&socket, ""));
    ends(&as_nobody(&socket), PERMISSION, "you may not use");
    drop(daemon);
    // and by who they are, where the mode lets them in.
    let daemon = Daemon::start(&control(&socket, "socket_mode = \"0666\"\n"));
    ends(&as_nobody(&socket), PERMISSION, "may not use the control socket: only root");
    let line = daemon.line("a line about it", |line| line.contains("access denied"));
    assert!(line.contains("WARN") && line.contains("uid=65534"), "{line}");
    drop(daemon);
    // The socket's group may ask, and its owner.
    for more in ["socket_group = \"nogroup\"\n", "socket_owner = \"nobody\"\n"] {
        let daemon = Daemon::start(&control(&socket, more));
        ends(&as_nobody(&socket), 0, "");
        drop(daemon);
    }
}

/// One line is written, and one is read.
fn ask(stream: &mut UnixStream, line: &[u8]) -> String {
    stream.write_all(line).unwrap();
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn garbage_is_answered_and_the_connection_goes_on() {
    let daemon = Daemon::start("");
    let mut stream = UnixStream::connect(&daemon.control).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for garbage in [&b"\n"[..], b"\xff\xfe\0\n", b"{\"request\":\"explode\"}\n", b"[[[[[[\n"] {
        let answer = ask(&mut stream, garbage);
        assert!(answer.starts_with(r#"{"error":{"kind":"request","#), "{answer}");
        assert!(answer.contains("requests are status, reload, maintenance-on"), "{answer}");
    }
    // Torn at every byte, and several at once.
    for byte in br#"{"request":"status"}"# {
        stream.write_all(&[*byte]).unwrap();
    }
    assert!(ask(&mut stream, b"\n").starts_with(r#"{"status":{"version":"#));
    stream.write_all(b"{\"request\":\"status\"}\n{\"request\":\"status\"}\n").unwrap();
    for _ in 0..2 {
        assert!(ask(&mut stream, b"").starts_with(r#"{"status":"#));
    }
    // What is told of a line has a bound as the line has, however much of it must be escaped.
    let odd = "\u{7f}".repeat(4_000);
    let answer =
        ask(&mut stream, format!("{{\"request\":\"shadow\",\"rule\":\"{odd}\"}}\n").as_bytes());
    assert!(answer.contains("there is no rule") && answer.len() < 33 << 10, "{}", answer.len());
    // A line without an end is the last.
    let answer = ask(&mut stream, &vec![b'x'; 4 << 10]);
    assert!(answer.contains("expected a line of less than 4096 bytes"), "{answer}");
    assert_eq!(stream.read(&mut [0]).unwrap_or_default(), 0);
    assert_eq!(status(&daemon)["failures"]["panic"], 0);
}

#[test]
fn a_crowd_that_says_nothing_harms_nobody() {
    const CROWD: usize = 1_000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    // Descriptors are not for them.
    let mut daemon = Daemon::run_by(&["prlimit", "--nofile=160:160"], &[], "");
    let mut crowd = Vec::new();
    for number in 0..CROWD {
        let mut stream = UnixStream::connect(&daemon.control).unwrap();
        // Half of them stall within a line; those that were cut off may notice.
        if number % 2 == 0 {
            let _ = stream.write_all(b"{\"request\":");
        }
        crowd.push(stream);
    }
    // One that asks without end, and does not listen.
    let mut flood = UnixStream::connect(&daemon.control).unwrap();
    let flood = thread::spawn(move || {
        while flood.write_all(&b"{\"request\":\"status\"}\n".repeat(1_000)).is_ok() {}
    });
    for _ in 0..20 {
        assert_eq!(status(&daemon)["sessions_open"], 0);
        assert!(daemon.get("/health").ends_with("serving\n"));
    }
    is_open(&daemon.endpoint);
    assert_eq!(daemon.metric("postpone_failures_total", &[("kind", "accept")]), 0.0);
    daemon.signal(Signal::HUP);
    daemon.line("the reload", |line| line.contains("reloaded"));
    // Those that are too many have been closed, the oldest first.
    for stream in &mut crowd[..CROWD - 64] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or_default(), 0);
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    flood.join().unwrap();
}

/// Where no daemon serves, anybody may who can make a socket there.
#[test]
fn whoever_answers_at_the_socket_cannot_write_to_the_terminal() {
    let folder = Folder::new("impostor");
    let path = folder.path().join("control.sock");
    let theirs = UnixListener::bind(&path).unwrap();
    let message = "no\u{1b}]0;mine\u{7} such\u{202e} client".to_owned();
    let answer = Answer::Error(Trouble { kind: Kind::Value, message });
    let served = thread::spawn(move || {
        let (mut stream, _) = theirs.accept().unwrap();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        writeln!(stream, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
    });
    let said = postpone(&["ctl", "--socket", path.to_str().unwrap(), "status"]);
    served.join().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("such") && !said.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{said:?}");
}
