//! Tables of `docs/` against what the program has.

use std::collections::BTreeSet;

use postpone::clock::Time;
use postpone::engine::recent::Most;
use postpone::front::control::status::{
    Allowed, Cause, Closed, Refused, Rule, Sensor, Settings, Shadow, Status, Table,
};
use postpone::policy::behaviour::evidence::Term;
use postpone::policy::decision::Reason;
use postpone::policy::limit::params::Count;
use postpone::policy::load::Level;
use postpone::telemetry::Failure;
use serde_json::Value;

use super::markdown::{Piece, pieces};
use super::support::daemon::{Daemon, field};
use super::support::milter::*;
use super::{checkout, page};

/// The rows of the table whose head begins with this word, by what stands between backticks in
/// each cell.
#[track_caller]
fn table(name: &str, head: &str) -> Vec<Vec<Vec<String>>> {
    let named = |cell: &String| {
        cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let found = pieces(&page(name)).into_iter().find_map(|piece| match piece {
        Piece::Table(rows) if rows[0][0] == head => Some(rows),
        _ => None,
    });
    let rows = found.unwrap_or_else(|| panic!("{name} has no table of {head}"));
    rows[1..].iter().map(|row| row.iter().map(named).collect()).collect()
}

/// What the first column of that table names.
#[track_caller]
fn first_column(name: &str, head: &str) -> BTreeSet<String> {
    table(name, head).into_iter().flat_map(|row| row[0].clone()).collect()
}

fn words<T: ToString>(words: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    words.into_iter().map(|word| word.to_string()).collect()
}

fn source(name: &str) -> String {
    std::fs::read_to_string(checkout().join("src").join(name)).unwrap()
}

#[test]
fn reasons_terms_counts_and_kinds_of_errors_are_all_named() {
    assert_eq!(first_column("log.md", "reason"), words(Reason::ALL.map(Reason::name)));
    assert_eq!(first_column("behaviour.md", "term"), words(Term::ALL.map(Term::name)));
    assert_eq!(first_column("limits.md", "count"), words(Count::ALL.map(Count::name)));
    assert_eq!(first_column("metrics.md", "kind"), words(Failure::ALL.map(Failure::name)));
    let levels = Level::ALL.into_iter().filter(|level| *level != Level::Normal);
    let told = pieces(&page("load.md")).into_iter().find_map(|piece| match piece {
        Piece::Table(rows) => Some(rows[1..].iter().map(|row| row[0].clone()).collect()),
        _ => None,
    });
    assert_eq!(told, Some(words(levels.map(Level::name))));
}

#[test]
fn every_metric_has_its_row_with_its_labels() {
    let told = first_column("metrics.md", "metric");
    let names: BTreeSet<_> = told.iter().map(|name| name.split('{').next().unwrap()).collect();
    let written = source("telemetry.rs");
    let written = written.split("mod names {").nth(1).unwrap().split("\n}").next().unwrap();
    let written: BTreeSet<_> = written.split('"').skip(1).step_by(2).collect();
    assert_eq!(names, written);

    let daemon = Daemon::start(
        "[maintenance]\nuntil = \"2099-01-01T00:00:00Z\"\n[[load.disk]]\npath = \"/\"\nhigh = \"1B\"\n",
    );
    daemon.told(&["shadow", "messages", "--for", "1h"]);
    let mut mta = Mta::with_client(&daemon.endpoint, "192.0.2.7");
    mta.ask(&helo("mx.example.net"));
    daemon.told(&["reload"]);
    let mut seen = 0;
    for line in daemon.get("/metrics").lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let labels = rest.split_once('}').unwrap().0;
        let labels: Vec<_> = labels.split("\",").map(|it| it.split('=').next().unwrap()).collect();
        if labels == ["le"] {
            continue;
        }
        let row = format!("{name}{{{}}}", labels.join(","));
        assert!(told.contains(&row), "{row}");
        seen += 1;
    }
    assert!(seen > 20, "{seen} with labels");
}

#[test]
fn every_table_of_memory_is_named() {
    let daemon = Daemon::start("");
    let status: Value = serde_json::from_str(&daemon.told(&["status", "--json"])).unwrap();
    let tables = status["tables"].as_array().unwrap().iter();
    let tables = words(tables.map(|table| table["name"].as_str().unwrap()));
    assert_eq!(first_column("metrics.md", "table"), tables);
}

