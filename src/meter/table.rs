//! Keyed memory with a bound and an expiry.
//!
//! A table is many small hash tables, each behind a lock of its own that is held for the time of
//! one look-up. It lends its values to closures; no guard leaves this file, since one held across
//! an `.await`, or two at once, would freeze the daemon. A closure must not use its own table.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashTable;

use super::changes::Changes;
use super::forgotten::Forgotten;
use super::key::Key;
use super::record::{Form, Record, Stored, Worth, written};
use crate::clock::Moment;

/// Records by key, shared by all threads.
///
/// Its bound: at most `max_entries`, of which each shard has an equal part, so that a table is
/// full when it holds a few percent less. In a full shard a new key takes the place of another:
/// of [`SAMPLE`], which are as good as chosen by lot, a forgettable one, else the least worthy.
/// Where all of them are [`Worth::Lasting`], the new one is not stored ([`Full`]).
pub struct Table<R> {
    shards: Box<[Mutex<Shard<R>>]>,
    most_per_shard: usize,
    max_entries: usize,
    entries: AtomicUsize,
    /// For how long the rules in force store a record at most, in nanoseconds.
    longest: AtomicU64,
    turned_away: AtomicU64,
    evicted: AtomicU64,
    /// What the last record was worth that had to go before its time.
    last_evicted: AtomicU64,
    /// Where the next sweep goes on.
    next_shard: AtomicUsize,
    /// Of a table that is kept on disk as it changes.
    changes: Option<Changes>,
    /// What the disk is to forget too.
    forgotten: Forgotten,
    /// Whether everything that was kept has been read again.
    whole: AtomicBool,
}

type Shard<R> = HashTable<(Key, R)>;

/// The table holds as many entries as it may; nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Entries of a shard. To look at each takes some ten nanoseconds, so that no decision waits for
/// longer than about twenty microseconds; so long, too, is the pause when a shard grows. A hash
/// table of 2048 buckets takes 1792: the rest is for the traces of what was removed.
const MOST_PER_SHARD: usize = 1_536;

/// How many others are looked at for one whose place a new key takes.
pub const SAMPLE: usize = 12;

/// How far from each other these lie in a shard.
const STRIDE: usize = 37;

impl<R: Record> Table<R> {
    /// A record that is kept apart is one more look into cold memory, and takes four times as long.
    const MOST_PER_SHARD: usize = if R::APART == 0 { MOST_PER_SHARD } else { MOST_PER_SHARD / 4 };

    /// An empty table for at most `max_entries` entries.
    pub fn new(max_entries: usize) -> Self {
        let shards = max_entries.div_ceil(Self::MOST_PER_SHARD).max(1);
        Self {
            shards: (0..shards).map(|_| Mutex::new(HashTable::new())).collect(),
            most_per_shard: max_entries / shards,
            max_entries,
            entries: AtomicUsize::new(0),
            longest: AtomicU64::new(u64::MAX),
            turned_away: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            last_evicted: AtomicU64::new(0),
            next_shard: AtomicUsize::new(0),
            changes: None,
            forgotten: Forgotten::default(),
            whole: AtomicBool::new(true),
        }
    }

    /// The same, and what changes is noted for whoever writes it down.
    pub fn noting_changes(max_entries: usize) -> Self {
        Self { changes: Some(Changes::default()), ..Self::new(max_entries) }
    }

    /// The rules in force store no record for longer than that.
    pub fn lasts_at_most(&self, longest: Duration) {
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        self.longest.store(nanos, Ordering::Relaxed);
    }

    /// Changes the record under `key`, or a new one.
    pub fn write<T>(
        &self,
        key: Key,
        at: Moment,
        change: impl FnOnce(&mut R) -> T,
    ) -> Result<T, Full>
    where
        R: Default,
    {
        let mut shard = self.shard(key);
        if let Some((_, record)) = shard.find_mut(key.hash(), |(other, _)| *other == key) {
            self.put_right(record, at);
            let done = change(record);
            drop(shard);
            self.note(key);
            return Ok(done);
        }
        let victim = self.room(&mut shard, key, at)?;
        let mut record = R::default();
        let done = change(&mut record);
        self.insert(shard, key, record, victim);
        self.note(key);
        Ok(done)
    }

