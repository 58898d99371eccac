//! `postpone check`: what an administrator is told about a settings file, before it is used.

mod support;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{XattrFlags, setxattr};
use support::{Folder, as_root};

/// sysexits.h: EX_CONFIG.
const BAD_SETTINGS: i32 = 78;

/// One that serves after all is not waited for.
fn postpone(arguments: &[&str]) -> Output {
    let program = ["60", env!("CARGO_BIN_EXE_postpone")];
    Command::new("timeout").args(program).args(arguments).output().expect("timeout (coreutils)")
}

fn check(file: &Path) -> Output {
    postpone(&["check", "--config", file.to_str().expect("a path of ours")])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

const MISTAKES: &str = r#"[server]
grace = "half a minute"
hostnam = "mx1.example.org"

[[limit]]
name = "velocity"
count = "messages"
quota = "60/1m"

[[limit]]
name = "velocity"
count = "sessions"

[access]
deny = ["198.51.100.0/33"]

[greylist]
delay = "5m"
window = "1m"
"#;

/// Where each mistake is, its key, and what was expected there.
const FOUND: [(&str, &str, &str); 6] = [
    ("2:9", "server.grace", r#"expected a time such as "500ms""#),
    ("3:1", "server.hostnam", "unknown key `hostnam`: did you mean `hostname`?"),
    ("11:8", "limit[2].name", "expected a name of its own"),
    ("12:9", "limit[2].count", "sessions need `max`"),
    ("15:9", "access.deny", "expected a network such as"),
    ("19:10", "greylist.window", "expected longer than `delay` (5m)"),
];

#[test]
fn every_mistake_is_told_in_one_go_with_its_place_its_key_and_what_was_expected() {
    let folder = Folder::new("check");
    let file = folder.write("postpone.toml", MISTAKES);
    // Who serves them is told the same.
    for command in ["check", "serve"] {
        let output = postpone(&[command, "--config", file.to_str().unwrap()]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(BAD_SETTINGS), "{said}");
        let name = format!("{}:", file.display());
        let mut places = said.split(&name).skip(1);
        for (place, key, expected) in FOUND {
            let there = places.next().unwrap_or_else(|| panic!("no {key} in {said}"));
            assert!(there.starts_with(place), "{key} is not at {place}: {there}");
            assert!(said.contains(&format!("error: {key}: {expected}")), "{key}: {said}");
        }
        assert_eq!(places.next(), None, "{said}");
    }
}

#[test]
fn what_is_no_toml_and_what_cannot_be_read_are_mistakes_as_well() {
    let folder = Folder::new("check");
    for (name, content, expected) in [
        ("torn.toml", "[server\n", "torn.toml:1:"),
        ("twice.toml", "[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "twice.toml:3:"),
        ("list.toml", "[access]\ndeny = [\"file:/no/such/list\"]\n", "/no/such/list: No such file"),
        ("other.toml", "[postpone]\n", "unknown section `postpone`: expected one of server"),
        (
            "key.toml",
            "grace = \"30s\"\n",
            "`grace` is outside any section: expected it in \
          [server]",
        ),
        (
            "mode.toml",
            "mode = \"off\"\n",
            "expected it in [behaviour], [greylist], [[limit]], [load]",
        ),
    ] {
        let output = check(&folder.write(name, content));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(BAD_SETTINGS), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let output = check(&folder.path().join("missing.toml"));
    assert_eq!(output.status.code(), Some(BAD_SETTINGS));
    let said = text(&output.stderr);
    assert!(said.starts_with("error: ") && said.contains("missing.toml: No such file"), "{said}");
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, b"[server]\ngrace = \"\xff\"\n").expect("a file of ours");
    let said = text(&check(&binary).stderr);
    assert!(said.contains("binary.toml: line 2: expected UTF-8"), "{said}");
}

#[test]
fn a_bad_line_of_a_list_is_told_with_its_file_and_line() {
    let folder = Folder::new("check");
    let list = folder.write("deny.list", "192.0.2.1\n# theirs\n.example.net\n192.0.2.300\n");
    let settings = format!("[access]\ndeny = [\"file:{}\"]\n", list.display());
    let output = check(&folder.write("postpone.toml", &settings));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(BAD_SETTINGS), "{said}");
    assert!(said.contains(&format!("{}:4: expected a network", list.display())), "{said}");
}

#[test]
fn good_settings_are_good_and_a_warning_does_not_make_them_bad() {
    let folder = Folder::new("check");
    let output = check(&folder.write("empty.toml", ""));
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("empty.toml: the settings can be used"));
    let said = text(&output.stderr);
    assert!(said.starts_with("warning: no [[listen]], so the milter is on inet:127.0.0.1:7421: "));
    assert_eq!(said.lines().count(), 1, "{said}");
    let listening = "[[listen]]\nmilter = \"unix:/run/postpone/own.sock\"\n";
    assert_eq!(text(&check(&folder.write("listening.toml", listening)).stderr), "");

    let ports = "[[listen]]\nmilter = \"inet:127.0.0.1:7421\"\n\
                 [[listen]]\nmilter = \"inet:127.0.0.1:7424\"\n";
    let said = text(&check(&folder.write("ports.toml", ports)).stderr);
    let warning = "warning: inet:127.0.0.1:7421 and inet:127.0.0.1:7424: while postpone is away, any \
                   local user can take these addresses and answer the MTA.";
    assert!(said.starts_with(warning) && said.lines().count() == 1, "{said}");

    let slowing = "[greylist]\nreply = \"451 4.7.1 Unusual rate; retry in {wait} seconds\"\n";
    let output = check(&folder.write("slowing.toml", slowing));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("warning: greylist.reply: some senders slow down"), "{said}");
    assert!(said.contains("slowing.toml:2:9"), "{said}");
}

