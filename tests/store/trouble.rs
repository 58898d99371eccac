//! A disk that stalls, is full, or away: mail flows, it is told, and nothing is lost when it is over.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::host::{DELAY, GREYLIST, Host, clock, listen_to_the_log, logged, of, over_limit, waits};
use crate::shelf::{Call, Entries, Fate, Gate, OpensAtLast, Shelf, Trouble};
use crate::support::{PATIENCE, wait_for, wait_until};

const BEHIND: &str = "postpone_state_behind_entries";
const BEHIND_SECONDS: &str = "postpone_state_behind_seconds";

/// From now on every commit waits at this gate.
fn stalled(shelf: &Shelf) -> (Arc<Gate>, OpensAtLast) {
    shelf.stalls_at(|call| matches!(call, Call::Commit))
}

/// Everything that changes is on the shelf, as it is in memory.
#[track_caller]
fn is_written(host: &Host, shelf: &Shelf) {
    let memory = host.memory();
    for table in ["proven", "passed", "pending"] {
        assert_eq!(of(&shelf.kept(), table), of(&memory, table), "{table}");
    }
}

#[test]
fn while_the_disk_stalls_mail_flows_and_the_metrics_tell_how_much_is_behind() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(host.metric(BEHIND_SECONDS, &[]), 0.0);
    let (gate, _opens) = stalled(&shelf);
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    gate.reached_by(1);
    // It is on its way to the disk, and not there.
    assert_eq!(host.metric(BEHIND, &[]), 1.0);
    // Another triplet: first its wait is noted, then that it is over, which are two changes of one
    // key, and then that it has passed, and who has brought it.
    assert_eq!(host.offer(2, "anna"), Err(waits(DELAY)));
    assert_eq!(host.metric(BEHIND, &[]), 2.0);
    clock.advance(DELAY);
    assert_eq!(host.offer(2, "anna"), Ok(()));
    assert_eq!(host.metric(BEHIND, &[]), 4.0);
    for client in 3..=200 {
        assert_eq!(host.offer(client, "anna"), Err(waits(DELAY)));
        assert_eq!(host.offer(client, "anna"), Err(waits(DELAY)), "which changes nothing");
    }
    assert_eq!(host.metric(BEHIND, &[]), 4.0 + 198.0);
    assert_eq!(host.metric(BEHIND_SECONDS, &[]), DELAY.as_secs_f64());
    clock.advance(Duration::from_secs(60));
    assert_eq!(host.metric(BEHIND_SECONDS, &[]), DELAY.as_secs_f64() + 60.0);
    assert!(shelf.kept().is_empty());

    gate.open();
    host.flushed(&shelf);
    assert_eq!(host.metric(BEHIND_SECONDS, &[]), 0.0);
    is_written(&host, &shelf);
    // What had piled up was one commit for each table: 199 triplets that wait, or wait no more.
    assert_eq!(shelf.commits(), [1, 1, 1, 199]);
    assert_eq!(host.metric("postpone_state_written_total", &[]), 202.0);
    host.stop().unwrap();
}

#[test]
fn while_the_disk_is_full_mail_flows_and_when_there_is_room_everything_is_written() {
    listen_to_the_log();
    const WHY: &str = "no room on the shelf of this story";
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    host.gets_to_know(1, "anna");
    host.flushed(&shelf);
    let full = Arc::new(AtomicBool::new(true));
    let is_full = full.clone();
    shelf.plan(move |call| match call {
        Call::Commit if is_full.load(Ordering::Relaxed) => Fate::Fails(Trouble::Full(WHY)),
        _ => Fate::Done,
    });
    assert_eq!(host.offer(2, "anna"), Err(waits(DELAY)));
    wait_until("it to have tried again and again", || (host.failures() > 3.0).then_some(()));
    assert_eq!(host.offer(2, "anna"), Err(waits(DELAY)));
    let told = logged(&[WHY]);
    assert_eq!(told.len(), 1, "it is told once a minute: {told:?}");
    assert!(told[0].contains("ERROR") && told[0].contains("failing open"), "{told:?}");
    assert_eq!(host.metric(BEHIND, &[]), 1.0);
    // Told again after a minute; meanwhile some have come back, and are known.
    clock.advance(DELAY);
    assert_eq!(host.offer(2, "anna"), Ok(()));
    assert_eq!(host.offer(2, "anna"), Ok(()));
    wait_until("it to be told again", || (logged(&[WHY]).len() == 2).then_some(()));
    assert_eq!(of(&shelf.kept(), "passed").len(), 1);

    full.store(false, Ordering::Relaxed);
    host.flushed(&shelf);
    is_written(&host, &shelf);
    assert_eq!(of(&shelf.kept(), "passed").len(), 2);
    let failures = host.failures();
    host.gets_to_know(3, "anna");
    host.flushed(&shelf);
    is_written(&host, &shelf);
    assert_eq!(host.failures(), failures);
    host.stop().unwrap();
}

