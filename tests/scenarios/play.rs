//! Plays a scenario: a timeline under a clock moved by hand, through the real reader of settings
//! and the sessions that a front would hold.
//!
//! A file is settings as an administrator writes them, a line `---`, and the timeline:
//!
//! ```text
//! +12s  192.0.2.7#2  MAIL a@example.net; RCPT b@example.org  => close rate velocity wait=12s
//! ```
//!
//! - When, since the beginning: `+12s`, `+4m59s999ms`.
//! - The session: its client's address, and a tag where a client has several.
//! - Commands: `CONNECT [confirmed name]` (`?` is a name that could not be looked up), `HELO name`, `MAIL sender [SIZE=1KiB] [AUTH=user] [TLS]`
//!   (the session is encrypted), `RCPT recipient [REFUSED|UNKNOWN]` (the MTA itself has refused it,
//!   or knows no such mailbox), `DATA`, `END [SIZE=1KiB]` (the message is complete), `RSET`, `QUIT`
//!   (or just gone).
//! - What the last of them is answered; the others pass, and it passes too where nothing is said:
//!   `pass`, `close REASON [LIMIT] wait=TIME`, `defer REASON [LIMIT] wait=TIME code=451`. The wait
//!   is the true one, without jitter, to the millisecond and exactly.
//! - `+12s IMPORTED client 192.0.2.7 36d`: what another greylisting daemon knew is known from here
//!   on, for so long; also `triplet 192.0.2.0/24 36d sender/recipient`, `sender … name@domain`,
//!   `domain … domain`, each in the words of that daemon.
//! - `+12s RELOAD` puts the settings that follow, up to the next `---`, in force.
//! - `+12s LOAD cpu_per_core=4.5 probe.lmtp=1`: what the sensors of the settings read now; `off`,
//!   where one cannot be read. Those that are not named read nothing worth a level.
//! - `+12s MAINTENANCE on LISTENER|all TIME`, or `off LISTENER|all`, as by `postpone ctl`; `LOOK`
//!   in their place, as the daemon does it once a second.
//! - `+12s LIFT RULE|all TIME`, or `LIFT RULE|all off`, as by `postpone ctl shadow` and `bypass`.
//! - `metric NAME{label="value"} = 2`: the sum of the samples that have these labels.
//! - `#` begins a line of comment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postpone::clock::{Clock, ManualClock, Moment, Time};
use postpone::config::load::Sensor;
use postpone::config::{Checked, Settings, Unusable};
use postpone::engine::{Answer, Engine, Session};
use postpone::meter::key::Secret;
use postpone::meter::record::written;
use postpone::meter::table::Restored;
use postpone::meter::units::{Size, Span};
use postpone::policy::Memory;
use postpone::policy::by_hand::Scope;
use postpone::policy::imported::{Imported, Known, host, subnet};
use postpone::policy::load::{Sample, Worse};
use postpone::smtp::address::{Address, ClientText};
use postpone::smtp::client::Client;
use postpone::smtp::event::{Event, Fate};

/// Where every timeline begins.
pub(crate) const START: Time = Time::from_secs(1_800_000_000);

/// Plays a scenario to its end; panics at the first line that does not hold, and says which.
pub(crate) fn play(file: &str, text: &str) {
    let mut lines = (1..).zip(text.lines());
    let head = block(&mut lines);
    let mut stage = Stage::set(file, &head);
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        let told = match line.split_once(char::is_whitespace) {
            _ if line.is_empty() || line.starts_with('#') => Ok(()),
            Some(("metric", expected)) => stage.metric(expected),
            Some((time, rest)) if rest.trim() == "RELOAD" => {
                let head = block(&mut lines);
                stage.at(time).map(|()| stage.reload(file, &head))
            }
            Some((time, rest)) if rest.trim().starts_with("IMPORTED ") => {
                stage.at(time).and_then(|()| stage.imported(rest))
            }
            Some((time, rest)) if rest.trim().starts_with("LOAD") => {
                stage.at(time).and_then(|()| stage.load(rest))
            }
            Some((time, rest)) if rest.trim().starts_with("MAINTENANCE") => {
                stage.at(time).and_then(|()| stage.maintenance(rest))
            }
            Some((time, rest)) if rest.trim().starts_with("LIFT") => {
                stage.at(time).and_then(|()| stage.lift(rest))
            }
            Some((time, rest)) => stage.at(time).and_then(|()| stage.check(rest)),
            None => Err("expected a time, a client and a command".into()),
        };
        told.unwrap_or_else(|wrong| panic!("{file}:{number}: {line}\n{wrong}"));
    }
    stage.end(file);
}

