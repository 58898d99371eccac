//! What the daemon knows after it was stopped, killed, run over by a full or a stalled disk, and
//! found its files damaged. With a real disk; the store's own laws are in `tests/store.rs`.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use postpone::clock::{Clock, SystemClock};
use postpone::meter::key::Secret;
use postpone::store::{Backend, Change, Home};
use rustix::process::Signal;
use support::daemon::{Daemon, field};
use support::policy::{DUNNO, Smtpd};
use support::{Folder, free_port, stopwatch, wait_until};

/// sysexits.h: EX_IOERR.
const STATE: i32 = 74;
const ANNA: &str = "198.18.1.1";
const BERT: &str = "198.18.2.1";

/// Each client waits so long at a first contact that it is over when somebody looks again.
fn greylist(state: &Path) -> String {
    greylist_for("20ms", state)
}

fn greylist_for(delay: &str, state: &Path) -> String {
    format!(
        "limit = []\n[behaviour]\nmode = \"off\"\n[greylist]\nmode = \"enforce\"\ndelay = \"{delay}\"\nproven_after = 1000000\n{}",
        kept_in(state)
    )
}

fn kept_in(state: &Path) -> String {
    format!("[state]\npath = \"{}\"\nflush = \"50ms\"\n", state.display())
}

/// Waits until everything that was kept is known again.
fn loaded(daemon: &Daemon) {
    wait_until("state to be loaded", || {
        daemon.get("/metrics").lines().any(|line| line == "postpone_state_loading 0").then_some(())
    });
}

fn behind(daemon: &Daemon) -> f64 {
    daemon.metric("postpone_state_behind_entries", &[])
}

/// Waits until everything up to now is on disk, whatever changes meanwhile.
fn flushed(daemon: &Daemon) {
    let passed = stopwatch();
    wait_until("what has changed to be on disk", || {
        let since = passed().as_secs_f64();
        (daemon.metric("postpone_state_behind_seconds", &[]) < since).then_some(())
    });
}

fn failures(daemon: &Daemon) -> f64 {
    daemon.metric("postpone_failures_total", &[("kind", "state")])
}

/// Stops in order, with everything saved.
fn stop(mut daemon: Daemon) -> Vec<String> {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    daemon.line("state to be saved", |line| line.contains("state saved"));
    daemon.lines()
}

/// A first contact waits.
#[track_caller]
fn waits(answer: &str) {
    assert!(answer.starts_with("451 4.7.1 ") && answer.contains("First contact"), "{answer}");
}

/// Each of these is a first contact.
fn contact<'a>(daemon: &Daemon, client: &str, recipients: impl IntoIterator<Item = &'a String>) {
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    recipients.into_iter().for_each(|recipient| waits(&smtpd.ask(client, recipient)));
}

/// How many of these need not wait: they were known.
fn known<'a>(
    daemon: &Daemon,
    client: &str,
    recipients: impl IntoIterator<Item = &'a String>,
) -> usize {
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    recipients.into_iter().filter(|recipient| smtpd.ask(client, recipient) == DUNNO).count()
}

fn names(what: &str, how_many: usize) -> Vec<String> {
    (0..how_many).map(|n| format!("{what}{n}")).collect()
}

/// A daemon that cannot serve: what it said, and how it ended.
fn refused(run_by: &[&str], settings: &str) -> Output {
    let folder = Folder::new("refused");
    let listen = format!("[[listen]]\npolicy = \"inet:127.0.0.1:{}\"\n", free_port());
    let control = "[control]\nhttp = \"none\"\nsocket = \"none\"\n";
    let file = folder.write("postpone.toml", &format!("{settings}\n{listen}{control}"));
    // One that serves after all is not waited for.
    let mut command = Command::new("timeout");
    command.arg("60").args(run_by).args([env!("CARGO_BIN_EXE_postpone"), "serve", "--config"]);
    command.arg(file).output().expect("timeout (coreutils)")
}