    /// Changes the record under `key` if there is one.
    pub fn write_known<T>(
        &self,
        key: Key,
        at: Moment,
        change: impl FnOnce(&mut R) -> T,
    ) -> Option<T> {
        let known = |entry: &mut (Key, R)| {
            self.put_right(&mut entry.1, at);
            change(&mut entry.1)
        };
        let done = self.shard(key).find_mut(key.hash(), |(k, _)| *k == key).map(known);
        if done.is_some() {
            self.note(key);
        }
        done
    }

    /// Removes and returns the record under `key`.
    pub fn take(&self, key: Key) -> Option<R> {
        let mut shard = self.shard(key);
        let entry = shard.find_entry(key.hash(), |(other, _)| *other == key).ok()?;
        let ((_, record), _) = entry.remove();
        drop(shard);
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.note(key);
        Some(record)
    }

    /// Removes the record under `key` for good, from disk too; says whether there was one. While the
    /// table is not [whole](Self::is_whole) there may be one on disk, so then it says yes.
    pub fn forget(&self, key: Key) -> bool {
        // First, or it could be read back in between.
        self.forgotten.add(key);
        self.take(key).is_some() || !self.is_whole()
    }

    /// Shows the record under `key` as seen from that moment, or that there is none, or none any
    /// more.
    pub fn read<T>(&self, key: Key, at: Moment, show: impl FnOnce(Option<&R>) -> T) -> T {
        let shard = self.shard(key);
        let record = shard.find(key.hash(), |(other, _)| *other == key).map(|(_, record)| record);
        let record = record.filter(|record| !has_faded(*record, at));
        match record.and_then(|record| record.seen_from(at.now, self.longest())) {
            Some(seen) => show(Some(&seen)),
            None => show(record),
        }
    }

    /// The record under `key` as it is stored, whether or not it has faded.
    pub fn copied(&self, key: Key) -> Option<R>
    where
        R: Copy,
    {
        self.shard(key).find(key.hash(), |(other, _)| *other == key).map(|(_, record)| *record)
    }

    /// Drops what has faded in the next of so many parts of the table, and puts right what a clock
    /// that was ahead has stored; returns how many it dropped. One shard after another, each locked
    /// for some twenty microseconds.
    pub fn sweep(&self, at: Moment, parts: usize) -> usize {
        let each = self.shards.len().div_ceil(parts.max(1));
        let first = self.next_shard.fetch_add(each, Ordering::Relaxed);
        // With room for all of a shard, so that it need not grow while one is locked; and what is
        // dropped goes when it no longer is.
        let mut faded = Vec::with_capacity(self.most_per_shard);
        let mut dropped = 0;
        for number in first..first + each {
            let mut shard = lock(&self.shards[number % self.shards.len()]);
            faded.extend(shard.extract_if(|(_, record)| has_faded(record, at)));
            let ahead = shard
                .iter_mut()
                .filter_map(|(key, record)| self.put_right(record, at).then_some(*key));
            let put_right: Vec<Key> = ahead.collect();
            if shard.len() < shard.capacity() / 8 {
                let twice = shard.len() * 2;
                shard.shrink_to(twice, |(key, _)| key.hash());
            }
            drop(shard);
            self.entries.fetch_sub(faded.len(), Ordering::Relaxed);
            dropped += faded.len();
            put_right.into_iter().for_each(|key| self.note(key));
            faded.drain(..).for_each(|(key, _)| self.note(key));
        }
        dropped
    }

    /// Whether little is left of the bound: an eighth at most.
    pub fn is_crowded(&self) -> bool {
        self.len() >= self.max_entries - self.max_entries / 8
    }

    /// What the table has come to. Shard after shard, each locked for a moment: not for the mail
    /// path.
    pub fn size(&self) -> Size {
        Size {
            entries: self.len(),
            max_entries: self.max_entries,
            bytes: self.allocated(),
            turned_away: self.turned_away.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    /// What the last record was worth that had to go before its time; zero if none had.
    pub fn last_evicted(&self) -> u64 {
        self.last_evicted.load(Ordering::Relaxed)
    }

    /// Bytes of memory that the entries take, with the room kept for more.
    pub fn allocated(&self) -> usize {
        let shards = self.shards.iter().map(|shard| lock(shard));
        shards.map(|shard| shard.allocation_size() + shard.len() * R::APART).sum()
    }

    /// How many entries there are, as of a moment ago.
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether everything that was kept has been read again: until then, what is not found may
    /// well be known.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard<R>> {
        lock(&self.shards[key.place_in(self.shards.len())])
    }

    fn note(&self, key: Key) {
        if let Some(changes) = &self.changes {
            changes.note(key);
        }
    }

    fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }

