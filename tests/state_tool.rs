//! `postpone state`: what a stopped daemon has kept, examined, carried to another host, and filled
//! by what postgrey or sqlgrey knew. The binary, its folders and the dumps are real; of Berkeley DB
//! and SQLite the databases as well.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use postpone::clock::Time;
use postpone::store::folder::Folder as State;
use postpone::store::{Change, Home};
use rustix::process::Signal;
use support::daemon::Daemon;
use support::{Folder, as_root, wait_until};

/// sysexits.h: EX_DATAERR, EX_NOINPUT, EX_OSERR, EX_CANTCREAT, EX_IOERR, EX_CONFIG.
const DATA: i32 = 65;
const INPUT: i32 = 66;
const OUTPUT: i32 = 73;
const STATE: i32 = 74;
const SETTINGS: i32 = 78;

const NOW: Time = Time::from_secs(1_800_000_000);

const HEADER: &str = r#"{"postpone_state":1,"secret":"000102030405060708090a0b0c0d0e0f"}"#;

/// An entry of every table.
const ENTRIES: [&str; 8] = [
    r#"{"table":"penalties","key":"00000000000000000000000000000001","offences":3,"until":"2100-01-01T00:00:00.000000001Z","forgotten":"2100-01-02T00:00:00.000000000Z"}"#,
    r#"{"table":"meters","key":"00000000000000000000000000000002","empty_at":"2100-01-01T00:00:00.500000000Z"}"#,
    r#"{"table":"sketches","key":"00000000000000000000000000000003","ends":"2100-01-01T00:00:00.000000000Z","seen":"00000e0f10110a0b0c0d"}"#,
    r#"{"table":"proven","key":"00000000000000000000000000000004","passes":7,"enough":true,"until":"2100-01-01T00:00:00.000000000Z"}"#,
    r#"{"table":"passed","key":"f0000000000000000000000000000005","until":"2100-01-01T00:00:00.000000000Z"}"#,
    r#"{"table":"imported","key":"00000000000000000000000000000006","until":"2100-01-01T00:00:00.000000000Z"}"#,
    r#"{"table":"pending","key":"00000000000000000000000000000007","first":"2026-01-01T00:00:00.000000000Z","until":"2100-01-01T00:00:00.000000000Z"}"#,
    r#"{"table":"crowds","key":"00000000000000000000000000000008","stored":9,"until":"2100-01-01T00:00:00.000000000Z"}"#,
];

fn all() -> String {
    format!("{HEADER}\n{}\n", ENTRIES.join("\n"))
}

/// One that waits for ever is ended.
fn state(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_postpone"), "state"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout (coreutils)");
    // It need not read all of it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn at(folder: &Path, arguments: &[&str], input: &str) -> Output {
    state(&[arguments, &["--path", folder.to_str().unwrap()]].concat(), input)
}

