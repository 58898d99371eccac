//! What a status looks like to people.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::lines::{ago, bytes, ending, number, row, span};
use crate::clock::Time;
use crate::front::control::status::{
    Allowed, Closed, Load, Rule, Sensor, Settings, Shadow, State, Status, Table, whole,
};
use crate::policy::load::{Level, Rounded};
use crate::setting::Mode;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What an administrator looks for.
    Usual,
    /// Everything that is known.
    All,
}

/// A status in lines.
pub(super) fn status(status: &Status, detail: Detail) -> impl Display {
    Text(status, detail)
}

/// When maintenance is over, and how long that is from now.
pub(super) fn time_and_rest(closed: &Closed) -> String {
    format!("{} ({} left)", closed.end(), span(Duration::from_secs(closed.remaining_secs)))
}

struct Text<'a>(&'a Status, Detail);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(told, detail) = *self;
        let Status { version, since, now, listeners, sessions_open, .. } = told;
        let up = span(Duration::from_secs(now.since(*since).as_secs()));
        row(f, "postpone", &format!("{version}, up {up}, since {}", whole(*since)))?;
        if told.clock_doubted {
            let what = "HAS JUMPED: it is not trusted yet; for an hour at most, nothing expires";
            row(f, "clock", &format!("{} {what}", whole(*now)))?;
        }
        settings(f, &told.settings)?;
        by_hand(f, told)?;
        row(f, "listeners", &listeners.join(", "))?;
        row(f, "last asked", &asked(told.asked, *now))?;
        row(f, "sessions", &format!("{} open", number(*sessions_open)))?;
        load(f, &told.load, detail)?;
        if let Some(until) = told.learning_until {
            row(f, "behaviour", &format!("only watches {}", ending(until, *now)))?;
        }
        decisions(f, told, detail)?;
        failures(f, &told.failures)?;
        state(f, &told.state, *now)?;
        let shown = |table: &&Table| detail == Detail::All || is_nearly_full(table);
        told.tables.iter().filter(shown).try_for_each(|shown| table(f, shown))
    }
}

fn settings(f: &mut Formatter<'_>, told: &Settings) -> fmt::Result {
    let file = if told.file.is_empty() { "built-in, no file" } else { &told.file };
    row(f, "settings", &format!("{file}, loaded {}", whole(told.loaded)))?;
    if let Some(refused) = &told.refused {
        let why = format!("RELOAD REFUSED {}: {}", whole(refused.at), refused.why);
        row(f, "", &why)?;
    }
    row(f, "in force", &told.in_force)
}

/// What an administrator has said for a while.
fn by_hand(f: &mut Formatter<'_>, told: &Status) -> fmt::Result {
    if let Some(until) = told.bypass {
        row(f, "bypass", &format!("{}: everything passes", ending(until, told.now)))?;
    }
    for Shadow { rule, until } in &told.shadows {
        row(f, "shadow", &format!("{rule} {}, by hand", ending(*until, told.now)))?;
    }
    for closed in &told.maintenance {
        let listener = closed.listener.as_deref().unwrap_or("all listeners");
        let by = if closed.by_settings { ", by the settings" } else { "" };
        row(f, "maintenance", &format!("{listener} until {}{by}", time_and_rest(closed)))?;
    }
    for Allowed { network, until } in &told.allowed {
        row(f, "allowed", &format!("{network} {}", ending(*until, told.now)))?;
    }
    Ok(())
}

fn asked(asked: Option<Time>, now: Time) -> String {
    match asked {
        Some(asked) => format!("by an MTA {}", ago(asked, now)),
        None => "never: no MTA has asked since the start (`postpone setup postfix`)".into(),
    }
}

