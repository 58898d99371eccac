//! Keyed memory with a bound and an expiry.
//!
//! A table lends its values to closures. The map's guards never leave this file: one held across
//! an `.await`, or two at once, would freeze the daemon. A closure must not use its own table.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::key::Key;
use super::record::Record;
use crate::clock::Time;

/// Records by key, shared by all threads.
///
/// Its bound: at most `max_entries`, reached by new keys only. When it is full, a key that is not
/// known yet is not stored ([`Full`]) and what is known stays; [`Table::sweep`] makes room by
/// dropping what is forgettable.
pub struct Table<R> {
    map: DashMap<Key, R, foldhash::fast::RandomState>,
    entries: AtomicUsize,
    max_entries: usize,
    turned_away: AtomicU64,
}

/// The table holds as many entries as it may; nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// With the map's default of four shards a core, an insert that makes a large shard grow pauses
/// everyone for up to a second; with 1024 for at most some ten milliseconds.
const SHARDS: usize = 1024;

impl<R: Record> Table<R> {
    /// An empty table for at most `max_entries` entries.
    pub fn new(max_entries: usize) -> Self {
        let map = DashMap::with_capacity_and_hasher_and_shard_amount(
            0,
            foldhash::fast::RandomState::default(),
            SHARDS,
        );
        Self { map, entries: AtomicUsize::new(0), max_entries, turned_away: AtomicU64::new(0) }
    }

    /// Changes the record under `key`, or a new one.
    pub fn write<T>(&self, key: Key, change: impl FnOnce(&mut R) -> T) -> Result<T, Full>
    where
        R: Default,
    {
        match self.map.entry(key) {
            Entry::Occupied(mut entry) => Ok(change(entry.get_mut())),
            Entry::Vacant(entry) => {
                if self.entries.fetch_add(1, Ordering::Relaxed) >= self.max_entries {
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                    return Err(Full);
                }
                Ok(change(entry.insert(R::default()).value_mut()))
            }
        }
    }

    /// Changes the record under `key` if there is one.
    pub fn write_known<T>(&self, key: Key, change: impl FnOnce(&mut R) -> T) -> Option<T> {
        self.map.get_mut(&key).map(|mut record| change(record.value_mut()))
    }

    /// Removes and returns the record under `key`.
    pub fn take(&self, key: Key) -> Option<R> {
        let (_, record) = self.map.remove(&key)?;
        self.entries.fetch_sub(1, Ordering::Relaxed);
        Some(record)
    }

    /// Drops what is forgettable; returns how many. Shard after shard, each locked for some
    /// 14 ns an entry: not for the mail path.
    pub fn sweep(&self, now: Time) -> usize {
        let mut dropped = 0;
        self.map.retain(|_, record| {
            let forget = record.forgettable(now);
            dropped += usize::from(forget);
            !forget
        });
        self.entries.fetch_sub(dropped, Ordering::Relaxed);
        dropped
    }

    /// Shows the record under `key`, or that there is none.
    pub fn read<T>(&self, key: Key, show: impl FnOnce(Option<&R>) -> T) -> T {
        show(self.map.get(&key).as_deref())
    }

    /// Whether a new key would be turned away.
    pub fn is_full(&self) -> bool {
        self.len() >= self.max_entries
    }

    /// How many new keys were not stored because the table was full.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// How many entries there are, as of a moment ago.
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Secret;
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default, Clone, Debug, PartialEq)]
    struct Until(u64);

    impl Record for Until {
        fn forgettable(&self, now: Time) -> bool {
            Time::from_secs(self.0) <= now
        }
    }

    fn key(n: u8) -> Key {
        Secret::new([0; 16]).key("test").part(&[n]).finish()
    }

    #[test]
    fn a_full_table_keeps_what_it_knows_and_takes_nothing_new() {
        let table = Table::new(2);
        for n in [1, 2] {
            table.write(key(n), |r: &mut Until| r.0 = 10 * u64::from(n)).unwrap();
        }
        assert_eq!(table.write(key(3), |r| r.0 = 30), Err(Full));
        assert_eq!(table.write(key(2), |r| r.0), Ok(20));
        assert_eq!(table.sweep(Time::from_secs(10)), 1);
        assert_eq!(table.write(key(3), |r| r.0 = 30), Ok(()));
        assert_eq!(table.len(), 2);
    }

    proptest! {
        /// A table is a map with a bound, whatever is done to it in whatever order.
        #[test]
        fn it_behaves_as_a_bounded_map(
            steps in prop::collection::vec((0..5_u8, 0..20_u8, 0..100_u64), 0..200)
        ) {
            let (table, mut model) = (Table::new(8), HashMap::new());
            for (what, n, at) in steps {
                match what {
                    0 | 1 => {
                        let room = model.contains_key(&n) || model.len() < 8;
                        let done = table.write(key(n), |r: &mut Until| r.0 = at);
                        prop_assert_eq!(done.is_ok(), room);
                        if room {
                            model.insert(n, Until(at));
                        }
                    }
                    2 => prop_assert_eq!(table.take(key(n)), model.remove(&n)),
                    3 => {
                        let before = model.len();
                        model.retain(|_, r| !r.forgettable(Time::from_secs(at)));
                        prop_assert_eq!(table.sweep(Time::from_secs(at)), before - model.len());
                    }
                    _ => prop_assert_eq!(table.read(key(n), |r| r.cloned()), model.get(&n).cloned()),
                }
                prop_assert_eq!(table.len(), model.len());
            }
        }
    }
}
