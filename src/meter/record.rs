//! What a table keeps under a key.

use crate::clock::Time;

/// A value that fades: at some moment it says no more than its absence would.
pub trait Record: Send + Sync {
    /// Whether dropping it now loses nothing.
    fn forgettable(&self, now: Time) -> bool;
}
