//! `conf/postpone.toml` is the reference: it names every key there is, and what it says holds.
//!
//! Its lines are prose (`# ...`), settings at their defaults (`#key = value`), and what is not set by
//! default (`##key = value`): examples, and keys that may be missing, with what then holds.

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
use postpone::setting::{Mode, OrNone, Severity};
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use toml::{Table, Value};
use xxhash_rust::xxh3::xxh3_64;

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
    let defaults: Table = Settings::default().print().parse().unwrap();
    assert_eq!(reference(1).parse::<Table>().unwrap(), defaults);
}

#[test]
fn every_key_that_exists_is_named() {
    let named: Table = reference(2).parse().unwrap();
    assert_eq!(keys(&named), known_keys("nonsense = 1"));
    for (section, value) in &named {
        every_key_in(&["", section], &[value]);
    }
    // One of them is shown with all it can have.
    let greylist = known_keys("[greylist.when]\nnonsense = 1");
    assert_eq!(greylist, known_keys("[[limit]]\n[limit.when]\nnonsense = 1"));
}

/// Whether the tables that stand at this place of the text have all keys that can, and those in
/// them. The place is what to write before the header of its section, and its path.
fn every_key_in([before, path]: &[&str; 2], values: &[&Value]) {
    let is_list = values.iter().any(|value| value.is_array());
    let entries = values.iter().flat_map(|value| match value {
        Value::Array(entries) => entries.iter().collect(),
        value => vec![*value],
    });
    let tables: Vec<&Table> = entries.filter_map(Value::as_table).collect();
    if tables.is_empty() || *path == "greylist.when" {
        return;
    }
    let named: BTreeSet<_> = tables.iter().flat_map(|table| keys(table)).collect();
    let header = if is_list { format!("[[{path}]]") } else { format!("[{path}]") };
    let text = format!("{before}{header}\nnonsense = 1");
    assert_eq!(named, known_keys(&text), "{header}");
    // A section within the entry of a list needs that entry.
    let before = if is_list { format!("{before}{header}\n") } else { before.to_string() };
    for key in named {
        let within: Vec<_> = tables.iter().filter_map(|table| table.get(&key)).collect();
        every_key_in(&[&before, &format!("{path}.{key}")], &within);
    }
}

fn keys(table: &Table) -> BTreeSet<String> {
    table.keys().cloned().collect()
}

/// The keys that are expected in place of `nonsense`, as the error at it says.
fn known_keys(text: &str) -> BTreeSet<String> {
    expected_for_nonsense(text).into_iter().collect()
}

fn expected_for_nonsense(text: &str) -> Vec<String> {
    let Err(Unusable(report)) = Settings::parse("probe", text) else {
        panic!("nonsense was taken: {text}")
    };
    let mut errors = report.lines(Severity::Error);
    let error = errors.find(|line| line.contains("nonsense"));
    let error = error.unwrap_or_else(|| panic!("{text}: {report}"));
    let (_, expected) = error.split_once("expected ").unwrap();
    let (expected, _) = expected.split_once("; not ").unwrap_or((expected, ""));
    let words = expected.trim_start_matches("one of ").split([',', ' ', '`']);
    words.filter(|word| !matches!(*word, "" | "or")).map(Into::into).collect()
}

/// Where a value is one of some words, each stands in the text as it has to be written.
#[test]
fn every_word_that_can_be_written_is_explained() {
    let text = reference(0);
    for (section, key) in [
        ("[[limit]]", "count = \"nonsense\""),
        ("[[limit]]", "per = [\"nonsense\"]"),
        ("[[limit]]", "charge = \"nonsense\""),
        ("[[limit]]", "mode = \"nonsense\""),
        ("[[limit]]", "when = { standing = [\"nonsense\"] }"),
        ("[[limit]]", "when = { name = [\"nonsense\"] }"),
        ("[[listen]]", "speak = \"nonsense\""),
        ("[greylist]", "mode = \"nonsense\""),
        ("[greylist]", "per = [\"nonsense\"]"),
        ("[behaviour]", "mode = \"nonsense\""),
        ("[load]", "mode = \"nonsense\""),
        ("[load.sessions]", "from = \"nonsense\""),
        ("[[load.probe]]", "level = \"nonsense\""),
        ("[log]", "format = \"nonsense\""),
        ("[log]", "level = \"nonsense\""),
    ] {
        let words = expected_for_nonsense(&format!("{section}\n{key}"));
        assert!(words.len() > 1, "{section} {key}: {words:?}");
        for word in words {
            // Levels are a table without quotes.
            let shown = [format!("\"{word}\""), format!("  {word}  ")];
            let is_shown = shown.iter().any(|shown| text.contains(shown));
            assert!(is_shown, "{section} {key}: nothing about {word:?}");
        }
    }
}

