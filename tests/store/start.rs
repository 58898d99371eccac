//! The start: mail flows while everything is read back, nobody who is known suffers, and what is
//! damaged costs only itself.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use crate::host::{
    DELAY, GREYLIST, Host, START, clock, listen_to_the_log, logged, of, over_limit, waits,
};
use crate::shelf::{Call, Entries, Fate, Gate, OpensAtLast, Shelf, Trouble};
use crate::support::wait_until;
use postpone::clock::Clock;
use postpone::smtp::client::Client;

/// Whoever reads one of these slices waits at the gate.
fn unread(
    shelf: &Shelf,
    slice: impl Fn(&str, u8) -> bool + Send + 'static,
) -> (Arc<Gate>, OpensAtLast) {
    shelf.stalls_at(move |call| matches!(call, Call::Scan { table, byte } if slice(table, *byte)))
}

/// The first bytes of the keys of a table.
fn slices(entries: &Entries, table: &str) -> Vec<u8> {
    entries.keys().filter(|(name, _)| name == table).map(|(_, key)| key[0]).collect()
}

/// How often its client has passed, of an entry of `proven`.
fn passes(proven: &[u8]) -> u32 {
    u32::from_le_bytes(proven[8..12].try_into().unwrap())
}

const POLICY: &str = r#"
    [[limit]]
    name = "strangers"
    count = "messages"
    per = ["network"]
    quota = "1/1h"
    when = { standing = ["unknown"] }
    [greylist]
    mode = "enforce"
    proven_after = 2
"#;

#[test]
fn while_it_reads_no_stranger_waits_and_who_waits_goes_on_waiting() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    host.stop().unwrap();

    clock.advance(Duration::from_secs(100));
    // Everything is read but one slice, in which nothing is.
    let is_there = slices(&shelf.kept(), "pending");
    let other = (0..=u8::MAX).find(|byte| !is_there.contains(byte)).unwrap();
    let (gate, _opens) = unread(&shelf, move |table, byte| table == "pending" && byte == other);
    let host = Host::start(&shelf, &clock, GREYLIST);
    gate.reached_by(1);
    wait_until("the triplet that waits to be read", || {
        (host.metric("postpone_table_entries", &[("table", "pending")]) == 1.0).then_some(())
    });
    assert_eq!(host.metric("postpone_state_loading", &[]), 1.0);
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY - Duration::from_secs(100))));
    assert_eq!(host.offer(2, "anna"), Ok(()), "it may have waited before the restart");
    assert_eq!(host.offer(2, "anna"), Ok(()));

    gate.open();
    host.loaded(&shelf);
    assert_eq!(host.offer(2, "anna"), Err(waits(DELAY)), "now it is known that it has not");
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY - Duration::from_secs(100))));
    clock.advance(DELAY);
    assert_eq!(host.offer(1, "anna"), Ok(()));
    host.stop().unwrap();
}

/// A folder that an earlier version has written knows no names yet: nothing is missing in it.
#[test]
fn a_name_outlives_the_process_and_a_folder_without_names_is_whole() {
    let (shelf, clock) = (Shelf::default(), clock());
    let client = || Client::new([192, 0, 2, 7].into());
    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(host.offer_of(client().named("mx.example.net"), "anna"), Err(waits(DELAY)));
    clock.advance(DELAY);
    assert_eq!(host.offer_of(client().named("mx.example.net"), "anna"), Ok(()));
    host.stop().unwrap();

    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(host.offer_of(client().of_unsure_name(), "anna"), Ok(()));
    assert_eq!(host.offer_of(client().of_untold_name(None), "anna"), Ok(()));
    host.stop().unwrap();

    shelf.without("names");
    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(host.offer_of(client().of_unsure_name(), "anna"), Err(waits(DELAY)));
    assert_eq!(host.offer_of(client().named("mx.example.net"), "anna"), Ok(()));
    assert_eq!(host.offer_of(client().of_unsure_name(), "anna"), Ok(()));
    host.stop().unwrap();
}

