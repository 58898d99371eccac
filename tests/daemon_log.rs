//! The log in each of its formats, and that no client writes a line of its own into it.

mod support;

use std::collections::BTreeMap;

use support::daemon::{Daemon, field};
use support::milter::*;

/// Who is denied, and one recipient an hour for everybody else; nobody is exempt.
const POLICY: &str = r#"
[access]
allow = []
deny = ["198.51.100.0/24"]
exempt_authenticated = false
exempt_recipients = []
[[limit]]
name = "reach"
count = "recipients"
quota = "1/1h"
reply = "452 4.5.3 {sender} to {recipient}"
"#;

fn logging(format: &str, variables: &[(&str, &str)]) -> Daemon {
    Daemon::run_by(&[], variables, &format!("{POLICY}\n[log]\nformat = \"{format}\"\n"))
}

/// A client on the denylist is told so at HELO: its line.
fn denied(daemon: &Daemon) -> String {
    let mut mta = Mta::with_client(&daemon.endpoint, "198.51.100.7");
    assert!(mta.ask(&helo("mx.example.net")).starts_with("421 4.7.0 "));
    daemon.line("the refusal", |line| line.contains("198.51.100.7"))
}

/// The keys and values of a flat JSON object; what stands in quotes, without them.
#[track_caller]
fn json(line: &str) -> BTreeMap<String, String> {
    let mut rest = line.strip_prefix('{').unwrap_or_else(|| panic!("no object: {line}"));
    let mut object = BTreeMap::new();
    loop {
        let (key, behind) = json_value(rest).unwrap_or_else(|| panic!("no key at {rest}: {line}"));
        let value = behind.strip_prefix(':').and_then(json_value);
        let (value, behind) = value.unwrap_or_else(|| panic!("no value at {behind}: {line}"));
        assert_eq!(object.insert(key, value), None, "a key twice: {line}");
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None if behind == "}" => return object,
            None => panic!("no end at {behind}: {line}"),
        }
    }
}

/// A string or a number, and what follows it.
fn json_value(text: &str) -> Option<(String, &str)> {
    let Some(inside) = text.strip_prefix('"') else {
        let end = text.find([',', '}']).filter(|end| *end > 0)?;
        return Some((text[..end].into(), &text[end..]));
    };
    let (mut value, mut chars) = (String::new(), inside.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &inside[at + 1..])),
            '\\' => value.extend(['\\', chars.next()?.1]),
            c => value.push(c),
        }
    }
    None
}

#[test]
fn a_line_of_json_has_a_field_for_every_fact() {
    let daemon = logging("json", &[]);
    let line = json(&denied(&daemon));
    for (key, value) in [
        ("level", "INFO"),
        ("action", "close"),
        ("reason", "access"),
        ("mode", "enforce"),
        ("event", "helo"),
        ("client", "198.51.100.7"),
        ("helo", "mx.example.net"),
        ("threshold", "198.51.100.0/24"),
    ] {
        assert_eq!(line.get(key).map(String::as_str), Some(value), "{key} in {line:?}");
    }
    let wait: u64 = line["wait_ms"].parse().expect("a bare number");
    assert!((1..=900_000).contains(&wait), "{wait}");
    assert!(line["reply"].starts_with("421 4.7.0 "), "{line:?}");
    // The other lines are objects, too.
    daemon.lines().iter().for_each(|line| drop(json(line)));
}

#[test]
fn under_systemd_a_line_begins_with_its_priority_and_leaves_the_time_to_the_journal() {
    let daemon = logging("auto", &[("JOURNAL_STREAM", "8:4711")]);
    let line = denied(&daemon);
    assert!(line.starts_with("<6>client=198.51.100.7 action=close reason=access "), "{line}");
    // Somebody must look.
    Mta::dial(&daemon.endpoint).write(b"GET / HTTP/1.1\r\n\r\n");
    let line = daemon.line("a warning", |line| line.contains("milter frame"));
    assert!(line.starts_with("<4>"), "{line}");
    for line in daemon.lines() {
        assert!(line.starts_with("<6>") || line.starts_with("<4>"), "{line}");
    }
}

#[test]
fn elsewhere_a_line_is_text_with_time_and_level() {
    let daemon = logging("auto", &[]);
    let line = denied(&daemon);
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.contains('T'), "{line}");
    assert!(
        rest.trim_start().starts_with("INFO client=198.51.100.7 action=close reason=access "),
        "{line}"
    );
    assert_eq!(field(&line, "helo"), Some("mx.example.net"), "{line}");
}

/// NUL cannot be sent.
const HOSTILE: [&[u8]; 8] = [
    b"newline\n<0>2026-01-01T00:00:00Z ERROR action=pass client=203.0.113.1",
    b"return\r\n{\"level\":\"ERROR\",\"client\":\"203.0.113.1\"}\r\n",
    b"quote\" action=\"pass\" client=\"203.0.113.1",
    b"json\",\"action\":\"pass\"}",
    b"backslash\\",
    b"bell\x07\x08\x1b[31mred\x1b]0;title\x07\x7f\x0b\x0c\t",
    "unicode\u{85}\u{9b}31m\u{2028}\u{2029}\u{202e}\u{feff}".as_bytes(),
    b"bytes\xff\xfe\x80",
];

