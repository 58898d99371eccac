//! `conf/postpone.toml` is the reference: it names every key there is, and what it says holds.
//!
//! Its lines are prose (`# ...`), settings at their defaults (`#key = value`), and what is not set by
//! default (`##key = value`): examples, and keys that may be missing, with what then holds. What the
//! README shows of settings can be used, too.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::Path;

use postpone::clock::{ManualClock, Time};
use postpone::config::{Settings, Unusable};
use postpone::engine::{Answer, Engine, Refused};
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::policy::limit::Params;
use postpone::policy::limit::params::Count;
use postpone::setting::Mode;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use toml::{Table, Value};

/// The reference with the settings of up to so many marks in force: at 0 as it is installed, at 1
/// every default, at 2 the examples too.
fn reference(marks: usize) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/postpone.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| {
        let bare = line.trim_start_matches('#');
        let in_force = !bare.starts_with(' ') && line.len() - bare.len() <= marks;
        if in_force { bare } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Reads settings in which nothing may be wrong, not even a little.
fn read(text: &str) -> Settings {
    match Settings::parse("conf/postpone.toml", text) {
        Ok(checked) if checked.report.is_empty() => checked.settings,
        Ok(checked) => panic!("{}", checked.report),
        Err(Unusable(report)) => panic!("{report}"),
    }
}

#[test]
fn as_installed_and_with_every_default_uncommented_it_is_the_defaults() {
    assert_eq!(read(&reference(0)), Settings::default());
    assert_eq!(read(&reference(1)), Settings::default());
}

#[test]
fn every_default_is_written_out() {
    let mut defaults: Table = Settings::default().print().parse().unwrap();
    // The one default that differs from host to host: an example stands in its place.
    defaults["server"].as_table_mut().unwrap().remove("hostname").unwrap();
    assert_eq!(reference(1).parse::<Table>().unwrap(), defaults);
}

#[test]
fn every_key_that_exists_is_named() {
    let named: Table = reference(2).parse().unwrap();
    assert_eq!(keys(&named), known_keys("nonsense = 1"));
    for (section, value) in &named {
        let (header, named) = match value {
            Value::Array(entries) => {
                let entries = entries.iter().map(|entry| keys(entry.as_table().unwrap()));
                (format!("[[{section}]]"), entries.flatten().collect())
            }
            value => (format!("[{section}]"), keys(value.as_table().unwrap())),
        };
        assert_eq!(named, known_keys(&format!("{header}\nnonsense = 1")), "{header}");
    }
}

fn keys(table: &Table) -> BTreeSet<String> {
    table.keys().cloned().collect()
}

/// The keys that are expected in place of `nonsense`, as the error at it says.
fn known_keys(text: &str) -> BTreeSet<String> {
    let Err(Unusable(report)) = Settings::parse("probe", text) else {
        panic!("nonsense was taken: {text}")
    };
    let error = report
        .lines(postpone::setting::Severity::Error)
        .find(|line| line.contains("`nonsense`"))
        .unwrap();
    let (_, expected) = error.split_once("expected ").unwrap();
    let words = expected.trim_start_matches("one of ").split([',', ' ', '`']);
    words.filter(|word| !matches!(*word, "" | "or")).map(Into::into).collect()
}

#[test]
fn the_examples_can_be_used_and_keys_that_may_be_missing_say_what_then_holds() {
    let limits = read(&reference(2)).limit;
    assert!(limits.iter().all(|limit| limit.reply.is_some()), "a reply is not shown");
    assert!(limits.iter().any(|limit| limit.retry.is_some()), "retry is not shown");
    for written in limits {
        let missing = Params { reply: None, retry: None, ..written.clone() };
        assert_eq!(refusal(&written), refusal(&missing), "{written:?}");
    }
}

#[test]
fn the_settings_in_the_readme_can_be_used() {
    let examples: Vec<_> = include_str!("../README.md").split("```toml").skip(1).collect();
    assert!(!examples.is_empty());
    for example in examples {
        read(example.split("```").next().unwrap());
    }
}

/// What a client is told in its second session when the first has used up the limit.
fn refusal(limit: &Params) -> Refused {
    let quota = if limit.count == Count::Bytes { "1KiB/1h" } else { "1/1h" };
    let tight = Params {
        max: limit.max.and(NonZeroU32::new(1)),
        quota: limit.quota.map(|_| quota.parse().unwrap()),
        mode: Mode::Enforce,
        ..limit.clone()
    };
    let settings = Settings { limit: vec![tight], ..Settings::default() };
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).unwrap();
    let clock = ManualClock::at(Time::from_secs(1_800_000_000));
    let engine = Engine::new(Box::new(clock), memory, policy);
    let mailbox = |name: &str| Address::new(name.as_bytes());
    let client = Client::new("192.0.2.7".parse().unwrap());
    let mut sessions = [(); 2].map(|()| engine.session(client.clone(), settings.listen[0].door()));
    let mut answers = sessions.iter_mut().flat_map(|session| {
        let events = [
            Event::Connect,
            Event::Helo { name: ClientText::new(b"client.example.net") },
            Event::Mail {
                sender: mailbox("anna@example.net"),
                size: Some(1024),
                user: None,
                tls: false,
            },
            Event::Recipient { address: mailbox("bob@example.org"), fate: Fate::Offered },
        ];
        events.map(|event| session.on(event))
    });
    let refused = answers.find_map(|answer| match answer {
        Answer::Pass => None,
        Answer::Refuse(refused) => Some(refused),
    });
    refused.expect("the limit refuses")
}
