//! `postpone log`: the decisions of the real daemon's log, one short line each, from a file in each
//! format, from standard input and from the journal; and that a reader who has seen enough hears of
//! no trouble.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::thread;

use support::Folder;
use support::daemon::{Daemon, postpone};
use support::milter::*;

/// sysexits.h.
const UNAVAILABLE: i32 = 69;
const UNWRITTEN: i32 = 74;

const POLICY: &str = "[access]\nallow = []\ndeny = [\"198.51.100.0/24\"]\n\
     [[limit]]\nname = \"trial\"\ncount = \"connections\"\nquota = \"1/1h\"\nmode = \"shadow\"\n";

/// The lines of a daemon that has refused one client twice, and another in shadow.
fn lines(format: &str) -> Vec<String> {
    let daemon = Daemon::start(&format!("{POLICY}[log]\nformat = \"{format}\"\n"));
    for client in ["198.51.100.7", "192.0.2.7", "192.0.2.7"] {
        let mut mta = Mta::with_client(&daemon.endpoint, client);
        mta.ask(&helo("x client=203.0.113.1 action=close"));
        mta.ask(&mail("anna@example.net"));
    }
    daemon.line("the shadow", |line| line.contains("trial"));
    daemon.lines()
}

fn said(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn every_decision_is_one_short_line_whatever_the_format() {
    for format in ["text", "json", "journald"] {
        let lines = lines(format);
        let folder = Folder::new("log");
        let file = folder.write("postpone.log", &(lines.join("\n") + "\n"));
        let told = said(&postpone(&["log", file.to_str().unwrap()]));
        let told: Vec<_> = told.lines().collect();
        assert_eq!(told.len(), 3, "one is repeated at MAIL: {told:#?}\n{lines:#?}");
        assert!(told.iter().all(|line| line.chars().count() <= 80), "{told:#?}");
        assert!(told[0].contains("close   198.51.100.7 access 15m "), "{told:#?}");
        assert!(told[2].contains("(close) 192.0.2.7 trial 1h "), "{told:#?}");
        assert!(told.iter().all(|line| !line.contains("203.0.113.1")), "{told:#?}");
        let id = told[0].rsplit(' ').next().unwrap();
        assert!(lines.iter().any(|line| line.contains(id)), "{id} is no id of {lines:#?}");
    }
}

#[test]
fn lines_before_the_moment_that_is_asked_for_are_left_out() {
    let line =
        |time: &str| format!("{time}  INFO client=192.0.2.7 action=close reason=rate id={time}");
    let text = ["2026-11-21T22:07:20Z", "2026-11-21T23:07:20Z"].map(line).join("\n");
    let folder = Folder::new("log");
    let file = folder.write("postpone.log", &text);
    let since = |since: &str| said(&postpone(&["log", file.to_str().unwrap(), "--since", since]));
    assert_eq!(since("2026-11-21T22:07:20Z").lines().count(), 2);
    assert_eq!(since("2026-11-21T23:00:00Z").lines().count(), 1);
    assert_eq!(since("36500d").lines().count(), 2);
}

/// A journalctl that writes down how it was called, and has one line.
fn journal(folder: &Folder) -> Command {
    let script = "#!/bin/sh\necho \"$@\" >\"$0.called\"\n\
         echo '2026-11-28T04:12:40+0000 mx1 postpone[1]: client=192.0.2.7 action=close reason=rate id=1'\n";
    let program = folder.write("journalctl", script);
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postpone"));
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    command.arg("log").env("PATH", path);
    command
}

#[test]
fn without_a_file_it_is_the_journal() {
    let folder = Folder::new("log");
    let output = journal(&folder).args(["-f", "--since", "2026-11-21T22:07:20Z"]).output().unwrap();
    assert_eq!(said(&output), "11-28 04:12:40 close   192.0.2.7 rate 1\n");
    let called = fs::read_to_string(folder.path().join("journalctl.called")).unwrap();
    for word in ["--unit=postpone ", " --follow --no-tail", " --since=@1795298840"] {
        assert!(called.contains(word), "{called}");
    }
    said(&journal(&folder).arg("-f").output().unwrap());
    let called = fs::read_to_string(folder.path().join("journalctl.called")).unwrap();
    assert!(called.contains(" --follow --lines=1000") && !called.contains("since"), "{called}");
    let empty = Folder::new("log");
    let none = journal(&empty).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(none.status.code(), Some(UNAVAILABLE));
    assert!(none.stderr.starts_with(b"error: journalctl: "), "{none:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_one_error_in_the_style_of_all() {
    for (file, why) in [("/nowhere", "No such file or directory"), ("/tmp", "Is a directory")] {
        let output = postpone(&["log", file]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(told.starts_with(&format!("error: {file}: {why}")), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

/// What answers in place of the daemon gives a byte now and then, or never ends: neither keeps `ctl`.
#[test]
fn an_answer_that_never_ends_is_given_up() {
    let folder = Folder::new("log");
    let socket = folder.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let flood = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
    });
    let asked = postpone(&["ctl", "status", "--socket", socket.to_str().unwrap()]);
    assert_eq!(asked.status.code(), Some(UNAVAILABLE));
    assert!(String::from_utf8_lossy(&asked.stderr).contains("its answer has no end"), "{asked:?}");
    flood.join().unwrap();
}

/// What `| head` does, when it has seen enough.
#[test]
fn a_reader_that_goes_away_hears_of_no_trouble_and_every_tool_ends_alike() {
    let daemon = Daemon::start("");
    let folder = Folder::new("log");
    let line = "client=192.0.2.7 action=close reason=rate id=1\n";
    let log = folder.write("log", &line.repeat(10_000));
    let [log, socket] = [log.to_str().unwrap(), daemon.control.to_str().unwrap()];
    let config = daemon.config.to_str().unwrap();
    for command in [
        &["log", log][..],
        &["ctl", "status", "--socket", socket],
        &["explain", "192.0.2.7", "--socket", socket],
        &["check", "--print", "--config", config],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut tool = Command::new(env!("CARGO_BIN_EXE_postpone"));
        let gone = tool.args(command).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let told = String::from_utf8_lossy(&gone.stderr);
        assert!(!told.contains("pipe") && !told.contains("error"), "{command:?}: {told}");
        assert_eq!(gone.status.code(), Some(UNWRITTEN), "{command:?}");

        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = Command::new(env!("CARGO_BIN_EXE_postpone"))
            .args(command)
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&full.stderr);
        assert!(
            told.contains("error: cannot write the output: No space left"),
            "{command:?}: {told}"
        );
        assert_eq!(full.status.code(), Some(UNWRITTEN), "{command:?}");
    }
}