/// What is printed can be checked, and amounts to the same.
#[test]
fn the_settings_in_force_can_be_printed_and_used() {
    let folder = Folder::new("check");
    let print = |arguments: &[&str]| {
        let output = postpone(&[&["check", "--print"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    // None is named, and none is installed where tests are run.
    let built_in = print(&[]);
    let said = text(&postpone(&["check"]).stderr);
    assert!(
        said.starts_with("no settings file: the built-in settings hold\nwarning: no [[listen]]")
    );
    for key in ["[server]", "[[listen]]", "max_pending_per_network = 10000", "window = \"2d\""] {
        assert!(built_in.contains(key), "{key} in {built_in}");
    }
    let ours = "limit = []\n[greylist]\ndelay = \"120s\"\n[control]\nhttp = \"none\"\n";
    let ours = print(&["--config", folder.write("ours.toml", ours).to_str().unwrap()]);
    assert!(ours.contains("limit = []") && ours.contains("delay = \"2m\""), "{ours}");
    assert!(ours.contains("http = \"none\"") && !ours.contains("[[limit]]"), "{ours}");
    for printed in [built_in, ours] {
        let file = folder.write("printed.toml", &printed);
        assert_eq!(print(&["--config", file.to_str().unwrap()]), printed);
    }
}

/// What would be believed to hold, and does not.
#[test]
fn what_can_never_match_is_an_error_at_its_own_place() {
    let folder = Folder::new("check");
    let settings = r#"[server]
own_names = ["mx.example.org", "@example.org"]

[access]
allow = ["192.0.2.0/24", "::ffff:192.0.2.0/120", ".", "nonsense"]
exempt_recipients = ["postmaster", "@example.org"]

[[access.require]]
recipient_domain = ".bank.example"
tls = true

[[access.require]]
recipient_domain = "*.bank.example"
clients = ["192.0.2.1", ".@example.net"]

[[limit]]
name = "domain"
count = "messages"
quota = "60/1m"
when = { recipient_domain = ["example.org", "@example.net"], sender_domain = [".example.com"] }

[greylist]
exempt_recipient_domains = ["*.example.org"]
"#;
    let output = check(&folder.write("postpone.toml", settings));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(BAD_SETTINGS), "{said}");
    for place in
        ["2:32", "5:26", "5:50", "5:55", "9:20", "13:20", "14:25", "20:45", "20:79", "23:29"]
    {
        assert!(said.contains(&format!("postpone.toml:{place}\n")), "nothing at {place}: {said}");
    }
    for words in [
        r#"did you mean "bank.example"?"#,
        "an IPv4 network written as IPv4, \
                     192.0.2.0/24",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let exempt = "[access]\nexempt_recipients = [\"postmaster\", \"@example.org\"]\n";
    let said = text(&check(&folder.write("exempt.toml", exempt)).stderr);
    assert!(said.contains("exempt.toml:2:36") && said.contains("no recipient can be"), "{said}");
}

/// Clients behind a translator are known by their IPv4 address.
#[test]
fn what_stands_for_an_ipv4_network_is_an_error_wherever_a_network_may_be_named() {
    let folder = Folder::new("check");
    let list = folder.write("deny.list", "192.0.2.1\n64:ff9b::192.0.2.7\n");
    let settings = format!(
        r#"[client]
nat64 = ["64:ff9b::/96", "2001:db8:64::/48"]
[access]
allow = ["127.0.0.0/8", "::1", "64:ff9b::192.0.2.0/120"]
deny = ["file:{}"]
[[access.require]]
recipient_domain = "bank.example"
clients = ["2001:db8:64:c633:64::/80"]
[maintenance]
allow = ["::ffff:0:203.0.113.0/120"]
[[limit]]
name = "velocity"
count = "messages"
quota = "60/1m"
when = {{ network = ["::ffff:203.0.113.0/120"] }}
[greylist]
when = {{ network = ["64:ff9b::203.0.113.0/120"] }}
"#,
        list.display()
    );
    let output = check(&folder.write("postpone.toml", &settings));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(BAD_SETTINGS), "{said}");
    for words in [
        "postpone.toml:4:32",
        "192.0.2.0/24: no client is known by an address in 64:ff9b::c000:200/120",
        "deny.list:2: expected an IPv4 network written as IPv4, 192.0.2.7/32",
        "postpone.toml:8:12",
        "198.51.100.0/24",
        "postpone.toml:10:10",
        "postpone.toml:15:8",
        "postpone.toml:17:8",
    ] {
        assert!(said.contains(words), "no {words}: {said}");
    }
    let without = settings.replace("nat64 = [", "nat64 = [] # ");
    let said = text(&check(&folder.write("without.toml", &without)).stderr);
    assert!(!said.contains("64:ff9b") && !said.contains("2001:db8"), "{said}");
}

#[test]
fn a_list_that_is_no_text_and_a_pipe_are_told_with_the_line() {
    let folder = Folder::new("check");
    let list = folder.path().join("deny.list");
    std::fs::write(&list, b"192.0.2.1\n.b\xfccher.example\n").unwrap();
    let of = |list: &Path| format!("[access]\ndeny = [\"file:{}\"]\n", list.display());
    let said = text(&check(&folder.write("latin.toml", &of(&list))).stderr);
    assert!(said.contains("deny.list: line 2: expected UTF-8"), "{said}");
    let many = folder.write("many.list", "192.0.2.300\n192.0.2.1\n*.example\n");
    let said = text(&check(&folder.write("many.toml", &of(&many))).stderr);
    assert!(said.contains("many.list:1: ") && said.contains("many.list:3: "), "{said}");
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let said = text(&check(&folder.write("pipe.toml", &of(&pipe))).stderr);
    assert!(said.contains("expected a regular file"), "{said}");
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_an_error() {
    let folder = Folder::new("check");
    let path = "a".repeat(110);
    let settings = format!("[[listen]]\nmilter = \"unix:/{path}\"\n");
    let said = text(&check(&folder.write("long.toml", &settings)).stderr);
    assert!(said.contains("at most 107 bytes"), "{said}");
}

#[test]
fn a_limit_of_ones_own_does_not_remove_the_built_in_ones_in_silence() {
    let folder = Folder::new("check");
    let own = "[[limit]]\nname = \"messages\"\ncount = \"messages\"\nquota = \"60/1m\"\nmode = \
               \"shadow\"\n";
    let file = folder.write("own.toml", own);
    // The file stands where one expects it to stand, too.
    let output = postpone(&["check", file.to_str().unwrap()]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("; in shadow: messages, greylist"), "{said}");
    let gone = "built-in limits that no longer hold: sessions, connections, recipients";
    assert!(said.contains(gone), "{said}");

    let printed = text(&postpone(&["check", "--print", file.to_str().unwrap()]).stdout);
    let keep: Vec<&str> = printed
        .lines()
        .skip_while(|line| !line.starts_with("# Built-in limits that no longer hold"))
        .filter_map(|line| line.strip_prefix("# "))
        .skip_while(|line| !line.starts_with("[[limit]]"))
        .collect();
    let kept = folder.write("kept.toml", &format!("{own}\n{}\n", keep.join("\n")));
    let said = text(&postpone(&["check", kept.to_str().unwrap()]).stdout);
    assert!(said.contains("enforced: ") && !said.contains("built-in"), "{said}");
}

#[test]
fn an_allowlist_without_loopback_is_warned_of() {
    let folder = Folder::new("check");
    let allow = |list: &str| {
        let listen = "[[listen]]\nmilter = \"unix:/run/postpone/own.sock\"\n";
        let file = folder.write("allow.toml", &format!("{listen}[access]\nallow = [{list}]\n"));
        let output = check(&file);
        assert_eq!(output.status.code(), Some(0));
        text(&output.stderr)
    };
    let said = allow("\"192.0.2.0/24\"");
    assert!(said.contains("warning: access.allow: 127.0.0.1 or ::1 is not in it"), "{said}");
    assert!(allow("\"127.0.0.0/8\", \"192.0.2.0/24\"").contains("allow: ::1 is not in it"));
    assert_eq!(allow("\"127.0.0.0/8\", \"::1\", \"192.0.2.0/24\""), "");
}

#[test]
fn colours_are_for_a_terminal_that_has_them_and_who_wants_none_gets_none() {
    let folder = Folder::new("check");
    let file = folder.write("wrong.toml", "[server]\ngrace = 5\n");
    let command = format!("'{}' check '{}'", env!("CARGO_BIN_EXE_postpone"), file.display());
    let said = |variables: [(&str, &str); 2]| {
        let mut script = Command::new("script"); // it gives a terminal
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        let output = script.stdin(std::process::Stdio::null()).envs(variables).output();
        let output = output.expect("script: apt-get install bsdutils");
        assert_eq!(output.status.code(), Some(BAD_SETTINGS));
        text(&output.stdout)
    };
    let coloured = |variables| said(variables).contains('\x1b');
    assert!(coloured([("TERM", "xterm"), ("NO_COLOR", "")]));
    assert!(!coloured([("TERM", "xterm"), ("NO_COLOR", "1")]));
    assert!(!coloured([("TERM", "dumb"), ("NO_COLOR", "")]));
    assert!(said([("TERM", "dumb"), ("NO_COLOR", "")]).contains("error: server.grace: "));
}

/// Runs `check` as the host's root sees it, but with these users.
fn check_with_users(users: &str, groups: &str, folder: &Folder, file: &Path) -> String {
    let [users, groups] = [("passwd", users), ("group", groups)].map(|(name, more)| {
        let own = std::fs::read_to_string(Path::new("/etc").join(name)).expect("a table of users");
        folder.write(name, &format!("{own}\n{more}\n"))
    });
    let script = "mount --bind \"$1\" /etc/passwd && mount --bind \"$2\" /etc/group && \
                  exec \"$3\" check \"$4\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([&users, &groups, Path::new(env!("CARGO_BIN_EXE_postpone")), file])
        .output()
        .expect("unshare (util-linux)");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// Root reads everything, and the daemon is another user.
#[test]
fn a_file_that_the_daemons_user_may_not_read_is_warned_of_and_the_kernel_says_which() {
    as_root(); // nobody else can ask as that user
    const POSTPONE: u32 = 64_731;
    let folder = Folder::new("rights");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(folder.path(), 0o755);
    let list = folder.write("allow.list", "127.0.0.0/8\n::1\n");
    let listen = "[[listen]]\nmilter = \"unix:/run/postpone/own.sock\"\n";
    let access = format!("{listen}[access]\nallow = [\"file:{}\"]\n", list.display());
    let file = folder.write("postpone.toml", &access);
    let user = format!("postpone:x:{POSTPONE}:{POSTPONE}::/:/bin/false");
    let said = |group: &str| check_with_users(&user, group, &folder, &file);
    let warning =
        |path: &Path| format!("warning: {}: the user postpone may not read it", path.display());
    mode(&list, 0o644);
    assert_eq!(said(""), "");
    mode(&list, 0o640);
    assert_eq!(said(""), format!("{}\n", warning(&list)));
    // By a group of its own,
    chown(&list, Some(0), Some(64_732)).unwrap();
    assert_eq!(said("mail-lists:x:64732:postpone"), "");
    // and by what only an access control list says: one for its user, which may read.
    chown(&list, Some(0), Some(0)).unwrap();
    let entries = [(1u16, 6u16, u32::MAX), (2, 4, POSTPONE), (4, 4, u32::MAX), (16, 4, u32::MAX)];
    let entries = entries.into_iter().chain([(32, 0, u32::MAX)]);
    let entries = entries.flat_map(|(tag, right, id)| {
        [&tag.to_le_bytes()[..], &right.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    let control: Vec<u8> = 2u32.to_le_bytes().into_iter().chain(entries).collect();
    setxattr(&list, "system.posix_acl_access", &control, XattrFlags::empty()).unwrap();
    assert_eq!(said(""), "");
    mode(folder.path(), 0o700);
    let closed = format!(": it cannot enter {}", folder.path().display());
    let both = [&file, &list].map(|path| format!("{}{closed}\n", warning(path)));
    assert_eq!(said(""), both.concat());
}

/// A policy service learns the host's name from Postfix, or from nobody.
#[test]
fn a_name_without_a_dot_that_replies_would_have_is_warned_of() {
    let folder = Folder::new("name");
    let said = |settings: &str, postfix: &str| {
        let file = folder.write("postpone.toml", settings);
        let postconf = folder.write("postconf", &format!("#!/bin/sh\necho {postfix}\n"));
        for program in [&postconf, &folder.write("postfix", "#!/bin/sh\n")] {
            std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        let output = Command::new(env!("CARGO_BIN_EXE_postpone"))
            .arg("check")
            .arg(&file)
            .env("PATH", path)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        text(&output.stderr)
    };
    let policy = "[[listen]]\npolicy = \"unix:/run/postpone/policy.sock\"\n";
    let warned = said(policy, "mx1");
    assert!(
        warned.starts_with("warning: replies name this host mx1, which has no dot"),
        "{warned}"
    );
    assert_eq!(said(policy, "mx1.example.org"), "");
    // A milter is told.
    assert_eq!(said("[[listen]]\nmilter = \"unix:/run/postpone/own.sock\"\n", "mx1"), "");
    let set = format!("[server]\nhostname = \"mx1.example.org\"\n{policy}");
    assert_eq!(said(&set, "mx1"), "");
    for wrong in [".example.org", "mx1..example.org", "mx1.example.org.", "."] {
        let file = folder.write("wrong.toml", &format!("[server]\nhostname = \"{wrong}\"\n"));
        assert_eq!(check(&file).status.code(), Some(BAD_SETTINGS), "{wrong}");
    }
    let set = said("[server]\nhostname = \"mx1\"\n", "mx1.example.org");
    assert!(set.contains("warning: server.hostname: replies name this host mx1"), "{set}");
}
