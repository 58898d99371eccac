use super::*;
use crate::setting::Severity;

fn mistakes(text: &str) -> Vec<String> {
    match Settings::parse("postpone.toml", text) {
        Ok(checked) => checked.report.lines(Severity::Warning).collect(),
        Err(Unusable(report)) => report.lines(Severity::Error).collect(),
    }
}

#[test]
fn an_empty_file_is_the_defaults_and_the_defaults_print_and_read_back() {
    let defaults = Settings::default();
    assert_eq!(Settings::parse("empty", "").unwrap().settings, defaults);
    let printed = defaults.print();
    let read = Settings::parse("printed", &printed);
    assert_eq!(read.unwrap_or_else(|Unusable(report)| panic!("{report}")).settings, defaults);
}

#[test]
fn every_independent_mistake_is_found_in_one_go_with_its_place() {
    let text = r#"
[server]
grace = "30"
hostnam = "mx1.example.org"

[[limit]]
name = "velocity"
count = "messages"
quota = "60/1m"
max = 3

[[limit]]
name = "volume"
count = "byte"
quota = "0/1m"

[greylist]
delay = "5m"
window = "1m"
mode = "on"

[greylst]
"#;
    let expected = [
        ("3:9", "server.grace", r#"expected a time such as "500ms", "30s""#),
        ("4:1", "server.hostnam", "unknown key `hostnam`: did you mean `hostname`?"),
        ("10:7", "limit[1].max", "messages take `quota`, not `max`"),
        ("14:9", "limit[2].count", "unknown word `byte`: did you mean `bytes`?"),
        ("15:9", "limit[2].quota", r#"expected a quota such as "60/1m""#),
        ("20:8", "greylist.mode", "unknown word `on`, expected enforce, shadow or off"),
        ("22:2", "greylst", "unknown section `greylst`: did you mean `greylist`?"),
    ];
    let found = mistakes(text);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, (place, key, message)) in found.iter().zip(expected) {
        let start = format!("postpone.toml:{place}: error: {key}: {message}");
        assert!(line.starts_with(&start), "{line}\n{start}");
    }
}

#[test]
fn meaning_is_checked_where_everything_could_be_read() {
    let found = mistakes("[greylist]\ndelay = \"5m\"\nwindow = \"1m\"\n");
    assert_eq!(
        found,
        [
            "postpone.toml:3:10: error: greylist.window: expected longer than `delay` (5m): no retry \
          could pass"
        ]
    );
}

/// What was left out because it cannot be read is not told as missing as well, and what is missing
/// elsewhere is.
#[test]
fn a_mistake_is_told_once_whatever_it_stands_in() {
    let good = r#"[[access.require]]
recipient_domain = "bank.example"
tls = true
clients = ["192.0.2.0/24"]

[[limit]]
name = "velocity"
count = "messages"
quota = "60/1m"
per = ["network"]
when = { standing = ["unknown"] }

[[load.probe]]
name = "lmtp"
connect = "inet:127.0.0.1:24"

[[load.disk]]
path = "/var"

[[load.cgroup]]
path = "/sys/fs/cgroup/postfix"

[load.allowance.high]
suspect = 0.1
unknown = 0.2
proven = 1.0

[[listen]]
milter = "inet:127.0.0.1:7421"
"#;
    assert_eq!(mistakes(good), [] as [&str; 0]);
    for (number, line) in (1..).zip(good.lines()) {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        // No key is a date.
        let broken = good.replace(line, &format!("{key} = 1979-05-27"));
        let found = mistakes(&broken);
        assert_eq!(found.len(), 1, "{key}: {found:#?}");
        let begin = format!("postpone.toml:{number}:{}: error: ", key.len() + 4);
        assert!(found[0].starts_with(&begin), "{found:#?}");
        assert!(found[0].contains(&format!(".{key}: ")), "{found:#?}");
    }
    let two = "[[access.require]]\nrecipient_domain = \".x\"\n[[access.require]]\ntls = true\n";
    let found = mistakes(two);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains(":2:20: error: access.require[1].recipient_domain"), "{found:#?}");
    assert!(found[1].contains(":3:1: error: access.require[2]: expected the key"), "{found:#?}");
}