#[test]
fn every_alert_has_its_row() {
    let rules = std::fs::read_to_string(checkout().join("packaging/prometheus/postpone.rules.yml"));
    let rules = rules.unwrap();
    let alerts = words(rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")));
    assert_eq!(first_column("metrics.md", "alert"), alerts);
}

/// In their order, so that a line can be read beside the table.
#[test]
fn every_field_of_a_log_line_has_its_row() {
    let written = source("telemetry.rs");
    let line = written.split("\nfn line(").nth(1).unwrap();
    let line = line.split("info!(").nth(1).unwrap().split(");\n}").next().unwrap();
    let fields: Vec<_> = line
        .lines()
        .map(|line| line.trim().split([' ', ',', '=']).next().unwrap())
        .filter(|name| !name.is_empty())
        .collect();
    let told: Vec<_> =
        table("log.md", "field").into_iter().flat_map(|row| row[0].clone()).collect();
    assert_eq!(told, fields);

    let daemon = Daemon::start("[access]\nallow = []\ndeny = [\"192.0.2.7\"]\n");
    let mut mta = Mta::with_client(&daemon.endpoint, "192.0.2.7");
    mta.ask(&helo("mx.example.net"));
    let line = daemon.decision(&[("reason", "access")]);
    let seen = fields.iter().filter(|name| field(&line, name).is_some()).count();
    assert!(seen > 8, "{line}");
}

/// Lines that are shown are lines that there are.
#[test]
fn every_message_of_the_log_is_one_that_is_written() {
    let mut sources = String::new();
    let mut folders = vec![checkout().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => sources += &std::fs::read_to_string(path).unwrap(),
            }
        }
    }
    for message in first_column("log.md", "message") {
        let is_written = [format!("\"{message}\""), format!("\"{message}: ")];
        let is_written = is_written.iter().any(|it| sources.contains(it))
            || sources.contains(&format!(" {message}\""));
        assert!(is_written, "{message}");
    }
}

/// Everything that may be missing is there.
fn status() -> Status {
    let now = Some(Time::from_secs(1_800_000_000));
    let most = Most { client: "192.0.2.7".parse().unwrap(), name: None, times: 1, of: 1 };
    let mut status = Status {
        settings: Settings { refused: Some(Refused::default()), ..Settings::default() },
        asked: now,
        maintenance: vec![Closed::default()],
        bypass: now,
        shadows: vec![Shadow::default()],
        learning_until: now,
        allowed: vec![Allowed::default()],
        rules: vec![Rule { most: Some(most), ..Rule::default() }],
        tables: vec![Table::default()],
        ..Status::default()
    };
    status.load.cause = Some(Cause::default());
    status.load.sensors = vec![Sensor::default()];
    for standing in ["suspect", "unknown", "proven"] {
        status.load.admitted.insert(standing.into(), 1.0);
    }
    status
}

/// Every field of the object, and of those in it, by its path.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.insert(format!("{path}{name}"));
                fields(value, &format!("{path}{name}."), found);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| fields(entry, path, found)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_status_is_named_in_the_row_of_its_object() {
    let mut all = BTreeSet::new();
    fields(&serde_json::to_value(status()).unwrap(), "", &mut all);
    let rows = table("control.md", "field");
    for field in &all {
        let is_named = rows.iter().any(|row| {
            row[0].iter().any(|name| {
                let name = name.replace("[]", "");
                name == *field
                    || field.strip_prefix(&format!("{name}.")).is_some_and(|within| {
                        within.split('.').all(|word| row[1].iter().any(|named| named == word))
                    })
            })
        });
        assert!(is_named, "{field}");
    }
    for name in rows.iter().flat_map(|row| &row[0]) {
        assert!(all.contains(&name.replace("[]", "")), "{name} is no field");
    }
}

#[test]
fn every_field_of_a_trace_and_of_its_answer_is_named() {
    let written = source("tool/replay.rs");
    let fields = |of: &str| {
        let body = written.split(&format!("struct {of} {{")).nth(1).unwrap();
        let body = body.split("\n}").next().unwrap();
        words(body.lines().filter_map(|line| line.trim().split_once(": ")).map(|(name, _)| name))
    };
    let mut trace = fields("Message");
    trace.insert("event".into());
    let told = table("replay.md", "field of the trace");
    assert_eq!(words(told.iter().map(|row| &row[0][0])), trace);
    assert_eq!(first_column("replay.md", "field of the answer"), fields("Said"));
}

#[test]
fn every_section_of_the_settings_has_its_row() {
    let printed = postpone::config::Settings::default().print();
    let sections: toml::Table = printed.parse().unwrap();
    let told = table("settings.md", "section");
    let told = words(told.iter().map(|row| row[0][0].trim_matches(['[', ']']).to_owned()));
    assert_eq!(told, words(sections.keys()));
}