    /// Makes a record what it is as seen from that moment, unless the clock might be the one that
    /// is wrong and somebody would suffer from it; says whether it has changed.
    fn put_right(&self, record: &mut R, at: Moment) -> bool {
        if R::FAVOURS && !at.is_settled() {
            return false;
        }
        let seen = record.seen_from(at.now, self.longest());
        seen.map(|seen| *record = seen).is_some()
    }

    /// Makes room for a new key, if need be by dropping another, which is returned.
    fn room(&self, shard: &mut Shard<R>, key: Key, at: Moment) -> Result<Option<Key>, Full> {
        let full = shard.len() >= self.most_per_shard;
        let victim = if full { self.evict(shard, key, at) } else { None };
        if full && victim.is_none() {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return Err(Full);
        }
        clear_traces(shard);
        Ok(victim)
    }

    /// Stores a new key, perhaps in the place of another.
    fn insert(
        &self,
        mut shard: MutexGuard<'_, Shard<R>>,
        key: Key,
        record: R,
        victim: Option<Key>,
    ) {
        shard.insert_unique(key.hash(), (key, record), |(key, _)| key.hash());
        // It counts before anybody can remove it, or the count would fall below zero.
        self.entries.fetch_add(usize::from(victim.is_none()), Ordering::Relaxed);
        drop(shard);
        victim.into_iter().for_each(|victim| self.note(victim));
    }

    /// Drops the least worthy of some; none if all are [`Worth::Lasting`].
    fn evict(&self, shard: &mut Shard<R>, newcomer: Key, at: Moment) -> Option<Key> {
        let buckets = shard.num_buckets();
        let from = newcomer.hash() as usize;
        // There is a power of two of them, so that an odd stride comes by all. Those next to each
        // other are no sample: what came early lies in clusters.
        let at_random = (0..buckets).map(|n| from.wrapping_add(n * STRIDE) % buckets);
        let occupied = at_random.filter_map(|at| Some((at, &shard.get_bucket(at)?.1)));
        // One that has faded is worth less than nothing.
        let worth = |record: &R| (!has_faded(record, at)).then(|| record.worth());
        let (worth, at) = occupied
            .take(SAMPLE)
            .map(|(at, record)| (worth(record), at))
            .min_by_key(|(w, _)| *w)?;
        if worth == Some(Worth::Lasting) {
            return None;
        }
        let ((victim, _), _) = shard.get_bucket_entry(at).ok()?.remove();
        if let Some(Worth::Fleeting(worth)) = worth {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            self.last_evicted.store(worth, Ordering::Relaxed);
        }
        Some(victim)
    }
}

/// What a table has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Entries, as of a moment ago.
    pub entries: usize,
    /// As many as there may be.
    pub max_entries: usize,
    /// The memory they take.
    pub bytes: usize,
    /// New keys that were not stored because all others were worth more.
    pub turned_away: u64,
    /// Entries that had to make room before their time.
    pub evicted: u64,
}

/// Whether a record says no more than its absence; none does while the clock is doubted.
fn has_faded(record: &impl Record, at: Moment) -> bool {
    !at.is_doubted() && record.forgettable(at.now)
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a closure leaves at worst a count that is off.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A hash table whose free buckets are used up by the traces of what was removed would double: it
/// is made anew in the same size instead, so that a bound on entries is one on memory.
fn clear_traces<R>(shard: &mut Shard<R>) {
    let usable = shard.num_buckets() / 8 * 7;
    let traces = usable.saturating_sub(shard.capacity());
    if shard.len() < shard.capacity() || traces == 0 || traces < usable / 16 {
        return;
    }
    let mut fresh = HashTable::with_capacity(usable);
    for (key, record) in shard.drain() {
        fresh.insert_unique(key.hash(), (key, record), |(key, _)| key.hash());
    }
    *shard = fresh;
}

/// What became of an entry that was read from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It is remembered.
    Kept,
    /// It has faded, is unreadable, or there is no room for it: it need not be kept on disk.
    Dropped,
}

