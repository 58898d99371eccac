//! One suite for every backend: what is committed is there, whole, the newest of it, and also after
//! it was opened again.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::shelf::{Entries, Shelf};
use crate::support::Folder;
use postpone::store::disk::Disk;
use postpone::store::{Backend, Change, Fault, Home, RawKey};
use proptest::prelude::*;
use proptest::test_runner::Config;

const TABLES: [&str; 3] = ["proven", "passed", "pending"];

/// Where a backend stays while nobody has it open.
trait Place {
    fn new(name: &str) -> Self;
    fn open(&self) -> Result<Box<dyn Backend>, Fault>;
}

impl Place for Shelf {
    fn new(_: &str) -> Self {
        Self::default()
    }

    fn open(&self) -> Result<Box<dyn Backend>, Fault> {
        Home::open(self)
    }
}

impl Place for Folder {
    fn new(name: &str) -> Self {
        Self::new(name)
    }

    fn open(&self) -> Result<Box<dyn Backend>, Fault> {
        Ok(Box::new(Disk::open(&self.path().join("db"), &TABLES)?))
    }
}

/// Each story is told of each backend.
macro_rules! of_every_backend {
    ($($story:ident)*) => {
        mod shelf {
            $(#[test] fn $story() { super::$story::<super::Shelf>(); })*
        }
        mod disk {
            $(#[test] fn $story() { super::$story::<super::Folder>(); })*
        }
    };
}
of_every_backend! {
    an_empty_one_shows_nothing
    what_was_written_is_there_and_nothing_else
    the_newest_value_wins
    what_was_removed_is_gone
    a_slice_is_what_begins_with_its_byte
    tables_are_apart
    whoever_looks_while_it_is_written_sees_each_entry_once_and_what_was_committed_before
    nothing_is_lost_by_compacting
    values_of_any_length_are_kept
    it_is_a_map_that_survives_being_opened_again
}

/// A key that begins with this byte.
fn key(byte: u8, n: u32) -> RawKey {
    let mut key = [0; 16];
    key[0] = byte;
    key[12..].copy_from_slice(&n.to_be_bytes());
    key
}

fn put(table: &'static str, key: RawKey, value: &str) -> Change {
    Change { table, key, value: Some(value.into()) }
}

fn remove(table: &'static str, key: RawKey) -> Change {
    Change { table, key, value: None }
}

/// All of it, slice by slice.
fn everything(backend: &dyn Backend) -> Entries {
    let mut found = BTreeMap::new();
    for table in TABLES {
        for byte in 0..=u8::MAX {
            let each = &mut |key: RawKey, value: &[u8]| {
                assert_eq!(key[0], byte, "a slice shows its own");
                let before = found.insert((table.into(), key), value.to_vec());
                assert_eq!(before, None, "an entry is shown once");
            };
            backend.scan(table, byte, each).unwrap();
        }
    }
    found
}

fn entries(expected: &[(&str, RawKey, &str)]) -> Entries {
    let entry = |(table, key, value): &(&str, RawKey, &str)| {
        (((*table).to_owned(), *key), value.as_bytes().to_vec())
    };
    expected.iter().map(entry).collect()
}

/// The same is seen now, and after it was opened again.
fn holds<P: Place>(place: &P, backend: Box<dyn Backend>, expected: &[(&str, RawKey, &str)]) {
    assert_eq!(everything(&*backend), entries(expected));
    drop(backend);
    assert_eq!(everything(&*place.open().unwrap()), entries(expected));
}

fn an_empty_one_shows_nothing<P: Place>() {
    let place = P::new("empty");
    let backend = place.open().unwrap();
    assert_eq!(backend.get("proven", key(1, 1)).unwrap(), None);
    backend.commit(&[]).unwrap();
    backend.compact().unwrap();
    holds(&place, backend, &[]);
}

fn what_was_written_is_there_and_nothing_else<P: Place>() {
    let place = P::new("written");
    let backend = place.open().unwrap();
    backend.commit(&[put("proven", key(0, 0), "a"), put("proven", key(255, 7), "b")]).unwrap();
    assert_eq!(backend.get("proven", key(0, 0)).unwrap(), Some(b"a".to_vec()));
    assert_eq!(backend.get("proven", key(0, 1)).unwrap(), None);
    holds(&place, backend, &[("proven", key(0, 0), "a"), ("proven", key(255, 7), "b")]);
}

fn the_newest_value_wins<P: Place>() {
    let place = P::new("newest");
    let backend = place.open().unwrap();
    backend.commit(&[put("proven", key(1, 1), "old"), put("proven", key(1, 2), "old")]).unwrap();
    backend.commit(&[put("proven", key(1, 1), "new")]).unwrap();
    // Also within one commit.
    let twice = [put("proven", key(1, 2), "newer"), put("proven", key(1, 2), "newest")];
    backend.commit(&twice).unwrap();
    assert_eq!(backend.get("proven", key(1, 2)).unwrap(), Some(b"newest".to_vec()));
    holds(&place, backend, &[("proven", key(1, 1), "new"), ("proven", key(1, 2), "newest")]);
}

fn what_was_removed_is_gone<P: Place>() {
    let place = P::new("removed");
    let backend = place.open().unwrap();
    let all: Vec<_> = (1..=4).map(|n| put("passed", key(9, n), "x")).collect();
    backend.commit(&all).unwrap();
    backend.commit(&[remove("passed", key(9, 1)), remove("passed", key(9, 99))]).unwrap();
    let gone_and_back = [remove("passed", key(9, 2)), put("passed", key(9, 2), "back")];
    let back_and_gone = [put("passed", key(9, 3), "back"), remove("passed", key(9, 3))];
    backend.commit(&[gone_and_back, back_and_gone].concat()).unwrap();
    assert_eq!(backend.get("passed", key(9, 1)).unwrap(), None);
    holds(&place, backend, &[("passed", key(9, 2), "back"), ("passed", key(9, 4), "x")]);
}

fn a_slice_is_what_begins_with_its_byte<P: Place>() {
    let place = P::new("slice");
    let backend = place.open().unwrap();
    let ends = |byte: u8| {
        let mut last = [255; 16];
        last[0] = byte;
        [key(byte, 0), last]
    };
    let keys: Vec<RawKey> = (0..=u8::MAX).flat_map(ends).collect();
    let all: Vec<_> = keys.iter().map(|key| put("pending", *key, "x")).collect();
    backend.commit(&all).unwrap();
    // The first and the last key there can be of each slice; `everything` looks whose they are.
    let expected: Vec<_> = keys.iter().map(|key| ("pending", *key, "x")).collect();
    holds(&place, backend, &expected);
}

fn tables_are_apart<P: Place>() {
    let place = P::new("tables");
    let backend = place.open().unwrap();
    backend.commit(&TABLES.map(|table| put(table, key(3, 3), table))).unwrap();
    backend.commit(&[remove("passed", key(3, 3))]).unwrap();
    assert_eq!(backend.get("passed", key(3, 3)).unwrap(), None);
    assert_eq!(backend.get("pending", key(3, 3)).unwrap(), Some(b"pending".to_vec()));
    holds(&place, backend, &[("proven", key(3, 3), "proven"), ("pending", key(3, 3), "pending")]);
}

fn whoever_looks_while_it_is_written_sees_each_entry_once_and_what_was_committed_before<
    P: Place,
>() {
    let place = P::new("meanwhile");
    let backend: Arc<dyn Backend> = Arc::from(place.open().unwrap());
    let batch = |n: u32| -> Vec<Change> {
        (0..50).map(|i| put("proven", key(5, i), &n.to_string())).collect()
    };
    backend.commit(&batch(0)).unwrap();
    let committed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1..60 {
                backend.commit(&batch(n)).unwrap();
                committed.store(n, Ordering::SeqCst);
            }
        });
        while !writer.is_finished() {
            let before = committed.load(Ordering::SeqCst);
            let mut seen = BTreeMap::new();
            let each = &mut |key: RawKey, value: &[u8]| {
                let number: u32 = str::from_utf8(value).unwrap().parse().unwrap();
                assert!(number >= before, "{number} is older than {before}");
                assert_eq!(seen.insert(key, number), None);
            };
            backend.scan("proven", 5, each).unwrap();
            assert_eq!(seen.len(), 50);
        }
        writer.join().unwrap();
    });
}

