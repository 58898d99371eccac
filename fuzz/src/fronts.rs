//! What comes over sockets.

use std::sync::{Arc, OnceLock};

use indymilter::message::Message;
use indymilter::message::reply::Reply;
use postpone::clock::{ManualClock, Time};
use postpone::config::{Settings, Unusable};
use postpone::engine::{Door, Engine};
use postpone::front::control::protocol::Request as Asked;
use postpone::front::milter;
use postpone::front::policyd::Desk;
use postpone::front::policyd::request::Request;
use postpone::meter::key::Secret;
use postpone::policy::Memory;

/// Rules that refuse at every stage, some of them at the first step.
const POLICY: &str = r#"
[server]
hostname = "throttle.example.org"
[[listen]]
milter = "inet:127.0.0.1:7421"
[[listen]]
policy = "inet:127.0.0.1:7422"
[state]
max_clients = 1000
max_triplets = 1000
[[limit]]
name = "at-once"
count = "sessions"
max = 1
reply = "421 4.7.0 {hostname} One of {client} at a time"
when = { network = ["198.51.100.0/24"] }
[[limit]]
name = "connections"
count = "connections"
mode = "enforce"
quota = "2/1h"
reply = "421 4.7.0 {hostname} Too often"
when = { network = ["198.51.100.0/24"] }
[[limit]]
name = "recipients"
count = "recipients"
mode = "enforce"
quota = "3/1h"
reply = "452 4.5.3 {hostname} Enough for {network}"
[[limit]]
name = "messages"
count = "messages"
mode = "enforce"
quota = "2/1h"
reply = "421 4.7.0 {hostname} 100% of {sender}"
[[limit]]
name = "bytes"
count = "bytes"
mode = "enforce"
quota = "1MiB/1h"
reply = "450 4.7.0 {hostname} Too large"
[[limit]]
name = "many"
count = "distinct_recipients"
mode = "enforce"
max = 2
window = "1h"
[greylist]
mode = "enforce"
reply = "451 4.7.1 {hostname} Not yet, {recipient}"
"#;

/// A host at its first minute, and the door of its milter or of its policy service.
fn host(listener: usize) -> (Arc<Engine>, Door) {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    let settings = SETTINGS.get_or_init(|| match Settings::parse("the policy", POLICY) {
        Ok(checked) => checked.settings,
        Err(Unusable(report)) => panic!("{report}"),
    });
    let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("it names no files");
    let clock = ManualClock::at(Time::from_secs(1_800_000_000));
    let door = settings.listen[listener].door();
    (Engine::new(Box::new(Arc::new(clock)), memory, policy), door)
}

const MILTER: usize = 0;
const POLICY_SERVICE: usize = 1;

/// The most that a reply line takes (RFC 5321 section 4.5.3.1.5), its CR LF included.
const LONGEST_LINE: usize = 512;

/// An MTA at a milter: a byte that says where what follows is torn in two, and its frames. Torn or
/// whole they are answered the same; answers are frames that another milter library reads; a refusal
/// is temporary and fits a line; what is kept meanwhile is bounded.
pub fn frames(bytes: &[u8]) {
    let Some((tear, frames)) = bytes.split_first() else { return };
    let (engine, door) = host(MILTER);
    let whole = milter::overheard(&engine, door, &[frames]);
    let (engine, door) = host(MILTER);
    let (one, other) = frames.split_at(frames.len() * usize::from(*tear) / 256);
    let torn = milter::overheard(&engine, door, &[one, other]);
    assert_eq!((&whole.said, &whole.nonsense), (&torn.said, &torn.nonsense));
    for heard in [&whole, &torn] {
        assert!(heard.most_unsaid <= 12 << 10, "{} bytes of answers wait", heard.most_unsaid);
    }
    assert!(whole.most_kept.max(torn.most_kept) <= (64 << 10) + 4);
    let mut said = &whole.said[..];
    let asked = frames.len() / 5;
    let mut answers = 0;
    while let Some(([a, b, c, d, letter], rest)) = said.split_first_chunk() {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 1;
        let (payload, rest) = rest.split_at(length);
        let message = Message::new(*letter, payload.to_vec());
        let reply = Reply::parse_reply(message).expect("a frame of a milter");
        if let Reply::ReplyCode { reply } = reply {
            let line = reply.to_str().expect("ASCII");
            // A single one is an escape to both MTAs, and a permanent refusal of Sendmail's.
            assert!(!line.replace("%%", "").contains('%'), "{line}");
            temporary(&line.replace("%%", "%"));
        }
        said = rest;
        answers += 1;
    }
    assert_eq!(said, b"", "half an answer");
    assert!(answers <= asked, "{answers} answers to {asked} frames at most");
}

/// A refusal puts off, says so in an enhanced code too, and fits a line.
fn temporary(line: &str) {
    assert!(line.len() + 2 <= LONGEST_LINE, "{line}");
    assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
    let (code, rest) = line.split_once(' ').expect("a text after the code");
    assert!(["421", "450", "451", "452"].contains(&code), "{line}");
    let (enhanced, text) = rest.split_once(' ').expect("a text after the enhanced code");
    assert!(enhanced.starts_with("4.") && !text.is_empty(), "{line}");
}

/// Requests of Postfix's smtpd on one connection, each with the empty line that ends it. An action
/// is one line, and never a bare number; of the first request that cannot be read the words fit a
/// log line.
pub fn policy(bytes: &[u8]) {
    let (engine, door) = host(POLICY_SERVICE);
    let desk = Desk::new(&Secret::new([0; 16]));
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|two| two == b"\n\n").map_or(rest.len(), |at| at + 2);
        let (request, behind) = rest.split_at(end);
        rest = behind;
        let request = match Request::parse(request) {
            Ok(request) => request,
            Err(garbage) => {
                assert!(garbage.to_string().len() < 100);
                continue;
            }
        };
        let action = desk.answer(&request, &engine, &door).to_string();
        if action == "DUNNO" {
            let again = desk.answer(&request, &engine, &door).to_string();
            assert_eq!(again, action, "what is asked again after a time-out is counted once");
        }
        match action.strip_prefix("DEFER_IF_PERMIT ") {
            _ if action == "DUNNO" => {}
            Some(text) => temporary(&format!("450 {text}")),
            None => temporary(&action),
        }
    }
}

/// A line for the control socket: what is read is printed and read back the same, under a name that
/// is told to whoever asks for another; what is wrong with another line is said in words that are
/// bounded by its length.
pub fn control(line: &[u8]) {
    match Asked::parse(line) {
        Ok(request) => {
            let printed = serde_json::to_string(&request).expect("a line");
            assert_eq!(Asked::parse(printed.as_bytes()), Ok(request.clone()), "{printed}");
            assert!(Asked::names().contains(&request.name()), "{printed}");
        }
        Err(trouble) => {
            let printed = serde_json::to_string(&trouble).expect("a line");
            assert!(printed.len() <= 1_000 + 8 * line.len(), "{printed}");
        }
    }
}