/// A table as a store sees it, whatever its records are.
pub trait Kept: Send + Sync {
    /// The changes that are noted, if they are.
    fn changes(&self) -> Option<&Changes>;

    /// What was forgotten by hand.
    fn forgotten(&self) -> &Forgotten;

    /// The record under a key, written down; nothing if there is none.
    fn written(&self, key: Key) -> Option<Vec<u8>>;

    /// Takes in a record from disk.
    fn restore(&self, key: Key, bytes: &[u8], at: Moment) -> Restored;

    /// How many parts [`Kept::keys`] can be asked for.
    fn parts(&self) -> usize;

    /// All keys of one part.
    fn keys(&self, part: usize) -> Vec<Key>;

    /// Says whether everything has been read again; see [`Table::is_whole`].
    fn set_whole(&self, whole: bool);

    /// How many entries there are, as of a moment ago.
    fn entries(&self) -> usize;

    /// What can be done with its records where they are written down.
    fn form(&self) -> &'static dyn Form;
}

impl<R: Stored> Kept for Table<R> {
    fn changes(&self) -> Option<&Changes> {
        self.changes.as_ref()
    }

    fn forgotten(&self) -> &Forgotten {
        &self.forgotten
    }

    fn written(&self, key: Key) -> Option<Vec<u8>> {
        let shard = self.shard(key);
        let entry = shard.find(key.hash(), |(other, _)| *other == key);
        entry.map(|(_, record)| written(record))
    }

    fn restore(&self, key: Key, bytes: &[u8], at: Moment) -> Restored {
        let Some(read) = R::decode(bytes).filter(|record| !has_faded(record, at)) else {
            return Restored::Dropped;
        };
        let mut shard = self.shard(key);
        // Looked up under the lock, since it is removed from the shard after it was noted here.
        if self.forgotten.contains(key) {
            return Restored::Dropped;
        }
        if let Some((_, record)) = shard.find_mut(key.hash(), |(other, _)| *other == key) {
            record.fold(read);
            return Restored::Kept;
        }
        let Ok(victim) = self.room(&mut shard, key, at) else { return Restored::Dropped };
        self.insert(shard, key, read, victim);
        Restored::Kept
    }

    fn parts(&self) -> usize {
        self.shards.len()
    }

    fn keys(&self, part: usize) -> Vec<Key> {
        lock(&self.shards[part]).iter().map(|(key, _)| *key).collect()
    }

    fn set_whole(&self, whole: bool) {
        self.whole.store(whole, Ordering::Relaxed);
        self.forgotten.written(&[], whole);
    }

    fn entries(&self) -> usize {
        self.len()
    }