#[test]
fn while_it_reads_any_client_counts_as_proven() {
    let (shelf, clock) = (Shelf::default(), clock());
    let (gate, _opens) = unread(&shelf, |table, _| table == "proven");
    let host = Host::start(&shelf, &clock, POLICY);
    gate.reached_by(2);
    for _ in 0..5 {
        assert_eq!(host.offer(1, "anna"), Ok(()), "a limit for strangers does not bind it");
    }
    gate.open();
    host.loaded(&shelf);
    assert_eq!(host.offer(1, "anna"), Err(waits(DELAY)));
    clock.advance(DELAY);
    assert_eq!(host.offer(1, "anna"), Ok(()));
    assert_eq!(host.offer(1, "anna"), Err(over_limit(Duration::from_secs(3600))));
    host.stop().unwrap();
}

#[test]
fn what_happens_while_it_reads_is_joined_with_what_was_known() {
    let (shelf, clock) = (Shelf::default(), clock());
    let policy = format!("{GREYLIST}per = [\"network\", \"sender\", \"recipient\"]\n")
        .replace("proven_after = 2", "proven_after = 5");
    let host = Host::started(&shelf, &clock, &policy);
    for recipient in ["a", "b", "c", "d"] {
        assert_eq!(host.offer(1, recipient), Err(waits(DELAY)));
    }
    assert_eq!(host.offer(1, "late"), Err(waits(DELAY)));
    clock.advance(DELAY);
    for recipient in ["a", "b", "c", "d"] {
        assert_eq!(host.offer(1, recipient), Ok(()));
    }
    host.stop().unwrap();
    assert_eq!(passes(of(&shelf.kept(), "proven")[0]), 4);

    // Its passes are not read yet when it passes once more.
    let (gate, _opens) = unread(&shelf, {
        let proven = slices(&shelf.kept(), "proven")[0];
        move |table, byte| table == "proven" && byte == proven
    });
    let host = Host::start(&shelf, &clock, &policy);
    gate.reached_by(1);
    wait_until("the triplet that waits to be read", || {
        (host.metric("postpone_table_entries", &[("table", "pending")]) == 1.0).then_some(())
    });
    assert_eq!(host.offer(1, "late"), Ok(()));
    host.flushed(&shelf);
    let kept = shelf.kept();
    assert!(passes(of(&kept, "proven")[0]) >= 4, "nothing it had earned was overwritten");
    assert_eq!(of(&kept, "pending").len(), 0);
    gate.open();
    host.loaded(&shelf);
    assert!(passes(of(&host.memory(), "proven")[0]) >= 4);
    host.stop().unwrap();
}

#[test]
fn who_is_proven_stays_so_whatever_happens_while_it_reads() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(host.offer(1, "late"), Err(waits(DELAY)));
    host.gets_to_know(1, "anna");
    assert_eq!(host.offer(1, "bert"), Err(waits(DELAY)));
    clock.advance(DELAY);
    // Of two passes, one was enough to leave these waiting.
    assert_eq!(host.offer(1, "bert"), Ok(()));
    assert_eq!(host.offer(1, "anyone"), Ok(()), "it is proven");
    host.stop().unwrap();
    assert_eq!(of(&shelf.kept(), "pending").len(), 1);

    let (gate, _opens) = unread(&shelf, {
        let proven = slices(&shelf.kept(), "proven")[0];
        move |table, byte| table == "proven" && byte == proven
    });
    let host = Host::start(&shelf, &clock, GREYLIST);
    gate.reached_by(1);
    wait_until("the triplet that waits to be read", || {
        (host.metric("postpone_table_entries", &[("table", "pending")]) == 1.0).then_some(())
    });
    assert_eq!(host.offer(1, "late"), Ok(()));
    host.flushed(&shelf);
    gate.open();
    host.loaded(&shelf);
    assert_eq!(host.offer(1, "somebody else"), Ok(()), "it is still proven");
    host.stop().unwrap();
}