#[test]
fn a_panic_while_it_is_written_is_said_and_all_of_it_is_written_after_it() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    let mut panics = [true, true, false].into_iter();
    shelf.plan(move |call| match call {
        Call::Commit if panics.next() == Some(true) => panic!("a fault of ours"),
        _ => Fate::Done,
    });
    host.gets_to_know(1, "anna");
    host.flushed(&shelf);
    is_written(&host, &shelf);
    assert_eq!(host.failures(), 2.0);
    host.stop().unwrap();
}

/// Else greylisting would let everybody pass who is not found, for ever.
#[test]
fn a_disk_that_hangs_while_it_is_read_is_given_up_with_a_word_and_read_when_it_answers() {
    let (shelf, clock) = (Shelf::default(), clock());
    let before = Host::started(&shelf, &clock, GREYLIST);
    before.gets_to_know(1, "anna");
    before.stop().unwrap();
    let (gate, _opens) = shelf.stalls_at(|call| matches!(call, Call::Scan { .. }));
    let host = Host::start(&shelf, &clock, GREYLIST);
    wait_for(PATIENCE * 3, "the disk to be given up", || {
        host.tend();
        host.is_whole().then_some(())
    });
    assert_eq!(host.failures(), 1.0);
    assert_eq!(host.offer(2, "anna"), Err(waits(DELAY)), "greylisting acts again");
    gate.open();
    wait_until("what was kept to be known", || {
        (of(&host.memory(), "passed").len() == 1).then_some(())
    });
    host.stop().unwrap();
}

#[test]
fn a_commit_that_was_done_but_failed_does_no_harm_when_it_is_done_again() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    let mut fails = [true, true, false].into_iter();
    shelf.plan(move |call| match call {
        Call::Commit if fails.next() == Some(true) => {
            Fate::DoneAndFails(Trouble::Away("sync failed"))
        }
        _ => Fate::Done,
    });
    host.gets_to_know(1, "anna");
    host.flushed(&shelf);
    is_written(&host, &shelf);
    host.stop().unwrap();
}

#[test]
fn a_disk_that_is_away_at_the_start_is_used_when_it_comes() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    host.gets_to_know(2, "anna");
    host.stop().unwrap();

    let away = Arc::new(AtomicBool::new(true));
    let is_away = away.clone();
    shelf.plan(move |call| match call {
        Call::Open if is_away.load(Ordering::Relaxed) => {
            Fate::Fails(Trouble::Away("not mounted yet"))
        }
        _ => Fate::Done,
    });
    clock.set(crate::host::START);
    clock.advance(Duration::from_secs(100));
    let host = Host::start(&shelf, &clock, GREYLIST);
    wait_until("it to have tried again", || (host.failures() > 1.0).then_some(()));
    // Nothing is to be waited for, so the host does what it does with an empty memory.
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    assert_eq!(host.offer(3, "anna"), Err(waits(DELAY)));
    away.store(false, Ordering::Relaxed);
    // What has changed meanwhile may be written before everything is read.
    let known = || ["pending", "passed"].map(|table| of(&host.memory(), table).len());
    wait_until("what was kept to be known again", || (known() == [2, 1]).then_some(()));
    host.flushed(&shelf);
    // Now it knows that the first has waited for a hundred seconds already, and who had passed.
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY - Duration::from_secs(100))));
    assert_eq!(host.offer(2, "anna"), Ok(()));
    host.stop().unwrap();
    assert!(shelf.aside().is_empty());
}

/// What the mail path does when there is no room to note a change: nobody knows which it was.
fn forget_what_was_noted(host: &Host) {
    for table in host.tables().into_values() {
        if let Some(changes) = table.changes().filter(|changes| !changes.is_empty()) {
            changes.done(changes.take(usize::MAX).len());
            changes.miss();
        }
    }
}