    fn form(&self) -> &'static dyn Form {
        &PhantomData::<R>
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Secret;
    use super::*;
    use crate::clock::Time;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default, Clone, Copy, Debug, PartialEq)]
    struct Until(u64);

    impl Record for Until {
        const FAVOURS: bool = true;

        fn forgettable(&self, now: Time) -> bool {
            Time::from_secs(self.0) <= now
        }

        fn worth(&self) -> Worth {
            if self.0 == LASTS { Worth::Lasting } else { Worth::Fleeting(self.0) }
        }

        fn seen_from(&self, now: Time, longest: Duration) -> Option<Self> {
            let until = Time::from_secs(self.0).at_most(longest, now).as_nanos() / 1_000_000_000;
            (until < self.0).then_some(Self(until))
        }
    }

    const LASTS: u64 = 1_000_000;
    const NOW: Moment = Moment::of(Time::from_secs(1));

    fn key(n: u32) -> Key {
        Secret::new([0; 16]).key("test").part(&n.to_le_bytes()).finish()
    }

    fn value(table: &Table<Until>, n: u32) -> Option<u64> {
        table.read(key(n), NOW, |record: Option<&Until>| record.map(|record| record.0))
    }

    #[test]
    fn in_a_full_table_what_has_faded_makes_room_first_and_then_the_least_worthy() {
        let table = Table::new(3);
        for (n, until) in [(1, 30), (2, 20), (3, 10)] {
            table.write(key(n), NOW, |r: &mut Until| r.0 = until).unwrap();
        }
        let later = Moment::of(Time::from_secs(10));
        table.write(key(4), later, |r| r.0 = 40).unwrap();
        assert_eq!((value(&table, 3), table.size().evicted), (None, 0), "it had faded");
        table.write(key(5), later, |r| r.0 = 50).unwrap();
        assert_eq!((value(&table, 2), table.size().evicted), (None, 1));
        assert_eq!(table.last_evicted(), 20);
        assert_eq!([1, 4, 5].map(|n| value(&table, n)), [Some(30), Some(40), Some(50)]);
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn nothing_new_takes_the_place_of_what_lasts() {
        let table = Table::new(2);
        for n in [1, 2] {
            table.write(key(n), NOW, |r: &mut Until| r.0 = LASTS).unwrap();
        }
        assert_eq!(table.write(key(3), NOW, |r| r.0 = 30), Err(Full));
        assert_eq!(table.write(key(2), NOW, |r| r.0), Ok(LASTS), "what is known can change");
        assert_eq!((table.len(), table.size().turned_away), (2, 1));
    }

    #[test]
    fn a_flood_of_new_keys_takes_no_more_memory_than_the_bound_and_spares_what_lasts() {
        const MAX: u32 = 30_000;
        let table = Table::new(MAX as usize);
        for n in 0..MAX / 2 {
            table.write(key(n), NOW, |r: &mut Until| r.0 = LASTS).unwrap();
        }
        let mut allocated = 0;
        for n in MAX..20 * MAX {
            let _ = table.write(key(n), NOW, |r| r.0 = u64::from(n));
            if n == 3 * MAX {
                allocated = table.allocated();
            }
        }
        assert!(table.len() <= MAX as usize);
        assert_eq!(table.allocated(), allocated, "it takes no more than when it was full");
        assert!((0..MAX / 2).all(|n| value(&table, n) == Some(LASTS)));
        let newest = (20 * MAX - 1_000..20 * MAX).filter(|n| value(&table, *n).is_some()).count();
        assert!(newest > 900, "of the last thousand only {newest} are there");
    }

    #[test]
    fn a_sweep_in_parts_comes_round_to_everything() {
        let table = Table::new(10_000);
        for n in 0..5_000 {
            table.write(key(n), NOW, |r: &mut Until| r.0 = 10 + u64::from(n % 2) * 90).unwrap();
        }
        let dropped: usize = (0..8).map(|_| table.sweep(Moment::of(Time::from_secs(50)), 8)).sum();
        assert_eq!((dropped, table.len()), (2_500, 2_500));
    }

    #[test]
    fn memory_is_given_back_after_a_flood() {
        let table = Table::new(100_000);
        for n in 0..100_000 {
            let _ = table.write(key(n), NOW, |r: &mut Until| r.0 = 10);
        }
        let full = table.allocated();
        table.sweep(Moment::of(Time::from_secs(50)), 1);
        assert!(table.allocated() < full / 50);
    }

    proptest! {
        /// A table is a map, whatever is done to it in whatever order, while it has room.
        #[test]
        fn it_behaves_as_a_map(
            steps in prop::collection::vec((0..5_u8, 0..20_u32, 0..100_u64), 0..200)
        ) {
            let (table, mut model) = (Table::new(20), HashMap::new());
            for (what, n, at) in steps {
                match what {
                    0 | 1 => {
                        let done = table.write(key(n), NOW, |r: &mut Until| r.0 = at);
                        prop_assert_eq!(done, Ok(()));
                        model.insert(n, Until(at));
                    }
                    2 => prop_assert_eq!(table.take(key(n)), model.remove(&n)),
                    3 => {
                        let before = model.len();
                        model.retain(|_, r| !r.forgettable(Time::from_secs(at)));
                        prop_assert_eq!(table.sweep(Moment::of(Time::from_secs(at)), 1), before - model.len());
                    }
                    _ => prop_assert_eq!(table.copied(key(n)), model.get(&n).cloned()),
                }
                prop_assert_eq!(table.len(), model.len());
            }
        }
    }
}