/// The lines up to the next `---`.
fn block<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>) -> String {
    lines.map(|(_, line)| line).take_while(|line| *line != "---").fold(
        String::new(),
        |mut block, line| {
            block.extend([line, "\n"]);
            block
        },
    )
}

/// An engine over these settings, and the clock that moves it.
pub(crate) fn engine(file: &str, settings: &str) -> (Arc<Engine>, Arc<ManualClock>, Settings) {
    let settings = read(file, settings);
    let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
    let policy = settings.policy(&memory).expect("the lists can be read");
    let clock = Arc::new(ManualClock::at(START));
    (Engine::new(Box::new(clock.clone()), memory, policy), clock, settings)
}

fn read(file: &str, settings: &str) -> Settings {
    match Settings::parse(file, settings) {
        // Warnings are for administrators; a story may be about what they warn of.
        Ok(Checked { settings, .. }) => settings,
        Err(Unusable(report)) => panic!("{report}"),
    }
}

/// The sessions of a scenario, and what they happen to.
struct Stage {
    engine: Arc<Engine>,
    clock: Arc<ManualClock>,
    settings: Settings,
    /// By address and tag.
    sessions: BTreeMap<String, Session>,
}

impl Stage {
    fn set(file: &str, head: &str) -> Self {
        let (engine, clock, settings) = engine(file, head);
        Self { engine, clock, settings, sessions: BTreeMap::new() }
    }

    fn reload(&mut self, file: &str, head: &str) {
        self.settings = read(file, head);
        let policy = self.settings.policy(self.engine.memory());
        self.engine.replace_policy(policy.expect("the lists can be read"));
    }

    /// Fills the table as a start fills it from disk.
    fn imported(&mut self, line: &str) -> Result<(), String> {
        let form = "expected IMPORTED client|triplet|sender|domain NETWORK TIME [TEXT]";
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        let [kind, network, time, ref text @ ..] = words[..] else { return Err(form.into()) };
        let text = text.concat();
        let (address, make): (_, fn(_) -> _) = match network.strip_suffix("/24") {
            Some(address) => (address, subnet),
            None => (network, host),
        };
        let network = make(address.parse().map_err(|_| form)?);
        let known = match kind {
            "client" => Known::Client(network),
            "triplet" => Known::Triplet(network, &text),
            "sender" => Known::Sender(network, &text),
            "domain" => Known::Domain(network, &text),
            _ => return Err(form.into()),
        };
        let until = self.clock.now() + time.parse::<Span>().map_err(|_| form)?.duration();
        let memory = self.engine.memory();
        let (_, table) = memory.kept().find(|(name, _)| *name == "imported").ok_or("no table")?;
        let record = written(&Imported { until });
        match table.restore(known.key(memory.secret()), &record, Moment::of(self.clock.now())) {
            Restored::Kept => Ok(()),
            Restored::Dropped => Err("it was not taken".into()),
        }
    }

    fn load(&self, line: &str) -> Result<(), String> {
        let mut readings: BTreeMap<_, _> =
            line.split_whitespace().skip(1).filter_map(|word| word.split_once('=')).collect();
        let read = |sensor: Sensor| {
            let calm = match sensor.marks.worse {
                Worse::Higher => 0.0,
                Worse::Lower => f64::INFINITY,
            };
            let reading = match readings.remove(&*sensor.name) {
                Some("off") => Err("it is off".into()),
                Some(reading) => Ok(reading.parse::<f64>().map_err(|_| format!("{reading}?"))?),
                None => Ok(calm),
            };
            let Sensor { name, scarce, marks, .. } = sensor;
            Ok::<_, String>(Sample { sensor: name, scarce, marks, reading, why: None })
        };
        let samples = self.settings.load.sensors().into_iter().map(read);
        let samples = samples.collect::<Result<Vec<_>, _>>()?;
        self.engine.observe(samples);
        if readings.is_empty() { Ok(()) } else { Err(format!("no such sensor: {readings:?}")) }
    }

