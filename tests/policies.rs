//! The ready policies in `conf/`: nothing is wrong with any of them, each situation that a client
//! can be in has its words in the one for a large MX, and no policy for an MX touches what large
//! senders allow themselves. That the words reach real clients, `tests/postfix_replies.rs` shows.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::{ManualClock, Time};
use postpone::config::{Settings, Unusable};
use postpone::engine::{Answer, Engine, Session};
use postpone::front::packaged::{FOR_POSTFIX, FOR_SENDMAIL};
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use postpone::setting::Mode;
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};
use support::postfix::with_programs;

/// What a client is told in each situation, and the rule of `large-mx.toml` that says it.
const SITUATIONS: [(&str, &str); 13] = [
    ("sessions", "421 4.7.0 {hostname} Too many concurrent connections from your network"),
    ("connections", "421 4.7.0 {hostname} Too many new connections from your network"),
    ("messages", "421 4.7.0 {hostname} Too many messages from your network"),
    ("sender", "421 4.7.0 {hostname} Too many messages from {sender}"),
    ("recipients", "452 4.5.3 {hostname} Too many recipients from your network"),
    ("volume", "421 4.7.0 {hostname} Unusual volume of mail from your address {client}"),
    ("domain", "451 4.7.1 {hostname} Excessive volume to {recipient_domain}, see {url}"),
    ("errors", "421 4.7.0 {hostname} Too many errors (unknown recipients) from your network"),
    (
        "errors-dynamic",
        "421 4.7.0 {hostname} Too many errors (unknown recipients) from your network",
    ),
    (
        "dynamic",
        "421 4.7.1 {hostname} Your address {client} looks dynamic, send through your provider or \
         see {url}",
    ),
    ("helo-names", "421 4.7.0 {hostname} Too many different HELO names from your network"),
    ("greylist", "451 4.7.1 {hostname} Greylisted, this is a first contact"),
    ("behaviour", "421 4.7.0 {hostname} Unusual sending pattern ({evidence})"),
];

/// Said by `[[access.require]]`, whose words are not set but stand beside it as a comment.
const REQUIREMENTS: [&str; 2] = [
    "#   TLS required for {recipient_domain}; retry in {wait} seconds\n",
    "#   Your network is not in the allowlist for {recipient_domain}; retry in {wait} seconds\n",
];

#[test]
fn check_has_nothing_to_say_about_any_ready_policy() {
    for file in policies() {
        let check = Command::new(env!("CARGO_BIN_EXE_postpone"))
            .args(["check", "--config"])
            .arg(&file)
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&check.stderr);
        // On the hosts they are for, the package's sockets are there. That for submission is yours.
        let of_this_host = [
            "warning: no [[listen]], so the milter is on inet:127.0.0.1:7421: ",
            "warning: inet:127.0.0.1:7424: while postpone is away, any local user can take this address",
        ];
        let expected = |line: &&str| !of_this_host.iter().any(|start| line.starts_with(start));
        let complaints: Vec<_> = complaints.lines().filter(expected).collect();
        assert_eq!((check.status.code(), complaints), (Some(0), vec![]), "{}", file.display());
    }
}

#[test]
fn each_situation_has_its_words_in_the_policy_for_a_large_mx() {
    let words = words(&settings(&conf("large-mx.toml")));
    assert_eq!(words.len(), SITUATIONS.len());
    for (rule, expected) in SITUATIONS {
        let said = words.iter().find(|(name, _)| name == rule);
        let (_, said) = said.unwrap_or_else(|| panic!("large-mx.toml has no {rule}"));
        assert_eq!(said.split_once("; retry in {wait} seconds"), Some((expected, "")), "{rule}");
    }
    let text = fs::read_to_string(conf("large-mx.toml")).unwrap();
    for expected in REQUIREMENTS {
        assert!(text.contains(expected), "large-mx.toml does not tell of {expected}");
    }
}

#[test]
fn the_only_number_in_a_reply_is_the_wait_in_seconds() {
    for file in policies() {
        for (rule, said) in words(&settings(&file)) {
            let place = format!("{} {rule}: {said}", file.display());
            let (code, text) = said.split_once(" {hostname} ").expect(&place);
            assert_eq!(text.matches("{wait} seconds").count(), 1, "{place}");
            assert!(!text.contains(|c: char| c.is_ascii_digit()), "{place}");
            assert!(code.starts_with('4'), "{place}");
        }
    }
}

