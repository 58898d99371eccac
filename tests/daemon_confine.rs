//! What the daemon has given up once it serves, as the kernel tells it of every thread, and as one
//! finds out who got into it: here it is a program that the daemon runs itself, and which is not
//! what it seems.
//!
//! What each rule allows and denies is tested where it is made, in `src/daemon/confine.rs`.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use rustix::process::{Signal, geteuid};
use support::daemon::{Daemon, field, postpone};
use support::milter::*;
use support::{Folder, as_root, wait_until};

const NONE: &str = "0000000000000000";
/// Bit 2: CAP_DAC_READ_SEARCH.
const READS_QUEUES: &str = "0000000000000004";

/// Fields of every thread's status; each thread has a name.
fn threads(daemon: &Daemon) -> Vec<(String, String)> {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    // One that has ended meanwhile has no status.
    let status = threads.filter_map(|thread| {
        let folder = thread.unwrap().path();
        let name = fs::read_to_string(folder.join("comm")).ok()?;
        Some((name.trim().to_owned(), fs::read_to_string(folder.join("status")).ok()?))
    });
    status.collect()
}

/// All values that this field has in any thread.
fn values(threads: &[(String, String)], field: &str) -> BTreeSet<String> {
    let value = |status: &String| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(":\t")?.to_owned()))
    };
    threads.iter().map(|(_, status)| value(status).unwrap()).collect()
}

#[track_caller]
fn all(threads: &[(String, String)], field: &str, value: &str) {
    assert_eq!(values(threads, field), BTreeSet::from([value.to_owned()]), "{field}");
}

fn kept_in(state: &Folder) -> String {
    format!("[state]\npath = \"{}\"\nflush = \"50ms\"\n", state.path().display())
}

const DELAY: &str = "[load]\nperiod = \"100ms\"\n[load.delay]\nhigh = \"20s\"\n";

#[test]
fn no_thread_keeps_a_capability_or_gains_a_privilege() {
    let state = Folder::new("state");
    let policy = format!("limit = []\n[server]\nworkers = 2\n{DELAY}{}", kept_in(&state));
    let mut daemon = Daemon::start(&policy);
    // Mail is served, sensors are read, state is written and control answers: all are there.
    let mut mta = Mta::with_client(&daemon.endpoint, "192.0.2.1");
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    daemon.told(&["maintenance", "on"]);
    wait_until("the sensor to be read", || {
        daemon.get("/metrics").contains("sensor=\"delay\"").then_some(())
    });
    let threads = threads(&daemon);
    let names: BTreeSet<_> = threads.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["worker-0", "worker-1", "state", "sampler"] {
        assert!(names.contains(name), "{names:?}");
    }
    all(&threads, "NoNewPrivs", "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        all(&threads, set, NONE);
    }
    if geteuid().is_root() {
        all(&threads, "CapBnd", NONE); // only root can give it up
    }
    let line = daemon.line("what holds", |line| line.contains("confined"));
    assert!(line.contains("INFO"), "{line}");
    assert_eq!(field(&line, "capabilities"), Some("none"), "{line}");
    assert_eq!(field(&line, "no_new_privs"), Some("true"), "{line}");
    let landlock = field(&line, "landlock").unwrap();
    assert!(landlock.starts_with("abi ") || landlock.starts_with("not "), "{line}");

    drop(mta);

    // What it must still be able to do: save, and clean up after itself.
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(!daemon.control.exists());
    let again = Daemon::start(&policy);
    assert!(again.told(&["status"]).contains("\nmaintenance   all listeners "), "it was kept");
}

/// A queue as Postfix makes it: closed to every other user, root without its rights among them.
fn closed_queue() -> Folder {
    let queue = Folder::new("queue");
    let active = queue.path().join("active");
    fs::create_dir_all(&active).unwrap();
    fs::write(active.join("4Z000001"), "").unwrap();
    chown(&active, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&active, fs::Permissions::from_mode(0o700)).unwrap();
    queue
}

fn counting(queue: &Folder) -> String {
    let path = queue.path().display();
    format!(
        "limit = []\n[load]\nperiod = \"100ms\"\n\
         [load.queue]\npath = \"{path}\"\nactive = {{ high = 400 }}\n"
    )
}

fn is_counted(daemon: &Daemon) {
    wait_until("the queue to be counted", || {
        let labels = [("sensor", "queue.active")];
        (daemon.metric("postpone_load_sensor", &labels) == 1.0).then_some(())
    });
}

/// As root; who is not has no such right to keep.
#[test]
fn where_the_queue_is_counted_only_the_right_to_read_it_is_kept() {
    as_root();
    let queue = closed_queue();
    let daemon = Daemon::start(&counting(&queue));
    is_counted(&daemon);
    let threads = threads(&daemon);
    for (set, value) in
        [("CapPrm", READS_QUEUES), ("CapEff", READS_QUEUES), ("CapInh", NONE), ("CapAmb", NONE)]
    {
        all(&threads, set, value);
    }
    all(&threads, "CapBnd", NONE);
    let line = daemon.line("what holds", |line| line.contains("confined"));
    assert_eq!(field(&line, "capabilities"), Some("CAP_DAC_READ_SEARCH"), "{line}");
}