/// A client that gives everything it may choose this text, and what its second recipient is told.
fn visit(daemon: &Daemon, text: &[u8]) -> String {
    let with_nul = [text, b"\0"].concat();
    let mut mta = Mta::dial(&daemon.endpoint);
    mta.ask(&negotiate());
    mta.tell(&macros(b'C', &["{client_resolve}", "OK"]));
    // DNS has no names longer than this.
    let name = &text[..text.len().min(255)];
    mta.ask(&frame(b'C', &[name, b"\x004\0\x19192.0.2.7\0"].concat()));
    mta.ask(&frame(b'H', &with_nul));
    mta.tell(&frame(b'D', &[b"M{auth_authen}\0", &with_nul[..]].concat()));
    mta.ask(&frame(b'M', &with_nul));
    mta.ask(&frame(b'R', &with_nul));
    let answer = mta.ask(&frame(b'R', &with_nul));
    // What it has taken is given back before the next one comes.
    mta.tell(&quit());
    mta.closed();
    answer
}

/// Visits of all the hostile ones, and all the lines that they have made.
fn hostile_lines(format: &str) -> Vec<String> {
    let daemon = logging(format, &[]);
    for text in HOSTILE {
        let answer = visit(&daemon, text);
        assert!(answer.starts_with("452 4.5.3 "), "{answer}");
        assert!(answer.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{answer}");
    }
    let last = denied(&daemon);
    let lines = daemon.lines();
    let begin = lines.iter().position(|line| line.contains("reach")).expect("refusals");
    let end = lines.iter().position(|line| *line == last).expect("the last line");
    // The second recipient of each visit: the first is given back when the message never comes.
    assert_eq!(end - begin, HOSTILE.len(), "{lines:#?}");
    lines[begin..end].to_vec()
}

#[test]
fn no_client_writes_a_line_of_its_own_into_a_log_of_text() {
    for format in ["text", "journald"] {
        for line in hostile_lines(format) {
            assert_eq!(line.find(char::is_control), None, "{line:?}");
            let line = line.strip_prefix("<6>").unwrap_or(&line);
            let facts = ["action", "client", "limit"].map(|key| field(line, key));
            assert_eq!(facts, [Some("defer"), Some("192.0.2.7"), Some("reach")], "{line}");
        }
    }
}

#[test]
fn no_client_writes_a_line_of_its_own_into_a_log_of_json() {
    for line in hostile_lines("json") {
        let line = json(&line);
        let facts = ["action", "client", "limit"].map(|key| line[key].as_str());
        assert_eq!(facts, ["defer", "192.0.2.7", "reach"], "{line:?}");
    }
}

#[test]
fn no_client_sends_control_characters_into_a_log_of_json_nor_turns_a_line_around() {
    let harmful = |c: char| c.is_control() || "\u{2028}\u{2029}\u{202e}\u{feff}".contains(c);
    for line in hostile_lines("json") {
        assert_eq!(line.find(harmful), None, "{line:?}");
    }
}

/// What is left of a line when every `key=value` is taken out of it: its message.
fn message(line: &str) -> String {
    let (mut left, mut rest) = (String::new(), line);
    while let Some(at) = rest.find('=') {
        let key = rest[..at].rfind(' ').map_or(0, |blank| blank + 1);
        left.push_str(&rest[..key]);
        rest = &rest[at + 1..];
        let end = match rest.strip_prefix('"') {
            Some(inside) => inside.find('"').map_or(rest.len(), |end| end + 2),
            None => rest.find(' ').unwrap_or(rest.len()),
        };
        rest = &rest[end..];
    }
    left + rest
}

#[test]
fn every_value_with_a_blank_is_quoted_and_words_are_in_lower_case() {
    let probe = "[[load.probe]]\nname = \"lmtp\"\nconnect = \"inet:127.0.0.1:1\"\n";
    let daemon = Daemon::run_by(&[], &[], &format!("{probe}[log]\nformat = \"journald\"\n"));
    let line = daemon.line("that it fails", |line| line.contains("a probe fails"));
    assert!(line.contains(" why=\"") && line.ends_with('"'), "{line}");
    assert_eq!(message(&line).trim_end(), "<4>a probe fails", "{line}");
    let line = daemon.line("that it listens", |line| line.contains("listening"));
    assert!(line.contains(" protocol=milter "), "{line}");
    for line in daemon.lines() {
        let told = message(&line);
        assert!(
            !told.contains(['"', '=', '(']),
            "a value runs out of its field: {told:?} in {line}"
        );
    }
}

#[test]
fn metrics_come_in_the_same_order_every_time() {
    let daemon = logging("text", &[]);
    denied(&daemon);
    let page = daemon.get("/metrics");
    let ours = |line: &&str| line.starts_with("postpone_") && !line.contains("decision_seconds");
    let names = page.lines().filter(ours).map(|line| line.rsplit_once(' ').unwrap().0);
    let names: Vec<_> = names.collect();
    assert!(names.len() > 80 && names.is_sorted(), "{names:#?}");
}

/// Four facts and the reply, none longer than it is kept.
#[test]
fn however_long_a_client_makes_its_names_the_line_is_cut() {
    let daemon = logging("text", &[]);
    visit(&daemon, &[b'x'; 20_000]);
    let line = daemon.decision(&[("action", "defer")]);
    let too_long = |key: &&str| field(&line, key).is_some_and(|value| value.len() > 512);
    let keys = ["name", "helo", "user", "sender", "recipient", "reply"];
    assert_eq!(keys.iter().find(|key| too_long(key)), None, "{} bytes", line.len());
}