/// What is said where it succeeds.
#[track_caller]
fn done(output: &Output) -> String {
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

/// What is said where it fails with this code.
#[track_caller]
fn failed(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}{said}", text(&output.stdout));
    assert!(!said.contains("panicked"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
    said.replacen("error: ", "", 1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[track_caller]
fn exported(folder: &Path) -> String {
    let output = at(folder, &["export"], "");
    done(&output);
    text(&output.stdout)
}

#[test]
fn what_was_exported_is_the_same_in_another_folder() {
    let folder = Folder::new("state");
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let told = done(&at(&one, &["import", "-"], &all()));
    assert!(told.starts_with("8 entries read, 8 imported, 0 already known\n"), "{told}");
    assert_eq!(exported(&one), all());

    let file = folder.path().join("export");
    fs::write(&file, "an earlier one").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let told = done(&at(&one, &["export", file.to_str().unwrap()], ""));
    assert_eq!(told, "8 entries exported, 0 expired ones left out\n");
    // The secret is in it.
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");

    done(&at(&other, &["import", file.to_str().unwrap()], ""));
    assert_eq!(exported(&other), all());
    let report = done(&at(&other, &["check"], ""));
    assert!(report.contains("state 1, ") && report.contains("all of it can be read"), "{report}");
    for table in ENTRIES.map(|entry| entry.split('"').nth(3).unwrap()) {
        let line = report.lines().find(|line| line.starts_with(table)).unwrap();
        let numbers: Vec<_> = line.split_whitespace().skip(1).collect();
        assert_eq!(numbers, ["1", "0", "0"], "{line}");
    }
}

#[test]
fn to_import_twice_is_as_good_as_once_and_of_two_the_stronger_holds() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    done(&at(path, &["import", "-"], &all()));
    let told = done(&at(path, &["import", "-"], &all()));
    assert!(told.contains("8 entries read, 0 imported, 8 already known"), "{told}");
    assert_eq!(exported(path), all());

    let passed = |year: u32| ENTRIES[4].replace("2100", &year.to_string());
    let weaker = format!("{HEADER}\n{}\n", passed(2099));
    assert!(done(&at(path, &["import", "-"], &weaker)).contains("0 imported, 1 already known"));
    assert_eq!(exported(path), all());
    let both = format!("{HEADER}\n{}\n{}\n", passed(2102), passed(2101));
    assert!(done(&at(path, &["import", "-"], &both)).contains("1 imported, 1 already known"));
    assert_eq!(exported(path), all().replace(ENTRIES[4], &passed(2102)));

    let proven = ENTRIES[3].replace("\"passes\":7", "\"passes\":3").replace("2100", "2103");
    let told = done(&at(path, &["import", "-"], &format!("{HEADER}\n{proven}\n")));
    assert!(told.contains("1 imported"), "{told}");
    assert!(exported(path).contains(&ENTRIES[3].replace("2100", "2103")), "passes remain");
}

#[test]
fn what_could_not_be_read_again_is_not_imported() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    let returns = r#"{"table":"returns","key":"00000000000000000000000000000001","last":"2100-01-01T00:00:00Z","awaited":[0,0],"never":1.0,"early":0.0,"proper":0.0}"#;
    let name = format!(
        r#"{{"table":"names","key":"00000000000000000000000000000001","name":"{}","earned":true,"until":"2100-01-01T00:00:00Z"}}"#,
        "x".repeat(65),
    );
    for line in [&returns.replace("1.0", "1e39"), &name] {
        let said = failed(&at(path, &["import", "-"], &format!("{HEADER}\n{line}\n")), DATA);
        assert!(said.contains("line 2") && said.contains("out of its range"), "{said}");
    }
    done(&at(path, &["import", "-"], &format!("{HEADER}\n{returns}\n")));
    assert!(exported(path).contains("\"never\":1.0"));
}

#[test]
fn what_has_faded_is_neither_imported_nor_exported() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    let old = ENTRIES[4].replace("2100", "2000");
    let told = done(&at(path, &["import", "-"], &format!("{}{old}\n", all())));
    assert!(told.contains("9 entries read, 8 imported, 0 already known, 1 left out (expired)"));
    put(path, "passed", 0xff, &1_000_000_000_000_000_000_u64.to_le_bytes());
    assert_eq!(exported(path), all());
    let report = done(&at(path, &["check"], ""));
    let line = report.lines().find(|line| line.starts_with("passed")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["passed", "2", "1", "0"]);
}

/// Puts bytes into a table as if they were a record.
fn put(path: &Path, table: &'static str, key: u8, bytes: &[u8]) {
    let folder = State::existing(path).ok().unwrap().with_tables(vec![table]);
    let change = Change { table, key: [key; 16], value: Some(bytes.to_vec()) };
    folder.open().unwrap().commit(&[change]).unwrap();
    drop(folder);
    is_free(path);
}

/// Waits until nobody uses the folder that this process has let go: one that another test starts
/// holds the lock as well, until it becomes another program.
fn is_free(path: &Path) {
    wait_until("the folder to be free", || {
        let said = at(path, &["check"], "").stderr;
        (!text(&said).contains("is using it")).then_some(())
    });
}

#[test]
fn a_line_that_cannot_be_read_is_told_with_its_number_and_what_came_before_it_is_kept() {
    let folder = Folder::new("state");
    let good = ENTRIES[4];
    let path = &folder.path().join("state");
    let mut told_first = "2 entries read, 2 imported, 0 already known";
    for (bad, expected) in [
        ("hello", "expected value"),
        (r#"{"table":"passed"}"#, "missing field `key`"),
        (&good.replace("passed", "passes"), "the table is one of maintenance, allowed, names, "),
        (&good.replace("f000", "f00"), "the key has 32 hexadecimal digits"),
        (&good.replace("until", "till"), "unknown field `till`, expected `until`"),
        (&good.replace("2100-01-01T", "tomorrow "), "expected a time such as"),
        (&good.replace("\"until\"", "\"more\":1,\"until\""), "unknown field `more`"),
        (&ENTRIES[2].replace("\"0000", "\"0009"), "`seen` is no sketch"),
        (&ENTRIES[3].replace("7,", "-7,"), "invalid value"),
        (&good[..good.len() - 1], "EOF while parsing"),
    ] {
        let input = format!("{HEADER}\n{}\n{}\n{bad}\n{}\n", ENTRIES[0], ENTRIES[1], ENTRIES[2]);
        let output = at(path, &["import", "-"], &input);
        let said = failed(&output, DATA);
        assert!(said.starts_with("standard input: line 4: expected a line as"), "{said}");
        assert!(said.contains(expected), "{bad}: {said}");
        let told = text(&output.stdout);
        assert!(told.starts_with(told_first), "{told}");
        told_first = "2 entries read, 0 imported, 2 already known";
    }
    assert_eq!(exported(path), format!("{HEADER}\n{}\n{}\n", ENTRIES[0], ENTRIES[1]));
}

#[test]
fn what_is_no_export_and_no_dump_makes_no_folder() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    for (input, expected) in [
        ("", "expected what `postpone state export` has written"),
        ("From: bob@example.net\n", "expected what `postpone state export` has written"),
        ("{\"table\":\"passed\"}\n", "line 1: expected what an export begins with"),
        ("{\"postpone_state\":1,\"secret\":\"12\"}\n", "line 1: expected what an export begins"),
        (
            &HEADER.replace(":1,", ":2,"),
            "line 1: it was written by a later version of postpone (state 2; this one reads up to \
             1)",
        ),
    ] {
        let said = failed(&at(path, &["import", "-"], input), DATA);
        assert!(said.starts_with(&format!("standard input: {expected}")), "{said}");
    }
    let missing = folder.path().join("missing");
    let said = failed(&at(path, &["import", missing.to_str().unwrap()], ""), INPUT);
    assert!(said.contains("missing: No such file"), "{said}");
    assert!(!path.exists());
}

#[test]
fn an_export_made_with_another_secret_is_taken_only_where_nothing_is_known_yet() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    // As a daemon leaves it that was started once and has served nobody.
    drop(State::open(path, NOW).ok().unwrap());
    is_free(path);
    done(&at(path, &["import", "-"], &all()));
    assert_eq!(exported(path), all());

    let other = all().replace("000102", "ffffff").replace("2100", "2200");
    let said = failed(&at(path, &["import", "-"], &other), STATE);
    assert!(said.contains("it has entries made with another secret"), "{said}");
    assert_eq!(exported(path), all());
}