#[track_caller]
fn says(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(STATE), "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
}

/// Nothing was wrong with what was read.
#[track_caller]
fn sound(lines: &[String]) {
    let bad = |line: &&String| line.contains("damaged") || line.contains("ERROR");
    assert_eq!(lines.iter().find(bad), None);
}

// --- Killed -------------------------------------------------------------------------------------

/// Smtpds that go on asking, for ever new recipients, until the daemon is gone.
struct Load {
    contacts: Arc<Mutex<Vec<String>>>,
    smtpds: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn on(daemon: &Daemon, round: usize) -> Self {
        let contacts = Arc::new(Mutex::new(Vec::new()));
        let smtpds = (0..4).map(|number| {
            let (endpoint, contacts) = (daemon.policy_endpoint.clone(), contacts.clone());
            thread::spawn(move || {
                let mut smtpd = Smtpd::dial(&endpoint);
                for n in 0_u32.. {
                    let recipient = format!("r{round}-{number}-{n}");
                    let Ok(answer) = smtpd.try_ask(ANNA, &recipient) else { return };
                    waits(&answer);
                    contacts.lock().unwrap().push(recipient);
                    // And one that comes back.
                    if let Some(n) = n.checked_sub(50) {
                        let recipient = format!("r{round}-{number}-{n}");
                        if smtpd.try_ask(ANNA, &recipient).is_err() {
                            return;
                        }
                    }
                }
            })
        });
        Self { smtpds: smtpds.collect(), contacts }
    }

    /// Whom there was contact with up to now.
    fn contacts(&self) -> Vec<String> {
        self.contacts.lock().unwrap().clone()
    }

    fn reaches(&self, how_many: usize) {
        wait_until("mail to flow", || {
            (self.contacts.lock().unwrap().len() >= how_many).then_some(())
        });
    }

    /// The daemon is gone, and with it the connections. Returns all contacts.
    fn ended(self) -> Vec<String> {
        self.smtpds.into_iter().for_each(|smtpd| smtpd.join().unwrap());
        Arc::try_unwrap(self.contacts).unwrap().into_inner().unwrap()
    }
}

#[test]
fn killed_again_and_again_under_load_it_knows_what_was_on_disk() {
    let folder = Folder::new("killed");
    let mut durable: Vec<String> = Vec::new();
    for round in 0..15 {
        let mut daemon = Daemon::policy_service(&greylist(folder.path()));
        loaded(&daemon);
        // All of the last round, and some of each before.
        let last = durable.iter().rev().take(400).chain(durable.iter().step_by(17));
        let last: BTreeSet<_> = last.collect();
        let expected = last.len();
        assert_eq!(known(&daemon, ANNA, last), expected, "after {round} deaths");
        let load = Load::on(&daemon, round);
        load.reaches(150);
        let up_to_here = load.contacts();
        flushed(&daemon);
        // Somewhere in the middle of something.
        load.reaches(up_to_here.len() + round * 11 % 60);
        daemon.signal(Signal::KILL);
        assert_eq!(daemon.exit_code(), None);
        load.ended();
        durable.extend(up_to_here);
        sound(&daemon.lines());
    }
    // At last it is stopped in order, under load too: then nothing at all is lost.
    let mut daemon = Daemon::policy_service(&greylist(folder.path()));
    loaded(&daemon);
    let load = Load::on(&daemon, 99);
    load.reaches(300);
    daemon.signal(Signal::TERM);
    durable.extend(load.ended());
    assert_eq!(daemon.exit_code(), Some(0));
    sound(&daemon.lines());
    let daemon = Daemon::policy_service(&greylist(folder.path()));
    loaded(&daemon);
    assert_eq!(known(&daemon, ANNA, &durable), durable.len());
    assert!(durable.len() > 15 * 150);
    waits(&Smtpd::dial(&daemon.policy_endpoint).ask(ANNA, "stranger"));
    sound(&stop(daemon));
}

