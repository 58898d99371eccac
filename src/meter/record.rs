//! What a table keeps under a key.

use crate::clock::Time;

/// A value that fades: at some moment it says no more than its absence would.
pub trait Record: Send + Sync {
    /// Whether dropping it now loses nothing.
    fn forgettable(&self, now: Time) -> bool;
}

/// A large record is better kept apart: a table of it has room for a third more than it holds.
impl<R: Record> Record for Box<R> {
    fn forgettable(&self, now: Time) -> bool {
        (**self).forgettable(now)
    }
}
