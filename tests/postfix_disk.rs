//! The disk that state lies on hangs when the daemon starts, as a dead file server or a stalled volume
//! does. With a real Postfix, and a real disk that is frozen.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::path::Path;

use rustix::process::Signal;
use support::apart::apart;
use support::daemon::Daemon;
use support::disk::Disk;
use support::mx::greeted;
use support::postfix::Postfix;
use support::smtp::Reply;
use support::wait_until;

const ANNA: &str = "127.0.0.11";
const BERT: &str = "127.0.0.12";
const CARL: &str = "127.0.0.13";

fn policy(state: &Path) -> String {
    format!(
        "limit = []\n[behaviour]\nmode = \"off\"\n[greylist]\nmode = \"enforce\"\n\
         [state]\npath = \"{}\"\nflush = \"50ms\"\n",
        state.display()
    )
}

/// What is said to a recipient of a message from this client.
fn rcpt(postfix: &Postfix, client: &str) -> Reply {
    let mut client = greeted(postfix, client);
    client.mail("sender@example.com").expect(250);
    client.rcpt("anna")
}

/// Serves at these addresses, so that a Postfix that was told of them finds it again.
fn serve(milter: &str, state: &Path) -> Daemon {
    Daemon::at(milter, "", &[], &policy(state))
}

#[test]
fn a_disk_that_hangs_at_the_start_stops_no_mail_and_what_was_kept_counts_once_it_answers() {
    apart(
        "a_disk_that_hangs_at_the_start_stops_no_mail_and_what_was_kept_counts_once_it_answers",
        || {
            let disk = Disk::mounted();
            let state = disk.place.join("state");
            let milter = format!("inet:127.0.0.1:{}", support::free_port());
            let mut daemon = serve(&milter, &state);
            let postfix = Postfix::with_milter(&milter).start();
            rcpt(&postfix, ANNA).expect(451);
            daemon.told(&["allow", ANNA]);
            rcpt(&postfix, ANNA).expect(250);
            daemon.signal(Signal::TERM);
            assert_eq!(daemon.exit_code(), Some(0));
            drop(daemon);

            let daemon;
            let hanging = disk.hangs();
            daemon = serve(&milter, &state);
            let line = daemon.line("why", |line| line.contains("does not answer"));
            assert!(line.contains("kind=\"state\"") && line.contains("/mnt/state"), "{line}");
            rcpt(&postfix, BERT).expect(250);
            assert_eq!(daemon.metric("postpone_failures_total", &[("kind", "state")]), 1.0);
            assert_eq!(daemon.metric("postpone_state_loading", &[]), 1.0);
            // What is done by hand meanwhile is not lost either.
            daemon.told(&["allow", CARL]);
            let mut waiting = greeted(&postfix, BERT);

            drop(hanging);
            daemon.line("state", |line| line.contains("the state folder answers"));
            wait_until("state to be loaded", || {
                (daemon.metric("postpone_state_loading", &[]) == 0.0).then_some(())
            });
            rcpt(&postfix, BERT).expect(451);
            rcpt(&postfix, ANNA).expect(250);
            rcpt(&postfix, CARL).expect(250);
            assert!(daemon.told(&["status"]).contains(CARL));
            // Who was there before goes on as it began.
            waiting.mail("sender@example.com").expect(250);
            waiting.rcpt("anna").expect(250);
        },
    );
}

#[test]
fn a_daemon_whose_disk_hangs_since_its_start_ends_when_it_is_told_to() {
    apart("a_daemon_whose_disk_hangs_since_its_start_ends_when_it_is_told_to", || {
        let disk = Disk::mounted();
        let state = disk.place.join("state");
        std::fs::create_dir(&state).unwrap();
        let milter = format!("inet:127.0.0.1:{}", support::free_port());
        let mut daemon;
        let hanging = disk.hangs();
        daemon = serve(&milter, &state);
        daemon.signal(Signal::TERM);
        let said = daemon.line("what becomes of state", |line| line.contains("nothing is saved"));
        assert!(said.contains("WARN"), "{said}");
        daemon.line("its end", |line| line.contains("stopped"));
        // The kernel keeps a process until its last call to the disk has returned.
        drop(hanging);
        assert_eq!(daemon.exit_code(), Some(0));
    });
}