#[test]
fn killed_in_the_first_moments_of_its_life_it_starts_again_without_a_word() {
    // Where it has come to then is different each time.
    for _ in 0..8 {
        let folder = Folder::new("newborn");
        let state = folder.path().join("state");
        let mut daemon = Daemon::policy_service(&greylist(&state));
        daemon.signal(Signal::KILL);
        assert_eq!(daemon.exit_code(), None);
        let daemon = Daemon::policy_service(&greylist(&state));
        loaded(&daemon);
        contact(&daemon, ANNA, &names("r", 1));
        sound(&stop(daemon));
    }
}

#[test]
fn limits_stay_in_force_when_it_is_stopped_and_started() {
    let folder = Folder::new("limits");
    let limit = "[[limit]]\nname = \"velocity\"\ncount = \"messages\"\nper = [\"network\"]\n";
    let policy = format!("{limit}quota = \"2/1h\"\n{}", kept_in(folder.path()));
    let refused = |daemon: &Daemon| {
        let answer = Smtpd::dial(&daemon.policy_endpoint).ask(ANNA, "anna");
        assert!(answer.starts_with("421 4.7.0 "), "{answer}");
        let line = daemon.decision(&[("limit", "velocity"), ("action", "close")]);
        field(&line, "wait_ms").unwrap().parse::<u64>().unwrap()
    };
    let daemon = Daemon::policy_service(&policy);
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    assert_eq!([(); 2].map(|()| smtpd.ask(ANNA, "anna")), [DUNNO; 2]);
    drop(smtpd);
    let since = stopwatch();
    let before = refused(&daemon);
    assert!((1_700_000..=1_800_000).contains(&before), "{before}");
    stop(daemon);

    let daemon = Daemon::policy_service(&policy);
    loaded(&daemon);
    let after = refused(&daemon);
    let between = since().as_millis() as u64;
    assert!(after < before && after + between + 1_000 >= before, "{before} {after} {between}");
    assert_eq!(Smtpd::dial(&daemon.policy_endpoint).ask(BERT, "anna"), DUNNO);
    stop(daemon);
}

// --- Somebody else's ----------------------------------------------------------------------------

#[test]
fn a_second_daemon_is_told_who_has_the_folder_and_the_first_goes_on() {
    let folder = Folder::new("second");
    let daemon = Daemon::policy_service(&greylist(folder.path()));
    let second = refused(&[], &greylist(folder.path()));
    let pid = daemon.pid();
    says(&second, &[folder.path().to_str().unwrap(), &format!("process {pid} is using it")]);
    let recipients = names("r", 3);
    loaded(&daemon);
    contact(&daemon, ANNA, &recipients);
    flushed(&daemon);
    assert_eq!(known(&daemon, ANNA, &recipients), 3);
    sound(&stop(daemon));
}

#[test]
fn what_a_later_version_has_written_is_refused_and_left_as_it_is() {
    let folder = Folder::new("newer");
    let daemon = Daemon::policy_service(&greylist(folder.path()));
    loaded(&daemon);
    contact(&daemon, ANNA, &names("r", 3));
    stop(daemon);
    let newer = "postpone state 7\nwhat only a later version knows\n";
    folder.write("identity", newer);
    let before = files(folder.path());
    let second = refused(&[], &greylist(folder.path()));
    says(&second, &["written by a later version", "state 7", "install that version again"]);
    assert_eq!(files(folder.path()), before);
}

/// Every file and what is in it, but for who has it.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = paths(folder)
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name != "lock"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    found.sort();
    found
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, mut files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files.extend(folders.iter().flat_map(|folder| paths(folder)));
    files.sort();
    files
}

