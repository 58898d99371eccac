//! What is shown to be typed: `sh` runs here, beside a daemon that has something to tell. `sh host`
//! would change the host: of it, and of commands within sentences, the words are looked at.

use std::process::{Command, Output};

use clap::Parser;
use clap::error::ErrorKind;
use postpone::tool::command::Cli;
use postpone::tool::manual::EXAMPLES;

use super::support::daemon::{Daemon, field};
use super::support::milter::*;
use super::support::{Folder, wait_until};
use super::{checkout, code, pages_in};

/// As in the first hour: nothing is refused, and there is something to see.
const POLICY: &str = r#"
[access]
allow = []
[[limit]]
name = "messages"
count = "messages"
quota = "1/1h"
mode = "shadow"
[[limit]]
name = "recipients"
count = "recipients"
quota = "1000/1h"
"#;

const CLIENT: &str = "192.0.2.7";

/// A client that has sent too much, to recipients that it guesses.
fn story() -> Daemon {
    let daemon = Daemon::start(POLICY);
    let mut mta = Mta::with_client(&daemon.endpoint, CLIENT);
    mta.ask(&helo("[192.0.2.7]"));
    for _ in 0..2 {
        mta.ask(&mail("anna@example.net"));
        mta.ask(&rcpt("bob@example.org"));
        mta.ask(&end_of_message());
    }
    for number in 0..60 {
        mta.ask(&mail(&format!("anna{number}@example.net")));
        mta.tell(&macros(b'R', &["{rcpt_mailer}", "error", "{rcpt_host}", "5.1.1"]));
        mta.ask(&rcpt(&format!("nobody{number}@example.org")));
        mta.tell(&abort());
    }
    wait_until("behaviour to be told", || {
        daemon.lines().iter().any(|line| line.contains("reason=behaviour")).then_some(())
    });
    daemon
}

/// Runs a block as it stands; where a host has its own log, port and ids, the daemon's are put.
fn run(daemon: &Daemon, block: &str) -> Output {
    let folder = Folder::new("docs");
    let program = env!("CARGO_BIN_EXE_postpone");
    let config = daemon.config.display();
    std::fs::create_dir(folder.path().join("bin")).unwrap();
    let log = folder.write("log", &(daemon.lines().join("\n") + "\n"));
    for (name, script) in [
        ("postpone", format!("exec '{program}' --config '{config}' \"$@\"")),
        ("journalctl", format!("cat '{}'", log.display())),
    ] {
        let path = folder.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        assert!(Command::new("chmod").arg("+x").arg(path).status().unwrap().success());
    }
    let settings = std::fs::read_to_string(&daemon.config).unwrap();
    let http = settings.split("http = \"").nth(1).unwrap().split('"').next().unwrap();
    let told = daemon.decision(&[("reason", "rate")]);
    let id = field(&told, "id").unwrap();
    let block = block.replace("127.0.0.1:7423", http).replace("6h010sefg00", id);
    Command::new("bash")
        .args([
            "-euo",
            "pipefail",
            "-c",
            &format!("PATH={}/bin:$PATH\n{block}", folder.path().display()),
        ])
        .current_dir(folder.path())
        .output()
        .unwrap()
}

#[test]
fn the_answer_of_replay_is_as_it_is_shown() {
    let text = super::page("replay.md");
    let shown = |wanted: &str| code(&text).into_iter().find(|(info, _)| info == wanted).unwrap().1;
    let said = run(&story(), &shown("sh")).stdout;
    assert_eq!(String::from_utf8(said).unwrap(), shown("json"));
}

/// A client of a limit of 60 messages a minute sends one more.
fn refused() -> (Daemon, String) {
    let daemon = Daemon::start(
        "[[limit]]\nname = \"messages\"\ncount = \"messages\"\nquota = \"60/1m\"\n\
         [behaviour]\nlearn_for = \"0s\"\n",
    );
    let mut mta = Mta::dial(&daemon.endpoint);
    mta.ask(&negotiate());
    mta.ask(&connect_as("out.example.net", b'4', "192.0.2.7"));
    mta.ask(&helo("out.example.net"));
    let told = (0..100).find_map(|_| {
        let answer = mta.ask(&mail("anna@example.net"));
        if answer != "continue" {
            return Some(answer);
        }
        mta.ask(&rcpt("bob@example.org"));
        mta.ask(&end_of_message());
        None
    });
    (daemon, told.unwrap())
}

