//! `postpone log`: one short line a decision, for eyes. The log itself is for programs and for what
//! an administrator wants to know exactly; each line ends with the id that `explain` takes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use super::lines::span;
use crate::clock::Time;
use crate::meter::units::Span;
use crate::setting::Expected;
use crate::smtp::harmless::harmless;

/// From when on lines are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Span),
    /// That moment.
    At(Time),
}

impl Since {
    fn moment(self, now: Time) -> Time {
        match self {
            Self::At(time) => time,
            Self::Ago(span) => {
                let ago = u64::try_from(span.duration().as_nanos()).unwrap_or(u64::MAX);
                Time::from_nanos(now.as_nanos().saturating_sub(ago))
            }
        }
    }
}

impl FromStr for Since {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let at = || text.parse().map(Self::At);
        text.parse().map(Self::Ago).or_else(|_| at()).map_err(|_| {
            Expected::new(r#"a time ago such as "1h", or a moment such as "2026-11-21T22:07:20Z""#)
        })
    }
}

/// Why there is nothing to show.
#[derive(Debug)]
pub enum Failed {
    /// What should bring the lines cannot be run, or fails.
    Source(String, io::Error),
    /// They cannot be read.
    Input(String, io::Error),
    /// Ours cannot be written.
    Output(io::Error),
}

/// Where lines come from.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// A file, `-` for standard input; nothing: the journal of systemd.
    pub file: Option<&'a Path>,
    /// From when on.
    pub since: Option<Since>,
    /// Go on with what is written from now on.
    pub follow: bool,
    /// The present moment.
    pub now: Time,
}

/// Shows the decisions in a log, one to a line.
pub fn log(
    wanted: &Wanted<'_>,
    input: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<(), Failed> {
    let since = wanted.since.map(|since| since.moment(wanted.now));
    let (mut source, name) = match source(wanted, since) {
        Source::Program(command, name) => (command, name),
        Source::Input => return show("standard input", input, since, out),
        Source::File(path) => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|error| Failed::Source(name.clone(), error))?;
            return show(&name, &mut io::BufReader::new(file), since, out);
        }
    };
    let failed = |error| Failed::Source(name.clone(), error);
    let mut child = source.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().map_err(failed)?;
    let lines = child.stdout.take();
    let shown =
        lines.map_or(Ok(()), |lines| show(&name, &mut io::BufReader::new(lines), since, out));
    ended(child, shown.is_ok()).map_err(failed)?;
    shown
}

/// Where whoever follows begins, if nobody says when: with the last lines, decisions or not.
const END: &str = "--lines=1000";

/// What brings the lines.
enum Source<'a> {
    /// Standard input.
    Input,
    /// A file, as far as it is written.
    File(&'a Path),
    /// What a program writes, and what that is called.
    Program(Box<Command>, String),
}

fn source<'a>(wanted: &Wanted<'a>, since: Option<Time>) -> Source<'a> {
    let Some(file) = wanted.file else {
        let mut command = Command::new("journalctl");
        command.args(["--unit=postpone", "--output=short-iso", "--no-pager"]);
        if let Some(since) = since {
            command.arg(format!("--since=@{}", since.as_nanos() / 1_000_000_000));
        }
        if wanted.follow {
            command.arg("--follow");
            command.arg(if since.is_none() { END } else { "--no-tail" });
        }
        return Source::Program(Box::new(command), "journalctl".into());
    };
    if file.as_os_str() == "-" {
        return Source::Input;
    }
    if !wanted.follow {
        return Source::File(file);
    }
    // It knows what a file is that was rotated.
    let mut command = Command::new("tail");
    command.args([if since.is_none() { END } else { "--lines=+1" }, "-F", "--"]).arg(file);
    Source::Program(Box::new(command), file.display().to_string())
}

/// When nobody wants more lines, what brings them ends with us.
fn ended(mut child: Child, whole: bool) -> io::Result<()> {
    if !whole {
        let _ = child.kill();
        child.wait()?;
        return Ok(());
    }
    match child.wait()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("it failed ({status})"))),
    }
}

/// The longest line that is read, in bytes: one of ours has at most some three thousand.
const LONGEST: u64 = 64 << 10;

fn show(
    name: &str,
    lines: &mut dyn BufRead,
    since: Option<Time>,
    out: &mut dyn Write,
) -> Result<(), Failed> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut *lines, LONGEST).read_until(b'\n', &mut line);
        if read.map_err(|error| Failed::Input(name.to_owned(), error))? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let Some(told) = Told::of(&text) else { continue };
        let at = told.when.parse::<Time>().ok();
        // Of what syslog has dated in its own way, nobody knows the year.
        if since.is_none_or(|since| at.is_none_or(|at| at >= since)) {
            writeln!(out, "{told}").and_then(|()| out.flush()).map_err(Failed::Output)?;
        }
    }
}

/// One decision, as a line of the log has it.
struct Told<'a> {
    when: &'a str,
    fields: HashMap<Cow<'a, str>, String>,
}

impl<'a> Told<'a> {
    /// Nothing, if the line tells of something else.
    fn of(line: &'a str) -> Option<Self> {
        let line = line.trim_end();
        let (head, fields) = match (line.find("client="), line.find('{')) {
            (text, Some(json)) if text.is_none_or(|text| json < text) => {
                (&line[..json], json_fields(&line[json..])?)
            }
            (Some(text), _) => (&line[..text], text_fields(&line[text..])),
            (None, None) | (None, Some(_)) => return None,
        };
        // What a client has chosen stands behind its address, and begins no line.
        if head.contains(['=', '"'])
            || !["client", "action", "reason"].iter().all(|key| fields.contains_key(*key))
        {
            return None;
        }
        Some(Self { when: when(head), fields })
    }