#[test]
fn what_is_damaged_is_set_aside_and_everything_that_can_be_read_is_kept() {
    listen_to_the_log();
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    (1..=30).for_each(|client| host.gets_to_know(client, "anna"));
    assert_eq!(host.offer(99, "anna"), Err(waits(DELAY)));
    host.stop().unwrap();
    let before = shelf.kept();

    const WHAT: &str = "the block of this story is torn";
    // In the old one only: the new one is sound.
    let mut damages = 2;
    shelf.plan(move |call| match call {
        Call::Scan { table, byte } if table == "passed" && byte % 128 == 64 && damages > 0 => {
            damages -= 1;
            Fate::DoneAndFails(Trouble::Damaged(WHAT))
        }
        _ => Fate::Done,
    });
    let host = Host::start(&shelf, &clock, GREYLIST);
    wait_until("what is damaged to be set aside", || (shelf.aside().len() == 1).then_some(()));
    shelf.until("everything to be written anew", |kept| kept.len() == before.len());
    assert_eq!(shelf.kept(), before);
    assert_eq!(shelf.aside(), [before]);
    let told = logged(&["set aside", WHAT]);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("shelf.damaged-1"), "{told:?}");
    (1..=30).for_each(|client| assert_eq!(host.offer(client, "anna"), Ok(())));
    assert_eq!(host.offer(99, "anna"), Err(waits(DELAY)), "no later, no sooner");
    host.stop().unwrap();
    assert_eq!(shelf.aside().len(), 1);
}

#[test]
fn what_cannot_even_be_opened_is_set_aside_and_mail_flows() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    host.gets_to_know(1, "anna");
    host.stop().unwrap();
    let before = shelf.kept();
    let mut opened = 0;
    shelf.plan(move |call| match call {
        Call::Open => {
            opened += 1;
            if opened == 1 { Fate::Fails(Trouble::Damaged("no list of files")) } else { Fate::Done }
        }
        _ => Fate::Done,
    });
    listen_to_the_log();
    clock.advance(Duration::from_secs(3_600));
    let now = clock.now();
    let host = Host::started(&shelf, &clock, GREYLIST);
    assert_eq!(shelf.aside(), [before]);
    assert_eq!(shelf.begun(), Some(now), "behaviour learns anew");
    assert_eq!(logged(&["no state could be read: behaviour only watches"]).len(), 1);
    host.gets_to_know(1, "anna");
    host.flushed(&shelf);
    assert_eq!(of(&shelf.kept(), "passed").len(), 1);
    host.stop().unwrap();
}

#[test]
fn damage_that_is_met_while_writing_costs_nothing_that_is_in_memory() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    (1..=5).for_each(|client| host.gets_to_know(client, "anna"));
    host.flushed(&shelf);
    let mut fails = true;
    shelf.plan(move |call| match call {
        Call::Commit if std::mem::take(&mut fails) => {
            Fate::Fails(Trouble::Damaged("a table cannot be merged"))
        }
        _ => Fate::Done,
    });
    host.gets_to_know(6, "anna");
    shelf.until("everything to be written anew", |kept| of(kept, "passed").len() == 6);
    assert_eq!(shelf.aside().len(), 1);
    host.flushed(&shelf);
    for table in ["proven", "passed", "pending"] {
        assert_eq!(of(&shelf.kept(), table), of(&host.memory(), table));
    }
    host.stop().unwrap();
}

#[test]
fn an_entry_that_nobody_can_read_is_removed_and_the_others_are_kept() {
    let (shelf, clock) = (Shelf::default(), clock());
    let host = Host::started(&shelf, &clock, GREYLIST);
    host.gets_to_know(1, "anna");
    host.stop().unwrap();
    let before = shelf.kept();
    for (n, bytes) in [&b""[..], b"short", &[255; 64]].into_iter().enumerate() {
        shelf.put("passed", [n as u8; 16], bytes.to_vec());
        shelf.put("proven", [n as u8; 16], bytes.to_vec());
        shelf.put("pending", [n as u8; 16], bytes.to_vec());
    }
    let host = Host::started(&shelf, &clock, GREYLIST);
    shelf.until("them to be removed", |kept| *kept == before);
    assert_eq!(host.offer(1, "anna"), Ok(()));
    host.stop().unwrap();
    assert!(clock.now() > START && shelf.aside().is_empty());
}
