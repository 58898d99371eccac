//! Which keys of a table were forgotten by hand, until the disk has forgotten them too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::key::Key;

/// Keys whose records an administrator has removed.
///
/// A record that is gone from memory may still lie on disk: a table of limits is written at shutdown
/// only, and while state is loading it is about to be read. What is in here is not read back, and
/// its removal is written with the next batch.
///
/// Its bound: `MOST` keys, two megabytes. A key beyond it is removed from memory, and may come back
/// from disk at the next start.
#[derive(Default)]
pub struct Forgotten {
    keys: Mutex<HashMap<Key, Removal>>,
    /// How many of them are not written yet.
    behind: AtomicUsize,
    any: AtomicBool,
    /// Whether there is a disk.
    wanted: AtomicBool,
}

/// How many keys are kept at most. One client has some ten.
const MOST: usize = 1 << 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    Behind,
    Written,
}

impl Forgotten {
    /// There is a disk, which is to forget too.
    pub fn begin(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// The record under this key is removed by hand.
    pub(super) fn add(&self, key: Key) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut keys = self.lock();
        if keys.len() < MOST || keys.contains_key(&key) {
            let before = keys.insert(key, Removal::Behind);
            self.behind.fetch_add(usize::from(before != Some(Removal::Behind)), Ordering::Relaxed);
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// Whether what the disk still has under this key is not to be believed.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.any.load(Ordering::Relaxed) && self.lock().contains_key(&key)
    }

    /// How many removals are not written yet.
    pub fn behind(&self) -> usize {
        self.behind.load(Ordering::Relaxed)
    }

    /// The keys whose removal is not written yet.
    pub fn to_write(&self) -> Vec<Key> {
        if self.behind() == 0 {
            return Vec::new();
        }
        self.lock().iter().filter(|(_, r)| **r == Removal::Behind).map(|(key, _)| *key).collect()
    }

    /// The removal of these keys is written. While the table is not `whole`, a reader may be about to
    /// show what it has read before: so they stay until it is.
    pub fn written(&self, written: &[Key], whole: bool) {
        let mut keys = self.lock();
        for key in written {
            if keys.insert(*key, Removal::Written) == Some(Removal::Behind) {
                self.behind.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if whole {
            keys.retain(|_, removal| *removal == Removal::Behind);
            self.any.store(!keys.is_empty(), Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Removal>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
