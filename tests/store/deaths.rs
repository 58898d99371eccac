//! The process dies, at every place where it can: what was acknowledged is there at the next start,
//! nothing is torn, and what was learned passes.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use crate::host::{DELAY, GREYLIST, Host, clock, waits};
use crate::shelf::{Call, Fate, Gate, OpensAtLast, Shelf};
use postpone::clock::ManualClock;

/// A day of the host. Whatever becomes of the disk, clients hear the same. Returns what was learned
/// while it worked: the triplets that waited, and those that passed, once each was flushed.
fn a_day(shelf: &Shelf, clock: &Arc<ManualClock>) -> [Vec<u8>; 2] {
    let host = Host::started(shelf, clock, GREYLIST);
    let [mut waiting, mut passed] = [vec![], vec![]];
    for client in 1..=5 {
        assert_eq!(host.offer(client, "anna"), Err(waits(DELAY)));
        host.flushed(shelf);
        waiting.extend((!shelf.is_dead()).then_some(client));
    }
    clock.advance(DELAY);
    for client in 1..=4 {
        assert_eq!(host.offer(client, "anna"), Ok(()));
        host.flushed(shelf);
        passed.extend((!shelf.is_dead()).then_some(client));
    }
    let whole = !shelf.is_dead();
    assert!(host.stop().is_ok() || !whole || shelf.is_dead(), "it says so if it could not save");
    [waiting, passed]
}

/// The next life: all that was kept is known again, and what had been learned by then.
fn the_next_day(shelf: &Shelf, clock: &Arc<ManualClock>, [waiting, passed]: [Vec<u8>; 2]) {
    let kept = shelf.kept();
    shelf.repaired();
    let host = Host::started(shelf, clock, GREYLIST);
    assert_eq!(host.remembered(&kept), kept, "every entry is read as it was written");
    for client in passed.iter().chain(&waiting) {
        assert_eq!(host.offer(*client, "anna"), Ok(()), "client {client} has waited");
    }
    assert_eq!(host.offer(99, "anna"), Err(waits(DELAY)), "and strangers wait");
    host.stop().unwrap();
    assert!(shelf.aside().is_empty(), "no death is damage");
}

#[test]
fn whichever_write_the_process_dies_at_what_was_acknowledged_is_there() {
    for done in [false, true] {
        for nth in 0.. {
            let (shelf, clock) = (Shelf::default(), clock());
            let mut commits = 0;
            shelf.plan(move |call| {
                commits += usize::from(call == Call::Commit);
                let dies = call == Call::Commit && commits == nth + 1;
                if dies { Fate::Dies { done } } else { Fate::Done }
            });
            let learned = a_day(&shelf, &clock);
            let (kept, acknowledged) = (shelf.kept(), shelf.acknowledged());
            if done {
                // That last commit is there as a whole, over what was acknowledged before.
                let of_it = kept.iter().filter(|(key, value)| acknowledged.get(key) != Some(value));
                let removed = acknowledged.keys().filter(|key| !kept.contains_key(key)).count();
                let last = shelf.commits().last().copied().unwrap_or_default();
                let died = usize::from(shelf.is_dead());
                assert_eq!(of_it.count() + removed, last * died);
            } else {
                assert_eq!(kept, acknowledged);
            }
            let died = shelf.is_dead();
            the_next_day(&shelf, &clock, learned);
            if !died {
                assert!(nth >= 10, "a day has some ten commits: {nth}");
                break;
            }
        }
    }
}

#[test]
fn wherever_the_process_dies_while_it_reads_nothing_is_lost() {
    // All tables that there are: the first, one in the middle and the last slice of each.
    let tables = ["penalties", "meters", "sketches", "proven", "passed", "pending", "crowds"];
    let scan = |table: &&str, byte| Call::Scan { table: (*table).to_owned(), byte };
    let scans = tables.iter().flat_map(|table| [0, 77, 255].map(|byte| scan(table, byte)));
    for place in std::iter::once(Call::Open).chain(scans) {
        let (shelf, clock) = (Shelf::default(), clock());
        let learned = a_day(&shelf, &clock);
        let before = shelf.kept();
        let last = place.clone();
        shelf.plan(move |call| if call == last { Fate::Dies { done: false } } else { Fate::Done });
        let host = Host::started(&shelf, &clock, GREYLIST);
        assert!(shelf.is_dead(), "{place:?}");
        // It dies while mail flows. Who it does not know, and who has waited, passes or waits.
        let _ = host.offer(5, "anna");
        assert!(host.stop().is_err(), "it says that it could not save");
        let kept = shelf.kept();
        assert!(before.iter().all(|(key, value)| kept.get(key) == Some(value)), "{place:?}");
        the_next_day(&shelf, &clock, learned);
    }
}

#[test]
fn dying_while_what_changes_is_joined_with_what_is_kept_loses_nothing() {
    for nth in 0..2 {
        let (shelf, clock) = (Shelf::default(), clock());
        let learned = a_day(&shelf, &clock);
        let before = shelf.kept();
        let gate = Arc::new(Gate::default());
        let _opens = OpensAtLast(gate.clone());
        let (waits_there, mut gets) = (gate.clone(), 0);
        shelf.plan(move |call| match call {
            // Whoever has waited is known, but not yet who is proven.
            Call::Scan { table, .. } if table == "crowds" => Fate::Waits(waits_there.clone()),
            Call::Get => {
                gets += 1;
                if gets == nth + 1 { Fate::Dies { done: false } } else { Fate::Done }
            }
            _ => Fate::Done,
        });
        let host = Host::start(&shelf, &clock, GREYLIST);
        gate.reached_by(2);
        assert_eq!(host.offer(5, "anna"), Ok(()), "it has waited");
        shelf.until("the process to die", |_| false);
        gate.open();
        assert!(host.stop().is_err());
        let kept = shelf.kept();
        assert!(before.iter().all(|(key, value)| kept.get(key) == Some(value)));
        the_next_day(&shelf, &clock, learned);
    }
}

#[test]
fn a_triplet_that_goes_from_waiting_to_passed_is_always_one_of_them() {
    // A commit stalls, and while it does a triplet passes; one of the next commits is the last.
    for (stalls, dies) in
        (1..=3).flat_map(|stalls| (1..=4).map(move |more| (stalls, stalls + more)))
    {
        let (shelf, clock) = (Shelf::default(), clock());
        let host = Host::started(&shelf, &clock, GREYLIST);
        for client in [1, 2] {
            assert_eq!(host.offer(client, "anna"), Err(waits(DELAY)));
        }
        host.flushed(&shelf);
        let gate = Arc::new(Gate::default());
        let _opens = OpensAtLast(gate.clone());
        let (waits_there, mut commits) = (gate.clone(), 0);
        shelf.plan(move |call| {
            commits += usize::from(call == Call::Commit);
            match call {
                Call::Commit if commits == stalls => Fate::Waits(waits_there.clone()),
                Call::Commit if commits == dies => Fate::Dies { done: false },
                _ => Fate::Done,
            }
        });
        clock.advance(DELAY);
        assert_eq!(host.offer(1, "anna"), Ok(()));
        gate.reached_by(1);
        assert_eq!(host.offer(2, "anna"), Ok(()));
        gate.open();
        host.flushed(&shelf);
        // Where it takes fewer commits, the end is one of them.
        let _ = host.stop();
        the_next_day(&shelf, &clock, [vec![], vec![1, 2]]);
    }
}
