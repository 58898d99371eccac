//! What a status tells of, in plain numbers. Metrics are made of them when somebody asks, so that
//! nothing is counted twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Failure;
use crate::clock::Time;
use crate::policy::decision::Reason;

/// A number for each reason.
pub type ByReason = [u64; Reason::ALL.len()];

/// What has been counted since the start.
#[derive(Default)]
pub(super) struct Counts {
    passes: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    shadowed: [AtomicU64; Reason::ALL.len()],
    failures: [AtomicU64; Failure::ALL.len()],
    sessions: AtomicU64,
    pub(super) state: State,
}

/// How far what is written down has come.
#[derive(Default)]
pub(super) struct State {
    pub(super) loading: AtomicBool,
    pub(super) loaded: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Up to when every change has been written down; zero where nothing is.
    pub(super) written_up_to: AtomicU64,
}

impl Counts {
    pub(super) fn passed(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn shadowed(&self, reason: Reason) {
        self.shadowed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session_begun(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session_ended(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn totals(&self) -> Totals {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            passes: read(&self.passes),
            refused: self.refused.each_ref().map(read),
            shadowed: self.shadowed.each_ref().map(read),
            failures: self.failures.each_ref().map(read),
            sessions: read(&self.sessions),
            loading: self.state.loading.load(Ordering::Relaxed),
            loaded: read(&self.state.loaded),
            bytes: read(&self.state.bytes),
            written_up_to: match read(&self.state.written_up_to) {
                0 => None,
                nanos => Some(Time::from_nanos(nanos)),
            },
        }
    }
}

/// All counts, as of a moment.
#[derive(Clone, Debug)]
pub struct Totals {
    /// Events that passed.
    pub passes: u64,
    /// Refusals by their reason, in the order of [`Reason::ALL`].
    pub refused: ByReason,
    /// What shadows would have refused, likewise.
    pub shadowed: ByReason,
    /// Our own trouble by its kind, in the order of [`Failure::ALL`].
    pub failures: [u64; Failure::ALL.len()],
    /// Sessions open now, as milters see them.
    pub sessions: u64,
    /// Whether what was kept is being read back.
    pub loading: bool,
    /// How many entries have been read back.
    pub loaded: u64,
    /// Bytes that state takes on disk.
    pub bytes: u64,
    /// Up to when every change has been written down; nothing where nothing is kept.
    pub written_up_to: Option<Time>,
}