#[test]
fn more_changes_than_can_be_noted_are_written_by_looking_through_everything() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    (1..=3).for_each(|client| host.gets_to_know(client, "anna"));
    host.flushed(&shelf);
    let (gate, _opens) = stalled(&shelf);
    assert_eq!(host.offer(9, "anna"), Err(waits(DELAY)));
    gate.reached_by(1);
    // What changes, comes and goes while the disk stalls.
    (4..=6).for_each(|client| host.gets_to_know(client, "anna"));
    (1..=3).for_each(|client| assert_eq!(host.offer(client, "anna"), Ok(())));
    clock.advance(Duration::from_secs(40 * 86_400));
    host.engine.sweep(1);
    assert_eq!(host.offer(10, "anna"), Err(waits(DELAY)));
    forget_what_was_noted(&host);
    assert_eq!(of(&shelf.kept(), "passed").len(), 3);

    gate.open();
    let memory = host.memory();
    for table in ["proven", "passed", "pending"] {
        shelf.until(table, |kept| of(kept, table) == of(&memory, table));
    }
    assert_eq!(["passed", "pending"].map(|table| of(&shelf.kept(), table).len()), [0, 1]);
    host.stop().unwrap();
}

#[test]
fn looking_through_everything_is_tried_until_all_of_it_is_written() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    let gate = Arc::new(Gate::default());
    let _opens = OpensAtLast(gate.clone());
    let (waits_there, mut commits) = (gate.clone(), 0);
    shelf.plan(move |call| {
        commits += usize::from(call == Call::Commit);
        match call {
            Call::Commit if commits == 1 => Fate::Waits(waits_there.clone()),
            Call::Commit if commits < 4 => Fate::Fails(Trouble::Away("for a while")),
            _ => Fate::Done,
        }
    });
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    gate.reached_by(1);
    host.gets_to_know(2, "anna");
    assert_eq!(host.offer(3, "anna"), Err(waits(DELAY)));
    forget_what_was_noted(&host);
    gate.open();
    for (table, entries) in [("proven", 1), ("passed", 1), ("pending", 2)] {
        shelf.until(table, |kept| of(kept, table).len() == entries);
    }
    assert!(host.failures() >= 2.0);
    is_written(&host, &shelf);
    host.stop().unwrap();
}

#[test]
fn changes_that_could_not_be_noted_are_written_at_the_end_too() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    let gate = Arc::new(Gate::default());
    let _opens = OpensAtLast(gate.clone());
    let (waits_there, mut fails) = (gate.clone(), [true, true, false].into_iter());
    shelf.plan(move |call| match call {
        Call::Open if fails.len() > 1 => Fate::Waits(waits_there.clone()),
        Call::Commit if fails.next() == Some(true) => Fate::Fails(Trouble::Away("for a while")),
        _ => Fate::Done,
    });
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    gate.reached_by(1);
    host.gets_to_know(2, "anna");
    forget_what_was_noted(&host);
    assert_eq!(host.offer(3, "anna"), Err(waits(DELAY)));
    // It is told to stop before it could look through everything: the next commit fails as well.
    host.tell_to_stop();
    let memory = host.memory();
    gate.open();
    host.stop().unwrap();
    for table in ["proven", "passed", "pending"] {
        assert_eq!(of(&shelf.kept(), table), of(&memory, table), "{table}");
    }
}

#[test]
fn told_to_stop_while_it_reads_nothing_that_is_unread_is_removed() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    (1..=20).for_each(|client| host.gets_to_know(client, "anna"));
    host.stop().unwrap();

    let before = shelf.kept();
    let (gate, _opens) =
        shelf.stalls_at(|call| matches!(call, Call::Scan { table, .. } if table == "passed"));
    let host = Host::start(&shelf, &clock, GREYLIST);
    gate.reached_by(2);
    // There was more to note than there is room for.
    host.tables()["passed"].changes().unwrap().miss();
    host.tell_to_stop();
    gate.open();
    host.stop().unwrap();
    let kept = shelf.kept();
    for table in ["proven", "passed", "pending"] {
        assert_eq!(of(&kept, table), of(&before, table), "{table}");
    }
}

