//! `postpone replay --events`: the real program, a short trace, and what it answers line by line.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use serde_json::{Value, json};

/// A Monday morning.
const START: f64 = 1_704_103_200.0;

/// As the benchmark sets it: behaviour and greylisting act from the first event.
const ENFORCE: &str = "limit = []\n[access]\nallow = []\n[greylist]\nmode = \"enforce\"\n\
                       when = { score_above = 0.9 }\n[behaviour]\nlearn_for = \"0s\"\n[state]\n\
                       path = \"none\"\n";

/// A file that is removed with the value.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("postpone-replay-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn program(config: &File, events: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postpone"));
    command.args(["replay", "--events", events, "--config"]).arg(&config.0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Plays a trace, and waits for nothing in between.
fn play(config: &str, trace: &str) -> Output {
    let config = File::new(config);
    let mut child = program(&config, "-").spawn().unwrap();
    let (mut stdin, trace) = (child.stdin.take().unwrap(), trace.to_owned());
    // It may stop reading before the end.
    let writer = thread::spawn(move || drop(stdin.write_all(trace.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What it answers, line by line; nothing goes wrong.
fn answers(trace: &[Value]) -> Vec<Value> {
    let output = play(ENFORCE, &lines(trace));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*complaints), (Some(0), ""));
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<_> = answers.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), trace.len(), "one line for each");
    answers
}

fn lines(trace: &[Value]) -> String {
    trace.iter().map(|line| format!("{line}\n")).collect()
}

fn actions(answers: &[Value]) -> Vec<&str> {
    answers.iter().map(|answer| answer["action"].as_str().unwrap()).collect()
}

/// A host with a name, to somebody who exists.
fn clean(second: f64, number: u32) -> Value {
    json!({"t": START + second, "event": "message", "session": format!("clean{number}"),
        "client": "192.0.2.7", "name": "mx.example.net", "helo": "mx.example.net",
        "sender": "anna@example.net", "recipients": [format!("r{}@example.org", number % 3)],
        "unknown": [], "attempt": 0, "conversation": [], "authenticated": false, "tls": true,
        "size": 4000})
}

/// A host without a name that guesses: each of its recipients is new, and half of them unknown.
fn guess(second: f64, number: u32) -> Value {
    let (known, unknown) = (format!("a{number}@example.org"), format!("b{number}@example.org"));
    json!({"t": START + second, "event": "message", "session": format!("guess{number}"),
        "client": "198.51.100.9", "name": null, "helo": "[198.51.100.9]",
        "sender": format!("x@d{number}.example"), "recipients": [known, unknown.clone()],
        "unknown": [unknown], "attempt": 0, "authenticated": false, "tls": false, "size": 4000})
}

/// A guess every twenty seconds, and a clean message each hundred.
fn trace() -> Vec<Value> {
    let mut trace = Vec::new();
    for number in 0..100 {
        trace.push(guess(f64::from(number) * 20.0, number));
        if number % 5 == 0 {
            trace.push(clean(f64::from(number) * 20.0 + 0.25, number));
        }
    }
    trace
}

#[test]
fn it_passes_puts_off_and_closes() {
    let answers = answers(&trace());
    let of = |clean: bool| {
        let lines = trace().into_iter().zip(&answers);
        let lines = lines.filter(move |(line, _)| (line["client"] == "192.0.2.7") == clean);
        lines.map(|(_, answer)| answer.clone()).collect::<Vec<_>>()
    };
    assert!(actions(&of(true)).iter().all(|action| *action == "pass"));
    let bot = of(false);
    // First contacts wait, and keep waiting: nothing of it has passed.
    assert_eq!((&bot[0]["action"], &bot[0]["reason"]), (&json!("defer"), &json!("greylist")));
    assert_eq!(bot[0]["wait"], json!(300.0));
    assert!(actions(&bot).iter().all(|action| *action != "pass"));
    let last = bot.last().unwrap();
    assert!(last["score"].as_f64().unwrap() >= 4.0, "{last}");
    assert!(last["terms"]["sender_churn"].as_f64().unwrap() > 1.0, "{last}");
    assert!(last["id"].is_string(), "{last}");
}

/// Where first contacts do not wait, only the score speaks.
#[test]
fn what_passes_greylisting_is_put_off_at_its_own_pace() {
    let config = ENFORCE.replace("mode = \"enforce\"", "mode = \"off\"");
    let output = play(&config, &lines(&trace()));
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers = answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let bot = trace().into_iter().zip(answers).filter(|(line, _)| line["client"] != "192.0.2.7");
    let bot: Vec<_> = bot.map(|(_, answer)| answer).collect();
    let passed = actions(&bot).iter().filter(|action| **action == "pass").count();
    assert!((3..20).contains(&passed), "{passed} passed");
    let last = bot.last().unwrap();
    assert_eq!((&last["action"], &last["reason"]), (&json!("close"), &json!("behaviour")));
    let worst = bot.iter().filter_map(|answer| answer["score"].as_f64()).fold(0.0, f64::max);
    assert!(worst >= 6.0, "{worst}");
    assert!(last["wait"].as_f64().unwrap() > 0.0, "{last}");
}

#[test]
fn the_same_trace_gives_the_same_bytes() {
    let trace = lines(&trace());
    let [one, other] = [(); 2].map(|()| play(ENFORCE, &trace).stdout);
    assert!(!one.is_empty());
    assert_eq!(one, other);
    // From a file as well.
    let (config, events) = (File::new(ENFORCE), File::new(&trace));
    let read = program(&config, events.0.to_str().unwrap()).output().unwrap();
    assert_eq!(read.stdout, one);
}

#[test]
fn each_line_is_answered_before_the_next_is_sent() {
    let config = File::new(ENFORCE);
    let mut child = program(&config, "-").spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for number in 0..3 {
        writeln!(stdin, "{}", clean(f64::from(number), number)).unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        assert!(answer.starts_with("{\"action\":\"pass\""), "{answer}");
    }
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_line_that_is_no_event_is_told_by_its_number() {
    for wrong in ["nonsense", "{\"t\":1,\"event\":\"nonsense\"}", "{\"event\":\"tick\"}", ""] {
        let output = play(ENFORCE, &format!("{}\n{wrong}\n", clean(0.0, 0)));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(65), "{wrong}: {said}");
        assert!(said.starts_with("error: -:2: "), "{wrong}: {said}");
        // What came before it was answered.
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "{wrong}");
    }
}

