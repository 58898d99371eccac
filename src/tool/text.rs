//! What a status looks like to people.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::clock::Time;
use crate::front::control::status::{
    Allowed, Closed, Load, Sensor, Shadow, State, Status, Table, whole,
};
use crate::policy::load::Level;
use crate::policy::load::Rounded;
use crate::setting::Mode;

/// A status in lines.
pub(super) fn status(status: &Status) -> impl Display {
    Text(status)
}

/// When maintenance is over, and how long that is from now.
pub(super) fn time_and_rest(closed: &Closed) -> String {
    let rest = Duration::from_secs(closed.remaining_secs);
    format!("{} ({} left)", closed.end(), humantime::format_duration(rest))
}

/// When something ends, and how long that is from now.
pub(super) fn ending(until: Time, now: Time) -> String {
    let rest = Duration::from_secs(until.since(now).as_nanos().div_ceil(1_000_000_000) as u64);
    format!("until {} ({} left)", whole(until), humantime::format_duration(rest))
}

struct Text<'a>(&'a Status);

/// Names stand in a column of this width.
const WIDTH: usize = 14;

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Status { version, since, now, listeners, sessions_open, .. } = self.0;
        let up = Duration::from_secs(now.since(*since).as_secs());
        let (since, up) = (whole(*since), humantime::format_duration(up));
        writeln!(f, "{:WIDTH$}{version}, since {since} ({up})", "postpone")?;
        writeln!(f, "{:WIDTH$}{}", "listeners", listeners.join(", "))?;
        writeln!(f, "{:WIDTH$}{sessions_open} open", "sessions")?;
        load(f, &self.0.load)?;
        maintenance(f, &self.0.maintenance)?;
        if let Some(until) = self.0.bypass {
            writeln!(f, "{:WIDTH$}{}: everything passes", "bypass", ending(until, *now))?;
        }
        for Shadow { rule, until } in &self.0.shadows {
            writeln!(f, "{:WIDTH$}{rule} {}, by hand", "shadow", ending(*until, *now))?;
        }
        if let Some(until) = self.0.learning_until {
            writeln!(f, "{:WIDTH$}only watches until {}", "behaviour", whole(until))?;
        }
        for Allowed { network, until } in &self.0.allowed {
            writeln!(f, "{:WIDTH$}{network} until {}", "allowed", whole(*until))?;
        }
        counts(f, "decisions", &self.0.decisions)?;
        counts(f, "shadows", &self.0.shadowed)?;
        counts(f, "failures", &self.0.failures)?;
        state(f, &self.0.state)?;
        self.0.tables.iter().try_for_each(|t| table(f, t))
    }
}

fn load(f: &mut Formatter<'_>, load: &Load) -> fmt::Result {
    write!(f, "{:WIDTH$}{}", "load", load.level.name())?;
    if load.mode != Mode::Enforce {
        write!(f, " (mode {}: it refuses nobody)", load.mode.name())?;
    }
    match &load.cause {
        Some(cause) => {
            let (reading, mark) = (Rounded(cause.reading), Rounded(cause.mark));
            writeln!(f, ", because {} says {reading} (mark {mark})", cause.sensor)?;
        }
        None => writeln!(f)?,
    }
    let admitted = |(standing, share): (&String, &f64)| format!("{standing} {:.0}%", share * 100.0);
    let admitted: Vec<_> = load.admitted.iter().map(admitted).collect();
    writeln!(f, "{:WIDTH$}{}", "admitted", admitted.join(", "))?;
    if load.sensors.is_empty() {
        writeln!(f, "{:WIDTH$}none", "sensors")?;
    }
    load.sensors.iter().try_for_each(|s| sensor(f, s))
}

fn sensor(f: &mut Formatter<'_>, sensor: &Sensor) -> fmt::Result {
    write!(f, "{:WIDTH$}{}: ", "sensor", sensor.name)?;
    match (&sensor.reading, &sensor.off) {
        (Some(reading), None) => write!(f, "{}, {}", Rounded(*reading), sensor.level.name())?,
        (_, Some(why)) => write!(f, "off: {why}")?,
        (None, None) => write!(f, "off")?,
    }
    let marks = [sensor.elevated, sensor.high, sensor.critical];
    let marks = Level::ALL[1..].iter().zip(marks).filter_map(|(level, mark)| {
        let sign = if sensor.lower_is_worse { "<=" } else { ">=" };
        mark.map(|mark| format!("{} {sign} {}", level.name(), Rounded(mark)))
    });
    writeln!(f, " ({})", marks.collect::<Vec<_>>().join(", "))
}