#[test]
fn what_has_faded_is_removed_from_the_disk_as_it_is_from_memory() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    host.gets_to_know(1, "anna");
    assert_eq!(host.offer(2, "anna"), Err(waits(DELAY)));
    host.flushed(&shelf);
    assert_eq!(of(&shelf.kept(), "pending").len(), 1);
    // A triplet that nobody came back with is forgotten after two days, one that passed after 36.
    clock.advance(Duration::from_secs(3 * 86_400));
    host.engine.sweep(1);
    host.flushed(&shelf);
    assert_eq!(of(&shelf.kept(), "pending").len(), 0);
    assert_eq!(of(&shelf.kept(), "passed").len(), 1);
    host.stop().unwrap();

    // The same while it was not running: the next start removes it.
    clock.advance(Duration::from_secs(40 * 86_400));
    let host = Host::started(&shelf, &clock, GREYLIST);
    shelf.until("the disk to be empty", |kept| kept.is_empty());
    assert_eq!(host.metric("postpone_state_loaded_entries", &[]), 0.0);
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    host.stop().unwrap();
}

/// Messages, different senders, and a longer wait for who keeps coming.
const LIMITS: &str = r#"
    [[limit]]
    name = "velocity"
    count = "messages"
    per = ["network"]
    quota = "2/1h"
    penalty = { factor = 2, cap = "12h", decay = "6h" }
    [[limit]]
    name = "spread"
    count = "distinct_recipients"
    per = ["network"]
    max = 3
    window = "1h"
    mode = "enforce"
    [greylist]
    mode = "off"
"#;

#[test]
fn limits_go_on_after_a_restart_as_if_there_had_been_none() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let story = |restarts: bool| {
        let (shelf, clock) = (Shelf::default(), clock());
        let mut host = Host::started(&shelf, &clock, LIMITS);
        let mut told = Vec::new();
        for step in 0..8 {
            // One client goes over its quota, another has ever more recipients.
            told.extend([host.offer(1, "anna"), host.offer(1, "anna"), host.offer(1, "anna")]);
            told.push(host.offer(2, &format!("new-{step}")));
            clock.advance(minutes(7));
            if restarts {
                host.stop().unwrap();
                host = Host::started(&shelf, &clock, LIMITS);
            }
        }
        host.stop().unwrap();
        told
    };
    let without = story(false);
    assert_eq!(story(true), without);
    // It is a story of refusals, each with the rest of its wait.
    assert_eq!(without[2], Err(over_limit(minutes(30))));
    assert_eq!(without[4], Err(over_limit(minutes(23))));
    assert!(without.iter().filter(|told| told.is_err()).count() > 12, "{without:?}");
}

#[test]
fn the_bound_of_waiting_triplets_of_a_network_goes_on_after_a_restart() {
    let policy = format!("{GREYLIST}max_pending_per_network = 2\n");
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, &policy);
    for recipient in ["anna", "bert"] {
        assert_eq!(host.offer(1, recipient), Err(waits(DELAY)));
    }
    host.stop().unwrap();
    let host = Host::started(&shelf, &clock, &policy);
    assert_eq!(host.offer(1, "carl"), Err(waits(DELAY)));
    clock.advance(DELAY);
    // The third was not stored: its wait begins anew.
    assert_eq!(host.offer(1, "carl"), Err(waits(DELAY)));
    assert_eq!(host.offer(1, "anna"), Ok(()));
    host.stop().unwrap();
}

#[test]
fn a_folder_that_is_taken_away_is_noticed_and_everything_is_written_anew() {
    listen_to_the_log();
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    (1..=5).for_each(|client| host.gets_to_know(client, "anna"));
    host.flushed(&shelf);
    let (before, failures) = (shelf.kept(), host.failures());
    shelf.remove();
    // Within a minute of the daemon's own.
    clock.advance(Duration::from_secs(60));
    wait_until("it to be noticed", || (host.failures() > failures).then_some(()));
    // With what is kept for a restart only, too.
    let written = |kept: &Entries| before.iter().all(|(at, value)| kept.get(at) == Some(value));
    shelf.until("everything to be written anew", written);
    assert_eq!(logged(&["its folder was removed or replaced"]).len(), 1);
    (1..=5).for_each(|client| assert_eq!(host.offer(client, "anna"), Ok(())));
    host.stop().unwrap();
}