/// Without what differs from one run to the next: the time, ids, and waits.
fn usual(text: &str, daemon: &Daemon) -> Vec<String> {
    let id = daemon.lines().iter().find_map(|line| field(line, "id").map(ToOwned::to_owned));
    let text = text.replace(super::support::daemon::HOSTNAME, "mx1.example.org");
    let text = text.replace(&id.unwrap(), "6h010sefg00");
    let words = text.split_whitespace().map(|word| {
        let bare = word.trim_end_matches([',', ';']);
        let is_told = bare.contains('T') && bare.ends_with('Z') || word.starts_with("wait_ms=");
        let is_number = bare.parse::<f64>().is_ok();
        if is_told || is_number { "N".to_owned() } else { word.to_owned() }
    });
    words.collect()
}

#[test]
fn the_refusal_of_the_readme_is_as_it_is() {
    let (daemon, told) = refused();
    let line = daemon.decision(&[("reason", "rate")]);
    let explained = run(&daemon, "postpone explain 192.0.2.7").stdout;
    let explained = String::from_utf8(explained).unwrap();
    let readme = std::fs::read_to_string(checkout().join("README.md")).unwrap();
    let shown: Vec<_> = code(&readme).into_iter().filter(|(info, _)| info == "text").collect();
    let shown: Vec<_> = shown.iter().map(|(_, text)| usual(text, &daemon)).collect();
    assert_eq!(shown, [told, line, explained].map(|text| usual(&text, &daemon)));
}

#[test]
fn what_can_be_typed_anywhere_works() {
    let mut ran = 0;
    for (path, text) in pages_in(checkout()) {
        for (_, block) in code(&text).into_iter().filter(|(info, _)| info == "sh") {
            let output = run(&story(), &block);
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(output.status.success(), "{}:\n{block}\n{said}", path.display());
            assert!(!said.is_empty(), "{}: nothing is said\n{block}", path.display());
            ran += 1;
        }
    }
    assert!(ran > 5, "{ran}");
}

#[test]
fn what_changes_a_host_is_a_script() {
    for (path, text) in pages_in(checkout()) {
        for (_, block) in code(&text).into_iter().filter(|(info, _)| info.starts_with("sh")) {
            let checked = Command::new("bash").args(["-n", "-c", &block]).output().unwrap();
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{}: {said}\n{block}", path.display());
        }
    }
}

/// Words of a command that stand for others.
const STAND_FOR: [(&str, &str); 6] = [
    ("ADDRESS", CLIENT),
    ("CLIENT", CLIENT),
    ("ID", "6h010sefg00"),
    ("RULE", "messages"),
    ("DIR", "/etc/postfix"),
    ("FILE", "/etc/postpone/postpone.toml"),
];

/// Whether the program takes this, or has more to ask.
#[track_caller]
fn is_a_command(place: &str, line: &str) {
    let line = line.split(" #").next().unwrap().split(" | ").next().unwrap();
    let line = line.replace("...", "");
    let words = line.split_whitespace().map(|word| {
        STAND_FOR.into_iter().find(|(name, _)| *name == word).map_or(word, |(_, value)| value)
    });
    if let Err(error) = Cli::try_parse_from(words) {
        let asks = matches!(
            error.kind(),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                | ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::MissingSubcommand
                | ErrorKind::MissingRequiredArgument
        );
        let is_part = line.split_whitespace().count() <= 2;
        assert!(asks || is_part, "{place}: {line}\n{error}");
    }
}

#[test]
fn every_command_that_is_named_is_one() {
    let mut found = 0;
    for (path, text) in pages_in(checkout()) {
        let place = path.display().to_string();
        for (_, block) in code(&text).into_iter().filter(|(info, _)| info.starts_with("sh")) {
            let lines = block.lines().flat_map(|line| line.split(" | "));
            for line in lines.filter(|line| line.starts_with("postpone ")) {
                is_a_command(&place, line);
                found += 1;
            }
        }
        for line in text.split('`').skip(1).step_by(2).filter(|it| it.starts_with("postpone ")) {
            is_a_command(&place, &line.replace('\n', " "));
            found += 1;
        }
    }
    for example in EXAMPLES.iter().filter(|it| it.name.starts_with("postpone ")) {
        is_a_command("--help", example.name);
    }
    assert!(found > 40, "{found}");
}
