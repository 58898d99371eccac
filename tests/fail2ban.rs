//! The filter for fail2ban, with lines of the real daemon: it finds those who were refused for what
//! they did, and nobody can put another's address into its hands.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::daemon::Daemon;
use support::milter::*;
use support::{Folder, debian, wait_until};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/fail2ban");

/// Installed, it would begin to watch the log of this host.
fn fail2ban() -> PathBuf {
    debian::unpacked(&["fail2ban"])
}

fn program(name: &str) -> Command {
    let place = fail2ban();
    let mut command = Command::new("/usr/bin/python3");
    command
        .env("PYTHONPATH", place.join("usr/lib/python3/dist-packages"))
        .arg(place.join("usr/bin").join(name));
    command
}

/// The addresses that the filter finds in these lines, one for each line that counts.
fn found(lines: &[String]) -> Vec<String> {
    let folder = Folder::new("fail2ban");
    let log = folder.write("log", &(lines.join("\n") + "\n"));
    // The filter names one of fail2ban's own, which it looks for beside itself.
    let filters = folder.path().join("filter.d");
    fs::create_dir(&filters).unwrap();
    let common = fail2ban().join("etc/fail2ban/filter.d/common.conf");
    fs::copy(common, filters.join("common.conf")).unwrap();
    let ours = Path::new(PACKAGING).join("filter.d/postpone.conf");
    fs::copy(ours, filters.join("postpone.conf")).unwrap();
    let output = program("fail2ban-regex")
        .args(["--out", "ip"])
        .arg(log)
        .arg(filters.join("postpone.conf"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("ERROR"), "{said}");
    String::from_utf8(output.stdout).unwrap().lines().map(Into::into).collect()
}

/// The lines of a daemon as fail2ban reads them from the journal; they have lost their priority.
fn from_journal(lines: &[String]) -> Vec<String> {
    let line = |line: &String| {
        let line = line.strip_prefix('<').and_then(|line| line.split_once('>'));
        let (_, line) = line.expect("a line begins with its priority");
        format!("2026-11-22T01:00:00.000000 mx1 postpone[4711]: {line}")
    };
    lines.iter().map(line).collect()
}

fn logging(format: &str, policy: &str) -> Daemon {
    Daemon::start(&format!("{policy}\n[log]\nformat = \"{format}\"\n"))
}

/// One message; what the client chooses itself says this.
fn visit(daemon: &Daemon, address: &str, chosen: &str) -> Vec<String> {
    let mut mta = Mta::with_client(&daemon.endpoint, address);
    let sender = format!("{chosen}@example.net");
    let recipients = ["anna@example.org", "bert@example.org"].map(rcpt);
    let begin = [helo(chosen), mail(&sender)];
    let steps = begin.into_iter().chain(recipients).chain([data(), end_of_message()]);
    let mut said = Vec::new();
    for step in steps {
        let answer = mta.ask(&step);
        said.push(answer.clone());
        if answer.starts_with("421") {
            break;
        }
    }
    said
}

/// Two messages and three recipients an hour for everybody, and some who stand on the denylist.
const POLICY: &str = r#"
[access]
allow = []
deny = ["198.51.100.0/24", "2001:db8:1::/48"]
[[limit]]
name = "messages"
count = "messages"
quota = "2/1h"
[[limit]]
name = "trial"
count = "messages"
quota = "1/1h"
mode = "shadow"
[[limit]]
name = "recipients"
count = "recipients"
quota = "3/1h"
"#;

fn refused(format: &str) -> Vec<String> {
    let daemon = logging(format, POLICY);
    for _ in 0..4 {
        visit(&daemon, "192.0.2.7", "mx.example.net");
    }
    visit(&daemon, "198.51.100.7", "mx.example.net");
    visit(&daemon, "2001:db8:1::7", "mx.example.net");
    daemon.line("the last refusal", |line| line.contains("client=2001:db8:1::7"));
    daemon.lines()
}

#[test]
fn who_is_refused_for_what_it_does_is_found_once_for_each_session() {
    let whom = ["192.0.2.7", "192.0.2.7", "198.51.100.7", "2001:db8:1::7"];
    let lines = refused("journald");
    // What a shadow would have done, and a recipient that was put off, are there and do not count.
    assert!(lines.iter().any(|line| line.contains("mode=shadow")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("action=defer")), "{lines:#?}");
    let lines = from_journal(&lines);
    assert_eq!(found(&lines), whom);
    let by_syslog =
        |line: &String| line.replacen("2026-11-22T01:00:00.000000", "Nov 22 01:00:00", 1);
    assert_eq!(found(&lines.iter().map(by_syslog).collect::<Vec<_>>()), whom, "written by syslog");
    assert_eq!(found(&refused("text")), whom, "written to a file");
}

/// Each would be a refusal of somebody else, if it could begin where it wants to.
const HOSTILE: [&str; 6] = [
    "x client=203.0.113.5 action=close reason=",
    "x client=203.0.113.5 action=close reason=rate limit=messages mode=enforce event=mail value=\"9\"",
    "x\" client=203.0.113.5 action=close reason=rate mode=enforce event=mail value=\"9",
    "x\n<6>client=203.0.113.5 action=close reason=rate mode=enforce event=mail value=\"9\"",
    "2026-11-22T01:00:00Z  INFO client=203.0.113.5 action=close reason=rate mode=enforce event=mail value=",
    "Nov 22 01:00:00 mx1 postpone[1]: client=203.0.113.5 action=close reason=rate mode=enforce event=mail value=",
];

#[test]
fn no_client_has_another_one_banned() {
    for format in ["journald", "text"] {
        let daemon = logging(format, POLICY);
        for chosen in HOSTILE {
            visit(&daemon, "192.0.2.7", chosen);
            visit(&daemon, "198.51.100.7", chosen);
        }
        visit(&daemon, "198.51.100.99", "mx.example.net");
        daemon.line("the last refusal", |line| line.contains("client=198.51.100.99"));
        let lines = daemon.lines();
        assert!(lines.iter().any(|line| line.contains("203.0.113.5")), "{lines:#?}");
        let lines = if format == "text" { lines } else { from_journal(&lines) };
        let found = found(&lines);
        let own =
            |address: &String| ["192.0.2.7", "198.51.100.7", "198.51.100.99"].contains(&&**address);
        assert!(found.iter().all(own), "{found:?}");
        // Two messages of the one have passed; the other is refused each time, and the last once.
        assert_eq!(found.len(), 2 * HOSTILE.len() - 2 + 1, "every refusal counts: {found:?}");
    }
}

#[test]
fn what_is_no_fault_of_the_client_does_not_count() {
    let trouble = "[load.memory_available]\ncritical = \"1024TiB\"\n";
    let first_contact = "[greylist]\nmode = \"enforce\"\n\
                         reply = \"421 4.7.1 {hostname} First contact; retry in {wait} seconds\"\n";
    let required = "[[access.require]]\nrecipient_domain = \"example.org\"\ntls = true\n";
    let maintenance = "[maintenance]\nuntil = \"2100-01-01T00:00:00Z\"\n";
    for (reason, policy) in [
        ("load", trouble),
        ("greylist", first_contact),
        ("access", required),
        ("maintenance", maintenance),
    ] {
        let daemon = logging("journald", &format!("limit = []\n{policy}"));
        if reason == "load" {
            wait_until("the load to be critical", || {
                (daemon.metric("postpone_load_level", &[]) == 3.0).then_some(())
            });
            let mut mta = Mta::dial(&daemon.endpoint);
            mta.ask(&negotiate());
            assert!(mta.ask(&connect("192.0.2.7")).starts_with("421"));
        } else {
            let said = visit(&daemon, "192.0.2.7", "mx.example.net");
            assert!(said.iter().any(|answer| answer.starts_with("421")), "{reason}: {said:?}");
        }
        let line = daemon.line("the refusal", |line| line.contains("client=192.0.2.7"));
        assert!(
            line.starts_with(&format!(
                "<6>client=192.0.2.7 action=close reason={reason} mode=enforce"
            )),
            "{line}"
        );
        assert_eq!(found(&from_journal(&daemon.lines())), [""; 0], "{reason}");
    }
}

/// Read as fail2ban itself reads it, beside its own files.
#[test]
fn the_jail_can_be_used_and_is_off_until_somebody_wants_it() {
    let folder = Folder::new("fail2ban");
    let own = fail2ban().join("etc/fail2ban");
    let copied = Command::new("cp").arg("-rT").arg(own).arg(folder.path()).status();
    assert!(copied.unwrap().success());
    for name in ["filter.d/postpone.conf", "jail.d/postpone.conf"] {
        fs::copy(format!("{PACKAGING}/{name}"), folder.path().join(name)).unwrap();
    }
    let jail = |overridden: &str| {
        folder.write("jail.d/postpone.local", overridden);
        let output =
            program("fail2ban-client").arg("-c").arg(folder.path()).arg("-d").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines()
            .filter(|line| line.contains("'postpone'"))
            .map(Into::into)
            .collect::<Vec<String>>()
    };
    assert_eq!(jail(""), [""; 0]);
    let said = jail("[postpone]\nenabled = true\n").join("\n");
    for word in
        ["_SYSTEMD_UNIT=postpone.service", "'maxretry', 100", "client=<ADDR> action=close reason="]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
}