    fn maintenance(&self, line: &str) -> Result<(), String> {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        let of = |word: &str| (word != "all").then(|| word.to_owned());
        match words[..] {
            ["on", which, time] => {
                let time = time.parse::<Span>().map_err(|expected| expected.to_string())?;
                let until = self.clock.now() + time.duration();
                self.engine.close(of(which).as_deref(), until).map_err(|_| "too many")?;
            }
            ["off", which] => self.engine.reopen(of(which).as_deref()).map_err(|_| "too many")?,
            ["LOOK"] => {}
            _ => return Err("expected on LISTENER TIME, off LISTENER, or LOOK".into()),
        }
        self.engine.tell_maintenance(&[self.settings.listen[0].door().address]);
        Ok(())
    }

    fn lift(&self, line: &str) -> Result<(), String> {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        let [_, _] = words[..] else { return Err("expected RULE and TIME or off".into()) };
        let scope = match words[0] {
            "all" => Scope::Everything,
            rule => Scope::Rule(rule.into()),
        };
        let done = match words[1] {
            "off" => self.engine.restore(&scope),
            time => {
                let time = time.parse::<Span>().map_err(|expected| expected.to_string())?;
                self.engine.lift(&scope, time.duration())
            }
        };
        if done { Ok(()) } else { Err("it was not taken out, or too much is".into()) }
    }

    /// Moves the clock, which only goes forward here.
    fn at(&mut self, time: &str) -> Result<(), String> {
        let since_start = time.strip_prefix('+').and_then(offset);
        let now =
            START + since_start.ok_or(format!("expected a time such as +4m59s, not {time}"))?;
        if now < self.clock.now() {
            return Err("that was before the line above".into());
        }
        self.clock.set(now);
        Ok(())
    }

    /// The one function that knows the engine: what a session does, and what it is answered.
    fn check(&mut self, line: &str) -> Result<(), String> {
        let (told, expected) = line.split_once("=>").unwrap_or((line, "pass"));
        let (who, commands) = told.trim().split_once(char::is_whitespace).unwrap_or((told, ""));
        let mut answer = "pass".to_owned();
        for command in commands.split(';') {
            if answer != "pass" {
                return Err(format!("expected to come as far as{command}, but was told: {answer}"));
            }
            let Some(event) = self.event(who, command)? else {
                self.sessions.remove(who).ok_or(format!("{who} has no session to end"))?;
                continue;
            };
            let session = self.sessions.get_mut(who);
            let session = session.ok_or(format!("{who} has no session; it has to CONNECT"))?;
            answer = spelled(&session.on(event));
        }
        let expected = normal(expected)?;
        if answer == expected { Ok(()) } else { Err(format!("expected {expected}, not {answer}")) }
    }

    /// What a command amounts to; nothing where the session ends. `CONNECT` begins it.
    fn event(&mut self, who: &str, command: &str) -> Result<Option<Event>, String> {
        let mut words = command.split_whitespace();
        let verb = words.next().ok_or("expected a command")?;
        let argument = words.clone().next().unwrap_or_default();
        let size = parameter(words.clone(), "SIZE=").map(|size| {
            let size = size.parse::<Size>().map_err(|expected| expected.to_string())?;
            Ok::<_, String>(size.as_bytes())
        });
        let size = size.transpose()?;
        Ok(Some(match verb {
            "CONNECT" => {
                let address = who.split('#').next().unwrap_or(who).parse();
                let mut client = Client::new(address.map_err(|_| format!("{who} is no address"))?);
                match argument {
                    "" => {}
                    "?" => client = client.of_unsure_name(),
                    name => client = client.named(name),
                }
                let session = self.engine.session(client, self.settings.listen[0].door());
                if self.sessions.insert(who.into(), session).is_some() {
                    return Err(format!("{who} has a session already; another needs a tag"));
                }
                Event::Connect
            }
            "HELO" => Event::Helo { name: ClientText::new(argument.as_bytes()) },
            "MAIL" => Event::Mail {
                sender: Address::new(argument.as_bytes()),
                size,
                user: parameter(words.clone(), "AUTH=").map(|u| ClientText::new(u.as_bytes())),
                tls: words.any(|word| word == "TLS"),
            },
            "RCPT" => Event::Recipient {
                address: Address::new(argument.as_bytes()),
                fate: match words.nth(1) {
                    Some("REFUSED") => Fate::Rejected,
                    Some("UNKNOWN") => Fate::Unknown,
                    _ => Fate::Offered,
                },
            },
            "DATA" => Event::Data { unseen: 0 },
            "END" => Event::EndOfMessage { size },
            "RSET" => Event::Abort,
            "QUIT" => return Ok(None),
            other => return Err(format!("there is no command {other}")),
        }))
    }