fn load(f: &mut Formatter<'_>, load: &Load, detail: Detail) -> fmt::Result {
    let mode = match load.mode {
        Mode::Enforce => String::new(),
        mode => format!(" (mode {}: no client is refused)", mode.name()),
    };
    let cause = load.cause.as_ref().and_then(|cause| {
        let sensor = load.sensors.iter().find(|sensor| sensor.name == cause.sensor)?;
        let mark = amount(&sensor.name, cause.mark);
        Some(match sensor.name.starts_with("probe.") {
            true => format!(": {}", words(sensor)),
            false => format!(": {} (mark {mark})", words(sensor)),
        })
    });
    let level = load.level.name();
    row(f, "load", &format!("{level}{}{mode}", cause.unwrap_or_default()))?;
    let some = load.admitted.values().any(|share| *share < 1.0);
    if some || detail == Detail::All {
        let of = |(standing, share): (&String, &f64)| format!("{standing} {:.0}%", share * 100.0);
        let admitted: Vec<_> = load.admitted.iter().map(of).collect();
        row(f, "admitted", &format!("of new sessions: {}", admitted.join(", ")))?;
    }
    let is_cause =
        |sensor: &Sensor| load.cause.as_ref().is_some_and(|cause| cause.sensor == sensor.name);
    for sensor in &load.sensors {
        let matters = sensor.level != Level::Normal || sensor.reading.is_none();
        match detail {
            Detail::All => row(f, "sensor", &format!("{}{}", words(sensor), marks(sensor)))?,
            Detail::Usual if matters && !is_cause(sensor) => row(f, "sensor", &words(sensor))?,
            Detail::Usual => {}
        }
    }
    Ok(())
}

/// What a sensor says, in words.
fn words(sensor: &Sensor) -> String {
    let Sensor { name, reading, off, why, .. } = sensor;
    let Some(reading) = *reading else {
        return format!("{name} is off: {}", off.as_deref().unwrap_or("the reason is not known"));
    };
    if let Some(probe) = name.strip_prefix("probe.") {
        return match (reading > 0.0, why) {
            (true, Some(why)) => format!("probe {probe} fails: {why}"),
            (true, None) => format!("probe {probe} fails"),
            (false, _) => format!("probe {probe} works"),
        };
    }
    let amount = amount(name, reading);
    match name.split_once([' ', '.']) {
        Some(("disk", path)) => format!("{amount} free on {path}"),
        Some(("inodes", path)) => format!("{amount} inodes free on {path}"),
        Some(("queue", queue)) => format!("{amount} messages in the queue ({queue})"),
        Some(("pressure", what)) => format!("tasks wait for {what} {amount} of the time"),
        Some(("cgroup", of)) => format!("tasks wait in {of} {amount} of the time"),
        _ => match &**name {
            "cpu_per_core" => format!("load average {amount} a core"),
            "memory_available" => format!("{amount} of memory available"),
            "sessions" => format!("{amount} of the MTA's processes are in use"),
            "delay" => format!("postpone's own delay is {amount}"),
            _ => format!("{name} {amount}"),
        },
    }
}

/// A reading or a mark in the unit of its sensor.
fn amount(sensor: &str, reading: f64) -> String {
    match sensor.split([' ', '.']).next().unwrap_or_default() {
        "disk" | "memory_available" => bytes(reading),
        "pressure" | "cgroup" => format!("{}%", Rounded(reading)),
        "sessions" => format!("{:.0}%", reading * 100.0),
        "delay" => format!("{:.3} s", reading),
        "inodes" | "queue" => number(reading as u64),
        _ => Rounded(reading).to_string(),
    }
}

fn marks(sensor: &Sensor) -> String {
    let marks = [sensor.elevated, sensor.high, sensor.critical];
    let marks = Level::ALL[1..].iter().zip(marks).filter_map(|(level, mark)| {
        let sign = if sensor.lower_is_worse { "<=" } else { ">=" };
        mark.map(|mark| format!("{} {sign} {}", level.name(), amount(&sensor.name, mark)))
    });
    let marks: Vec<_> = marks.collect();
    let is_probe = sensor.name.starts_with("probe.");
    if marks.is_empty() || is_probe { String::new() } else { format!(" ({})", marks.join(", ")) }
}