#[test]
fn the_examples_can_be_used_and_keys_that_may_be_missing_say_what_then_holds() {
    let Settings { limit: limits, access, .. } = read(&reference(2));
    assert!(limits.iter().all(|limit| limit.reply.is_some()), "a reply is not shown");
    assert!(limits.iter().any(|limit| limit.retry.is_some()), "retry is not shown");
    for count in Count::ALL {
        assert!(limits.iter().any(|limit| limit.count == count), "{count:?} is not shown");
    }
    for written in limits {
        let missing = Params { reply: None, retry: None, ..written.clone() };
        assert_eq!(refusal(&written), refusal(&missing), "{written:?}");
    }
    let require = |keys: &str| {
        let domain = "[[access.require]]\nrecipient_domain = \"bank.example\"\n";
        read(&[domain, keys].concat()).access.require
    };
    let clients = "clients = [\"203.0.113.0/24\", \".partner.example\"]\n";
    assert_eq!(access.require, require(&[clients, "tls = true"].concat()));
    assert_eq!(require(clients), require(&[clients, "tls = false"].concat()));
    assert_eq!(require("tls = true"), require("tls = true\nclients = []"));
}

/// They cannot be set, so the reference is the only place that says them.
#[test]
fn the_words_of_a_requirement_are_those_that_are_said() {
    let text = reference(0);
    for lacking in ["tls = true", "clients = [\"203.0.113.0/24\"]"] {
        let require = "limit = []\n[[access.require]]\nrecipient_domain = \"example.org\"\n";
        let mut settings = read(&[require, lacking].concat());
        let hostname = "hostname.example.org";
        settings.server.hostname = OrNone::Some(hostname.into());
        let said = refused(&settings).reply.to_string();
        let (said, _) = said.split_once("; retry in ").unwrap();
        let said =
            said.replace(hostname, "{hostname}").replace("example.org", "{recipient_domain}");
        assert!(text.contains(&format!("#   {said}; retry in ")), "nothing about {said}");
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
    refused(&Settings { limit: vec![tight], ..Settings::default() })
}

/// What a client is told in one of two sessions; where different values count, it has others in
/// the second.
fn refused(settings: &Settings) -> Refused {
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let policy = settings.policy(&memory).unwrap();
    let clock = ManualClock::at(Time::from_secs(1_800_000_000));
    let engine = Engine::new(Box::new(clock), memory, policy);
    let mailbox = |name: &str| Address::new(name.as_bytes());
    let client = Client::new("192.0.2.7".parse().unwrap());
    let counts = |count| settings.limit.iter().any(|limit| limit.count == count);
    let mut sessions = [(); 2].map(|()| engine.session(client.clone(), settings.listen[0].door()));
    let mut answers = (1..).zip(&mut sessions).flat_map(|(visit, session)| {
        let name = |count| if counts(count) { format!("x{visit}") } else { "x".into() };
        let helo = format!("{}.example.net", name(Count::DistinctHelos));
        let sender = format!("{}@example.net", name(Count::DistinctSenders));
        let recipient = format!("{}@example.org", name(Count::DistinctRecipients));
        let events = [
            Event::Connect,
            Event::Helo { name: ClientText::new(helo.as_bytes()) },
            Event::Mail { sender: mailbox(&sender), size: Some(1024), user: None, tls: false },
            Event::Recipient { address: mailbox("nobody@example.org"), fate: Fate::Unknown },
            Event::Recipient { address: mailbox(&recipient), fate: Fate::Offered },
        ];
        events.map(|event| session.on(event))
    });
    let refused = answers.find_map(|answer| match answer {
        Answer::Pass => None,
        Answer::Refuse(refused) => Some(refused),
    });
    refused.expect("it is refused")
}

/// What the packages install as settings: a few lines that no version changes, or an unattended upgrade
/// would stop at the question whose file to keep.
#[test]
fn the_installed_file_is_short_sets_nothing_and_stays_as_it_is() {
    let text = include_str!("../conf/installed.toml");
    let (lines, sum) = (text.lines().count(), xxh3_64(text.as_bytes()));
    assert!((15..=25).contains(&lines), "{lines} lines");
    assert_eq!(read(text), Settings::default(), "it sets nothing");
    assert_eq!(sum, FIRST, "it was changed, and must not be");
    // What it shows can be used.
    let shown = text.lines().skip_while(|line| !line.starts_with("# [access]"));
    let shown: Vec<&str> = shown.map(|line| line.trim_start_matches('#')).collect();
    let shown = read(&shown.join("\n"));
    assert_eq!((shown.access.allow.len(), shown.limit.len()), (3, 1));
}

/// The checksum of the file as the first version had it.
const FIRST: u64 = 11_241_885_979_906_709_377;
