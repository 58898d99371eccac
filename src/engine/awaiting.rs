//! What holds while the disk that state lies on has not answered, and when it does.

use std::fmt::Display;
use std::sync::Arc;

use super::Engine;
use crate::policy::maintenance::By;
use crate::telemetry::Failure;

impl Engine {
    /// What was kept is being read, or will be: until then whoever is not found may have been kept.
    pub fn awaits_what_was_kept(&self) {
        self.set_whole(false);
    }

    /// No more of it is waited for.
    pub fn awaits_nothing(&self) {
        self.set_whole(true);
    }

    fn set_whole(&self, whole: bool) {
        self.memory.kept().for_each(|(_, table)| table.set_whole(whole));
        self.telemetry.state_loading(!whole);
    }

    /// What was kept is not known, and may never be. It is our own trouble, which lets mail pass.
    pub fn awaits_state(&self, folder: &dyn Display) {
        self.awaits_what_was_kept();
        let detail = format_args!(
            "{folder} does not answer: until it does, nothing that was learned before is known, \
             greylisting defers nobody, and what is learned now is not kept"
        );
        self.failed(Failure::State, &detail);
    }

    /// What was said by hand to an engine that waited for state holds here.
    pub fn take_over(&self, before: &Self, listeners: &[Arc<str>]) {
        let now = self.now();
        for lifted in before.lifted() {
            self.lift(&lifted.scope, lifted.until.since(now));
        }
        // Both have the same bounds, but this one may have been full already.
        let full = |what: &str| self.failed(Failure::State, &format_args!("no room for {what}"));
        for (listener, closure) in before.closures(listeners) {
            if closure.by == By::Hand && self.close(listener.as_deref(), closure.until).is_err() {
                full("maintenance that was begun by hand");
            }
        }
        for entry in before.allowed() {
            if self.allow(entry.network, entry.until).is_err() {
                full("a client that was allowed by hand");
            }
        }
    }
}