/// What was decided, by rule, in the last hour and since the start.
fn decisions(f: &mut Formatter<'_>, told: &Status, detail: Detail) -> fmt::Result {
    let spoken = |rule: &&Rule| rule.refused.total + rule.shadowed.total > 0;
    let shown = |rule: &&Rule| detail == Detail::All || spoken(rule);
    writeln!(f, "\n{:22}{:>10}{:>13}  mode", "", "last hour", "since start")?;
    let passed = [told.passed.hour, told.passed.total].map(number);
    writeln!(f, "{:22}{:>10}{:>13}", "passed", passed[0], passed[1])?;
    told.rules.iter().filter(shown).try_for_each(|shown| rule(f, shown))?;
    if told.rules.iter().any(|rule| rule.mode == Mode::Shadow && rule.shadowed.total > 0) {
        writeln!(f, "A rule in shadow mode refuses no client: it would have refused these.")?;
    }
    writeln!(f)
}

fn rule(f: &mut Formatter<'_>, rule: &Rule) -> fmt::Result {
    let (of_mode, other, others) = match rule.mode {
        Mode::Shadow => (rule.shadowed, rule.refused, "while it was enforced"),
        Mode::Enforce | Mode::Off => (rule.refused, rule.shadowed, "while in shadow"),
    };
    let [hour, total] = [of_mode.hour, of_mode.total].map(number);
    // A name without room beside the numbers has a line to itself.
    let name = match rule.name.chars().count() {
        ..22 => &*rule.name,
        _ => {
            writeln!(f, "{}", rule.name)?;
            ""
        }
    };
    writeln!(f, "{name:22}{hour:>10}{total:>13}  {}", rule.mode.name())?;
    if other.total > 0 {
        let [hour, total] = [other.hour, other.total].map(number);
        writeln!(f, "{:22}{hour:>10}{total:>13}  {others}", "")?;
    }
    let Some(most) = &rule.most else { return Ok(()) };
    let name = most.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let [times, of] = [most.times, most.of].map(number);
    row(f, "", &format!("mostly {}{name}: {times} of the {of} remembered", most.client))
}

fn failures(f: &mut Formatter<'_>, failures: &BTreeMap<String, u64>) -> fmt::Result {
    let some = failures.iter().filter(|(_, count)| **count > 0);
    let some: Vec<_> = some.map(|(name, count)| format!("{name} {}", number(*count))).collect();
    let some = if some.is_empty() { "none".to_owned() } else { some.join(", ") };
    row(f, "failures", &some)
}

/// From here on a flush that is late is told.
const LATE: Duration = Duration::from_secs(10);

fn state(f: &mut Formatter<'_>, state: &State, now: Time) -> fmt::Result {
    if !state.kept {
        return row(f, "state", "in memory only: lost at a restart");
    }
    let loaded = number(state.loaded_entries);
    let loading = if state.loading { format!("loading, {loaded} so far; ") } else { String::new() };
    let size = bytes(state.bytes as f64);
    let behind = match state.last_written {
        Some(written) if now.since(written) < LATE || state.behind_entries == 0 => String::new(),
        Some(written) => format!(
            ", {} changes not written yet, last written {}",
            number(state.behind_entries),
            ago(written, now)
        ),
        None => ", never written".into(),
    };
    row(f, "state", &format!("{loading}{size} on disk{behind}"))
}

/// A table that is as good as full drops entries soon.
fn is_nearly_full(table: &Table) -> bool {
    table.entries.saturating_mul(10) >= table.max.saturating_mul(9)
}