    fn metric(&self, expected: &str) -> Result<(), String> {
        let form = r#"expected `metric name{label="value"} = number`"#;
        let (series, value) = expected.rsplit_once('=').ok_or(form)?;
        let value: f64 = value.trim().parse().map_err(|_| form)?;
        let (name, labels) = series.trim().split_once('{').unwrap_or((series.trim(), ""));
        let labels = labels.split([',', '}']).filter(|label| !label.is_empty());
        let page = self.engine.metrics();
        let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
        let samples: Vec<_> = lines
            .map(|(series, value)| {
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                (name, labels.trim_end_matches('}'), value)
            })
            .filter(|(known, ..)| *known == name)
            .collect();
        let wanted = samples.iter().filter(|(_, have, _)| {
            labels.clone().all(|label| have.split(',').any(|known| known == label))
        });
        let sum: f64 = wanted.filter_map(|(.., value)| value.parse::<f64>().ok()).sum();
        if sum == value { Ok(()) } else { Err(format!("it is {sum}: {samples:#?}")) }
    }

    /// Whatever has been played: what was taken is given back, and everything fades.
    fn end(mut self, file: &str) {
        self.sessions.clear();
        self.clock.advance(Duration::from_secs(100 * 365 * 86_400));
        self.engine.sweep(1);
        for nothing in ["postpone_sessions_open = 0", "postpone_table_entries = 0"] {
            self.metric(nothing).unwrap_or_else(|wrong| panic!("{file}, at its end: {wrong}"));
        }
    }
}

/// `4m59s999ms`
fn offset(text: &str) -> Option<Duration> {
    let ends = text.match_indices(|c: char| c.is_ascii_alphabetic()).filter(|(at, _)| {
        let next = text[at + 1..].chars().next();
        next.is_none_or(|next| next.is_ascii_digit())
    });
    let (mut sum, mut start) = (Duration::ZERO, 0);
    for (at, _) in ends {
        sum += text[start..=at].parse::<Span>().ok()?.duration();
        start = at + 1;
    }
    (start == text.len()).then_some(sum)
}

fn parameter<'a>(mut words: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    words.find_map(|word| word.strip_prefix(name))
}

/// An answer in the words of a scenario.
fn spelled(answer: &Answer) -> String {
    let Answer::Refuse(refused) = answer else { return "pass".into() };
    let (code, reason) = (refused.reply.code(), refused.reason.name());
    let mut spelled = format!("{} {reason}", code.action().name());
    if let Some(limit) = &refused.limit {
        spelled += &format!(" {limit}");
    }
    let wait_ms = refused.wait.as_nanos().div_ceil(1_000_000) as u64;
    spelled += &format!(" wait={}", Span::from(Duration::from_millis(wait_ms)));
    if code.digits() != "421" {
        spelled += &format!(" code={}", code.digits());
    }
    spelled
}

/// An expectation as `spelled` would have it: times in their largest whole unit.
fn normal(expected: &str) -> Result<String, String> {
    let words = expected.split_whitespace().map(|word| match word.strip_prefix("wait=") {
        Some(wait) => {
            let wait = wait.parse::<Span>().map_err(|expected| expected.to_string())?;
            Ok(format!("wait={wait}"))
        }
        None => Ok(word.to_owned()),
    });
    Ok(words.collect::<Result<Vec<_>, String>>()?.join(" "))
}