#[test]
fn two_limits_of_one_name_are_an_error_at_the_second() {
    let limit = "[[limit]]\nname = \"a\"\ncount = \"messages\"\nquota = \"1/1m\"\n";
    let found = mistakes(&[limit, limit].concat());
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("postpone.toml:6:8: error: limit[2].name: expected a name"));
}

#[test]
fn what_is_no_toml_is_an_error_with_its_place_and_the_rest_is_still_read() {
    let found = mistakes("[server]\ngrace = \n[log]\nlevel = \"loud\"\n");
    assert!(found.iter().any(|line| line.starts_with("postpone.toml:2:")), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("postpone.toml:4:9:")), "{found:?}");
}

#[test]
fn an_empty_list_of_limits_means_none_and_a_missing_one_the_built_in() {
    let limits = |text| Settings::parse("x", text).unwrap().settings.limit;
    assert_eq!(limits("limit = []\n[log]\n"), []);
    assert_eq!(limits("[log]\n"), limit::Params::built_in());
}

#[test]
fn the_control_socket_is_a_unix_socket_or_none() {
    for socket in ["/run/postpone/control.sock", "inet:127.0.0.1:7425"] {
        let Err(Unusable(report)) =
            Settings::parse("postpone.toml", &format!("[control]\nsocket = \"{socket}\"\n"))
        else {
            panic!("{socket} was taken");
        };
        let errors: Vec<_> = report.lines(Severity::Error).collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("control.socket: expected a unix socket such as"), "{errors:?}");
    }
}

#[test]
fn the_control_socket_is_none_that_mtas_use() {
    let text = "[[listen]]\nmilter = \"unix:/x\"\n[control]\nsocket = \"unix:/x\"\n";
    let found = mistakes(text);
    assert!(
        found[0].contains("4:10: error: control.socket: expected a path of its own"),
        "{found:?}"
    );
}

/// Who mends a file must reach the daemon.
#[test]
fn the_control_socket_is_found_in_a_file_that_cannot_be_used() {
    let named = OrNone::Some(UnixPath::new("/tmp/x.sock"));
    let socket = "[control]\nsocket = \"unix:/tmp/x.sock\"\n";
    for (text, expected) in [
        ("", Control::default().socket),
        ("[control]\nsocket = 7\n", Control::default().socket),
        ("[control]\nsocket = \"none\"\n", OrNone::None),
        (socket, named.clone()),
        (&format!("[server]\ngrace = \"long\"\n{socket}"), named.clone()),
        (&format!("[server\n{socket}"), named.clone()),
        (&format!("{socket}[[limit]\nname = \n"), named),
    ] {
        assert_eq!(Control::socket_in(text), expected, "{text}");
    }
}

#[test]
fn maintenance_closes_sessions() {
    let text = "[maintenance]\nreply = \"451 4.3.2 later\"\n";
    let Err(Unusable(report)) = Settings::parse("postpone.toml", text) else { panic!("taken") };
    assert!(
        report.lines(Severity::Error).all(|line| line.contains("maintenance.reply: expected 421"))
    );
}

#[test]
fn a_state_folder_is_an_absolute_path_and_a_flush_neither_idle_nor_endless() {
    for (line, expected) in [
        ("path = \"postpone\"", "2:8: error: state.path: expected an absolute path of a folder"),
        ("flush = \"1ms\"", "2:9: error: state.flush: expected 10ms to 1m"),
        ("flush = \"2m\"", "2:9: error: state.flush: expected 10ms to 1m"),
    ] {
        let found = mistakes(&format!("[state]\n{line}\n"));
        assert!(found[0].contains(expected), "{found:?}");
    }
}

#[test]
fn a_warning_leaves_the_settings_usable() {
    let text = "[greylist]\nreply = \"451 4.7.1 Unusual rate; retry in {wait} seconds\"\n";
    let checked = Settings::parse("x", text).unwrap();
    assert!(!checked.report.has_errors());
    assert!(
        checked.report.lines(Severity::Warning).next().unwrap().contains("warning: greylist.reply")
    );
}