#[test]
fn a_large_sender_at_the_pace_it_has_published_is_never_refused() {
    // With 60 messages in each, 100 sessions begin in a minute.
    let usual = Pace { sessions: 10, messages_each: 60 };
    // The most that a receiver has published for itself (Comcast).
    let most = Pace { sessions: 25, messages_each: 1_000 };
    for (file, messages, paces) in [
        // Longer than the largest burst lasts at this pace.
        ("large-mx.toml", 18_000, &[usual, most][..]),
        // Ten connections with 100 messages each: more has no sender for a small company at once.
        ("small-site.toml", 1_000, &[Pace { sessions: 10, messages_each: 100 }][..]),
    ] {
        for pace in paces {
            let refused = refused(settings(&conf(file)), messages, pace);
            assert_eq!(refused, [""; 0], "{file} {pace:?}");
        }
    }
}

#[test]
fn a_sender_beyond_that_pace_is_refused() {
    // Or the test above would prove nothing.
    let many_at_once = Pace { sessions: 60, messages_each: 100 };
    let one_by_one = Pace { sessions: 1, messages_each: 1 };
    let usual = Pace { sessions: 10, messages_each: 100 };
    for (file, messages, pace, expected) in [
        ("large-mx.toml", 100, many_at_once, "sessions"),
        ("large-mx.toml", 2_000, one_by_one, "connections"),
        ("small-site.toml", 100, many_at_once, "sessions"),
        ("small-site.toml", 1_000, one_by_one, "connections"),
        ("small-site.toml", 2_000, usual, "sender"),
    ] {
        let refused = refused(settings(&conf(file)), messages, &pace);
        assert_eq!(refused, [expected], "{file} {pace:?}");
    }
}

#[test]
fn the_lines_for_an_mta_name_the_listeners_of_the_policies() {
    // An MX is asked on the sockets of the packages.
    for file in ["large-mx.toml", "small-site.toml"] {
        let text = fs::read_to_string(conf(file)).unwrap();
        assert!(!text.contains("[[listen]]"), "{file}");
    }
    let submission = settings(&conf("submission.toml"));
    assert_eq!(submission.listen.len(), 1);
    let submission = submission.listen[0].door().listener.to_string();
    let main = fs::read_to_string(conf("postfix-main.cf")).unwrap();
    let mx = FOR_POSTFIX.strip_prefix("/var/spool/postfix/").unwrap();
    let entry = format!("\nsmtpd_milters = {{ unix:{mx}, default_action=accept, ");
    assert!(main.contains(&entry), "{entry}");
    assert!(main.contains(&format!("\n#submission_milters = {{ {submission}, ")), "{submission}");
    let mc = fs::read_to_string(conf("sendmail.mc")).unwrap();
    let (host, port) = submission.strip_prefix("inet:").unwrap().split_once(':').unwrap();
    for (line, socket) in [
        ("\nINPUT_MAIL_FILTER(`postpone'", format!("local:{FOR_SENDMAIL}")),
        ("MAIL_FILTER(`submission'", format!("inet:{port}@{host}")),
    ] {
        let filter = format!("{line}, `S={socket}, T=C:5s;S:5s;R:5s')dnl\n");
        assert!(mc.contains(&filter), "{filter}");
    }
}

#[test]
fn postfix_understands_every_line_for_it() {
    let folder = std::env::temp_dir().join(format!("postpone-main-cf-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let main = fs::read_to_string(conf("postfix-main.cf")).unwrap();
    // As its reader does: the # goes, where a setting follows it.
    let with_all: String = main
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => setting,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let master = main.lines().find_map(|line| line.strip_prefix("#   -o ")).unwrap();
    fs::write(folder.join("main.cf"), with_all).unwrap();
    fs::write(folder.join("master.cf"), format!("submission inet n - n - - smtpd\n -o {master}\n"))
        .unwrap();
    let mut postconf = Command::new("postconf");
    let settings = with_programs(postconf.arg("-c").arg(&folder).arg("-n"), "").output();
    fs::remove_dir_all(&folder).unwrap();
    let settings = settings.expect("postconf");
    assert_eq!(String::from_utf8_lossy(&settings.stderr), "");
    let settings = String::from_utf8(settings.stdout).unwrap();
    for name in [
        "smtpd_milters",
        "smtpd_recipient_restrictions",
        "smtpd_end_of_data_restrictions",
        "submission_milters",
    ] {
        assert!(settings.contains(&format!("{name} = ")), "{name} is not in {settings}");
    }
}

fn conf(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(file)
}

fn policies() -> Vec<PathBuf> {
    let files = fs::read_dir(conf("")).unwrap().map(|file| file.unwrap().path());
    let files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|e| e == "toml")).collect();
    assert!(files.len() >= 3, "{files:?}");
    files
}