#[test]
fn what_is_not_there_is_told_and_not_made() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    for command in ["check", "export"] {
        let said = failed(&at(path, &[command], ""), STATE);
        assert_eq!(said, format!("{}: there is no state in it\n", path.display()));
        assert!(!path.exists());
        // Somebody else's folder gets no lock of ours.
        failed(&at(folder.path(), &[command], ""), STATE);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_folder_is_that_of_the_settings() {
    let folder = Folder::new("state");
    let path = folder.path().join("state");
    done(&at(&path, &["import", "-"], &all()));
    let named = format!("[state]\npath = \"{}\"\n", path.display());
    let file = folder.write("postpone.toml", &named);
    let file = file.to_str().unwrap();
    for order in [["check", "--config", file], ["--config", file, "check"]] {
        assert!(done(&state(&order, "")).starts_with(path.to_str().unwrap()));
    }
    folder.write("postpone.toml", "[state]\npath = \"none\"\n");
    let said = failed(&state(&["check", "--config", file], ""), SETTINGS);
    assert!(said.starts_with("no state is kept: state.path is \"none\""), "{said}");
    done(&at(&path, &["check", "--config", file], ""));
    folder.write("postpone.toml", "[state]\npath = \"here\"\n");
    let said = failed(&state(&["check", "--config", file], ""), SETTINGS);
    assert!(said.contains("expected an absolute path of a folder"), "{said}");
}

#[test]
fn a_folder_that_is_in_use_or_of_a_later_version_is_left_alone() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    done(&at(path, &["import", "-"], &all()));
    let used = State::existing(path).ok().unwrap();
    let in_use = format!("process {} is using it; stop the daemon first", std::process::id());
    for command in [&["check"][..], &["export"], &["import", "-"]] {
        let said = failed(&at(path, command, &all()), STATE);
        assert_eq!(said, format!("{}: {in_use}\n", path.display()));
    }
    drop(used);
    is_free(path);
    let identity = path.join("identity");
    let earlier = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, earlier.replace("state 1", "state 2")).unwrap();
    for command in [&["check"][..], &["export"], &["import", "-"]] {
        let said = failed(&at(path, command, &all()), STATE);
        assert!(said.contains("it was written by a later version of postpone (state 2"), "{said}");
    }
    fs::write(&identity, earlier).unwrap();
    assert_eq!(exported(path), all());
}

