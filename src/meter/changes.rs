//! Which keys of a table have changed since somebody last looked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use super::key::Key;

/// Keys that have changed, each noted once.
///
/// Its bound: [`MOST`], some twenty megabytes. A change beyond it is not noted by its key but as
/// one of many ([`Changes::missed`]): who writes changes down must then look through the table.
pub struct Changes {
    stripes: Box<[Mutex<HashTable<Key>>]>,
    noted: AtomicUsize,
    /// Those that are being written.
    in_hand: AtomicUsize,
    missed: AtomicBool,
    /// Whether anybody will look.
    wanted: AtomicBool,
}

/// How many keys are noted at most: a hundred seconds of five thousand new ones.
pub const MOST: usize = 1 << 19;

/// Few enough to look at them all, and so many that a growing one makes nobody wait for long.
const STRIPES: usize = 256;

impl Default for Changes {
    fn default() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::new(HashTable::new())).collect(),
            noted: AtomicUsize::new(0),
            in_hand: AtomicUsize::new(0),
            missed: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
        }
    }
}

impl Changes {
    /// Somebody will look: from now on, changes are noted.
    pub fn begin(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// The record under this key is not what it was.
    pub fn note(&self, key: Key) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut stripe = lock(&self.stripes[key.place_in(STRIPES)]);
        if stripe.find(key.hash(), |noted| *noted == key).is_some() {
            return;
        }
        if self.noted.load(Ordering::Relaxed) >= MOST {
            self.miss();
            return;
        }
        stripe.insert_unique(key.hash(), key, |key| key.hash());
        self.noted.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes up to so many of the noted keys, or a few more. They are behind until they are
    /// [`done`](Self::done) or [put back](Self::put_back).
    pub fn take(&self, most: usize) -> Vec<Key> {
        let mut taken = Vec::new();
        for stripe in &self.stripes {
            if taken.len() >= most {
                break;
            }
            let keys = std::mem::take(&mut *lock(stripe));
            self.in_hand.fetch_add(keys.len(), Ordering::Relaxed);
            self.noted.fetch_sub(keys.len(), Ordering::Relaxed);
            taken.extend(keys);
        }
        taken
    }

    /// So many of those taken have been written.
    pub fn done(&self, keys: usize) {
        self.in_hand.fetch_sub(keys, Ordering::Relaxed);
    }

    /// These were taken and could not be written.
    pub fn put_back(&self, keys: &[Key]) {
        keys.iter().for_each(|key| self.note(*key));
        self.done(keys.len());
    }

    /// What was taken is lost, and how much of it was written is not known.
    pub fn lose(&self) {
        self.in_hand.store(0, Ordering::Relaxed);
        self.miss();
    }

    /// How many keys are noted, or taken and not written yet.
    pub fn behind(&self) -> usize {
        self.len() + self.in_hand.load(Ordering::Relaxed)
    }

    /// How many keys are noted.
    pub fn len(&self) -> usize {
        self.noted.load(Ordering::Relaxed)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// There was a change that could not be noted.
    pub fn miss(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// Whether there was a change that could not be noted, since this was last asked.
    pub fn missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }
}

fn lock<T>(stripe: &Mutex<T>) -> MutexGuard<'_, T> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::key::Secret;
    use super::*;

    fn key(n: usize) -> Key {
        Secret::new([0; 16]).key("test").part(&n.to_le_bytes()).finish()
    }

    #[test]
    fn a_key_that_changes_often_is_noted_once() {
        let changes = Changes::default();
        changes.begin();
        [1, 2, 1, 1].into_iter().for_each(|n| changes.note(key(n)));
        assert_eq!(changes.len(), 2);
        assert_eq!(changes.take(usize::MAX).len(), 2);
        assert!(changes.is_empty() && !changes.missed());
        assert_eq!(changes.behind(), 2, "they are taken, and not written");
        changes.done(1);
        changes.put_back(&[key(2)]);
        assert_eq!((changes.len(), changes.behind()), (1, 1));
    }

    #[test]
    fn what_is_beyond_the_bound_is_noted_as_missed_and_takes_no_memory() {
        let changes = Changes::default();
        changes.begin();
        (0..MOST + 10).for_each(|n| changes.note(key(n)));
        assert_eq!(changes.len(), MOST);
        assert!(changes.missed());
        assert!(!changes.missed(), "it has been said");
        assert!(changes.take(1_000).len() >= 1_000);
        changes.note(key(MOST + 11));
        assert!(!changes.missed(), "there is room again");
    }
}