#[test]
fn a_queue_that_comes_by_a_reload_waits_for_a_restart_and_the_reload_says_so() {
    as_root();
    let queue = closed_queue();
    let daemon = Daemon::start("limit = []\n");
    daemon.rewrite(&counting(&queue));
    let told = daemon.told(&["reload"]);
    assert!(told.contains("restart") && told.contains("[load.queue]"), "{told}");
    let line = daemon.line("that it is off", |line| line.contains("a sensor of the load is off"));
    assert!(line.contains("active: closed to this user"), "{line}");
    let daemon = Daemon::start(&counting(&queue));
    is_counted(&daemon);
}

/// A list that only another user may read: known from the start, but not read again.
#[test]
fn root_reads_lists_of_another_user_at_the_start_and_keeps_them_at_a_reload() {
    as_root();
    let folder = Folder::new("lists");
    let list = folder.write("allow.list", "192.0.2.0/24\n");
    fs::set_permissions(&list, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&list, Some(65534), Some(65534)).unwrap();
    let policy = format!("limit = []\n[access]\nallow = [\"file:{}\"]\n", list.display());
    let daemon = Daemon::start(&policy);
    let is_exempt = || {
        let socket = daemon.control.to_str().unwrap();
        let explained = postpone(&["explain", "--socket", socket, "192.0.2.7"]).stdout;
        let explained = String::from_utf8(explained).unwrap();
        assert!(explained.contains("allowlist entry 192.0.2.0/24"), "{explained}");
    };
    is_exempt();
    let reloaded = daemon.ctl(&["reload"]);
    assert_ne!(reloaded.status.code(), Some(0));
    let line = daemon.line("why not", |line| line.contains("not reloaded"));
    assert!(line.contains("allow.list") && line.contains("Permission denied"), "{line}");
    is_exempt();
}

/// Where Postfix is to be asked, `postconf` is run. This one tries what an intruder would.
#[test]
fn whom_the_daemon_runs_is_confined_as_it_is() {
    let (bin, state, elsewhere) = (Folder::new("bin"), Folder::new("state"), Folder::new("else"));
    let script = format!(
        "#!/bin/sh\n\
         try() {{ if sh -c \"$2\" 2>/dev/null; then echo \"$1 yes\"; else echo \"$1 no\"; fi; }}\n\
         {{\n\
         try 'write state' 'echo >{state}/written'\n\
         try 'write elsewhere' 'echo >{elsewhere}/written'\n\
         try 'remove a file elsewhere' 'rm {elsewhere}/there'\n\
         try 'signal another process' 'kill -0 {test}'\n\
         try 'run what was written' 'cp /bin/true {state}/true && {state}/true'\n\
         try 'find the service manager' 'test -n \"$NOTIFY_SOCKET$WATCHDOG_USEC$LISTEN_FDS\"'\n\
         }} | paste -sd, >&2\n\
         exit 1\n",
        state = state.path().display(),
        elsewhere = elsewhere.path().display(),
        test = std::process::id(),
    );
    elsewhere.write("there", "");
    let program = bin.write("postconf", &script);
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap());
    let policy = format!(
        "limit = []\n[load]\nperiod = \"100ms\"\n[load.sessions]\nfrom = \"mta\"\nhigh = 0.9\n{}",
        kept_in(&state)
    );
    let variables =
        [("PATH", path.as_str()), ("NOTIFY_SOCKET", "/nonexistent"), ("WATCHDOG_USEC", "9000000")];
    let daemon = Daemon::run_by(&[], &variables, &policy);
    let line = daemon.line("its tries", |line| line.contains("run what was written"));
    let (_, tries) = field(&line, "why").unwrap().rsplit_once(": ").unwrap();
    let outcome: Vec<_> = tries.split(',').filter_map(|tried| tried.rsplit_once(' ')).collect();
    let line = daemon.line("what holds", |line| line.contains("confined"));
    let abi = field(&line, "landlock").unwrap().strip_prefix("abi ");
    let Some(abi) = abi.map(|abi| abi.parse::<u32>().unwrap()) else {
        println!("not shown, since Landlock is missing: {line}");
        return;
    };
    let signals = if abi >= 6 { "no" } else { "yes" };
    assert_eq!(
        outcome,
        [
            ("write state", "no"),
            ("write elsewhere", "no"),
            ("remove a file elsewhere", "no"),
            ("signal another process", signals),
            ("run what was written", "no"),
            ("find the service manager", "no"),
        ]
    );
    assert!(elsewhere.path().join("there").exists());
}