#[test]
fn what_is_damaged_is_told_with_its_place_and_the_rest_is_exported() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    done(&at(path, &["import", "-"], &all()));
    put(path, "passed", 0xab, b"no time");
    let output = at(path, &["check"], "");
    let key = "ab".repeat(16);
    let said = failed(&output, DATA);
    assert!(
        said.contains(&format!("passed: 7 bytes that are not such a record under {key}")),
        "{said}"
    );
    let report = text(&output.stdout);
    let line = report.lines().find(|line| line.starts_with("passed")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["passed", "2", "0", "1"]);
    let output = at(path, &["export"], "");
    assert!(
        failed(&output, DATA)
            .contains(&format!("passed: 7 bytes that are not such a record under {key}"))
    );
    assert_eq!(text(&output.stdout), all());

    fs::write(path.join("db/keyspaces/1/current"), "garbage").unwrap();
    for command in [&["check"][..], &["export"], &["import", "-"]] {
        assert!(failed(&at(path, command, &all()), DATA).contains("damaged: "));
    }
    fs::write(path.join("identity"), "garbage").unwrap();
    for command in [&["check"][..], &["export"], &["import", "-"]] {
        assert!(
            failed(&at(path, command, &all()), DATA).contains("the file `identity` is damaged")
        );
    }
    // Setting aside is the daemon's affair.
    assert_eq!(fs::read_to_string(path.join("identity")).unwrap(), "garbage");
}

#[test]
fn a_reader_that_goes_away_ends_an_export() {
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    let many = (0..5_000).map(|n| {
        let key = format!("{:032x}", (n + 1_u128) << 100);
        ENTRIES[4].replace("f0000000000000000000000000000005", &key) + "\n"
    });
    done(&at(path, &["import", "-"], &format!("{HEADER}\n{}", many.collect::<String>())));
    let mut child = Command::new(env!("CARGO_BIN_EXE_postpone"))
        .args(["state", "export", "--path", path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 20];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, &HEADER.as_bytes()[..20]);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(STATE), String::new()));
    assert_eq!(exported(path).lines().count(), 5_001);
    assert!(failed(&at(path, &["export", "/dev/null"], ""), OUTPUT).contains("it is no file"));
    assert!(failed(&at(path, &["export", "/nowhere/at/all"], ""), OUTPUT).contains("/nowhere"));
}

/// An administrator is root, and the daemon is not.
#[test]
fn what_root_makes_in_a_folder_belongs_to_who_owns_the_folder() {
    const NOBODY: u32 = 65_534;
    as_root();
    let folder = Folder::new("state");
    let path = &folder.path().join("state");
    let told = done(&at(path, &["import", "-"], &all()));
    assert!(told.contains("was created and belongs to root"), "{told}");
    let given = Command::new("chown").args(["-R", "65534:65534"]).arg(path).status();
    assert!(given.unwrap().success());
    // What that user may put there, and root must not follow.
    let victim = folder.write("victim", "precious");
    std::os::unix::fs::symlink(&victim, path.join("identity.new")).unwrap();
    assert!(!done(&at(path, &["import", "-"], &all())).contains("root"));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    fs::remove_file(path.join("identity.new")).unwrap();
    let mut folders = vec![path.clone()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let found = entry.metadata().unwrap();
            assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY), "{:?}", entry.path());
            folders.extend(found.is_dir().then(|| entry.path()));
            seen += 1;
        }
    }
    assert!(seen > 5, "only {seen}");
}