    fn field(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }
}

/// The date that a line begins with: in one word, or as syslog writes it, `Nov 28 04:12:40`.
fn when(head: &str) -> &str {
    let syslog = head.get(..15).filter(|date| {
        let colons = [9, 12].iter().all(|at| date.as_bytes()[*at] == b':');
        colons && date.starts_with(|c: char| c.is_ascii_uppercase())
    });
    syslog.unwrap_or_else(|| head.split_whitespace().next().unwrap_or_default())
}

/// `key=value` and `key="value"`; a quote inside is escaped.
fn text_fields(mut rest: &str) -> HashMap<Cow<'_, str>, String> {
    let mut fields = HashMap::new();
    while let Some((key, behind)) = rest.trim_start().split_once('=') {
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => {
                let mut escaped = false;
                let end = quoted.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                let end = end.unwrap_or(quoted.len());
                (&quoted[..end], quoted.get(end + 1..).unwrap_or_default())
            }
            None => behind.split_once(' ').unwrap_or((behind, "")),
        };
        // The first of a name counts: ours stand before those of a client.
        fields.entry(key.into()).or_insert_with(|| value.to_owned());
        rest = behind;
    }
    fields
}

fn json_fields(text: &str) -> Option<HashMap<Cow<'_, str>, String>> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Some(object.into_iter().map(|(key, value)| (key.into(), text(value))).collect())
}

impl Display for Told<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let field = |key| harmless(self.field(key).unwrap_or_default());
        // 2026-11-28T04:12:36 is shown as 11-28 04:12:36.
        let when = self.field("timestamp").unwrap_or(self.when);
        let when = match when.get(5..19) {
            Some(short) => short.replace('T', " ") + " ",
            None if when.contains(':') => format!("{when} "),
            None => String::new(),
        };
        let action = match self.field("would") {
            Some(would) => format!("({would})"),
            None => field("action").into_owned(),
        };
        let rule = if self.fields.contains_key("limit") { "limit" } else { "reason" };
        let (client, rule) = (field("client"), field(rule));
        write!(f, "{}{action:<7} {client} {rule}", harmless(&when))?;
        if let Some(wait) = self.field("wait_ms").and_then(|wait| wait.parse().ok()) {
            write!(f, " {}", span(Duration::from_millis(wait)).replace(' ', ""))?;
        }
        for key in ["sender", "recipient"] {
            if let Some(address) = self.field(key) {
                let to = if key == "recipient" { "> " } else { "" };
                let address = if address.is_empty() { "<>".into() } else { harmless(address) };
                write!(f, " {to}{address}")?;
            }
        }
        write!(f, " {}", field("id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "client=192.0.2.7 action=close reason=rate limit=velocity mode=enforce \
        event=mail value=\"2\" threshold=\"1/1h\" wait_ms=3599988 id=6h20pqfrw00 \
        helo=\"mx.example.net\" sender=\"a@example.net\" reply=\"421 4.7.0 x client=203.0.113.1\"";
    const SHORT: &str = "close   192.0.2.7 velocity 1h a@example.net 6h20pqfrw00";

    fn short(line: &str) -> Option<String> {
        Told::of(line).map(|told| told.to_string())
    }

    #[test]
    fn a_decision_is_one_short_line_however_it_was_written_down() {
        let dated = Some(format!("11-28 04:12:40 {SHORT}"));
        let file = format!("2026-11-28T04:12:40.264168Z  INFO {LINE}\n");
        let journal = format!("2026-11-28T04:12:40+0100 mx1 postpone[4711]: {LINE}");
        assert_eq!([short(&file), short(&journal)], [dated.clone(), dated.clone()]);
        assert_eq!(short(&format!("<6>{LINE}")), Some(SHORT.to_owned()));
        let syslog = format!("Nov  8 04:12:40 mx1 postpone[4711]: {LINE}");
        assert_eq!(short(&syslog), Some(format!("Nov  8 04:12:40 {SHORT}")));
        let json = r#"{"timestamp":"2026-11-28T04:12:40.26Z","level":"INFO","client":"192.0.2.7",
            "action":"close","reason":"rate","limit":"velocity","wait_ms":3599988,
            "id":"6h20pqfrw00","sender":"a@example.net","reply":"421 4.7.0 client=203.0.113.1"}"#;
        assert_eq!(short(&json.replace('\n', "")), dated);
        let shadow = LINE.replace("action=close", "action=pass would=close");
        assert_eq!(short(&shadow), Some(SHORT.replace("close   ", "(close) ")));
    }

    #[test]
    fn what_is_no_decision_or_was_made_up_by_a_client_is_none() {
        for line in [
            "",
            "2026-11-28T04:12:40Z  INFO listening address=inet:127.0.0.1:7421 protocol=milter",
            "2026-11-28T04:12:40Z  WARN kind=\"frame\" detail=\"client=192.0.2.7 action=close \
             reason=x\"",
            "postfix/smtpd[1]: client=mx.example.net[192.0.2.7]",
            "{\"client\":1",
        ] {
            assert_eq!(short(line), None, "{line}");
        }
        let hostile = LINE.replace("mx.example.net", "x\\\" id=forged sender=\\\"y\u{202e}");
        assert_eq!(short(&hostile), Some(SHORT.to_owned()));
    }
}
