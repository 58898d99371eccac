//! The most memory that the daemon takes, whatever comes: the sum of all that has a bound.

use super::Settings;
use crate::front::listen::Protocol;
use crate::front::milter::WORST_SESSION;
use crate::front::policyd;

/// The program itself, empty tables, the log's queue (4 MiB), and those who ask for metrics and by
/// `ctl` at once.
const BASE: u64 = 48 << 20;

/// A client with everything that can be known of it, and a triplet, as `benches/bounds.rs` measures
/// them, rounded up.
const CLIENT: u64 = 1_000;
const TRIPLET: u64 = 64;

impl Settings {
    /// The most memory in bytes, where so many connections of MTAs may be open.
    pub fn most_memory(&self, sessions: usize) -> u64 {
        let policy = |protocol| protocol == Protocol::Policy;
        let asked = self.listen.iter().filter_map(|listen| listen.address());
        let desk = match asked.into_iter().any(|(_, protocol)| policy(protocol)) {
            true => policyd::MOST_MEMORY,
            false => 0,
        };
        let tables = u64::from(self.state.max_clients) * CLIENT
            + u64::from(self.state.max_triplets) * TRIPLET;
        let sessions = (sessions as u64).saturating_mul(WORST_SESSION as u64);
        sessions.saturating_add(BASE + desk as u64 + tables)
    }
}
