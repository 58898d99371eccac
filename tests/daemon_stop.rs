//! SIGTERM ends the daemon within the grace and a second, whatever hangs; state is saved first, and
//! a second SIGTERM ends it at once. The real daemon, with what makes it wait.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod support;

use std::fs;
use std::process::Command;

use postpone::exit;
use rustix::process::Signal;
use support::daemon::Daemon;
use support::hang::Hanging;
use support::milter::*;
use support::{Folder, as_root, wait_until};

/// One limit, which is only kept for a restart, and a short grace.
const POLICY: &str = r#"
[server]
grace = "1s"
hostname = "mx.example.org"
[[limit]]
name = "velocity"
count = "messages"
quota = "1/1h"
"#;

fn with_state(folder: &Folder) -> String {
    let path = folder.path().join("state");
    format!("{POLICY}[state]\npath = \"{}\"\nflush = \"100ms\"\n", path.display())
}

/// A message of this client; what MAIL is answered.
fn sends(daemon: &Daemon, client: &str) -> String {
    let mut mta = Mta::with_client(&daemon.endpoint, client);
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    let answer = mta.ask(&mail("a@example.net"));
    if answer == "continue" {
        assert_eq!(mta.ask(&rcpt("b@example.com")), "continue");
        assert_eq!(mta.ask(&end_of_message()), "continue");
    }
    answer
}

/// The threads of the daemon, by name.
fn threads(daemon: &Daemon) -> Vec<(String, u32)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let thread = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap();
        (name.trim().to_owned(), task.file_name().to_str().unwrap().parse().unwrap())
    };
    tasks.map(|task| thread(task.unwrap())).collect()
}

fn thread(daemon: &Daemon, name: &str) -> u32 {
    let find = || threads(daemon).into_iter().find(|(known, _)| known == name);
    wait_until(&format!("a thread `{name}`"), find).1
}

/// A daemon of which this thread hangs when it is told to stop, after a client has used its quota.
fn ends_without(name: &str, folder: &Folder) -> (Daemon, Option<i32>) {
    let mut daemon = Daemon::start(&with_state(folder));
    daemon.line("what was kept to be read", |line| line.contains("state loaded"));
    assert_eq!(sends(&daemon, "192.0.2.7"), "continue");
    let hanging = Hanging::thread(thread(&daemon, name));
    daemon.signal(Signal::TERM);
    hanging.until_the_end(daemon.pid());
    let code = daemon.exit_code();
    (daemon, code)
}

/// What was saved holds: the quota is used up.
#[track_caller]
fn state_was_saved(folder: &Folder) {
    let daemon = Daemon::start(&with_state(folder));
    daemon.line("what was kept to be read", |line| line.contains("state loaded"));
    let answer = sends(&daemon, "192.0.2.7");
    assert!(answer.starts_with("421 "), "{answer}");
}

#[test]
fn a_worker_that_hangs_is_not_waited_for_and_state_is_saved_without_it() {
    let folder = Folder::new("worker");
    let (daemon, code) = ends_without("worker-0", &folder);
    assert_eq!(code, Some(exit::UNFINISHED.into()));
    daemon.line("a word", |line| line.contains("a worker hangs"));
    state_was_saved(&folder);
}

#[test]
fn when_the_main_thread_hangs_the_daemon_ends_all_the_same() {
    let folder = Folder::new("main");
    let (daemon, code) = ends_without("postpone", &folder);
    assert_eq!(code, Some(exit::UNFINISHED.into()));
    daemon.line("a word", |line| line.contains("the grace is over, and something hangs"));
}

#[test]
fn a_log_that_hangs_leaves_the_end_as_it_is() {
    let folder = Folder::new("log");
    let (_, code) = ends_without("log", &folder);
    assert_eq!(code, Some(0));
    state_was_saved(&folder);
}

#[test]
fn a_disk_that_hangs_while_state_is_saved_is_given_up_with_a_word() {
    let folder = Folder::new("disk");
    let mut daemon = Daemon::start(&with_state(&folder));
    daemon.line("what was kept to be read", |line| line.contains("state loaded"));
    let dead = Hanging::process(daemon.pid(), "fsync,fdatasync");
    daemon.signal(Signal::TERM);
    dead.until_the_end(daemon.pid());
    assert_eq!(daemon.exit_code(), Some(exit::STATE.into()));
    daemon.line("a word", |line| line.contains("the disk has not answered for ten seconds"));
}

