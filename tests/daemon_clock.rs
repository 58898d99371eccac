//! The real daemon, while somebody moves the clock of its host: what it knows is there afterwards, in
//! memory and on disk, and no wait is longer than its rule says. The clock is libfaketime's, which
//! fakes the wall clock and leaves alone for how long the host has run.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::path::Path;

use rustix::process::Signal;
use support::daemon::Daemon;
use support::hostclock::HostClock;
use support::policy::{DUNNO, Smtpd};
use support::{Folder, wait_until};

/// Its tables are small, so that one sweep comes round to all of them.
fn start(clock: &HostClock, state: &Path) -> Daemon {
    let variables = clock.variables();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let settings = format!(
        "limit = []\n[behaviour]\nmode = \"off\"\n[greylist]\nmode = \"enforce\"\n\
         delay = \"5m\"\nproven_after = 1\n[state]\npath = \"{}\"\nflush = \"50ms\"\n\
         max_clients = 1000\nmax_triplets = 1000\n",
        state.display()
    );
    let daemon = Daemon::policy_service_run_by(&[], &variables, &settings);
    wait_until("state to be read", || {
        (daemon.metric("postpone_state_loading", &[]) == 0.0).then_some(())
    });
    daemon
}

fn stop(mut daemon: Daemon) {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0));
}

fn entries(daemon: &Daemon, table: &str) -> f64 {
    daemon.metric("postpone_table_entries", &[("table", table)])
}

/// The wait that a refusal tells, in seconds.
fn told(answer: &str) -> u64 {
    let (_, rest) = answer.split_once("retry in ").unwrap_or_else(|| panic!("no wait: {answer}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// Waits until all of memory has been swept by a clock that is believed, or by one that is not.
fn swept(daemon: &Daemon, doubted: bool) {
    let wanted = f64::from(u8::from(doubted));
    wait_until("memory to be swept by this clock", || {
        (daemon.metric("postpone_clock_doubted", &[]) == wanted).then_some(())
    });
}

/// A daemon that has told a first contact to come back and allowed a network by hand, and ten minutes
/// later was started again and found the client waiting long enough; and who asks it.
fn with_a_client_that_is_known(clock: &HostClock, state: &Folder) -> (Daemon, Smtpd) {
    let state = state.path().join("state");
    clock.is_off_by("-10m");
    let daemon = start(clock, &state);
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    assert!(told(&smtpd.ask("198.18.1.1", "anna")) <= 375);
    daemon.told(&["allow", "198.18.9.0/24", "--for", "1d"]);
    stop(daemon);
    clock.is_off_by("+0");
    let daemon = start(clock, &state);
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    assert_eq!(smtpd.ask("198.18.1.1", "anna"), DUNNO);
    (daemon, smtpd)
}

#[test]
fn a_clock_that_is_ahead_for_a_moment_wipes_nothing_in_memory_or_on_disk() {
    let (folder, state) = (Folder::new("clock"), Folder::new("state"));
    let clock = HostClock::of(&folder);
    let (daemon, mut smtpd) = with_a_client_that_is_known(&clock, &state);
    assert_eq!((entries(&daemon, "passed"), entries(&daemon, "proven")), (1.0, 1.0));

    for off in ["+10y", "+70d"] {
        clock.is_off_by(off);
        swept(&daemon, true);
        assert!(daemon.told(&["status"]).contains("HAS JUMPED"));
        assert_eq!(smtpd.ask("198.18.1.1", "anna"), DUNNO, "{off}");
        assert!(daemon.told(&["status"]).contains("198.18.9.0/24"), "{off}");
        clock.is_off_by("+0");
        swept(&daemon, false);
        assert!(!daemon.told(&["status"]).contains("HAS JUMPED"));
        assert_eq!((entries(&daemon, "passed"), entries(&daemon, "proven")), (1.0, 1.0), "{off}");
    }
    stop(daemon);

    let daemon = start(&clock, &state.path().join("state"));
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    assert_eq!(smtpd.ask("198.18.1.1", "anna"), DUNNO, "from disk");
    assert!(daemon.told(&["status"]).contains("198.18.9.0/24"), "from disk");
}

#[test]
fn a_clock_that_is_ahead_when_the_daemon_starts_wipes_nothing() {
    let (folder, state) = (Folder::new("clock"), Folder::new("state"));
    let clock = HostClock::of(&folder);
    let (daemon, _) = with_a_client_that_is_known(&clock, &state);
    stop(daemon);

    for off in ["+10y", "+70d"] {
        clock.is_off_by(off);
        let daemon = start(&clock, &state.path().join("state"));
        let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
        swept(&daemon, true);
        assert!(daemon.told(&["status"]).contains("HAS JUMPED"));
        assert_eq!(smtpd.ask("198.18.1.1", "anna"), DUNNO, "{off}");
        assert!(daemon.told(&["status"]).contains("198.18.9.0/24"), "{off}");
        stop(daemon);
    }

    // It starts with a wrong clock once more, and that is put right while it runs.
    let daemon = start(&clock, &state.path().join("state"));
    clock.is_off_by("+0");
    swept(&daemon, false);
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    assert_eq!(smtpd.ask("198.18.1.1", "anna"), DUNNO);
    assert!(daemon.told(&["status"]).contains("198.18.9.0/24"));
    assert_eq!((entries(&daemon, "passed"), entries(&daemon, "proven")), (1.0, 1.0));
}

#[test]
fn a_first_contact_stored_by_a_clock_that_was_ahead_waits_as_long_as_any() {
    let (folder, state) = (Folder::new("clock"), Folder::new("state"));
    let clock = HostClock::of(&folder);
    clock.is_off_by("+10y");
    let daemon = start(&clock, &state.path().join("state"));
    let mut smtpd = Smtpd::dial(&daemon.policy_endpoint);
    told(&smtpd.ask("198.18.1.1", "anna"));
    clock.is_off_by("+0");
    let wait = told(&smtpd.ask("198.18.1.1", "anna"));
    assert!(wait <= 375, "{wait} seconds: five minutes, and a quarter of jitter");
    clock.is_off_by("+376");
    assert_eq!(smtpd.ask("198.18.1.1", "anna"), DUNNO);
}