fn nothing_is_lost_by_compacting<P: Place>() {
    let place = P::new("compacted");
    let backend = place.open().unwrap();
    let all: Vec<_> = (0..2_000).map(|n| put("passed", key(n as u8, n), "x")).collect();
    backend.commit(&all).unwrap();
    let half: Vec<_> = (0..1_000).map(|n| remove("passed", key(n as u8, n))).collect();
    backend.commit(&half).unwrap();
    backend.compact().unwrap();
    backend.commit(&[put("passed", key(1, 1), "after")]).unwrap();
    let mut expected: Vec<_> = (1_000..2_000).map(|n| ("passed", key(n as u8, n), "x")).collect();
    expected.push(("passed", key(1, 1), "after"));
    holds(&place, backend, &expected);
}

fn values_of_any_length_are_kept<P: Place>() {
    let place = P::new("lengths");
    let backend = place.open().unwrap();
    let long = "x".repeat(20_000);
    backend.commit(&[put("proven", key(1, 1), ""), put("proven", key(1, 2), &long)]).unwrap();
    holds(&place, backend, &[("proven", key(1, 1), ""), ("proven", key(1, 2), &long)]);
}

/// What somebody does with a backend.
#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(u8, u8, Option<u8>)>),
    OpenAgain,
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..3_u8, 0..12_u8, prop::option::weighted(0.7, any::<u8>()));
    prop_oneof![
        8 => prop::collection::vec(change, 0..20).prop_map(Step::Commit),
        1 => Just(Step::OpenAgain),
        1 => Just(Step::Compact),
    ]
}

fn it_is_a_map_that_survives_being_opened_again<P: Place>() {
    // Each commit waits for a real disk.
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..16))| {
        let place = P::new("property");
        let mut backend = place.open().unwrap();
        let mut model = Entries::new();
        for step in steps {
            match step {
                Step::Commit(changes) => {
                    let change = |(table, n, value): &(u8, u8, Option<u8>)| Change {
                        table: TABLES[usize::from(*table)],
                        key: key(n % 3 * 100, u32::from(*n)),
                        value: value.map(|value| vec![value; usize::from(value) % 40]),
                    };
                    let batch: Vec<_> = changes.iter().map(change).collect();
                    backend.commit(&batch).unwrap();
                    for Change { table, key, value } in batch {
                        let entry = (table.to_owned(), key);
                        match value {
                            Some(value) => _ = model.insert(entry, value),
                            None => _ = model.remove(&entry),
                        }
                    }
                }
                Step::OpenAgain => {
                    drop(backend);
                    backend = place.open().unwrap();
                }
                Step::Compact => backend.compact().unwrap(),
            }
            for ((table, key), value) in &model {
                let found = backend.get(table, *key).unwrap();
                prop_assert_eq!(found.as_ref(), Some(value));
            }
        }
        prop_assert_eq!(everything(&*backend), model.clone());
        drop(backend);
        prop_assert_eq!(everything(&*place.open().unwrap()), model);
    });
}