/// No MX is told how often a message was tried.
#[test]
fn the_number_of_the_attempt_makes_no_difference() {
    let trace = trace();
    let mut other = trace.clone();
    for (number, line) in other.iter_mut().enumerate() {
        line["attempt"] = json!(number % 7);
    }
    let mut none = trace.clone();
    for line in &mut none {
        line.as_object_mut().unwrap().remove("attempt");
    }
    let [first, second, third] =
        [trace, other, none].map(|trace| play(ENFORCE, &lines(&trace)).stdout);
    assert_eq!(first, second);
    assert_eq!(first, third);
}

/// What passes whatever is answered is scored, and nothing follows from it: no triplet waits, no
/// bucket is empty afterwards, and nobody is missed.
#[test]
fn what_is_not_enforced_is_scored_and_has_no_consequences() {
    let mut rehearsed = trace();
    for line in &mut rehearsed {
        line["enforced"] = json!(false);
    }
    let scores = answers(&rehearsed);
    let worst = scores.iter().filter_map(|answer| answer["score"].as_f64()).fold(0.0, f64::max);
    assert!(worst >= 4.0, "{worst}");
    // Not greylisted yesterday, so it is not known today; and not told to return, so not missed.
    let first_again = |rehearsed: &[Value]| {
        let day = 86_400.0;
        let again = json!({"t": START + day, "event": "message", "session": "again",
            "client": "198.51.100.9", "name": null, "helo": "[198.51.100.9]",
            "sender": "x@d0.example", "recipients": ["a0@example.org"], "size": 4000});
        answers(&[rehearsed, &[again]].concat()).pop().unwrap()
    };
    let again = first_again(&rehearsed[..1]);
    assert_eq!((&again["action"], &again["reason"]), (&json!("defer"), &json!("greylist")));
    assert_eq!(again["wait"], json!(300.0), "as at a first contact");
    let again = first_again(&rehearsed);
    assert!(again["terms"].get("retry").is_none(), "{again}");
    // What was enforced is missed, since nobody came back.
    let again = first_again(&trace());
    assert!(again["terms"]["retry"].as_f64().unwrap() > 0.5, "{again}");
}

#[test]
fn a_tick_passes_and_changes_no_answer() {
    let tick = |second: f64| json!({"t": START + second, "event": "tick"});
    let trace = trace();
    let mut ticked = Vec::new();
    for line in &trace {
        ticked.extend([line.clone(), tick(line["t"].as_f64().unwrap() - START)]);
    }
    let with_ticks = answers(&ticked);
    assert!(
        with_ticks.iter().skip(1).step_by(2).all(|answer| *answer == json!({"action": "pass"}))
    );
    let without = answers(&trace);
    let with: Vec<_> = with_ticks.into_iter().step_by(2).collect();
    assert_eq!(with, without);
}

#[test]
fn settings_that_cannot_be_used_are_told() {
    let output = play("[behaviour]\nsuspect = 5.0\n", "");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("suspect"), "{said}");
}