fn table(f: &mut Formatter<'_>, table: &Table) -> fmt::Result {
    let Table { name, entries, max, evicted, turned_away } = table;
    let full = if is_nearly_full(table) { "NEARLY FULL: " } else { "" };
    let of = format!("{full}{name}: {} of {}", number(*entries), number(*max));
    let dropped = match evicted + turned_away {
        0 => String::new(),
        _ => {
            format!(" ({} dropped early, {} turned away)", number(*evicted), number(*turned_away))
        }
    };
    row(f, "table", &format!("{of}{dropped}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::recent::Most;
    use crate::front::control::status::{Cause, Counted, Refused};

    const NOW: Time = Time::from_secs(1_795_298_840);

    fn sensor(name: &str, reading: Option<f64>, level: Level) -> Sensor {
        Sensor { name: name.into(), reading, level, high: Some(4.0), ..Sensor::default() }
    }

    fn told() -> Status {
        let counted = |hour, total| Counted { hour, total };
        let lmtp = Sensor {
            why: Some("Connection refused (os error 111)".into()),
            ..sensor("probe.lmtp", Some(1.0), Level::High)
        };
        let disk = Sensor { off: Some("Permission denied".into()), ..Sensor::default() };
        Status {
            version: "1.2.3".into(),
            since: Time::from_secs(1_795_298_840 - 3_725),
            now: NOW,
            settings: Settings {
                file: "/etc/postpone/postpone.toml".into(),
                loaded: Time::from_secs(1_795_298_000),
                in_force: "enforce access, velocity; shadow greylist".into(),
                replaced: Vec::new(),
                refused: Some(Refused { at: NOW, why: "limit: unknown field `quotas`".into() }),
            },
            listeners: vec!["inet:127.0.0.1:7421".into()],
            asked: Some(Time::from_secs(1_795_298_837)),
            sessions_open: 7,
            load: Load {
                level: Level::High,
                cause: Some(Cause { sensor: "probe.lmtp".into(), reading: 1.0, mark: 1.0 }),
                admitted: BTreeMap::from([("unknown".into(), 0.5)]),
                sensors: vec![
                    sensor("cpu_per_core", Some(0.351), Level::Normal),
                    lmtp,
                    Sensor { name: "disk /var".into(), ..disk },
                ],
                ..Load::default()
            },
            maintenance: vec![Closed {
                listener: None,
                until: NOW + Duration::from_secs(90),
                remaining_secs: 90,
                by_settings: true,
            }],
            bypass: Some(NOW + Duration::from_millis(599_999)),
            passed: counted(1_204, 88_110),
            rules: vec![
                Rule {
                    name: "velocity".into(),
                    refused: counted(30, 412),
                    most: Some(Most {
                        client: [192, 0, 2, 7].into(),
                        name: Some("out.example.net".into()),
                        times: 28,
                        of: 30,
                    }),
                    ..Rule::default()
                },
                Rule {
                    name: "greylist".into(),
                    mode: Mode::Shadow,
                    shadowed: counted(7, 60),
                    ..Rule::default()
                },
                Rule { name: "quiet".into(), ..Rule::default() },
            ],
            tables: vec![
                Table { name: "meters".into(), entries: 5, max: 10, ..Table::default() },
                Table { name: "pending".into(), entries: 9, max: 10, ..Table::default() },
            ],
            state: State {
                kept: true,
                bytes: 5_400_000,
                last_written: Some(NOW),
                ..State::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn a_status_reads_well() {
        assert_eq!(
            status(&told(), Detail::Usual).to_string(),
            "\
postpone      1.2.3, up 1 h 2 m, since 2026-11-21T21:05:15Z
settings      /etc/postpone/postpone.toml, loaded 2026-11-21T21:53:20Z
              RELOAD REFUSED 2026-11-21T22:07:20Z: limit: unknown field `quotas`
in force      enforce access, velocity; shadow greylist
bypass        until 2026-11-21T22:17:19Z (10 m left): everything passes
maintenance   all listeners until 2026-11-21T22:08:50Z (1 m 30 s left), by the
              settings
listeners     inet:127.0.0.1:7421
last asked    by an MTA 3 s ago
sessions      7 open
load          high: probe lmtp fails: Connection refused (os error 111)
admitted      of new sessions: unknown 50%
sensor        disk /var is off: Permission denied

                       last hour  since start  mode
passed                     1,204       88,110
velocity                      30          412  enforce
              mostly 192.0.2.7 (out.example.net): 28 of the 30 remembered
greylist                       7           60  shadow
A rule in shadow mode refuses no client: it would have refused these.

failures      none
state         5.1 MiB on disk
table         NEARLY FULL: pending: 9 of 10
"
        );
    }

    #[test]
    fn all_of_it_is_shown_on_request_and_fits_a_terminal() {
        let mut told = told();
        let name = "a-limit-with-a-name-of-many-words-that-somebody-has-chosen";
        told.rules.push(Rule { name: name.into(), ..Rule::default() });
        let text = status(&told, Detail::All).to_string();
        assert!(text.contains(&format!("\n{name}\n                               0 ")), "{text}");
        for line in
            ["quiet ", "table         meters: 5 of 10", "sensor        load average 0.35 a core"]
        {
            assert!(text.lines().any(|told| told.starts_with(line)), "{line}: {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