/// What a program writes when it is given this.
fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}, see packaging/tools: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    text(&output.stdout)
}

/// What the command writes that an import has named.
fn dumped_as_told(said: &str) -> String {
    let command = said.split('`').nth(1).and_then(|told| told.strip_suffix(" > DUMP")).unwrap();
    let words: Vec<_> = command.split(' ').collect();
    run(words[0], &words[1..], "")
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

const DAY: u64 = 86_400;

/// Makes a database as postgrey does: a B-tree of these keys and values.
fn berkeley(file: &Path, entries: &[(&str, String)]) {
    let lines: String = entries.iter().map(|(key, value)| format!("{key}\n{value}\n")).collect();
    run("db5.3_load", &["-T", "-t", "btree", file.to_str().unwrap()], &lines);
}

/// postgrey.db: what has passed, what has not, what has faded, and what nobody can know again.
fn triplets(now: u64) -> Vec<(&'static str, String)> {
    let passed = format!("{},{}", now - 20 * DAY, now - DAY);
    vec![
        ("192.0.2.0/news-#@example.net/anna@example.org", passed.clone()),
        ("198.51.100.7//anna@example.org", passed.clone()),
        ("2001:db8:0:1:0:0:0:0/bob@example.net/anna@example.org", passed.clone()),
        ("203.0.113.0/a\\\\b@example.net/anna@example.org", passed.clone()),
        ("203.0.113.0/bob@example.net/anna@example.org", format!("{},{}", now - 300, now - 1)),
        (
            "203.0.113.0/eve@example.net/anna@example.org",
            format!("{},{}", now - 99 * DAY, now - 40 * DAY),
        ),
        ("unknown/bob@example.net/anna@example.org", passed),
    ]
}

#[test]
fn what_postgrey_knew_is_read_from_a_dump_of_its_databases() {
    let (folder, now) = (Folder::new("postgrey"), now());
    let [db, clients] = ["postgrey.db", "postgrey_clients.db"].map(|name| folder.path().join(name));
    berkeley(&db, &triplets(now));
    berkeley(
        &clients,
        &[
            ("192.0.2.7", format!("5,{}", now - DAY)),
            ("2001:DB8:0:0:0:0:0:7", format!("50,{}", now - DAY)),
            ("192.0.2.8", format!("4,{}", now - DAY)),
        ],
    );
    let [db, clients] = [&db, &clients].map(|path| path.to_str().unwrap());
    let path = &folder.path().join("state");
    let said = failed(&at(path, &["import", db], ""), DATA);
    assert!(said.starts_with(&format!("{db}: it is a Berkeley DB: dump it with `")), "{said}");
    let dump = dumped_as_told(&said);
    let told = done(&at(path, &["import", "-"], &dump));
    assert!(told.starts_with(
        "7 entries read, 4 imported, 0 already known, 1 left out (expired), 1 left out (not passed \
         yet), 1 left out (without a usable client"
    ), "{told}");
    // Without -p, and the other database behind it.
    let both = run("db5.3_dump", &[db], "") + &run("db5.3_dump", &["-p", clients], "");
    let told = done(&at(path, &["import", "-"], &both));
    assert!(told.starts_with(
        "10 entries read, 2 imported, 4 already known, 1 left out (expired), 2 left out (not passed"
    ), "{told}");
    let lines = exported(path);
    assert_eq!(lines.matches("\"table\":\"imported\"").count(), 6);
    // A `forget` after it was last seen.
    let until = Time::from_secs(now - DAY + 36 * DAY).to_string();
    assert_eq!(lines.matches(&until).count(), 6, "{lines}");
}

#[test]
fn a_dump_of_postgrey_that_is_cut_off_or_says_nothing_is_told() {
    let folder = Folder::new("postgrey");
    let path = &folder.path().join("state");
    let header = "VERSION=3\nformat=print\ntype=btree\nHEADER=END\n";
    let hashed = "a".repeat(40);
    for (rest, line, expected) in [
        (" 192.0.2.7\n 5,1795298840\n", 7, "a key, or DATA=END: the dump is cut off"),
        (" 192.0.2.7\n", 6, "the value of the key before"),
        ("192.0.2.7\n 5,1795298840\nDATA=END\n", 5, "a key, or DATA=END"),
        (" \\z\n 5,1795298840\nDATA=END\n", 5, "a key, or DATA=END"),
        (&format!(" {hashed}\n 1,2\nDATA=END\n"), 6, "this postgrey ran with --privacy"),
        ("DATA=END\nhello\n", 6, "the header of another dump"),
    ] {
        let said = failed(&at(path, &["import", "-"], &format!("{header}{rest}")), DATA);
        assert!(said.starts_with(&format!("standard input: line {line}: expected ")), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

/// The tables as sqlgrey 1.8.0 makes them.
const SQLGREY: &str = "
    CREATE TABLE config (parameter varchar(255) NOT NULL, value varchar(255), PRIMARY KEY \
    (parameter));
    CREATE TABLE from_awl (sender_name varchar(64) NOT NULL, sender_domain varchar(255) NOT NULL,
        src varchar(39) NOT NULL, first_seen timestamp NOT NULL, last_seen timestamp NOT NULL,
        PRIMARY KEY (src, sender_domain, sender_name));
    CREATE TABLE domain_awl (sender_domain varchar(255) NOT NULL, src varchar(39) NOT NULL,
        first_seen timestamp NOT NULL, last_seen timestamp NOT NULL,
        PRIMARY KEY (src, sender_domain));
    CREATE TABLE connect (sender_name varchar(64) NOT NULL, sender_domain varchar(255) NOT NULL,
        src varchar(39) NOT NULL, rcpt varchar(255) NOT NULL, first_seen timestamp NOT NULL);
    INSERT INTO config VALUES ('version', '3');";

#[test]
fn what_sqlgrey_knew_is_read_from_a_dump_of_its_database() {
    let folder = Folder::new("sqlgrey");
    let db = folder.path().join("sqlgrey.db");
    let db = db.to_str().unwrap();
    let (then, old) = (now() - DAY, now() - 40 * DAY);
    run(
        "sqlite3",
        &[db],
        &format!(
        "{SQLGREY}
        INSERT INTO from_awl VALUES ('o''hara', 'example.net', '192.0.2', {then}, {then});
        INSERT INTO from_awl VALUES ('-undef-', '-undef-', '198.51.100.7', {then}, {then});
        INSERT INTO from_awl VALUES ('eve', 'example.net', '198.51.100.7', {old}, {old});
        INSERT INTO domain_awl VALUES ('example.com', '2001:0db8:0000:0001', {then}, {then});
        INSERT INTO domain_awl VALUES ('example.com', 'somewhere', {then}, {then});
        INSERT INTO connect VALUES ('bob', 'example.net', '192.0.2', 'anna@example.org', {then});\n"
    ),
    );
    let path = &folder.path().join("state");
    let said = failed(&at(path, &["import", db], ""), DATA);
    assert!(said.starts_with(&format!("{db}: it is an SQLite database: dump it with `")), "{said}");
    let told = done(&at(path, &["import", "-"], &dumped_as_told(&said)));
    assert!(told.starts_with(
        "6 entries read, 3 imported, 0 already known, 1 left out (expired), 1 left out (not passed \
         yet), 1 left out (without a usable client"
    ), "{told}");

    // The same as the tools of the two servers write it.
    let then = Time::from_secs(then).to_string().replace('T', " ").replace(".000000000Z", "");
    let mysql = format!(
        "-- MySQL dump 10.19\n/*!40101 SET NAMES utf8 */;\nCREATE TABLE `from_awl` (\n);\n\
         INSERT INTO `config` VALUES ('version','3');\n\
         INSERT INTO `from_awl` VALUES ('o\\'hara','example.net','192.0.2','{then}','{then}'),\
         ('-undef-','-undef-','198.51.100.7','{then}','{then}');\n\
         INSERT INTO `domain_awl` \
         VALUES\n('example.com','2001:0db8:0000:0001','{then}','{then}'),\n\
         ('example.com','somewhere','{then}','{then}');\n\
         INSERT INTO `connect` VALUES ('bob','example.net','192.0.2','anna@example.org','{then}');\n"
    );
    let postgres = format!(
        "--\n-- PostgreSQL database dump\n--\n\nSET client_encoding = 'UTF8';\n\
         CREATE TABLE public.from_awl (\n);\n\
         INSERT INTO public.from_awl (src, sender_name, sender_domain, last_seen, first_seen) \
         VALUES\n\
         \t('192.0.2', 'o''hara', 'example.net', '{then}.25', '{then}.25'),\n\
         \t('198.51.100.7', '-undef-', '-undef-', '{then}', '{then}');\n\
         INSERT INTO \"public\".\"domain_awl\" VALUES ('example.com', '2001:0db8:0000:0001', \
                       '{then}', '{then}');\n\
         INSERT INTO public.domain_awl VALUES ('example.com', 'somewhere', '{then}', '{then}');\n\
         INSERT INTO public.connect VALUES ('bob', 'example.net', '192.0.2', 'anna@example.org', '{then}');\n"
    );
    // That it is later by a quarter of a second is news.
    for (dump, counts) in [(mysql, "0 imported, 3 already"), (postgres, "1 imported, 2 already")] {
        let told = done(&at(path, &["import", "-"], &dump));
        assert!(told.starts_with(&format!("5 entries read, {counts} known, 1 left out")), "{told}");
    }
    assert_eq!(exported(path).matches("\"table\":\"imported\"").count(), 3);

    for (dump, expected) in [
        ("-- a dump\nCREATE TABLE mail (a int);\n", "there are none"),
        ("-- a dump\nCOPY public.from_awl (a) FROM stdin;\n", "line 2: expected INSERT statements"),
        ("INSERT INTO from_awl VALUES ('a',\n", "line 1: expected a row of values"),
        ("INSERT INTO from_awl VALUES ('a','b','c','d','e')\n", "the dump is cut off"),
        ("INSERT INTO from_awl VALUES SELECT 1;\n", "line 1: expected `(`, `,` or `;`"),
    ] {
        let said = failed(&at(path, &["import", "-"], dump), DATA);
        assert!(said.contains(expected), "{said}");
    }
}

/// Asks a policy service about a first recipient.
fn asked(daemon: &Daemon, client: &str, sender: &str) -> String {
    let address = daemon.policy_endpoint.strip_prefix("inet:").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n\
         client_address={client}\nclient_name=unknown\nreverse_client_name=unknown\n\
         helo_name=mx.example.net\nsender={sender}\nrecipient=anna@example.org\n\
         recipient_count=0\ninstance={sender}.{client}\nsize=1\n\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// From postgrey's database to a daemon that does not make its senders wait again.
#[test]
fn senders_that_postgrey_knew_do_not_wait_again_and_strangers_do() {
    let folder = Folder::new("switch");
    let db = folder.path().join("postgrey.db");
    berkeley(&db, &triplets(now()));
    let dump = run("db5.3_dump", &["-p", db.to_str().unwrap()], "");
    let path = &folder.path().join("state");
    done(&at(path, &["import", "-"], &dump));

    let policy = format!(
        "limit = []\n[greylist]\nmode = \"enforce\"\n[state]\npath = \"{}\"\n",
        path.display()
    );
    let mut daemon = Daemon::policy_service(&policy);
    daemon.line("the state", |line| line.contains("state loaded"));
    for (client, sender) in [
        ("192.0.2.9", "other@example.net"),
        ("198.51.100.8", ""),
        ("2001:db8:0:2::25", "bob@example.net"),
        ("203.0.113.77", "bob@example.net"),
        ("203.0.113.77", "eve@example.net"),
    ] {
        let answer = asked(&daemon, client, sender);
        assert!(answer.starts_with("action=451 4.7.1 "), "{client} {sender}: {answer}");
    }
    // Two of these triplets the strangers' neighbours have brought before, and wait no longer.
    for (client, sender) in [
        ("192.0.2.9", "news-4711+anna@example.net"),
        ("198.51.100.7", ""),
        ("2001:db8:0:1::25", "Bob@example.net"),
        ("203.0.113.77", "a\\b@example.net"),
    ] {
        assert_eq!(asked(&daemon, client, sender), "action=DUNNO\n\n", "{client} {sender}");
    }
    let said = failed(&at(path, &["check"], ""), STATE);
    assert!(said.contains(" is using it; stop the daemon first"), "{said}");

    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    done(&at(path, &["check"], ""));
    let lines = exported(path);
    for (table, entries) in [("imported", 4), ("passed", 4), ("proven", 4), ("pending", 3)] {
        let of_it = format!("\"table\":\"{table}\"");
        assert_eq!(lines.matches(&of_it).count(), entries, "{table}: {lines}");
    }
}