fn settings(file: &Path) -> Settings {
    let checked = Settings::load(file);
    checked.unwrap_or_else(|Unusable(report)| panic!("{report}")).settings
}

/// What each rule says, by its name.
fn words(settings: &Settings) -> Vec<(String, String)> {
    let limits = settings.limit.iter();
    let limits = limits.map(|limit| (limit.name.clone(), limit.template().to_string()));
    let others = [("greylist", &settings.greylist.reply), ("behaviour", &settings.behaviour.reply)];
    let others = others.map(|(name, reply)| (name.to_owned(), reply.to_string()));
    limits.chain(others).collect()
}

/// How a sender comes: with so many sessions at once, each for so many messages.
#[derive(Clone, Copy, Debug)]
struct Pace {
    sessions: usize,
    messages_each: u32,
}

/// The time between two messages, whatever the pace: 100 a second.
const BETWEEN: Duration = Duration::from_millis(10);

/// The limits that refuse anything to a large sender at this pace, those in shadow mode included.
/// Its messages have one sender address, one recipient and 75 KiB; each fiftieth is for somebody
/// else as well, who does not exist.
fn refused(mut settings: Settings, messages: u32, pace: &Pace) -> Vec<String> {
    settings.limit.iter_mut().for_each(|limit| limit.mode = Mode::Enforce);
    let memory = Memory::new(&Secret::new([7; 16]), settings.bounds());
    let Ok(policy) = settings.policy(&memory) else { panic!("a policy that check accepts") };
    let clock = Arc::new(ManualClock::at(Time::from_secs(1_800_000_000)));
    let engine = Engine::new(Box::new(clock.clone()), memory, policy);
    let mut refused = Vec::new();
    let mut on = |session: &mut Session, event| {
        if let Answer::Refuse(refusal) = session.on(event) {
            let rule = refusal.limit.as_deref().unwrap_or(refusal.reason.name()).to_owned();
            if !refused.contains(&rule) {
                refused.push(rule);
            }
        }
    };
    let begin = || {
        let client = Client::new([192, 0, 2, 7].into()).named("out.bulk.example");
        let mut session = engine.session(client, settings.listen[0].door());
        session.on(Event::Connect);
        session
    };
    let helo = || Event::Helo { name: ClientText::new(b"out.bulk.example") };
    let to = |name: String, fate| Event::Recipient {
        address: Address::new(format!("<{name}@example.org>").as_bytes()),
        fate,
    };
    let mut sessions: Vec<Option<(Session, u32)>> = (0..pace.sessions).map(|_| None).collect();
    for number in 0..messages {
        let place = &mut sessions[number as usize % pace.sessions];
        let (session, left) = place.get_or_insert_with(|| (begin(), pace.messages_each));
        if *left == pace.messages_each {
            on(session, helo());
        }
        let sender = Address::new(b"<news@bulk.example>");
        on(session, Event::Mail { sender, size: Some(75 << 10), user: None, tls: true });
        if number % 50 == 0 {
            on(session, to(format!("gone{number}"), Fate::Unknown));
        }
        on(session, to(format!("reader{number}"), Fate::Offered));
        on(session, Event::EndOfMessage { size: None });
        *left -= 1;
        if *left == 0 {
            *place = None;
        }
        clock.advance(BETWEEN);
    }
    refused
}

/// A niced batch job makes this pressure too, and SMTP answers within 0.1 s meanwhile.
#[test]
fn no_ready_policy_refuses_anybody_for_the_pressure_of_the_processor_alone() {
    for name in ["small-site", "large-mx", "submission"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("conf/{name}.toml"));
        let policy: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
        let cpu = policy.get("load").and_then(|load| load.get("pressure")?.get("cpu"));
        for mark in ["high", "critical", "full"] {
            assert!(cpu.and_then(|cpu| cpu.get(mark)).is_none(), "{name}: {mark}");
        }
    }
}