#[test]
fn nobody_waits_for_a_log_that_nobody_reads() {
    let folder = Folder::new("log");
    let policy = with_state(&folder) + "[access]\nallow = []\ndeny = [\"198.51.100.0/24\"]\n";
    let mut daemon = Daemon::start(&policy);
    assert_eq!(sends(&daemon, "192.0.2.7"), "continue");
    daemon.log_is_read(false);
    let long = "x".repeat(255);
    // Until lines are lost, the queue is full.
    while daemon.metric("postpone_failures_total", &[("kind", "log")]) == 0.0 {
        for _ in 0..500 {
            let mut mta = Mta::dial(&daemon.endpoint);
            mta.ask(&negotiate());
            let name = format!("{long}\x004\0\x19198.51.100.7\0");
            mta.ask(&frame(b'C', name.as_bytes()));
            assert!(mta.ask(&helo(&long)).starts_with("421 "));
        }
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    daemon.log_is_read(true);
    state_was_saved(&folder);
}

/// As on a network file system whose server is gone.
#[test]
fn a_list_that_hangs_holds_up_nothing_but_its_reload_and_not_for_ever() {
    let folder = Folder::new("list");
    let list = folder.write("allow.list", "192.0.2.0/24\n");
    let policy = format!("{POLICY}[access]\nallow = [\"file:{}\"]\n", list.display());
    let mut daemon = Daemon::start(&policy);
    let dead = Hanging::at_path(daemon.pid(), list.to_str().unwrap(), "openat");
    daemon.signal(Signal::HUP);
    thread(&daemon, "reload");
    // Metrics, status and mail go on meanwhile.
    assert_eq!(daemon.metric("postpone_reloads_total", &[]), 0.0);
    assert!(daemon.told(&["status"]).contains("last asked"));
    assert_eq!(sends(&daemon, "192.0.2.7"), "continue");
    daemon.line("a word", |line| line.contains("not reloaded") && line.contains("within 10 s"));
    let again = daemon.ctl(&["reload"]);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains("the reload before is still reading"), "{said}");
    daemon.signal(Signal::TERM);
    dead.until_the_end(daemon.pid());
    assert_eq!(daemon.exit_code(), Some(0));
}

/// A user that may have so many threads, and has no others.
#[test]
fn a_thread_that_cannot_be_started_ends_the_daemon_with_a_word() {
    as_root(); // nobody else can be another user
    let folder = Folder::new("threads");
    let file = folder.write(
        "postpone.toml",
        "[[listen]]\nmilter = \"inet:127.0.0.1:0\"\n[state]\npath = \"none\"\n\
         [control]\nhttp = \"none\"\nsocket = \"none\"\n[log]\nformat = \"text\"\n",
    );
    // It must reach the program, wherever the checkout is.
    let program = folder.path().join("postpone");
    fs::copy(env!("CARGO_BIN_EXE_postpone"), &program).unwrap();
    let user = 60_000 + std::process::id() % 5_000;
    // The main thread, the log's, the end's, a worker.
    for (threads, what) in [(1, "the log's thread"), (2, "watch over the end"), (3, "a worker")] {
        let limits = format!("--nproc={threads}:{threads}");
        let user = user.to_string();
        let output = Command::new("timeout")
            .args(["60", "setpriv", "--reuid", &user, "--clear-groups", "prlimit", &limits])
            .args([program.to_str().unwrap(), "serve", "--config"])
            .arg(&file)
            .output()
            .expect("timeout (coreutils), setpriv and prlimit (util-linux)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit::SYSTEM.into()), "{threads} threads: {said}");
        assert!(said.contains(what), "{threads} threads: {said}");
    }
}

#[test]
fn told_once_more_it_ends_at_once() {
    let policy = POLICY.replace("grace = \"1s\"", "grace = \"1h\"");
    let mut daemon = Daemon::start(&policy);
    let _open = Mta::with_client(&daemon.endpoint, "192.0.2.7");
    daemon.signal(Signal::TERM);
    daemon.line("that it stops", |line| line.contains("stopping: running sessions"));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(exit::UNFINISHED.into()));
    daemon.line("why", |line| line.contains("told to stop once more"));
}
