//! Memory that outlives the process.
//!
//! The mail path only ever touches memory. What it changes is noted by key, and a thread of its own
//! writes the newest value of each noted key behind, one batch a `[state] flush`. A disk that
//! stalls makes that thread wait and nobody else.

pub mod disk;
pub mod folder;
pub mod keeper;
pub mod owner;

use std::fmt::{self, Display, Formatter};
use std::io;

use crate::clock::Time;

/// A key as it lies on disk. Keys are evenly spread.
pub type RawKey = [u8; 16];

/// One entry of one table, as it is to be from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table's name.
    pub table: &'static str,
    /// The entry's key.
    pub key: RawKey,
    /// Its value; nothing if it is gone.
    pub value: Option<Vec<u8>>,
}

/// Why a backend did not do what it was asked.
#[derive(Debug)]
pub enum Fault {
    /// Now it cannot be done; later perhaps (no space, no permission, a disk that is away). The
    /// backend takes no more writes and must be opened again.
    Unable(io::Error),
    /// What was read is not what had been written.
    Damaged(Damage),
}

/// What is not as it had been written.
#[derive(Debug)]
pub struct Damage {
    /// For people.
    pub what: String,
    /// The part of a slice's keys that a scan of it could not show, from 0 to 1. Keys are evenly
    /// spread, so it is the part of the slice's entries too.
    pub share: f64,
}

impl<T: Into<String>> From<T> for Damage {
    fn from(what: T) -> Self {
        Self { what: what.into(), share: 0.0 }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unable(error) => write!(f, "{error}"),
            Self::Damaged(damage) => write!(f, "damaged: {}", damage.what),
        }
    }
}

/// Where tables are kept: one ordered set of entries for each table's name.
pub trait Backend: Send + Sync {
    /// Writes all of it or nothing. Durable when it returns, even if power is cut then.
    fn commit(&self, batch: &[Change]) -> Result<(), Fault>;

    /// Shows every entry of a table whose key begins with this byte, in no stated order. Goes on
    /// behind what is damaged, as far as it can, and returns that fault at the end.
    fn scan(
        &self,
        table: &str,
        first_byte: u8,
        each: &mut dyn FnMut(RawKey, &[u8]),
    ) -> Result<(), Fault>;

    /// The value under a key.
    fn get(&self, table: &str, key: RawKey) -> Result<Option<Vec<u8>>, Fault>;

    /// Gives back the space of what has been overwritten and removed. Takes its time; everything
    /// else goes on meanwhile.
    fn compact(&self) -> Result<(), Fault>;

    /// Bytes it takes on disk.
    fn bytes(&self) -> u64;

    /// What was damaged when it was opened and had to be left out, in figures; the rest is whole.
    fn left_out(&self) -> Option<String> {
        None
    }
}

/// Where a backend lives.
pub trait Home: Send + Sync {
    /// Opens it; a missing one is made.
    fn open(&self) -> Result<Box<dyn Backend>, Fault>;

    /// Moves what is damaged out of the way, and says where to. It must not be open.
    fn set_aside(&self, now: Time) -> io::Result<String>;

    /// Nothing of what was kept is known any more: what says since when it is the same database says
    /// so from now on.
    fn begins_anew(&mut self, now: Time) -> io::Result<()>;

    /// When somebody last ran over it with a clock that was believed, as far as that is known.
    fn last_ran(&self) -> Option<Time>;

    /// Somebody runs over it now.
    fn runs(&self, now: Time) -> io::Result<()>;

    /// Whether it is still where it was: not removed, and not replaced by another.
    fn is_in_place(&self) -> bool;

    /// Makes it anew in its place, with nothing in it. It must not be open.
    fn move_in(&mut self, now: Time) -> io::Result<()>;
}