fn maintenance(f: &mut Formatter<'_>, closed: &[Closed]) -> fmt::Result {
    if closed.is_empty() {
        writeln!(f, "{:WIDTH$}none", "maintenance")?;
    }
    for closed in closed {
        let listener = closed.listener.as_deref().unwrap_or("all listeners");
        let by = if closed.by_settings { ", by the settings" } else { "" };
        writeln!(f, "{:WIDTH$}{listener} until {}{by}", "maintenance", time_and_rest(closed))?;
    }
    Ok(())
}

fn counts(f: &mut Formatter<'_>, name: &str, counts: &BTreeMap<String, u64>) -> fmt::Result {
    let some = counts.iter().filter(|(_, count)| **count > 0);
    let some: Vec<_> = some.map(|(name, count)| format!("{name} {count}")).collect();
    let some = if some.is_empty() { "none".to_owned() } else { some.join(", ") };
    writeln!(f, "{name:WIDTH$}{some}")
}

fn state(f: &mut Formatter<'_>, state: &State) -> fmt::Result {
    if !state.kept {
        return writeln!(f, "{:WIDTH$}in memory only", "state");
    }
    let (loaded, behind) = (state.loaded_entries, state.behind_entries);
    let loading = if state.loading { format!("loading, {loaded} so far; ") } else { String::new() };
    let written = state.last_written.map_or_else(|| "never".into(), whole);
    writeln!(
        f,
        "{:WIDTH$}{loading}{behind} changes behind, {} bytes on disk, last written {written}",
        "state", state.bytes
    )
}

fn table(f: &mut Formatter<'_>, table: &Table) -> fmt::Result {
    let Table { name, entries, max, evicted, turned_away } = table;
    write!(f, "{:WIDTH$}{name}: {entries} of {max}", "table")?;
    if evicted + turned_away > 0 {
        write!(f, " ({evicted} made room early, {turned_away} found none)")?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_well() {
        let now = Time::from_secs(1_795_298_840);
        let told = Status {
            version: "1.2.3".into(),
            since: Time::from_secs(1_795_298_840 - 3_725),
            now,
            listeners: vec!["inet:127.0.0.1:7421".into()],
            sessions_open: 7,
            load: Load {
                mode: Mode::Shadow,
                level: Level::High,
                cause: Some(crate::front::control::status::Cause {
                    sensor: "cpu_per_core".into(),
                    reading: 4.5,
                    mark: 4.0,
                }),
                admitted: BTreeMap::from([("unknown".into(), 0.5)]),
                sensors: vec![
                    Sensor {
                        name: "cpu_per_core".into(),
                        reading: Some(4.5),
                        level: Level::High,
                        high: Some(4.0),
                        ..Sensor::default()
                    },
                    Sensor {
                        name: "disk /var".into(),
                        off: Some("Permission denied".into()),
                        critical: Some(1e9),
                        lower_is_worse: true,
                        ..Sensor::default()
                    },
                ],
            },
            maintenance: vec![Closed {
                listener: None,
                until: now + Duration::from_secs(90),
                remaining_secs: 90,
                by_settings: true,
            }],
            decisions: BTreeMap::from([("pass".into(), 3), ("rate".into(), 0)]),
            tables: vec![Table { name: "meters".into(), entries: 5, max: 10, ..Table::default() }],
            ..Status::default()
        };
        assert_eq!(
            status(&told).to_string(),
            "\
postpone      1.2.3, since 2026-11-21T21:05:15Z (1h 2m 5s)
listeners     inet:127.0.0.1:7421
sessions      7 open
load          high (mode shadow: it refuses nobody), because cpu_per_core says 4.50 (mark 4)
admitted      unknown 50%
sensor        cpu_per_core: 4.50, high (high >= 4)
sensor        disk /var: off: Permission denied (critical <= 1000000000)
maintenance   all listeners until 2026-11-21T22:08:50Z (1m 30s left), by the settings
decisions     pass 3
shadows       none
failures      none
state         in memory only
table         meters: 5 of 10
"
        );
    }
}
