//! The alert rules: Prometheus takes them, every metric that they ask for is one of the real daemon,
//! and each tells of its trouble and of nothing else.
//!
//! They are tried by `promtool`, which has no package of its own: that of Prometheus would start a
//! server.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::daemon::Daemon;
use support::milter::*;
use support::{Folder, debian, wait_until};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus/postpone.rules.yml");

/// What happens: its samples, a minute apart, and which alerts somebody has after some minutes.
struct Story {
    what: &'static str,
    samples: &'static [(&'static str, &'static str)],
    told: &'static [(u32, &'static [&'static str])],
}

/// `1x9` is a value that stays for ten minutes, `0+2x9` one that grows by two each minute; `_` is
/// none.
const STORIES: &[Story] = &[
    Story {
        what: "an ordinary day",
        samples: &[
            ("postpone_events_total{event=\"connect\"}", "0+60x600"),
            ("postpone_failures_total{kind=\"panic\"}", "0x600"),
            ("postpone_failures_total{kind=\"frame\"}", "0+0.2x600"),
            ("postpone_state_behind_seconds", "0 1x600"),
            ("postpone_table_turned_away_total{table=\"pending\"}", "0x600"),
            ("postpone_table_entries{table=\"meters\"}", "1000+10x600"),
            ("postpone_table_max_entries{table=\"meters\"}", "4000000x600"),
            ("postpone_table_entries{table=\"crowds\"}", "0x600"),
            ("postpone_table_max_entries{table=\"crowds\"}", "0x600"),
            ("postpone_greylist_suspended", "0x600"),
            ("postpone_load_level", "0x100 2x20 3x5 0x480"),
            ("postpone_load_sensor_on{sensor=\"io\"}", "1x600"),
            ("postpone_reloads_total{outcome=\"done\"}", "_x60 1x540"),
            ("postpone_decision_seconds_bucket{le=\"0.0001\"}", "0+999x600"),
            ("postpone_decision_seconds_bucket{le=\"+Inf\"}", "0+1000x600"),
            ("postpone_decisions_total{action=\"pass\"}", "0+950x600"),
            ("postpone_decisions_total{action=\"close\"}", "0+50x600"),
            ("postpone_maintenance{scope=\"all\"}", "0x60 1x30 0x510"),
        ],
        told: &[(30, &[]), (61, &[]), (90, &[]), (130, &[]), (240, &[]), (600, &[])],
    },
    Story {
        what: "it is gone, and comes back",
        samples: &[("up{job=\"postpone\"}", "1x10 0x20 1x30")],
        told: &[(14, &[]), (17, &["PostponeDown"]), (40, &[])],
    },
    Story {
        what: "nobody has told Prometheus where it is",
        samples: &[("up{job=\"postpone\"}", "_x30")],
        told: &[(6, &["PostponeDown"])],
    },
    Story {
        what: "it is started again and again",
        samples: &[(
            "process_start_time_seconds{job=\"postpone\"}",
            "100x5 101x5 102x5 103x5 104x5 105x200",
        )],
        told: &[(10, &[]), (40, &["PostponeRestarts"]), (200, &[])],
    },
    Story {
        what: "a decision has panicked, once",
        samples: &[("postpone_failures_total{kind=\"panic\"}", "0x20 1x100")],
        told: &[(19, &[]), (25, &["PostponeFault"]), (60, &[])],
    },
    Story {
        what: "a scanner talks to a listener for a while",
        samples: &[("postpone_failures_total{kind=\"frame\"}", "0x20 0+5x100")],
        told: &[(20, &[]), (60, &["PostponeTrouble"])],
    },
    Story {
        what: "the disk stalls",
        samples: &[("postpone_state_behind_seconds", "0x10 0+60x60")],
        told: &[(12, &[]), (30, &["PostponeStateBehind"])],
    },
    Story {
        what: "a table fills up, until nothing new goes in",
        samples: &[
            ("postpone_table_entries{table=\"pending\"}", "0+100x95 9500x200"),
            ("postpone_table_max_entries{table=\"pending\"}", "10000x200"),
            ("postpone_table_turned_away_total{table=\"pending\"}", "0x170 0+50x100"),
        ],
        told: &[
            (100, &[]),
            (165, &["PostponeTableNearlyFull"]),
            (175, &["PostponeTableNearlyFull", "PostponeTableTurnsAway"]),
        ],
    },
    Story {
        what: "first contacts are too many to be remembered",
        samples: &[("postpone_greylist_suspended", "0x10 1x30 0x30")],
        told: &[(15, &[]), (25, &["PostponeGreylistSuspended"]), (50, &[])],
    },
    Story {
        what: "the host bears no more, for half an hour and then less",
        samples: &[("postpone_load_level", "0x10 3x30 2x100")],
        told: &[(20, &[]), (30, &["PostponeLoadCritical"]), (110, &["PostponeLoadHigh"])],
    },
    Story {
        what: "a sensor cannot be read",
        samples: &[("postpone_load_sensor_on{sensor=\"queue\"}", "0x60")],
        told: &[(20, &[]), (40, &["PostponeSensorOff"])],
    },
    Story {
        what: "the first reload of all is refused",
        samples: &[("postpone_reloads_total{outcome=\"refused\"}", "_x20 1x200")],
        told: &[(19, &[]), (25, &["PostponeReloadRefused"]), (100, &[])],
    },
    Story {
        what: "a later one is refused",
        samples: &[("postpone_reloads_total{outcome=\"refused\"}", "1x120 2x200")],
        told: &[(119, &[]), (125, &["PostponeReloadRefused"])],
    },
    Story {
        what: "decisions take longer than a hundredth of a second",
        samples: &[
            ("postpone_decision_seconds_bucket{le=\"0.01\"}", "0+90x60"),
            ("postpone_decision_seconds_bucket{le=\"0.1\"}", "0+100x60"),
            ("postpone_decision_seconds_bucket{le=\"+Inf\"}", "0+100x60"),
        ],
        told: &[(5, &[]), (30, &["PostponeSlow"])],
    },
    Story {
        what: "every second command is refused",
        samples: &[
            ("postpone_decisions_total{action=\"pass\"}", "0+100x120"),
            ("postpone_decisions_total{action=\"close\"}", "0+100x120"),
        ],
        told: &[(20, &[]), (60, &["PostponeRefusesMuch"])],
    },
    Story {
        what: "somebody has forgotten the maintenance",
        samples: &[("postpone_maintenance{scope=\"all\"}", "0x10 1x300")],
        told: &[(200, &[]), (260, &["PostponeMaintenanceLong"])],
    },
];

fn promtool() -> PathBuf {
    debian::unpacked(&["prometheus"]).join("usr/bin/promtool")
}

#[track_caller]
fn says_yes(output: &Output) {
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn prometheus_takes_the_rules() {
    let check = Command::new(promtool()).args(["check", "rules", "--lint-fatal", RULES]).output();
    says_yes(&check.unwrap());
}

/// As Prometheus reads stories, and that of each moment all alerts are told.
fn stories() -> String {
    let mut text = format!("rule_files: [{RULES}]\nevaluation_interval: 1m\ntests:\n");
    for Story { what, samples, told } in STORIES {
        let _ = writeln!(text, "- name: {what}\n  interval: 1m\n  input_series:");
        let is_up = !samples.iter().any(|(series, _)| series.starts_with("up{"));
        let up = is_up.then_some(("up{job=\"postpone\"}", "1x700"));
        for (series, values) in samples.iter().copied().chain(up) {
            let _ = writeln!(text, "  - series: '{series}'\n    values: '{values}'");
        }
        text.push_str("  promql_expr_test:\n");
        for (minute, alerts) in *told {
            let expression = "count by (alertname) (ALERTS{alertstate=\"firing\"})";
            let _ = writeln!(text, "  - expr: '{expression}'\n    eval_time: {minute}m");
            let _ = writeln!(text, "    exp_samples:");
            for alert in *alerts {
                let _ = writeln!(text, "    - labels: '{{alertname=\"{alert}\"}}'\n      value: 1");
            }
        }
    }
    text
}

#[test]
fn somebody_is_told_of_each_trouble_and_of_nothing_else() {
    let folder = Folder::new("alerts");
    let stories = folder.write("stories.yml", &stories());
    let tried = Command::new(promtool()).args(["test", "rules"]).arg(stories).output();
    says_yes(&tried.unwrap());
    let rules = fs::read_to_string(RULES).unwrap();
    for line in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let is_told = |story: &Story| story.told.iter().any(|(_, alerts)| alerts.contains(&line));
        assert!(STORIES.iter().any(is_told), "no story has {line}");
    }
}

/// A daemon that has refused, reloaded and looked at its load has every metric there is.
#[test]
fn what_the_rules_ask_for_is_what_the_daemon_tells() {
    let state = Folder::new("alerts");
    let policy = format!(
        "[access]\nallow = []\ndeny = [\"198.51.100.0/24\"]\n\
         [load.memory_available]\nelevated = \"1MiB\"\n\
         [state]\npath = \"{}\"\n",
        state.path().display()
    );
    let daemon = Daemon::start(&policy);
    let mut mta = Mta::with_client(&daemon.endpoint, "198.51.100.7");
    assert!(mta.ask(&helo("mx.example.net")).starts_with("421 "));
    daemon.reload("nonsense = 1\n");
    daemon.line("the refused reload", |line| line.contains("not reloaded"));
    let page = wait_until("the metrics of load and state", || {
        let page = daemon.get("/metrics");
        let all = ["postpone_load_sensor_on{", "postpone_state_behind_seconds "];
        all.iter().all(|metric| page.contains(metric)).then_some(page)
    });
    let rules = fs::read_to_string(RULES).unwrap();
    let expressions =
        rules.split("expr:").skip(1).map(|rule| rule.split("labels:").next().unwrap());
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expressions.flat_map(|text| text.split(move |c| !is_part(c)));
    let is_metric = |word: &&str| word.starts_with("postpone_") || word.starts_with("process_");
    let asked: BTreeSet<_> = words.filter(is_metric).collect();
    assert!(asked.len() > 10, "{asked:?}");
    for metric in asked {
        let is_it =
            |line: &str| line.strip_prefix(metric).is_some_and(|r| r.starts_with(['{', ' ']));
        assert!(page.lines().any(is_it), "no {metric} in {page}");
    }
}