#[test]
fn a_folder_that_cannot_be_used_is_refused_where_it_is_named_and_done_without_where_it_is_not() {
    let folder = Folder::new("unusable");
    let file = folder.write("state", "precious");
    says(&refused(&[], &greylist(&file)), &["cannot keep state in", "make the folder"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    // Nothing can be written below /var/lib, for this process only.
    let script = "mount -t tmpfs -o ro tmpfs /var/lib && exec \"$@\"";
    let read_only = ["unshare", "-rm", "sh", "-c", script, "sh"];
    let named = refused(&read_only, "limit = []\n[state]\npath = \"/var/lib/postpone\"\n");
    says(&named, &["cannot keep state in /var/lib/postpone", "Read-only file system"]);

    let by_default = "limit = []\n[greylist]\nmode = \"enforce\"\n[state]\nflush = \"50ms\"\n";
    let daemon = Daemon::policy_service_run_by(&read_only, &[], by_default);
    let line = daemon.line("the warning", |line| line.contains("no state is kept"));
    assert!(line.contains("WARN") && line.contains("/var/lib/postpone"), "{line}");
    contact(&daemon, ANNA, &names("r", 1));
    assert_eq!(failures(&daemon), 0.0, "it is not tried again and again");
}

// --- Damage -------------------------------------------------------------------------------------

/// A state folder with files of every kind: half of its triplets in tables, half in the journal.
fn filled(folder: &Path, recipients: &[String]) {
    let (first, second) = recipients.split_at(recipients.len() / 2);
    for half in [first, second] {
        let daemon = Daemon::policy_service(&greylist(folder));
        loaded(&daemon);
        contact(&daemon, ANNA, half);
        sound(&stop(daemon));
        if half == first {
            opened(folder).compact().unwrap();
        }
    }
}

fn opened(folder: &Path) -> Box<dyn Backend> {
    let tables = ["penalties", "meters", "sketches", "proven", "passed", "pending", "crowds"];
    let home = postpone::store::folder::Folder::open(folder, SystemClock.now());
    home.unwrap_or_else(|refused| panic!("{refused}")).with_tables(tables.into()).open().unwrap()
}

const CUT: &str = "its end is cut off";
const EMPTY: &str = "it is empty";

/// What befalls a folder: its name, and how it is done.
type Harm = (&'static str, fn(&Path));

const HARMS: [Harm; 5] = [
    ("a bit is flipped in its middle", |path| {
        change(path, |bytes| {
            let middle = used(bytes) / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 4;
            }
        });
    }),
    ("its first bytes are zeros", |path| {
        change(path, |bytes| bytes.iter_mut().take(16).for_each(|byte| *byte = 0));
    }),
    (CUT, |path| {
        change(path, |bytes| bytes.truncate(used(bytes) * 2 / 3));
    }),
    (EMPTY, |path| change(path, Vec::clear)),
    ("it is gone", |path| fs::remove_file(path).unwrap()),
];

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Up to where it is not zeros: the journal's file is longer than what is in it.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// One of each kind of file there is below `db`: files of the same name, but for numbers, are of
/// one kind.
fn kinds(state: &Path) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let kind = |path: &Path| {
        let inside = path.strip_prefix(state).unwrap().to_str().unwrap().to_owned();
        // The list of tables is a table itself, with number 0.
        let list = inside.contains("keyspaces/0/");
        (list, inside.replace(|c: char| c.is_ascii_digit(), ""))
    };
    // The largest of its kind.
    let mut paths = paths(&state.join("db"));
    paths.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
    paths.retain(|path| seen.insert(kind(path)));
    paths
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-r", "--sparse=always"]).arg(from).arg(to).status();
    assert!(copied.expect("cp (coreutils)").success());
}

#[test]
fn whatever_befalls_its_files_it_serves_and_either_nothing_is_lost_or_it_says_so() {
    let folder = Folder::new("damage");
    let sound_state = folder.path().join("sound");
    let recipients = names("r", 60);
    filled(&sound_state, &recipients);
    let kinds = kinds(&sound_state);
    assert!(kinds.len() >= 6, "{kinds:?}");
    let (mut said, mut left_out, mut unharmed) = (0, 0, 0);
    for (number, (path, (harm, do_harm))) in
        kinds.iter().flat_map(|path| HARMS.map(|harm| (path, harm))).enumerate()
    {
        let state = folder.path().join(number.to_string());
        copy(&sound_state, &state);
        let inside = path.strip_prefix(&sound_state).unwrap();
        do_harm(&state.join(inside));
        let story = format!("{}: {harm}", inside.display());

        let daemon = Daemon::policy_service(&greylist(&state));
        loaded(&daemon);
        let known = known(&daemon, ANNA, &recipients);
        // A stranger waits, and what is learned now is kept.
        contact(&daemon, BERT, &recipients[..1]);
        flushed(&daemon);
        let lines = stop(daemon);
        let aside = lines.iter().find(|line| line.contains("set aside"));
        match aside {
            Some(line) => {
                said += 1;
                let name = field(line, "aside").unwrap_or_else(|| panic!("{story}: {line}"));
                assert!(Path::new(name).exists(), "{story}: {name}");
                assert!(name.starts_with(state.join("db.damaged-").to_str().unwrap()), "{name}");
            }
            None if lines.iter().any(|line| line.contains("of the last commits, ")) => {
                left_out += 1;
                assert!(inside.ends_with("0.jnl"), "{story}: {lines:#?}");
                assert!(state.join("db/0.jnl.damaged").exists(), "{story}");
            }
            None => {
                unharmed += 1;
                // Nothing tells how long a journal was: a short one may end where a crash has torn
                // it, and then what is behind that was never acknowledged.
                let short = [CUT, EMPTY].contains(&harm) && inside.ends_with("0.jnl");
                let kept = if short { recipients.len() / 2 } else { recipients.len() };
                assert!(known >= kept, "{story}: {known} are left, and not a word: {lines:#?}");
                sound(&lines);
            }
        }
        // Whatever it was, it is over.
        let daemon = Daemon::policy_service(&greylist(&state));
        loaded(&daemon);
        assert_eq!(self::known(&daemon, BERT, &recipients[..1]), 1, "{story}");
        assert_eq!(self::known(&daemon, ANNA, &recipients), recipients.len(), "{story}");
        sound(&stop(daemon));
        fs::remove_dir_all(state).unwrap();
    }
    assert!(
        said > 10 && left_out > 0 && unharmed > 0,
        "{said} were damage, {left_out} cost commits, and {unharmed} were none"
    );
}

#[test]
fn damage_in_one_table_costs_no_more_than_what_it_hit() {
    let folder = Folder::new("block");
    stop(Daemon::policy_service(&greylist(folder.path())));
    fill(folder.path(), 20_000);
    opened(folder.path()).compact().unwrap();
    let largest = paths(&folder.path().join("db"))
        .into_iter()
        .filter(|p| p.to_str().unwrap().contains("/tables/"));
    let largest = largest.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    change(&largest, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let daemon = Daemon::policy_service(&greylist(folder.path()));
    let line = daemon.line("the damage", |line| line.contains("set aside"));
    assert!(line.contains("ERROR") && line.contains("db.damaged-"), "{line}");
    loaded(&daemon);
    let entries = daemon.metric("postpone_table_entries", &[("table", "passed")]);
    assert!((19_000.0..20_000.0).contains(&entries), "{entries}");
    stop(daemon);
    // And they are all in the new one.
    let daemon = Daemon::policy_service(&greylist(folder.path()));
    loaded(&daemon);
    assert_eq!(daemon.metric("postpone_table_entries", &[("table", "passed")]), entries);
    sound(&stop(daemon));
}

#[test]
fn a_damaged_identity_is_set_aside_with_what_means_nothing_without_it() {
    let folder = Folder::new("identity");
    let recipients = names("r", 3);
    for text in ["", "garbage", "postpone state 1\nsecret 0123\n"] {
        let daemon = Daemon::policy_service(&greylist(folder.path()));
        loaded(&daemon);
        contact(&daemon, ANNA, &recipients);
        stop(daemon);
        folder.write("identity", text);
        let daemon = Daemon::policy_service(&greylist(folder.path()));
        for name in ["identity.damaged-", "db.damaged-"] {
            let line = daemon.line(name, |line| line.contains(name));
            assert!(line.contains("ERROR"), "{line}");
        }
        loaded(&daemon);
        contact(&daemon, BERT, &recipients);
        flushed(&daemon);
        assert_eq!(known(&daemon, BERT, &recipients), 3);
        stop(daemon);
        fs::remove_dir_all(folder.path()).unwrap();
    }
}

// --- Full, and stalled --------------------------------------------------------------------------

#[test]
fn on_a_full_disk_mail_flows_and_when_there_is_room_everything_is_written() {
    let folder = Folder::new("full");
    // A disk of its own, seen by this process only; an ordinary user may do that too.
    let script = "mount -t tmpfs -o size=40m tmpfs \"$0\" && exec \"$@\"";
    let disk = folder.path().to_str().unwrap();
    let daemon = Daemon::policy_service_run_by(
        &["unshare", "-rm", "sh", "-c", script, disk],
        &[],
        &greylist(folder.path()),
    );
    let disk = PathBuf::from(format!("/proc/{}/root{disk}", daemon.pid()));
    assert!(disk.join("identity").exists(), "unshare -rm must give it a disk of its own");
    loaded(&daemon);
    let early = names("early", 50);
    contact(&daemon, ANNA, &early);
    flushed(&daemon);
    assert_eq!(failures(&daemon), 0.0);

    let ballast = disk.join("ballast");
    let full = fill_up(&ballast);
    assert_eq!(full.raw_os_error(), Some(28), "ENOSPC: {full}");
    let mut late = Vec::new();
    wait_until("it to run out of room, and to try again and again", || {
        // The last page takes some more.
        if behind(&daemon) == 0.0 {
            let more = names(&format!("late{}-", late.len()), 100);
            contact(&daemon, ANNA, &more);
            late.extend(more);
        }
        (failures(&daemon) > 3.0).then_some(())
    });
    daemon.line("that there is no room", |line| {
        line.contains("ERROR")
            && line.contains("kind=\"state\"")
            && line.contains("No space left on device")
            && line.contains("failing open")
    });
    assert_eq!(known(&daemon, ANNA, &late), late.len(), "mail goes on");
    assert!(behind(&daemon) >= 100.0);

    fs::remove_file(ballast).unwrap();
    wait_until("everything to be written", || (behind(&daemon) == 0.0).then_some(()));
    // What is on that disk now is all there is to know.
    let copied = folder.path().join("copy");
    copy(&disk, &copied);
    drop(daemon);
    let daemon = Daemon::policy_service(&greylist(&copied));
    loaded(&daemon);
    assert_eq!(known(&daemon, ANNA, early.iter().chain(&late)), early.len() + late.len());
    sound(&stop(daemon));
}

/// Writes until there is no room, and says why it ended.
fn fill_up(path: &Path) -> std::io::Error {
    let mut file = fs::File::create(path).unwrap();
    // Page by page at last, so that nothing is left.
    for size in [1 << 20, 4 << 10] {
        loop {
            if let Err(error) = file.write_all(&vec![1; size]) {
                if size < 1 << 20 {
                    return error;
                }
                break;
            }
        }
    }
    unreachable!("each size is written until it fails")
}

/// Syncing waits for as long as a file is there.
const STALL: &str = r#"
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>

static void stall(void) {
    const char *file = getenv("STALLED_WHILE");
    struct timespec pause = {0, 2000000};
    while (file && access(file, F_OK) == 0) nanosleep(&pause, 0);
}
int fsync(int fd) { stall(); return syscall(SYS_fsync, fd); }
int fdatasync(int fd) { stall(); return syscall(SYS_fdatasync, fd); }
"#;

#[test]
fn while_the_disk_stalls_decisions_go_on_and_what_is_behind_is_told() {
    let folder = Folder::new("stalled");
    let (source, library) = (folder.write("stall.c", STALL), folder.path().join("stall.so"));
    let mut cc = Command::new("cc");
    let built = cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("cc (gcc)").success());
    let stalled = folder.path().join("stalled");
    let variables =
        [("LD_PRELOAD", library.to_str().unwrap()), ("STALLED_WHILE", stalled.to_str().unwrap())];
    let state = folder.path().join("state");
    let mut daemon = Daemon::policy_service_run_by(&[], &variables, &greylist_for("1h", &state));
    loaded(&daemon);
    contact(&daemon, ANNA, &names("before", 10));
    flushed(&daemon);

    fs::write(&stalled, "").unwrap();
    let recipients = names("meanwhile", 1_000);
    let passed = stopwatch();
    contact(&daemon, ANNA, &recipients);
    assert_eq!(behind(&daemon), 1_000.0);
    let took = passed().as_secs_f64();
    wait_until("what is behind to become late", || {
        (daemon.metric("postpone_state_behind_seconds", &[]) > took.max(1.0)).then_some(())
    });
    contact(&daemon, BERT, &recipients);
    assert_eq!(behind(&daemon), 2_000.0);
    assert_eq!(failures(&daemon), 0.0, "slow is no failure");
    fs::remove_file(&stalled).unwrap();
    wait_until("everything to be written", || (behind(&daemon) == 0.0).then_some(()));
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.exit_code(), None);

    let daemon = Daemon::policy_service(&greylist(&state));
    loaded(&daemon);
    assert_eq!(known(&daemon, ANNA, &recipients), 1_000);
    assert_eq!(known(&daemon, BERT, &recipients), 1_000);
    sound(&stop(daemon));
}

