//! The folder of state in the hands of others: links and pipes in it, rights that are too wide, and
//! a folder that goes away while it is used. With the real daemon and a real disk.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use support::daemon::{Daemon, field};
use support::{Folder, as_root, wait_until};

/// sysexits.h: EX_IOERR.
const STATE: i32 = 74;

fn policy(state: &Path) -> String {
    format!("limit = []\n[state]\npath = \"{}\"\nflush = \"50ms\"\n", state.display())
}

/// What `postpone serve` says that ends by itself.
fn ended(state: &Path, folder: &Folder) -> Output {
    let settings = folder.write("settings.toml", &policy(state));
    let program = env!("CARGO_BIN_EXE_postpone");
    Command::new(program).args(["serve", "--config"]).arg(settings).output().unwrap()
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|p| if p.is_dir() { [vec![p.clone()], paths(&p)].concat() } else { vec![p] })
        .collect()
}

#[test]
fn a_pipe_or_a_link_in_the_place_of_a_file_is_refused_at_once_and_not_followed() {
    let folder = Folder::new("links");
    let victim = folder.write("victim", "precious");
    for name in ["identity", "lock"] {
        for kind in ["pipe", "link"] {
            let state = folder.path().join(format!("{name}-{kind}"));
            fs::create_dir(&state).unwrap();
            let place = state.join(name);
            match kind {
                "pipe" => {
                    mknodat(CWD, &place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
                }
                _ => symlink(&victim, &place).unwrap(),
            }
            let said = ended(&state, &folder);
            let text = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(STATE), "{name}, {kind}: {text}");
            assert!(text.contains(&format!("the file `{name}`")), "{text}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        }
    }
}

/// It is refused before anybody waits for it or follows it, and nothing of what is kept is lost.
#[test]
fn a_pipe_or_a_link_among_the_tables_is_refused_and_once_it_is_gone_all_is_as_it_was() {
    let folder = Folder::new("tables");
    let state = folder.path().join("state");
    let mut daemon = Daemon::start(&policy(&state));
    daemon.told(&["allow", "192.0.2.7", "--for", "7d"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    for (number, name) in ["db/0.jnl", "db/version", "db/keyspaces/1/current"].iter().enumerate() {
        let (place, away) = (state.join(name), folder.path().join("away"));
        fs::rename(&place, &away).unwrap();
        match number {
            1 => symlink(&away, &place).unwrap(),
            _ => mknodat(CWD, &place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        }
        let mut daemon = Daemon::start(&policy(&state));
        daemon.line("why", |line| {
            line.contains(&format!("{name} is neither a regular file nor a folder"))
        });
        wait_until("it to be known that nothing is", || {
            (daemon.metric("postpone_state_loading", &[]) == 0.0).then_some(())
        });
        assert!(!daemon.told(&["status"]).contains("192.0.2.7"));
        fs::rename(&away, &place).unwrap();
        wait_until("it to be read", || {
            daemon.told(&["status"]).contains("192.0.2.7").then_some(())
        });
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.exit_code(), Some(0), "{name}");
    }
}

#[test]
fn files_are_the_owners_alone_whatever_the_umask_and_a_folder_that_others_may_write_is_closed() {
    let folder = Folder::new("umask");
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    let no_umask = ["sh", "-c", "umask 0; exec \"$@\"", "sh"];
    let mut daemon = Daemon::run_by(&no_umask, &[], &policy(&state));
    let line = daemon
        .line("the warning", |line| line.contains("the state folder was writable by other users"));
    assert!(line.contains("WARN"), "{line}");
    daemon.told(&["maintenance", "on"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    assert_eq!(state.metadata().unwrap().mode() & 0o777, 0o700);
    let all = paths(&state);
    assert!(all.len() > 5, "{all:?}");
    for path in all {
        let mode = path.metadata().unwrap().mode() & 0o077;
        assert_eq!(mode, 0, "{} is open to others: {mode:o}", path.display());
    }
}

#[test]
fn state_that_is_removed_while_it_is_used_is_written_anew() {
    let folder = Folder::new("removed");
    let state = folder.path().join("state");
    let mut daemon = Daemon::start(&policy(&state));
    daemon.told(&["allow", "192.0.2.7", "--for", "7d"]);
    wait_until("it to be on disk", || {
        (daemon.metric("postpone_state_behind_entries", &[]) == 0.0).then_some(())
    });
    let identity = fs::read_to_string(state.join("identity")).unwrap();
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    daemon.line("it to be noticed", |line| line.contains("its folder was removed or replaced"));
    assert!(daemon.metric("postpone_failures_total", &[("kind", "state")]) > 0.0);
    wait_until("it to be written anew", || state.join("db").exists().then_some(()));
    assert_eq!(fs::read_to_string(state.join("identity")).unwrap(), identity);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    let again = Daemon::start(&policy(&state));
    assert!(again.told(&["status"]).contains("192.0.2.7"), "it was kept");
}

#[test]
fn a_folder_that_is_replaced_as_a_whole_is_noticed_and_it_is_said_what_to_do() {
    let folder = Folder::new("replaced");
    let state = folder.path().join("state");
    let daemon = Daemon::start(&policy(&state));
    wait_until("the tables", || state.join("db").exists().then_some(()));
    fs::rename(&state, folder.path().join("moved")).unwrap();
    fs::create_dir(&state).unwrap();
    daemon.line("it to be noticed", |line| line.contains("its folder was removed or replaced"));
    let counted = || daemon.metric("postpone_failures_total", &[("kind", "state")]) > 0.0;
    wait_until("it to be counted", || counted().then_some(()));
    // Landlock lets the daemon write in the folder that it had, and in no other; without it, the
    // new folder is written.
    wait_until("an end", || {
        let written = state.join("db").exists();
        let told = daemon.lines().iter().any(|line| line.contains("make the folder, and restart"));
        (written || told).then_some(())
    });
}

/// Root who starts the daemon by hand on the state of the daemon's own user.
#[test]
fn root_serves_on_the_state_of_another_user_with_no_more_rights_than_that_user() {
    const NOBODY: u32 = 65_534;
    as_root();
    let folder = Folder::new("owner");
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut daemon = Daemon::start(&policy(&state));
    let line =
        daemon.line("whose", |line| line.contains("root serves with the rights of another user"));
    assert_eq!(field(&line, "owner"), Some("nobody"), "{line}");
    daemon.told(&["maintenance", "on"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    for path in paths(&state) {
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY), "{}", path.display());
    }
    let again = Daemon::start(&policy(&state));
    assert!(again.told(&["status"]).contains("\nmaintenance   all listeners "), "it was kept");
}