// --- Large --------------------------------------------------------------------------------------

/// Puts so many triplets that have passed into a folder that a daemon has begun.
fn fill(folder: &Path, how_many: u32) {
    let backend = opened(folder);
    let tomorrow = SystemClock.now() + std::time::Duration::from_secs(86_400);
    let secret = Secret::new([9; 16]);
    let put = |n: u32| Change {
        table: "passed",
        key: secret.key("somebody").part(&n.to_le_bytes()).finish().to_bytes(),
        value: Some(tomorrow.as_nanos().to_le_bytes().into()),
    };
    for from in (0..how_many).step_by(16_384) {
        let batch: Vec<_> = (from..how_many.min(from + 16_384)).map(put).collect();
        backend.commit(&batch).unwrap();
    }
}

#[test]
fn it_serves_while_it_reads_two_hundred_thousand_entries() {
    let folder = Folder::new("large");
    let daemon = Daemon::policy_service(&greylist_for("1h", folder.path()));
    loaded(&daemon);
    let recipients = names("r", 1);
    contact(&daemon, ANNA, &recipients);
    stop(daemon);
    fill(folder.path(), 200_000);

    let daemon = Daemon::policy_service(&greylist_for("1h", folder.path()));
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    assert_eq!(smtpd.ask(BERT, "anybody"), DUNNO, "it may have waited before");
    let page = daemon.get("/metrics");
    assert!(page.contains("\npostpone_state_loading 1\n"), "{page}");
    daemon.line("the state to be read", |line| line.contains("state loaded"));
    let lines = daemon.lines();
    let at = |what: &str| lines.iter().position(|line| line.contains(what)).unwrap();
    assert!(at("serving") < at("state loaded"));
    assert!(daemon.metric("postpone_state_loaded_entries", &[]) >= 200_001.0);
    waits(&smtpd.ask(BERT, "anybody"));
    waits(&smtpd.ask(ANNA, &recipients[0]));
    sound(&stop(daemon));
}
